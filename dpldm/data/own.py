"""A user's own images: an `.npz` file, or a folder for each class."""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
import re
import shlex
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dpldm.data.fetch import file_sha256
from dpldm.data.images import DataError, ImageData, check, check_kind, check_labels, check_shape, check_side
from dpldm.data.memory import lacks_memory
from dpldm.data.npz import Header, channels_first, read_header, read_images, to_images

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")


def load_own(path: Path | str, kind: str = "none", resize: int | None = None) -> ImageData:
    """Your own images, from an `.npz` file or from a folder with one sub-folder of images per class.

    `kind`: of `dpldm.data.images.KINDS`, what you say of them; nothing is looked up in them. Images that were read last
    are kept, and given again while no file has changed. `resize`: the middle square of each image is cut out and
    brought to this side, 8 to 64 pixels; then images may have any size.

    `.npz`: `images` of shape (N, side, side), (N, side, side, 1 or 3) or (N, 1 or 3, side, side), as uint8 in 0..255
    or as floats in [0, 1], and `labels`, integers (N,) that use every class from 0 on, or texts, the names of the
    classes. `class_names`, texts (number of classes,), may say what the integers stand for.
    Folder: classes are numbered by the sorted names of their sub-folders; images are png, jpg, bmp, webp or tiff, all
    grey or all RGB, turned upright where their EXIF orientation says so. Names that start with a dot are passed over.
    Names are sorted with the numbers in them as numbers: 2 comes before 10.
    Both: square, side 8 to 64 pixels, at least 10 images. `sha256` has the sum of the file, or for a folder the sum of
    the lines "<sum>  <class>/<file>\\n" of its images in the order they were read.
    Raises DataError for anything else, before reading many pixels where it can; OSError if a file can't be opened.
    """
    place = Path(path)
    check_kind(kind)
    _check_name(place)
    if resize is not None:
        check_side("resize", resize, resize)
    if not place.exists():
        raise DataError(f"{place} does not exist: expected an .npz file, or a folder with one sub-folder per class")
    if not place.is_dir() and place.suffix.lower() != ".npz":
        raise DataError(f"{place}: expected an .npz file or a folder with one sub-folder of images per class")
    return replace(_read(place, place.resolve(), _state(place), resize), kind=kind)


def _state(place: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file of a set, which change when one of them is written anew."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    found = [(str(path), os.stat(path, follow_symlinks=False)) for path in files]
    return tuple((name, one.st_size, one.st_mtime_ns) for name, one in found)


@functools.lru_cache(maxsize=2)  # a run reads its training and its test images several times
def _read(place: Path, resolved: Path, state: object, resize: int | None) -> ImageData:
    return check(_load_folder(place, resize) if place.is_dir() else _load_npz(place, resize))


def _resized(image: Image.Image, side: int) -> np.ndarray:
    """The middle square of one image, (side, side) or (side, side, 3). Weights are positive, so no pixel leaves the
    range of those that it is made of."""
    whole = min(image.size)
    left, top = ((length - whole) // 2 for length in image.size)
    middle = image.crop((left, top, left + whole, top + whole))
    return np.asarray(middle.resize((side, side), Image.Resampling.BILINEAR))


def _all_resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """Images of a layout that `_check_npz_images` accepts, as (N, channels, side, side), of the same type."""
    pixels = channels_first(pixels)
    made = np.uint8 if pixels.dtype == np.uint8 else np.float32
    resized = np.empty((*pixels.shape[:2], side, side), made)
    for place in np.ndindex(pixels.shape[:2]):
        resized[place] = _resized(Image.fromarray(np.ascontiguousarray(pixels[place], made)), side)
    return resized


def _load_npz(path: Path, resize: int | None) -> ImageData:
    expected = "expected an .npz file with the arrays `images` and `labels`"
    try:
        with zipfile.ZipFile(path) as archive:
            header = read_header(archive, "images")
            _check_npz_images(path.name, header.shape, header.kind, resize)
            for key in ("labels", *_optional(archive, "class_names")):
                _check_held(path.name, key, read_header(archive, key))
            _check_held(path.name, "images", header)
            changed = None if resize is None else functools.partial(_all_resized, side=resize)
            images = read_images(archive, changed)
        with np.load(path, allow_pickle=False) as arrays:
            labels, names = arrays["labels"], arrays.get("class_names")
    except KeyError as error:
        raise DataError(f"{path}: {expected}, {error.args[0]}: write it with numpy.savez") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise DataError(f"{path}: {expected}, but it is damaged ({error}): write it again") from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: {expected} of numbers, got something else ({error})") from error
    classes, class_names = _classes(path.name, labels, len(images), names)
    return ImageData(path.stem, images, classes, class_names, {path.name: file_sha256(path)})


def _optional(archive: zipfile.ZipFile, key: str) -> list[str]:
    return [key] if f"{key}.npy" in archive.namelist() else []


def _classes(name: str, labels: np.ndarray, count: int, names: np.ndarray | None) -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers (N,) and the names of the classes, from integers or from texts."""
    if labels.dtype.kind in "US" and labels.shape == (count,):
        try:
            texts = labels.astype(str)
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: expected labels as integers or texts, got other bytes: convert them") from error
        class_names = tuple(sorted({str(text) for text in texts}, key=_by_numbers))
        numbers = {text: number for number, text in enumerate(class_names)}
        return torch.tensor([numbers[str(text)] for text in texts], dtype=torch.int64), class_names
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        arrived = f"{labels.dtype} {labels.shape}"
        raise DataError(f"{name}: expected integer labels of shape ({count},) or texts, got {arrived}: convert them")
    if labels.dtype == np.uint64 and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name}: label {labels.max()} is out of range, expected 0 to the number of classes - 1")
    classes = torch.from_numpy(labels.astype(np.int64))
    if names is None:
        check_labels(name, classes, count, num_classes=None)
        return classes, tuple(str(label) for label in range(int(classes.max()) + 1))
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{name}: expected `class_names` as texts, one per class, got {names.dtype} {names.shape}")
    check_labels(name, classes, count, len(names))
    return classes, tuple(map(str, names))


def _by_numbers(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """A key that sorts the numbers in names as numbers, before letters.

    >>> sorted(["a10", "b", "10", "a2", "2"], key=_by_numbers)
    ['2', '10', 'a2', 'a10', 'b']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple(
        (len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (10**9, part) for part in parts
    ), name


def _check_held(name: str, key: str, header: Header) -> None:
    """Nothing is allocated on a header's word alone, and nothing unpickled."""
    if header.kind.kind == "O":
        raise DataError(
            f"{name}: expected `{key}` as numbers or texts, got Python objects: convert them, as with "
            f"numpy.savez(..., {key}={key}.astype(str))"
        )
    claimed = math.prod(header.shape) * header.kind.itemsize
    if claimed != header.held:
        raise DataError(
            f"{name}: expected {claimed:,} bytes of `{key}`, as its header says, found {header.held:,}: the file is "
            "damaged, write it again"
        )


def _check_npz_images(name: str, shape: tuple[int, ...], kind: np.dtype, resize: int | None) -> None:
    """Refuses a wrong array by its header, before it fills the memory."""
    if kind != np.uint8 and kind.kind != "f":
        raise DataError(f"{name}: expected images as uint8 in 0..255 or floats in [0, 1], got {kind}: convert them")
    channels_last = len(shape) == 4 and shape[-1] in (1, 3)
    if len(shape) != 3 and not channels_last and not (len(shape) == 4 and shape[1] in (1, 3)):
        expected = "(N, side, side), (N, side, side, 1 or 3) or (N, 1 or 3, side, side)"
        raise DataError(f"{name}: expected images of shape {expected}, got {shape}: reshape them")
    count, height, width = (shape[0], *(shape[1:3] if len(shape) == 3 or channels_last else shape[2:4]))
    check_shape(name, (count, 1, resize or height, resize or width), right_type=True)


def _load_folder(folder: Path, resize: int | None) -> ImageData:
    class_folders = sorted(_visible(folder), key=lambda path: _by_numbers(path.name))
    strays = [path for path in class_folders if not path.is_dir()]
    if strays or not class_folders:
        arrived = f"found the file {strays[0].name}" if strays else "it is empty"
        way_out = _move_away(strays) if strays else "move the images into some"
        raise DataError(f"{folder}: expected one sub-folder of images per class, {arrived}: {way_out}")
    files = {class_folder: _visible(class_folder) for class_folder in class_folders}
    for class_folder, paths in files.items():
        if not paths:
            raise DataError(f"{class_folder} is empty: expected images of that class, add some or remove the folder")
    _check_files([path for paths in files.values() for path in paths])
    images, first = torch.empty(0), ""
    labels: list[int] = []
    listing = hashlib.sha256()
    for label, (class_folder, paths) in enumerate(files.items()):
        for path in paths:
            content = path.read_bytes()
            pixels = _decode(path, content, resize)
            image, arrived = to_images(pixels[None]), _describe(pixels)
            if not labels:
                images, first = torch.empty(sum(map(len, files.values())), *image.shape[1:]), arrived
            if arrived != first:
                raise DataError(f"{path}: expected {first} like the first image, got {arrived}: make them alike")
            images[len(labels)] = image[0]
            labels.append(label)
            listing.update(f"{hashlib.sha256(content).hexdigest()}  {class_folder.name}/{path.name}\n".encode())
    name = folder.resolve().name
    class_names = tuple(class_folder.name for class_folder in class_folders)
    return ImageData(name, images, torch.tensor(labels), class_names, {name: listing.hexdigest()})


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)


def _check_files(paths: Sequence[Path]) -> None:
    """Refuses what is no image by its name, before any is read: a skipped file could be an image somebody misses."""
    for path in paths:
        _check_name(path)
        _check_name(path.parent)
    strays = [path for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file()]
    if strays:
        raise DataError(
            f"{strays[0]}: expected image files ({', '.join(IMAGE_SUFFIXES)}) and nothing else: {_move_away(strays)}"
        )


def _move_away(strays: Sequence[Path]) -> str:
    """The one command that takes such files out of the way and loses none of them."""
    kept = "not-images"
    kind = f" -name {shlex.quote('*' + strays[0].suffix)}" if strays[0].suffix and len(strays) > 1 else ""
    if len(strays) == 1 or not kind:
        return f"move it away: mkdir -p {kept} && mv -n {shlex.quote(str(strays[0]))} {kept}/"
    top = shlex.quote(os.path.commonpath([str(path.parent) for path in strays]))
    return f"move {len(strays)} files away: mkdir -p {kept} && find {top} -type f{kind} -exec mv -n {{}} {kept}/ \\;"


def _check_name(path: Path) -> None:
    """Names end up in records and messages, which are UTF-8."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise DataError(f"{shown}: expected a name in UTF-8, got other bytes: rename the file or folder") from None


def _decode(path: Path, content: bytes, resize: int | None) -> np.ndarray:
    """uint8 (side, side) of a grey image or (side, side, 3) of an RGB one, upright."""
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            arrived, (width, height) = _unwanted(image), image.size
            if arrived is None:
                if resize is not None:
                    return _resized(ImageOps.exif_transpose(image), resize)
                check_side(str(path), height, width)
                return np.asarray(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        reason = f"damaged, or none of {', '.join(IMAGE_FORMATS)}"
        raise DataError(f"{path} can't be read as an image ({reason}): replace or remove it") from error
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path} can't be read as an image ({error}): replace or remove it") from error
    raise DataError(f"{path}: expected one grey (L) or RGB image of 8 bits, got {arrived}: convert it first")


def _unwanted(image: Image.Image) -> str | None:
    """What makes an image other than one opaque grey or RGB image of 8 bits, in words; None where it is one.

    Pillow gives 16 bits of red, green and blue as 8, and a transparent colour as if it were opaque.
    """
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        return f"{frames} frames"
    if image.mode not in ("L", "RGB"):
        return f"mode {image.mode}"
    if any(re.search(r";16[BLN]", str(tile[3])) for tile in getattr(image, "tile", [])):
        return f"mode {image.mode} of 16 bits"
    if "transparency" in image.info:
        return f"mode {image.mode} with a transparent colour"
    return None


def _describe(pixels: np.ndarray) -> str:
    return f"{'grey' if pixels.ndim == 2 else 'RGB'} {pixels.shape[0]} x {pixels.shape[1]}"
