"""From the runs that anybody tries to the records that the book draws: a step of its own, and what it refuses.

Runs write to `runs/`, which nobody commits. The book reads `book/records`, which is committed; a record gets there when
somebody publishes it, with its sample grid.
"""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dpldm.records import files, names


class PublishingError(ValueError):
    """A record that should not stand in the book. One line: why, and the way out."""


def objection(record: Mapping[str, Any], own_data: bool = False) -> str | None:
    """Why a record should not be published, or None.

    A smoke run means nothing. A record of somebody's own images tells how many they are and what their classes are
    called, and shows synthetic ones: that is for their owner to allow (``own_data``), and only where what is shown is
    private: made with secret noise, and not scored with real images, which no ε covers.
    """
    if record["profile"] == "smoke":
        return "a smoke run shows that everything works, its numbers mean nothing: make it with --profile quick"
    if not record["dataset"].startswith("own-"):
        return None
    if not own_data:
        return "it is of your own images, whose classes it names: add --own-data if all may know them"
    if record["privacy"]["epsilon"] is None:
        return "it is of your own images and not private: make it with an ε and --secure"
    if record["privacy"].get("secure_mode") is not True:
        return "it is of your own images, and who tries out the seeds of its noise can remove it: make it with --secure"
    metrics = record["metrics"]
    if any(metrics["accuracy"].values()) or metrics["fid_classifier"] is not None:
        return "its scores are computed from your own images and not covered by ε: make it without --test-data"
    return None


def publish(path: Path, folder: Path, own_data: bool = False) -> Path:
    """Copy a record and its sample grid into a folder of records, byte by byte.

    Returns:
        Where the record is now.

    Raises:
        PublishingError: see `objection`; or the record was renamed, or its sample grid is missing. Nothing is copied.
        RecordError: it is no whole record.
        OSError: a file can't be read or written.
    """
    record = files.read(path)
    if reason := objection(record, own_data):
        raise PublishingError(f"{path.name} is not published: {reason}")
    grid = path.with_suffix(".png")
    if path.name != names.record_name(record) or not grid.is_file():
        raise PublishingError(
            f"{path}: expected the name {names.record_name(record)} and a sample grid, {grid.name}, beside it: take "
            "both from the folder that the run wrote to"
        )
    for source in (grid, path):  # the record last: where it is, all is there
        files.write_atomically(folder / source.name, partial(shutil.copyfile, source))
    return folder / path.name
