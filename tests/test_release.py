"""The folder to hand over: opened as its receiver would, searched for what must not be in it, and every refusal."""

import copy
import json
import platform
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dpldm.cli import main
from dpldm.records import files, names
from dpldm.records.schema import RecordError
from dpldm.runs import cards, release
from dpldm.runs.experiment import Experiment, Folders
from dpldm.runs.release import Finished, ReleaseError
from dpldm.runs.run import run

CLASSES = ("T-shirt/top", "../b|c", "naïve")
MARKED = np.random.default_rng(7).integers(0, 256, (12, 12), dtype=np.uint8)  # a real image that nobody else has
SCORES = {"0.98765", "1234.567", "4321.25"}
HOST, USER = "blaubeerkuchen.example", "quittengelee"  # long enough to be in no file by chance


@pytest.fixture(scope="module", autouse=True)
def _somebody_somewhere() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, USER)
        patch.setattr(socket, "gethostname", lambda: HOST)
        patch.setattr(platform, "node", lambda: HOST)
        yield


def make(place: Path, secure: bool = True) -> Finished:
    """A run on images with a marked one among them. Its record gets scores and times, as one with --test-data has."""
    random = np.random.default_rng(0)
    labels = np.arange(240) % 3
    images = (random.random((240, 12, 12)) * 120).astype(np.uint8)
    for c in range(3):
        images[labels == c, :, 3 * c + 1 : 3 * c + 3] += 120
    images[17] = MARKED
    place.mkdir(parents=True)
    np.savez(place / "patients.npz", images=images, labels=labels, class_names=np.array(CLASSES))
    asked = Experiment(place / "patients.npz", 2.0, delta=1e-4, secure_mode=secure, method="class-gaussian")
    asked = replace(asked, profile="smoke", n_synthetic=45)
    record = run(asked, Folders(place / "runs" / "records", place / "runs"))
    record["metrics"]["accuracy"]["cnn"], record["metrics"]["fid_classifier"] = [0.98765], 1234.567
    record["seconds"]["sampling"], record["device"] = 4321.25, "cpu: Difference Engine, 2 cores"
    path = files.write(record, place / "runs" / "records")
    return Finished(path, place / "runs" / path.stem)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return make(tmp_path_factory.mktemp("zwetschgenmus") / "home")


@pytest.fixture(scope="module")
def released(made: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the model; tests must not change it."""
    return release.release(made, tmp_path_factory.mktemp("given") / "folder", with_model=True)


@pytest.fixture
def own(made: Finished, tmp_path: Path) -> Finished:
    """A copy of the run that a test may spoil."""
    shutil.copytree(made.record.parent.parent, tmp_path / "copy")
    return Finished(tmp_path / "copy" / "records" / made.record.name, tmp_path / "copy" / made.folder.name)


# --- as its receiver --------------------------------------------------------------------------------------------------

FRESH = """\
import sys
sys.modules["dpldm"] = None
{without_torch}
{code}
import hashlib, json, math
from pathlib import Path
for line in Path("SHA256SUMS").read_text(encoding="utf-8").splitlines():
    assert hashlib.sha256(Path(line[66:]).read_bytes()).hexdigest() == line[:64], line
told = json.loads(Path("privacy.json").read_text(encoding="utf-8"))
if Path("images.npz").exists():
    with np.load("images.npz") as data:
        assert json.loads(str(data["privacy"])) == told["statement"]
# The Gaussian mechanisms of this ledger, composed: delta at the stated epsilon in closed form (Balle and Wang, 2018).
assert all(use["sample_rate"] == 1 for use in told["ledger"]["mechanisms"])
mu = math.sqrt(sum(use["steps"] / use["noise_multiplier"] ** 2 for use in told["ledger"]["mechanisms"]))
below = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))
epsilon = told["statement"]["epsilon"]
delta = below(mu / 2 - epsilon / mu) - math.exp(epsilon) * below(-mu / 2 - epsilon / mu)
assert 0.9 * told["statement"]["delta"] < delta < 1.001 * told["statement"]["delta"], delta
assert told["statement"]["noise"] == "secure"
print(images.shape, images.dtype, sorted(set(labels.tolist())), {more})
"""


def fresh(folder: Path, torch_too: bool) -> str:
    """What a Python without dpldm says of the folder, with the code of its README; a wrong statement is an error."""
    numpy_code, torch_code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(numpy_code.split("\n\n")[-1].splitlines()) + len(torch_code.split("\n\n")[-1].splitlines()) <= 5
    script = FRESH.format(
        without_torch="" if torch_too else 'sys.modules["torch"] = None',
        code=numpy_code + (torch_code if torch_too else ""),
        more="len(dataset), tuple(dataset[0][0].shape), int(dataset[44][1])" if torch_too else "",
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_is_loaded_and_verified_without_dpldm(made: Finished, released: Path, tmp_path: Path) -> None:
    assert fresh(released, torch_too=False) == "(45, 12, 12) uint8 [0, 1, 2]"
    assert fresh(released, torch_too=True) == "(45, 12, 12) uint8 [0, 1, 2] 45 (1, 12, 12) 2"
    pngs = release.release(made, tmp_path / "pngs", form="png")
    assert fresh(pngs, torch_too=False) == "(45, 12, 12) uint8 [0, 1, 2]"
    assert fresh(pngs, torch_too=True) == "(45, 12, 12) uint8 [0, 1, 2] 45 (1, 12, 12) 2"


def test_both_forms_have_the_images_of_the_run_and_what_is_listed(
    made: Finished, released: Path, tmp_path: Path
) -> None:
    pages = {"README.md", "SHA256SUMS", "data-card.md", "model-card.md", "privacy.json", "privacy.txt", "samples.png"}
    assert {path.name for path in released.iterdir()} == pages | {"images.npz", "synthesizer.safetensors"}
    with np.load(made.folder / "synthetic.npz") as drawn, np.load(released / "images.npz") as given:
        assert all(np.array_equal(drawn[key], given[key]) for key in ("images", "labels", "class_names"))
        images, labels = drawn["images"], drawn["labels"]
    pngs = release.release(made, tmp_path / "pngs", form="png")
    assert {path.name for path in pngs.iterdir()} == pages | {"images"}
    folders = sorted((pngs / "images").iterdir())
    assert [folder.name for folder in folders] == ["0-T-shirt-top", "1-..-b-c", "2-naïve"]
    for label, folder in enumerate(folders):
        found = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
        assert np.array_equal(found, images[labels == label])
    release.check(pngs)


def test_the_model_draws_the_images_again(released: Path, tmp_path: Path) -> None:
    words = ["sample", str(released / "synthesizer.safetensors"), "--n", "45", "--out", str(tmp_path / "again.npz")]
    assert main(words) == 0
    with np.load(tmp_path / "again.npz") as again, np.load(released / "images.npz") as given:
        assert np.array_equal(again["images"], given["images"])


# --- what must not be in it -------------------------------------------------------------------------------------------


def leaks(folder: Path, needles: dict[str, bytes]) -> set[str]:
    """Which needles are in a file, in what is packed in it, or among the pixels of a picture."""
    contents = [path.relative_to(folder).as_posix().encode() for path in folder.rglob("*")]
    for path in (path for path in folder.rglob("*") if path.is_file()):
        contents.append(path.read_bytes())
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        if path.suffix == ".png":
            with Image.open(path) as picture:
                contents.append(np.asarray(picture.convert("L")).tobytes())
    return {name for name, needle in needles.items() if any(needle in content for content in contents)}


def needles_of(made: Finished) -> dict[str, bytes]:
    secret = (made.folder.parent / ".secret").read_bytes()
    (keyed,) = files.read(made.record)["data_sha256"].values()
    words = {made.folder.parent.as_posix(), "zwetschgenmus", "patients", HOST, USER, "Difference Engine"}
    found = {word: word.encode() for word in words | SCORES | {secret.hex(), keyed, made.record.stem}}
    found["the secret"] = secret
    for number, row in enumerate(MARKED):
        found[f"row {number}"] = row.tobytes()
        found[f"row {number}, float"] = (row.astype(np.float32) / 255).tobytes()
    return found


def test_nothing_of_a_real_image_of_places_and_of_scores_is_in_it(
    made: Finished, released: Path, tmp_path: Path
) -> None:
    needles = needles_of(made)
    assert leaks(released, needles) == set()
    assert leaks(release.release(made, tmp_path / "pngs", form="png"), needles) == set()


def test_the_search_finds_what_is_planted(made: Finished, released: Path, tmp_path: Path) -> None:
    needles = needles_of(made)
    shutil.copytree(released, tmp_path / "given")
    np.savez_compressed(tmp_path / "given" / "more.npz", images=MARKED)
    shutil.copy(made.folder.parent / ".secret", tmp_path / "given" / "key")
    assert {f"row {number}" for number in range(12)} | {"the secret"} == leaks(tmp_path / "given", needles)
    Image.fromarray(MARKED).save(tmp_path / "patients.png")
    assert {"row 3", "patients"} <= leaks(tmp_path, needles)
    shutil.copytree(made.record.parent, tmp_path / "records")
    assert SCORES | {made.record.stem, "Difference Engine"} <= leaks(tmp_path, needles)


def test_the_cards_know_nothing_else_than_what_is_covered(made: Finished) -> None:
    record = files.read(made.record)
    other = copy.deepcopy(record) | {"seconds": {}, "device": "another", "data_sha256": {}, "seed": 5}
    other["metrics"], other["dataset"], other["settings"]["evaluation"] = {}, "own-others", {"cnn_epochs": 3}
    other["privacy"]["note"] = "more"
    shown = ((1, 12, 12), CLASSES, (15, 15, 15))
    assert cards.covered(record, *shown) == cards.covered(other, *shown)
    other["privacy"]["epsilon"] += 1
    assert cards.covered(record, *shown) != cards.covered(other, *shown)


def test_the_cards_say_what_was_done_and_what_they_can_not_know(released: Path) -> None:
    card, data = ((released / name).read_text("utf-8") for name in ("model-card.md", "data-card.md"))
    told = json.loads((released / "privacy.json").read_text("utf-8"))
    assert "protects nobody" not in card + data
    for use in told["ledger"]["mechanisms"]:
        assert f"| {use['stage']} | {use['name']} | {use['noise_multiplier']:.6g} |" in card
    assert "the licence of these files" in data
    assert "| 1 | ../b\\|c | 15 |" in data
    with safe_open(released / "synthesizer.safetensors", "pt") as model:
        assert json.loads(model.metadata()["facts"])["dataset"] == "own"


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(own: Finished, folder: Path, **options: object) -> str:
    """The words of a refusal in one line, after which nothing new is there."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises((ReleaseError, RecordError)) as refused:
        release.release(own, folder, **options)
    assert sorted(folder.parent.rglob("*")) == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


def rewritten(own: Finished, **privacy: object) -> Finished:
    """The run with another record, under the name that fits what is in it."""
    record = files.read(own.record)
    record["privacy"] |= privacy
    record["settings"]["secure_mode"] = record["privacy"]["secure_mode"]
    return Finished(files.write(record, own.record.parent), own.folder)


def test_no_release_of_a_seeded_run_but_knowingly(tmp_path: Path) -> None:
    seeded = make(tmp_path / "home", secure=False)
    words = refusal(seeded, tmp_path / "given")
    assert "seed of 32 bits" in words
    assert "--secure, or add --i-know" in words
    folder = release.release(seeded, tmp_path / "given", seeded_too=True)
    for page in ("README.md", "model-card.md", "data-card.md", "privacy.txt"):
        assert "protects nobody" in (folder / page).read_text("utf-8")
    assert json.loads((folder / "privacy.json").read_text("utf-8"))["statement"]["noise"] == "seeded"


def test_no_release_without_privacy(own: Finished, tmp_path: Path) -> None:
    public = rewritten(own, epsilon=None, epsilon_target=None)
    assert "it is not private; make it with an ε and --secure" in refusal(public, tmp_path / "given", seeded_too=True)


def test_seeded_images_are_not_released_under_a_secure_record(own: Finished, tmp_path: Path) -> None:
    """The record may be edited under the right name, the images say otherwise."""
    seeded = make(tmp_path / "home", secure=False)
    claimed = rewritten(seeded, secure_mode=True)
    assert "got those of another run" in refusal(claimed, tmp_path / "given")


def test_edited_and_damaged_records_are_refused(own: Finished, tmp_path: Path) -> None:
    text = own.record.read_text("utf-8")
    record = json.loads(text)
    record["privacy"]["epsilon"] /= 2
    own.record.write_text(json.dumps(record))
    assert "its mechanisms spend" in refusal(own, tmp_path / "given")
    record = json.loads(text)
    record["settings"]["synthesis"]["moments"] = 3
    own.record.write_text(json.dumps(record))
    assert f"expected the name {names.record_name(record)}" in refusal(own, tmp_path / "given")
    own.record.write_text(text[:-40])
    assert "expected a record in JSON" in refusal(own, tmp_path / "given")


@pytest.mark.parametrize("file", ["synthetic.npz", "samples.safetensors"])
def test_a_damaged_run_is_refused(own: Finished, file: str, tmp_path: Path) -> None:
    content = bytearray((own.folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (own.folder / file).write_bytes(content)
    words = refusal(own, tmp_path / "given")
    assert file in words
    assert "expected the" in words
    (own.folder / file).unlink()
    assert file in refusal(own, tmp_path / "given")
    shutil.rmtree(own.folder)
    assert "expected the folder of the run, found none" in refusal(own, tmp_path / "given")


def test_the_model_of_another_run_is_refused(own: Finished, made: Finished, tmp_path: Path) -> None:
    other = make(tmp_path / "home")
    model = own.folder / "synthesizer.safetensors"
    shutil.copy(make(tmp_path / "seeded", secure=False).folder / model.name, model)
    assert "got another's" in refusal(own, tmp_path / "given", with_model=True)
    assert release.release(other, tmp_path / "given", with_model=True)


def test_nothing_is_overwritten(own: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    assert "nothing is overwritten" in refusal(own, folder)
    assert "nothing is overwritten" in refusal(own, folder / "thesis.tex")
    (folder / "thesis.tex").unlink()
    release.release(own, folder)  # an empty folder is as good as none
    assert (folder / "images.npz").is_file()
    assert "nothing is overwritten" in refusal(own, folder)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_it_is_there_whole_or_not_at_all(
    own: Finished, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> str:
        raise error

    monkeypatch.setattr(cards, "data_card", fails)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(type(error)):
        release.release(own, tmp_path / "given")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_not_written_as_it_should_be_is_noticed(
    own: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = release.save_images
    monkeypatch.setattr(release, "save_images", lambda path, images, *more: right(path, images.flip(0), *more))
    assert "what was read back is not what was written" in refusal(own, tmp_path / "given")
    blank = torch.zeros(45, 12, 12, dtype=torch.uint8)
    monkeypatch.setattr(release, "save_images", lambda path, images, labels, said, names: right(
        path, blank.unsqueeze(1).float(), labels, dict(said) | {"epsilon": 1.0}, names))  # fmt: skip
    assert "its privacy statement is another" in refusal(own, tmp_path / "given")


# --- a folder that was changed later ----------------------------------------------------------------------------------


def sums_again(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    found = [f"{release.file_sha256(folder / line[66:])}  {line[66:]}\n" for line in lines]
    (folder / "SHA256SUMS").write_text("".join(found), "utf-8")


def test_a_changed_folder_is_noticed(released: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    shutil.copytree(released, folder)
    release.check(folder)
    (folder / "stage.safetensors").write_bytes(b"latents")
    with pytest.raises(ReleaseError, match=r"stage.safetensors: expected the files that SHA256SUMS lists"):
        release.check(folder)
    (folder / "stage.safetensors").unlink()
    promise = folder / "privacy.json"
    promise.write_text(promise.read_text("utf-8").replace('"seeded"', '"secure"') + " ", "utf-8")
    with pytest.raises(ReleaseError, match=r"privacy.json: expected SHA-256"):
        release.check(folder)
    told = json.loads(promise.read_text("utf-8"))
    told["statement"]["epsilon"] = told["ledger"]["epsilon"] = 0.1
    promise.write_text(json.dumps(told), "utf-8")
    sums_again(folder)
    with pytest.raises(ReleaseError, match="its mechanisms spend"):
        release.check(folder)
    told["ledger"]["epsilon"] = json.loads((released / "privacy.json").read_text("utf-8"))["ledger"]["epsilon"]
    promise.write_text(json.dumps(told), "utf-8")
    sums_again(folder)
    with pytest.raises(ReleaseError, match="another than that of the ledger"):
        release.check(folder)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_takes_a_name_a_record_or_a_folder(
    own: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    own.folder.parent.rename(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    name = own.folder.name
    for number, given in enumerate(
        (name, f"runs/records/{name}.json", f"runs/{name}", f"../{tmp_path.name}/runs/{name}")
    ):
        assert main(["release", given, f"given{number}"]) == 0
        assert "images.npz" in capsys.readouterr().out
        assert (tmp_path / f"given{number}" / "images.npz").is_file()
    monkeypatch.chdir("/")
    assert main(["release", str(tmp_path / "runs" / name), str(tmp_path / "far"), "--as", "png", "--with-model"]) == 0
    assert (tmp_path / "far" / "synthesizer.safetensors").is_file()
    assert main(["release", str(tmp_path / "runs" / name), str(tmp_path / "far")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main(["release", "no-such-run", str(tmp_path / "other")]) == 2
    assert "`dpldm records` lists them" in capsys.readouterr().err
