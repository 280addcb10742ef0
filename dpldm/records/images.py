"""Synthetic images in a file: `.npz` without pickles."""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpldm.data.images import in_bytes, pixel_fault
from dpldm.data.memory import lacks_memory
from dpldm.data.npz import read_header, read_images
from dpldm.records.files import one_line, write_atomically
from dpldm.records.schema import RecordError, check_json, shown_value


def check_images(images: Tensor, labels: Tensor) -> None:
    """Images are (N, C, H, W), C 1 or 3, floating point in [0, 1]; labels are N whole numbers, 0 or more.

    Raises:
        RecordError: in one line, the first thing that is wrong.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point() or not images.numel():
        raise RecordError(
            "images: expected a floating-point tensor of shape (N, C, H, W) with C of 1 or 3, "
            f"got {images.dtype} of shape {tuple(images.shape)}; reshape or convert it"
        )
    if fault := pixel_fault(images):
        raise RecordError(f"images: {fault}")
    if labels.ndim != 1 or len(labels) != len(images) or labels.is_floating_point() or labels.min().item() < 0:
        raise RecordError(
            f"labels: expected {len(images)} whole numbers of 0 or more, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}; give one class number per image"
        )


def save_images(
    path: Path, images: Tensor, labels: Tensor, statement: Mapping[str, Any], class_names: Sequence[str] = ()
) -> Path:
    """Write images with their labels and privacy statement as a compressed `.npz`, whole or not at all.

    The file holds `images`, uint8 of shape (N, H, W) or (N, H, W, 3); `labels`, int64 of shape (N,); `class_names`,
    texts of which label 0 is the first, where they are given; and `privacy`, the statement as JSON text.
    `dpldm.data.own.load_own` reads it, names included.

    Args:
        path: must end in `.npz`.
        images: (N, C, H, W), C 1 or 3, values in [0, 1].
        labels: (N,), class numbers.
        statement: what is claimed about privacy, as it can be written in JSON.
        class_names: one for each class, or none.

    Raises:
        RecordError: something is not as above.
        OSError: the folder can't be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise RecordError(f"{path}: expected a file name that ends in .npz, got '{path.suffix}'; rename it")
    check_images(images, labels)
    check_json("statement", statement)
    pixels = in_bytes(images).permute(0, 2, 3, 1).numpy()
    arrays = {
        "images": pixels[..., 0] if pixels.shape[-1] == 1 else pixels,
        "labels": labels.detach().cpu().to(torch.int64).numpy(),
        "privacy": np.array(json.dumps(statement, sort_keys=True, allow_nan=False)),
    }
    if class_names:
        arrays["class_names"] = np.array(list(class_names), dtype=str)

    def write_to(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    return write_atomically(path, write_to)


def load_images(path: Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Read what `save_images` wrote. Executes no code: pickled objects are refused.

    Returns:
        Images, float32 of shape (N, C, H, W) in [0, 1]; labels, int64 of shape (N,); the privacy statement, empty
        where the file has none.

    Raises:
        RecordError: the file is not of that form.
        OSError: there is no such file, or it can't be read.
    """
    path = Path(path)
    expected = "expected a .npz with images, uint8 of shape (N, H, W) or (N, H, W, 3), and labels, N whole numbers"
    with path.open("rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError("a file that is not a zip archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                form, labels = read_header(archive.zip, "images"), np.asarray(archive["labels"])
                statement = json.loads(str(archive["privacy"])) if "privacy" in archive else {}
                readable = (
                    form.kind == np.uint8
                    and form.held == math.prod(form.shape)
                    and (len(form.shape) == 3 or form.shape[3:] in ((1,), (3,)))
                )
                images = read_images(archive.zip) if readable else None
        except Exception as error:  # whatever a damaged or foreign archive makes its readers raise
            if lacks_memory(error):
                raise
            raise RecordError(f"{path}: {expected}, got {one_line(error)}; write it with dpldm sample") from None
    if images is None or not np.issubdtype(labels.dtype, np.integer):
        raise RecordError(f"{path}: {expected}, got {form.kind} of shape {form.shape} and {labels.dtype}; convert it")
    classes = torch.from_numpy(labels.astype(np.int64))
    try:
        check_images(images, classes)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    if not isinstance(statement, dict):
        raise RecordError(
            f"{path}: expected a privacy statement in the form of an object, got {shown_value(statement)}"
        )
    return images, classes, statement
