"""The first page: which lines and rows it has, and what it says of them, whichever way records fall."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from dpldm import methods
from dpldm.book import headline, notebooks, pipeline, series
from dpldm.book.published import read_published

PUBLISHED = read_published(notebooks.ROOT / "book" / "published.csv").query("dataset == 'mnist'")


def runs(cnn, epsilon=10.0, profile="quick", public_data="", dataset="mnist"):
    return {
        "dataset": dataset, "epsilon": epsilon, "profile": profile, "public_data": public_data, "seeds": 1, "cnn": cnn,
        "spread": math.nan,
    }  # fmt: skip


OWN = pd.DataFrame(
    [
        runs(0.981), runs(0.977, 1.0), runs(0.982, profile="paper"), runs(0.5, public_data="shapes"), runs(0.9, 3.0),
    ]
)  # fmt: skip
REAL = pd.DataFrame([runs(0.991, math.inf), runs(0.995, math.inf, "paper")])


def points(own=OWN, published=PUBLISHED, profile="quick"):
    return headline.lines(own, REAL, published, profile)


def quoted(**accuracies):
    """Published figures at ε = 10: method → accuracy of a CNN."""
    return pd.DataFrame(
        [
            {"dataset": "mnist", "method": name, "epsilon": 10.0, "score": "cnn", "value": value, "public_data": "",
             "source": "a table"}
            for name, value in accuracies.items()
        ]
    )  # fmt: skip


def test_there_are_four_lines_and_each_has_the_values_of_its_source():
    found = points()
    assert list(dict.fromkeys(found["line"])) == [headline.THIS_BOOK, headline.BEST, headline.SINKHORN, headline.REAL]
    of = {line: rows.set_index("epsilon")["accuracy"].to_dict() for line, rows in found.groupby("line")}
    assert of[headline.THIS_BOOK] == {1.0: 0.977, 3.0: 0.9, 10.0: 0.981}  # neither public data nor another profile
    assert of[headline.REAL] == {math.inf: 0.991}
    free = PUBLISHED[(PUBLISHED["public_data"] == "") & PUBLISHED["score"].isin(["cnn", "best_of_three"])]
    assert of[headline.BEST] == free.groupby("epsilon")["value"].max().to_dict()
    sinkhorn = PUBLISHED[PUBLISHED["method"].str.startswith("DP-Sinkhorn") & (PUBLISHED["score"] == "cnn")]
    assert of[headline.SINKHORN] == sinkhorn.groupby("epsilon")["value"].max().to_dict()


def test_a_figure_of_another_kind_is_marked():
    for _, point in points().iterrows():
        here = PUBLISHED[(PUBLISHED["method"] == point["method"]) & (PUBLISHED["epsilon"] == point["epsilon"])]
        larger = (here[here["value"] == point["accuracy"]]["score"] == "best_of_three").any()
        assert (point["mark"] == headline.LARGER) is bool(larger), point
        assert (point["mark"] == headline.REPEATED) is ("(re-run)" in point["method"]), point


def test_figures_with_public_data_are_nobodys_best():
    more = quoted(Other=0.9, Public=0.99)
    more.loc[more["method"] == "Public", "public_data"] = "ImageNet"
    assert set(points(published=more).query("line == @headline.BEST")["method"]) == {"Other"}


@pytest.mark.parametrize(
    ("sinkhorn", "best", "said"),
    [
        (0.83, 0.985, ["15.1 points ahead of DP-Sinkhorn (83.0 %)", "0.4 points behind the best", "(Other, 98.5 %)"]),
        (0.983, 0.97, ["0.2 points behind DP-Sinkhorn (98.3 %)", "0.2 points behind the best"]),
        (0.9, 0.981, ["8.1 points ahead of DP-Sinkhorn", "level with the best"]),
        (0.8, 0.95, ["18.1 points ahead of DP-Sinkhorn", "3.1 points ahead of the best"]),
    ],
)
def test_ahead_and_behind_follow_the_figures(sinkhorn, best, said):
    text = headline.standing_in_words(points(published=quoted(**{"DP-Sinkhorn": sinkhorn, "Other": best})))
    assert text.startswith("At ε = 10 this book reaches 98.1 %: ")
    assert repr(text) == f"'{text}'"  # glued into the page as it prints
    assert all(words in text for words in said), text
    assert "ε = 1 " not in text  # nobody has a figure there


def test_without_anything_published_nothing_is_said_and_the_lines_are_fewer():
    nothing = points(published=PUBLISHED.iloc[:0])
    assert set(nothing["line"]) == {headline.THIS_BOOK, headline.REAL}
    assert headline.standing_in_words(nothing) == ""
    assert headline.standing_in_words(points(own=OWN.iloc[:0])) == ""


@pytest.mark.parametrize("epsilon", [10.0, 3.0])
def test_the_table_is_short_narrow_and_has_readers_names(epsilon):
    shown = headline.as_shown(OWN, REAL, PUBLISHED, "quick", epsilon)
    names = list(shown.iloc[:, 0])
    assert len(names) == len(set(names)) == 6
    assert shown.shape[1] <= 5
    assert not any(re.search(r"dpldm|paper|non-private|_", name) for name in names)
    assert f"ε\u00a0=\u00a0{epsilon:g}" in shown
    table = shown.set_index(shown.columns[0])
    assert list(table.loc["this book, quick"])[1] == "97.7"
    assert table.loc["this book, long"].iloc[-1] == "98.2"
    assert set(table.loc[headline.REAL]) == {"99.1"}  # as the line of the figure
    assert table.loc[headline.SINKHORN].iloc[-1] == "83.2"
    assert table.loc[headline.SINKHORN].iloc[0] == "48.8" + headline.REPEATED


def test_a_row_of_nothing_is_left_out():
    shown = headline.as_shown(OWN[OWN["profile"] == "quick"], REAL, quoted(Other=0.9), "quick", 10.0)
    assert list(shown.iloc[:, 0]) == ["this book, quick", "best published, CNN", headline.REAL]


def test_smoke_is_never_drawn():
    assert headline.drawn_profile(OWN, "smoke") == "quick"
    assert headline.drawn_profile(OWN, "paper") == "paper"


def test_profiles_have_titles_of_their_own_and_none_is_called_after_the_paper():
    titles = [methods.profile_title(name) for name in methods.PROFILES]
    assert titles == ["smoke", "quick", "long"]
    assert methods.profile_title("of somebody") == "of somebody"


def test_the_figure_spreads_what_stands_close_together():
    figure = series.headline(points(), headline.title("mnist", "quick"))
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "MNIST, profile quick"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(dict.fromkeys(points()["line"]))
    drawn = {line.get_label(): line for line in axes.lines}
    height = {
        name: axes.transAxes.inverted().transform(axes.transData.transform((10.0, line.get_ydata()[-1])))[1]
        for name, line in drawn.items()
    }
    assert height[headline.SINKHORN] < height[headline.THIS_BOOK] < height[headline.BEST] < height[headline.REAL]
    assert height[headline.BEST] - height[headline.THIS_BOOK] > 0.03  # 0.4 points: on a linear axis 0.008 of the height
    assert np.allclose(drawn[headline.THIS_BOOK].get_ydata(), 100 * (1 - np.array([0.977, 0.9, 0.981])))
    marks = [text.get_text() for text in axes.texts if text.get_text()]
    assert sorted(marks) == sorted(points()["mark"][points()["mark"] != ""])
    assert figure.get_figwidth() * 96 < 430  # hardly made smaller on a phone, so that letters stay readable
    with pytest.raises(ValueError, match="expected at least one"):
        series.headline(points().iloc[:0], "nothing")


def effects(epsilon=10.0, **gains):
    """Variation without something → what is gained by that, in accuracy and in distance."""
    return pd.DataFrame(
        [
            {"name": name.replace("_", "-"), "epsilon": epsilon, "cnn_gain": cnn, "fid_classifier_gain": fid}
            for name, (cnn, fid) in gains.items()
        ],
        columns=["name", "epsilon", "cnn_gain", "fid_classifier_gain"],
    )


def test_what_was_added_is_told_with_what_it_buys_whichever_way_that_is():
    text = pipeline.additions_in_words(effects(no_selection=(-0.02, 11.0), no_push=(0.01, -3.0), other=(-0.5, 9.0)), 10)
    assert "drawn again (+2.0 % right, FID 11.0 lower)" in text
    assert "pushed (−1.0 % right, FID 3.0 higher)" in text
    assert text.count("(") == 2
    assert text.startswith("At ε = 10,")
    assert repr(text) == f"'{text}'"


def test_additions_are_told_at_the_nearest_measured_budget():
    both = pd.concat([effects(10.0, no_push=(-0.02, 1.0)), effects(1.0, no_push=(-0.03, 1.0))])
    assert "At ε = 1, " in pipeline.additions_in_words(both, 0.2)
    assert "+3.0 % right" in pipeline.additions_in_words(both, 2.0)
    assert "+2.0 % right" in pipeline.additions_in_words(both, 5.0)
    assert pipeline.additions_in_words(effects(), 5.0) == "What each addition buys was not measured yet."


def test_the_first_page_tells_two_stages_first_and_types_no_accuracy():
    page = (notebooks.ROOT / "book" / "index.md").read_text(encoding="utf-8")
    second = page.split("\n\n")[3]
    told = [
        second.index(words)
        for words in ("two stages", "*Stage 1*", "*Stage 2*", "abstract", "headline.ipynb::additions")
    ]
    assert told == sorted(told)
    assert "DP-Sinkhorn" in page
    assert not re.search(r"\d\s?%", page)
