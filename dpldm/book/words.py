"""Scores, budgets and lists in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

NOTHING = "–"  # where there is no number
NOT_RUN = "not run"


@dataclass(frozen=True)
class Score:
    """A score in words. ``key``: its column. ``reached``: what our method did; ``reads``: a number with its unit;
    ``apart``: a difference. ``scale``: what the value is multiplied with to be shown. ``higher``: more is better."""

    key: str
    reached: str
    reads: str
    apart: str
    scale: float
    higher: bool

    def shown(self, value: float) -> float:
        """The value as it is shown, with one decimal."""
        return round(self.scale * value, 1)


ACCURACY = Score("cnn", "reaches {:.1f} % with the CNN", "{:.1f} %", "{:.1f} points", 100, higher=True)
DISTANCE = Score("fid_classifier", "comes to a distance of {:.1f}", "{:.1f}", "{:.1f}", 1, higher=False)


def with_decimal(value: float, form: str = "{:.1f}") -> str:
    """A number, or a dash where there is none."""
    return NOTHING if math.isnan(value) else form.format(value)


def lower_or_higher(change: float) -> str:
    """A change of a distance as one reads it.

    >>> lower_or_higher(-3.0), lower_or_higher(0.02)
    ('3.0 lower', 'the same')
    """
    if math.isnan(change):
        return NOTHING
    return "the same" if abs(change) < 0.05 else f"{abs(change):.1f} {'lower' if change < 0 else 'higher'}"


def budget_in_words(epsilon: float) -> str:
    """An ε as tables show it."""
    return "none" if math.isinf(epsilon) else f"{epsilon:.3g}"


def with_spread(rows: pd.DataFrame, score: str, scale: float) -> list[str]:
    """Means with their standard deviations, where there are some."""
    pairs = zip(rows[score], rows[f"{score}_spread"], strict=True)
    return [
        with_decimal(scale * mean) + ("" if math.isnan(spread) else f"\u00a0±\u00a0{scale * spread:.1f}")
        for mean, spread in pairs
    ]


def listed(names: Sequence[str]) -> str:
    """Names in a row, the last after “and”."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
