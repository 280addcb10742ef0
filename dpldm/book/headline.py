"""The first page's few lines and rows: this book, the best published without public data, DP-Sinkhorn, real images.

All else is on the comparison's page. Values come from records and from quoted figures, and words follow them, whichever
way they fall; what is missing is left out.
"""

import pandas as pd

from dpldm.book import style
from dpldm.book.words import ACCURACY, NOTHING
from dpldm.methods import METHODS, profile_title

THIS_BOOK = "this book"
BEST = "best published without public data"
SINKHORN = "DP-Sinkhorn, published"
REAL = "real images, no privacy"
LARGER = "†"  # the best of three larger classifiers: a more favourable protocol than a CNN
REPEATED = "‡"  # as others repeated it
_LINES = ["line", "method", "epsilon", "accuracy", "mark"]


def drawn_profile(own: pd.DataFrame, profile: str) -> str:
    """The profile whose runs are shown: the one asked for, or `quick` where it has no run on all images, as `smoke`."""
    return profile if (own["profile"] == profile).any() else "quick"


def lines(own: pd.DataFrame, real: pd.DataFrame, published: pd.DataFrame, profile: str) -> pd.DataFrame:
    """The four lines of the first figure, accuracy of a CNN against ε.

    Args:
        own, real: from `dpldm.book.targets.runs_of`, of this book's method and of real images, of one data set.
        published: from `dpldm.book.published.read_published`, of the same data set.
        profile: of this book's line and of the yardstick.

    Returns:
        `line` (what readers call it), `method` (whose figure it is), `epsilon` (infinite for real images), `accuracy`
        (a fraction of 1) and `mark` (`LARGER`, `REPEATED` or empty); a row for each point, in each line the least ε
        first. A line without points is missing.
    """
    mine = own[(own["profile"] == profile) & (own["public_data"] == "")]
    here = mine.assign(line=THIS_BOOK, method=THIS_BOOK, accuracy=mine["cnn"], mark="")
    yardstick = real[real["profile"] == profile]
    above = yardstick.assign(line=REAL, method=REAL, accuracy=yardstick["cnn"], mark="")
    quoted = [_highest(published, ["cnn", "best_of_three"]).assign(line=BEST), _sinkhorn(published)]
    points = pd.concat([frame[_LINES] for frame in (here, *quoted, above)], ignore_index=True)
    order = [THIS_BOOK, BEST, SINKHORN, REAL]
    return points.sort_values(["line", "epsilon"], key=lambda key: key.map(order.index) if key.name == "line" else key)


def _highest(published: pd.DataFrame, scores: list[str]) -> pd.DataFrame:
    """The highest accuracy at each ε without public data: `method`, `epsilon`, `accuracy`, `mark`."""
    rows = published[published["score"].isin(scores) & (published["public_data"] == "")]
    best = rows.loc[rows.groupby("epsilon")["value"].idxmax()]
    larger = best["score"].map({"cnn": "", "best_of_three": LARGER})
    return best.assign(accuracy=best["value"], mark=larger)[["method", "epsilon", "accuracy", "mark"]]


def _sinkhorn(published: pd.DataFrame) -> pd.DataFrame:
    first, *_ = names = METHODS["dp-sinkhorn"].published
    found = _highest(published[published["method"].isin(names)], ["cnn"])
    return found.assign(line=SINKHORN, mark=found["method"].map(lambda name: "" if name == first else REPEATED))


def as_shown(
    own: pd.DataFrame, real: pd.DataFrame, published: pd.DataFrame, profile: str, epsilon: float
) -> pd.DataFrame:
    """At most six rows for readers: accuracy of a CNN in per cent at each ε of published figures and of the build.

    Args:
        own, real, published: as for `lines`, of one data set. profile: of the yardstick. epsilon: of the build.
    """
    rows: dict[str, pd.DataFrame] = {}
    for name in ("quick", "paper"):
        mine = own[(own["profile"] == name) & (own["public_data"] == "")]
        rows[f"{THIS_BOOK}, {profile_title(name)}"] = mine.assign(accuracy=mine["cnn"], mark="")
    rows["best published, CNN"] = _highest(published, ["cnn"])
    rows[f"best published, larger classifiers{LARGER}"] = _highest(published, ["best_of_three"]).assign(mark="")
    rows[SINKHORN] = _sinkhorn(published)
    budgets = sorted({*rows["best published, CNN"]["epsilon"], epsilon})
    shown = {}
    for name, found in rows.items():
        at = found.set_index("epsilon")
        shown[name] = [_cell(at.loc[budget]) if budget in at.index else NOTHING for budget in budgets]
    for accuracy in real[real["profile"] == profile]["cnn"]:  # one, the same at every ε
        shown[REAL] = [f"{ACCURACY.shown(accuracy):.1f}"] * len(budgets)
    told = {name: cells for name, cells in shown.items() if set(cells) != {NOTHING}}
    table = pd.DataFrame.from_dict(told, orient="index", columns=[f"ε\u00a0=\u00a0{budget:g}" for budget in budgets])
    return table.rename_axis("CNN, % right").reset_index()


def _cell(point: pd.Series) -> str:
    return f"{ACCURACY.shown(point['accuracy']):.1f}{point['mark']}"


def standing_in_words(points: pd.DataFrame) -> str:
    """How far this book is ahead of, or behind, the two published lines: a sentence for each ε at which both have a
    point, largest first.

    Args:
        points: from `lines`.
    """
    mine = points[points["line"] == THIS_BOOK].sort_values("epsilon", ascending=False)
    found = []
    for _, own in mine.iterrows():
        here = points[(points["epsilon"] == own["epsilon"]) & points["line"].isin([BEST, SINKHORN])]
        told = [_apart(own["accuracy"], other) for _, other in here.iloc[::-1].iterrows()]
        if told:
            reached = ACCURACY.reads.format(ACCURACY.shown(own["accuracy"]))
            found.append(f"At ε = {own['epsilon']:g} this book reaches {reached}: {' and '.join(told)}.")
    return " ".join(found)


def _apart(accuracy: float, other: pd.Series) -> str:
    """'0.3 points behind the best published without public data (FETA-Pro, 98.5 %†)'."""
    gap = round(ACCURACY.shown(accuracy) - ACCURACY.shown(other["accuracy"]), 1)
    place = "level with" if gap == 0 else f"{ACCURACY.apart.format(abs(gap))} {'ahead of' if gap > 0 else 'behind'}"
    reached = ACCURACY.reads.format(ACCURACY.shown(other["accuracy"])) + other["mark"]
    if other["line"] == BEST:
        return f"{place} the best published without public data ({other['method']}, {reached})"
    return f"{place} DP-Sinkhorn ({reached})"


def title(dataset: str, profile: str) -> str:
    """Above the figure: which images, and how much work.

    >>> title("mnist", "paper")
    'MNIST, profile long'
    """
    return f"{style.DATASETS.get(dataset, dataset)}, profile {profile_title(profile)}"
