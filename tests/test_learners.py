"""Learners that nobody tuned for, two-sample tests, and whether planted faults are seen."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from test_evaluation import TINY, Images, toy
from torch import Tensor

from dpldm.book import instruments
from dpldm.evaluation import learners, protocol, two_sample
from dpldm.evaluation.classifiers import Labelled
from dpldm.evaluation.fidelity import memorisation
from dpldm.evaluation.settings import CLASSIFIERS, JUDGES, LEARNERS

CPU = torch.device("cpu")


def tells(images: Tensor, real: Tensor, judge: str = "forest", view: str = "") -> dict[str, float]:
    return two_sample.two_sample(judge, view, images, real, replace(TINY, cnn_epochs=6), CPU, 1)


# --- learners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LEARNERS)
def test_each_learner_learns_what_is_there_and_repeats(kind: str) -> None:
    made, test = toy(300, 0), toy(180, 2)
    shuffled = made.labels[torch.randperm(300, generator=torch.Generator().manual_seed(9))]
    reached = learners.learner_accuracy(kind, Labelled(made.images, made.labels), test, 4)
    assert reached > 0.95
    assert reached == learners.learner_accuracy(kind, Labelled(made.images, made.labels), test, 4)
    assert learners.learner_accuracy(kind, Labelled(made.images, shuffled), test, 4) < 0.7


def test_at_most_so_many_images_are_learned_and_the_seed_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Spy:
        def fit(self, rows: np.ndarray, labels: np.ndarray) -> "Spy":
            seen.append(rows)
            return self

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return np.zeros(len(rows))

    monkeypatch.setattr(learners, "build_learner", lambda *_: Spy())
    made = toy(300, 0)
    for seed in (1, 1, 2):
        learners.learner_accuracy("knn", Labelled(made.images, made.labels), toy(180, 2), seed, most=60)
    assert [len(rows) for rows in seen] == [60] * 3
    assert (seen[0] == seen[1]).all()
    assert not (seen[0] == seen[2]).all()


def test_an_unknown_learner_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown learner 'tree'"):
        learners.build_learner("tree", 0)


def test_fewer_pixels_or_images_than_components_are_fine() -> None:
    made = toy(30, 0)
    assert learners.learner_accuracy("svm", Labelled(made.images, made.labels), toy(180, 2), 4) > 1 / 3


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_test_set_is_not_there_while_a_learner_learns(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, test = toy(150, 0), toy(90, 2)
    expected = learners.learner_accuracy(kind, Labelled(made.images, made.labels), test, 4)
    wiped, build = replace(test, images=test.images.clone(), labels=test.labels.clone()), learners.build_learner

    class Watched:
        def __init__(self, *arguments: object) -> None:
            self.learner = build(*arguments)

        def fit(self, rows: np.ndarray, labels: np.ndarray) -> "Watched":
            wiped.images.fill_(math.nan)
            wiped.labels.fill_(-1)
            self.learner.fit(rows, labels)
            wiped.images.copy_(test.images)
            wiped.labels.copy_(test.labels)
            return self

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return self.learner.predict(rows)

    monkeypatch.setattr(learners, "build_learner", Watched)
    assert learners.learner_accuracy(kind, Labelled(made.images, made.labels), wiped, 4) == expected


# --- two-sample tests -------------------------------------------------------------------------------------------------


def test_the_area_is_that_of_scikit_learn_with_ties() -> None:
    random = np.random.default_rng(0)
    positive, negative = random.integers(0, 9, 80) + 1.0, random.integers(0, 9, 50) * 1.0
    expected = roc_auc_score(np.r_[np.ones(80), np.zeros(50)], np.r_[positive, negative])
    assert two_sample.auc(positive, negative) == pytest.approx(expected)
    assert two_sample.auc(negative, positive) == pytest.approx(1 - expected)


def test_the_interval_is_as_wide_as_the_closed_form_of_two_gaussians() -> None:
    """Hanley and McNeil 1982: the variance of the AUC of exponential scores, near enough to that of Gaussian ones."""
    random, n = np.random.default_rng(1), 400
    low, high = two_sample.auc_interval(random.normal(1, 1, n), random.normal(0, 1, n), 0)
    area = norm.cdf(1 / math.sqrt(2))
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (first - area**2) + (n - 1) * (second - area**2)) / n**2
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.15)
    assert low < area < high


def test_a_perfect_judge_has_a_point_for_an_interval_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert two_sample.auc_interval(np.arange(5.0) + 9, np.arange(5.0), 0) == (1, 1)


@pytest.mark.parametrize("judge", JUDGES)
def test_judges_tell_what_differs_and_not_what_does_not(judge: str) -> None:
    real, fresh = toy(400, 1).images, toy(400, 2).images
    same, other = tells(fresh, real, judge), tells(fresh * 0.8, real, judge)
    assert same["low"] < 0.5 < same["high"]
    assert other["low"] > 0.75
    assert other["n"] == 200
    assert same == tells(fresh, real, judge)


@pytest.mark.parametrize("judge", JUDGES)
def test_halves_of_the_test_images_are_the_yardstick_whatever_the_synthetic_ones_are(judge: str) -> None:
    measured = tells(torch.zeros(400, 1, 12, 12), toy(801, 1).images, judge, "_real")
    assert measured["low"] < 0.5 < measured["high"]
    assert measured["n"] == 200


def test_the_halves_share_no_image_and_have_all_but_an_odd_one() -> None:
    first, second = two_sample.halves(torch.arange(101), 3)
    assert len(first) == len(second) == 50
    assert len(set(first.tolist()) | set(second.tolist())) == 100


def test_a_real_half_against_the_other_scatters_about_a_half_as_its_size_says() -> None:
    """The standard error of the AUC where nothing differs is √((2n + 1) / 12n²) (Mann and Whitney 1947)."""
    real, n = toy(10_000, 1, side=6).images, two_sample.ASKED_IMAGES
    measured = [two_sample.two_sample("forest", "_real", real, real, TINY, CPU, seed) for seed in range(2)]
    assert {one["n"] for one in measured} == {n} == {4_000}
    assert all(abs(one["auc"] - 0.5) < 4 * math.sqrt((2 * n + 1) / (12 * n**2)) for one in measured)


def test_in_few_grey_levels_a_finer_grading_is_not_seen() -> None:
    """Both sides are flat in 8 levels; one has a hair of noise that only a finer scale shows."""
    random = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 8, (400, 1, 12, 12), generator=random) / 7
    noisy = (levels + 0.02 * torch.rand(levels.shape, generator=random)).clamp(max=1)
    real = torch.randint(0, 8, (400, 1, 12, 12), generator=random) / 7
    assert tells(noisy, real)["low"] > 0.9
    coarse = tells(noisy, real, view="_greys")
    assert coarse["low"] < 0.5 < coarse["high"]


def test_held_out_images_are_those_that_the_judge_did_not_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = toy(60, 0).images, toy(50, 1).images
    asked = []
    monkeypatch.setattr(
        two_sample, "_forest_scores", lambda seen, labels, held, seed: asked.extend([seen, labels, held]) or held[:, 0]
    )
    images, _ = two_sample.held_out_scores("forest", first, second, TINY, CPU, 3)
    seen, labels, held = asked
    assert len(images) == 25
    assert torch.equal(held[:25], first[images])
    assert labels.tolist() == [1] * 25 + [0] * 25
    everything = torch.cat([seen, held]).flatten(1)
    assert len(everything.unique(dim=0)) == 100  # no image on both sides


def test_the_images_that_give_away_are_the_faulty_ones_and_those_that_pass_are_not() -> None:
    """Half of the synthetic images are too bright, half are right."""
    real, fresh = toy(400, 1).images, toy(400, 2).images
    bright = torch.arange(400) % 2 == 0
    mixed = torch.where(bright[:, None, None, None], fresh * 0.5 + 0.5, fresh)
    surest, passing = two_sample.giveaways(mixed, real, 0, 8)
    assert bright[surest].all()
    assert not bright[passing].any()


def test_tables_and_words_of_a_record_without_the_new_scores_have_dashes() -> None:
    area = {"auc": 0.9, "low": 0.88, "high": 0.92}
    metrics = {"learners": {"svm": [0.8, 0.9], "knn": []}, "two_sample": {"forest": area}}
    table = instruments.learners_table(metrics, {"svm": 1.0})
    assert table.loc["SVM"].tolist() == pytest.approx([0.85, 1, 0.85])
    assert table.drop("SVM").isna().all(axis=None)
    assert instruments.judges_table(metrics).loc["forest"].tolist() == ["0.900 (0.880–0.920)", "–", "–"]
    assert set(instruments.judges_table({}).to_numpy().ravel()) == {"–"}
    assert instruments.told_in_words({}, "forest") == "was not asked"


def test_what_is_kept_is_told_for_the_learners_that_both_records_have() -> None:
    ours = {"learners": {"cnn": [0.9, 0.7], "knn": [0.6], "svm": [0.5]}, "by_class": {"cnn": [None, 0.9, 0.8]}}
    theirs = {"learners": {"cnn": [1.0], "knn": [0.6], "mlp": [0.9]}}
    said = instruments.keeps_in_words(ours, theirs, ["cat", "dog", "owl"])
    assert "2 kinds of learners, the images above keep 90.0 % on average, the least with CNN: 80.0 %" in said
    assert said.endswith("A CNN is right least often about owl: 80.0 %.")
    assert instruments.keeps_in_words({}, theirs, ["cat"]) == ""
    assert "learners" not in instruments.keeps_in_words(ours, {}, ["cat", "dog", "owl"])


# --- planted faults ---------------------------------------------------------------------------------------------------


def accuracies(images: Tensor, labels: Tensor, test: Images) -> list[float]:
    return [learners.learner_accuracy(kind, Labelled(images, labels), test, 4) for kind in LEARNERS]


def test_bright_pixels_set_to_white_are_seen_by_the_judges_even_in_few_greys() -> None:
    real, fresh = toy(400, 1).images, toy(400, 2).images
    faulty = torch.where(fresh > 0.5, torch.ones(()), fresh)
    assert tells(fresh, real)["low"] < 0.5
    assert min(tells(faulty, real, view=view)["low"] for view in ("", "_greys")) > 0.95
    assert tells(faulty, real, "cnn")["low"] > 0.95


def swapped(made: Images) -> tuple[Tensor, Tensor]:
    return made.images, torch.tensor([0, 2, 1])[made.labels]


def left_out(made: Images) -> tuple[Tensor, Tensor]:
    """Class 2 is not there: images of class 1 stand in its place under its label."""
    filled = made.images.clone()
    filled[made.labels == 2] = toy(len(filled), 7).images[made.labels == 1][: int((made.labels == 2).sum())]
    return filled, made.labels


@pytest.mark.parametrize("fault", [swapped, left_out])
def test_a_swapped_and_a_missing_class_are_seen_by_every_learner(
    fault: Callable[[Images], tuple[Tensor, Tensor]],
) -> None:
    made, test = toy(300, 0), toy(180, 2)
    assert min(accuracies(made.images, made.labels, test)) > 0.95
    # one class in three is lost; at 2/3 the standard error of 180 answers is 0.035
    assert max(accuracies(*fault(made), test)) < 2 / 3 + 5 * 0.035


def test_a_missing_class_is_seen_by_the_forest_that_judges() -> None:
    real = toy(600, 1).images
    assert tells(left_out(toy(600, 2))[0], real)["low"] > 0.5


def test_a_class_without_any_label_is_refused() -> None:
    made, train, test = toy(240, 0), toy(240, 1), toy(180, 2)
    kept = made.labels < 2
    with pytest.raises(ValueError, match="no synthetic image has label 2"):
        protocol.evaluation_parts(made.images[kept], made.labels[kept], train, test, TINY)


def test_a_few_copies_are_seen_where_new_and_smooth_images_are_not() -> None:
    train, test, fresh = toy(600, 1).images, toy(200, 2).images, toy(400, 3).images
    copied = torch.cat([train[:20], fresh[20:]])
    shares = [memorisation(images, train, test, 400)["share_copied"] for images in (fresh, 0 * fresh + 0.4, copied)]
    assert shares == [0, 0, 0.05]
    near = copied + 0.02 * torch.rand(copied.shape, generator=torch.Generator().manual_seed(0))
    assert memorisation(near, train, test, 400)["share_copied"] == 0.05


# --- in the whole evaluation ------------------------------------------------------------------------------------------


def test_the_parts_give_the_keys_of_the_record_whatever_the_number_of_threads() -> None:
    made, train, test = toy(240, 0), toy(240, 1), toy(180, 2)
    done = ("cnn", "fidelity", "memorisation", "fid_inception")
    told: list[float] = []
    scores = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            parts = protocol.evaluation_parts(
                made.images, made.labels, train, test, TINY, done=done, progress=lambda share, _: told.append(share)
            )
            scores.append(protocol.merge(partial for _, partial in parts))
    finally:
        torch.set_num_threads(threads)
    assert scores[0] == scores[1]
    assert set(scores[0]["learners"]) == {"mlp", "logreg", *LEARNERS}
    assert scores[0]["learners"]["mlp"] == scores[0]["accuracy"]["mlp"]
    names = {f"{judge}{view}" for judge in JUDGES for view in ("", "_greys", "_real")}
    assert set(scores[0]["two_sample"]) == names
    assert all(0 <= one["low"] <= one["auc"] <= one["high"] <= 1 for one in scores[0]["two_sample"].values())
    assert max(told) == pytest.approx(1)


def test_class_by_class_every_learner_shows_which_labels_are_swapped() -> None:
    images, labels = swapped(toy(300, 0))
    test = toy(180, 2)
    settings = replace(TINY, cnn_epochs=6, mlp_epochs=6, logreg_epochs=6)
    done = [part for part in protocol.PARTS if part not in (*LEARNERS, *CLASSIFIERS)]
    parts = protocol.evaluation_parts(images, labels, toy(60, 3), test, settings, CPU, 1, done=done)
    metrics = protocol.merge(scores for _, scores in parts)
    counts = torch.bincount(test.labels, minlength=3).double()
    for kind in (*LEARNERS, *CLASSIFIERS):
        classes = torch.tensor(metrics["by_class"][kind], dtype=torch.float64)
        assert classes[0] > 0.9
        assert classes[1:].max() < 0.1
        seeds = metrics["learners"][kind]
        assert float((classes * counts).sum() / counts.sum()) == pytest.approx(sum(seeds) / len(seeds))
