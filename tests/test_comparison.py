"""The comparison: what stands in its tables and sentences, whichever way the records fall, and with records missing."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from dpldm import cli, commands
from dpldm.book import charts, comparison, ingredients, instruments, notebooks
from dpldm.book.published import (
    _PUBLISHED,
    among_published,
    beside_as_shown,
    beside_published,
    best_in_words,
    latent_gaps,
    latent_in_words,
    read_published,
    repeats_in_words,
    with_shortfall,
)
from dpldm.book.targets import (
    _TARGETS,
    aims_as_shown,
    aims_in_words,
    distances_as_shown,
    distances_in_words,
    read_targets,
    runs_of,
)
from dpldm.book.words import DISTANCE
from dpldm.commands import _epsilon, _experiment
from dpldm.data import datasets
from dpldm.method.finishing import Finishing, FinishSettings
from dpldm.methods import METHODS
from dpldm.recipes import finishing_for
from dpldm.records import grids, schema, tables
from dpldm.records.names import record_name
from dpldm.records.settings import to_json
from dpldm.runs import ablation, variations
from dpldm.runs.experiment import Experiment

PUBLISHED = notebooks.ROOT / "book" / "published.csv"


def record(method="dpldm", epsilon=10.0, cnn=(0.95, 0.96), fid=20.0, seed=0, profile="quick", **changes):
    """A record whose settings are those that the method has today, unless ``settings`` says otherwise."""
    now = Experiment("mnist", epsilon, method=method, profile=profile).resolved()
    settings = {
        "synthesis": to_json(now.settings), "evaluation": to_json(now.evaluation), "n_synthetic": now.n_synthetic,
        "limit": None, "secure_mode": False,
    }  # fmt: skip
    private = epsilon is not None
    mechanism = {"name": "m", "stage": "s", "noise_multiplier": 2.0, "sample_rate": 1.0, "steps": 1, "sensitivity": 1.0}
    made = {
        "schema": 1, "method": method, "dataset": "mnist", "profile": profile, "seed": seed, "public_data": None,
        "settings": settings | changes.pop("settings", {}),
        "privacy": {
            "epsilon_target": epsilon, "epsilon": epsilon, "epsilon_rdp": epsilon, "delta": 1e-5 if private else None,
            "relation": "r" if private else None, "accountant": "prv" if private else None,
            "mechanisms": [mechanism] if private else [],
        },
        "metrics": {
            "fid_classifier": fid, "fid_inception": None, "accuracy": {"cnn": list(cnn), "mlp": [0.9], "logreg": []},
            "precision": None, "recall": None, "n_synthetic": 60_000, "parameters": 1_234,
        },
        "seconds": {"compression": 4.0, "diffusion": 100.0, "sampling": None, "evaluation": 60.0},
        "device": "cpu: a model, 2 cores", "commit": "0123abc", "versions": {"python": "3.11"},
        "data_sha256": {"train": "a" * 64},
    }  # fmt: skip
    made |= changes
    schema.validate(made)
    return made


def measured(*records):
    return comparison.measured(records)


# --- against the best published, and re-runs that are small ----------------------------------------------------------


def figure(value, score="cnn", method="DPDM (accuracy sampler)", **changes):
    return {"dataset": "mnist", "method": method, "epsilon": 10.0, "score": score, "value": value,
            "public_data": "", "source": "s"} | changes  # fmt: skip


def test_the_summary_is_as_loud_when_behind_as_when_ahead():
    published = pd.DataFrame(
        [figure(0.981), figure(0.5), figure(0.99, public_data="ImageNet"), figure(0.985, "best_of_three", "FETA-Pro")]
    )

    def said(cnn):
        return best_in_words(runs_of([record(cnn=(cnn,))]), published)

    assert said(0.97) == [
        "Places compared, without public data: 1. Ours is once behind the best published CNN, and once behind the best "
        "published by any protocol.",
        "MNIST, quick: at ε = 10 **behind** DPDM (accuracy sampler) by 1.1 points (97.0 against 98.1), and **behind** "
        "FETA-Pro by 1.5 points (97.0 against 98.5, the best of three large classifiers).",
    ]
    assert (
        "**ahead of** DPDM (accuracy sampler) by 0.2 points (98.3 against 98.1), and **behind** FETA" in said(0.983)[1]
    )
    assert "Ours is once level with the best published CNN, and once behind the best" in said(0.981)[0]
    assert best_in_words(runs_of([record(epsilon=1.0)]), published) == []


def on_photographs(method, value, epsilon=10.0, **changes):
    return figure(value, "best_of_three", method, epsilon=epsilon, public_data="photos", **changes)


@pytest.mark.parametrize(
    ("latent", "said"), [(0.9, "behind P (95.0 %) by 5.0 points"), (0.95, "level with P (95.0 %)"),
                         (0.97, "ahead of P (95.0 %) by 2.0 points")],
)  # fmt: skip
def test_latents_of_public_photographs_stand_beside_pixels_whichever_way_it_falls(latent, said):
    published = pd.DataFrame(
        [on_photographs("L (latent)", latent), on_photographs("M (latent)", 0.5), on_photographs("P", 0.95),
         on_photographs("Q", 0.1), figure(0.99, "best_of_three", "without photos"),
         on_photographs("L (latent)", 0.2, 1.0), on_photographs("P", 0.8, 1.0),
         on_photographs("L (latent)", 0.2, 0.1), on_photographs("R", 0.99, 0.1) | {"public_data": "others"}]
    )  # fmt: skip
    assert latent_in_words(published) == [
        f"MNIST: at ε = 10 L (latent) ({100 * latent:.1f} %) is {said}; at ε = 1 L (latent) (20.0 %) is behind P "
        "(80.0 %) by 60.0 points."
    ]
    assert latent_gaps(published[published["public_data"] == ""]).empty
    assert latent_in_words(published[published["public_data"] == ""]) == []


def test_who_is_ahead_of_a_small_rerun_says_by_how_much_it_falls_short():
    published = pd.DataFrame([figure(0.981), figure(0.9, method="DPDM (FID sampler)")])
    for reached, gap in ((0.90, 8.1), (0.965, None)):
        rows = with_shortfall(measured(record(cnn=(0.97,)), record("dpdm", cnn=(reached,))), published)
        (said,) = comparison.claims(rows, 10.0)
        words = f", a small re-run, {gap} points below its published CNN) by"
        assert (words in said) == (gap is not None)
        assert ("below published (points)" in comparison.as_shown(rows)) == (gap is not None)


def test_a_variant_with_public_data_has_a_title_of_its_own():
    rows = measured(record(), record(public_data="shapes"))
    assert set(rows["title"]) == {METHODS["dpldm"].title, f"{METHODS['dpldm'].title}, shapes"}


# --- the index of methods ---------------------------------------------------------------------------------------------


def test_every_method_is_described_once_and_cited_from_the_bibliography():
    keys = set(
        re.findall(r"^@\w+\{(\w+),", (notebooks.ROOT / "book" / "references.bib").read_text("utf-8"), re.MULTILINE)
    )
    for name, method in METHODS.items():
        assert method.title, name
        assert method.about.endswith("."), name
        assert not method.citation or method.citation in keys, name
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    table = comparison.index_of_methods()
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == list(METHODS)
    assert set(METHODS) == set(commands.METHODS)


def test_a_published_name_belongs_to_one_method_and_is_in_the_file():
    quoted = [name for method in METHODS.values() for name in method.published]
    assert len(set(quoted)) == len(quoted)
    assert set(quoted) <= set(read_published(PUBLISHED)["method"])
    for name, method in METHODS.items():
        assert all(one.lower().startswith(name) for one in method.published)


# --- what was measured ------------------------------------------------------------------------------------------------


def test_the_table_shows_what_the_records_say():
    rows = measured(record(), record(seed=1, cnn=(0.91, 0.92)), record("real", None, cnn=(0.99,)), record(epsilon=1.0))
    assert list(rows["epsilon"]) == [10, 1, math.inf]
    shown = comparison.as_shown(rows)
    first = shown.iloc[0]
    values = [0.95, 0.96, 0.91, 0.92]
    assert first["CNN (%)"] == f"{100 * np.mean(values):.1f}\u00a0±\u00a0{100 * np.std(values, ddof=1):.1f}"
    assert (first["method"], first["ε"]) == ("Latent diffusion", "10")
    assert (first["time (s)"], first["parameters"], first["public data"]) == ("104", "1,234", "none")
    assert shown.iloc[2]["ε"] == "none"
    assert shown.iloc[2]["CNN (%)"] == "99.0"
    assert "FID (Inception)" not in shown
    assert "profile" not in shown
    more = comparison.classifiers_as_shown(rows)
    assert list(more) == ["method", "ε", "seeds", "CNN (%)", "MLP (%)"]
    assert list(more["seeds"]) == ["2", "1", "1"]
    assert list(comparison.as_shown(measured(record(), record(profile="paper")))["profile"]) == ["long", "quick"]


def by_peers(best, name="dpimagebench"):
    return {name: {"accuracy": {"wrn": best}, "best": best, "mean": best, "reduced": name != "dpimagebench"}}


def test_the_peers_column_is_there_where_records_have_it_and_the_page_says_where_not():
    plain, rival = record(), record("dp-merf")
    assert "best of three (%)" not in comparison.as_shown(measured(plain, rival))
    assert "No record here was scored so, and the column is empty." in instruments.peers_in_words([plain, rival])
    scored = [record(seed=seed) for seed in (0, 1)]
    for one, best in zip(scored, (0.9, 0.95), strict=True):
        one["metrics"]["peers"] = by_peers(best)
        schema.validate(one)
    shown = comparison.as_shown(measured(*scored, rival)).set_index("method")["best of three (%)"]
    assert shown.to_dict() == {"Latent diffusion": "92.5\u00a0±\u00a03.5", "DP-MERF": "–"}
    assert "Of the 3 records here 2 were scored so; where there is none" in instruments.peers_in_words([*scored, rival])
    rival["metrics"]["peers"] = by_peers(0.8, "dpimagebench-reduced")
    assert "best of three (%)" not in comparison.as_shown(measured(plain, rival))
    said = instruments.peers_in_words([plain, rival])
    assert "the column is empty. By a small version of it, which stands in no table, 1 were scored." in said


def finished(method, epsilon=10.0, finishing=None, **changes):
    """A record like `record`, with images finished as ours are, or otherwise."""
    made = record(method, epsilon, **changes)
    given = to_json(finishing or finishing_for(datasets.DATASETS["mnist"].known, epsilon))
    made["settings"] = made["settings"] | {"synthesis": made["settings"]["synthesis"] | {"finishing": given}}
    return made


def test_finished_images_have_a_column_of_their_own():
    rows = measured(
        record(), record("dp-merf", cnn=(0.9,), fid=50.0), record("dp-sinkhorn", cnn=(0.8,)), record("real", None),
        finished("dp-merf", cnn=(0.92, 0.94), fid=30.0), finished("dp-merf", 1.0),
        finished("dp-sinkhorn", finishing=Finishing(FinishSettings(contrast=3.0))),
    )  # fmt: skip
    assert sorted(rows["method"]) == ["dp-merf", "dp-sinkhorn", "dpldm", "real"]
    shown = comparison.as_shown(rows).set_index("method")
    merf, sinkhorn = shown.loc["DP-MERF"], shown.loc["DP-Sinkhorn"]
    assert (merf["CNN (%)"], merf["CNN, finished (%)"]) == ("90.0", "93.0\u00a0±\u00a01.4")
    assert (merf["FID (classifier)"], merf["FID, finished"]) == ("50.0", "30.0")
    assert list(sinkhorn[["CNN, finished (%)", "FID, finished"]]) == ["not run"] * 2
    for name in ("Latent diffusion", "Real images"):
        assert list(shown.loc[name][["CNN, finished (%)", "FID, finished"]]) == ["–"] * 2
    (said,) = comparison.finished_in_words(rows, 10.0)
    assert said == (
        "At ε = 10 (quick), finished like ours: DP-MERF goes from 90.0 % to 93.0 % with the CNN (behind ours by 2.5 "
        "points) and from a distance of 50.0 to 30.0 (behind ours by 10.0); DP-Sinkhorn not run."
    )
    assert comparison.finished_in_words(rows, 1.0) == []


@pytest.mark.parametrize(("fid", "verdict"), [(39.0, "less, not halved"), (40.0, "halved"), (20.0, "not less")])
def test_a_target_is_held_to_finished_rivals_as_well(fid, verdict):
    merf = record("dp-merf", fid=90.0)
    _, plain = distances_in_words(measured(record(fid=20.0), merf))
    assert plain.endswith("90.0 of DP-MERF (DP-Sinkhorn and Class Gaussian not measured): halved.")
    _, said = distances_in_words(measured(record(fid=20.0), merf, finished("dp-merf", fid=fid)))
    assert said == plain.removesuffix(".") + f" (20.0 against {fid} of DP-MERF finished like ours: {verdict})."


def test_what_is_private_at_a_smaller_budget_is_to_be_halved_at_a_larger_one():
    runs = [record(fid=30.0), record("dp-merf", fid=200.0), record("dp-merf", 1.0, fid=50.0)]
    _, said = distances_in_words(measured(*runs))
    missing = "(DP-Sinkhorn and Class Gaussian not measured)"
    assert said == f"MNIST, quick: at ε = 10, 30.0 against 50.0 of DP-MERF at ε = 1 {missing}: less, not halved."
    _, said = distances_in_words(measured(record(epsilon=1.0, fid=30.0), *runs[1:]))
    assert said == f"MNIST, quick: at ε = 1, 30.0 against 50.0 of DP-MERF {missing}: less, not halved."


def test_finished_records_are_never_taken_for_plain_ones():
    alone = measured(record(), finished("dp-merf"))
    assert list(alone["method"]) == ["dpldm"]
    assert comparison.commands_for_missing(alone, "mnist", "quick", [10.0])["DP-MERF at ε = 10"]
    table = tables.table([record("dp-merf"), finished("dp-merf")])
    assert sorted(table["finished"]) == [False, True]
    assert list(table.query("not finished")["records"]) == [(record_name(record("dp-merf")),)]
    lines = tables.to_text(table).splitlines()
    assert sum("dp-merf, finished " in line for line in lines) == 1


def test_no_nan_where_a_record_lacks_something():
    old = record(cnn=(), fid=None)
    del old["metrics"]["parameters"]
    rows = measured(old, record("dp-merf"))
    pages = [comparison.as_html(comparison.as_shown(rows)), comparison.as_html(comparison.as_shown(rows.iloc[:0]))]
    pages += [comparison.as_html(comparison.classifiers_as_shown(rows))]
    beside = beside_published(rows, read_published(PUBLISHED))
    pages += [comparison.as_html(beside_as_shown(beside)), *repeats_in_words(beside)]
    pages += [comparison.missing_in_words(rows, "mnist", "quick", [10.0])]
    assert "–" in pages[0]
    assert not any(re.search(r"\b(nan|NaN|None|inf)\b", page) for page in pages)
    assert comparison.claims(rows, 10.0) == []
    assert comparison.claims(rows, 10.0, DISTANCE) == []


def test_without_any_record_all_is_empty_and_nothing_breaks():
    rows = measured()
    published = read_published(PUBLISHED)
    beside = beside_published(rows, published)
    assert comparison.as_html(comparison.as_shown(rows)) == ""
    assert comparison.as_html(comparison.classifiers_as_shown(rows)) == ""
    assert comparison.as_html(beside_as_shown(beside)) == ""
    assert repeats_in_words(beside) == comparison.claims(rows, 10.0) == []
    assert among_published(rows, published, 10.0) == []
    assert comparison.samples(rows, 10.0, [], (1, 28, 28)) == {}
    assert "no record" in comparison.as_text([])


def test_of_several_settings_those_of_today_are_shown_else_those_with_most_seeds():
    other, another = {"synthesis": {"width": 1}}, {"synthesis": {"width": 2}}
    today = record(cnn=(0.5,))
    many = [record(seed=seed, settings=other, cnn=(0.6,)) for seed in range(3)]
    one = record(settings=another, cnn=(0.7,))
    assert list(measured(today, *many, one)["cnn"]) == [0.5]
    assert list(measured(*many, one)["cnn"]) == [pytest.approx(0.6)]


# --- what is missing --------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_a_command_that_the_command_line_takes():
    rows = measured(record(), record("dp-merf", 1.0), record("real", None), record("gs-wgan", profile="smoke"))
    commands = comparison.commands_for_missing(rows, "mnist", "quick", [10.0, 1.0])
    private = sum(method.private for method in METHODS.values())
    assert len(commands) == 2 * private + (len(METHODS) - private) - 3
    assert "DP-MERF at ε = 10" in commands
    assert "DP-MERF at ε = 1" not in commands
    assert "GS-WGAN at ε = 10" in commands  # a smoke record is none of the quick profile
    for command in commands.values():
        given = cli._parser().parse_args(command.split()[1:])
        assert _experiment(given, _epsilon(given)).profile == "quick"
    said = comparison.missing_in_words(rows, "mnist", "quick", [10.0, 1.0])
    assert all(name in said and command in said for name, command in commands.items())


def test_nothing_missing_is_said_too():
    rows = measured(*(record(name, 10.0 if method.private else None) for name, method in METHODS.items()))
    assert comparison.commands_for_missing(rows, "mnist", "quick", [10.0]) == {}
    assert "Every method" in comparison.missing_in_words(rows, "mnist", "quick", [10.0])


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (0.95, 0.90, "ahead of DP-MERF (90.0 %) by 5.0 points"),
        (0.90, 0.95, "behind DP-MERF (95.0 %) by 5.0 points"),
        (0.95, 0.95, "level with DP-MERF (95.0 %)"),
        (0.95001, 0.95, "level with DP-MERF (95.0 %)"),
    ],
)
def test_a_claim_holds_in_both_directions(ours, theirs, expected):
    rows = measured(record(cnn=(ours,)), record("dp-merf", cnn=(theirs,)))
    (said,) = comparison.claims(rows, 10.0)
    assert said == (
        f"At ε = 10 (quick) the method of this book reaches {100 * ours:.1f} % with the CNN. "
        f"Of the methods re-run here it is {expected}."
    )


def test_of_distances_less_is_better():
    near, far = record(fid=10.0), record("dp-merf", fid=30.0)
    (said,) = comparison.claims(measured(near, far), 10.0, DISTANCE)
    assert "ahead of DP-MERF (30.0) by 20.0." in said
    near, far = record(fid=30.0), record("dp-merf", fid=10.0)
    (said,) = comparison.claims(measured(near, far), 10.0, DISTANCE)
    assert "behind DP-MERF (10.0) by 20.0." in said


def test_a_difference_below_the_scatter_says_so():
    wide = measured(record(cnn=(0.90, 0.96)), record("dp-merf", cnn=(0.91, 0.94)))
    narrow = measured(record(cnn=(0.932, 0.934)), record("dp-merf", cnn=(0.927, 0.929)))
    assert "by 0.5 points, less than they scatter" in comparison.claims(wide, 10.0)[0]
    assert "by 0.5 points." in comparison.claims(narrow, 10.0)[0]


def test_rivals_on_both_sides_and_yardsticks_are_sorted():
    rows = measured(
        record(cnn=(0.90,)), record("dp-merf", cnn=(0.80,)), record("gs-wgan", cnn=(0.70,)),
        record("class-gaussian", cnn=(0.93,)), record("real", None, cnn=(0.99,)),
    )  # fmt: skip
    assert comparison.claims(rows, 10.0) == [
        "At ε = 10 (quick) the method of this book reaches 90.0 % with the CNN. "
        "Of the methods re-run here it is ahead of DP-MERF (80.0 %) by 10.0 points and GS-WGAN (70.0 %) by 20.0 "
        "points; behind Class Gaussian (93.0 %) by 3.0 points. "
        "Of the yardsticks it is behind Real images (99.0 %) by 9.0 points."
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"epsilon": 1.0},
        {"profile": "paper"},
        {"settings": {"n_synthetic": 10}},
        {"settings": {"evaluation": None}},
        {"data_sha256": {"train": "b" * 64}},
        {"cnn": ()},
    ],
)
def test_what_was_not_measured_in_the_same_way_is_not_compared(other):
    assert comparison.claims(measured(record(), record("dp-merf", **other)), 10.0) == []
    assert comparison.claims(measured(record("dp-merf", **other)), 10.0) == []


def test_another_delta_is_not_compared():
    other = record("dp-merf")
    other["privacy"]["delta"] = 1e-6
    assert comparison.claims(measured(record(), other), 10.0) == []


# --- what others published --------------------------------------------------------------------------------------------


def test_the_published_file_is_whole_and_mistakes_are_named(tmp_path):
    good = read_published(PUBLISHED)
    wrong = {
        "a source": good.assign(source=good["source"].where(good.index != 3, "")),
        "an accuracy from 0 to 1": good.assign(value=good["value"].where(good["score"] != "cnn", 97.3)),
        "one figure for each source": pd.concat([good, good.iloc[:1]]),
        "the columns": good.drop(columns="source"),
    }
    for expected, frame in wrong.items():
        frame.to_csv(tmp_path / "published.csv", index=False)
        with pytest.raises(ValueError, match=f"expected {expected}") as caught:
            read_published(tmp_path / "published.csv")
        assert "\n" not in str(caught.value)


def quoted(**values):
    rows = [("mnist", name, 10.0, "cnn", value, "", "a table") for name, value in values.items()]
    return pd.DataFrame(rows, columns=_PUBLISHED)


@pytest.mark.parametrize(("here", "words"), [(0.85, "2.0 points more than"), (0.81, "2.0 points less than")])
def test_a_repeat_is_held_to_its_published_figures(here, words):
    figures = quoted(**{"DP-MERF": 0.83, "DP-MERF (re-run)": here, "DPGAN": 0.5})
    beside = beside_published(measured(record("dp-merf", cnn=(here,)), record()), figures)
    assert dict(zip(beside["quoted"], beside["difference"].round(6), strict=True)) == {
        "DP-MERF": round(here - 0.83, 6), "DP-MERF (re-run)": 0.0,
    }  # fmt: skip
    (said,) = repeats_in_words(beside)
    assert said == (
        f"DP-MERF at ε = 10 (quick) reaches {100 * here:.1f} % here: {words} “DP-MERF” (83.0 %, a table) and as much "
        f"as “DP-MERF (re-run)” ({100 * here:.1f} %, a table)."
    )


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (0.90, ("our 90.0 % is more than 2 of 2", "10.0 points below ours.")),
        (0.75, ("our 75.0 % is more than 1 of 2", "5.0 points above ours.")),
        (0.80, ("our 80.0 % is more than 1 of 2", "as much as ours.")),
    ],
)
def test_our_place_among_published_figures(ours, expected):
    figures = quoted(**{"GS-WGAN": 0.80, "DPGAN": 0.70})
    with_public = figures.assign(method="PE", value=0.99, public_data="ImageNet").iloc[:1]
    figures = pd.concat([figures, with_public], ignore_index=True)
    rows = measured(record(cnn=(ours,)))
    place, gap = expected
    highest = "The highest of them is that of GS-WGAN (80.0 %, a table)"
    assert among_published(rows, figures, 10.0) == [f"At ε = 10 (quick) {place} quoted figures. {highest}, {gap}"]
    assert among_published(rows, figures, 1.0) == []


def test_runs_on_a_part_of_the_images_are_not_held_to_published_figures():
    rows = measured(record(settings={"limit": 2_000}), record("dp-merf", settings={"limit": 2_000}))
    figures = quoted(**{"DP-MERF": 0.83})
    assert beside_published(rows, figures).empty
    assert among_published(rows, figures, 10.0) == []
    assert len(comparison.claims(rows, 10.0)) == 1


# --- what we aimed at -------------------------------------------------------------------------------------------------

TARGETS = notebooks.ROOT / "book" / "targets.csv"


def aims(**values):
    rows = [("mnist", 10.0, profile, value) for profile, value in values.items()]
    return pd.DataFrame(rows, columns=_TARGETS)


def test_the_file_of_targets_is_whole_and_mistakes_are_named(tmp_path):
    good = read_targets(TARGETS)
    assert set(zip(good["dataset"], good["epsilon"], good["profile"], strict=True)) == {
        (dataset, epsilon, profile)
        for dataset in ("mnist", "fashion_mnist")
        for epsilon in (10.0, 1.0, 0.2)
        for profile in ("quick", "paper")
    }
    wide = good.pivot(index=["dataset", "epsilon"], columns="profile", values="accuracy")
    assert (wide["paper"] > wide["quick"]).all()
    wrong = {
        "a data set out of": good.assign(dataset="mnst"),
        "a profile out of": good.assign(profile="fast"),
        "an accuracy from 0 to 1": good.assign(accuracy=97.0),
        "one target for each place": pd.concat([good, good.iloc[:1]]),
        "the columns": good.drop(columns="profile"),
    }
    for expected, frame in wrong.items():
        frame.to_csv(tmp_path / "targets.csv", index=False)
        with pytest.raises(ValueError, match=f"expected {expected}") as caught:
            read_targets(tmp_path / "targets.csv")
        assert "\n" not in str(caught.value)


def test_our_scores_are_means_over_seeds_of_the_synthesis():
    """Not over all classifiers: their spread is smaller or larger than that of whole runs."""
    runs = [record(cnn=(0.90, 0.92)), record(seed=1, cnn=(0.95, 0.97)), record(seed=2, cnn=(0.93, 0.93))]
    other = [record("dp-merf"), record(epsilon=1.0, public_data="shapes"), record(epsilon=1.0, settings={"limit": 9})]
    own = runs_of([*runs, *other]).set_index(["epsilon", "public_data"])
    ten = own.loc[(10.0, "")]
    assert (ten["seeds"], ten["cnn"]) == (3, pytest.approx(0.9333333))
    assert ten["spread"] == pytest.approx(np.std([0.91, 0.96, 0.93], ddof=1))
    assert list(own.index) == [(10.0, ""), (1.0, "shapes")]
    assert runs_of([]).empty


def test_the_table_of_targets_has_every_place_and_a_dash_where_nothing_is():
    own = runs_of([record(cnn=(0.95,)), record(seed=1, cnn=(0.97,)), record(epsilon=1.0, public_data="shapes")])
    published, targets = read_published(PUBLISHED), read_targets(TARGETS)
    real = runs_of([record("real", epsilon=None, profile="paper", cnn=(0.99,))], "real")
    shown = aims_as_shown(own, published, targets, {"real images": real})
    assert list(shown)[1:] == [f"{name}, ε = {e}" for name in ("MNIST", "Fashion-MNIST") for e in (10, 1, 0.2)]
    rows = shown.set_index("CNN (%)")
    assert list(rows.loc["DP-Sinkhorn, published"]) == ["83.2", "–", "–", "71.1", "–", "–"]
    assert list(rows.loc["DP-Sinkhorn, re-run by others"]) == ["79.6", "61.9", "48.8", "65.4", "56.3", "44.3"]
    assert list(rows.loc["DPDM, published"]) == ["98.1", "95.3", "86.3", "86.2", "79.4", "72.3"]
    best = [cell.split()[0] for cell in rows.loc["best published without public data"]]
    assert best == ["98.5†", "97.3†", "86.3", "88.3†", "83.4†", "73.4†"]
    assert list(rows.loc["target, quick"]) == ["97.0", "95.0", "90.0", "84.0", "80.0", "76.0"]
    assert list(rows.loc["ours, quick"]) == ["96.0\u00a0±\u00a01.4 (2\u00a0seeds)", *["–"] * 5]
    assert list(rows.loc["ours, long"]) == ["–"] * 6
    assert rows.loc["ours, quick, public data: shapes"].iloc[1] == "95.5 (1\u00a0seed)"
    assert list(rows.loc["real images, long"]) == ["99.0 (1\u00a0seed)"] * 3 + ["–"] * 3
    ours = ["ours, quick", "ours, long", "ours, quick, public data: shapes"]
    assert list(rows.index)[-4:] == [*ours, "real images, long"]


@pytest.mark.parametrize(
    ("target", "words", "counts"),
    [
        (0.95, "met, 1.0 points above: 96.0 (1\u00a0seed)", "1 met, 0 missed, 1 not"),
        (0.97, "missed by 1.0 points: 96.0 (1\u00a0seed)", "0 met, 1 missed, 1 not"),
        (0.96, "met exactly: 96.0 (1\u00a0seed)", "1 met, 0 missed, 1 not"),
    ],
)
def test_a_target_is_met_or_missed(target, words, counts):
    runs = [record(cnn=(0.96,)), record(epsilon=1.0, cnn=(0.99,)), record(profile="paper", public_data="shapes")]
    said = aims_in_words(runs_of(runs), aims(quick=target, paper=0.9))
    assert said == [
        f"Of 2 targets: {counts} measured yet.",
        f"MNIST, quick: at ε = 10 the target of {100 * target:.1f} % is {words}.",
        "MNIST, long: at ε = 10 the target of 90.0 % is not measured yet.",  # not with public data
    ]
    assert aims_in_words(runs_of([]), aims()) == []


def test_distances_that_should_be_halved():
    """Against the least of the others at the same ε; with public data, on fewer images or without ε nothing counts."""
    runs = [
        record(fid=40.0), record(seed=1, fid=60.0), record(profile="paper", fid=70.0), record(epsilon=1.0, fid=150.0),
        record("dp-merf", fid=100.0), record("class-gaussian", fid=120.0), record("dp-sinkhorn", fid=300.0),
        record("dp-merf", epsilon=1.0, fid=140.0), record("gs-wgan", fid=10.0),
        record("real", epsilon=None, fid=1.0), record(public_data="shapes", fid=2.0),
        record("dp-sinkhorn", settings={"limit": 100}, profile="smoke", fid=3.0), record(epsilon=0.2, fid=250.0),
    ]  # fmt: skip
    table = distances_as_shown(measured(*runs)).set_index("Fréchet distance")
    assert list(table) == ["MNIST, ε = 10", "MNIST, ε = 1", "MNIST, ε = 0.2"]
    assert set(table.index[:3]) == {"DP-MERF, quick", "Class Gaussian, quick", "DP-Sinkhorn, quick"}
    assert set(table.index[3:]) == {"Latent diffusion, quick", "Latent diffusion, long"}
    assert list(table.loc["Latent diffusion, quick"]) == ["50.0", "150.0", "250.0"]
    assert list(table.loc["DP-MERF, quick"]) == ["100.0", "140.0", "–"]
    count, *each = distances_in_words(measured(*runs))
    assert count == "Of 3 distances: 1 halved; 1 less, not halved; 1 not less."
    assert sorted(each) == [
        "MNIST, long: at ε = 10, 70.0 against 100.0 of DP-MERF: less, not halved.",
        "MNIST, quick: at ε = 10, 50.0 against 100.0 of DP-MERF: halved; at ε = 1, 150.0 against 140.0 of DP-MERF "
        "(DP-Sinkhorn and Class Gaussian not measured): not less.",
    ]
    assert distances_in_words(measured(record())) == []


# --- what each ingredient buys ----------------------------------------------------------------------------------------


def scored(seed=0, epsilon=10.0, profile="quick", **scores):
    """A file of the ablation: name → (accuracy, distance)."""
    rows = {
        name.replace("_", "-"): {
            "title": f"all about {name}", "public_data": "shapes" if name.startswith("public") else None,
            "scores": dict.fromkeys(ablation.SCORES, 1.0) | {"cnn": cnn, "fid_classifier": fid},
        }
        for name, (cnn, fid) in scores.items()
    }  # fmt: skip
    return {"dataset": "mnist", "epsilon": epsilon, "profile": profile, "seed": seed, "rows": rows}


def test_effects_are_differences_from_the_default_of_the_same_seed():
    first = scored(default=(0.90, 20.0), less=(0.80, 30.0), real=(0.99, 1.0))
    second = scored(1, default=(0.94, 22.0), less=(0.82, 30.0))
    other = scored(0, 1.0, less=(0.5, 80.0))
    found = ablation.effects(ablation.table([first, second, other])).set_index(["epsilon", "name"])
    less = found.loc[(10.0, "less")]
    assert less["cnn"] == pytest.approx(0.81)
    assert less["cnn_values"] == (0.80, 0.82)
    assert less["cnn_gain"] == pytest.approx(-0.11)
    assert less["cnn_gain_spread"] == pytest.approx(np.std([-0.10, -0.12], ddof=1))
    assert less["fid_classifier_gain"] == pytest.approx(9.0)
    assert (less["seeds"], found.loc[(10.0, "real")]["seeds"]) == (2, 1)
    assert found.loc[(10.0, "real")]["cnn_gain"] == pytest.approx(0.09)
    assert math.isnan(found.loc[(1.0, "less")]["cnn_gain"])  # nothing to compare with
    assert math.isnan(found.loc[(10.0, "real")]["cnn_spread"])


def test_the_table_of_ingredients_puts_budgets_side_by_side():
    ten = scored(default=(0.90, 20.0), less=(0.80, 30.0), public=(0.70, 40.0))
    one = scored(0, 1.0, default=(0.85, 40.0), more=(0.86, 35.0))
    shown = ingredients.ingredients_as_shown(ablation.effects(ablation.table([one, ten]))).set_index("what is changed")
    assert list(shown) == [f"{what}, ε = {e}" for e in (10, 1) for what in ("CNN (%)", "gain", "FID", "FID is")]
    assert list(shown.loc["all about less"]) == ["80.0", "-10.0", "30.0", "10.0 higher", *["–"] * 4]
    assert list(shown.loc["all about default"]) == ["90.0", "–", "20.0", "–", "85.0", "–", "40.0", "–"]
    assert list(shown.loc["all about more"].iloc[[5, 7]]) == ["+1.0", "5.0 lower"]
    assert "all about public (public data: shapes)" in shown.index


@pytest.mark.parametrize(
    ("cnn", "fid", "expected"),
    [
        (0.95, 10.0, ("In accuracy, better than the profile: all about x (+5.0).", "the profile: all about x (-10.0)")),
        (0.85, 30.0, ("In accuracy, worse: all about x (-5.0).", "In distance, worse: all about x (+10.0).")),
        (0.90, 20.0, ("In accuracy, no different: all about x (+0.0).", "no different: all about x (+0.0)")),
    ],
)
def test_words_on_ingredients_hold_in_both_directions(cnn, fid, expected):
    effects = ablation.effects(ablation.table([scored(default=(0.90, 20.0), x=(cnn, fid))]))
    said = ingredients.ingredients_in_words(effects, 10.0)
    assert said[0].startswith("At ε = 10 (quick, 1 seed) the settings of the profile reach 90.0 %")
    assert all(words in " ".join(said) for words in expected)
    assert said[-1].startswith("One seed: nothing here tells")
    assert ingredients.ingredients_in_words(effects, 1.0) == []


def test_words_on_ingredients_name_scatter_public_data_and_what_privacy_and_compression_cost():
    names = {"default": (0.90, 20.0), "real": (0.98, 1.0), "reconstructed": (0.96, 5.0), "public": (0.7, 60.0)}
    first = scored(**names, x=(0.93, 20.0), non_private=(0.92, 15.0))
    second = scored(1, **names, x=(0.88, 20.0), non_private=(0.92, 15.0))
    said = " ".join(ingredients.ingredients_in_words(ablation.effects(ablation.table([first, second])), 10.0))
    assert "(quick, 2 seeds)" in said
    assert "all about x (+0.5 ± 3.5)" in said
    assert "all about public (-20.0 ± 0.0, with public data)" in said
    assert "Privacy costs 2.0 points. The same architecture without noise reaches 92.0 % (distance 15.0); at" in said
    assert "Compression costs 2.0 points. A CNN trained on real images reaches 98.0 %" in said
    assert "scatters by ± 0.0 points" in said
    level = scored(default=(0.90, 20.0), non_private=(0.89, 15.0))
    said = ingredients.ingredients_in_words(ablation.effects(ablation.table([level])), 10.0)
    assert any(one.startswith("Privacy costs nothing that shows.") for one in said)


def test_of_several_profiles_that_of_the_build_is_shown():
    rows = ablation.effects(ablation.table([scored(default=(0.9, 1.0)), scored(profile="paper", default=(0.8, 1.0))]))
    assert list(ingredients.of_one_profile(rows, "mnist", "paper")["cnn"]) == [0.8]
    assert list(ingredients.of_one_profile(rows, "mnist", "smoke")["cnn"]) == [0.9]
    assert ingredients.of_one_profile(rows, "fashion_mnist", "quick").empty
    nothing = ablation.effects(ablation.table([]))
    command = ingredients.commands_for_ingredients(nothing, "mnist", "smoke", [10.0]).split("```")[1].split()
    given = cli._parser().parse_args(command[1:])
    assert (given.dataset, given.epsilon, given.profile) == ("mnist", 10.0, "smoke")
    every = pd.DataFrame({"name": list(variations.variations("mnist", 10.0)), "epsilon": 10.0, "profile": "quick"})
    assert "```" not in ingredients.commands_for_ingredients(every, "mnist", "smoke", [10.0])
    assert "--epsilon 10 --profile quick" in ingredients.commands_for_ingredients(every[1:], "mnist", "smoke", [10.0])
    said = ingredients.commands_for_ingredients(every, "mnist", "smoke", [10.0, 1.0])
    assert "--epsilon 1 --profile quick" in said
    assert "--epsilon 10" not in said
    assert comparison.as_html(ingredients.ingredients_as_shown(nothing)) == ""
    assert ingredients.ingredients_in_words(nothing, 10.0) == []


# --- what readers call a profile --------------------------------------------------------------------------------------


def test_nothing_that_readers_see_calls_a_profile_after_the_paper(tmp_path):
    """Readers would take its numbers for the paper's. Commands keep the name."""
    rows = measured(
        *(record(profile=profile, fid=20.0) for profile in ("paper", "quick")),
        record("dp-merf", profile="paper", cnn=(0.5,), fid=90.0), finished("dp-merf", profile="paper"),
        record("dp-merf"), record("real", None, profile="paper"),
    )  # fmt: skip
    published = read_published(PUBLISHED)
    rows = with_shortfall(rows, published)
    for name in {name for names in rows["records"] for name in names}:
        labels = torch.arange(30) % 3
        path = (tmp_path / name).with_suffix(".png")
        grids.save_grid_png(path, torch.zeros(30, 1, 6, 6), labels, ("a", "b", "c"), {})
    beside = beside_published(rows, published)
    own = runs_of([record(profile="paper"), record()])
    effects = ablation.effects(ablation.table([scored(profile="paper", default=(0.8, 1.0), x=(0.7, 2.0))]))
    missing = comparison.missing_in_words(rows, "mnist", "paper", [10.0])
    figure = charts.method_comparison(rows)
    tables = [
        comparison.as_shown(rows), comparison.classifiers_as_shown(rows), beside_as_shown(beside),
        aims_as_shown(own, published, read_targets(TARGETS), {"real images": own}), distances_as_shown(rows),
        ingredients.ingredients_as_shown(effects),
    ]  # fmt: skip
    said = [
        comparison.claims(rows, 10.0), comparison.claims(rows, 10.0, DISTANCE),
        comparison.finished_in_words(rows, 10.0), repeats_in_words(beside), among_published(rows, published, 10.0),
        best_in_words(own, published), aims_in_words(own, aims(paper=0.9)), distances_in_words(rows),
        ingredients.ingredients_in_words(effects, 10.0), list(comparison.samples(rows, 10.0, [tmp_path], (1, 6, 6))),
        [missing.partition("```")[0]],
        [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()],
    ]  # fmt: skip
    texts = [*(table.to_csv() for table in tables), *(" ".join(some) for some in said)]
    assert [text for text in texts if re.search(r"\bpaper\b", text)] == []
    assert [text for text in texts if "long" not in re.findall(r"\w+", text)] == [tables[-1].to_csv()]
    assert "--profile paper" in missing


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_of_all_methods_have_the_same_labels(tmp_path):
    """Grids whose pixels tell method, class and place in the row."""
    made = [record(), record("dp-merf"), record("real", None), record("gs-wgan"), record("dp-merf", 1.0)]
    labels, names = torch.arange(30).repeat_interleave(2)[:30] % 3, ("zero", "one", "two")
    for number, one in enumerate(made):
        if one["method"] != "gs-wgan":
            values = (40 * number + 10 * labels + torch.arange(30) // 6).float() / 255
            path = tmp_path / record_name(one).replace(".json", ".png")
            grids.save_grid_png(path, values.reshape(-1, 1, 1, 1).expand(-1, 1, 6, 6), labels, names, {})
    found = comparison.samples(measured(*made), 10.0, [tmp_path / "none", tmp_path], (1, 6, 6), each=2)
    assert list(found) == ["dpldm", "dp-merf", "real"]
    for start, images in zip((0, 40, 80), found.values(), strict=True):
        assert images.shape == (6, 1, 6, 6)
        assert np.ptp(images, axis=(1, 2, 3)).max() == 0
        assert (255 * images[:, 0, 0, 0]).round().tolist() == [start + 10 * c for c in (0, 0, 1, 1, 2, 2)]
