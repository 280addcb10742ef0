"""What other instruments than ours measure, in tables and words: learners, two-sample tests, peers' protocol."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dpldm.book.words import with_decimal
from dpldm.evaluation.peers import FULL, PROTOCOL
from dpldm.runs.words import JUDGES, LEARNERS

ALL_LEARNERS = {"cnn": "CNN", "mlp": "MLP", "logreg": "logistic regression"} | LEARNERS


def learners_table(metrics: Mapping[str, Any], real: Mapping[str, float]) -> pd.DataFrame:
    """A row for each learner: its accuracy on real test images after synthetic and after real ones, and the share.

    Args:
        metrics: of a record, which may be from before they were measured. real: learner → accuracy in [0, 1], of as
            many real images.

    >>> learners_table({"learners": {"knn": [0.75, 0.25]}}, {"knn": 1.0}).loc["3-NN"].tolist()
    [0.5, 1.0, 0.5]
    """
    means = _means(metrics)
    rows = [(means.get(kind, math.nan), real.get(kind, math.nan)) for kind in LEARNERS]
    frame = pd.DataFrame(rows, index=list(LEARNERS.values()), columns=["synthetic", "real"])
    return frame.assign(share=frame["synthetic"] / frame["real"])


def _means(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Learner → accuracy over its seeds, of a record that may have none."""
    return {kind: sum(values) / len(values) for kind, values in metrics.get("learners", {}).items() if values}


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


def keeps_in_words(metrics: Mapping[str, Any], real: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """What synthetic images keep of what real ones teach, over all learners, and the class that a CNN knows worst.

    Args:
        metrics, real: of two records, of synthetic and of as many real images; either may lack what is asked for.
        class_names: in the order of the labels.

    >>> metrics = {"learners": {"cnn": [0.9], "knn": [0.6]}, "by_class": {"cnn": [0.95, 0.85]}}
    >>> said = keeps_in_words(metrics, {"learners": {"cnn": [1.0], "knn": [0.75]}}, ["cat", "dog"])
    >>> print(said.replace(". ", ".\\n"))
    Of what real images teach 2 kinds of learners, the images above keep 85.0 % on average, the least with 3-NN: 80.0 %.
    A CNN is right least often about dog: 85.0 %.
    """
    ours, theirs = _means(metrics), _means(real)
    kept = pd.Series(
        {name: ours[kind] / theirs[kind] for kind, name in ALL_LEARNERS.items() if kind in ours and kind in theirs},
        dtype=float,
    )
    said = []
    if len(kept):
        said.append(
            f"Of what real images teach {len(kept)} kinds of learners, the images above keep "
            f"{100 * kept.mean():.1f} % on average, the least with {kept.idxmin()}: {100 * kept.min():.1f} %."
        )
    return " ".join(filter(None, [*said, hardest_in_words(metrics, class_names)]))


def classes_table(metrics: Mapping[str, Any], class_names: Sequence[str]) -> pd.DataFrame:
    """A row for each learner of a record that was asked class by class, with a column for each class: its accuracy.

    >>> classes_table({"by_class": {"knn": [1.0, 0.5]}}, ["cat", "dog"]).loc["3-NN"].tolist()
    [1.0, 0.5]
    """
    asked = metrics.get("by_class", {})
    rows = {name: asked[kind] for kind, name in ALL_LEARNERS.items() if kind in asked}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(class_names), dtype=float)


def hardest_in_words(metrics: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """The class that a CNN knows worst; empty where a record is from before it was asked.

    >>> hardest_in_words({"by_class": {"cnn": [0.95, 0.85]}}, ["cat", "dog"])
    'A CNN is right least often about dog: 85.0 %.'
    """
    classes = classes_table(metrics, class_names)
    if "CNN" not in classes.index:
        return ""
    right = classes.loc["CNN"].dropna()
    return f"A CNN is right least often about {right.idxmin()}: {100 * right.min():.1f} %."


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
