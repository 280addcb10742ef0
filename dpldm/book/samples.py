"""Images → figures: samples, reconstructions, steps of denoising."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpldm.book.style import card, card_style
from dpldm.records.grids import GAP, Images, as_colours, by_class, grid_size, mosaic


def _show(axes: Axes, rows: Sequence[np.ndarray], columns: int, row_names: Sequence[str]) -> None:
    height, width = rows[0].shape[1:3]
    axes.imshow(mosaic(rows, columns), interpolation="nearest")
    names = [fill(name, 12, break_long_words=False) for name in row_names]  # images need the room more
    axes.set_yticks([row * (height + GAP) + (height - 1) / 2 for row in range(len(rows))], names)
    axes.set_xticks([column * (width + GAP) + (width - 1) / 2 for column in range(columns)], [""] * columns)
    axes.grid(False)
    axes.spines[:].set_visible(False)


@card_style()
def sample_grid(
    images: Images, labels: Images, class_names: Sequence[str], columns: int = 10, title: str = "Synthetic images"
) -> Figure:
    """One row per class, its name at the left, the first `columns` images of each.

    Args:
        images: (N, C, H, W) in [0, 1].
        labels: (N,), 0 to len(class_names) - 1.
        class_names: one per class.
        columns: images per row; a class with fewer ends early.
        title: above the grid.

    Raises:
        ValueError: shapes or labels that do not fit.
    """
    rows = by_class(images, labels, class_names)
    figure, axes = card(*grid_size(len(rows), columns, rows[0]))
    _show(axes[0, 0], rows, columns, class_names)
    axes[0, 0].set(title=title, ylabel="class", xlabel="samples, in the order drawn")
    return figure


@card_style()
def real_beside_synthetic(
    real: Images, synthetic: Images, labels: Images, class_names: Sequence[str], columns: int = 5
) -> Figure:
    """Real images at the left, synthetic ones at the right, one row per class.

    Args:
        real, synthetic: (N, C, H, W) in [0, 1]; the i-th of both has the i-th label.
        labels: (N,), 0 to len(class_names) - 1.
        class_names: one per class.
        columns: images per class on either side.

    Raises:
        ValueError: shapes or labels that do not fit.
    """
    sides = [by_class(images, labels, class_names) for images in (real, synthetic)]
    width, height = grid_size(len(class_names), 2 * columns, sides[0][0])
    figure, axes = card(width, height, columns=2, share_y="row")
    figure.set_layout_engine("constrained", w_pad=0.04, h_pad=0.12)  # what stands between them is lost to the images
    for each, rows, title in zip(axes[0], sides, ("Real images", "Synthetic images"), strict=True):
        _show(each, rows, columns, class_names)
        each.set(title=title, xlabel="examples")
    axes[0, 0].set_ylabel("class")
    return figure


@card_style()
def reconstructions(original: Images, decoded: Mapping[str, Images]) -> Figure:
    """Images above what each compressor makes of them.

    Args:
        original: (N, C, H, W) in [0, 1]; N columns are drawn, so pass a few.
        decoded: name of the compressor → (N, C, H, W), in the order of `original`.

    Raises:
        ValueError: shapes that differ.
    """
    rows = {"original": as_colours(original)} | {name: as_colours(images) for name, images in decoded.items()}
    _same_shapes(rows)
    stacked, columns = list(rows.values()), len(rows["original"])
    figure, axes = card(*grid_size(len(rows), columns, stacked[0]))
    _show(axes[0, 0], stacked, columns, list(rows))
    axes[0, 0].set(title="Encoded and decoded again", ylabel="compressor", xlabel="images")
    return figure


@card_style()
def denoising_steps(
    batches: Sequence[Images], noise_levels: Sequence[float], row_names: Sequence[str], row_label: str = "class"
) -> Figure:
    """The same samples at several noise levels, one column per level, in the order given; the title says which way.

    Args:
        batches: one (N, C, H, W) per noise level, the same samples in each; N rows are drawn.
        noise_levels: σ of each batch, in units of the latents' standard deviation.
        row_names: one per sample. row_label: what they name.

    Raises:
        ValueError: shapes that differ, or not one noise level per batch or one name per sample.
    """
    if len(batches) != len(noise_levels) or not len(batches):
        raise ValueError(
            f"noise_levels: expected one per batch and at least one, got {len(noise_levels)} for {len(batches)} batches"
        )
    steps = [as_colours(images) for images in batches]
    _same_shapes({f"batch {position}": images for position, images in enumerate(steps)})
    rows = list(np.stack(steps, axis=1))
    if len(row_names) != len(rows):
        raise ValueError(f"row_names: expected {len(rows)}, one per sample, got {len(row_names)}; name every row")
    figure, axes = card(*grid_size(len(rows), len(steps), rows[0]))
    _show(axes[0, 0], rows, len(steps), row_names)
    axes[0, 0].set_xticklabels([f"{level:.2g}" for level in noise_levels])
    title = "From image to noise" if noise_levels[0] < noise_levels[-1] else "From noise to image"
    axes[0, 0].set(title=title, ylabel=row_label, xlabel="noise level σ (latent standard deviations)")
    return figure


def _same_shapes(batches: Mapping[str, np.ndarray]) -> None:
    first = next(iter(batches.values())).shape
    for name, images in batches.items():
        if images.shape != first:
            raise ValueError(f"{name}: expected images of the shape of the first, {first}, got {images.shape}")


@card_style()
def image_rows(rows: Mapping[str, Images], title: str, row_label: str, column_label: str = "images") -> Figure:
    """Rows of images under each other, each with its name at the left.

    Args:
        rows: name → (N, C, H, W) in [0, 1], all of one shape; N columns are drawn, so pass a few.
        title: above the rows.
        row_label, column_label: what the rows and columns are.

    Raises:
        ValueError: no row, or shapes that differ.
    """
    if not rows:
        raise ValueError("rows: expected at least one, got none; name one")
    colours = {name: as_colours(images) for name, images in rows.items()}
    _same_shapes(colours)
    stacked = list(colours.values())
    figure, axes = card(*grid_size(len(rows), len(stacked[0]), stacked[0]))
    _show(axes[0, 0], stacked, len(stacked[0]), list(rows))
    axes[0, 0].set(title=title, ylabel=row_label, xlabel=column_label)
    return figure
