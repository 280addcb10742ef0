"""Recipes: what a profile, a data set and ε make of the method's settings. Each cell stands here whole.

The cells were chosen with a CNN and the Fréchet distance on a validation split (the last 10,000) of the training images
of MNIST and Fashion-MNIST, seed 1; that search is charged to no budget. The evidence for each part:

- *Compression.* A bound has to follow the budget: where there is little noise images are hardly clipped, where there is
  more a tighter bound means less of it, and fewer dimensions and frequencies are kept. On garments the decoder is
  refined by DP-SGD with a part of what the mixture had.
- *Selection, push.* The classifier takes fewer steps where each of them is noisier. Where it sees real images as they
  are as well, pushing ours up its gradient brings them nearer to the real ones. Where ε is scarce it knows less than
  the density does.
- *Edges.* The more features are moved and the less they are clipped, the less noise there is; where ε is scarce their
  covariances are mostly noise.
- *Matched decoders* draw better images than all of that where ε is scarce, so there they draw all of them. Above it
  they draw half of the digits, which brings digits much nearer to the real ones and costs the CNN next to nothing.
- *Finish.* Pen strokes may be bent and are either ink or paper: general knowledge, worth a point on digits; how much
  contrast was chosen by scores. Bending garments costs some; a little sharpening helps them. Contrast at the very end
  brings garments nearer to the real ones and costs the CNN more the longer it is trained; half of them with it and half
  without, or where ε is tight an amount of its own for each, teach more than either.
"""

from typing import Literal

from dpldm.method.autoencoder import RefinedPCASettings
from dpldm.method.classifier import SelectionSettings
from dpldm.method.compression import CompressionSettings
from dpldm.method.decoders import MatchingSettings
from dpldm.method.diffusion import NoiseLevels
from dpldm.method.edge_transport import TransportSettings
from dpldm.method.finishing import Finishing, FinishSettings
from dpldm.method.mixture import MixtureSettings
from dpldm.method.pca import PCASettings
from dpldm.method.settings import SamplingSettings, SynthesisSettings, smoke
from dpldm.method.training import FitSettings
from dpldm.rivals.class_gaussian import ClassGaussianSettings
from dpldm.rivals.dp_merf import MeanEmbeddingSettings
from dpldm.rivals.dpdm import PixelDiffusionSettings
from dpldm.rivals.gs_wgan import GANSettings
from dpldm.rivals.real import RealImagesSettings
from dpldm.rivals.sanitised import GeneratorSettings
from dpldm.rivals.sinkhorn import SinkhornSettings

Band = Literal["ample", "tight", "scarce"]

AMPLE_FROM, TIGHT_FROM = 3.0, 0.45  # the least ε of the two upper bands


def band(epsilon: float | None) -> Band:
    """How much there is to spend; without privacy, or with the noise given instead, it is ample.

    >>> [band(epsilon) for epsilon in (None, 3.0, 0.45, 0.2)]
    ['ample', 'ample', 'tight', 'scarce']
    """
    if epsilon is None or epsilon >= AMPLE_FROM:
        return "ample"
    return "tight" if epsilon >= TIGHT_FROM else "scarce"


PCA: dict[Band, PCASettings] = {
    "ample": PCASettings(clip_norm=0.35),
    "tight": PCASettings(dim=40),
    "scarce": PCASettings(24, 12, clip_norm=0.18),
}
MIXTURE: dict[Band, MixtureSettings] = {
    "ample": MixtureSettings(1, 1, moment_share=0.85),
    "tight": MixtureSettings(1, 1, moment_share=0.85),
    "scarce": MixtureSettings(1, 1, clip_norm=0.9, moment_share=0.85),
}


def stage_1(pca: PCASettings, kind: str = "pca") -> CompressionSettings:
    """A compressor with these components, whichever kind it is."""
    return CompressionSettings(kind, pca=pca, refined=RefinedPCASettings(pca=pca))


_WIDE_MOMENTS = MixtureSettings(1, 1, clip_norm=1.6, moment_share=0.6)
_INK = FinishSettings(contrast=20.0)
_BENT_INK = FinishSettings(bend=1.0, contrast=14.0)
_CLOTH = FinishSettings(sharpen=0.4)

# (data set, band) → settings; "" for any other data set.
CELLS: dict[tuple[str, Band], SynthesisSettings] = {
    ("mnist", "ample"): SynthesisSettings(
        compression=stage_1(PCA["ample"]),
        mixture=MIXTURE["ample"],
        mixture_share=0.2,
        matching=MatchingSettings(steps=1_000, share=0.2, image_share=0.5),
        selection=SelectionSettings(share=0.2, steps=120, as_they_are=True, push=1.0),
        transport=TransportSettings(share=0.2, moments=_WIDE_MOMENTS),
        finish=_INK,
        last=_BENT_INK,
    ),
    ("mnist", "tight"): SynthesisSettings(
        compression=stage_1(PCA["tight"]),
        mixture=MIXTURE["tight"],
        mixture_share=0.2,
        matching=MatchingSettings(steps=1_000, share=0.2, image_share=0.5),
        selection=SelectionSettings(share=0.2, steps=40, as_they_are=True, push=1.0),
        transport=TransportSettings(share=0.2, dim=60),
        finish=_INK,
        last=_BENT_INK,
    ),
    ("mnist", "scarce"): SynthesisSettings(
        compression=stage_1(PCA["scarce"]),
        mixture=MIXTURE["scarce"],
        mixture_share=0.25,
        matching=MatchingSettings(steps=1_000, share=0.55),
        selection=SelectionSettings(candidates=1),
        transport=TransportSettings(steps=0),
        finish=_INK,
        last=_BENT_INK,
    ),
    ("fashion_mnist", "ample"): SynthesisSettings(
        compression=stage_1(PCA["ample"], "refined-pca"),
        mixture=MIXTURE["ample"],
        compression_share=0.225,
        mixture_share=0.15,
        selection=SelectionSettings(steps=120, as_they_are=True, push=1.0),
        transport=TransportSettings(moments=_WIDE_MOMENTS),
        finish=_CLOTH,
        last=FinishSettings(contrast=12.0, contrast_share=0.5),
    ),
    ("fashion_mnist", "tight"): SynthesisSettings(
        compression=stage_1(PCA["tight"], "refined-pca"),
        mixture=MIXTURE["tight"],
        compression_share=0.225,
        mixture_share=0.15,
        selection=SelectionSettings(steps=40, as_they_are=True, push=1.0),
        transport=TransportSettings(dim=60),
        finish=_CLOTH,
        last=FinishSettings(contrast=30.0, contrast_varies=True),
    ),
    ("fashion_mnist", "scarce"): SynthesisSettings(
        compression=stage_1(PCA["scarce"]),
        mixture=MIXTURE["scarce"],
        mixture_share=0.25,
        matching=MatchingSettings(steps=1_000, share=0.55),
        selection=SelectionSettings(candidates=1),
        transport=TransportSettings(steps=0),
        finish=_CLOTH,
        last=FinishSettings(contrast=20.0, contrast_share=0.5),
    ),
    ("", "ample"): SynthesisSettings(
        compression=stage_1(PCA["ample"]),
        mixture=MIXTURE["ample"],
        selection=SelectionSettings(steps=120, as_they_are=True, push=1.0),
        transport=TransportSettings(moments=_WIDE_MOMENTS),
    ),
    ("", "tight"): SynthesisSettings(
        compression=stage_1(PCA["tight"]),
        mixture=MIXTURE["tight"],
        selection=SelectionSettings(steps=40, as_they_are=True, push=1.0),
        transport=TransportSettings(dim=60),
    ),
    ("", "scarce"): SynthesisSettings(
        compression=stage_1(PCA["scarce"]),
        mixture=MIXTURE["scarce"],
        mixture_share=0.25,
        matching=MatchingSettings(steps=1_000, share=0.55),
        selection=SelectionSettings(candidates=1),
        transport=TransportSettings(steps=0),
    ),
}


def settings_for(profile: str, dataset: str, epsilon: float | None) -> SynthesisSettings:
    """The synthesizer's settings in a profile; quick and paper make the same images and differ in how they are scored.

    ``epsilon`` None: without privacy, or with the noise given instead.
    """
    if profile == "smoke":
        return smoke(SynthesisSettings())
    return CELLS.get((dataset, band(epsilon)), CELLS["", band(epsilon)])


def finishing_for(dataset: str, epsilon: float | None) -> Finishing:
    """What this book's images of a data set get at ε beside what is private, for the images of other methods.

    Ours get ``finish`` where stage 1 decodes them, and all of them ``last``; so as large a share gets it here.

    Raises:
        ValueError: for other images nothing is done.
    """
    ours = settings_for("quick", dataset, epsilon)
    share = 1 - ours.matching.image_share if ours.matches else 1.0
    found = Finishing(ours.finish, share, ours.last)
    if found == Finishing():
        raise ValueError(f"images of {dataset} are not finished: expected mnist or fashion_mnist, or leave it out")
    return found


def class_gaussian_settings(profile: str, dataset: str, epsilon: float | None) -> ClassGaussianSettings:
    """The settings in a profile: stage 1 and moments of the recipes, the same for every data set.

    Chosen on a validation split (the last 10,000) of both sets' training images, seed 1, by the Fréchet distance at
    ε = 10 and 1 and by accuracy at 0.2, where wider bounds bring the distance down and cost accuracy; between these the
    nearest one's are taken.
    """
    if profile == "smoke":
        return noised_latents_settings(profile, dataset, epsilon)
    chosen = band(epsilon)
    return ClassGaussianSettings(stage_1(PCA[chosen]), MIXTURE[chosen])


def noised_latents_settings(profile: str, dataset: str, epsilon: float | None) -> ClassGaussianSettings:
    """The settings of reading B: clipped tightly at every budget, as the noise on a latent grows with its bound."""
    pca = PCASettings()
    if profile == "smoke":
        pca = PCASettings(dim=8, frequencies=8)
    elif band(epsilon) == "scarce":
        pca = PCA["scarce"]
    return ClassGaussianSettings(stage_1(pca), MIXTURE["scarce"])


def mean_embedding_settings(profile: str, dataset: str, epsilon: float | None) -> MeanEmbeddingSettings:
    """The settings in a profile; the data set and ε make no difference.

    The length scale was chosen with a small classifier on a validation split of both sets' training images: larger ones
    blur the classes, much smaller ones leave the first generated images without a gradient.
    """
    if profile == "smoke":
        return MeanEmbeddingSettings(features=200, width=32, channels=4, steps=5, generated=60)
    return MeanEmbeddingSettings(steps=4_000, generated=500) if profile == "paper" else MeanEmbeddingSettings()


def real_images_settings(profile: str, dataset: str, epsilon: float | None) -> RealImagesSettings:
    """The same in every profile."""
    return RealImagesSettings()


_TINY = GeneratorSettings(latent=4, width=32, steps=5, images=10)


def sinkhorn_settings(profile: str, dataset: str, epsilon: float | None) -> SinkhornSettings:
    """DP-Sinkhorn's settings in a profile.

    ``quick`` is from a handful of trials at ε = 10 on MNIST with seed 0: a small CNN trained on the samples, scored on
    the last 10,000 training images, which no trial was fitted to. That search is not charged to ε. No trial was made
    with absolute differences in the cost under noise, at another ε or on another data set: the settings are the same
    there. ``paper`` has the same settings with more and smaller steps, for hours, and has not been tried.
    """
    if profile == "smoke":
        return SinkhornSettings(generator=_TINY, batch=20, iterations=5)
    if profile == "paper":
        generator = GeneratorSettings(latent=6, steps=400_000, learning_rate=1e-4, ema_decay=0.9999)
    else:
        generator = GeneratorSettings(latent=6, steps=60_000, learning_rate=3e-4, ema_decay=0.9995)
    return SinkhornSettings(generator=generator, l1_weight=0.0, fresh_share=0.5)


def gan_settings(profile: str, dataset: str, epsilon: float | None) -> GANSettings:
    """GS-WGAN's settings in a profile.

    ``quick`` is the better of two trials with noise, at ε = 10 on MNIST with seed 0: a small CNN trained on the
    samples, scored on the last 10,000 training images, which no trial was fitted to. Many parts leave each
    discriminator few images, few parts leave each step much noise; in both the classes hardly differ, far less than
    without noise. That search is not charged to ε; the settings are the same at another ε and on another data set.
    ``paper`` is reasoned and has not been tried.
    """
    if profile == "smoke":
        return GANSettings(generator=_TINY, parts=4, width=16, warm_up_updates=2, updates=1, batch=10)
    if profile == "paper":
        generator = GeneratorSettings(width=512, steps=200_000, images=32, learning_rate=1e-4, ema_decay=0.9999)
        return GANSettings(generator=generator, parts=1_000, width=128, warm_up_updates=2_000, updates=5)
    generator = GeneratorSettings(steps=15_000, images=20, learning_rate=2e-4)
    return GANSettings(generator=generator, parts=1_000, warm_up_updates=60, updates=2)


def pixel_settings(profile: str, dataset: str, epsilon: float | None) -> PixelDiffusionSettings:
    """The settings in a profile; the data set and ε make no difference.

    Those of ``quick`` were chosen by few short runs, with the denoising error of 300 of MNIST's last 10,000 training
    images; there is more to be had.
    """
    if profile == "smoke":
        fit = FitSettings(steps=5, batch=200, physical_batch=100)
        return PixelDiffusionSettings(
            growth=2, condition=16, fit=fit, sampling=SamplingSettings("stochastic", steps=4, batch=500)
        )
    if profile == "paper":
        fit = FitSettings(
            steps=4_400, batch=4_096, physical_batch=64, learning_rate=3e-4, clip_norm=1.0, ema_decay=0.999
        )
        levels = NoiseLevels(log_mean=-1.2, log_std=1.2, sigma_min=0.002, sigma_max=80.0)
        sampling = SamplingSettings("stochastic", steps=100, batch=1_000)
        return PixelDiffusionSettings(1, 40, 3, 2, 2, 128, draws=32, noise_levels=levels, fit=fit, sampling=sampling)
    fit = FitSettings(steps=400, batch=512, physical_batch=128, learning_rate=6e-3, clip_norm=0.1, ema_decay=0.98)
    levels = NoiseLevels(log_mean=0.3, log_std=1.2)
    sampling = SamplingSettings("stochastic", steps=16, batch=500)
    return PixelDiffusionSettings(noise_levels=levels, fit=fit, sampling=sampling)
