"""Everything that decides a synthesizer beside the data, the budget and the seed."""

from dataclasses import dataclass, field, replace

from dpldm.method import diffusion
from dpldm.method.classifier import SelectionSettings
from dpldm.method.compression import CompressionSettings
from dpldm.method.decoders import MatchingSettings
from dpldm.method.diffusion import NoiseLevels
from dpldm.method.edge_transport import TransportSettings
from dpldm.method.finishing import FinishSettings
from dpldm.method.mixture import MixtureSettings
from dpldm.method.training import FitSettings


@dataclass(frozen=True)
class SamplingSettings:
    """How latents are drawn. ``guidance``: 0 to 100, 1 is none. ``sampler``: a key of `diffusion.SAMPLERS`."""

    sampler: str = "deterministic"
    steps: int = 16
    guidance: float = 1.0
    batch: int = 5_000

    def __post_init__(self) -> None:
        if self.sampler not in diffusion.SAMPLERS:
            raise ValueError(
                f"expected a sampler out of {', '.join(diffusion.SAMPLERS)}, got {self.sampler!r}: choose one"
            )
        if not 2 <= self.steps <= 10_000 or self.batch < 1 or not 0 <= self.guidance <= 100:
            raise ValueError(
                f"expected 2 to 10000 steps, batch >= 1 and guidance from 0 to 100, got {self.steps}, {self.batch} and "
                f"{self.guidance}"
            )


@dataclass(frozen=True)
class SynthesisSettings:
    """Everything that decides a synthesizer beside the data, the budget and the seed.

    The shares are of the budget's 1/σ²: ``compression_share`` for stage 1, ``mixture_share`` for the mixture that the
    diffusion starts from; ``selection``, ``transport`` and ``matching`` have their own; DP-SGD of the diffusion network
    gets what is left (see :attr:`shares`).

    ``finish``: what is done to every decoded image, from what is publicly known about its kind; free, and never random.

    ``selection``: with 2 or more candidates for each image released, the first is taken that a private classifier
    sees as what it should be; that classifier may also push images towards their class, after they are moved.

    ``transport``: with 1 or more steps, images are moved until their edges are spread as those of private images.

    ``last``: what is done to images at the very end, like ``finish``.

    ``matching``: with 1 or more steps, all or some of the latents are decoded by small networks that match mean
    features of the private images, and such images are selected and pushed, but not moved.
    """

    compression: CompressionSettings = field(default_factory=CompressionSettings)
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    levels: NoiseLevels = field(default_factory=NoiseLevels)
    width: int = 192
    depth: int = 1
    draws: int = 2
    label_dropout: float = 0.1
    fit: FitSettings = field(default_factory=FitSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    compression_share: float = 0.1
    mixture_share: float = 0.3
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    finish: FinishSettings = field(default_factory=FinishSettings)
    last: FinishSettings = field(default_factory=FinishSettings)
    matching: MatchingSettings = field(default=MatchingSettings(), metadata={"unless_default": True})

    def __post_init__(self) -> None:
        if not (self.compression_share > 0 and self.mixture_share > 0 and self.diffusion_share > 0):
            given = ", ".join(f"{part} {share:g}" for part, share in self.shares.items())
            raise ValueError(f"expected positive shares that leave something for DP-SGD, got {given}: lower one")
        if self.finish.is_random:
            raise ValueError(f"expected finish without chance, got {self.finish}: bend images, or some, in `last`")

    @property
    def selects(self) -> bool:
        return self.selection.candidates > 1

    @property
    def pushes(self) -> bool:
        return self.selects and self.selection.push > 0

    @property
    def moves(self) -> bool:
        return self.transport.steps > 0

    @property
    def matches(self) -> bool:
        return self.matching.steps > 0

    @property
    def stage_1_draws(self) -> bool:
        """Whether stage 1 decodes any image that is released."""
        return not self.matches or self.matching.image_share < 1

    @property
    def shares(self) -> dict[str, float]:
        """What releases take of the budget's 1/σ²; what is switched off takes nothing."""
        return {
            "compression": self.compression_share,
            "mixture": self.mixture_share,
            "selection": self.selection.share if self.selects else 0.0,
            "transport": self.transport.share if self.moves else 0.0,
            "matching": self.matching.share if self.matches else 0.0,
        }

    @property
    def diffusion_share(self) -> float:
        """What is left for DP-SGD of the denoiser."""
        *others, last = self.shares.values()
        return 1 - sum(others) - last  # in this order, to the last digit, which the names of records depend on


def smoke(settings: SynthesisSettings) -> SynthesisSettings:
    """The same settings at toy size, for tests."""
    tiny = FitSettings(steps=5, batch=200, physical_batch=128)
    few = {"start": 2, "features": 200, "width": 16, "channels": 4, "images": 200, "generated": 60}
    chosen = settings.compression
    return replace(
        settings,
        compression=replace(
            chosen,
            pca=replace(chosen.pca, dim=8, frequencies=8),
            refined=replace(chosen.refined, pca=replace(chosen.pca, dim=8, frequencies=8), width=16, fit=tiny),
            autoencoder=replace(chosen.autoencoder, dim=8, width=16, fit=tiny, public_images=300),
        ),
        mixture=replace(settings.mixture, components=2, iterations=2),
        width=32,
        depth=1,
        fit=tiny,
        selection=replace(settings.selection, images=200, dim=8, steps=5),
        transport=replace(settings.transport, images=200, dim=4, steps=2),
        matching=replace(settings.matching, steps=min(settings.matching.steps, 5), **few),
        sampling=replace(settings.sampling, steps=4),
    )
