"""The figures that only the book needs."""

import base64
import io
import math
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dpldm.book import charts, floors, samples, style
from dpldm.records import grids
from dpldm.records.grids import CARD


def test_a_gap_is_left_where_a_value_is_infinite() -> None:
    figure = charts.curves([1, 2, 3], {"a": [1.0, np.inf, 3.0], "b": [1, 2, 3]}, "x", "y", logarithmic="x")
    first, second = figure.axes[0].get_lines()
    assert np.isnan(first.get_ydata()[1])
    assert list(second.get_ydata()) == [1, 2, 3]
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_yscale() == "linear"


def test_shares_of_every_name_add_up_to_one() -> None:
    figure = charts.histograms({"few": np.arange(5), "many": np.linspace(-3, 9, 1000)}, "value", bins=7)
    for stairs in figure.axes[0].patches:
        heights, edges, _ = stairs.get_data()
        assert heights.sum() == pytest.approx(1)
        assert (edges[0], edges[-1], len(edges)) == (-3, 9, 8)


def test_rows_of_images_keep_their_names_and_order() -> None:
    figure = samples.image_rows({"dark": np.zeros((3, 1, 8, 8)), "light": np.ones((3, 1, 8, 8))}, "Two", "kind")
    drawn = figure.axes[0].get_images()[0].get_array()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["dark", "light"]
    assert drawn[:8, :8].max() == 0
    assert drawn[8 + grids.GAP :, :8].min() == 1


def test_a_table_has_its_caption_and_the_names_of_its_rows() -> None:
    page = style.captioned(pd.Series({"a & b": 1.5, "c": math.nan}, name="score"), "Scores < 2.").data
    assert page.index("<caption>Scores &lt; 2.</caption>") < page.index("<thead>")
    assert "a &amp; b" in page
    assert "–" in page
    with pytest.raises(ValueError, match="caption: expected a sentence"):
        style.captioned(pd.Series([1]), " ")


def test_html_has_the_picture_and_its_text() -> None:
    page = style.as_html(charts.curves([1, 2], {"a": [1, 2]}, "x", "y"), 'rises, "slowly"')
    assert 'alt="rises, &quot;slowly&quot;"' in page
    image = Image.open(io.BytesIO(base64.b64decode(re.findall(r"base64,([^\"]+)", page)[0])))
    assert image.width > 500


def test_accountants_are_hollow_below_their_floor_and_rdp_has_none() -> None:
    table = floors.against_delta(2.0, 10, [1e-4, 1e-6, 1e-15, 1e-18])
    assert table["PLD"].isna().tolist() == [False, False, True, True]
    assert (table["RDP"] >= table["exact"]).all()
    figure = charts.floors(table, 1e-5)
    (each,) = figure.axes
    filled = {
        line.get_label(): len(line.get_xdata()) for line in each.get_lines() if line.get_markerfacecolor() != CARD
    }
    assert (filled["PRV"], filled["PLD"], filled["RDP, no floor"]) == (1, 1, 4)
    assert figure.get_figwidth() * 100 < 450  # a phone is 390 pixels wide
    with pytest.raises(ValueError, match="none called PLD"):
        charts.floors(table.drop(columns="PLD"), 1e-5)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: charts.curves([1, 2], {"a": [1]}, "x", "y"),
        lambda: charts.curves([1, 2], {}, "x", "y"),
        lambda: charts.histograms({"a": np.zeros(0)}, "x"),
        lambda: samples.image_rows({}, "t", "r"),
        lambda: samples.image_rows({"a": np.zeros((1, 1, 8, 8)), "b": np.zeros((2, 1, 8, 8))}, "t", "r"),
        lambda: style.as_html(charts.curves([1], {"a": [1]}, "x", "y"), " "),
    ],
)
def test_what_does_not_fit_is_refused(draw) -> None:
    with pytest.raises(ValueError, match="expected"):
        draw()
