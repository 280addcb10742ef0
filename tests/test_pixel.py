"""DPDM: its private step by hand, what one image can move, its ledger, its samples, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

from dpldm.method.diffusion import NoiseLevels, precondition
from dpldm.method.settings import SamplingSettings
from dpldm.method.training import FitSettings, fit_private
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec
from dpldm.privacy.noise import NoiseSource
from dpldm.recipes import CHOSEN_ON, pixel_settings
from dpldm.rivals import dpdm
from dpldm.rivals.dpdm import PixelDiffusion, PixelDiffusionSettings, PixelUNet

SHAPE = (1, 8, 8)
FIVE = PrivacySpec(epsilon=5.0)
TINY = replace(pixel_settings("smoke", CHOSEN_ON, 5.0), width=4, condition=6)
SMALL = PixelDiffusionSettings(fold=1, width=4, levels=2, growth=2, condition=5, draws=3)  # for steps by hand


def toy_images(n=300, shape=SHAPE, seed=0):
    """Class c is a bright bar on a dark, noisy ground."""
    labels = torch.arange(n) % 3
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 0.2
    for c in range(3):
        images[labels == c, :, 2 * c + 1] += 0.7
    return images, labels


def fitted(spec=FIVE, settings=TINY, seed=0, data=None):
    images, labels = data or toy_images()
    guard = PrivateData(images, labels, 3, Ledger())
    synthesizer = PixelDiffusion(tuple(images.shape[1:]), 3, settings, spec, seed)
    synthesizer.fit(guard)
    return synthesizer, guard.ledger


def draw(synthesizer, n=12, seed=0, sampling=None):
    return torch.cat(list(synthesizer.sample(torch.arange(n) % 3, seed, sampling)))


# --- the private step -------------------------------------------------------------------------------------------------


class Silent(NoiseSource):
    """Takes the examples it is told to and adds no noise, so that a private step can be followed by hand."""

    def __init__(self, chosen):
        super().__init__(torch.Generator())
        self.chosen = chosen

    def poisson_mask(self, n, sample_rate):
        return self.chosen

    def normal(self, shape, std=1.0, device="cpu", dtype=torch.float32):
        return torch.zeros(tuple(shape), dtype=dtype, device=device)


def problem(n=6, shape=(1, 4, 4)):
    """The network with no layer at zero, and the loss of chosen images at chosen draws, the same in every batch."""
    torch.manual_seed(0)
    network = PixelUNet(shape, 3, SMALL)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    images, labels = toy_images(n, (1, 8, 8))
    pixels, hot = 2 * images[:, 0, :4, :4].flatten(1) - 1, nn.functional.one_hot(labels, 3).float()
    draws = [torch.Generator().manual_seed(i) for i in range(n)]
    sigma = torch.stack([NoiseLevels().draw((SMALL.draws, 1), g) for g in draws])
    noisy = pixels[:, None] + sigma * torch.stack([torch.randn(SMALL.draws, 16, generator=g) for g in draws])

    def loss(module, chosen, which=slice(None)):
        at = sigma[chosen][:, which]
        error = dpdm._denoise(module, noisy[chosen][:, which], at, hot[chosen]) - pixels[chosen][:, None]
        return (error / precondition(at).out).square().mean(dim=(1, 2))

    return network, loss


def gradient_by_hand(network, loss, index):
    """One image's gradient: its draws one at a time by autograd, then their mean. As one long vector, float64."""
    rows = []
    for which in range(SMALL.draws):
        value = loss(network, torch.tensor([index]), slice(which, which + 1)).sum()
        rows.append(torch.cat([g.flatten().double() for g in torch.autograd.grad(value, list(network.parameters()))]))
    return torch.stack(rows).mean(0), torch.stack(rows)


def clipped(row, norm):
    return row * min(1.0, norm / float(row.norm()))


def step(chosen, clip_norm, monkeypatch):
    """What one noiseless private step adds up, as one long vector: the sum of the clipped gradients."""
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr: torch.optim.SGD(parameters, lr=1.0))
    network, loss = problem()
    before = [p.detach().clone() for p in network.parameters()]
    mechanism = Mechanism("test", "test", 1.0, 0.5, 1, clip_norm)
    settings = FitSettings(steps=1, batch=3, physical_batch=2, ema_decay=0.0)
    mask = torch.zeros(6, dtype=torch.bool)
    mask[chosen] = True
    list(fit_private(network, loss, 6, mechanism, settings, Silent(mask)))
    moved = [(a - b).flatten() for a, b in zip(before, network.parameters(), strict=True)]
    return 3 * torch.cat(moved).detach().double()  # times the expected batch


@pytest.mark.parametrize("clip_norm", [0.5, 1e4])
def test_one_step_without_noise_equals_the_step_by_hand(clip_norm, monkeypatch):
    """Convolutions, pictures, scales and shifts, several draws and physical batches, against single draws."""
    chosen = [0, 2, 3, 4, 5]
    network, loss = problem()
    rows = [gradient_by_hand(network, loss, index)[0] for index in chosen]
    assert all((row.norm() > 0.5) and (row.norm() < 1e4) for row in rows)  # all are clipped, or none
    expected = torch.stack([clipped(row, clip_norm) for row in rows]).sum(0)
    assert (expected == 0).float().mean() < 0.2  # hardly a parameter is left out
    moved = step(chosen, clip_norm, monkeypatch)
    assert (moved - expected).norm() < 1e-4 * expected.norm()


def test_draws_are_averaged_before_they_are_clipped(monkeypatch):
    """Clipped one by one they would add up to something else, and an image could give K clip norms."""
    network, loss = problem()
    mean, draws = gradient_by_hand(network, loss, 1)
    one_by_one = torch.stack([clipped(row, 0.5) for row in draws]).mean(0)
    moved = step([1], 0.5, monkeypatch)
    assert (moved - clipped(mean, 0.5)).norm() < 1e-4 * 0.5
    assert (moved - one_by_one).norm() > 0.05 * 0.5


@pytest.mark.parametrize("extra", range(6))
def test_one_image_more_moves_the_clipped_sum_by_the_clip_norm_at_most(extra, monkeypatch):
    others = [index for index in range(5) if index != extra]
    change = step([*others, extra], 0.5, monkeypatch) - step(others, 0.5, monkeypatch)
    assert 0.99 * 0.5 < change.norm() <= 0.5 * (1 + 1e-4)


def test_an_images_loss_depends_on_no_other_image():
    synthesizer, _ = fitted()
    images, labels = toy_images(8)
    others = images.flip(2).clone()
    others[5] = images[5]
    losses = [
        synthesizer.loss(synthesizer.network, synthesizer.to_pixels(x), labels, torch.Generator().manual_seed(0))
        for x in (images, others)
    ]
    torch.testing.assert_close(losses[0][5], losses[1][5])
    assert (losses[0] - losses[1])[torch.arange(8) != 5].abs().min() > 1e-6


def test_loss_of_an_untrained_network_is_known():
    """F starts at zero: what is left is (σ x - n)² / (1 + σ²), a number between x² and 1 on average."""
    settings = replace(TINY, draws=400)
    synthesizer = PixelDiffusion(SHAPE, 3, settings, None, 0)
    pixels = torch.full((4, 64), 0.5)
    loss = synthesizer.loss(synthesizer._build_network(), pixels, torch.zeros(4).long(), torch.Generator())
    sigma = settings.noise_levels.draw((200_000,), torch.Generator())
    expected = float(((0.25 * sigma**2 + 1) / (1 + sigma**2)).mean())
    assert loss.mean().item() == pytest.approx(expected, rel=0.02)


def test_layers_with_parameters_are_those_that_opacus_knows():
    network = PixelUNet(SHAPE, 3, TINY)
    kinds = {type(module) for module in network.modules() if list(module.parameters(recurse=False))}
    assert kinds == {nn.Linear, nn.Conv3d}
    assert kinds <= set(GradSampleModule.GRAD_SAMPLERS)
    assert not list(network.buffers())


def test_noise_of_every_step_is_what_the_ledger_says(monkeypatch):
    stds, normal = [], NoiseSource.normal

    def watch(self, shape, std=1.0, device="cpu", dtype=torch.float32):
        stds.append(std)
        return normal(self, shape, std, device, dtype)

    monkeypatch.setattr(NoiseSource, "normal", watch)
    synthesizer, ledger = fitted()
    (mechanism,) = ledger.mechanisms
    assert set(stds) == {mechanism.noise_multiplier * TINY.fit.clip_norm}
    assert len(stds) == mechanism.steps * len(list(synthesizer.network.parameters()))


def test_empty_batches_take_their_steps():
    settings = replace(TINY, fit=replace(TINY.fit, batch=1, steps=6))
    assert draw(fitted(PrivacySpec(noise_multiplier=1.0), settings)[0]).isfinite().all()


# --- what is charged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.5, 10.0])
def test_spent_epsilon_is_within_the_target_and_an_independent_accountant_agrees(epsilon):
    _, ledger = fitted(PrivacySpec(epsilon=epsilon))
    (mechanism,) = ledger.mechanisms
    fit = TINY.fit
    assert (mechanism.sample_rate, mechanism.steps, mechanism.sensitivity) == (200 / 300, fit.steps, fit.clip_norm)
    assert 0.98 * epsilon < ledger.epsilon(1e-5) <= epsilon
    assert ledger.epsilon(1e-5, "pld") == pytest.approx(ledger.epsilon(1e-5), rel=0.01)


def test_a_noise_multiplier_is_taken_as_it_is_and_draws_cost_nothing():
    for draws in (1, 4):
        _, ledger = fitted(PrivacySpec(noise_multiplier=2.5), replace(TINY, draws=draws))
        assert ledger.mechanisms[0].noise_multiplier == 2.5
        assert ledger.epsilon(1e-5) == Ledger([replace(ledger.mechanisms[0])]).epsilon(1e-5) < math.inf


# --- the network and its images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 10), (1, 9, 7)])
def test_samples_are_images_of_any_shape_in_batches(shape):
    synthesizer, _ = fitted(data=toy_images(shape=shape))
    images = draw(synthesizer)
    assert images.shape == (12, *shape)
    assert 0 <= images.min() <= images.max() <= 1
    sizes = [len(b) for b in synthesizer.sample(torch.zeros(12).long(), 0, SamplingSettings("stochastic", 4, batch=5))]
    assert sizes == [5, 5, 2]


def test_pixels_and_back():
    images = toy_images(shape=(2, 9, 7))[0]
    synthesizer = PixelDiffusion((2, 9, 7), 3, TINY, None, 0)
    pixels = synthesizer.to_pixels(images)
    assert pixels.shape == (300, 2 * 12 * 8)
    assert -1 <= pixels.min() <= pixels.max() <= 1
    assert (pixels.unflatten(1, (2, 12, 8))[:, :, 9:] == -1).all()
    torch.testing.assert_close(synthesizer.to_images(pixels), images)


def test_network_treats_draws_and_images_apart_and_looks_at_class_and_level():
    network, _ = problem()
    noisy, sigma, hot = torch.randn(2, 3, 16), torch.rand(2, 3, 1) + 0.5, torch.eye(3)[:2]
    whole = network(noisy, sigma, hot)
    for image in range(2):
        for which in range(3):
            one = network(noisy[image, which][None, None], sigma[image, which][None, None], hot[image : image + 1])
            torch.testing.assert_close(whole[image, which], one[0, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, network(noisy, sigma, hot.flip(0)))
    assert not torch.allclose(whole, network(noisy, 2 * sigma, hot))


def test_without_noise_it_learns_the_classes_in_the_labels_order():
    """The bright bar of each class is where it belongs, for labels in any order and with guidance too."""
    fit = FitSettings(steps=250, batch=60, physical_batch=60, learning_rate=5e-3, ema_decay=0.9)
    settings = replace(TINY, width=8, condition=16, fit=fit)
    synthesizer, ledger = fitted(None, settings)
    assert ledger.epsilon(1e-5) == math.inf
    labels = torch.tensor([2, 0, 0, 1, 2, 1] * 5)
    for guidance in (1.0, 1.5):
        sampling = SamplingSettings("deterministic", 8, guidance, batch=7)
        images = torch.cat(list(synthesizer.sample(labels, 0, sampling)))
        bars = torch.stack([images[:, 0, 2 * c + 1].mean(1) for c in range(3)], 1)
        assert (bars.argmax(1) == labels).float().mean() > 0.9


def test_seed_decides_and_a_restored_synthesizer_draws_the_same():
    first = fitted()[0]
    images = draw(first)
    torch.testing.assert_close(draw(fitted()[0]), images)
    assert not torch.allclose(draw(fitted(seed=1)[0]), images)
    assert not torch.allclose(draw(first, seed=1), images)
    again = PixelDiffusion(SHAPE, 3, TINY, None, 7)
    again.restore("diffusion", first.state("diffusion"))
    torch.testing.assert_close(draw(again), images)
    assert set(first.state("diffusion")) == set(first.network.state_dict())


def test_secure_runs_differ():
    secure = PrivacySpec(epsilon=5.0, secure_mode=True)
    assert not torch.allclose(draw(fitted(secure)[0]), draw(fitted(secure)[0]))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_any_read():
    data = PrivateData(*toy_images(100), 3, Ledger())
    with pytest.raises(ValueError, match=r"^expected at least as many images as the batch of 200, got 100: [^\n]+$"):
        PixelDiffusion(SHAPE, 3, TINY, FIVE, 0).fit(data)
    with pytest.raises(PrivacyError, match="delta"):
        PixelDiffusion(SHAPE, 3, TINY, PrivacySpec(epsilon=5.0, delta=0.01), 0).fit(data)
    assert data.reads == ()


@pytest.mark.parametrize(
    "change",
    [{"fold": 0}, {"width": 6}, {"levels": 0}, {"growth": 0}, {"blocks": 0}, {"draws": 0}, {"label_dropout": 1.0}],
)
def test_settings_refuse_nonsense_in_one_line(change):
    with pytest.raises(ValueError, match=r"^expected [^\n]+, got [^\n]+$"):
        PixelDiffusionSettings(**change)


def test_paper_profile_is_that_of_the_paper_and_profiles_grow():
    smoke, quick, paper = (pixel_settings(profile, CHOSEN_ON, 10.0) for profile in ("smoke", "quick", "paper"))
    assert smoke.fit.steps < quick.fit.steps < paper.fit.steps
    assert (paper.fit.batch, paper.draws, paper.fit.clip_norm) == (4096, 32, 1.0)
    assert paper.fit.steps * 4096 / 60_000 == pytest.approx(300, rel=0.01)
    sizes = [
        sum(p.numel() for p in PixelUNet((1, 28, 28), 10, settings).parameters()) for settings in (smoke, quick, paper)
    ]
    assert sizes[0] < 50_000 < sizes[1] < 150_000
    assert 1.4e6 < sizes[2] < 2e6
