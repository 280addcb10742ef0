"""What each step of a run spends and buys."""

import math

import pandas as pd
import pytest

from dpldm.book import charts, pipeline

SIGMAS = {
    ("compression", "image mean"): 4.0, ("compression", "image second moments"): 4.0,
    ("diffusion", "latent sums"): 2.0, ("diffusion", "denoiser gradients"): 4.0,
    ("selection", "selector gradients"): 2.0,
}  # fmt: skip
PRIVACY = {
    "delta": 1e-5,
    "mechanisms": [
        {"name": name, "stage": stage, "noise_multiplier": sigma, "sample_rate": 1.0, "steps": 1, "sensitivity": 1.0}
        for (stage, name), sigma in SIGMAS.items()
    ],
}


def effects(**rows: tuple[float, float]) -> pd.DataFrame:
    """Variation → (CNN, distance), beside settings that reach 0.9 and 20."""
    known = {"default": (0.9, 20.0), **{name.replace("_", "-"): scores for name, scores in rows.items()}}
    made = [
        {"name": name, "cnn": cnn, "fid_classifier": fid, "cnn_gain": cnn - 0.9, "fid_classifier_gain": fid - 20}
        for name, (cnn, fid) in known.items()
    ]
    return pd.DataFrame(made)


def test_shares_follow_from_the_ledger_and_gains_from_the_ablation():
    found = pipeline.steps(PRIVACY, effects(no_selection=(0.88, 26.0), no_contrast=(0.91, 90.0)))
    assert list(found["title"]) == [
        "Stage 1: compression", "Stage 2: mixture", "Stage 2: diffusion", "Drawn again", "Contrast",
    ]  # fmt: skip
    parts = [2 / 16, 1 / 4, 1 / 16, 1 / 4, 0]  # 1/σ² of each
    assert list(found["share"]) == pytest.approx([part / sum(parts) for part in parts], abs=2e-3)
    assert list(found["cnn"])[3:] == pytest.approx([0.02, -0.01])  # what it buys: more is better
    assert list(found["fid"])[3:] == pytest.approx([-6.0, -70.0])  # lower is better
    assert all(math.isnan(gain) for gain in found["cnn"][:3])


def test_without_measurements_the_shares_are_still_told():
    nothing = effects().iloc[:0]
    found = pipeline.steps(PRIVACY, nothing)
    assert len(found) == 4
    assert found["share"].sum() == pytest.approx(1)
    assert "nothing was measured" in pipeline.conclusion(nothing, found, 3.0)


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (
            (0.88, 26.0),
            [
                "*contrast*",
                "70.0 higher",
                "gains most by *drawn again*: 2.0 points",
                "loses most by *contrast*, 1.0 points",
            ],
        ),
        (
            (0.93, 95.0),
            ["*drawn again*", "75.0 higher", "No step by itself", "loses most by *drawn again*, 3.0 points"],
        ),
    ],
)
def test_the_conclusion_follows_the_measurements(selection, said):
    rows = effects(no_selection=selection, no_contrast=(0.91, 90.0), mixture_alone=(0.87, 99.0))
    text = pipeline.conclusion(rows, pipeline.steps(PRIVACY, rows), 10.0)
    assert all(words in text for words in [*said, "gains 3.0 points together", "alone reaches 87.0 %"]), text


def test_the_figure_tells_changes_as_one_reads_them():
    rows = effects(no_selection=(0.88, 26.0), no_contrast=(0.91, 14.0))
    figure = charts.pipeline(pipeline.steps(PRIVACY, rows), 10.0)
    words = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert "+2.0 % right\nFID 6.0 lower" in words
    assert "−1.0 % right\nFID 6.0 higher" in words
    assert "free" in words
    with pytest.raises(ValueError, match="expected at least one row"):
        charts.pipeline(pipeline.steps(PRIVACY, rows).iloc[:0], 10.0)
