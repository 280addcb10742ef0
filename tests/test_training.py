"""DP-SGD against steps written out by hand, so that a change in Opacus is noticed."""

import pytest
import torch
from torch import nn

from dpldm.method.denoiser import ResidualMLP
from dpldm.method.diffusion import NoiseLevels, denoising_loss
from dpldm.method.training import Average, FitSettings, fit_ordinary, fit_private
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource


class Silent(NoiseSource):
    """Takes every example (or none) and adds no noise, so that a private step can be followed by hand."""

    def __init__(self, chosen):
        super().__init__(torch.Generator())
        self.chosen = chosen

    def poisson_mask(self, n, sample_rate):
        return self.chosen

    def normal(self, shape, std=1.0, device="cpu", dtype=torch.float32):
        return torch.zeros(tuple(shape), dtype=dtype, device=device)


def mechanism(clip_norm=0.5, noise_multiplier=1.0, sample_rate=0.5, steps=1):
    return Mechanism("test", "test", noise_multiplier, sample_rate, steps, clip_norm)


def settings(**changes):
    return FitSettings(
        **({"steps": 1, "batch": 4, "physical_batch": 3, "learning_rate": 0.01, "ema_decay": 0.0} | changes)
    )


def problem(draws, n=8, dim=3):
    """The library's own network and loss with fixed noise draws: (network, loss of chosen examples)."""
    torch.manual_seed(0)
    network = ResidualMLP(dim, num_classes=2, width=5, depth=1, noise_features=2)
    nn.init.normal_(network.last.weight)
    latents, hot = torch.randn(n, dim), nn.functional.one_hot(torch.arange(n) % 2, 2).float()

    def loss(module, chosen):
        def denoise(noisy, sigma):
            return module(noisy, noisy, sigma, hot[chosen][:, None].expand(-1, draws, -1))

        # the same noise for an example, whatever batch it is in
        parts = [torch.Generator().manual_seed(int(i)) for i in chosen]
        levels = NoiseLevels()
        sigma = torch.stack([levels.draw((draws, 1), g) for g in parts])
        noise = torch.stack([torch.randn(draws, dim, generator=g) for g in parts])
        clean = latents[chosen][:, None]
        return (denoise(clean + sigma * noise, sigma) - clean).square().mean(dim=(1, 2))

    return network, loss


def by_hand(network, loss, chosen, clip_norm, expected_batch):
    """Per-example gradients one at a time by autograd, clipped, summed, divided by the expected batch size."""
    total = [torch.zeros_like(p) for p in network.parameters()]
    for index in chosen.nonzero().flatten():
        grads = torch.autograd.grad(loss(network, index[None]).sum(), list(network.parameters()))
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for t, g in zip(total, grads, strict=True):
            t += g * min(1.0, clip_norm / norm.item())
    return [t / expected_batch for t in total]


@pytest.fixture
def plain_descent(monkeypatch):
    """Gradient descent in Adam's place, so that a step shows its gradient."""
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr: torch.optim.SGD(parameters, lr=1.0))


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("clip_norm", [0.2, 100.0])
@pytest.mark.usefixtures("plain_descent")
def test_one_step_without_noise_equals_the_step_by_hand(draws, clip_norm):
    """Ghost clipping, several noise draws, several physical batches: all must give the textbook gradient."""
    network, loss = problem(draws)
    chosen = torch.tensor([True, False, True, True, True, False, True, True])
    gradient = by_hand(network, loss, chosen, clip_norm, expected_batch=4.0)
    before = [p.detach().clone() for p in network.parameters()]
    list(fit_private(network, loss, 8, mechanism(clip_norm), settings(), Silent(chosen)))
    for old, new, g in zip(before, network.parameters(), gradient, strict=True):
        torch.testing.assert_close(old - new, g, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("plain_descent")
def test_clipping_left_out_would_be_noticed():
    network, loss = problem(2)
    chosen = torch.ones(8, dtype=torch.bool)
    unclipped = by_hand(network, loss, chosen, 1e9, expected_batch=4.0)
    before = [p.detach().clone() for p in network.parameters()]
    list(fit_private(network, loss, 8, mechanism(0.05), settings(), Silent(chosen)))
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, network.parameters(), strict=True)])
    assert moved.norm() <= 8 * 0.05 / 4 + 1e-5
    assert moved.norm() < 0.5 * torch.cat([g.flatten() for g in unclipped]).norm()


@pytest.mark.usefixtures("plain_descent")
def test_with_zero_gradients_only_noise_of_the_stated_scale_is_left():
    network = nn.Linear(200, 100, bias=False)

    def loss(module, chosen):
        return (module(torch.zeros(len(chosen), 200)) * 0).sum(1)

    before = network.weight.detach().clone()
    noisy = mechanism(clip_norm=0.7, noise_multiplier=3.0)
    list(fit_private(network, loss, 8, noisy, settings(), NoiseSource.seeded(5)))
    moved = before - network.weight
    expected = 3.0 * 0.7 / 4
    assert moved.std().item() == pytest.approx(expected, rel=4 / (2 * 20_000) ** 0.5)
    assert abs(moved.mean()) < 4 * expected / 20_000**0.5


@pytest.mark.usefixtures("plain_descent")
def test_empty_poisson_batch_takes_a_noisy_step_over_the_expected_batch():
    network = nn.Linear(100, 100, bias=False)
    before = network.weight.detach().clone()

    class Empty(NoiseSource):
        def poisson_mask(self, n, sample_rate):
            return torch.zeros(n, dtype=torch.bool)

    def unreachable(module, chosen):
        raise AssertionError("no example was chosen")

    noise = Empty(torch.Generator().manual_seed(0))
    list(fit_private(network, unreachable, 8, mechanism(1.0, 2.0), settings(), noise))
    assert (before - network.weight).std().item() == pytest.approx(2.0 / 4, rel=0.05)


def test_runs_exactly_the_charged_steps_and_repeats_with_the_seed():
    ends = []
    for _ in range(2):
        network, loss = problem(2)
        steps = list(fit_private(network, loss, 8, mechanism(steps=3), settings(steps=99), NoiseSource.seeded(1)))
        assert steps == [1, 2, 3]
        ends.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_physical_batch_changes_memory_and_nothing_else():
    ends = []
    for physical in (2, 8):
        network, loss = problem(2)
        chosen = settings(physical_batch=physical)
        list(fit_private(network, loss, 8, mechanism(steps=3), chosen, NoiseSource.seeded(1)))
        ends.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_ordinary_fit_learns():
    torch.manual_seed(0)
    network, x = nn.Linear(3, 1), torch.randn(64, 3)
    target = x @ torch.tensor([[1.0], [-2.0], [0.5]])

    def loss(module, chosen):
        return (module(x[chosen]) - target[chosen]).square().sum(1)

    fitted = settings(steps=400, batch=32, physical_batch=16, learning_rate=0.05, ema_decay=0.9)
    list(fit_ordinary(network, loss, 64, fitted, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(network.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.02, rtol=0)


def test_average_is_the_running_mean_of_its_formula():
    network = nn.Linear(1, 1, bias=False)
    average, expected = Average(network, 0.5), network.weight.item()
    for step, value in enumerate([1.0, 2.0, -1.0], start=1):
        with torch.no_grad():
            network.weight.fill_(value)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    average.apply()
    assert network.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": -1}, {"clip_norm": 0.0}, {"ema_decay": 1.0}])
def test_settings_refuse_nonsense(change):
    with pytest.raises(ValueError, match="expected"):
        settings(**change)


def test_loss_used_in_training_is_the_denoising_loss():
    """The by-hand loss above is the library's: one level, many draws, same expectation."""
    network, _ = problem(1)
    z = torch.randn(4, 3)

    def denoise(noisy, sigma):
        return network(noisy, noisy, sigma, torch.zeros(*noisy.shape[:-1], 2))

    loss = denoising_loss(denoise, z, NoiseLevels(), 5, torch.Generator().manual_seed(0))
    assert loss.shape == (4,)
    assert loss.requires_grad
