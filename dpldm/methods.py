"""The methods by name, and what a profile makes of each: how much work, and which settings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from dpldm import baselines, generators, pixel
from dpldm.evaluation import EVALUATION, EvaluationSettings
from dpldm.finishing import Finishing, FinishSettings
from dpldm.privacy import PrivateData
from dpldm.settings import SamplingSettings, SynthesisSettings, smoke
from dpldm.synthesis import LatentDiffusion


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
    settings: the type of its settings. choose: those of a profile, from its name, the data set's and ε or None.
    private: False for a yardstick, which takes no budget and gives no privacy.
    title: what readers call it. about: what it does, in a line. citation: its key in the bibliography, or empty.
    published: names of `book/published.csv` under which others give figures of it.
    """

    build: Callable[..., Synthesizer]
    settings: type[Any]
    choose: Callable[[str, str, float | None], Any]
    private: bool = True
    title: str = ""
    about: str = ""
    citation: str = ""
    published: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """How much work a run is. ``limit``: most real images used of each split (None: all), a choice that depends on
    nothing private; ``n_synthetic``: images to draw; ``evaluation``: how they are scored."""

    limit: int | None
    n_synthetic: int
    evaluation: EvaluationSettings


PROFILES: dict[str, Profile] = {
    "smoke": Profile(2_000, 1_000, replace(EVALUATION["smoke"], classifier_seeds=1)),
    "quick": Profile(None, 60_000, EVALUATION["quick"]),
    "paper": Profile(None, 60_000, EVALUATION["paper"]),
}


def settings_for(profile: str, dataset: str, epsilon: float | None) -> SynthesisSettings:
    """The synthesizer's settings in a profile; quick and paper make the same images and differ in how they are scored.

    ``epsilon`` None: without privacy, or with the noise given instead.
    """
    if profile == "smoke":
        return smoke(SynthesisSettings())
    return _fit_for(dataset, epsilon)


def _fit_for(dataset: str, epsilon: float | None) -> SynthesisSettings:
    """What depends on the data set and ε: stage 1 and the moments are those of the class-Gaussian baseline.

    Chosen with a CNN and the Fréchet distance on a validation split (the last 10,000) of both sets' training images,
    seed 1. Pen strokes may be bent and are either ink or paper: general knowledge that is worth a point on digits.
    Bending garments costs some; a little sharpening helps them and more does not. Contrast at the very end brings
    garments nearer to the real ones and costs the CNN more the longer it is trained; half of them with it and half
    without, or at a smaller ε an amount of its own for each, teach more than either. Garments also gain where DP-SGD
    gets half of what the mixture had and the decoder is refined with a part of it. The classifier that selects takes
    fewer steps where each of them is noisier; where it sees real images as they are as well, pushing ours up its
    gradient brings them nearer to the real ones. Of the edges, the more features are moved and the less they are
    clipped, the less noise there is. Below ε of about a half the classifier knows less than the density does, and the
    edges' covariances are mostly noise; decoders that match a mean embedding draw better images there than stage 1 with
    all of that, so they draw all of them. Above it they draw half of the digits, which brings digits much nearer to the
    real ones and costs the CNN next to nothing; where they draw more, CNNs learn less.
    """
    alone = baselines.class_gaussian_settings("quick", dataset, epsilon)
    chosen = SynthesisSettings(compression=alone.compression, mixture=alone.mixture)
    much, enough = epsilon is None or epsilon >= 3, epsilon is None or epsilon >= 0.45
    if dataset == "mnist":
        chosen = replace(chosen, finish=FinishSettings(contrast=20.0), last=FinishSettings(bend=1.0, contrast=14.0))
    elif dataset == "fashion_mnist":
        last = FinishSettings(contrast=12.0 if much else 20.0, contrast_share=0.5)
        if enough and not much:
            last = FinishSettings(contrast=30.0, contrast_varies=True)
        chosen = replace(chosen, finish=FinishSettings(sharpen=0.4), last=last)
    selection, transport, matching = chosen.selection, chosen.transport, chosen.matching
    if enough:
        selection = replace(selection, as_they_are=True, push=1.0, steps=120)
    if much:
        transport = replace(transport, moments=replace(transport.moments, clip_norm=1.6))
    elif enough:
        selection, transport = replace(selection, steps=40), replace(transport, dim=60)
    else:
        selection, transport = replace(selection, candidates=1), replace(transport, steps=0)
        matching, chosen = replace(matching, steps=1_000, share=0.55), replace(chosen, mixture_share=0.25)
    if dataset == "mnist" and enough:
        selection, transport = replace(selection, share=0.2), replace(transport, share=0.2)
        matching = replace(matching, steps=1_000, share=0.2, image_share=0.5)
        chosen = replace(chosen, mixture_share=0.2)
    chosen = replace(chosen, selection=selection, transport=transport, matching=matching)
    if dataset == "fashion_mnist" and enough:
        chosen = replace(chosen, mixture_share=chosen.mixture_share / 2)
        share = chosen.compression_share + chosen.diffusion_share / 2
        return replace(chosen, compression=replace(chosen.compression, kind="refined-pca"), compression_share=share)
    return chosen


def finishing_for(dataset: str, epsilon: float | None) -> Finishing:
    """What this book's images of a data set get at ε beside what is private, for the images of other methods.

    Ours get ``finish`` where stage 1 decodes them, and all of them ``last``; so as large a share gets it here.

    Raises:
        ValueError: for other images nothing is done.
    """
    ours = _fit_for(dataset, epsilon)
    share = 1 - ours.matching.image_share if ours.matches else 1.0
    found = Finishing(ours.finish, share, ours.last)
    if found == Finishing():
        raise ValueError(f"images of {dataset} are not finished: expected mnist or fashion_mnist, or leave it out")
    return found


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
        baselines.ClassGaussian,
        baselines.ClassGaussianSettings,
        baselines.class_gaussian_settings,
        title="Class Gaussian",
        about="Private PCA, then one Gaussian for each class; nothing is trained. The floor.",
    ),
    "dp-merf": Method(
        baselines.MeanEmbedding,
        baselines.MeanEmbeddingSettings,
        baselines.mean_embedding_settings,
        title="DP-MERF",
        about="The mean of random Fourier features for each class is released once; a generator learns to match it.",
        citation="harder2021dpmerf",
        published=("DP-MERF", "DP-MERF (re-run)"),
    ),
    "dp-sinkhorn": Method(
        generators.Sinkhorn,
        generators.SinkhornSettings,
        generators.sinkhorn_settings,
        title="DP-Sinkhorn",
        about="A generator lowers its optimal-transport cost to real images, through clipped and noised gradients.",
        citation="cao2021sinkhorn",
        published=("DP-Sinkhorn", "DP-Sinkhorn (re-run)"),
    ),
    "gs-wgan": Method(
        generators.GradientSanitizedGAN,
        generators.GANSettings,
        generators.gan_settings,
        title="GS-WGAN",
        about="Secret discriminators on parts of the data teach a generator, through clipped and noised gradients.",
        citation="chen2020gswgan",
        published=("GS-WGAN", "GS-WGAN (re-run)"),
    ),
    pixel.PixelDiffusion.method: Method(
        pixel.PixelDiffusion,
        pixel.PixelDiffusionSettings,
        pixel.pixel_settings,
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
        baselines.NoisedLatents,
        baselines.ClassGaussianSettings,
        baselines.noised_latents_settings,
        title="Reading B",
        about="Every latent is clipped and noised once; all that follows is post-processing.",
        citation="ge2024latent",
    ),
    "real": Method(
        baselines.RealImages,
        baselines.RealImagesSettings,
        baselines.real_images_settings,
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
