"""The steps of a run in their order: what each spends of the budget, and what it buys. For the first page's figure.

What a step buys is the difference that it makes, in the ablation's measurements, between the settings as they are and
the same without the step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpldm.book.charts import distance_change, points_gained
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import budget_shares
from dpldm.privacy.mechanisms import Mechanism
from dpldm.runs.variations import DEFAULT

GRADIENTS = "denoiser gradients"
TRIFLE = 0.001  # a difference of accuracies that is not worth a word


@dataclass(frozen=True)
class Step:
    """One box of the figure. ``stage``: of its mechanisms in a ledger, empty where it never looks at private images.
    ``without``: the ablation's variation in which it is missing, empty where nothing is left without it."""

    title: str
    about: str
    stage: str = ""
    without: str = ""
    by_gradients: bool = False


STEPS = (
    Step("Stage 1: compression", "images to short vectors", "compression"),
    Step("Stage 2: mixture", "where each class lies", "diffusion"),
    Step("Stage 2: diffusion", "a network learns the rest", "diffusion", by_gradients=True),
    Step("Matched decoders", "draw part of the images", "matching", "no-matching"),
    Step("Drawn again", "where a classifier disagrees", "selection", "no-selection"),
    Step("Edges moved", "to where they should be", "transport", "no-transport"),
    Step("Pushed", "towards their class", "", "no-push"),
    Step("Bent", "strokes vary a little", "", "no-bend"),
    Step("Sharpened", "edges are crisp", "", "no-sharpening"),
    Step("Even ground", "what is faint becomes black", "", "no-ground"),
    Step("Contrast", "ink is ink", "", "no-contrast"),
)


def steps(privacy: Mapping[str, Any], effects: pd.DataFrame) -> pd.DataFrame:
    """The steps that a run has, with what each costs and buys.

    Args:
        privacy: the part of a record with `mechanisms` and `delta`; of a private run.
        effects: from `dpldm.runs.ablation.effects`, of one data set, profile and ε; may be empty.

    Returns:
        `title`, `about`, the `share` of the budget (0 where no private image is looked at; they sum to 1), and what the
        step buys: `cnn` (a difference of accuracies; above 0 is better) and `fid` (of Fréchet distances; below 0 is
        better), NaN where it was not measured. A step that spends nothing and has no measurement is left out.
    """
    mechanisms = [Mechanism(**entry) for entry in privacy["mechanisms"]]
    shares = budget_shares(Ledger(mechanisms), privacy["delta"])
    changed = effects.set_index("name")
    found = []
    for step in STEPS:
        paid = [
            share
            for mechanism, share in zip(mechanisms, shares, strict=True)
            if mechanism.stage == step.stage
            and (step.stage != "diffusion" or (mechanism.name == GRADIENTS) == step.by_gradients)
        ]
        measured = step.without in changed.index and DEFAULT in changed.index
        lost = changed.loc[step.without] if measured else {"cnn_gain": math.nan, "fid_classifier_gain": math.nan}
        if paid or measured:
            buys = {"cnn": -lost["cnn_gain"], "fid": -lost["fid_classifier_gain"]}
            found.append({"title": step.title, "about": step.about, "share": math.fsum(paid), **buys})
    return pd.DataFrame(found, columns=["title", "about", "share", "cnn", "fid"])


def conclusion(effects: pd.DataFrame, bought: pd.DataFrame, epsilon: float) -> str:
    """What the measurements say about the steps, in Markdown.

    Args:
        effects: from `dpldm.runs.ablation.effects`, of one data set, profile and this ε. bought: from `steps`.
    """
    measured = bought[bought["cnn"].notna()]
    if measured.empty:
        return f"*At ε = {epsilon:g} nothing was measured yet, so there is nothing to conclude.*"
    nearest, best = measured.loc[measured["fid"].idxmin()], measured.loc[measured["cnn"].idxmax()]
    worst = measured.loc[measured["cnn"].idxmin()]
    said = [
        f"At ε = {epsilon:g}, what brings the images nearest to real ones is *{nearest['title'].lower()}*: without it "
        f"the Fréchet distance is {-nearest['fid']:.1f} higher."
    ]
    if best["cnn"] >= TRIFLE:
        said.append(f"A CNN gains most by *{best['title'].lower()}*: {100 * best['cnn']:.1f} points.")
    else:
        said.append(f"No step by itself gains a CNN more than {100 * TRIFLE:.1f} points.")
    if worst["cnn"] <= -TRIFLE:
        lost = f"It loses most by *{worst['title'].lower()}*, {-100 * worst['cnn']:.1f} points"
        said.append(lost + (": that step is kept for the distance." if worst["fid"] < 0 else "."))
    rows = effects.set_index("name")
    if "mixture-alone" in rows.index:
        alone = rows.loc["mixture-alone"]
        said.append(
            f"All that comes after the mixture gains {-100 * alone['cnn_gain']:.1f} points together; with the whole "
            f"budget the mixture alone reaches {100 * alone['cnn']:.1f} %."
        )
    return " ".join(said)


def additions_in_words(effects: pd.DataFrame, epsilon: float) -> str:
    """What was added to the two stages and what each addition buys, one sentence, at the measured ε nearest to the one
    asked for.

    Args:
        effects: from `dpldm.runs.ablation.effects`, of one data set and profile; may be empty.
    """
    added = [step for step in STEPS if step.without]
    measured = [row for row in effects.to_dict("records") if row["name"] in {step.without for step in added}]
    if not measured:
        return "What each addition buys was not measured yet."
    nearest = min((row["epsilon"] for row in measured), key=lambda value: abs(math.log(value / epsilon)))
    lost = {row["name"]: row for row in measured if row["epsilon"] == nearest}
    told = [f"{step.title.lower()} ({_bought(lost[step.without])})" for step in added if step.without in lost]
    return f"At ε = {nearest:g}, on held-out images, each buys, compared with a run without it: {'; '.join(told)}."


def _bought(lost: Mapping[str, Any]) -> str:
    """'+0.4 % right, FID 11.8 lower', from what is lost without it."""
    return f"{points_gained(-lost['cnn_gain'])}, {distance_change(-lost['fid_classifier_gain'])}"
