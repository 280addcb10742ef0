"""The three readings of the paper, attacked."""

from dataclasses import dataclass, replace

import torch

from dpldm.audit.evidence import Examples
from dpldm.method import compression
from dpldm.method.compressor import Compressor
from dpldm.method.settings import SynthesisSettings
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import PrivacySpec, gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource
from dpldm.rivals.class_gaussian import ClassGaussianSettings, NoisedLatents


@dataclass(frozen=True)
class Reading:
    """A fitted synthesizer, the ε that a reading of the abstract claims, and what the ledger says (may be infinite)."""

    synthesizer: LatentDiffusion
    epsilon_claimed: float
    epsilon_ledger: float


def reading(name: str, examples: Examples, settings: SynthesisSettings, spec: PrivacySpec, seed: int) -> Reading:
    """Fit one of three readings of "privacy-aware compression, then latent diffusion", all with the same claim.

    "A": only the encoder is private (it gets the whole budget), the rest is ordinary training on its latents. The
    claimed ε is that of the encoder, and it is not true: latents of private images are private data. "B": each latent
    and its label are clipped and noised once; what follows is post-processing. "C": both stages are private and
    composed, as `LatentDiffusion` does. Only for comparison: nothing here can write a record.
    """
    if spec.epsilon is None or name not in _READINGS:
        raise PrivacyError(f"expected reading A, B or C and a target epsilon, got {name!r} and {spec.epsilon}")
    data = PrivateData(examples.images, examples.labels, examples.num_classes, Ledger())
    synthesizer, claimed = _READINGS[name](data, settings, spec, seed)
    return Reading(synthesizer, claimed, data.ledger.epsilon(spec.delta))


def _first_stage(data: PrivateData, settings: SynthesisSettings, allowance: Allowance, seed: int) -> Compressor:
    compressor = compression.build(_shape(data), settings.compression, seed)
    random = torch.Generator().manual_seed(seed)
    for _ in compressor.fit(data, allowance, NoiseSource.seeded(seed), random):
        pass
    return compressor


def _whole(spec: PrivacySpec) -> Allowance:
    assert spec.epsilon is not None
    return Allowance(gaussian_noise_multiplier(spec.epsilon, spec.delta), spec.delta)


def _unfitted(data: PrivateData, settings: SynthesisSettings, spec: PrivacySpec | None, seed: int) -> LatentDiffusion:
    return LatentDiffusion(_shape(data), data.num_classes, settings, spec, seed)


def _two_stages(settings: SynthesisSettings) -> SynthesisSettings:
    """Without matching, selection and transport: readings A and B are of the paper's two stages only."""
    return replace(
        settings,
        selection=replace(settings.selection, candidates=1),
        transport=replace(settings.transport, steps=0),
        matching=replace(settings.matching, steps=0),
    )


def _shape(data: PrivateData) -> tuple[int, int, int]:
    channels, height, width = data.image_shape
    return channels, height, width


def _reading_a(
    data: PrivateData, settings: SynthesisSettings, spec: PrivacySpec, seed: int
) -> tuple[LatentDiffusion, float]:
    ordinary = _unfitted(data, _two_stages(settings), None, seed)
    ordinary.compressor = _first_stage(data, settings, _whole(spec), seed)
    claimed = data.ledger.epsilon(spec.delta)
    for _ in ordinary.fit_stage("diffusion", data):
        pass
    return ordinary, claimed


def _reading_b(
    data: PrivateData, settings: SynthesisSettings, spec: PrivacySpec, seed: int
) -> tuple[LatentDiffusion, float]:
    chosen = ClassGaussianSettings(settings.compression, settings.mixture, settings.compression_share)
    noised = NoisedLatents(_shape(data), data.num_classes, chosen, spec, seed)
    noised.fit(data)
    result = _unfitted(data, _two_stages(settings), spec, seed)
    result.compressor, result.mixture = noised.compressor, noised.mixture
    result.diffusion.build_network()  # starts at zero: what noise this strong leaves of the latents is their Gaussian
    return result, data.ledger.epsilon(spec.delta)


def _reading_c(
    data: PrivateData, settings: SynthesisSettings, spec: PrivacySpec, seed: int
) -> tuple[LatentDiffusion, float]:
    composed = _unfitted(data, settings, spec, seed)
    composed.fit(data)
    return composed, data.ledger.epsilon(spec.delta)


_READINGS = {"A": _reading_a, "B": _reading_b, "C": _reading_c}
