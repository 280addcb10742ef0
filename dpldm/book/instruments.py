"""What other instruments than ours measure, in tables and words: learners, two-sample tests, peers' protocol."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dpldm.book.words import with_decimal
from dpldm.evaluation.peers import FULL, PROTOCOL
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


def by_peers(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """The best of three large classifiers by the peers' protocol, for groups of records: `peers`, the mean over those
    of a group that have it (NaN for none), and `peers_spread`, their standard deviation. Reduced versions don't count.

    >>> by_peers([[{"metrics": {"peers": {"dpimagebench": {"best": 0.75}}}}], [{"metrics": {}}]])["peers"]
    [0.75, nan]
    """
    values = [
        pd.Series([one["metrics"]["peers"][PROTOCOL]["best"] for one in group if _has_peers(one)], dtype=float)
        for group in runs
    ]
    return {"peers": [float(some.mean()) for some in values], "peers_spread": [float(some.std()) for some in values]}


def _has_peers(record: Mapping[str, Any]) -> bool:
    return PROTOCOL in record["metrics"].get("peers", {})


def peers_in_words(records: Sequence[Mapping[str, Any]]) -> str:
    """How records can be scored by the peers' protocol, what differs, and how many were; holds for none and for all.

    >>> peers_in_words([{"metrics": {}}])[-54:]
    'No record here was scored so, and the column is empty.'
    """
    done = sum(map(_has_peers, records))
    reduced = sum(f"{PROTOCOL}-reduced" in one["metrics"].get("peers", {}) for one in records)
    recipe = (
        f"Ours can be scored by the same networks and settings ({FULL.epochs} epochs, averaged weights with a decay of "
        f"{FULL.ema:g}, dropout {FULL.dropout:g}), with two differences: one in {round(1 / FULL.held_out)} *synthetic* "
        "images chooses the epoch, where the quoted figures choose on real ones with noise, and δ is that of our runs, "
        f"where theirs is 1/(N ln N). It takes a GPU: `dpldm evaluate --records NAME --protocol {PROTOCOL} --device "
        "cuda`."
    )
    told = "No record here was scored so, and the column is empty."
    if done:
        told = f"Of the {len(records)} records here {done} were scored so; where there is none, the column has a dash."
    small = f" By a small version of it, which stands in no table, {reduced} were scored." if reduced else ""
    return f"{recipe} {told}{small}"


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
