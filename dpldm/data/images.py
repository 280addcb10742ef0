"""Images as tensors in a stated range, and what is refused.

Images are float32 in [0, 1] with shape (N, C, H, W), labels int64 in 0..num_classes-1. Nothing in this room is private:
it reads the data that the privacy guard protects later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpldm.data.kinds import KINDS

SMALLEST_SIDE, LARGEST_SIDE = 8, 64  # pixels
FEWEST_IMAGES = 10  # so that a tenth can be held out
PIECE = 64  # images that are converted at a time, so that what is on the way takes little memory
ROUNDING = 1e-3  # how far pixels may lie outside [0, 1] by arithmetic alone; they are refused, but may be clipped


class DataError(ValueError):
    """Data that is missing, damaged or not in the expected form; the message is one line and names the way out."""


@dataclass(frozen=True)
class Known:
    """What may be known of images without spending any ε: all that a recipe may depend on, beside ε and δ.

    count: of the images; public, as the page on privacy says. image_shape: (channels, height, width). kind: of `KINDS`,
    said by their owner, never looked up in them.

    >>> Known(60_000, (1, 28, 28), 10, "inc")
    Traceback (most recent call last):
    dpldm.data.images.DataError: unknown kind 'inc': expected ink, object, photo or none
    """

    count: int
    image_shape: tuple[int, int, int]
    num_classes: int
    kind: str = "none"

    def __post_init__(self) -> None:
        check_kind(self.kind)


def check_kind(kind: str) -> None:
    """Refuse a word that is no kind of image, with DataError."""
    if kind not in KINDS:
        *some, last = KINDS
        raise DataError(f"unknown kind {kind!r}: expected {', '.join(some)} or {last}")


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled set of images.

    name: for messages and records. images: float32 (N, C, H, W) in [0, 1]. labels: int64 (N,) in 0..num_classes-1.
    class_names: one per class. sha256: source file -> hexadecimal SHA-256 of its bytes. kind: of `KINDS`.

    >>> data = ImageData("dots", torch.zeros(12, 1, 8, 8), torch.arange(12) % 2, ("no", "yes"), {})
    >>> len(data), data.num_classes, data.image_shape
    (12, 2, (1, 8, 8))
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sha256: dict[str, str]
    kind: str = "none"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def known(self) -> Known:
        """What of this set a recipe may depend on."""
        return Known(len(self), self.image_shape, self.num_classes, self.kind)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageData:
        """The images at `indices` (integers, in that order), with all class names kept.

        >>> data = ImageData("dots", torch.zeros(12, 1, 8, 8), torch.arange(12) % 2, ("no", "yes"), {})
        >>> data.subset([1, 3, 4]).labels
        tensor([1, 1, 0])
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


def check(data: ImageData) -> ImageData:
    """Returns `data` if the rest of the library can work with it.

    Raises DataError unless images are float32 (N, 1 or 3, side, side) in [0, 1] without NaN, with a side of 8 to 64
    pixels and N >= 10, and labels are int64 (N,) that use every class 0..num_classes-1.

    >>> check(ImageData("dots", torch.full((12, 1, 8, 8), 2.0), torch.arange(12) % 2, ("no", "yes"), {}))
    Traceback (most recent call last):
    dpldm.data.images.DataError: dots: expected pixels in [0, 1], but image 0 has values 2 to 2: rescale the images
    """
    check_shape(data.name, data.images.shape, data.images.dtype == torch.float32)
    if fault := pixel_fault(data.images):
        raise DataError(f"{data.name}: {fault}")
    _check_scale(data.name, data.images)
    check_labels(data.name, data.labels, len(data.images), data.num_classes)
    return data


def validation_split(data: ImageData, fraction: float, seed: int) -> tuple[ImageData, ImageData]:
    """Splits `data` at random into (the rest, `fraction` of the images); the same seed gives the same split.

    The split looks at no pixel and no label, so it costs no privacy by itself; a class may be short on one side.
    Raises DataError unless 0 < fraction < 1 leaves both sides at least one image.

    >>> data = ImageData("dots", torch.zeros(20, 1, 8, 8), torch.arange(20) % 2, ("no", "yes"), {})
    >>> rest, held_out = validation_split(data, fraction=0.1, seed=0)
    >>> len(rest), len(held_out)
    (18, 2)
    """
    held_out = round(fraction * len(data)) if 0 < fraction < 1 else 0
    if not 0 < held_out < len(data):
        raise DataError(f"a validation split of {fraction} leaves one side of {len(data)} images empty: try 0.1")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.subset(order[held_out:]), data.subset(order[:held_out])


def in_bytes(images: Tensor) -> Tensor:
    """uint8 on the CPU, of the shape of ``images`` (N, ...) in [0, 1]: each value times 255, rounded.

    >>> in_bytes(torch.tensor([[0.0], [0.5], [1.0]])).flatten().tolist()
    [0, 128, 255]
    """
    pixels = torch.empty(images.shape, dtype=torch.uint8)
    for start in range(0, len(images), PIECE):
        pixels[start : start + PIECE] = (images[start : start + PIECE].detach() * 255).round()
    return pixels


def shared_images(some: ImageData, others: ImageData) -> int:
    """How many of ``some`` are also among ``others``, with the same 8 bits in each pixel, whatever their order and
    labels. The number is computed from the images and covered by no ε: tell it to their owner, and to nobody else.

    >>> data = ImageData("dots", torch.eye(8).expand(12, 1, 8, 8), torch.arange(12) % 2, ("no", "yes"), {})
    >>> shared_images(data, data), shared_images(data, replace(data, images=1 - data.images))
    (12, 0)
    """
    known = set(_digests(others.images))
    return sum(digest in known for digest in _digests(some.images))


def _digests(images: Tensor) -> Iterator[bytes]:
    for piece in images.split(PIECE):
        yield from (hashlib.sha256(image.numpy()).digest() for image in in_bytes(piece))


def check_shape(name: str, shape: Sequence[int], right_type: bool) -> None:
    """Refuse a shape (N, C, H, W) that nothing here can work with."""
    if not right_type or len(shape) != 4 or shape[1] not in (1, 3):
        raise DataError(f"{name}: expected float32 images of shape (N, 1 or 3, side, side), got {tuple(shape)}")
    count, _, height, width = shape
    check_side(name, height, width)
    if count < FEWEST_IMAGES:
        raise DataError(f"{name}: expected at least {FEWEST_IMAGES} images, got {count}: add more")


_WAY_OUT = "add --resize 32 to `dpldm run`, which brings the middle square of each to 32 x 32"


def check_side(name: str, height: int, width: int) -> None:
    """Refuse images that are not square, too small or too large."""
    if height != width:
        raise DataError(f"{name}: expected square images, got {height} x {width}: {_WAY_OUT}, or crop or pad them")
    if not SMALLEST_SIDE <= height <= LARGEST_SIDE:
        expected = f"a side of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
        raise DataError(f"{name}: expected {expected}, got {height} x {width}: {_WAY_OUT}")


def pixel_fault(images: Tensor) -> str | None:
    """What is wrong with pixels (N, ...) that should be in [0, 1], and the way out; None where nothing is.

    >>> pixel_fault(torch.tensor([[0.5], [1.0000001]]))
    'expected pixels in [0, 1], but image 1 has values 1.00000012 to 1.00000012: clip the images, it is only rounding'
    """
    lowest, highest = (float(value) for value in images.aminmax())  # both NaN as soon as one pixel is
    if lowest >= 0 and highest <= 1:
        return None
    flat = images.flatten(1)
    if not bool(torch.isfinite(flat).all()):
        first = int((~torch.isfinite(flat).all(1)).nonzero()[0, 0])
        return f"image {first} has NaN or infinite pixels, expected [0, 1]: fix or remove it"
    first = int(((flat < 0) | (flat > 1)).any(1).nonzero()[0, 0])
    low, high = float(flat[first].min()), float(flat[first].max())
    if lowest >= -ROUNDING and highest <= 1 + ROUNDING:
        way_out = "clip the images, it is only rounding"
    else:
        way_out = "divide by 255" if lowest >= 0 and 2 < highest <= 255 else "rescale the images"
    return f"expected pixels in [0, 1], but image {first} has values {low:.9g} to {high:.9g}: {way_out}"


def _check_scale(name: str, images: Tensor) -> None:
    """Refuses images that are nearly black because their 0 and 1 were taken for bytes, or because they were divided by
    255 once too often; all of them black is no mistake of scale."""
    highest = float(images.max())
    if 0 < highest <= 1.001 / 255:
        expected = "expected some pixel above 1 of 255 (as floats: above 1/255)"
        raise DataError(
            f"{name}: {expected}, but the brightest is {255 * highest:.3g} of 255: multiply the images by 255 (a mask "
            "of 0 and 1 as uint8 and floats divided twice look like this), or give 0 to 1 as floats"
        )


def check_labels(name: str, labels: Tensor, count: int, num_classes: int | None) -> None:
    """num_classes None: as many as the largest label says."""
    if labels.dtype != torch.int64 or labels.shape != (count,):
        arrived = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        raise DataError(f"{name}: expected one integer label per image, int64 ({count},), got {arrived}")
    present = labels.unique().tolist()
    last = present[-1] if num_classes is None else num_classes - 1
    if present[0] < 0 or present[-1] > last:
        wrong = present[0] if present[0] < 0 else present[-1]
        expected = "0 or more" if num_classes is None else f"0..{last}"
        raise DataError(f"{name}: label {wrong} is out of range, expected {expected}: renumber the labels")
    missing = next((label for label, found in enumerate(present) if label != found), len(present))
    if missing <= last:
        raise DataError(f"{name}: class {missing} of 0..{last} has no image: add some, or renumber the labels")
