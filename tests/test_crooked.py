"""Sets that are small, crooked or of another shape end in images, or in one line that says what to do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dpldm.cli import main
from dpldm.data.images import DataError
from dpldm.data.own import load_own
from dpldm.records.images import load_images

RANDOM = np.random.default_rng(1)


def noise(count: int, *shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, classes: int) -> np.ndarray:
    return np.arange(count) % classes


SETS = {
    "digits of 8 x 8": lambda: ((load_digits().images * 15).astype(np.uint8), load_digits().target),
    "two classes": lambda: (noise(400, 12, 12), labels(400, 2)),
    "257 images": lambda: (noise(257, 12, 12), labels(257, 3)),
    "one class of 20": lambda: (noise(420, 12, 12), np.repeat([0, 1], [400, 20])),
    "100 classes": lambda: (noise(800, 12, 12), labels(800, 100)),
    "one class": lambda: (noise(300, 12, 12), labels(300, 1)),
    "colour": lambda: (noise(300, 16, 16, 3), labels(300, 2)),
}
SMOKE = ["--profile", "smoke", "--epsilon", "5", "--delta", "1e-4", "--n-synthetic", "100"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SETS)
def test_crooked_sets_end_in_images(name: str, here: Path) -> None:
    images, classes = SETS[name]()
    np.savez("own.npz", images=images, labels=classes)
    assert main(["run", "--data", "own.npz", "--kind", "ink", *SMOKE]) == 0
    (made,) = here.glob("runs/own-own-*/synthetic.npz")
    drawn, drawn_labels, _ = load_images(made)
    assert drawn.shape[2:] == images.shape[1:3]
    assert len(drawn_labels.unique()) == min(len(np.unique(classes)), 100)
    assert bool(torch.isfinite(drawn).all())


def test_images_of_any_size_are_brought_to_a_square(here: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez("own.npz", images=noise(240, 96, 70), labels=labels(240, 2))
    assert main(["run", "--data", "own.npz", *SMOKE]) == 2
    said = capsys.readouterr().err
    assert "add --resize 32 to `dpldm run`" in said
    assert said.count("\n") == 1
    resized = ["run", "--data", "own.npz", "--resize", "16", "--method", "class-gaussian", *SMOKE]
    assert main([*resized, "--dry-run"]) == 0
    assert "240 of 16 × 16 pixels, grey, in 2 classes; of each the middle square, resized" in capsys.readouterr().out
    assert main(resized) == 0
    (record,) = here.glob("runs/records/*.json")
    assert '"resize": 16' in record.read_text(encoding="utf-8")
    assert main(["run", "--dataset", "mnist", "--resize", "16"]) == 2
    assert "leave out --resize" in capsys.readouterr().err


def test_resizing_cuts_the_middle_and_is_the_same_for_files_and_arrays(tmp_path: Path) -> None:
    wide = np.zeros((12, 40, 100, 3), np.uint8)
    wide[:, :, :30] = 255  # outside the middle square
    wide[:, :20, 30:70, 1] = np.arange(12)[:, None, None] * 20
    classes = labels(12, 2)
    np.savez(tmp_path / "bytes.npz", images=wide, labels=classes)
    np.savez(tmp_path / "floats.npz", images=(wide / 255).astype(np.float32), labels=classes)
    for number, image in enumerate(wide):
        place = tmp_path / "folder" / str(classes[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    first = load_own(tmp_path / "bytes.npz", resize=10)
    assert first.image_shape == (3, 10, 10)
    assert first.images[:, 0].max() == 0
    assert torch.allclose(first.images[11, 1, :4], torch.full((4, 10), 220 / 255))
    assert first.images[11, 1, 6:].max() == 0
    assert torch.allclose(first.images, load_own(tmp_path / "floats.npz", resize=10).images, atol=1 / 255)
    order = sorted(range(12), key=lambda number: (classes[number], f"{number}.png"))
    assert torch.equal(load_own(tmp_path / "folder", resize=10).images, first.images[order])
    with pytest.raises(DataError, match="resize: expected a side of 8 to 64"):
        load_own(tmp_path / "bytes.npz", resize=100)
    np.savez(tmp_path / "wrong.npz", images=wide.astype(np.float32), labels=classes)
    with pytest.raises(DataError, match="divide by 255"):
        load_own(tmp_path / "wrong.npz", resize=10)
