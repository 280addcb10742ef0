"""What each ingredient buys, from the ablation."""

import math
from collections.abc import Sequence

import pandas as pd

from dpldm.book.words import ACCURACY, DISTANCE, Score, listed, lower_or_higher, with_decimal, with_spread
from dpldm.data import datasets
from dpldm.methods import PROFILES, profile_title
from dpldm.runs import variations


def by_data_set(place: tuple[str, float]) -> tuple[int, float]:
    """The order of rows: data sets as they are listed, largest ε first."""
    return list(datasets.DATASETS).index(place[0]), -place[1]


def of_one_profile(effects: pd.DataFrame, dataset: str, profile: str) -> pd.DataFrame:
    """The rows of `ablation.effects` of a data set in that profile; where it has none, in the first that has."""
    here = effects[effects["dataset"] == dataset]
    found = [name for name in (profile, *PROFILES) if (here["profile"] == name).any()]
    return here[here["profile"] == found[0]] if found else here


def ingredients_as_shown(effects: pd.DataFrame) -> pd.DataFrame:
    """Variations for readers, the ε side by side: accuracy, Fréchet distance, and what each gains on the default.

    Args:
        effects: from `dpldm.runs.ablation.effects`, of one data set and profile.
    """
    budgets = sorted(set(effects["epsilon"]), reverse=True)
    known = {epsilon: effects[effects["epsilon"] == epsilon].set_index("title") for epsilon in budgets}
    titles = list(dict.fromkeys(effects["title"]))
    public = effects.groupby("title")["public_data"].first()
    named = [name + (f" (public data: {public[name]})" if public[name] else "") for name in titles]
    columns = {"what is changed": named}
    for epsilon, rows in known.items():
        rows = rows.reindex(titles)
        gains = rows[["cnn_gain", "fid_classifier_gain"]].where(rows["name"] != variations.DEFAULT)
        columns |= {
            f"CNN (%), ε = {epsilon:g}": with_spread(rows, "cnn", 100),
            f"gain, ε = {epsilon:g}": [with_decimal(100 * gain, "{:+.1f}") for gain in gains["cnn_gain"]],
            f"FID, ε = {epsilon:g}": with_spread(rows, "fid_classifier", 1),
            f"FID is, ε = {epsilon:g}": [lower_or_higher(change) for change in gains["fid_classifier_gain"]],
        }
    return pd.DataFrame(columns)


def commands_for_ingredients(effects: pd.DataFrame, dataset: str, profile: str, budgets: Sequence[float]) -> str:
    """How to measure those of `dpldm.runs.variations.variations` that have no row at these ε, in Markdown.

    Args:
        effects: from `of_one_profile`. profile: of the build; named where no profile has any row.
    """
    named = profile if effects.empty else effects["profile"].iloc[0]
    missing = [
        epsilon
        for epsilon in budgets
        if set(variations.variations(dataset, epsilon, named)) - set(effects["name"][effects["epsilon"] == epsilon])
    ]
    if not missing:
        return "Everything on the list is measured."
    commands = [f"dpldm ablation --dataset {dataset} --epsilon {epsilon:g} --profile {named}" for epsilon in missing]
    at = listed([f"ε = {epsilon:g}" for epsilon in missing])
    return "Not everything on the list is measured at {}. To add what is missing:\n\n```\n{}\n```".format(
        at, "\n".join(commands)
    )


def ingredients_in_words(effects: pd.DataFrame, epsilon: float) -> list[str]:
    """What the ablation found at ε, a sentence for each thing that was measured; none where there is no default.

    Args:
        effects: from `dpldm.runs.ablation.effects`, of one data set and profile.
    """
    rows = effects[effects["epsilon"] == epsilon].set_index("name")
    if variations.DEFAULT not in rows.index:
        return []
    base = rows.loc[variations.DEFAULT]
    seeds = f"{base['seeds']} seed{'s' if base['seeds'] > 1 else ''}"
    found = [
        f"At ε = {epsilon:g} ({profile_title(base['profile'])}, {seeds}) the settings of the profile reach "
        f"{100 * base['cnn']:.1f} % with the CNN on held-out images, at a distance of {base['fid_classifier']:.1f}."
    ]
    changed = rows.drop(index=[variations.DEFAULT, *variations.YARDSTICKS], errors="ignore")
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
        ("Privacy", "non-private", "The same architecture without noise", variations.DEFAULT, f"at ε = {epsilon:g}"),
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
