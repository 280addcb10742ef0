"""Ours and rivals that were re-run here, side by side. A join of records and methods.

What was measured under one protocol is kept apart from what is only quoted. The sentences are made from records and
hold whichever way these fall; where a record is missing, nothing is said.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpldm.book import instruments
from dpldm.book.words import (
    ACCURACY,
    DISTANCE,
    NOT_RUN,
    NOTHING,
    Score,
    budget_in_words,
    listed,
    with_decimal,
    with_spread,
)
from dpldm.data import datasets
from dpldm.method.finishing import Finishable
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.methods import METHODS, profile_title
from dpldm.recipes import finishing_for
from dpldm.records import tables
from dpldm.records.grids import read_grid_png
from dpldm.records.names import record_name
from dpldm.records.settings import to_json
from dpldm.runs.chosen import made_today

OURS = LatentDiffusion.method
FAR_BELOW = 2.0  # points of accuracy that a re-run may miss its published figure by before that is said beside it
_PLACE = ["dataset", "method", "public_data", "profile", "epsilon"]


# --- what was measured ------------------------------------------------------------------------------------------------


def measured(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per dataset, method, public data, profile and ε.

    Of runs that differ in their settings, those stand in the table that `dpldm run` makes today; else those with most
    seeds. A rival's images stand there as it makes them; what they score when they are finished like ours
    (`dpldm run --finished`) has columns of its own.

    Returns:
        A frame with the columns of `dpldm.records.tables.table` and: `title` (what readers call the method, with the
        public data of a variant that has some), `private` (False for a yardstick), `making` (seconds to fit and draw,
        without the evaluation; the mean over runs), `parameters` (numbers in the fitted model, NaN in old records),
        `protocol` (equal for runs on the same data that were scored in the same way), `whole` (whether all training
        images were used), `device` (a tuple), `can_be_finished` (whether it is a rival on images that ours have a
        finish for), `peers` and `peers_spread` (the best of three large classifiers, see
        `dpldm.book.instruments.by_peers`) and `finished_cnn`, `finished_fid_classifier`, each with its `…_spread` (of
        the same fit, with today's finish; NaN where that was not run). Largest ε first, yardsticks last, then by
        accuracy.
    """
    everything = list(records)
    by_name = {record_name(record): record for record in everything if tables.finishing(record) is None}
    table = tables.table(by_name.values())
    runs = [[by_name[name] for name in names] for names in table["records"]]
    table = table.assign(
        title=[_title_of(group[0]) for group in runs],
        private=[name not in METHODS or METHODS[name].private for name in table["method"]],
        making=[float(np.mean([_making(run) for run in group])) for group in runs],
        parameters=[float(group[0]["metrics"].get("parameters", math.nan)) for group in runs],
        protocol=[_protocol(group[0]) for group in runs],
        whole=[group[0]["settings"].get("limit") is None for group in runs],
        device=[tuple(sorted({run["device"] for run in group})) for group in runs],
        **instruments.by_peers(runs),
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
        given = tables.finishing(record)
        if given and _can_be_finished(record) and given == _finish_of_ours(record):
            plain = {key: value for key, value in record["settings"]["synthesis"].items() if key != "finishing"}
            twins.append({**record, "settings": record["settings"] | {"synthesis": plain}})
    scores = [f"{score.key}{suffix}" for score in (ACCURACY, DISTANCE) for suffix in ("", "_spread")]
    return tables.table(twins).set_index("variant")[scores].astype(float).add_prefix("finished_")


def _can_be_finished(record: Mapping[str, Any]) -> bool:
    method = METHODS.get(record["method"])
    return method is not None and issubclass(method.settings, Finishable) and record["dataset"] in datasets.DATASETS


def _finish_of_ours(record: Mapping[str, Any]) -> dict[str, Any]:
    known = datasets.DATASETS[record["dataset"]].known
    return to_json(finishing_for(known, record["privacy"]["epsilon_target"]))


def method_title(method: str) -> str:
    """What readers call a method; its name where it has no title."""
    return (METHODS[method].title if method in METHODS else "") or method


def _title_of(record: Mapping[str, Any]) -> str:
    """A variant that learned from public data has a name of its own."""
    return method_title(record["method"]) + (f", {record['public_data']}" if record["public_data"] else "")


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
    return telling(
        named_methods(rows)
        | {
            "CNN (%)": with_spread(rows, "cnn", 100),
            "below published (points)": _below_published(rows),
            "CNN, finished (%)": _with_finish(rows, "cnn", 100),
            "FID (classifier)": with_spread(rows, "fid_classifier", 1),
            "FID, finished": _with_finish(rows, "fid_classifier", 1),
            "FID (Inception)": with_spread(rows, "fid_inception", 1),
            "best of three (%)": with_spread(rows, "peers", 100),
            "time (s)": [f"{seconds:,.1f}" if seconds < 9.95 else f"{seconds:,.0f}" for seconds in rows["making"]],
            "parameters": [with_decimal(value, "{:,.0f}") for value in rows["parameters"]],
            "public data": [name or "none" for name in rows["public_data"]],
        }
    )


def classifiers_as_shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows with all classifiers and the number of seeds."""
    return telling(
        named_methods(rows)
        | {
            "seeds": rows["seeds"].astype(str),
            "CNN (%)": with_spread(rows, "cnn", 100),
            "MLP (%)": with_spread(rows, "mlp", 100),
            "logistic regression (%)": with_spread(rows, "logreg", 100),
        }
    )


def named_methods(rows: pd.DataFrame) -> dict[str, Any]:
    """The columns that say whose a row is."""
    return {
        "method": rows["title"],
        "ε": [budget_in_words(epsilon) for epsilon in rows["epsilon"]],
        "profile": rows["profile"].map(profile_title),
    }


def telling(columns: Mapping[str, Any]) -> pd.DataFrame:
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


def _below_published(rows: pd.DataFrame) -> list[str]:
    return [with_decimal(gap) for gap in rows["shortfall"]] if "shortfall" in rows else [NOTHING] * len(rows)


def _with_finish(rows: pd.DataFrame, score: str, scale: float) -> list[str]:
    """Scores of rivals whose images are finished like ours, in words where that was not run; "–" for all others."""
    cells = zip(rows["can_be_finished"], with_spread(rows, f"finished_{score}", scale), strict=True)
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
                found[method_title(name) + at] = command
    return found


def missing_in_words(rows: pd.DataFrame, dataset: str, profile: str, budgets: Sequence[float]) -> str:
    """`commands_for_missing` for the page, in Markdown; one sentence where nothing is missing."""
    missing = commands_for_missing(rows, dataset, profile, budgets)
    if not missing:
        return f"Every method has its record in the profile {profile_title(profile)}."
    commands = "\n".join(missing.values())
    return (
        f"No record yet in the profile {profile_title(profile)}: {'; '.join(missing)}. Until there is one, nothing "
        f"is said of it. To make them:\n\n```\n{commands}\n```"
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
    ours = here[(here["method"] == OURS) & (here["public_data"] == "") & (here["epsilon"] == epsilon)]
    found = []
    for _, own in ours.iterrows():
        same = here[(here["protocol"] == own["protocol"]) & (here["profile"] == own["profile"])]
        rivals = same[(same["method"] != OURS) & (same["epsilon"] == epsilon) & (same["delta"] == own["delta"])]
        places = [_standings(own, others, score) for others in (rivals, same[~same["private"]])]
        if any(places):
            reached = score.reached.format(score.shown(own[score.key]))
            text = f"At ε = {epsilon:g} ({profile_title(own['profile'])}) the method of this book {reached}"
            text += f". Of the methods re-run here it is {places[0]}" if places[0] else ""
            found.append(text + (f". Of the yardsticks it is {places[1]}." if places[1] else "."))
    return found


def finished_in_words(rows: pd.DataFrame, epsilon: float) -> list[str]:
    """Sentences on what rivals at ε gain when their images are finished like ours, and how ours stand to them then,
    one per profile; the same runs are compared as in `claims`.

    Args:
        rows: from `measured`, of one data set.
    """
    ours = rows[(rows["method"] == OURS) & (rows["public_data"] == "") & (rows["epsilon"] == epsilon)]
    found = []
    for _, own in ours.dropna(subset=["cnn", "fid_classifier"]).iterrows():
        same = rows[(rows["protocol"] == own["protocol"]) & (rows["profile"] == own["profile"])]
        rivals = same[same["can_be_finished"] & (same["epsilon"] == epsilon) & (same["delta"] == own["delta"])]
        run = rivals.dropna(subset=["finished_cnn", "finished_fid_classifier"])
        told = [_gain_of_finish(own, rival) for _, rival in run.iterrows()]
        if rest := [rival["title"] for _, rival in rivals.iterrows() if rival["title"] not in set(run["title"])]:
            told.append(f"{listed(rest)} {NOT_RUN}")
        if told:
            found.append(
                f"At ε = {epsilon:g} ({profile_title(own['profile'])}), finished like ours: {'; '.join(told)}."
            )
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
        told.append(f"{said} ({standing_of(gap, score.higher)} ours{by})")
    return f"{rival['title']} goes {' and '.join(told)}"


def _standings(own: pd.Series, others: pd.DataFrame, score: Score) -> str:
    """'ahead of A (x) by n and B (y) by m; behind C (z) by k'; empty where there is nobody."""
    places: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
    for _, other in others.sort_values(score.key, ascending=not score.higher).iterrows():
        gap = round(score.shown(own[score.key]) - score.shown(other[score.key]), 1)
        words = standing_of(gap, score.higher)
        by = f" by {score.apart.format(abs(gap))}" if gap else ""
        scatter = _scatter(own, other, score) if gap else ""
        value = score.reads.format(score.shown(other[score.key]))
        places[words].append(f"{other['title']} ({value}{_small(other)}){by}{scatter}")
    return "; ".join(f"{words} {listed(names)}" for words, names in places.items() if names)


def _small(run: pd.Series) -> str:
    """What has to be said of a re-run that is no fair copy of what was published."""
    gap = run.get("shortfall", math.nan)
    return "" if math.isnan(gap) else f", a small re-run, {ACCURACY.apart.format(gap)} below its published CNN"


def standing_of(gap: float, higher: bool) -> str:
    """A gap in a word: ahead, behind or level."""
    if gap == 0:
        return "level with"
    return "ahead of" if (gap > 0) == higher else "behind"


def _scatter(own: pd.Series, other: pd.Series, score: Score) -> str:
    spread = math.hypot(own[f"{score.key}_spread"], other[f"{score.key}_spread"])  # NaN where one is not known
    return ", less than they scatter" if abs(own[score.key] - other[score.key]) < spread else ""


# --- the methods, and what they draw ----------------------------------------------------------------------------------


def index_of_methods() -> str:
    """All methods of `dpldm.methods.METHODS` as a Markdown table: name, title, what it does, citation, and under
    which names others give figures of it."""
    lines = ["| name | method | what it does | from | quoted here as |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        source = f"{{cite:t}}`{method.citation}`" if method.citation else "this book"
        quoted = ", ".join(method.published) or NOTHING
        lines.append(f"| `{name}` | {method_title(name)} | {method.about} | {source} | {quoted} |")
    return "\n".join(lines)


def samples(
    rows: pd.DataFrame,
    epsilon: float,
    folders: Sequence[Path],
    image_shape: tuple[int, int, int],
    each: int = 1,
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
            profile = f" ({profile_title(run['profile'])})" if wanted["profile"].nunique() > 1 else ""
            images = read_grid_png(grid, image_shape)[:, :each]
            found[run["method"] + public + profile] = images.reshape(-1, *image_shape)
    return found
