"""Figures quoted from others, beside what was measured here."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dpldm.book import style
from dpldm.book.comparison import FAR_BELOW, OURS, named_methods, standing_of, telling
from dpldm.book.words import ACCURACY, listed, with_decimal
from dpldm.methods import METHODS, profile_title

_PUBLISHED = ["dataset", "method", "epsilon", "score", "value", "public_data", "source"]


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
            found.append(
                f"{style.DATASETS.get(str(dataset), dataset)}, {profile_title(str(profile))}: {'; '.join(told)}."
            )
    cnn, any_protocol = _counted([first for first, *_ in standings]), _counted([every[-1] for every in standings])
    head = (
        f"Places compared, without public data: {len(standings)}. Ours is {cnn} the best published CNN, and "
        f"{any_protocol} the best published by any protocol."
    )
    return [head, *found] if found else []


def latent_gaps(published: pd.DataFrame) -> pd.DataFrame:
    """Latent diffusions that were pre-trained on public photographs, against methods on pixels that used the same.

    Args:
        published: from `read_published`. Those on latents are called "(latent)" there.

    Returns:
        `dataset`, `epsilon`, the best of each kind (`latent`, `pixels`), what it scores as a fraction of 1
        (`latent_value`, `pixels_value`: the best of three large classifiers), and `gap`, by how many points latents are
        behind; a row for each place that has both.
    """
    large = published[published["score"] == "best_of_three"]
    on_latents = large["method"].str.endswith("(latent)")
    found = []
    for (dataset, epsilon, used), here in large[on_latents].groupby(["dataset", "epsilon", "public_data"], sort=False):
        others = large[
            ~on_latents & (large[["dataset", "epsilon", "public_data"]] == [dataset, epsilon, used]).all(axis=1)
        ]
        if len(others):
            ours, theirs = here.loc[here["value"].idxmax()], others.loc[others["value"].idxmax()]
            gap = round(ACCURACY.shown(theirs["value"]) - ACCURACY.shown(ours["value"]), 1)
            found.append((dataset, epsilon, ours["method"], theirs["method"], ours["value"], theirs["value"], gap))
    columns = ["dataset", "epsilon", "latent", "pixels", "latent_value", "pixels_value", "gap"]
    return pd.DataFrame(found, columns=columns)


def latent_in_words(published: pd.DataFrame) -> list[str]:
    """`latent_gaps` in words, a sentence for each data set, largest ε first."""
    sentences = []
    for dataset, group in latent_gaps(published).groupby("dataset", sort=False):
        told = []
        for _, row in group.sort_values("epsilon", ascending=False).iterrows():
            by = f" by {ACCURACY.apart.format(abs(row['gap']))}" if row["gap"] else ""
            ours, theirs = (
                ACCURACY.reads.format(ACCURACY.shown(row[f"{kind}_value"])) for kind in ("latent", "pixels")
            )
            standing = standing_of(-row["gap"], higher=True)
            told.append(
                f"at ε = {row['epsilon']:g} {row['latent']} ({ours}) is {standing} {row['pixels']} ({theirs}){by}"
            )
        sentences.append(f"{style.DATASETS.get(str(dataset), dataset)}: {'; '.join(told)}.")
    return sentences


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
    standing = standing_of(gap, higher=True)
    by = f" by {ACCURACY.apart.format(abs(gap))}" if gap else ""
    protocol = ", the best of three large classifiers" if best["score"] == "best_of_three" else ""
    return standing, f"**{standing}** {best['method']}{by} ({ours:.1f} against {theirs:.1f}{protocol})"


def beside_as_shown(beside: pd.DataFrame) -> pd.DataFrame:
    """`beside_published` for readers, texts with "–" where there is no number."""
    return telling(
        named_methods(beside)
        | {
            "CNN, here (%)": [with_decimal(100 * value) for value in beside["cnn"]],
            "CNN, quoted (%)": [with_decimal(100 * value) for value in beside["quoted_cnn"]],
            "difference (points)": [with_decimal(100 * value, "{:+.1f}") for value in beside["difference"]],
            "FID (Inception), here": [with_decimal(value) for value in beside["fid_inception"]],
            "FID (Inception), quoted": [with_decimal(value) for value in beside["quoted_fid"]],
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
            found.append(f"{title} at ε = {epsilon:g} ({profile_title(profile)}) reaches {here} here: {listed(gaps)}.")
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
    ours = rows[(rows["method"] == OURS) & (rows["public_data"] == "") & (rows["epsilon"] == epsilon)]
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
            f"At ε = {epsilon:g} ({profile_title(own['profile'])}) our {here:.1f} % is more than {lower} of "
            f"{len(quoted)} quoted figures. The highest of them is that of {best['method']} ({highest:.1f} %, "
            f"{best['source']}), {place}."
        )
    return found
