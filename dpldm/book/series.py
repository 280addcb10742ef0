"""Scores against ε → figures."""

import math
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import offset_copy

from dpldm.book.style import (
    DATASETS,
    LINES,
    MARKERS,
    METHODS,
    PALETTE,
    PUBLISHED,
    PUBLISHED_MARKERS,
    SCORES,
    card,
    card_style,
    decimal,
)
from dpldm.methods import profile_title
from dpldm.records.grids import CARD


def need(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse a frame without the columns that a figure draws."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{what}: expected the columns {', '.join(columns)}, got none called {', '.join(missing)}")


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a `name` per line of a plot: method, public data, privacy, and profile where there are several;
    of a smoke run that it means nothing."""
    names = table["method"] + table["public_data"].map(lambda data: f" + {data}" if data else "")
    names = names + np.where(np.isinf(table["epsilon"]), ", not private", "")
    if table["profile"].nunique() > 1:
        names = names + np.where(table["profile"] == "smoke", "", " (" + table["profile"].map(profile_title) + ")")
    return table.assign(name=names + np.where(table["profile"] == "smoke", " (smoke, means nothing)", ""))


def style_of(names: Sequence[str]) -> dict[str, tuple[str, str, Any]]:
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


def scale(axis: XAxis | YAxis, score: str) -> None:
    """Accuracies in per cent; Fréchet distances, which differ by factors, on a logarithmic scale."""
    if not score.startswith("fid"):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
        return
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    wide = high > 300 * low
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 3.0) if high > 30 * low else (1.0, 2.0, 5.0)))
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
    need(table, ["dataset", "method", "public_data", "profile", "epsilon", score, f"{score}_values"], "table")
    table = named(table[table[score].notna()])
    if published is None:
        published = pd.DataFrame({"dataset": [], "method": [], "epsilon": [], score: []})
    need(published, ["dataset", "method", "epsilon", score], "published")
    published = published[published[score].notna()]
    if not score.startswith("fid") and (published[score] > 1).any():
        raise ValueError(
            f"published: expected {score} as a fraction of 1, got {published[score].max():g}; divide by 100"
        )
    if table.empty and published.empty:
        raise ValueError(f"table: expected at least one row with {score}, got none; run something first")
    datasets = list(dict.fromkeys([*table["dataset"], *published["dataset"]]))
    styles = style_of(list(table["name"]))
    marks = dict(zip(dict.fromkeys(published["method"]), PUBLISHED_MARKERS * 9, strict=False))
    labels = [*styles, *(f"{name} (published)" for name in marks)]
    across = max(1, min(3, int(6.6 / (0.6 + 0.075 * max(map(len, labels))))))  # inches: handle and letters of a label
    figure, axes = card(7.0, 4.3 + 0.26 * math.ceil(len(labels) / across), columns=len(datasets))
    for each, dataset in zip(axes[0], datasets, strict=True):
        own, theirs = table[table["dataset"] == dataset], published[published["dataset"] == dataset]
        _set_epsilon_axis(each.xaxis, [*own["epsilon"], *theirs["epsilon"]])
        for name, rows in own.groupby("name", sort=False):
            _draw_series(each, name, rows, score, styles[name])
        for method, points in theirs.sort_values("epsilon").groupby("method", sort=False):
            each.plot(points["epsilon"], points[score], marker=marks[method], zorder=1.5, **PUBLISHED)
        each.set(title=DATASETS.get(dataset, dataset), xlabel=_epsilon_label(table))
        scale(each.yaxis, score)
    axes[0, 0].set_ylabel(f"{SCORES[score]}, {better}")
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=line, label=name)
        for name, (colour, marker, line) in styles.items()
    ]
    handles += [Line2D([], [], marker=mark, label=f"{name} (published)", **PUBLISHED) for name, mark in marks.items()]
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


@card_style()
def headline(points: pd.DataFrame, title: str) -> Figure:
    """Few lines of accuracy against ε, on an axis that is logarithmic in the share of images that are got wrong.

    The card is narrow, so that letters stay readable on a phone.

    Args:
        points: from `dpldm.book.headline.lines`.
        title: above the lines.

    Raises:
        ValueError: a column is missing, or nothing is there to draw.
    """
    need(points, ["line", "epsilon", "accuracy", "mark"], "points")
    if points.empty:
        raise ValueError("points: expected at least one, got none; run something first")
    figure, axes = card(4.4, 4.8)
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


@card_style()
def accuracy_against_epsilon(table: pd.DataFrame, published: pd.DataFrame | None = None, score: str = "cnn") -> Figure:
    """Test accuracy on real images against ε, one panel per dataset.

    Args:
        table: from `tables.table`; one row per method, profile and ε. Runs without privacy are horizontal lines.
        published: numbers of others, with the columns `dataset`, `method`, `epsilon` and `score`'s name (a fraction).
        score: `cnn`, `mlp` or `logreg`.

    Raises:
        ValueError: a column is missing, nothing is there to draw, or two rows would share a place.
    """
    return _against_epsilon(table, published, score, "higher is better")


@card_style()
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
