"""What other instruments than ours measure, in tables and words: learners nobody tuned for, two-sample tests."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpldm.book.words import with_decimal
from dpldm.runs.words import JUDGES, LEARNERS


def learners_table(metrics: Mapping[str, Any], real: Mapping[str, float]) -> pd.DataFrame:
    """A row for each learner: its accuracy on real test images after synthetic and after real ones, and the share.

    Args:
        metrics: of a record, which may be from before they were measured. real: learner → accuracy in [0, 1], of as
            many real images.

    >>> learners_table({"learners": {"knn": [0.75, 0.25]}}, {"knn": 1.0}).loc["3-NN"].tolist()
    [0.5, 1.0, 0.5]
    """
    learned = {kind: values for kind, values in metrics.get("learners", {}).items() if values}
    means = {kind: sum(learned[kind]) / len(learned[kind]) if kind in learned else math.nan for kind in LEARNERS}
    rows = [(means[kind], real.get(kind, math.nan)) for kind in LEARNERS]
    frame = pd.DataFrame(rows, index=list(LEARNERS.values()), columns=["synthetic", "real"])
    return frame.assign(share=frame["synthetic"] / frame["real"])


def shares_in_words(table: pd.DataFrame) -> str:
    """Which learner keeps least, and which most, of what real images teach it.

    >>> shares_in_words(learners_table({"learners": {"knn": [0.6], "svm": [0.9]}}, {"knn": 0.8, "svm": 0.9}))
    'from 75.0 % (3-NN) to 100.0 % (SVM)'
    >>> shares_in_words(learners_table({}, {}))
    'a share that was not measured'
    """
    shares = table["share"].dropna()
    if shares.empty:
        return "a share that was not measured"
    least, most = (f"{100 * shares[name]:.1f} % ({name})" for name in (shares.idxmin(), shares.idxmax()))
    return f"from {least} to {most}"


def judges_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each judge and what it was asked to tell apart, with its area under the curve in words; dashes where
    a record has none."""
    told = metrics.get("two_sample", {})
    views = {"": "synthetic", "_greys": "synthetic, few greys", "_real": "other real images"}
    rows = {name: [_area(told.get(f"{judge}{view}")) for view in views] for judge, name in JUDGES.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(views.values()))


def _area(measured: Mapping[str, float] | None) -> str:
    if measured is None:
        return with_decimal(math.nan)
    return f"{measured['auc']:.3f} ({measured['low']:.3f}–{measured['high']:.3f})"


def told_in_words(metrics: Mapping[str, Any], judge: str, view: str = "") -> str:
    """Whether a judge tells images from real test images; holds whichever way it came out.

    >>> told_in_words({"two_sample": {"cnn": {"auc": 0.9, "low": 0.88, "high": 0.92}}}, "cnn")
    'is right about 90.0 % of all pairs'
    >>> told_in_words({"two_sample": {"cnn": {"auc": 0.51, "low": 0.48, "high": 0.54}}}, "cnn")
    'is right about 51.0 % of all pairs, which may be chance'
    """
    measured = metrics.get("two_sample", {}).get(f"{judge}{view}")
    if measured is None:
        return "was not asked"
    chance = ", which may be chance" if measured["low"] <= 0.5 else ""
    return f"is right about {100 * measured['auc']:.1f} % of all pairs{chance}"
