"""Other figures: bars, curves, histograms, the pipeline. Nothing is computed here beyond placing what is given."""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dpldm.book.series import named, need, scale, style_of
from dpldm.book.style import DATASETS, LINES, MARKERS, PALETTE, SCORES, card, card_style, decimal
from dpldm.records.grids import CARD, INK, Images


@card_style()
def method_comparison(table: pd.DataFrame, scores: Sequence[str] = ("cnn", "fid_classifier")) -> Figure:
    """Every method in a line of its own, in the order of the table: a dot per seed, the mean and its spread.

    Args:
        table: from `tables.table`.
        scores: one column of panels each; one row of panels per dataset.

    Raises:
        ValueError: a column is missing or there is no row.
    """
    for score in scores:
        need(table, ["dataset", "method", "public_data", "profile", "epsilon", score, f"{score}_values"], "table")
    if table.empty:
        raise ValueError("table: expected at least one row, got none; run something first")
    table = named(table)
    datasets = dict(iter(table.groupby("dataset", sort=False)))
    longest = max(len(rows) for rows in datasets.values())
    figure, axes = card(5.4, 0.6 + len(datasets) * (0.9 + 0.34 * longest), len(datasets), len(scores), "row")
    styles = style_of(list(table["name"]))
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
            each.set(xlabel=fill(SCORES[score], 16), title=DATASETS.get(dataset, dataset), ylim=(-0.7, len(rows) - 0.5))
            scale(each.xaxis, score)
        budgets = ["" if math.isinf(epsilon) else f", ε = {epsilon:.3g}" for epsilon in rows["epsilon"]]
        names = [name + budget for name, budget in zip(rows["name"], budgets, strict=True)]
        line[0].set_yticks(places, names)
        line[0].set_ylabel("method")
    figure.supxlabel("dots below: every seed · upright dash: mean\nbars: ± one standard deviation", fontsize=8.5)
    return figure


@card_style()
def ingredients(table: pd.DataFrame) -> Figure:
    """Errors of a CNN and Fréchet distance of every variation, a mark for each ε; both axes logarithmic.

    Args:
        table: from `dpldm.runs.ablation.effects`, of one data set and profile. A dotted line goes through the first
            title of each ε.

    Raises:
        ValueError: a column is missing or there is no row.
    """
    labels = {"cnn": "errors of a CNN (%)", "fid_classifier": SCORES["fid_classifier"]}
    for score in labels:
        need(table, ["title", "epsilon", score, f"{score}_values"], "table")
    if table.empty:
        raise ValueError("table: expected at least one row, got none; run dpldm ablation first")
    titles = list(dict.fromkeys(table["title"]))
    budgets = dict(iter(table.groupby("epsilon", sort=False)))
    figure, axes = card(7.0, 1.3 + 0.3 * len(titles), 1, len(labels), "row")
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


@card_style()
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
    figure, axes = card(7.0, 1.1 + 0.48 * len(mechanisms))
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


@card_style()
def pipeline(steps: pd.DataFrame, epsilon: float) -> Figure:
    """The steps of a run from above to below: boxes, beside each its share of the budget and what it buys.

    Args:
        steps: from `dpldm.book.pipeline.steps`.
        epsilon: of the whole run, for the title.

    Raises:
        ValueError: a column is missing or there is no row.
    """
    need(steps, ["title", "about", "share", "cnn", "fid"], "steps")
    if steps.empty:
        raise ValueError("steps: expected at least one row, got none; give those of a private run")
    height = 1.3 + 0.52 * len(steps)  # not as wide as others: its words are read on phones
    figure, ((boxes, bars, gains),) = card(5.4, height, columns=3, share_y="row", widths=(3.0, 1.9, 1.9))
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


@card_style()
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
    figure, axes = card(4.6, 4.4)
    axes[0, 0].plot([lowest, 1], [lowest, 1], color=PALETTE[5], linestyle="--", linewidth=1.2, label="guessing")
    axes[0, 0].step(false[shown], true[shown], where="post", color=PALETTE[0], label="attack")
    axes[0, 0].set(
        xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.1), title="Who was a member?",
        xlabel="false positive rate", ylabel="true positive rate",
    )  # fmt: skip
    axes[0, 0].legend(loc="lower right")
    return figure


@card_style()
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
    figure, axes = card(6.4, 3.9)
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


@card_style()
def floors(table: pd.DataFrame, floor: float) -> Figure:
    """ε of accountants against δ beside the exact curve; hollow below the floor, where rounding decides.

    Args:
        table: from `dpldm.book.floors.against_delta`.
        floor: the δ of PRV and PLD below which they are not believed; RDP has none.

    Raises:
        ValueError: a column is missing.
    """
    need(table, ["delta", "exact", "PRV", "PLD", "RDP"], "table")
    figure, axes = card(4.4, 4.6)
    each = axes[0, 0]
    table = table.sort_values("delta")
    each.plot(table["delta"], table["exact"], color=INK, linewidth=1.2, label="exact")
    for place, name in enumerate(("PRV", "PLD", "RDP")):
        look = {"color": PALETTE[place], "marker": MARKERS[place], "markersize": 6}
        sure = table if name == "RDP" else table[table["delta"] >= floor]
        each.plot(table["delta"], table[name], linestyle=":", markerfacecolor=CARD, zorder=2, **look)
        label = f"{name}, no floor" if name == "RDP" else name
        each.plot(sure["delta"], sure[name], linestyle=LINES[place], label=label, zorder=3, **look)
    each.axvline(floor, color=INK, linestyle="--", linewidth=1.0, label="floor of PRV and PLD")
    each.set(xscale="log", title="Where rounding decides", xlabel="δ (hollow: below the floor)", ylabel="ε")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9.5)
    return figure


@card_style()
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
    figure, axes = card(6.4, 3.4)
    for place, (name, numbers) in enumerate(flat.items()):
        heights = np.histogram(numbers, edges)[0] / len(numbers)
        axes[0, 0].stairs(heights, edges, color=PALETTE[place % 6], linestyle=LINES[place % 6], linewidth=1.8,
                          label=name)  # fmt: skip
    axes[0, 0].set(title=title, xlabel=x_label, ylabel="share")
    if len(flat) > 1:
        axes[0, 0].legend()
    return figure
