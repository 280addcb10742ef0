"""Matched decoders: what they learn from one release, what is charged, and what they need of our own images."""

from dataclasses import replace

import pytest
import torch

from dpldm.method import decoders
from dpldm.method.decoders import Matcher, MatchingSettings
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource

SHAPE, CLASSES = (1, 12, 12), 3
TINY = MatchingSettings(steps=120, decoders=2, features=400, width=32, channels=8, generated=60, start=20)
ALLOWANCE = Allowance(gaussian_noise_multiplier(10.0, 1e-5), 1e-5)


def bars(n, seed=0, shift=0):
    """Class c is a bright bar in the rows 4c and 4c + 1, ``shift`` rows further down."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = 0.1 * torch.rand(n, *SHAPE, generator=random)
    for c in range(CLASSES):
        images[labels == c, :, 4 * c + shift : 4 * c + shift + 2] += 0.8
    return images, labels


def own():
    """Latents that say nothing, and bars in the wrong rows."""
    images, labels = bars(300, seed=5, shift=2)
    return torch.randn(300, 4, generator=torch.Generator().manual_seed(2)), images, labels


def fitted(settings=TINY, allowance=ALLOWANCE, seed=0):
    data = PrivateData(*bars(3_000), CLASSES, Ledger())
    matcher = Matcher(SHAPE, CLASSES, settings, 700, torch.device("cpu"))
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        steps = list(matcher.fit(data, own, allowance, NoiseSource.seeded(seed), random))
    assert steps == list(range(1, 2 + settings.start + settings.steps))
    return matcher, data


def drawn(matcher, n=300, seed=0):
    latents = torch.randn(n, 4, generator=torch.Generator().manual_seed(3))
    return matcher.decode(latents, torch.arange(n) % CLASSES, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def matched():
    return fitted()


def test_decoders_draw_what_the_embedding_says_and_not_what_they_started_from(matched):
    images = drawn(matched[0])
    assert images.shape == (300, *SHAPE)
    assert 0 <= images.min() <= images.max() <= 1
    for c in range(CLASSES):
        rows = images[c::CLASSES].mean((0, 1, 3))
        assert rows[4 * c : 4 * c + 2].min() > max(0.4, 2 * rows[4 * c + 2 : 4 * c + 4].max())


def test_without_a_single_step_of_matching_they_draw_what_stage_1_draws():
    settings = replace(TINY, steps=0, start=150)
    images = drawn(fitted(settings)[0])
    for c in range(CLASSES):
        rows = images[c::CLASSES].mean((0, 1, 3))
        assert rows[4 * c + 2 : 4 * c + 4].min() > 0.5 > rows[4 * c : 4 * c + 2].max()


def test_what_is_charged_is_one_release_that_uses_the_allowance_up(matched):
    matcher, data = matched
    assert data.ledger.mechanisms == (matcher.mechanism(ALLOWANCE),)
    assert [(m.name, m.stage, m.steps) for m in data.ledger.mechanisms] == [("mean embedding", "matching", 1)]
    assert data.ledger.epsilon(1e-5) == pytest.approx(10.0, rel=1e-3)


def test_every_decoder_is_used_and_chance_alone_chooses_which(matched):
    matcher = matched[0]
    first, again, other = drawn(matcher), drawn(matcher), drawn(matcher, seed=1)
    torch.testing.assert_close(first, again)
    same = (first - other).flatten(1).abs().amax(1) < 1e-6
    assert 0.35 < same.float().mean() < 0.65  # of two decoders, the same again in half of the cases


def test_state_brings_everything_back(matched):
    other = Matcher(SHAPE, CLASSES, TINY, 0, torch.device("cpu"))
    other.restore(matched[0].state())
    torch.testing.assert_close(drawn(other), drawn(matched[0]))


def test_the_seed_decides_the_fit(matched):
    torch.testing.assert_close(drawn(fitted()[0]), drawn(matched[0]))
    assert not torch.allclose(drawn(fitted(seed=1)[0]), drawn(matched[0]), atol=1e-3)


@pytest.mark.parametrize(
    "change", [{"steps": -1}, {"share": 1.0}, {"features": 3}, {"decoders": 0}, {"edge_scale": 0.0}]
)
def test_refuses_what_makes_no_sense(change):
    with pytest.raises(ValueError, match="expected"):
        MatchingSettings(**change)


def test_is_off_unless_asked_for():
    assert MatchingSettings().steps == 0
    assert decoders.STAGE == "matching"
