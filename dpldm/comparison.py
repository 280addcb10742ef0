"""Ours, rivals that were re-run here, and figures quoted from others, side by side. A join of records and methods.

What was measured under one protocol is kept apart from what is only quoted. The sentences are made from records and
hold whichever way these fall; where a record is missing, nothing is said.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpldm import ablation, data, plots, results
from dpldm.experiment import made_today, to_json
from dpldm.finishing import FinishedLater
from dpldm.methods import METHODS, PROFILES
from dpldm.recipes import finishing_for
from dpldm.synthesis import LatentDiffusion

OWN = LatentDiffusion.method
NOTHING = "–"  # where there is no number
NOT_RUN = "not run"
FAR_BELOW = 2.0  # points of accuracy that a re-run may miss its published figure by before that is said beside it
TO_HALVE = ("dp-sinkhorn", "dp-merf", "class-gaussian")  # at most half of their Fréchet distance is aimed at
_PLACE = ["dataset", "method", "public_data", "profile", "epsilon"]
_TARGETS = ["dataset", "epsilon", "profile", "accuracy"]
_PUBLISHED = ["dataset", "method", "epsilon", "score", "value", "public_data", "source"]


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


# --- what was measured ------------------------------------------------------------------------------------------------


def measured(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per dataset, method, public data, profile and ε.

    Of runs that differ in their settings, those stand in the table that `dpldm run` makes today; else those with most
    seeds. A rival's images stand there as it makes them; what they score when they are finished like ours
    (`dpldm run --finished`) has columns of its own.

    Returns:
        A frame with the columns of `dpldm.results.table` and: `title` (what readers call the method, with the public
        data of a variant that has some), `private` (False for a yardstick), `making` (seconds to fit and draw, without
        the evaluation; the mean over runs), `parameters` (numbers in the fitted model, NaN in old records), `protocol`
        (equal for runs on the same data that were scored in the same way), `whole` (whether all training images were
        used), `device` (a tuple), `can_be_finished` (whether it is a rival on images that ours have a finish for) and
        `finished_cnn`, `finished_fid_classifier`, each with its `…_spread` (of the same fit, with today's finish; NaN
        where that was not run). Largest ε first, yardsticks last, then by accuracy.
    """
    everything = list(records)
    by_name = {results.record_name(record): record for record in everything if results.finishing(record) is None}
    table = results.table(by_name.values())
    runs = [[by_name[name] for name in names] for names in table["records"]]
    table = table.assign(
        title=[_title_of(group[0]) for group in runs],
        private=[name not in METHODS or METHODS[name].private for name in table["method"]],
        making=[float(np.mean([_making(run) for run in group])) for group in runs],
        parameters=[float(group[0]["metrics"].get("parameters", math.nan)) for group in runs],
        protocol=[_protocol(group[0]) for group in runs],
        whole=[group[0]["settings"].get("limit") is None for group in runs],
        device=[tuple(sorted({run["device"] for run in group})) for group in runs],
        today=[made_today(group[0]) for group in runs],
        can_be_finished=[_can_be_finished(group[0]) for group in runs],
    ).join(_finished(everything), on="variant")
    table = table.sort_values(["today", "seeds", "variant"], ascending=[False, False, True]).drop_duplicates(_PLACE)
    order = table.assign(budget=table["epsilon"].replace(math.inf, -1.0)).sort_values(
        ["dataset", "budget", "cnn", "method", "profile"], ascending=[True, False, False, True, True]
    )
    return order.drop(columns=["today", "budget"]).reset_index(drop=True)


def _finished(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Scores of runs whose images were finished as ours are today, by the variant of the same runs without that."""
    twins = []
    for record in records:
        given = results.finishing(record)
        if given and _can_be_finished(record) and given == _finish_of_ours(record):
            plain = {key: value for key, value in record["settings"]["synthesis"].items() if key != "finishing"}
            twins.append({**record, "settings": record["settings"] | {"synthesis": plain}})
    scores = [f"{score.key}{suffix}" for score in (ACCURACY, DISTANCE) for suffix in ("", "_spread")]
    return results.table(twins).set_index("variant")[scores].astype(float).add_prefix("finished_")


def _can_be_finished(record: Mapping[str, Any]) -> bool:
    method = METHODS.get(record["method"])
    return method is not None and issubclass(method.settings, FinishedLater) and record["dataset"] in data.DATASETS


def _finish_of_ours(record: Mapping[str, Any]) -> dict[str, Any]:
    return to_json(finishing_for(record["dataset"], record["privacy"]["epsilon_target"]))


def _title(method: str) -> str:
    return (METHODS[method].title if method in METHODS else "") or method


def _title_of(record: Mapping[str, Any]) -> str:
    """A variant that learned from public data has a name of its own."""
    return _title(record["method"]) + (f", {record['public_data']}" if record["public_data"] else "")


def _making(record: Mapping[str, Any]) -> float:
    return sum(value for stage, value in record["seconds"].items() if value is not None and stage != "evaluation")


def _protocol(record: Mapping[str, Any]) -> str:
    settings = record["settings"]
    scored = {key: settings.get(key) for key in ("evaluation", "n_synthetic", "limit")}
    return json.dumps([scored, record["data_sha256"]], sort_keys=True)


def as_shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `measured` for readers: accuracy and distance, also of images finished like ours, time, size, public
    data.

    Texts with units in the heads, "–" where there is no number; a column that no run has and a single profile are left
    out. Of the rows of `with_shortfall` also by how much a re-run is below what was published.
    """
    return _telling(
        _named(rows)
        | {
            "CNN (%)": _with_spread(rows, "cnn", 100),
            "below published (points)": _below_published(rows),
            "CNN, finished (%)": _with_finish(rows, "cnn", 100),
            "FID (classifier)": _with_spread(rows, "fid_classifier", 1),
            "FID, finished": _with_finish(rows, "fid_classifier", 1),
            "FID (Inception)": _with_spread(rows, "fid_inception", 1),
            "time (s)": [f"{seconds:,.1f}" if seconds < 9.95 else f"{seconds:,.0f}" for seconds in rows["making"]],
            "parameters": [_number(value, "{:,.0f}") for value in rows["parameters"]],
            "public data": [name or "none" for name in rows["public_data"]],
        }
    )


def classifiers_as_shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows with all classifiers and the number of seeds."""
    return _telling(
        _named(rows)
        | {
            "seeds": rows["seeds"].astype(str),
            "CNN (%)": _with_spread(rows, "cnn", 100),
            "MLP (%)": _with_spread(rows, "mlp", 100),
            "logistic regression (%)": _with_spread(rows, "logreg", 100),
        }
    )


def _named(rows: pd.DataFrame) -> dict[str, Any]:
    return {"method": rows["title"], "ε": [_budget(epsilon) for epsilon in rows["epsilon"]], "profile": rows["profile"]}


def _telling(columns: Mapping[str, Any]) -> pd.DataFrame:
    """A frame without columns of nothing, and without the profile where there is only one."""
    shown = pd.DataFrame(columns)
    told = [name for name in shown if shown.empty or not (shown[name] == NOTHING).all()]
    return shown[[name for name in told if name != "profile" or shown[name].nunique() > 1]]


def as_html(shown: pd.DataFrame) -> str:
    """A frame of texts as an HTML table; nothing where it has no row."""
    return shown.to_html(index=False, border=0) if len(shown) else ""


def as_text(sentences: Sequence[str]) -> str:
    """Sentences as paragraphs of Markdown, or a line that there are none yet."""
    return "\n\n".join(sentences) or "*There is no record to compare with yet.*"


def _number(value: float, form: str = "{:.1f}") -> str:
    return NOTHING if math.isnan(value) else form.format(value)


def _lower_or_higher(change: float) -> str:
    """A change of a distance as one reads it.

    >>> _lower_or_higher(-3.0), _lower_or_higher(0.02)
    ('3.0 lower', 'the same')
    """
    if math.isnan(change):
        return NOTHING
    return "the same" if abs(change) < 0.05 else f"{abs(change):.1f} {'lower' if change < 0 else 'higher'}"


def _budget(epsilon: float) -> str:
    return "none" if math.isinf(epsilon) else f"{epsilon:.3g}"


def _with_spread(rows: pd.DataFrame, score: str, scale: float) -> list[str]:
    pairs = zip(rows[score], rows[f"{score}_spread"], strict=True)
    return [
        _number(scale * mean) + ("" if math.isnan(spread) else f"\u00a0±\u00a0{scale * spread:.1f}")
        for mean, spread in pairs
    ]


def _below_published(rows: pd.DataFrame) -> list[str]:
    return [_number(gap) for gap in rows["shortfall"]] if "shortfall" in rows else [NOTHING] * len(rows)


def _with_finish(rows: pd.DataFrame, score: str, scale: float) -> list[str]:
    """Scores of rivals whose images are finished like ours, in words where that was not run; "–" for all others."""
    cells = zip(rows["can_be_finished"], _with_spread(rows, f"finished_{score}", scale), strict=True)
    return [(NOT_RUN if cell == NOTHING else cell) if can else NOTHING for can, cell in cells]


# --- what is missing --------------------------------------------------------------------------------------------------


def commands_for_missing(rows: pd.DataFrame, dataset: str, profile: str, budgets: Sequence[float]) -> dict[str, str]:
    """What has no record yet → the command that makes it.

    Args:
        rows: from `measured`.
        budgets: the ε at which every private method should stand.
    """
    here = rows[(rows["dataset"] == dataset) & (rows["profile"] == profile) & (rows["public_data"] == "")]
    done = set(zip(here["method"], here["epsilon"], strict=True))
    found = {}
    for name, method in METHODS.items():
        for epsilon in budgets if method.private else [math.inf]:
            if (name, epsilon) not in done:
                at = f" at ε = {epsilon:g}" if method.private else ""
                asked = f"{epsilon:g}" if method.private else "none"
                command = f"dpldm run --dataset {dataset} --method {name} --epsilon {asked} --profile {profile}"
                found[_title(name) + at] = command
    return found


def missing_in_words(rows: pd.DataFrame, dataset: str, profile: str, budgets: Sequence[float]) -> str:
    """`commands_for_missing` for the page, in Markdown; one sentence where nothing is missing."""
    missing = commands_for_missing(rows, dataset, profile, budgets)
    if not missing:
        return f"Every method has its record in the profile `{profile}`."
    commands = "\n".join(missing.values())
    return (
        f"No record yet in the profile `{profile}`: {'; '.join(missing)}. Until there is one, nothing is said of it. "
        f"To make them:\n\n```\n{commands}\n```"
    )


# --- who is ahead -----------------------------------------------------------------------------------------------------


def claims(rows: pd.DataFrame, epsilon: float, score: Score = ACCURACY) -> list[str]:
    """Sentences on this book's method at ε against the methods re-run here and the yardsticks, one per profile.

    Only runs on the same data are compared, scored in the same way, with the same ε and δ (yardsticks have none). No
    sentence without a run of ours and one to compare it with.

    Args:
        rows: from `measured`, of one data set; from `with_shortfall`, the sentences say which re-runs are small.
    """
    here = rows[rows[score.key].notna()]
    ours = here[(here["method"] == OWN) & (here["public_data"] == "") & (here["epsilon"] == epsilon)]
    found = []
    for _, own in ours.iterrows():
        same = here[(here["protocol"] == own["protocol"]) & (here["profile"] == own["profile"])]
        rivals = same[(same["method"] != OWN) & (same["epsilon"] == epsilon) & (same["delta"] == own["delta"])]
        places = [_standings(own, others, score) for others in (rivals, same[~same["private"]])]
        if any(places):
            reached = score.reached.format(score.shown(own[score.key]))
            text = f"At ε = {epsilon:g} ({own['profile']}) the method of this book {reached}"
            text += f". Of the methods re-run here it is {places[0]}" if places[0] else ""
            found.append(text + (f". Of the yardsticks it is {places[1]}." if places[1] else "."))
    return found


def finished_in_words(rows: pd.DataFrame, epsilon: float) -> list[str]:
    """Sentences on what rivals at ε gain when their images are finished like ours, and how ours stand to them then,
    one per profile; the same runs are compared as in `claims`.

    Args:
        rows: from `measured`, of one data set.
    """
    ours = rows[(rows["method"] == OWN) & (rows["public_data"] == "") & (rows["epsilon"] == epsilon)]
    found = []
    for _, own in ours.dropna(subset=["cnn", "fid_classifier"]).iterrows():
        same = rows[(rows["protocol"] == own["protocol"]) & (rows["profile"] == own["profile"])]
        rivals = same[same["can_be_finished"] & (same["epsilon"] == epsilon) & (same["delta"] == own["delta"])]
        run = rivals.dropna(subset=["finished_cnn", "finished_fid_classifier"])
        told = [_gain_of_finish(own, rival) for _, rival in run.iterrows()]
        if rest := [rival["title"] for _, rival in rivals.iterrows() if rival["title"] not in set(run["title"])]:
            told.append(f"{_listed(rest)} {NOT_RUN}")
        if told:
            found.append(f"At ε = {epsilon:g} ({own['profile']}), finished like ours: {'; '.join(told)}.")
    return found


def _gain_of_finish(own: pd.Series, rival: pd.Series) -> str:
    """'A goes from x to y with the CNN, behind ours by n, and from a distance of z to w, …'."""
    told = []
    for score, before in ((ACCURACY, "from {} to {} with the CNN"), (DISTANCE, "from a distance of {} to {}")):
        plain, finished, ours = (
            score.shown(value) for value in (rival[score.key], rival[f"finished_{score.key}"], own[score.key])
        )
        gap = round(finished - ours, 1)
        by = f" by {score.apart.format(abs(gap))}" if gap else ""
        said = before.format(score.reads.format(plain), score.reads.format(finished))
        told.append(f"{said} ({_standing(gap, score.higher)} ours{by})")
    return f"{rival['title']} goes {' and '.join(told)}"


def _standings(own: pd.Series, others: pd.DataFrame, score: Score) -> str:
    """'ahead of A (x) by n and B (y) by m; behind C (z) by k'; empty where there is nobody."""
    places: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
    for _, other in others.sort_values(score.key, ascending=not score.higher).iterrows():
        gap = round(score.shown(own[score.key]) - score.shown(other[score.key]), 1)
        words = _standing(gap, score.higher)
        by = f" by {score.apart.format(abs(gap))}" if gap else ""
        scatter = _scatter(own, other, score) if gap else ""
        value = score.reads.format(score.shown(other[score.key]))
        places[words].append(f"{other['title']} ({value}{_small(other)}){by}{scatter}")
    return "; ".join(f"{words} {_listed(names)}" for words, names in places.items() if names)


def _small(run: pd.Series) -> str:
    """What has to be said of a re-run that is no fair copy of what was published."""
    gap = run.get("shortfall", math.nan)
    return "" if math.isnan(gap) else f", a small re-run, {ACCURACY.apart.format(gap)} below its published CNN"


def _standing(gap: float, higher: bool) -> str:
    if gap == 0:
        return "level with"
    return "ahead of" if (gap > 0) == higher else "behind"


def _scatter(own: pd.Series, other: pd.Series, score: Score) -> str:
    spread = math.hypot(own[f"{score.key}_spread"], other[f"{score.key}_spread"])  # NaN where one is not known
    return ", less than they scatter" if abs(own[score.key] - other[score.key]) < spread else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- what others published --------------------------------------------------------------------------------------------


def read_published(path: Path) -> pd.DataFrame:
    """Figures of others: `dataset`, `method`, `epsilon`, `score`, `value` (accuracies as fractions of 1),
    `public_data` (empty for none) and `source` (where the figure was seen).

    Raises:
        ValueError: a column or source is missing, an accuracy is no fraction, or a figure stands there twice.
        OSError: there is no such file.
    """
    found = pd.read_csv(path, keep_default_na=False)
    if list(found) != _PUBLISHED:
        raise ValueError(f"{path}: expected the columns {', '.join(_PUBLISHED)}, got {', '.join(found)}")
    wrong = {
        "a source": found["source"] == "",
        "an accuracy from 0 to 1": ~found["value"].between(0, 1) & (found["score"] != "fid_inception"),
        "one figure for each source": found.duplicated(["dataset", "method", "epsilon", "score", "source"]),
    }
    for expected, rows in wrong.items():
        if rows.any():
            raise ValueError(f"{path}: expected {expected}, got line {rows.idxmax() + 2}; correct it")
    return found


def beside_published(rows: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Each run of a method that others have figures of, once for every figure of it at the same ε.

    Runs on a part of the training images are left out.

    Args:
        rows: from `measured`.
        published: from `read_published`; `Method.published` says which figures belong to a method.

    Returns:
        A frame with `title`, `epsilon`, `profile`, `cnn`, `fid_classifier`, `fid_inception` (measured here), `quoted`
        (the name there), `source`, `quoted_cnn`, `quoted_fid` (NaN for none) and `difference` (of `cnn`: here minus
        quoted).
    """
    wide = published.pivot(index=["dataset", "method", "epsilon", "source"], columns="score", values="value")
    wide = wide.reindex(columns=["cnn", "fid_inception"]).dropna(subset="cnn").reset_index()
    found = []
    for _, run in rows[rows["whole"].astype(bool)].iterrows():
        names = METHODS[run["method"]].published if run["method"] in METHODS and not run["public_data"] else ()
        at = wide[(wide["dataset"] == run["dataset"]) & (wide["epsilon"] == run["epsilon"])]
        for _, quoted in at[at["method"].isin(names)].iterrows():
            here = run[["title", "epsilon", "profile", "cnn", "fid_classifier", "fid_inception"]].to_dict()
            there = {"quoted": quoted["method"], "source": quoted["source"], "quoted_cnn": quoted["cnn"]}
            apart = ACCURACY.shown(run["cnn"]) - ACCURACY.shown(quoted["cnn"])
            found.append(here | there | {"quoted_fid": quoted["fid_inception"], "difference": round(apart, 1) / 100})
    columns = ["title", "epsilon", "profile", "cnn", "fid_classifier", "fid_inception",
               "quoted", "source", "quoted_cnn", "quoted_fid", "difference"]  # fmt: skip
    return pd.DataFrame(found, columns=columns)


def with_shortfall(rows: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The rows of `measured` with `shortfall`: by how many points of the CNN a re-run is below the best published
    of it at the same ε; NaN where that is not more than `FAR_BELOW`, or nothing was published.

    Args:
        rows: from `measured`.
        published: from `read_published`, of as many data sets as you like.
    """
    gaps = [_shortfall(run, published) for _, run in rows.iterrows()]
    return rows.assign(shortfall=pd.Series(gaps, index=rows.index, dtype=float))


def _shortfall(run: pd.Series, published: pd.DataFrame) -> float:
    names = METHODS[run["method"]].published if run["method"] in METHODS and not run["public_data"] else ()
    at = published[(published["dataset"] == run["dataset"]) & (published["epsilon"] == run["epsilon"])]
    quoted = at[at["method"].isin(names) & (at["score"] == "cnn")]["value"]
    gap = round(ACCURACY.shown(quoted.max()) - ACCURACY.shown(run["cnn"]), 1) if len(quoted) else math.nan
    return gap if gap > FAR_BELOW else math.nan


def best_in_words(own: pd.DataFrame, published: pd.DataFrame) -> list[str]:
    """This book's method against the best that was published without public data: how often it is ahead, then a
    sentence for each data set and profile, as loud about what is behind as about what is ahead.

    Compared are the best CNN, which is our protocol, and, where it is higher, the best of three large classifiers.

    Args:
        own: from `runs_of`. published: from `read_published`.
    """
    standings: list[list[str]] = []
    found = []
    mine = own[(own["public_data"] == "") & own["epsilon"].notna()]
    for (dataset, profile), group in mine.groupby(["dataset", "profile"], sort=False):
        told = []
        for _, run in group.sort_values("epsilon", ascending=False).iterrows():
            here = published[(published["dataset"] == dataset) & (published["epsilon"] == run["epsilon"])]
            here = here[here["public_data"] == ""].sort_values("value", ascending=False, kind="stable")
            cnn, large = here[here["score"] == "cnn"].head(1), here[here["score"] == "best_of_three"].head(1)
            if cnn.empty:
                continue
            against = [cnn.iloc[0]] + [best for _, best in large.iterrows() if best["value"] > cnn.iloc[0]["value"]]
            places = [_against(run, best) for best in against]
            standings.append([standing for standing, _ in places])
            told.append(f"at ε = {run['epsilon']:g} " + ", and ".join(words for _, words in places))
        if told:
            found.append(f"{plots.DATASETS.get(str(dataset), dataset)}, {profile}: {'; '.join(told)}.")
    cnn, any_protocol = _counted([first for first, *_ in standings]), _counted([every[-1] for every in standings])
    head = (
        f"Places compared, without public data: {len(standings)}. Ours is {cnn} the best published CNN, and "
        f"{any_protocol} the best published by any protocol."
    )
    return [head, *found] if found else []


def _counted(standings: Sequence[str]) -> str:
    """'9 times ahead of, once level with, 2 times behind'."""
    counts = {words: standings.count(words) for words in ("ahead of", "level with", "behind")}
    return ", ".join(
        f"{'once' if count == 1 else f'{count} times'} {words}" for words, count in counts.items() if count
    )


def _against(run: pd.Series, best: pd.Series) -> tuple[str, str]:
    """The standing, and '**behind** DPDM by 1.3 points (84.9 against 86.2)'."""
    ours, theirs = ACCURACY.shown(run["cnn"]), ACCURACY.shown(best["value"])
    gap = round(ours - theirs, 1)
    standing = _standing(gap, higher=True)
    by = f" by {ACCURACY.apart.format(abs(gap))}" if gap else ""
    protocol = ", the best of three large classifiers" if best["score"] == "best_of_three" else ""
    return standing, f"**{standing}** {best['method']}{by} ({ours:.1f} against {theirs:.1f}{protocol})"


def beside_as_shown(beside: pd.DataFrame) -> pd.DataFrame:
    """`beside_published` for readers, texts with "–" where there is no number."""
    return _telling(
        _named(beside)
        | {
            "CNN, here (%)": [_number(100 * value) for value in beside["cnn"]],
            "CNN, quoted (%)": [_number(100 * value) for value in beside["quoted_cnn"]],
            "difference (points)": [_number(100 * value, "{:+.1f}") for value in beside["difference"]],
            "FID (Inception), here": [_number(value) for value in beside["fid_inception"]],
            "FID (Inception), quoted": [_number(value) for value in beside["quoted_fid"]],
            "quoted from": beside["quoted"] + ", " + beside["source"],
        }
    )


def repeats_in_words(beside: pd.DataFrame) -> list[str]:
    """What the re-runs gave against what is quoted, a sentence for each method, ε and profile."""
    found = []
    for (title, epsilon, profile), group in beside.groupby(["title", "epsilon", "profile"], sort=False):
        gaps = []
        for _, row in group[group["difference"].notna()].iterrows():
            gap = round(100 * row["difference"], 1)
            words = "as much as" if gap == 0 else f"{abs(gap):.1f} points {'more' if gap > 0 else 'less'} than"
            gaps.append(f"{words} “{row['quoted']}” ({100 * row['quoted_cnn']:.1f} %, {row['source']})")
        if gaps:
            here = ACCURACY.reads.format(ACCURACY.shown(group["cnn"].iloc[0]))
            found.append(f"{title} at ε = {epsilon:g} ({profile}) reaches {here} here: {_listed(gaps)}.")
    return found


def among_published(rows: pd.DataFrame, published: pd.DataFrame, epsilon: float) -> list[str]:
    """Where this book's method would stand among all quoted accuracies of a CNN at ε without public data, one sentence
    per profile; none where nobody has a figure at that ε, nor for a run on a part of the training images.

    Args:
        rows: from `measured`, of one data set.
        published: from `read_published`, of the same data set.
    """
    quoted = published[(published["score"] == "cnn") & (published["epsilon"] == epsilon)]
    quoted = quoted[quoted["public_data"] == ""]
    ours = rows[(rows["method"] == OWN) & (rows["public_data"] == "") & (rows["epsilon"] == epsilon)]
    ours = ours[ours["cnn"].notna() & ours["whole"].astype(bool)]
    if quoted.empty:
        return []
    best, found = quoted.loc[quoted["value"].idxmax()], []
    for _, own in ours.iterrows():
        here, highest = ACCURACY.shown(own["cnn"]), ACCURACY.shown(best["value"])
        lower = sum(ACCURACY.shown(value) < here for value in quoted["value"])
        gap = round(here - highest, 1)
        place = "as much as ours" if gap == 0 else f"{abs(gap):.1f} points {'below' if gap > 0 else 'above'} ours"
        found.append(
            f"At ε = {epsilon:g} ({own['profile']}) our {here:.1f} % is more than {lower} of {len(quoted)} quoted "
            f"figures. The highest of them is that of {best['method']} ({highest:.1f} %, {best['source']}), {place}."
        )
    return found


# --- what we aimed at -------------------------------------------------------------------------------------------------


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
        f"a data set out of {', '.join(data.DATASETS)}": ~found["dataset"].isin(list(data.DATASETS)),
        f"a profile out of {', '.join(PROFILES)}": ~found["profile"].isin(list(PROFILES)),
        "an accuracy from 0 to 1": ~found["accuracy"].between(0, 1),
        "one target for each place": found.duplicated(_TARGETS[:-1]),
    }
    for expected, rows in wrong.items():
        if rows.any():
            raise ValueError(f"{path}: expected {expected}, got line {rows.idxmax() + 2}; correct it")
    return found


def runs_of(records: Iterable[Mapping[str, Any]], method: str = OWN) -> pd.DataFrame:
    """A method on whole data sets, with the CNN: a row for each dataset, ε, profile and public data.

    Returns:
        `dataset`, `epsilon` (NaN without privacy), `profile`, `public_data` (empty for none), `seeds` (of the
        synthesis), `cnn` (mean over them of the mean over classifiers) and `spread` (one standard deviation over the
        seeds, NaN for one).
    """
    by_name = {results.record_name(record): record for record in records}
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
        shown[f"target, {profile}"] = [_number(100 * value) for value in aimed]
    public = sorted(set(own["public_data"]) - {""})
    for profile, used in [(profile, used) for used in ["", *public] for profile in profiles[::-1]]:
        mine = own[(own["profile"] == profile) & (own["public_data"] == used)].set_index(["dataset", "epsilon"])
        if not used or len(mine):
            shown[f"ours, {profile}{f', public data: {used}' if used else ''}"] = [
                _seeds_in_words(mine.loc[place]) if place in mine.index else NOTHING for place in places
            ]
    for name, runs in yardsticks.items():
        for profile in profiles[::-1]:
            free = runs[runs["profile"] == profile].set_index("dataset")
            if len(free):
                shown[f"{name}, {profile}"] = [
                    _seeds_in_words(free.loc[dataset]) if dataset in free.index else NOTHING for dataset, _ in places
                ]
    table = pd.DataFrame.from_dict(shown, orient="index", columns=[_place_in_words(*place) for place in places])
    return table.rename_axis("CNN (%)").reset_index()


def _place_in_words(dataset: str, epsilon: float) -> str:
    return f"{plots.DATASETS.get(dataset, dataset)}, ε = {epsilon:g}"


def _seeds_in_words(run: pd.Series) -> str:
    spread = "" if math.isnan(run["spread"]) else f"\u00a0±\u00a0{100 * run['spread']:.1f}"
    return f"{100 * run['cnn']:.1f}{spread} ({run['seeds']}\u00a0seed{'s' if run['seeds'] > 1 else ''})"


def _quoted(published: pd.DataFrame, place: tuple[str, float], method: str) -> str:
    rows = published[(published["dataset"] == place[0]) & (published["epsilon"] == place[1])]
    values = rows[(rows["method"] == method) & (rows["score"] == "cnn")]["value"]
    return _number(100 * values.max()) if len(values) else NOTHING


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
        found.append(f"{plots.DATASETS.get(str(dataset), dataset)}, {profile}: {'; '.join(told)}.")
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
    names = found["title"] + ", " + found["profile"]
    places = sorted(set(zip(found["dataset"], found["epsilon"], strict=True)), key=_by_data_set)
    values = found.assign(name=names).set_index(["name", "dataset", "epsilon"])["fid_classifier"]
    shown = {
        name: [_number(values[(name, *place)]) if (name, *place) in values.index else NOTHING for place in places]
        for name in names.iloc[np.argsort(found["method"] == OWN, kind="stable")].drop_duplicates()
    }
    table = pd.DataFrame.from_dict(shown, orient="index", columns=[_place_in_words(*place) for place in places])
    return table.rename_axis("Fréchet distance").reset_index()


def distances_in_words(rows: pd.DataFrame) -> list[str]:
    """Whether our distance is at most half of that of every method in `TO_HALVE`: one sentence for each data set and
    profile of ours, the least of the others beside it, also of those at a smaller ε, which are private at ours as well.

    Args:
        rows: from `measured`.
    """
    found = _to_halve(rows)
    others, sentences = found[found["method"] != OWN], []
    for (dataset, profile), mine in found[found["method"] == OWN].groupby(["dataset", "profile"]):
        told = []
        for _, run in mine.sort_values("epsilon", ascending=False).iterrows():
            allowed = (others["epsilon"] <= run["epsilon"]) & (others["delta"] <= run["delta"])
            here = others[(others["dataset"] == dataset) & allowed]
            if here.empty:
                continue
            names = set(here[here["epsilon"] == run["epsilon"]]["method"])
            missing = [_title(name) for name in TO_HALVE if name not in names]
            without = f" ({_listed(missing)} not measured)" if missing else ""
            told.append(f"at ε = {run['epsilon']:g}, {_against_least(run, here, 'fid_classifier', without)}")
            if (finished := here.dropna(subset="finished_fid_classifier")).size:
                told[-1] += f" ({_against_least(run, finished, 'finished_fid_classifier', ' finished like ours')})"
        if told:
            sentences.append(f"{plots.DATASETS.get(str(dataset), dataset)}, {profile}: {'; '.join(told)}.")
    return sentences


def _against_least(own: pd.Series, others: pd.DataFrame, column: str, note: str) -> str:
    """'x against y of A: halved', where A has the least distance of all, maybe at a smaller ε."""
    least = others.loc[others[column].idxmin()]
    ours, theirs = DISTANCE.shown(own["fid_classifier"]), DISTANCE.shown(least[column])
    verdict = "halved" if ours <= theirs / 2 else "less, not halved" if ours < theirs else "not less"
    smaller = f" at ε = {least['epsilon']:g}" if least["epsilon"] < own["epsilon"] else ""
    return f"{ours} against {theirs} of {least['title']}{smaller}{note}: {verdict}"


def _to_halve(rows: pd.DataFrame) -> pd.DataFrame:
    """Private runs of ours and of `TO_HALVE` on whole public data sets that have a distance, without public data."""
    kept = rows["whole"].astype(bool) & rows["method"].isin([OWN, *TO_HALVE]) & (rows["public_data"] == "")
    kept &= rows["dataset"].isin(data.DATASETS)
    return rows[kept & np.isfinite(rows["epsilon"]) & rows["fid_classifier"].notna()]


def _by_data_set(place: tuple[str, float]) -> tuple[int, float]:
    return list(data.DATASETS).index(place[0]), -place[1]


# --- what each ingredient buys ----------------------------------------------------------------------------------------


def of_one_profile(effects: pd.DataFrame, dataset: str, profile: str) -> pd.DataFrame:
    """The rows of `dpldm.ablation.effects` of a data set in that profile; where it has none, in the first that has."""
    here = effects[effects["dataset"] == dataset]
    found = [name for name in (profile, *PROFILES) if (here["profile"] == name).any()]
    return here[here["profile"] == found[0]] if found else here


def ingredients_as_shown(effects: pd.DataFrame) -> pd.DataFrame:
    """Variations for readers, the ε side by side: accuracy, Fréchet distance, and what each gains on the default.

    Args:
        effects: from `dpldm.ablation.effects`, of one data set and profile.
    """
    budgets = sorted(set(effects["epsilon"]), reverse=True)
    known = {epsilon: effects[effects["epsilon"] == epsilon].set_index("title") for epsilon in budgets}
    titles = list(dict.fromkeys(effects["title"]))
    public = effects.groupby("title")["public_data"].first()
    named = [name + (f" (public data: {public[name]})" if public[name] else "") for name in titles]
    columns = {"what is changed": named}
    for epsilon, rows in known.items():
        rows = rows.reindex(titles)
        gains = rows[["cnn_gain", "fid_classifier_gain"]].where(rows["name"] != ablation.DEFAULT)
        columns |= {
            f"CNN (%), ε = {epsilon:g}": _with_spread(rows, "cnn", 100),
            f"gain, ε = {epsilon:g}": [_number(100 * gain, "{:+.1f}") for gain in gains["cnn_gain"]],
            f"FID, ε = {epsilon:g}": _with_spread(rows, "fid_classifier", 1),
            f"FID is, ε = {epsilon:g}": [_lower_or_higher(change) for change in gains["fid_classifier_gain"]],
        }
    return pd.DataFrame(columns)


def commands_for_ingredients(effects: pd.DataFrame, dataset: str, profile: str, budgets: Sequence[float]) -> str:
    """How to measure those of `dpldm.ablation.variations` that have no row at these ε, in Markdown.

    Args:
        effects: from `of_one_profile`. profile: of the build; named where no profile has any row.
    """
    named = profile if effects.empty else effects["profile"].iloc[0]
    missing = [
        epsilon
        for epsilon in budgets
        if set(ablation.variations(dataset, epsilon, named)) - set(effects["name"][effects["epsilon"] == epsilon])
    ]
    if not missing:
        return "Everything on the list is measured."
    commands = [f"dpldm ablation --dataset {dataset} --epsilon {epsilon:g} --profile {named}" for epsilon in missing]
    at = _listed([f"ε = {epsilon:g}" for epsilon in missing])
    return "Not everything on the list is measured at {}. To add what is missing:\n\n```\n{}\n```".format(
        at, "\n".join(commands)
    )


def ingredients_in_words(effects: pd.DataFrame, epsilon: float) -> list[str]:
    """What the ablation found at ε, a sentence for each thing that was measured; none where there is no default.

    Args:
        effects: from `dpldm.ablation.effects`, of one data set and profile.
    """
    rows = effects[effects["epsilon"] == epsilon].set_index("name")
    if ablation.DEFAULT not in rows.index:
        return []
    base = rows.loc[ablation.DEFAULT]
    seeds = f"{base['seeds']} seed{'s' if base['seeds'] > 1 else ''}"
    found = [
        f"At ε = {epsilon:g} ({base['profile']}, {seeds}) the settings of the profile reach "
        f"{100 * base['cnn']:.1f} % with the CNN on held-out images, at a distance of {base['fid_classifier']:.1f}."
    ]
    changed = rows.drop(index=[ablation.DEFAULT, *ablation.YARDSTICKS], errors="ignore")
    for score, what in ((ACCURACY, "accuracy"), (DISTANCE, "distance")):
        if told := _gains(changed, score):
            found.append(f"In {what}, {told}.")
    return [*found, *_costs(rows, epsilon), _chance(base)]


def _gains(changed: pd.DataFrame, score: Score) -> str:
    """'better is A (+x) ; worse is B (-y); no different is C'."""
    places: dict[str, list[str]] = {"better than the profile": [], "worse": [], "no different": []}
    for _, row in changed.sort_values(f"{score.key}_gain", ascending=not score.higher).iterrows():
        gain, spread = score.shown(row[f"{score.key}_gain"]), row[f"{score.key}_gain_spread"]
        if not math.isnan(gain):
            place = (
                "no different" if gain == 0 else "better than the profile" if (gain > 0) == score.higher else "worse"
            )
            scatter = "" if math.isnan(spread) else f" ± {score.scale * spread:.1f}"
            public = ", with public data" if row["public_data"] else ""
            places[place].append(f"{row['title']} ({gain + 0.0:+.1f}{scatter}{public})")
    return "; ".join(f"{place}: {', '.join(names)}" for place, names in places.items() if names)


def _costs(rows: pd.DataFrame, epsilon: float) -> list[str]:
    """What privacy costs, and what compression costs."""
    pairs = (
        ("Privacy", "non-private", "The same architecture without noise", ablation.DEFAULT, f"at ε = {epsilon:g}"),
        ("Compression", "real", "A CNN trained on real images", "reconstructed", "on real images through stage 1"),
    )
    found = []
    for what, best, first, less, second in pairs:
        if {best, less} <= set(rows.index):
            scores = [
                (ACCURACY.shown(rows.loc[name, "cnn"]), rows.loc[name, "fid_classifier"]) for name in (best, less)
            ]
            (high, near), (low, far) = scores
            gap = round(high - low, 1)
            cost = f"{what} costs {gap:.1f} points." if gap > 0 else f"{what} costs nothing that shows."
            reached = f"{first} reaches {high:.1f} % (distance {near:.1f})"
            found.append(f"{cost} {reached}; {second} it is {low:.1f} % ({far:.1f}).")
    return found


def _chance(base: pd.Series) -> str:
    if math.isnan(base["cnn_spread"]):
        return "One seed: nothing here tells a small difference from chance."
    return (
        f"From seed to seed the profile's own accuracy scatters by ± {100 * base['cnn_spread']:.1f} points, its "
        f"distance by ± {base['fid_classifier_spread']:.1f}."
    )


# --- the methods, and what they draw ----------------------------------------------------------------------------------


def index_of_methods() -> str:
    """All methods of `dpldm.methods.METHODS` as a Markdown table: name, title, what it does, citation, and under
    which names others give figures of it."""
    lines = ["| name | method | what it does | from | quoted here as |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        source = f"{{cite:t}}`{method.citation}`" if method.citation else "this book"
        quoted = ", ".join(method.published) or NOTHING
        lines.append(f"| `{name}` | {_title(name)} | {method.about} | {source} | {quoted} |")
    return "\n".join(lines)


def samples(
    rows: pd.DataFrame,
    epsilon: float,
    folders: Sequence[Path],
    image_shape: tuple[int, int, int],
    each: int = 2,
) -> dict[str, np.ndarray]:
    """The first images of every class by every method at ε and by the yardsticks, from the grids beside the records.

    Args:
        rows: from `measured`, of one data set.
        folders: of records, the first that has the grid counts; a run whose grid is in none is left out.
        image_shape: (C, H, W).
        each: images of every class, 1 to 10.

    Returns:
        Name of the method → (classes · ``each``, C, H, W) in [0, 1], by class; all of the same labels.
    """
    found = {}
    wanted = rows[(rows["epsilon"] == epsilon) | ~rows["private"]]
    order = [*METHODS, *wanted["method"]]
    for _, run in sorted(wanted.iterrows(), key=lambda item: order.index(item[1]["method"])):
        grids = [folder / Path(run["records"][0]).with_suffix(".png") for folder in folders]
        grid = next((path for path in grids if path.is_file()), None)
        if grid is not None:
            public = f" + {run['public_data']}" if run["public_data"] else ""
            profile = f" ({run['profile']})" if wanted["profile"].nunique() > 1 else ""
            images = plots.read_grid_png(grid, image_shape)[:, :each]
            found[run["method"] + public + profile] = images.reshape(-1, *image_shape)
    return found
