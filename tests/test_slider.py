"""The slider over ε: the runs it takes, and a page that works without a script, too."""

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from dpldm.book import notebooks, slider, style
from dpldm.records import files

RECORDS = notebooks.ROOT / "book" / "records"


@pytest.mark.parametrize("dataset", list(style.DATASETS))
def test_every_epsilon_has_its_scores_and_its_picture(dataset):
    runs = slider.runs_by_epsilon(files.read_all(RECORDS), dataset)
    page = BeautifulSoup(slider.as_html(runs, RECORDS, 1.2), "html.parser")
    sections = page.find_all("section")
    assert [float(section["data-epsilon"]) for section in sections] == sorted(runs)
    assert len(runs) >= 3
    for section, (epsilon, records) in zip(sections, runs.items(), strict=True):
        assert {(one["dataset"], one["method"], one["public_data"]) for one in records} == {(dataset, "dpldm", None)}
        scores = [score for one in records for score in one["metrics"]["accuracy"]["cnn"]]
        assert f"ε = {epsilon:g}: a CNN reaches {100 * sum(scores) / len(scores):.1f} %" in section.get_text()
        assert section.img["src"].startswith("data:image/png;base64,")
        assert section.img["alt"]
    assert sorted(runs)[int(page.input["value"])] == 1.0
    assert page.label.has_attr("hidden"), "shown by the script, which alone can move it"


def test_without_runs_there_is_no_slider():
    with pytest.raises(ValueError, match="expected at least one ε, got none"):
        slider.as_html(slider.runs_by_epsilon([], "mnist"), Path(), 1.0)


def test_a_variant_is_not_taken_for_another_seed():
    """Neither one that learned from public images nor one whose settings alone are others."""
    committed = files.read_all(RECORDS)
    (ours,) = slider.runs_by_epsilon([one for one in committed if one["seed"] == 0], "mnist")[10.0]
    other = {**ours, "settings": ours["settings"] | {"n_synthetic": 10}}
    assert slider.runs_by_epsilon([ours, other], "mnist") == {10.0: [ours]}
