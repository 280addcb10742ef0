"""Attacks on gradients, on the model and on synthetic images."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dpldm.audit.bounds import CanaryScores
from dpldm.audit.evidence import Evidence, Examples, coins, decode
from dpldm.method import denoiser, diffusion, training
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.method.training import FitSettings
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource, clip_rows, watched

GRADIENT_CANARIES = 2_000  # in the audit of a method, for each of its DP-SGDs
ANOTHER_SEED = 500_000_000  # of what the attacker makes himself: he does not know the seed of the run


# --- attack on DP-SGD -------------------------------------------------------------------------------------------------


def gradient_canaries(mechanism: Mechanism, canaries: int, seed: int, noise: NoiseSource | None = None) -> CanaryScores:
    """Canaries for `training.fit_private`: each has a weight of its own and a gradient ten times the clipping norm.

    The attacker sees every noisy gradient (as the guarantee of DP-SGD allows) and adds up each canary's own coordinate.
    The coordinates have independent noise, so with a sample rate of 1 the scores are Gaussian and fit for
    `gaussian_bound`; for smaller rates use `one_run_bound`. Source: "Dirac canaries" of Nasr et al. 2023.

    Args:
        mechanism: noise, sample rate, steps and clipping norm to audit.
        canaries: how many, all of the private data; those whose coin says no have a gradient of zero.
        seed: of the coins and, unless ``noise`` is given, of the noise.
    """
    included = coins(canaries, seed)
    network = nn.Linear(canaries, 1, bias=False)
    nn.init.zeros_(network.weight)
    size = 10 * mechanism.sensitivity * included.float()

    def loss(module: nn.Module, chosen: Tensor) -> Tensor:
        rows = nn.functional.one_hot(chosen, canaries).float() * size[chosen, None]
        return module(rows)[:, 0]

    settings = FitSettings(steps=mechanism.steps, batch=canaries, ema_decay=0.0)
    source = noise or NoiseSource.seeded(seed + 1)
    with watched() as seen:
        for _ in training.fit_private(network, loss, canaries, mechanism, settings, source):
            pass
    return CanaryScores(torch.stack([one.released for one in seen]).sum(0), included)


# --- attacks on what is published -------------------------------------------------------------------------------------


@torch.no_grad()
def model_scores(synthesizer: LatentDiffusion, examples: Examples, draws: int = 64, seed: int = 0) -> Tensor:
    """Minus the released model's denoising loss on each example (n,): high for what it was trained on.

    Source: loss-based membership inference, Yeom et al. 2018; for diffusion models Matsumoto, Miura and Yanai 2023.
    """
    assert synthesizer.mixture is not None
    assert synthesizer.network is not None, "fit or restore first"
    base, network, settings = synthesizer.mixture, synthesizer.network, synthesizer.settings
    radius = settings.mixture.clip_norm * math.sqrt(synthesizer.compressor.dim)
    latents = clip_rows(synthesizer.compressor.encode(examples.images), radius)
    scores = []
    for part, labels in zip(latents.split(1024), examples.labels.split(1024), strict=True):
        random = torch.Generator().manual_seed(seed)

        def denoise(noisy: Tensor, sigma: Tensor, labels: Tensor = labels) -> Tensor:
            return denoiser.denoise(base, network, noisy, sigma, labels)

        scores.append(-diffusion.denoising_loss(denoise, part, settings.levels, draws, random))
    return torch.cat(scores)


def synthetic_scores(images: Tensor, synthetic: Tensor) -> Tensor:
    """Minus the distance of each image (n,) to the nearest of the published synthetic images, in pixels."""
    flat = synthetic.flatten(1)
    return torch.cat([-torch.cdist(part, flat).min(1).values for part in images.flatten(1).split(512)])


@dataclass(frozen=True)
class Roc:
    """An attack's rates at every threshold, from strict to lax; both not falling from 0 to 1."""

    false_positive: np.ndarray
    true_positive: np.ndarray

    def at(self, false_positive: float) -> float:
        """The true positive rate at a false positive rate of at most that (0 to 1)."""
        return float(self.true_positive[self.false_positive <= false_positive].max())

    @property
    def area(self) -> float:
        """Area under the curve: 0.5 for guessing."""
        return float(np.trapezoid(self.true_positive, self.false_positive))


def roc(members: Tensor, others: Tensor) -> Roc:
    """The curve of "a high score means member"; scores that are equal fall on the same side.

    >>> roc(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0])).area
    0.875
    """
    cuts = torch.cat([members, others]).unique(sorted=True).flip(0)
    rates = [[0.0, *((scores[None] >= cuts[:, None]).double().mean(1).tolist())] for scores in (others, members)]
    return Roc(np.array(rates[0]), np.array(rates[1]))


def model_in_one_run(
    fit: Callable[[Examples, int], LatentDiffusion], known: Examples, canaries: Examples, seed: int
) -> dict[str, CanaryScores]:
    """Canaries for a whole method: those whose coin says yes join the training images; one run, for `one_run_bound`.

    The attacker has the saved model and nothing else. "loss": how much better the model fits a canary than one fitted
    without any canary. "moments": which canaries explain, by least squares, what the mixture in the model says about
    the counts, sums and second moments of its classes beyond those of the known images. ``fit`` gets the images and a
    seed; the attacker's own fit has another one, because nobody outside knows the noise.
    """
    included = coins(len(canaries), seed)
    attacked, reference = fit(known + canaries[included], seed), fit(known, seed + ANOTHER_SEED)
    n = len(known) + int(included.sum())
    return model_attacks(attacked, reference, known, canaries, included, n)


def model_attacks(
    attacked: LatentDiffusion, reference: LatentDiffusion, known: Examples, canaries: Examples, included: Tensor, n: int
) -> dict[str, CanaryScores]:
    """Scores of canaries by their loss under the attacked model and by its moments, less those of a reference."""
    losses = model_scores(attacked, canaries) - model_scores(reference, canaries)
    return {
        "loss": CanaryScores(losses, included),
        "moments": CanaryScores(_moment_scores(attacked, known, canaries, n), included),
    }


def _moment_scores(synthesizer: LatentDiffusion, known: Examples, canaries: Examples, n: int) -> Tensor:
    assert synthesizer.mixture is not None, "fit or restore first"
    radius = synthesizer.settings.mixture.clip_norm * math.sqrt(synthesizer.compressor.dim)
    totals = n * synthesizer.mixture.class_weights
    means, weights = synthesizer.mixture.means, synthesizer.mixture.weights
    vectors, values = synthesizer.mixture.vectors, synthesizer.mixture.values
    covariances = (vectors * values[:, None]) @ vectors.mT
    second = covariances + torch.einsum("ck,cki,ckj->cij", weights, means, means)
    blocks = torch.cat([torch.ones(len(totals), 1), torch.einsum("ck,cki->ci", weights, means), second.flatten(1)], 1)

    def extended(examples: Examples) -> Tensor:
        latents = clip_rows(synthesizer.compressor.encode(examples.images), radius).double()
        return torch.cat([torch.ones(len(latents), 1, dtype=latents.dtype), latents], dim=1)

    def class_sums(examples: Examples) -> Tensor:
        rows = [extended(examples)[examples.labels == c] for c in range(examples.num_classes)]
        return torch.stack([torch.cat([row.sum(0), (row[:, 1:].T @ row[:, 1:]).flatten()]) for row in rows])

    rows = extended(canaries)
    one = torch.cat([rows, (rows[:, 1:, None] * rows[:, None, 1:]).flatten(1)], dim=1)
    hot = nn.functional.one_hot(canaries.labels, canaries.num_classes)
    signal = (hot[:, :, None] * one[:, None]).flatten(1)
    rest = (totals[:, None] * blocks - class_sums(known)).flatten()
    gram = signal @ signal.T
    return decode(Evidence(gram, signal @ rest), 1e-3 * float(gram.diagonal().mean().sqrt())).float()
