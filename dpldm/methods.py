"""The methods by name, and how much work a profile is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from dpldm import recipes
from dpldm.data.images import Known
from dpldm.evaluation.settings import EVALUATION, EvaluationSettings
from dpldm.method.settings import SamplingSettings, SynthesisSettings
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.privacy.guard import PrivateData
from dpldm.recipes import settings_for
from dpldm.rivals import class_gaussian, dp_merf, dpdm, gs_wgan, real, sinkhorn


class Synthesizer(Protocol):
    """What a method has to offer; `LatentDiffusion` says what each part means."""

    @property
    def stages(self) -> Sequence[str]: ...
    def total_steps(self, stage: str) -> int: ...
    def check(self, n: int) -> None: ...
    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]: ...
    def sample(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]: ...
    def state(self, stage: str) -> dict[str, Tensor]: ...
    def restore(self, stage: str, state: dict[str, Tensor]) -> None: ...


class MethodSettings(Protocol):
    """A method's settings: a frozen dataclass of numbers, texts, truth values and further such dataclasses."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


@dataclass(frozen=True)
class Method:
    """How a method is made.

    build: from image shape, number of classes, settings, budget or None, seed and device.
    settings: the type of its settings. choose: those of a profile, from its name, what may be known of the images, ε or
    None, and δ.
    private: False for a yardstick, which takes no budget and gives no privacy.
    title: what readers call it. about: what it does, in a line. citation: its key in the bibliography, or empty.
    published: names of `book/published.csv` under which others give figures of it.
    """

    build: Callable[..., Synthesizer]
    settings: type[Any]
    choose: Callable[[str, Known, float | None, float], Any]
    private: bool = True
    title: str = ""
    about: str = ""
    citation: str = ""
    published: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """How much work a run is. ``title``: what readers call it; ``limit``: most real images used of each split (None:
    all), a choice that depends on nothing private; ``n_synthetic``: images to draw; ``evaluation``: how they are
    scored."""

    title: str
    limit: int | None
    n_synthetic: int
    evaluation: EvaluationSettings


PROFILES: dict[str, Profile] = {
    "smoke": Profile("smoke", 2_000, 1_000, replace(EVALUATION["smoke"], classifier_seeds=1)),
    "quick": Profile("quick", None, 60_000, EVALUATION["quick"]),
    "paper": Profile("long", None, 60_000, EVALUATION["paper"]),  # not the numbers of the paper
}


def profile_title(name: str) -> str:
    """What pages call a profile; a name that is none stays as it is.

    >>> profile_title("paper")
    'long'
    """
    return PROFILES[name].title if name in PROFILES else name


METHODS: dict[str, Method] = {
    LatentDiffusion.method: Method(
        LatentDiffusion,
        SynthesisSettings,
        settings_for,
        title="Latent diffusion",
        about="Private compression, then a private mixture and diffusion in the latent space: the method of this book.",
        citation="ge2024latent",
    ),
    "class-gaussian": Method(
        class_gaussian.ClassGaussian,
        class_gaussian.ClassGaussianSettings,
        recipes.class_gaussian_settings,
        title="Class Gaussian",
        about="Private PCA, then one Gaussian for each class; nothing is trained. The floor.",
    ),
    "dp-merf": Method(
        dp_merf.MeanEmbedding,
        dp_merf.MeanEmbeddingSettings,
        recipes.mean_embedding_settings,
        title="DP-MERF",
        about="The mean of random Fourier features for each class is released once; a generator learns to match it.",
        citation="harder2021dpmerf",
        published=("DP-MERF", "DP-MERF (re-run)"),
    ),
    "dp-sinkhorn": Method(
        sinkhorn.Sinkhorn,
        sinkhorn.SinkhornSettings,
        recipes.sinkhorn_settings,
        title="DP-Sinkhorn",
        about="A generator lowers its optimal-transport cost to real images, through clipped and noised gradients.",
        citation="cao2021sinkhorn",
        published=("DP-Sinkhorn", "DP-Sinkhorn (re-run)"),
    ),
    "gs-wgan": Method(
        gs_wgan.GradientSanitizedGAN,
        gs_wgan.GANSettings,
        recipes.gan_settings,
        title="GS-WGAN",
        about="Secret discriminators on parts of the data teach a generator, through clipped and noised gradients.",
        citation="chen2020gswgan",
        published=("GS-WGAN", "GS-WGAN (re-run)"),
    ),
    dpdm.PixelDiffusion.method: Method(
        dpdm.PixelDiffusion,
        dpdm.PixelDiffusionSettings,
        recipes.pixel_settings,
        title="DPDM",
        about="A diffusion model of the pixels themselves, fitted by DP-SGD with several noise draws for each image.",
        citation="dockhorn2023dpdm",
        published=(
            "DPDM",
            "DPDM (FID sampler)",
            "DPDM (accuracy sampler)",
            "DPDM (stochastic DDIM)",
            "DPDM (deterministic DDIM)",
        ),
    ),
    "reading-b": Method(
        class_gaussian.NoisedLatents,
        class_gaussian.ClassGaussianSettings,
        recipes.noised_latents_settings,
        title="Reading B",
        about="Every latent is clipped and noised once; all that follows is post-processing.",
        citation="ge2024latent",
    ),
    "real": Method(
        real.RealImages,
        real.RealImagesSettings,
        recipes.real_images_settings,
        private=False,
        title="Real images",
        about="The training images themselves. A yardstick without privacy.",
    ),
    "non-private": Method(
        LatentDiffusion,
        SynthesisSettings,
        settings_for,
        private=False,
        title="Latent diffusion without privacy",
        about="The method of this book without noise. A yardstick without privacy.",
    ),
}
