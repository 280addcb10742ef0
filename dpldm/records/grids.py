"""Sample grids: synthetic images as one PNG that carries its privacy statement.

Images are (N, C, H, W) with C 1 or 3 and values in [0, 1], tensors or arrays; what lies outside is clipped for display.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dpldm.records.files import write_atomically

Images = Tensor | np.ndarray
CARD, INK = "#fcfcfa", "#262626"  # the ground, and letters on it
GAP = 2  # pixels between the images of a mosaic


def as_colours(images: Images) -> np.ndarray:
    """(N, H, W, 3) in [0, 1]."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"images: expected shape (N, C, H, W) with C of 1 or 3, got {array.shape}; reshape them")
    return np.repeat(array, 3 // array.shape[1], axis=1).transpose(0, 2, 3, 1).clip(0, 1)


def mosaic(rows: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images side by side on the colour of the card; a row with fewer than `columns` images ends early."""
    height, width = rows[0].shape[1:3]
    canvas = np.empty((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3))
    canvas[:] = np.divide(ImageColor.getrgb(CARD), 255)
    for row, images in enumerate(rows):
        for column, image in enumerate(images[:columns]):
            top, left = row * (height + GAP), column * (width + GAP)
            canvas[top : top + height, left : left + width] = image
    return canvas


def by_class(images: Images, labels: Images, class_names: Sequence[str]) -> list[np.ndarray]:
    """Images (n, H, W, 3) of each class, in the order of their names."""
    colours, classes = as_colours(images), np.asarray(labels)
    if classes.shape != (len(colours),):
        raise ValueError(f"labels: expected one for each of {len(colours)} images, got shape {classes.shape}")
    if len(classes) and (classes.min() < 0 or classes.max() >= len(class_names)):
        raise ValueError(
            f"labels: expected 0 to {len(class_names) - 1}, got {classes.min()} to {classes.max()}; name every class"
        )
    return [colours[classes == number] for number in range(len(class_names))]


def grid_size(rows: int, columns: int, image: np.ndarray) -> tuple[float, float]:
    """Inches of a card for a mosaic: always as wide, so that letters are of one size on all cards, and narrow, so that
    letters, and ten images side by side, are large enough on a phone."""
    cell = min(0.6, 4.2 / columns)
    return 5.4, 0.8 + cell * rows * image.shape[1] / image.shape[2]


def save_grid_png(
    path: Path,
    images: Images,
    labels: Images,
    class_names: Sequence[str],
    statement: Mapping[str, Any],
    columns: int = 10,
) -> Path:
    """Write a grid as plain pixels, each twice as large, class names at the left; whole or not at all.

    The privacy statement is in the PNG's text field `privacy`, as JSON: `json.loads(Image.open(path).text["privacy"])`.

    Args:
        path: of the PNG.
        images, labels, class_names, columns: as for `sample_grid`.
        statement: what is claimed about privacy, as it can be written in JSON.

    Raises:
        ValueError: shapes, labels or statement that do not fit.
        OSError: the folder can't be written; nothing is left behind.
    """
    rows = by_class(images, labels, class_names)
    pixels = (mosaic(rows, columns) * 255).round().astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    font = ImageFont.load_default(size=14)
    margin = math.ceil(max(font.getlength(name) for name in class_names)) + 16
    page = Image.new("RGB", (margin + pixels.shape[1] + 8, pixels.shape[0] + 16), CARD)
    page.paste(Image.fromarray(pixels), (margin, 8))
    drawing = ImageDraw.Draw(page)
    step = 2 * (rows[0].shape[1] + GAP)
    for number, name in enumerate(class_names):
        drawing.text((margin - 8, 8 + number * step + rows[0].shape[1]), name, fill=INK, font=font, anchor="rm")
    facts = PngInfo()
    facts.add_text("privacy", json.dumps(statement, sort_keys=True, allow_nan=False))
    return write_atomically(Path(path), lambda temporary: page.save(temporary, format="PNG", pnginfo=facts))


def read_grid_png(path: Path, image_shape: tuple[int, int, int], columns: int = 10) -> np.ndarray:
    """The images of a grid that `save_grid_png` wrote: (classes, columns, C, H, W) in [0, 1], in steps of 1/255.

    Args:
        image_shape: (C, H, W) of an image.
        columns: images per class, as written; where a class had fewer, the ground of the card stands for them.

    Raises:
        ValueError: no such grid.
        OSError: there is no such file, or no picture in it.
    """
    channels, height, width = image_shape
    with Image.open(path) as page:
        pixels = np.asarray(page.convert("RGB"))
    left = pixels.shape[1] - 8 - 2 * (columns * (width + GAP) - GAP)
    classes, rest = divmod(pixels.shape[0] - 16 + 2 * GAP, 2 * (height + GAP))
    if left < 16 or rest or classes < 1:
        expected = f"expected a grid of {columns} images of {height} x {width} pixels for each class"
        raise ValueError(f"{path}: {expected}, got {pixels.shape[1]} x {pixels.shape[0]}; repeat the run")
    small = pixels[8:-8:2, left:-8:2, :channels] / 255
    rows = [small[top : top + height] for top in range(0, len(small), height + GAP)]
    grid = [[row[:, start : start + width] for start in range(0, row.shape[1], width + GAP)] for row in rows]
    return np.asarray(grid).transpose(0, 1, 4, 2, 3)
