"""What was aimed at, and how far it was reached."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpldm.book import style
from dpldm.book.comparison import OURS, measured, method_title
from dpldm.book.ingredients import by_data_set
from dpldm.book.words import ACCURACY, DISTANCE, NOTHING, listed, with_decimal
from dpldm.data import datasets
from dpldm.methods import PROFILES, profile_title
from dpldm.records.names import record_name

TO_HALVE = ("dp-sinkhorn", "dp-merf", "class-gaussian")  # at most half of their Fréchet distance is aimed at
_VERDICTS = ("halved", "less, not halved", "not less")
_TARGETS = ["dataset", "epsilon", "profile", "accuracy"]


def read_targets(path: Path) -> pd.DataFrame:
    """What we aimed at: `dataset`, `epsilon`, `profile` and `accuracy` of the CNN on the test set, a fraction of 1.

    Raises:
        ValueError: a column is missing, a name is unknown, an accuracy is no fraction, or a target stands there twice.
        OSError: there is no such file.
    """
    found = pd.read_csv(path, keep_default_na=False)
    if list(found) != _TARGETS:
        raise ValueError(f"{path}: expected the columns {', '.join(_TARGETS)}, got {', '.join(found)}")
    wrong = {
        f"a data set out of {', '.join(datasets.DATASETS)}": ~found["dataset"].isin(list(datasets.DATASETS)),
        f"a profile out of {', '.join(PROFILES)}": ~found["profile"].isin(list(PROFILES)),
        "an accuracy from 0 to 1": ~found["accuracy"].between(0, 1),
        "one target for each place": found.duplicated(_TARGETS[:-1]),
    }
    for expected, rows in wrong.items():
        if rows.any():
            raise ValueError(f"{path}: expected {expected}, got line {rows.idxmax() + 2}; correct it")
    return found


def runs_of(records: Iterable[Mapping[str, Any]], method: str = OURS) -> pd.DataFrame:
    """A method on whole data sets, with the CNN: a row for each dataset, ε, profile and public data.

    Returns:
        `dataset`, `epsilon` (NaN without privacy), `profile`, `public_data` (empty for none), `seeds` (of the
        synthesis), `cnn` (mean over them of the mean over classifiers) and `spread` (one standard deviation over the
        seeds, NaN for one).
    """
    by_name = {record_name(record): record for record in records}
    rows = measured(by_name.values())
    rows = rows[(rows["method"] == method) & rows["whole"].astype(bool) & rows["cnn"].notna()]
    runs = [
        pd.Series([np.mean(by_name[name]["metrics"]["accuracy"]["cnn"]) for name in names], dtype=float)
        for names in rows["records"]
    ]
    found = rows[["dataset", "epsilon", "profile", "public_data"]].reset_index(drop=True)
    return found.assign(
        seeds=[len(run) for run in runs], cnn=[run.mean() for run in runs], spread=[run.std() for run in runs]
    )


def aims_as_shown(
    own: pd.DataFrame, published: pd.DataFrame, targets: pd.DataFrame, yardsticks: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Published figures, targets and our own, one column for each data set and ε; accuracy of the CNN in per cent.

    Below them what is reached without privacy, the same at every ε.

    A dagger marks the best of three large classifiers, which is another protocol than that of a CNN.

    Args:
        own: from `runs_of`. published: from `read_published`. targets: from `read_targets`, with the columns' places.
        yardsticks: more from `runs_of`, of methods without privacy, by what they are called.
    """
    places = list(dict.fromkeys(zip(targets["dataset"], targets["epsilon"], strict=True)))
    shown: dict[str, list[str]] = {
        "DP-Sinkhorn, published": [_quoted(published, place, "DP-Sinkhorn") for place in places],
        "DP-Sinkhorn, re-run by others": [_quoted(published, place, "DP-Sinkhorn (re-run)") for place in places],
        "DPDM, published": [_quoted(published, place, "DPDM (accuracy sampler)") for place in places],
        "best published without public data": [_best(published, place) for place in places],
    }
    profiles = [name for name in reversed(PROFILES) if (targets["profile"] == name).any()]
    for profile in profiles:
        aimed = targets[targets["profile"] == profile].set_index(["dataset", "epsilon"])["accuracy"].reindex(places)
        shown[f"target, {profile_title(profile)}"] = [with_decimal(100 * value) for value in aimed]
    public = sorted(set(own["public_data"]) - {""})
    for profile, used in [(profile, used) for used in ["", *public] for profile in profiles[::-1]]:
        mine = own[(own["profile"] == profile) & (own["public_data"] == used)].set_index(["dataset", "epsilon"])
        if not used or len(mine):
            shown[f"ours, {profile_title(profile)}{f', public data: {used}' if used else ''}"] = [
                _seeds_in_words(mine.loc[place]) if place in mine.index else NOTHING for place in places
            ]
    for name, runs in yardsticks.items():
        for profile in profiles[::-1]:
            free = runs[runs["profile"] == profile].set_index("dataset")
            if len(free):
                shown[f"{name}, {profile_title(profile)}"] = [
                    _seeds_in_words(free.loc[dataset]) if dataset in free.index else NOTHING for dataset, _ in places
                ]
    table = pd.DataFrame.from_dict(shown, orient="index", columns=[_place_in_words(*place) for place in places])
    return table.rename_axis("CNN (%)").reset_index()


def _place_in_words(dataset: str, epsilon: float) -> str:
    return f"{style.DATASETS.get(dataset, dataset)}, ε = {epsilon:g}"


def _seeds_in_words(run: pd.Series) -> str:
    spread = "" if math.isnan(run["spread"]) else f"\u00a0±\u00a0{100 * run['spread']:.1f}"
    return f"{100 * run['cnn']:.1f}{spread} ({run['seeds']}\u00a0seed{'s' if run['seeds'] > 1 else ''})"


def _quoted(published: pd.DataFrame, place: tuple[str, float], method: str) -> str:
    rows = published[(published["dataset"] == place[0]) & (published["epsilon"] == place[1])]
    values = rows[(rows["method"] == method) & (rows["score"] == "cnn")]["value"]
    return with_decimal(100 * values.max()) if len(values) else NOTHING


def _best(published: pd.DataFrame, place: tuple[str, float]) -> str:
    rows = published[(published["dataset"] == place[0]) & (published["epsilon"] == place[1])]
    rows = rows[rows["score"].isin(["cnn", "best_of_three"]) & (rows["public_data"] == "")]
    if rows.empty:
        return NOTHING
    best = rows.loc[rows["value"].idxmax()]
    return f"{100 * best['value']:.1f}{'†' if best['score'] == 'best_of_three' else ''} {best['method']}"


def aims_in_words(own: pd.DataFrame, targets: pd.DataFrame) -> list[str]:
    """Which targets are met without public data, and by how much the others are missed: one sentence for all, then one
    for each profile and data set."""
    mine = own[own["public_data"] == ""].set_index(["dataset", "epsilon", "profile"])
    counts, found = {"met": 0, "missed": 0, "not measured yet": 0}, []
    for (profile, dataset), group in targets.groupby(["profile", "dataset"], sort=False):
        told = []
        for _, aim in group.iterrows():
            place, wanted = (dataset, aim["epsilon"], profile), ACCURACY.shown(aim["accuracy"])
            if place not in mine.index:
                outcome, words = "not measured yet", "not measured yet"
            else:
                reached = ACCURACY.shown(mine.loc[place]["cnn"])
                gap = round(reached - wanted, 1)
                outcome = "met" if gap >= 0 else "missed"
                by = f" by {abs(gap):.1f} points" if gap < 0 else f", {gap:.1f} points above" if gap > 0 else " exactly"
                words = f"{outcome}{by}: {_seeds_in_words(mine.loc[place])}"
            counts[outcome] += 1
            told.append(f"at ε = {aim['epsilon']:g} the target of {wanted:.1f} % is {words}")
        found.append(f"{style.DATASETS.get(str(dataset), dataset)}, {profile_title(str(profile))}: {'; '.join(told)}.")
    number = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return [f"Of {len(targets)} targets: {number}.", *found] if len(targets) else []


def distances_as_shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Fréchet distances of the methods in `TO_HALVE` and of ours on whole data sets, without public data; one column
    for each data set and ε, largest ε first.

    Args:
        rows: from `measured`, of one or more data sets. The distance has all test images and does not depend on the
            profile's classifiers, so runs of different profiles stand side by side.
    """
    found = _to_halve(rows)
    names = found["title"] + ", " + found["profile"].map(profile_title)
    places = sorted(set(zip(found["dataset"], found["epsilon"], strict=True)), key=by_data_set)
    values = found.assign(name=names).set_index(["name", "dataset", "epsilon"])["fid_classifier"]
    shown = {
        name: [with_decimal(values[(name, *place)]) if (name, *place) in values.index else NOTHING for place in places]
        for name in names.iloc[np.argsort(found["method"] == OURS, kind="stable")].drop_duplicates()
    }
    table = pd.DataFrame.from_dict(shown, orient="index", columns=[_place_in_words(*place) for place in places])
    return table.rename_axis("Fréchet distance").reset_index()


def distances_in_words(rows: pd.DataFrame) -> list[str]:
    """Whether our distance is at most half of that of every method in `TO_HALVE`: how often, then one sentence for each
    data set and profile of ours, the least of the others beside it, also of those at a smaller ε, which are private at
    ours as well.

    Args:
        rows: from `measured`.
    """
    found = _to_halve(rows)
    others, sentences, verdicts = found[found["method"] != OURS], [], []
    for (dataset, profile), mine in found[found["method"] == OURS].groupby(["dataset", "profile"]):
        told = []
        for _, run in mine.sort_values("epsilon", ascending=False).iterrows():
            allowed = (others["epsilon"] <= run["epsilon"]) & (others["delta"] <= run["delta"])
            here = others[(others["dataset"] == dataset) & allowed]
            if here.empty:
                continue
            names = set(here[here["epsilon"] == run["epsilon"]]["method"])
            missing = [method_title(name) for name in TO_HALVE if name not in names]
            without = f" ({listed(missing)} not measured)" if missing else ""
            verdicts.append(_verdict(run["fid_classifier"], here["fid_classifier"].min()))
            told.append(f"at ε = {run['epsilon']:g}, {_against_least(run, here, 'fid_classifier', without)}")
            if (finished := here.dropna(subset="finished_fid_classifier")).size:
                told[-1] += f" ({_against_least(run, finished, 'finished_fid_classifier', ' finished like ours')})"
        if told:
            sentences.append(
                f"{style.DATASETS.get(str(dataset), dataset)}, {profile_title(str(profile))}: {'; '.join(told)}."
            )
    number = "; ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in _VERDICTS)
    return [f"Of {len(verdicts)} distances: {number}.", *sentences] if verdicts else []


def _verdict(ours: float, theirs: float) -> str:
    ours, theirs = DISTANCE.shown(ours), DISTANCE.shown(theirs)
    return _VERDICTS[0] if ours <= theirs / 2 else _VERDICTS[1] if ours < theirs else _VERDICTS[2]


def _against_least(own: pd.Series, others: pd.DataFrame, column: str, note: str) -> str:
    """'x against y of A: halved', where A has the least distance of all, maybe at a smaller ε."""
    least = others.loc[others[column].idxmin()]
    ours, theirs = DISTANCE.shown(own["fid_classifier"]), DISTANCE.shown(least[column])
    verdict = _verdict(own["fid_classifier"], least[column])
    smaller = f" at ε = {least['epsilon']:g}" if least["epsilon"] < own["epsilon"] else ""
    return f"{ours} against {theirs} of {least['title']}{smaller}{note}: {verdict}"


def _to_halve(rows: pd.DataFrame) -> pd.DataFrame:
    """Private runs of ours and of `TO_HALVE` on whole public data sets that have a distance, without public data."""
    kept = rows["whole"].astype(bool) & rows["method"].isin([OURS, *TO_HALVE]) & (rows["public_data"] == "")
    kept &= rows["dataset"].isin(datasets.DATASETS)
    return rows[kept & np.isfinite(rows["epsilon"]) & rows["fid_classifier"].notna()]
