"""Selection: what one image can move, the step by hand, and who is chosen."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from stripes import stripes

from dpldm.method.classifier import SelectionSettings, Selector, drawn_again
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource, watched

TINY = SelectionSettings(images=200, dim=40, steps=12, learning_rate=20.0)
ALLOWANCE = Allowance(gaussian_noise_multiplier(5.0, 1e-5), 1e-5)


def fitted(images, labels, settings=TINY, allowance=ALLOWANCE, seed=0, view=lambda images: images):
    data = PrivateData(images, labels, 2, Ledger())
    selector = Selector(2, settings)
    steps = list(selector.fit(data, lambda: stripes(200, seed=9)[0], view, allowance, NoiseSource.seeded(seed)))
    assert steps == list(range(1, settings.steps + 1))
    return selector, data.ledger


def test_what_is_charged_is_one_mechanism_that_uses_the_allowance_up():
    selector, ledger = fitted(*stripes(600))
    assert list(ledger.mechanisms) == [selector.mechanism(ALLOWANCE)]
    assert ledger.epsilon(1e-5) == pytest.approx(5.0, rel=1e-3)
    assert ledger.mechanisms[0].sensitivity == 1.0


def test_it_learns_under_privacy_and_judges_what_the_view_shows():
    images, labels = stripes(2_000)
    test_images, test_labels = stripes(500, seed=3)
    selector, _ = fitted(images, labels)
    assert (selector.logits(test_images).argmax(1) == test_labels).float().mean() > 0.9
    turned, _ = fitted(images, labels, view=lambda images: images.mT)
    assert (turned.logits(test_images).argmax(1) == test_labels).float().mean() < 0.1


def sums_of_gradients(images, labels):
    """What the noise is added to in the first step, and the selector."""
    with watched(lambda one: one.value) as seen:
        selector, ledger = fitted(images, labels, replace(TINY, steps=1, learning_rate=1.0, momentum=0.0))
    assert [one.mechanism for one in seen] == list(ledger.mechanisms)
    assert ledger.mechanisms[0].sensitivity == 1.0
    return -selector.weights.double() * len(images), selector


def test_first_step_by_hand_and_what_one_image_moves():
    images, labels = stripes(300)
    total, selector = sums_of_gradients(images, labels)
    rows = selector._features(images).double()
    residuals = 0.5 - F.one_hot(labels, 2).double()  # of the softmax of zero weights
    torch.testing.assert_close(total, rows.T @ residuals, atol=1e-4, rtol=1e-4)
    without, _ = sums_of_gradients(images[1:], labels[1:])
    moved = (total - without).norm()
    assert 0.5 < moved <= 1.0  # residual of length √½ times a row of length 1
    assert moved == pytest.approx(0.5**0.5, rel=1e-3)


def test_a_confidently_wrong_image_is_clipped_to_the_sensitivity():
    """With weights that are sure of the wrong class, a residual has length √2 and must be shortened to 1."""
    images, labels = stripes(2_000)
    settings = replace(TINY, steps=40)
    weights = []
    for flipped in (False, True):
        chosen = labels.clone()
        if flipped:
            chosen[0] = 1 - chosen[0]
        weights.append(fitted(images, chosen, settings, Allowance(0.0, 1e-5))[0].weights)
    change = (weights[0] - weights[1]).norm()
    # a flipped label is one image out and one in: two rows of length 1 at most in each step of momentum 0.9
    reach = settings.learning_rate * settings.steps * 2 / (len(images) * (1 - settings.momentum))
    assert 0 < change < reach


BOTH = replace(TINY, as_they_are=True)


def test_images_as_they_are_count_as_much_as_the_view_and_cost_nothing_more():
    """Against a view that turns every stripe, they leave nothing to learn in the first step's mean gradient."""
    images, labels = stripes(300)
    totals = []
    for settings, view in ((TINY, lambda x: x), (TINY, lambda x: x.flip(3)), (BOTH, lambda x: x.flip(3))):
        settings = replace(settings, steps=1, learning_rate=1.0, momentum=0.0)
        with watched(lambda one: one.value):
            selector, ledger = fitted(images, labels, settings, view=view)
        assert list(ledger.mechanisms) == [selector.mechanism(ALLOWANCE)]
        totals.append(selector.weights)
    assert not torch.allclose(totals[0], totals[1])
    torch.testing.assert_close(totals[2], (totals[0] + totals[1]) / 2)


def test_without_a_view_it_learns_from_images_as_they_are():
    images, labels = stripes(400)
    alone, same = (fitted(images, labels, view=view)[0] for view in (None, lambda x: x))
    assert torch.equal(alone.weights, same.weights)


def test_two_views_of_one_image_move_no_more_than_one_view():
    images, labels = stripes(300)
    settings = replace(BOTH, steps=1, learning_rate=1.0, momentum=0.0)
    totals = []
    for first in (0, 1):
        with watched(lambda one: one.value):
            selector, _ = fitted(images[first:], labels[first:], settings, view=lambda x: x.flip(3))
        totals.append(-selector.weights.double() * (len(images) - first))
    assert 0 < (totals[0] - totals[1]).norm() <= 1.0


def test_pushed_images_are_seen_as_their_class_and_moved_no_further_than_asked():
    selector, _ = fitted(*stripes(2_000), settings=replace(TINY, push=1.0, push_steps=3))
    images, labels = stripes(300, seed=5)
    wanted = 1 - labels  # the other class: the hardest case
    pushed = selector.pushed(images, wanted)
    assert pushed.min() >= 0
    assert pushed.max() <= 1
    assert (pushed - images).flatten(1).norm(dim=1).max() <= 1.0 + 1e-5
    before, after = (F.cross_entropy(selector.logits(x), wanted) for x in (images, pushed))
    assert after < before
    alone = selector.pushed(images[7:8], wanted[7:8])  # each by itself
    torch.testing.assert_close(alone, pushed[7:8], atol=1e-4, rtol=1e-4)


def test_an_image_without_a_gradient_stays_where_it_is():
    selector, _ = fitted(*stripes(400), settings=replace(TINY, push=1.0))
    selector.weights = torch.zeros_like(selector.weights)
    images, labels = stripes(20, seed=5)
    assert torch.equal(selector.pushed(images, labels), images)


def test_state_goes_there_and_back():
    selector, _ = fitted(*stripes(400))
    again = Selector(2, TINY)
    again.restore(selector.state())
    images, _ = stripes(30, seed=4)
    assert torch.equal(again.logits(images), selector.logits(images))


def test_seed_decides_the_noise():
    images, labels = stripes(400)
    first, again, other = (fitted(images, labels, seed=seed)[0].weights for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def released(rounds, labels, candidates=3):
    """Which candidate (round, place) is released for each label, and what was drawn; logits (rounds, B, classes)."""
    asked = []

    def draw(rows, turn):
        asked.append((turn, rows.tolist()))
        images = torch.stack([torch.full((len(rows),), float(turn)), rows.float()], 1)
        return images.view(-1, 2, 1, 1)

    def judge(images):
        return torch.stack([rounds[int(turn), int(row)] for turn, row in images[:, :, 0, 0]])

    chosen = drawn_again(draw, judge, torch.tensor(labels), candidates)
    return [tuple(map(int, image)) for image in chosen[:, :, 0, 0]], asked


def test_the_first_candidate_that_is_seen_as_its_label_is_released_else_the_likeliest():
    rounds = torch.tensor(
        [
            [[3.0, 0, 0], [0, 2, 1], [2, 0, 1]],
            [[9.0, 0, 0], [3, 0, 0], [0, 0, 1]],
            [[0.0, 9, 0], [9, 0, 0], [0, 0, 9]],
        ]
    )
    chosen, asked = released(rounds, [0, 0, 2])
    assert chosen == [(0, 0), (1, 1), (1, 2)]
    assert asked == [(0, [0, 1, 2]), (1, [1, 2])]  # nothing is drawn in vain
    assert released(rounds[:2], [1, 2, 1], 2)[0] == [(0, 0), (0, 1), (1, 2)]  # none is ever seen
    assert released(rounds, [2, 2, 2], 1)[0] == [(0, 0), (0, 1), (0, 2)]  # one round leaves no choice


@pytest.mark.parametrize(
    "change",
    [
        {"candidates": 0},
        {"share": 1.0},
        {"steps": 0},
        {"momentum": 1.0},
        {"images": 0},
        {"push": -1.0},
        {"push_steps": 0},
    ],
)
def test_settings_refuse_nonsense(change):
    with pytest.raises(ValueError, match="expected"):
        SelectionSettings(**change)
