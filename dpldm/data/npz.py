"""Arrays in an `.npz`: looked at before they are read, and images read a piece at a time.

So no second copy of all images, in the form of the file, fills the memory beside the one that is wanted.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpldm.data.images import PIECE


class Header(NamedTuple):
    """What the header of an array says, and how many bytes of data follow it."""

    shape: tuple[int, ...]
    in_columns: bool
    kind: np.dtype
    held: int


def read_header(archive: zipfile.ZipFile, key: str) -> Header:
    """The header of an array in an .npz, without reading its data; KeyError if it is not there."""
    if f"{key}.npy" not in archive.namelist():
        found = ", ".join(f"`{name.removesuffix('.npy')}`" for name in archive.namelist()) or "nothing"
        raise KeyError(f"`{key}` is missing, found {found}")
    with archive.open(f"{key}.npy") as stream:
        return _header(archive, key, stream)


def _header(archive: zipfile.ZipFile, key: str, stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_columns, kind = read(stream)
    return Header(shape, in_columns, kind, archive.getinfo(f"{key}.npy").file_size - stream.tell())


def read_images(archive: zipfile.ZipFile, changed: Callable[[np.ndarray], np.ndarray] | None = None) -> Tensor:
    """float32 (N, C, side, side) from the array `images` of shape (N, side, side), (N, side, side, 1 or 3) or
    (N, 1 or 3, side, side); uint8 is divided by 255. Call `read_header` first, and refuse what is of another form or
    longer than its data.

    Args:
        changed: gives other images for some of them, in one of these forms.

    Raises:
        zipfile.BadZipFile, zlib.error, EOFError, ValueError: the file is damaged.
    """
    change = changed or (lambda some: some)
    with archive.open("images.npy") as stream:
        header = _header(archive, "images", stream)
        if header.in_columns:  # its images are spread over all of it
            with archive.open("images.npy") as again:
                return to_images(change(np.lib.format.read_array(again, allow_pickle=False)))
        count, *each = header.shape
        images = torch.empty(0)
        for start in range(0, count, PIECE):
            shape = (min(PIECE, count - start), *each)
            content = stream.read(math.prod(shape) * header.kind.itemsize)
            piece = to_images(change(np.frombuffer(content, header.kind).reshape(shape)))
            if not start:
                images = torch.empty(count, *piece.shape[1:])
            images[start : start + PIECE] = piece
        stream.read()  # nothing, but only at the end is the checksum compared
    return images


def to_images(pixels: np.ndarray) -> Tensor:
    """float32 (N, C, side, side) from an array of a form that `read_images` takes; uint8 is divided by 255."""
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which `check` refuses
        images = torch.from_numpy(np.array(channels_first(pixels), dtype=np.float32, order="C"))
    return images.div_(255) if pixels.dtype == np.uint8 else images


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """A view of shape (N, C, side, side) of an array of a form that `read_images` takes."""
    if pixels.ndim == 3:
        return pixels[:, None]
    return pixels.transpose(0, 3, 1, 2) if pixels.shape[-1] in (1, 3) else pixels
