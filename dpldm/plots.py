"""Records and images → figures. Nothing is computed here beyond placing what is given.

Every figure is a light card with dark text, whatever page it stands on and whatever style the reader has set: no
grey is readable enough on both white and near-black. Colours keep a contrast of at least 3 : 1 with the card, stay
apart for colour-blind readers, and never carry a meaning alone: markers and line styles differ too.

Images are (N, C, H, W) with C 1 or 3 and values in [0, 1], tensors or arrays; what lies outside is clipped for display.
"""

import base64
import html
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
import seaborn
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import offset_copy
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dpldm.results import write_atomically

Images = Tensor | np.ndarray

CARD, INK, EDGE = "#fcfcfa", "#262626", "#c8c8c4"
PALETTE = ("#0072b2", "#d55e00", "#008a66", "#b8558f", "#6b4c1e", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_PUBLISHED: dict[str, Any] = {
    "color": "#555555", "markerfacecolor": CARD, "linestyle": ":", "linewidth": 0.8, "markersize": 7,
}  # fmt: skip
PUBLISHED_MARKERS = ("X", "*", "p", "h", "<", ">", "d", "8", "H", "1", "2", "3")
METHODS = (
    "dpldm",
    "class-gaussian",
    "dp-merf",
    "dp-sinkhorn",
    "dpdm",
    "real",
    "gs-wgan",
    "reading-b",
    "non-private",
)  # keep their colours in every figure, whatever stands beside them
DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
GAP = 2  # pixels between the images of a mosaic
SCORES = {
    "cnn": "test accuracy of a CNN (%)",
    "mlp": "test accuracy of an MLP (%)",
    "logreg": "test accuracy of logistic regression (%)",
    "fid_classifier": "FID, classifier features",
    "fid_inception": "FID, Inception features",
}
_RC = {
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.titlesize": 10.5, "axes.labelsize": 10,
    "axes.titlelocation": "left", "axes.facecolor": CARD, "axes.edgecolor": INK, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "grid.color": EDGE, "grid.linewidth": 0.6,
    "figure.facecolor": CARD, "figure.edgecolor": EDGE, "savefig.facecolor": CARD, "font.size": 9.5,
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.6, "lines.markersize": 6,
}  # fmt: skip


@contextmanager
def _style() -> Iterator[None]:
    """seaborn's grid and the look above, whatever the reader has set; also a decorator. Undone at the end."""
    with matplotlib.style.context(["default", seaborn.axes_style("whitegrid") | _RC]):
        yield


class Card(Figure):
    """A matplotlib Figure on its own light ground; as the last line of a notebook cell it shows itself, once."""

    @_style()
    def draw(self, renderer: Any) -> None:  # ticks are made as late as this
        super().draw(renderer)

    @_style()
    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=144, edgecolor=EDGE)
        return buffer.getvalue()


def _card(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    share_y: Literal["row", "none"] = "none",
    widths: Sequence[float] | None = None,
) -> tuple[Card, np.ndarray]:
    """An empty card of `width` × `height` inches and its axes, (rows, columns); `widths` of the columns, relative."""
    figure = Card(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), linewidth=1.0)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y, width_ratios=widths)


# --- images -----------------------------------------------------------------------------------------------------------


def _colours(images: Images) -> np.ndarray:
    """(N, H, W, 3) in [0, 1]."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"images: expected shape (N, C, H, W) with C of 1 or 3, got {array.shape}; reshape them")
    return np.repeat(array, 3 // array.shape[1], axis=1).transpose(0, 2, 3, 1).clip(0, 1)


def _mosaic(rows: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images side by side on the colour of the card; a row with fewer than `columns` images ends early."""
    height, width = rows[0].shape[1:3]
    canvas = np.empty((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3))
    canvas[:] = matplotlib.colors.to_rgb(CARD)
    for row, images in enumerate(rows):
        for column, image in enumerate(images[:columns]):
            top, left = row * (height + GAP), column * (width + GAP)
            canvas[top : top + height, left : left + width] = image
    return canvas


def _by_class(images: Images, labels: Images, class_names: Sequence[str]) -> list[np.ndarray]:
    colours, classes = _colours(images), np.asarray(labels)
    if classes.shape != (len(colours),):
        raise ValueError(f"labels: expected one for each of {len(colours)} images, got shape {classes.shape}")
    if len(classes) and (classes.min() < 0 or classes.max() >= len(class_names)):
        raise ValueError(
            f"labels: expected 0 to {len(class_names) - 1}, got {classes.min()} to {classes.max()}; name every class"
        )
    return [colours[classes == number] for number in range(len(class_names))]


def _show(axes: Axes, rows: Sequence[np.ndarray], columns: int, row_names: Sequence[str]) -> None:
    height, width = rows[0].shape[1:3]
    axes.imshow(_mosaic(rows, columns), interpolation="nearest")
    axes.set_yticks([row * (height + GAP) + (height - 1) / 2 for row in range(len(rows))], row_names)
    axes.set_xticks([column * (width + GAP) + (width - 1) / 2 for column in range(columns)], [""] * columns)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _grid_size(rows: int, columns: int, image: np.ndarray) -> tuple[float, float]:
    """Inches of a card for a mosaic: always 7 wide, so that letters are of one size on all cards."""
    cell = min(0.7, 5.6 / columns)
    return 7.0, 0.7 + cell * rows * image.shape[1] / image.shape[2]


@_style()
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
    rows = _by_class(images, labels, class_names)
    figure, axes = _card(*_grid_size(len(rows), columns, rows[0]))
    _show(axes[0, 0], rows, columns, class_names)
    axes[0, 0].set(title=title, ylabel="class", xlabel="samples, in the order drawn")
    return figure


@_style()
def real_beside_synthetic(
    real: Images, synthetic: Images, labels: Images, class_names: Sequence[str], columns: int = 6
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
    sides = [_by_class(images, labels, class_names) for images in (real, synthetic)]
    width, height = _grid_size(len(class_names), 2 * columns, sides[0][0])
    figure, axes = _card(width, height, columns=2, share_y="row")
    for each, rows, title in zip(axes[0], sides, ("Real images", "Synthetic images"), strict=True):
        _show(each, rows, columns, class_names)
        each.set(title=title, xlabel="examples")
    axes[0, 0].set_ylabel("class")
    return figure


@_style()
def reconstructions(original: Images, decoded: Mapping[str, Images]) -> Figure:
    """Images above what each compressor makes of them.

    Args:
        original: (N, C, H, W) in [0, 1]; N columns are drawn, so pass a few.
        decoded: name of the compressor → (N, C, H, W), in the order of `original`.

    Raises:
        ValueError: shapes that differ.
    """
    rows = {"original": _colours(original)} | {name: _colours(images) for name, images in decoded.items()}
    _same_shapes(rows)
    stacked, columns = list(rows.values()), len(rows["original"])
    figure, axes = _card(*_grid_size(len(rows), columns, stacked[0]))
    _show(axes[0, 0], stacked, columns, list(rows))
    axes[0, 0].set(title="Encoded and decoded again", ylabel="compressor", xlabel="images")
    return figure


@_style()
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
    steps = [_colours(images) for images in batches]
    _same_shapes({f"batch {position}": images for position, images in enumerate(steps)})
    rows = list(np.stack(steps, axis=1))
    if len(row_names) != len(rows):
        raise ValueError(f"row_names: expected {len(rows)}, one per sample, got {len(row_names)}; name every row")
    figure, axes = _card(*_grid_size(len(rows), len(steps), rows[0]))
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
    rows = _by_class(images, labels, class_names)
    pixels = (_mosaic(rows, columns) * 255).round().astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
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


# --- scores -----------------------------------------------------------------------------------------------------------


def _need(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{what}: expected the columns {', '.join(columns)}, got none called {', '.join(missing)}")


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a `name` per line of a plot: method, public data, privacy, and profile where there are several;
    of a smoke run that it means nothing."""
    names = table["method"] + table["public_data"].map(lambda data: f" + {data}" if data else "")
    names = names + np.where(np.isinf(table["epsilon"]), ", not private", "")
    if table["profile"].nunique() > 1:
        names = names + np.where(table["profile"] == "smoke", "", " (" + table["profile"] + ")")
    return table.assign(name=names + np.where(table["profile"] == "smoke", " (smoke, means nothing)", ""))


def _style_of(names: Sequence[str]) -> dict[str, tuple[str, str, Any]]:
    """Colour, marker and line of each name. The colour is that of its method; where several names have one colour, they
    differ in marker and line."""
    looks: dict[str, tuple[str, str, Any]] = {}
    for name in sorted(set(names)):
        method = re.split(r" \+ |, | \(", name)[0]
        i = METHODS.index(method) if method in METHODS else zlib.crc32(method.encode())
        choices = (
            (PALETTE[i % 6], MARKERS[(i + i // 6 + step) % 6], LINES[(i + 2 * (i // 6) + step + step // 6) % 6])
            for step in range(36)
        )
        taken = set(looks.values())
        looks[name] = next(look for look in choices if look not in taken)
    return {name: looks[name] for name in dict.fromkeys(names)}


def _scale(axis: XAxis | YAxis, score: str) -> None:
    """Accuracies in per cent; Fréchet distances, which differ by factors, on a logarithmic scale."""
    if not score.startswith("fid"):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
        return
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high > 30 * low else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_series(axes: Axes, name: str, rows: pd.DataFrame, score: str, style: tuple[str, str, Any]) -> None:
    """Mean line with bars of one standard deviation, and beside each bar, clear of it, a dot for every seed."""
    colour, marker, line = style
    rows = rows.sort_values("epsilon")
    if rows["epsilon"].duplicated().any():
        twice = rows.loc[rows["epsilon"].duplicated(), "epsilon"].iloc[0]
        raise ValueError(f"table: expected one row per method and ε, got several for {name} at ε = {twice:g}; pass one")
    for _, row in rows.iterrows():
        values = row[f"{score}_values"]
        if math.isinf(row["epsilon"]):  # without privacy: at no ε, so along all of them, the seeds at the right edge
            axes.axhline(row[score], color=colour, linestyle=line, linewidth=1.2, zorder=1)
            place, across = 0.985, axes.get_yaxis_transform()
        else:
            place, across = row["epsilon"], offset_copy(axes.transData, axes.get_figure(root=True), x=7, units="points")
        axes.plot([place] * len(values), values, linestyle="", marker=marker, color=colour, alpha=0.7, markersize=5,
                  markeredgecolor=CARD, markeredgewidth=0.5, transform=across, zorder=2)  # fmt: skip
    private = rows[np.isfinite(rows["epsilon"])]
    axes.errorbar(private["epsilon"], private[score], yerr=private[f"{score}_spread"], color=colour, linestyle=line,
                  marker="_", markersize=13, markeredgewidth=1.8, capsize=4, elinewidth=1.0, zorder=3)  # fmt: skip


def _against_epsilon(table: pd.DataFrame, published: pd.DataFrame | None, score: str, better: str) -> Figure:
    _need(table, ["dataset", "method", "public_data", "profile", "epsilon", score, f"{score}_values"], "table")
    table = _named(table[table[score].notna()])
    if published is None:
        published = pd.DataFrame({"dataset": [], "method": [], "epsilon": [], score: []})
    _need(published, ["dataset", "method", "epsilon", score], "published")
    published = published[published[score].notna()]
    if not score.startswith("fid") and (published[score] > 1).any():
        raise ValueError(
            f"published: expected {score} as a fraction of 1, got {published[score].max():g}; divide by 100"
        )
    if table.empty and published.empty:
        raise ValueError(f"table: expected at least one row with {score}, got none; run something first")
    datasets = list(dict.fromkeys([*table["dataset"], *published["dataset"]]))
    styles = _style_of(list(table["name"]))
    marks = dict(zip(dict.fromkeys(published["method"]), PUBLISHED_MARKERS * 9, strict=False))
    labels = [*styles, *(f"{name} (published)" for name in marks)]
    across = max(1, min(3, int(6.6 / (0.6 + 0.075 * max(map(len, labels))))))  # inches: handle and letters of a label
    figure, axes = _card(7.0, 4.3 + 0.26 * math.ceil(len(labels) / across), columns=len(datasets))
    for each, dataset in zip(axes[0], datasets, strict=True):
        own, theirs = table[table["dataset"] == dataset], published[published["dataset"] == dataset]
        _set_epsilon_axis(each.xaxis, [*own["epsilon"], *theirs["epsilon"]])
        for name, rows in own.groupby("name", sort=False):
            _draw_series(each, name, rows, score, styles[name])
        for method, points in theirs.sort_values("epsilon").groupby("method", sort=False):
            each.plot(points["epsilon"], points[score], marker=marks[method], zorder=1.5, **_PUBLISHED)
        each.set(title=DATASETS.get(dataset, dataset), xlabel=_epsilon_label(table))
        _scale(each.yaxis, score)
    axes[0, 0].set_ylabel(f"{SCORES[score]}, {better}")
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=line, label=name)
        for name, (colour, marker, line) in styles.items()
    ]
    handles += [Line2D([], [], marker=mark, label=f"{name} (published)", **_PUBLISHED) for name, mark in marks.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(across, len(handles)),
        title="dots beside: every seed · dash and line: mean · bars: ± one standard deviation", title_fontsize=8.5,
    )  # fmt: skip
    return figure


def _set_epsilon_axis(axis: Any, epsilons: Sequence[float]) -> None:
    finite = sorted({epsilon for epsilon in epsilons if math.isfinite(epsilon)}) or [1.0]
    roomy = all(after > 1.4 * before for before, after in pairwise(finite))
    axis.axes.set_xscale("log")
    axis.axes.set_xlim(finite[0] / 1.4, finite[-1] * 1.4)
    axis.set_major_locator(FixedLocator(finite) if roomy else LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _epsilon_label(table: pd.DataFrame) -> str:
    deltas = set(table["delta"].dropna()) if "delta" in table else set()
    return f"privacy budget ε (δ = {decimal(deltas.pop())})" if len(deltas) == 1 else "privacy budget ε"


def decimal(number: float) -> str:
    """A number as readers write it.

    >>> decimal(1e-5), decimal(10.0)
    ('0.00001', '10')
    """
    return np.format_float_positional(number, trim="-")


@_style()
def headline(points: pd.DataFrame, title: str) -> Figure:
    """Few lines of accuracy against ε, on an axis that is logarithmic in the share of images that are got wrong.

    The card is narrow, so that letters stay readable on a phone.

    Args:
        points: from `dpldm.headline.lines`.
        title: above the lines.

    Raises:
        ValueError: a column is missing, or nothing is there to draw.
    """
    _need(points, ["line", "epsilon", "accuracy", "mark"], "points")
    if points.empty:
        raise ValueError("points: expected at least one, got none; run something first")
    figure, axes = _card(4.4, 4.8)
    each = axes[0, 0]
    errors = 100 * (1 - points["accuracy"]).clip(lower=1e-4)
    _set_epsilon_axis(each.xaxis, list(points["epsilon"]))
    each.set(yscale="log", ylim=(1.5 * errors.max(), errors.min() / 1.5), title=title, xlabel="privacy budget ε")
    each.set_ylabel("test accuracy (%)")
    for place, (name, rows) in enumerate(points.assign(error=errors).groupby("line", sort=False)):
        look = {"color": PALETTE[place], "linestyle": LINES[place]}
        if np.isinf(rows["epsilon"]).all():  # at no ε, so along all of them
            each.axhline(rows["error"].mean(), label=name, linewidth=1.4, **look)
            continue
        each.plot(rows["epsilon"], rows["error"], label=name, marker=MARKERS[place], **look)
        for _, point in rows.iterrows():
            each.annotate(point["mark"], (point["epsilon"], point["error"]), (5, -11), textcoords="offset points")
    each.yaxis.set_major_locator(
        FixedLocator([100 - accuracy for accuracy in (10, 50, 80, 90, 95, 98, 99, 99.5, 99.9)])
    )
    each.yaxis.set_minor_locator(NullLocator())
    each.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
    figure.legend(loc="outside lower left", fontsize=9.5)
    return figure


@_style()
def accuracy_against_epsilon(table: pd.DataFrame, published: pd.DataFrame | None = None, score: str = "cnn") -> Figure:
    """Test accuracy on real images against ε, one panel per dataset.

    Args:
        table: from `results.table`; one row per method, profile and ε. Runs without privacy are horizontal lines.
        published: numbers of others, with the columns `dataset`, `method`, `epsilon` and `score`'s name (a fraction).
        score: `cnn`, `mlp` or `logreg`.

    Raises:
        ValueError: a column is missing, nothing is there to draw, or two rows would share a place.
    """
    return _against_epsilon(table, published, score, "higher is better")


@_style()
def fid_against_epsilon(
    table: pd.DataFrame, published: pd.DataFrame | None = None, score: str = "fid_classifier"
) -> Figure:
    """Fréchet distance to real images against ε, both axes logarithmic, one panel per dataset.

    Args:
        table: as for `accuracy_against_epsilon`.
        published: with the columns `dataset`, `method`, `epsilon` and `score`'s name. Distances on different features
            can't be compared: a published Inception FID has to be called `fid_inception` and is drawn with that only.
        score: `fid_classifier` or `fid_inception`.

    Raises:
        ValueError: a column is missing, nothing is there to draw, or two rows would share a place.
    """
    return _against_epsilon(table, published, score, "lower is better")


@_style()
def method_comparison(table: pd.DataFrame, scores: Sequence[str] = ("cnn", "fid_classifier")) -> Figure:
    """Every method in a line of its own, in the order of the table: a dot per seed, the mean and its spread.

    Args:
        table: from `results.table`.
        scores: one column of panels each; one row of panels per dataset.

    Raises:
        ValueError: a column is missing or there is no row.
    """
    for score in scores:
        _need(table, ["dataset", "method", "public_data", "profile", "epsilon", score, f"{score}_values"], "table")
    if table.empty:
        raise ValueError("table: expected at least one row, got none; run something first")
    table = _named(table)
    datasets = dict(iter(table.groupby("dataset", sort=False)))
    longest = max(len(rows) for rows in datasets.values())
    figure, axes = _card(7.0, 0.5 + len(datasets) * (0.9 + 0.34 * longest), len(datasets), len(scores), "row")
    styles = _style_of(list(table["name"]))
    for line, (dataset, rows) in zip(axes, datasets.items(), strict=True):
        places = np.arange(len(rows))[::-1]
        for each, score in zip(line, scores, strict=True):
            for place, (_, row) in zip(places, rows.iterrows(), strict=True):
                colour, marker, _ = styles[row["name"]]
                each.errorbar(row[score], place, xerr=row[f"{score}_spread"], color=colour, capsize=4, marker="|",
                              markersize=15, markeredgewidth=1.8, elinewidth=1.0, zorder=3)  # fmt: skip
                values = row[f"{score}_values"]
                each.plot(values, [place - 0.22] * len(values), linestyle="", marker=marker, color=colour,
                          alpha=0.7, markersize=5, markeredgecolor=CARD, markeredgewidth=0.5, zorder=2)  # fmt: skip
            each.grid(False, axis="y")
            each.set(xlabel=SCORES[score], title=DATASETS.get(dataset, dataset), ylim=(-0.7, len(rows) - 0.5))
            _scale(each.xaxis, score)
        budgets = ["" if math.isinf(epsilon) else f", ε = {epsilon:.3g}" for epsilon in rows["epsilon"]]
        names = [name + budget for name, budget in zip(rows["name"], budgets, strict=True)]
        line[0].set_yticks(places, names)
        line[0].set_ylabel("method")
    figure.supxlabel("dots below: every seed · upright dash: mean · bars: ± one standard deviation", fontsize=8.5)
    return figure


@_style()
def ingredients(table: pd.DataFrame) -> Figure:
    """Errors of a CNN and Fréchet distance of every variation, a mark for each ε; both axes logarithmic.

    Args:
        table: from `dpldm.ablation.effects`, of one data set and profile. A dotted line goes through the first title of
            each ε.

    Raises:
        ValueError: a column is missing or there is no row.
    """
    labels = {"cnn": "errors of a CNN (%)", "fid_classifier": SCORES["fid_classifier"]}
    for score in labels:
        _need(table, ["title", "epsilon", score, f"{score}_values"], "table")
    if table.empty:
        raise ValueError("table: expected at least one row, got none; run dpldm ablation first")
    titles = list(dict.fromkeys(table["title"]))
    budgets = dict(iter(table.groupby("epsilon", sort=False)))
    figure, axes = _card(7.0, 1.3 + 0.3 * len(titles), 1, len(labels), "row")
    for each, (score, label) in zip(axes[0], labels.items(), strict=True):
        for number, (epsilon, rows) in enumerate(budgets.items()):
            colour, marker, shift = PALETTE[number % 6], MARKERS[number % 6], 0.15 * ((len(budgets) - 1) / 2 - number)
            for place, (_, row) in enumerate(rows[rows[score].notna()].iterrows()):
                x = [100 * (1 - value) if score == "cnn" else value for value in (*row[f"{score}_values"], row[score])]
                y = len(titles) - 1 - titles.index(row["title"]) + shift
                each.plot(x[:-1], [y] * (len(x) - 1), linestyle="", marker=marker, color=colour, alpha=0.8,
                          markersize=6, markeredgecolor=CARD, markeredgewidth=0.5,
                          label="" if place else f"ε = {epsilon:g}")  # fmt: skip
                each.plot(x[-1:], [y], linestyle="", marker="|", color=colour, markersize=12, markeredgewidth=1.8)
                if row["title"] == titles[0]:
                    each.axvline(x[-1], color=colour, linestyle=":", linewidth=1.0, zorder=1)
        each.set_xscale("log")
        each.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if score == "cnn" else (1.0, 3.0)))
        each.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        each.xaxis.set_minor_locator(NullLocator())
        each.grid(False, axis="y")
        each.set(xlabel=label, title="lower is better", ylim=(-0.6, len(titles) - 0.4))
    axes[0, 0].set_yticks(range(len(titles))[::-1], titles)
    axes[0, 0].legend()
    axes[0, 0].set_ylabel("what is changed")
    return figure


# --- privacy ----------------------------------------------------------------------------------------------------------


@_style()
def budget_split(privacy: Mapping[str, Any], shares: Sequence[float]) -> Figure:
    """What part of the budget each mechanism takes.

    Args:
        privacy: the part of a record with `epsilon`, `delta` and `mechanisms`.
        shares: one per mechanism, fractions that add up to 1; how they are worked out is for the caller to say.

    Raises:
        ValueError: not one share per mechanism, or they do not add up to 1.
    """
    mechanisms = privacy["mechanisms"]
    if len(shares) != len(mechanisms) or not math.isclose(sum(shares), 1, abs_tol=1e-6) or min(shares) < 0:
        raise ValueError(
            f"shares: expected {len(mechanisms)} fractions that add up to 1, got {len(shares)} that add up to "
            f"{sum(shares):g}; give one per mechanism"
        )
    figure, axes = _card(7.0, 1.1 + 0.48 * len(mechanisms))
    stages = list(dict.fromkeys(mechanism["stage"] for mechanism in mechanisms))
    places = np.arange(len(mechanisms))[::-1]
    colours = [PALETTE[stages.index(mechanism["stage"]) % 6] for mechanism in mechanisms]
    bars = axes[0, 0].barh(places, shares, color=colours, height=0.62)
    axes[0, 0].bar_label(bars, [f"{100 * share:.2g}" for share in shares], padding=4, fontsize=9)
    axes[0, 0].set_yticks(places, [_described(mechanism) for mechanism in mechanisms])
    axes[0, 0].set_xlim(0, 1.12 * max(shares))
    axes[0, 0].grid(False, axis="y")
    axes[0, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    axes[0, 0].set(
        title=f"Where ε = {privacy['epsilon']:.3g} (δ = {decimal(privacy['delta'])}) is spent",
        xlabel="share of the budget (%)", ylabel="mechanism (stage)",
    )  # fmt: skip
    return figure


def points_gained(gain: float) -> str:
    """A change of accuracy (of fractions of 1) as one reads it.

    >>> points_gained(0.0031), points_gained(-0.0012), points_gained(0.0001)
    ('+0.3 % right', '−0.1 % right', 'as many right')
    """
    return "as many right" if abs(gain) < 0.0005 else f"{100 * gain:+.1f} % right".replace("-", "−")


def distance_change(change: float) -> str:
    """A change of a Fréchet distance as one reads it.

    >>> distance_change(-21.06), distance_change(3.0), distance_change(0.01)
    ('FID 21.1 lower', 'FID 3.0 higher', 'the same FID')
    """
    return "the same FID" if abs(change) < 0.05 else f"FID {abs(change):.1f} {'lower' if change < 0 else 'higher'}"


@_style()
def pipeline(steps: pd.DataFrame, epsilon: float) -> Figure:
    """The steps of a run from above to below: boxes, beside each its share of the budget and what it buys.

    Args:
        steps: from `dpldm.pipeline.steps`.
        epsilon: of the whole run, for the title.

    Raises:
        ValueError: a column is missing or there is no row.
    """
    _need(steps, ["title", "about", "share", "cnn", "fid"], "steps")
    if steps.empty:
        raise ValueError("steps: expected at least one row, got none; give those of a private run")
    height = 1.3 + 0.52 * len(steps)  # not as wide as others: its words are read on phones
    figure, ((boxes, bars, gains),) = _card(5.4, height, columns=3, share_y="row", widths=(3.0, 1.9, 1.9))
    places = np.arange(len(steps))[::-1]
    ends = {len(steps): "private images", -1: "synthetic images"}
    for place in [len(steps), *places]:
        boxes.annotate("", (0.5, place - 0.74), (0.5, place - 0.26), arrowprops={"arrowstyle": "->", "color": INK})
    for place, text in ends.items():
        boxes.text(0.5, place, text, ha="center", va="center", fontsize=9.5)
    for place, (_, step) in zip(places, steps.iterrows(), strict=True):
        free, measured = step["share"] == 0, math.isfinite(step["cnn"])
        look = {"boxstyle": "round,pad=0.35", "facecolor": CARD, "edgecolor": PALETTE[5 if free else 0]}
        boxes.text(0.5, place, f"{step['title']}\n{step['about']}", ha="center", va="center", fontsize=8.5, bbox=look)
        bars.text(
            step["share"] + 0.01, place, "free" if free else f"{100 * step['share']:.0f} %", va="center", fontsize=9
        )
        words = f"{points_gained(step['cnn'])}\n{distance_change(step['fid'])}" if measured else "–"
        gains.text(0.5, place, words, ha="center", va="center", fontsize=9)
    bars.barh(places, steps["share"], color=PALETTE[0], height=0.45)
    bars.set(xlim=(0, 1.35 * steps["share"].max()), title=f"share of ε = {epsilon:.3g}")
    boxes.set(xlim=(0, 1), ylim=(-1.4, len(steps) + 0.4), title="what is done")
    gains.set(xlim=(0, 1), title="what it buys")
    for each in (boxes, bars, gains):
        each.set(xticks=[], yticks=[])
        each.grid(False)
        each.spines[:].set_visible(False)
    return figure


def _described(mechanism: Mapping[str, Any]) -> str:
    steps = "1 step" if mechanism["steps"] == 1 else f"{mechanism['steps']:,} steps"
    return f"{mechanism['name']} ({mechanism['stage']})\nσ = {mechanism['noise_multiplier']:.3g}, {steps}"


@_style()
def roc(fpr: Sequence[float], tpr: Sequence[float]) -> Figure:
    """An attack's true against false positive rate, both on logarithmic axes, with the line of guessing.

    Args:
        fpr: false positive rates, 0 to 1, not falling; zeros have no place on the axis and are left out.
        tpr: true positive rates, as many.

    Raises:
        ValueError: lengths that differ, or no point with both rates above 0.
    """
    false, true = np.asarray(fpr, dtype=float), np.asarray(tpr, dtype=float)
    if false.shape != true.shape or false.ndim != 1:
        raise ValueError(f"tpr: expected as many rates as in fpr, {false.shape}, got {true.shape}")
    shown = (false > 0) & (true > 0)
    if not shown.any():
        raise ValueError("fpr: expected at least one point with both rates above 0, got none; use more examples")
    lowest = min(false[shown].min(), true[shown].min(), 0.5)
    figure, axes = _card(4.6, 4.4)
    axes[0, 0].plot([lowest, 1], [lowest, 1], color=PALETTE[5], linestyle="--", linewidth=1.2, label="guessing")
    axes[0, 0].step(false[shown], true[shown], where="post", color=PALETTE[0], label="attack")
    axes[0, 0].set(
        xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.1), title="Who was a member?",
        xlabel="false positive rate", ylabel="true positive rate",
    )  # fmt: skip
    axes[0, 0].legend(loc="lower right")
    return figure


# --- the book ---------------------------------------------------------------------------------------------------------


@_style()
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
    colours = {name: _colours(images) for name, images in rows.items()}
    _same_shapes(colours)
    stacked = list(colours.values())
    figure, axes = _card(*_grid_size(len(rows), len(stacked[0]), stacked[0]))
    _show(axes[0, 0], stacked, len(stacked[0]), list(rows))
    axes[0, 0].set(title=title, ylabel=row_label, xlabel=column_label)
    return figure


@_style()
def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    title: str = "",
    logarithmic: Literal["", "x", "y", "xy"] = "",
) -> Figure:
    """One line per name over shared places, with a marker at each place.

    Args:
        x: places, of any length.
        lines: name → as many values; infinite and NaN ones leave a gap.
        x_label, y_label: with units.
        logarithmic: which axes are.

    Raises:
        ValueError: a line of another length, or no line.
    """
    if not lines:
        raise ValueError("lines: expected at least one, got none; name one")
    for name, values in lines.items():
        if len(values) != len(x):
            raise ValueError(f"{name}: expected {len(x)} values, one per place, got {len(values)}")
    figure, axes = _card(6.4, 3.9)
    for place, (name, values) in enumerate(lines.items()):
        shown = np.where(np.isfinite(values), values, np.nan)
        axes[0, 0].plot(x, shown, color=PALETTE[place % 6], linestyle=LINES[place % 6], marker=MARKERS[place % 6],
                        markersize=5, label=name)  # fmt: skip
    if "x" in logarithmic:
        axes[0, 0].set_xscale("log")
    if "y" in logarithmic:
        axes[0, 0].set_yscale("log")
    axes[0, 0].set(title=title, xlabel=x_label, ylabel=y_label)
    if len(lines) > 1:
        axes[0, 0].legend()
    return figure


@_style()
def histograms(values: Mapping[str, Images], x_label: str, title: str = "", bins: int = 60) -> Figure:
    """How often each value comes, as an outline per name over shared bins; shares of each name add up to one.

    Args:
        values: name → numbers of any shape.
        x_label: with the unit.
        bins: of equal width between the least and the largest value of all.

    Raises:
        ValueError: nothing to draw.
    """
    flat = {name: np.asarray(numbers, dtype=float).ravel() for name, numbers in values.items()}
    if not flat or not all(len(numbers) for numbers in flat.values()):
        raise ValueError("values: expected at least one number for each name, got none; pass some")
    edges = np.histogram_bin_edges(np.concatenate(list(flat.values())), bins)
    figure, axes = _card(6.4, 3.4)
    for place, (name, numbers) in enumerate(flat.items()):
        heights = np.histogram(numbers, edges)[0] / len(numbers)
        axes[0, 0].stairs(heights, edges, color=PALETTE[place % 6], linestyle=LINES[place % 6], linewidth=1.8,
                          label=name)  # fmt: skip
    axes[0, 0].set(title=title, xlabel=x_label, ylabel="share")
    if len(flat) > 1:
        axes[0, 0].legend()
    return figure


def captioned(frame: pd.DataFrame | pd.Series, caption: str) -> HTML:
    """A frame as an HTML table under a caption that says what its rows and numbers are; – for what is missing.

    Raises:
        ValueError: an empty caption.
    """
    if not caption.strip():
        raise ValueError("caption: expected a sentence on what the table shows, got none; write one")
    whole = frame.to_frame() if isinstance(frame, pd.Series) else frame
    text = whole.to_html(border=0, na_rep="–")
    return HTML(text.replace("<thead>", f"<caption>{html.escape(caption)}</caption>\n  <thead>", 1))


def as_html(figure: Figure, alternative: str) -> str:
    """A figure as an HTML image with its text alternative, for pages that show what another page computed.

    Args:
        figure: made by this module.
        alternative: what the figure shows, in a sentence, for those who don't see it.

    Raises:
        ValueError: no text, or a figure of another making.
    """
    if not alternative.strip() or not isinstance(figure, Card):
        raise ValueError("expected a figure of dpldm.plots and a sentence on what it shows; give both")
    pixels = base64.b64encode(figure._repr_png_()).decode()
    text = html.escape(alternative, quote=True)
    width = round(96 * figure.get_figwidth())
    return f'<img src="data:image/png;base64,{pixels}" alt="{text}" style="width: {width}px; max-width: 100%">'
