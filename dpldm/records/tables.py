"""Records → tables: scores over seeds with their spread, as a frame or as text."""

import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from dpldm.records.names import definition, digest_of, record_name
from dpldm.records.numbers import duration, plain
from dpldm.records.schema import CLASSIFIERS, JUDGES, LEARNERS

_GROUP = ["dataset", "method", "public_data", "profile", "epsilon", "variant", "finished"]
_AREAS = tuple(f"auc_{judge}" for judge in JUDGES)
_SCORES = (*CLASSIFIERS, *LEARNERS, "fid_classifier", "fid_inception", *_AREAS, "precision", "recall", "seconds")
_SUMMARY = [
    *_GROUP, "epsilon_spent", "delta", "seeds", "score",
    "mean", "standard_deviation", "min", "max", "n", "values", "records",
]  # fmt: skip


def _scores(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """Every value of every score of one run; an empty list where a score was not taken."""
    metrics = record["metrics"]
    single = {key: metrics[key] for key in ("fid_classifier", "fid_inception", "precision", "recall")}
    single["seconds"] = sum(value for value in record["seconds"].values() if value is not None)
    scores = {key: list(map(float, values)) for key, values in metrics["accuracy"].items()}
    learned, told = metrics.get("learners", {}), metrics.get("two_sample", {})  # not in the oldest records
    scores |= {key: list(map(float, learned.get(key, []))) for key in LEARNERS}
    scores |= {f"auc_{judge}": [float(told[judge]["auc"])] if judge in told else [] for judge in JUDGES}
    return scores | {key: [] if value is None else [float(value)] for key, value in single.items()}


def finishing(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the images of a rival's run were finished, as its settings say; None where they were left as they are."""
    return record["settings"].get("synthesis", {}).get("finishing")


def _group_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What records have in common when they differ by nothing but their seed; `variant` names their settings."""
    defining = definition(record)
    privacy = defining["privacy"]
    epsilon = privacy["epsilon_target"] if privacy["epsilon_target"] is not None else record["privacy"]["epsilon"]
    variant = digest_of({key: value for key, value in defining.items() if key != "seed"})
    return (
        record["dataset"], record["method"], record["public_data"] or "", record["profile"],
        math.inf if epsilon is None else float(epsilon), variant, finishing(record) is not None,
    )  # fmt: skip


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a group of runs is described by, beside what it has in common."""
    spent = record["privacy"]["epsilon"]
    return {
        "seed": record["seed"], "record": record_name(record),
        "epsilon_spent": math.inf if spent is None else float(spent),
        "delta": math.nan if spent is None else record["privacy"]["delta"],
    }  # fmt: skip


def summary(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """All scores over all seeds, in long form: one row per group of runs and score.

    Runs are one group where only their seed differs. The values of a classifier are pooled over synthesis seeds ×
    classifier seeds; nothing is selected.

    Returns:
        A frame with `dataset`, `method`, `public_data` ('' for none), `profile`, `epsilon` (the target, or what was
        spent where the noise was asked for; infinite without privacy), `variant` (8 hexadecimal digits that name
        everything else that was asked for), `finished` (whether a rival's images were, see
        `finishing`), `epsilon_spent` (the largest), `delta`, `seeds` (how many synthesis
        seeds), `score` (`cnn`, `mlp`, `logreg`, `knn`, `forest`, `boosting`, `svm`: fractions of 1; `fid_classifier`,
        `fid_inception`; `auc_forest`, `auc_cnn` of the two-sample tests; `precision`, `recall`; `seconds`: of the whole
        run), `mean`, `standard_deviation` (of the sample; NaN for one value),
        `min`, `max`, `n`, `values` (every one) and `records` (their file names). Sorted.
    """
    rows = [
        dict(zip(_GROUP, _group_of(record), strict=True)) | _facts(record) | {"score": score, "value": value}
        for record in sorted(records, key=lambda record: record["seed"])
        for score, values in _scores(record).items()
        for value in values
    ]
    if not rows:
        return pd.DataFrame(columns=_SUMMARY)
    frame = pd.DataFrame(rows)
    found = [*_SCORES, *(score for score in frame["score"].unique() if score not in _SCORES)]
    groups = frame.astype({"score": pd.CategoricalDtype(found)}).groupby(_GROUP)
    runs = groups.agg(
        epsilon_spent=("epsilon_spent", "max"), delta=("delta", "max"), seeds=("seed", "nunique"),
        records=("record", lambda names: tuple(names.unique())),
    )  # fmt: skip
    scores = groups[["score", "value"]].apply(lambda group: group.groupby("score", observed=True)["value"].agg(
        mean="mean", standard_deviation="std", min="min", max="max", n="count", values=tuple,
    ))  # fmt: skip
    return scores.reset_index("score").join(runs).reset_index().astype({"score": object})[_SUMMARY]


def table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per group of runs that differ only by their seed, with what `summary` says about each score.

    Returns:
        A frame with the columns of `summary` that describe the group, and for each score `s` that it names: `s` (the
        mean), `s_spread` (the
        sample standard deviation, NaN for one value), `s_min`, `s_max`, `s_values` (a tuple of every value). A score
        that no run of the group has is NaN with an empty tuple.
    """
    long = summary(records)
    described = [*_GROUP, "epsilon_spent", "delta", "seeds", "records"]
    columns = {"mean": "", "standard_deviation": "_spread", "min": "_min", "max": "_max", "values": "_values"}
    wide = long.set_index([*_GROUP, "score"])[list(columns)].unstack("score")
    wide = wide.reindex(columns=[(source, score) for score in _SCORES for source in columns])
    wide.columns = pd.Index([f"{score}{columns[source]}" for source, score in wide.columns])
    for score in _SCORES:
        wide[f"{score}_values"] = [values if isinstance(values, tuple) else () for values in wide[f"{score}_values"]]
    return long.drop_duplicates(_GROUP)[described].join(wide, on=_GROUP).reset_index(drop=True)


def _with_spread(mean: float, spread: float, scale: float, digits: int) -> str:
    if math.isnan(mean):
        return "–"
    shown = f"{mean * scale:.{digits}f}"
    return shown if math.isnan(spread) else f"{shown} ± {spread * scale:.{digits}f}"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def to_text(frame: pd.DataFrame) -> str:
    """A table for the terminal: aligned, rounded, with units, each row followed up by the names of its records.

    Args:
        frame: from `table`.
    """
    if frame.empty:
        return "No records yet."
    header = ["", "dataset", "method", "ε", "profile", "seeds", "CNN (%)", "MLP (%)", "log. reg. (%)",
              "3-NN (%)", "forest (%)", "boosting (%)", "SVM (%)", "FID (classifier)", "FID (Inception)",
              "AUC (forest)", "AUC (CNN)", "time"]  # fmt: skip
    lines = [header]
    for number, row in enumerate(frame.to_dict("records"), start=1):
        accuracies = [_with_spread(row[name], row[f"{name}_spread"], 100, 1) for name in (*CLASSIFIERS, *LEARNERS)]
        distances = [_with_spread(row[n], row[f"{n}_spread"], 1, 2) for n in ("fid_classifier", "fid_inception")]
        areas = [_with_spread(row[name], row[f"{name}_spread"], 1, 3) for name in _AREAS]
        method = row["method"] + (f" + {row['public_data']}" if row["public_data"] else "")
        method += ", finished" if row["finished"] else ""
        epsilon = "none" if math.isinf(row["epsilon"]) else plain(row["epsilon"])
        lines.append([f"[{number}]", row["dataset"], method, epsilon, row["profile"], str(row["seeds"]),
                      *accuracies, *distances, *areas, duration(row["seconds"])])  # fmt: skip
    columns = [column for column in zip(*lines, strict=True) if set(column[1:]) != {"–"}]  # taken by no run
    widths = [max(map(_width, column)) for column in columns]
    left = {0, 1, 2, 4}  # words; numbers go to the right
    aligned = []
    for line in zip(*columns, strict=True):
        cells = []
        for position, (cell, width) in enumerate(zip(line, widths, strict=True)):
            room = " " * (width - _width(cell))
            cells.append(cell + room if position in left else room + cell)
        aligned.append("  ".join(cells).rstrip())
    notes = ["", "Accuracy on real test images, mean ± standard deviation over all seeds; time of one run."]
    if any(column[0] in ("AUC (forest)", "AUC (CNN)") for column in columns):
        notes.append(
            "AUC: how well a classifier tells the images from real ones, 0.5 where it can't, 1 where it always can."
        )
    notes.append("Records:")
    notes += [f"[{number}] {name}" for number, names in enumerate(frame["records"], start=1) for name in names]
    return "\n".join(aligned + notes)
