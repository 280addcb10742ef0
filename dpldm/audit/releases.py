"""Attacks on the statistics that mechanisms release, and on anything that moves beside them."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from dpldm.audit.bounds import CanaryScores
from dpldm.audit.evidence import (
    Examples,
    Fit,
    coins,
    decode,
    evidence_of,
    full_batch,
    guarded,
    in_turn,
    only_the_first,
    values_of,
)
from dpldm.method import classifier, compression, edge_transport, mixture
from dpldm.method.settings import SynthesisSettings
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.noise import NoiseSource, Release, watched


def shuffled_delta_lower(noise_multiplier: float, steps: int, epsilon: float) -> float:
    """Lower bound on δ(ε) of one epoch of DP-SGD that shuffles into ``steps`` batches instead of Poisson sampling.

    No attack on one image's gradient sees this gap; it shows against gradients that all point the other way. Then the
    batch sums are N(2e, σ²) or N(e, σ²) for one random batch e, and "the largest exceeds C" tells them apart.
    Source: Chua et al. 2024, "How private are DP-SGD implementations?", section 4.3 (zero-out neighbours).
    """
    cuts = np.linspace(0, 2 + 6 * noise_multiplier, 2_000)
    others = (steps - 1) * stats.norm.logcdf(cuts / noise_multiplier)

    def exceeds(shift: float) -> np.ndarray:
        return -np.expm1(others + stats.norm.logcdf((cuts - shift) / noise_multiplier))

    return max(0.0, float((exceeds(2.0) - math.exp(epsilon) * exceeds(1.0)).max()))


def uncharged(ledger: Ledger, releases: Sequence[Release]) -> list[str]:
    """What the ledger leaves out or says wrong about full-batch releases, one line each; empty if all is charged."""
    charged = [m for m in ledger.mechanisms if m.sample_rate == 1 for _ in range(m.steps)]
    lines, releases = [], full_batch(releases)
    for index, release in enumerate(releases):
        said = charged[index] if index < len(charged) else None
        if said is None:
            lines.append(f"release {index + 1} of {len(releases)} is not in the ledger")
        elif said != release.mechanism:
            lines.append(f"release {index + 1} is not the {said.name!r} that the ledger says")
    return lines


def statistics_fit(shape: tuple[int, int, int], settings: SynthesisSettings, allowance: Allowance) -> Fit:
    """The compressor and the mixture of the method, fitted with their shares of ``allowance``."""

    def fit(data: PrivateData, noise: NoiseSource) -> None:
        compressor = compression.build(shape, settings.compression)
        random = torch.Generator().manual_seed(0)
        for _ in compressor.fit(data, allowance.part(settings.compression_share), noise, random):
            pass
        part = allowance.part(settings.mixture_share)
        mixture.fit_mixture(data, compressor.encode, compressor.dim, settings.mixture, part, noise)

    return fit


def statistics_in_one_run(
    fit: Fit, known: Examples, canaries: Examples, seed: int, trust: float = 1.0
) -> dict[str, CanaryScores]:
    """Scores of m canaries after a single run, by mechanism and together ("all"): for `one_run_bound`.

    The attacker's guess is the linear least-squares estimate of all coins at once, from one release or all of them,
    with the charged noise times ``trust``: an attacker who doubts that there is noise takes a number near 0.
    """
    included = coins(len(canaries), seed)
    found = evidence_of(fit, known + canaries[included], known, canaries, len(known) + len(canaries), seed)
    return {name: CanaryScores(decode(evidence, trust).float(), included) for name, evidence in found.items()}


def statistics_in_many_runs(
    fit: Fit, known: Examples, canary: Examples, runs: int, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Scores (runs,) of one canary with and without it, by mechanism and together: for `gaussian_bound`.

    Honest scores are exactly Gaussian: N(μ, 1) with the canary and N(0, 1) without, where μ is at most 1 / noise
    multiplier, reached by an image that uses the whole sensitivity.
    """
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for run in range(2 * runs):
        taking_part = known + canary if run % 2 == 0 else known
        for name, evidence in evidence_of(fit, taking_part, known, canary, len(known) + 1, seed + run).items():
            score = float(evidence.match[0] / evidence.gram[0, 0].sqrt().clamp_min(1e-12))
            scores.setdefault(name, ([], []))[run % 2].append(score)
    return {name: (torch.tensor(present), torch.tensor(absent)) for name, (present, absent) in scores.items()}


def replay(
    synthesizer: LatentDiffusion,
    part: Examples,
    n: int,
    attacked: LatentDiffusion,
    answers: Sequence[Tensor],
    ledger: Ledger,
) -> list[Tensor]:
    """What ``part`` alone puts into each full-batch mechanism of a run that releases ``answers``; no DP-SGD is done."""
    with watched(in_turn(answers)) as seen:
        for stage in _replayed(synthesizer, part, n, attacked, seen, ledger, take_over=True):
            take_up(synthesizer, stage, attacked)
    return values_of(full_batch(seen))


def what_else_moved(
    synthesizer: LatentDiffusion,
    part: Examples,
    n: int,
    attacked: LatentDiffusion,
    answers: Sequence[Tensor],
    ledger: Ledger,
) -> list[str]:
    """What other images (``part``) change in a run that releases the same ``answers``: of all that comes from synthetic
    images, which `_replay` takes over from the attacked run because it is the same for all, nothing may."""
    moved = []
    learned = {classifier.STAGE: "selector", edge_transport.STAGE: "transport"}
    with watched(in_turn(answers)) as seen:
        for stage in _replayed(synthesizer, part, n, attacked, seen, ledger, take_over=False):
            if stage in learned:
                ours, theirs = (getattr(one, learned[stage]) for one in (synthesizer, attacked))
                if not (torch.equal(ours.mean, theirs.mean) and torch.equal(ours.axes, theirs.axes)):
                    moved.append(f"features of the {stage}")
            take_up(synthesizer, stage, attacked)
    return moved


def take_up(synthesizer: LatentDiffusion, stage: str, fitted: LatentDiffusion) -> None:
    """Go on from a finished stage as a run does from its file: how tensors lie in memory changes the last digits."""
    synthesizer.restore(stage, {name: value.contiguous().clone() for name, value in fitted.state(stage).items()})


def _replayed(
    synthesizer: LatentDiffusion,
    part: Examples,
    n: int,
    attacked: LatentDiffusion,
    seen: list[Release],
    ledger: Ledger,
    take_over: bool,
) -> Iterator[str]:
    """Each stage after its last full-batch release; the caller then restores it."""
    last, guard = 0, guarded(part, n)
    for stage in synthesizer.stages:
        last += sum(m.steps for m in ledger.mechanisms if m.stage == stage and m.sample_rate == 1)
        if take_over:
            synthesizer.selector.restore(attacked.selector.state())
            synthesizer.transport.restore(attacked.transport.state())
        if len(full_batch(seen)) < last:
            with only_the_first(len(part)):
                for _ in synthesizer.fit_stage(stage, guard):
                    if len(full_batch(seen)) == last:
                        break
        yield stage
