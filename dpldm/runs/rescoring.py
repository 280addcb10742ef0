"""Scores that older records lack, added to them; what is there stays as it is, bit for bit.

Only runs on public data sets are scored here. The images are those of the run: as they lie in its folder, or made again
from its settings and seed. That they are the same is told by the sample grid beside the record.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpldm.data import datasets
from dpldm.data.images import ImageData
from dpldm.evaluation import protocol
from dpldm.evaluation.settings import EvaluationSettings
from dpldm.records import environment, files
from dpldm.records.files import locked
from dpldm.records.grids import read_grid_png
from dpldm.records.images import load_images
from dpldm.records.names import record_name
from dpldm.records.numbers import duration
from dpldm.records.settings import from_json
from dpldm.runs.chosen import experiment_of
from dpldm.runs.experiment import Folders, Progress, choose_device, derived_seed
from dpldm.runs.job import limited
from dpldm.runs.missing import in_words, lacking
from dpldm.runs.run import redraw
from dpldm.runs.saved import GRID_COLUMNS

SAME = 0.9  # of the images on a sample grid that have to be there again: where machines round differently, some are not
NEAR = 2.5 / 255  # how far apart the pixels of the same image may be


Adder = Callable[[Path, Folders, Progress, bool, str], list[str]]  # like `add_missing`


class RescoringError(ValueError):
    """A record to which scores can't be added. One line: why, and the way out."""


@dataclass(frozen=True)
class Opened:
    """A record with what it is scored by: its images (N, C, H, W) in [0, 1] and labels (N,), and real images."""

    path: Path
    record: dict[str, Any]
    images: Tensor
    labels: Tensor
    train: ImageData
    test: ImageData

    def write(self, scores: Mapping[str, Any], part: str, device: torch.device) -> "Opened":
        """Add scores to the record on the disk, whole or not at all, with the commit and device that took them."""
        facts = environment.environment_facts(str(device))
        told = {"added": {part: {key: facts[key] for key in ("commit", "device")}}}
        metrics = self.record["metrics"]
        known = {kind: values for kind, values in metrics["accuracy"].items() if values}
        replaced = {"fid_inception_note"} if scores.get("fid_inception") is not None else set()
        kept = {key: value for key, value in metrics.items() if key not in replaced}
        filled = self.record | {"metrics": _filled(_filled(_filled(kept, {"learners": known}), scores), told)}
        files.write(filled, self.path.parent)
        return Opened(self.path, filled, self.images, self.labels, self.train, self.test)


def add_missing(
    path: Path, folders: Folders, progress: Progress, remake: bool = False, device: str = "auto"
) -> list[str]:
    """Take the scores that a record lacks, and write each into it as soon as it is there.

    Nothing is scored twice: a part of the evaluation whose scores are there is left out, and what an interrupted call
    has written is kept.

    Args:
        path: of the record; its sample grid lies beside it. folders: where its run is, or shall be made again.
        remake: make the images again where they are gone, which takes as long as the run took.

    Returns:
        The parts that were added; none where nothing was missing.

    Raises:
        RescoringError: the images are gone or are not those of the record, or they are not of a public data set.
        ValueError: a file is not what it should be. OSError: one can't be read or written.
    """
    if not lacking(files.read(path)):
        return []
    with opened(path, folders, progress, remake, device) as run:
        wanted, where = lacking(run.record), choose_device(device)
        progress.say(f"{path.name}: to be added: {in_words(wanted)}")
        for part, scores in protocol.evaluation_parts(
            run.images,
            run.labels,
            run.train,
            run.test,
            from_json(EvaluationSettings, run.record["settings"]["evaluation"]),
            where,
            derived_seed(run.record["seed"], "evaluation"),
            done=[part for part in protocol.PARTS if part not in wanted],
            progress=lambda share, _: progress.track("evaluation", share),
        ):
            run = run.write(scores, part, where)
        return wanted


def add_to_all(
    paths: Sequence[Path], add: Adder, folders: Folders, progress: Progress, remake: bool = False, device: str = "auto"
) -> list[str]:
    """`add_missing`, or another such function, for one record after another; one that fails does not stop the others.

    Returns:
        Why records were refused, a line for each.
    """
    refused = list[str]()
    for number, path in enumerate(paths, start=1):
        start, place = time.monotonic(), f"{number} of {len(paths)}, {path.name}"
        try:
            added = add(path, folders, progress, remake, device)
        except (ValueError, OSError) as error:
            refused.append(str(error))
            progress.say(f"{place}: {error}")
        else:
            spent = f"{len(added)} parts added in {duration(time.monotonic() - start)}"
            progress.say(f"{place}: {spent if added else 'lacks nothing'}")
    return refused


@contextmanager
def opened(path: Path, folders: Folders, progress: Progress, remake: bool, device: str) -> Iterator[Opened]:
    """A record with its images, which no other process scores at the same time; see `add_missing`."""
    record = files.read(path)
    if path.name != record_name(record):
        raise RescoringError(f"{path}: expected the name {record_name(record)}: take the file that the run wrote")
    if record["dataset"] not in datasets.DATASETS:
        raise RescoringError(f"{path.name}: expected a run on a public data set: your own images are in no record")
    if record["settings"]["evaluation"] is None:
        raise RescoringError(f"{path.name}: expected a run that was scored: make it anew")
    images_path = images_of(path, folders)
    if not images_path.is_file():
        if not remake:
            took = duration(sum(record["seconds"][stage] or 0 for stage in record["seconds"] if stage != "evaluation"))
            raise RescoringError(f"{images_path}: the images are gone: make them again with --remake (took {took})")
        redraw(experiment_of(record, device), folders, progress)
    with locked(images_path.parent / ".lock", lambda: progress.say(f"waiting: another process works on {path.name}")):
        record = files.read(path)
        images, labels, _ = load_images(images_path)
        train, test = (
            limited(datasets.load(record["dataset"], split, folders.data), record["settings"]["limit"])
            for split in ("train", "test")
        )
        if train.sha256 | test.sha256 != record["data_sha256"]:
            raise RescoringError(f"{path.name}: expected the files that the run was made of: run `dpldm data verify`")
        _check_same(path, record, images, labels, train)
        yield Opened(path, record, images, labels, train, test)


def images_of(path: Path, folders: Folders) -> Path:
    """Where the images of a record's run lie, if they do."""
    return folders.runs / path.stem / "synthetic.npz"


def with_images(paths: Sequence[Path], folders: Folders) -> list[Path]:
    """The records whose images lie in the folder of runs."""
    return [path for path in paths if images_of(path, folders).is_file()]


def _check_same(path: Path, record: Mapping[str, Any], images: Tensor, labels: Tensor, real: ImageData) -> None:
    """The images are as many as the record says, and show what its sample grid shows."""
    grid = torch.from_numpy(read_grid_png(path.with_suffix(".png"), real.image_shape)).float()
    if images.shape[1:] == grid.shape[2:] and len(images) == record["metrics"]["n_synthetic"]:
        near = []
        for number, row in enumerate(grid):
            first = images[labels == number][:GRID_COLUMNS]
            near.append(((first - row[: len(first)]).abs().amax((1, 2, 3)) < NEAR).float())
        if float(torch.cat(near).mean()) >= SAME:
            return
    raise RescoringError(
        f"{path.name}: expected its own images, got others than its sample grid shows: restore them, or make the run "
        "anew with --force"
    )


def _filled(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with what it lacks and `new` has; null counts as lacking.

    >>> _filled({"a": 1, "b": {"c": 2}, "d": None}, {"a": 9, "b": {"c": 9, "e": 3}, "d": 4})
    {'a': 1, 'b': {'c': 2, 'e': 3}, 'd': 4}
    """
    filled = {**new, **{key: value for key, value in old.items() if value is not None or key not in new}}
    for key in old:
        if isinstance(old[key], Mapping) and isinstance(new.get(key), Mapping):
            filled[key] = _filled(old[key], new[key])
    return {key: filled[key] for key in [*old, *(key for key in new if key not in old)]}
