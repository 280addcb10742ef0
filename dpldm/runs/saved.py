"""A fitted synthesizer as a file, from which more images can be drawn for free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpldm.data.memory import lacks_memory
from dpldm.method.settings import SamplingSettings
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.methods import METHODS, Synthesizer
from dpldm.privacy import statement as privacy_statement
from dpldm.records.images import save_images
from dpldm.records.schema import RecordError
from dpldm.records.settings import from_json, to_json
from dpldm.records.stages import StageFolder
from dpldm.runs.experiment import ExperimentError, Progress, balanced_labels, derived_seed
from dpldm.runs.job import SAMPLES, Job
from dpldm.runs.words import statement

GRID_COLUMNS = 10  # images of each class on a sample grid


def write_grid(
    path: Path, images: Tensor, labels: Tensor, class_names: tuple[str, ...], said: Mapping[str, Any]
) -> None:
    """Write the sample grid of images (N, C, H, W): the first of each class, and what is claimed about them."""
    from dpldm.records import grids  # here, because matplotlib takes seconds to import

    first = torch.cat([(labels == c).nonzero()[:GRID_COLUMNS, 0] for c in range(len(class_names))])
    grids.save_grid_png(path, images[first], labels[first], class_names, said, GRID_COLUMNS)


@dataclass(frozen=True)
class SavedSynthesizer:
    """A fitted synthesizer with what is known of it: ``settings`` are those of its method, ``privacy`` and ``dataset``
    those of its record, the latter None for a file of an earlier version; ``image_shape``: where it was read."""

    synthesizer: Synthesizer
    settings: Any
    class_names: tuple[str, ...]
    privacy: dict[str, Any]
    seed: int
    method: str = LatentDiffusion.method
    dataset: str | None = None
    image_shape: tuple[int, int, int] | None = None

    @property
    def statement(self) -> dict[str, Any]:
        """What goes with images that it draws."""
        return statement(self.privacy, self.dataset)


def save(job: Job, spent: dict[str, Any]) -> None:
    """Keep the fitted synthesizer of a run beside its stages."""
    saved = SavedSynthesizer(
        job.synthesizer,
        job.settings,
        job.train.class_names,
        spent,
        job.experiment.seed,
        job.experiment.method,
        job.description["dataset"],
    )
    save_synthesizer(job.model_path, saved, job.train.image_shape)


def save_synthesizer(path: Path, saved: SavedSynthesizer, shape: tuple[int, int, int]) -> None:
    """Write a fitted synthesizer as one safetensors file: its tensors and, in the header, everything else.

    Args:
        path: must end in `.safetensors`.
        shape: of an image, (C, H, W).

    Raises:
        OSError: the folder can't be written; nothing is left behind.
    """
    synthesizer = saved.synthesizer
    states = {stage: synthesizer.state(stage) for stage in synthesizer.stages}
    tensors = {f"{stage}/{name}": value for stage, state in states.items() for name, value in state.items()}
    facts = {
        "schema": 1,
        "method": saved.method,
        "dataset": saved.dataset,
        "image_shape": list(shape),
        "class_names": list(saved.class_names),
        "settings": to_json(saved.settings),
        "privacy": saved.privacy,
        "seed": saved.seed,
    }
    StageFolder(path.parent).save(path.stem, tensors, facts)


def load_synthesizer(path: Path | str, device: torch.device | str = "cpu") -> SavedSynthesizer:
    """Read a synthesizer that `run` saved. Executes no code.

    Raises:
        ExperimentError: the file is not a whole synthesizer of this version.
        OSError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a synthesizer.safetensors that dpldm run has saved, found no file")
    try:
        if path.suffix != ".safetensors":
            raise ExperimentError(f"a file name that ends in '{path.suffix}'")
        tensors, facts = StageFolder(path.parent).load(path.stem)
        return _restored(tensors, facts, device)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, OverflowError) as error:
        if lacks_memory(error):
            raise
        reason = "a damaged file" if isinstance(error, RecordError) else " ".join(f"{error}".split())[:160]
        expected = "expected a synthesizer that dpldm run has saved"
        raise ExperimentError(f"{path}: {expected}, got {reason}; restore the file or repeat the run") from None


def _restored(tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device | str) -> SavedSynthesizer:
    method = METHODS[facts["method"]]
    privacy_statement.check_claim(facts["privacy"])
    if not method.private and facts["privacy"]["epsilon"] is not None:
        raise ExperimentError(f"a claim of ε for the method {facts['method']!r}, which gives no privacy")
    settings = from_json(method.settings, facts["settings"])
    shape, names, seed = tuple(facts["image_shape"]), tuple(facts["class_names"]), facts["seed"]
    synthesizer = method.build(shape, len(names), settings, None, seed, device)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExperimentError(f"weights that are no finite numbers ({name})")
    for stage in synthesizer.stages:
        prefix = f"{stage}/"
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        synthesizer.restore(stage, state)
    one = next(iter(synthesizer.sample(torch.zeros(1, dtype=torch.int64), 0)))  # so that a wrong shape shows here
    if tuple(one.shape[1:]) != shape:
        raise ExperimentError(f"images of shape {tuple(one.shape[1:])} instead of {shape}")
    dataset = facts.get("dataset")
    return SavedSynthesizer(synthesizer, settings, names, facts["privacy"], seed, facts["method"], dataset, shape)


def sample(
    saved: SavedSynthesizer,
    labels: Tensor,
    seed: int,
    sampling: SamplingSettings | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Images (N, C, H, W) in [0, 1] for ``labels`` (N,); post-processing, so it costs no privacy.

    With the seed, labels and sampling settings of a run (None: those it was saved with) they are the images of that
    run.
    """
    return draw(saved.synthesizer, labels, seed, sampling, progress)


def draw(
    synthesizer: Synthesizer,
    labels: Tensor,
    seed: int,
    sampling: SamplingSettings | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The same of a synthesizer that was never saved; on the CPU, each batch put where it belongs, so that there is no
    second copy of all."""
    images, drawn = torch.empty(0), 0
    for batch in synthesizer.sample(labels, derived_seed(seed, "sampling"), sampling):
        if not drawn:
            images = torch.empty(len(labels), *batch.shape[1:])
        images[drawn : drawn + len(batch)] = batch
        drawn += len(batch)
        (progress or Progress()).track(SAMPLES, drawn / len(labels))
    return images


def labels_in_turn(wanted: str, n: int, names: Sequence[str]) -> Tensor:
    """Labels (n,) from "balanced", or from classes with commas between them, which take turns: by name, or by number
    where no name is one, as 2 would else be the class named 2 for some images and the third for others.

    >>> labels_in_turn("dog,cat", 3, ["cat", "dog"]).tolist(), labels_in_turn("2", 2, ["1", "2"]).tolist()
    ([1, 0, 1], [1, 1])

    Raises:
        ExperimentError: some class is unknown, or asked for twice.
    """
    if wanted == "balanced":
        return balanced_labels(n, len(names))
    numbered = not any(name.isdecimal() for name in names)
    known = {str(label): label for label in range(len(names)) if numbered}
    known |= {name: label for label, name in enumerate(names)}
    numbers = f", or 0 to {len(names) - 1} for these in turn" if numbered else ""
    expected = f"expected balanced, or each class once, out of {', '.join(names)}{numbers}"
    chosen: list[int] = []
    for word in wanted.split(","):
        if word not in known:
            raise ExperimentError(f"unknown class {word!r} in --labels: {expected}")
        if known[word] in chosen:
            raise ExperimentError(f"class {word!r} twice in --labels: {expected}")
        chosen.append(known[word])
    return torch.tensor(chosen)[balanced_labels(n, len(chosen))]


def write_samples(path: Path, images: Tensor, labels: Tensor, saved: SavedSynthesizer) -> Path:
    """Images, labels, class names and privacy statement as `.npz`, and a grid of them as `.png` beside it, with a row
    for each class among the labels; returns the latter."""
    save_images(path, images, labels, saved.statement, saved.class_names)
    grid = path.with_suffix(".png")
    present, rows = labels.unique(return_inverse=True)  # no row for a class that was not asked for
    write_grid(grid, images, rows, tuple(saved.class_names[label] for label in present), saved.statement)
    return grid
