"""The compressors of stage 1 by name, and their settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dpldm.method.autoencoder import Autoencoder, AutoencoderSettings, RefinedPCA, RefinedPCASettings
from dpldm.method.compressor import Compressor, Shape
from dpldm.method.pca import PCASettings, PrivatePCA


@dataclass(frozen=True)
class CompressionSettings:
    """Which compressor and the settings of each: ``pca``, ``refined-pca``, ``autoencoder``, ``public-autoencoder``."""

    kind: str = "pca"
    pca: PCASettings = field(default_factory=PCASettings)
    refined: RefinedPCASettings = field(default_factory=RefinedPCASettings)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)

    def __post_init__(self) -> None:
        if self.kind not in COMPRESSORS:
            raise ValueError(f"expected a compressor out of {', '.join(COMPRESSORS)}, got {self.kind!r}: choose one")


COMPRESSORS: dict[str, Callable[[Shape, CompressionSettings], Any]] = {
    "pca": lambda shape, settings: PrivatePCA(shape, settings.pca),
    "refined-pca": lambda shape, settings: RefinedPCA(shape, settings.refined),
    "autoencoder": lambda shape, settings: Autoencoder(shape, settings.autoencoder),
    "public-autoencoder": lambda shape, settings: Autoencoder(shape, settings.autoencoder, public=True),
}


def build(shape: Shape, settings: CompressionSettings, seed: int = 0) -> Compressor:
    """An unfitted compressor for images of ``shape`` (C, H, W); ``seed`` decides the first weights where it has any."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return COMPRESSORS[settings.kind](shape, settings)
