"""Recipes: settings as a function of what may be known: ε, δ, how many images of which shape in how many classes, and
one public word on what they show. No name of a data set decides anything. Each cell stands here whole.

The cells were chosen with a CNN and the Fréchet distance on a validation split (the last 10,000) of the training
images of MNIST (kind ink) and Fashion-MNIST (kind object), seed 1; that search is charged to no budget. The evidence
for each part:

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
  without, or where ε is tight an amount of its own for each, teach more than either. An object stands on an even
  ground, on which moving edges and pushing leave a trace too faint to see: made even again, trees learn more and the
  distance falls, with two seeds, and other learners change by no more than chance. Where nothing is pushed it is off.
"""

import math
from dataclasses import replace
from typing import Literal

from dpldm.data.images import Known
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
from dpldm.privacy.mechanisms import gaussian_epsilon, gaussian_noise_multiplier
from dpldm.rivals.class_gaussian import ClassGaussianSettings
from dpldm.rivals.dp_merf import MeanEmbeddingSettings
from dpldm.rivals.dpdm import PixelDiffusionSettings
from dpldm.rivals.gs_wgan import GANSettings
from dpldm.rivals.real import RealImagesSettings
from dpldm.rivals.sanitised import GeneratorSettings
from dpldm.rivals.sinkhorn import SinkhornSettings

Band = Literal["ample", "tight", "scarce"]
Epsilon = float | None  # None: without privacy, or with the noise given instead

AMPLE_FROM, TIGHT_FROM = 3.0, 0.45  # the least ε of the two upper bands where the cells were chosen, which is here:
CHOSEN_ON = Known(60_000, (1, 28, 28), 10)


def band(epsilon: Epsilon, known: Known = CHOSEN_ON, delta: float = 1e-5) -> Band:
    """How much there is to spend; without privacy, or with the noise given instead, it is ample.

    What the noise does to a class is told by its size in the mean of the class: the noise multiplier σ of a release at
    (ε, δ), divided by how many images a class has. So the bands lie where this is as large as at `AMPLE_FROM` and
    `TIGHT_FROM` for the images on which the cells were chosen. Fewer classes than there leave stage 1, which sees all
    images together, no less noise; so they count as many.

    >>> [band(epsilon) for epsilon in (None, 3.0, 0.45, 0.2)]
    ['ample', 'ample', 'tight', 'scarce']
    >>> [band(3.0, Known(count, (1, 28, 28), 10)) for count in (60_000, 20_000, 2_000)]
    ['ample', 'tight', 'scarce']
    """
    if epsilon is None:
        return "ample"
    noise = _noise_in_a_class(epsilon, delta, known)
    if noise <= _noise_in_a_class(AMPLE_FROM, 1e-5, CHOSEN_ON):
        return "ample"
    return "tight" if noise <= _noise_in_a_class(TIGHT_FROM, 1e-5, CHOSEN_ON) else "scarce"


def least_epsilons(known: Known, delta: float = 1e-5) -> dict[Band, float]:
    """The ε at which the two upper bands begin for images of which this is known.

    >>> {name: round(least, 3) for name, least in least_epsilons(CHOSEN_ON).items()}
    {'ample': 3.0, 'tight': 0.45}
    """
    more = _noise_in_a_class(1.0, 1e-5, CHOSEN_ON) / _noise_in_a_class(1.0, 1e-5, known)
    bands: tuple[tuple[Band, float], ...] = (("ample", AMPLE_FROM), ("tight", TIGHT_FROM))
    return {name: gaussian_epsilon(gaussian_noise_multiplier(least, 1e-5) * more, delta) for name, least in bands}


def least_useful_epsilon(known: Known, delta: float = 1e-5) -> float:
    """The smallest ε at which these images are likely to come out any better than noise: a rule of thumb, all of it
    public.

    It asks the mixture, from which every image begins. Of an average class of n = N/K images it knows the second
    moments of latents in d dimensions, whose variance is 1 on average. An image moves them by at most R² = c²d, for the
    bound c√d on a latent; with the noise multiplier σ of this release, their noise has the standard deviation σR², and
    once made symmetric its largest eigenvalue is near √(2d)·σR² (Wigner's semicircle; `PrivatePCA` cuts by the same).
    Divided by n it has to stay below the variance that it hides: σ ≤ n / (√(2d)·c²d). The release has the part s of the
    budget's 1/σ², so the whole may be noised by σ√s, and ε is what one Gaussian mechanism with that noise costs. d, c
    and s are those of the recipe where ε is scarce. No image is looked at, so it can't tell how hard these images are.

    >>> round(least_useful_epsilon(CHOSEN_ON), 2)
    0.16
    """
    settings = CELLS["none", "scarce"]
    mixture, dim = settings.mixture, min(settings.compression.pca.dim, math.prod(known.image_shape))
    most = known.count / known.num_classes / (math.sqrt(2 * dim) * mixture.clip_norm**2 * dim)
    return gaussian_epsilon(most * math.sqrt(settings.mixture_share * mixture.moment_share), delta)


def _noise_in_a_class(epsilon: float, delta: float, known: Known) -> float:
    """Standard deviation of the noise in the mean of an average class, for sums of sensitivity 1."""
    return gaussian_noise_multiplier(epsilon, delta) * max(known.num_classes, CHOSEN_ON.num_classes) / known.count


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
_GROUND = 0.1

# (kind, band) → settings; of a kind that is not here: those of none.
CELLS: dict[tuple[str, Band], SynthesisSettings] = {
    ("ink", "ample"): SynthesisSettings(
        compression=stage_1(PCA["ample"]),
        mixture=MIXTURE["ample"],
        mixture_share=0.2,
        matching=MatchingSettings(steps=1_000, share=0.2, image_share=0.5),
        selection=SelectionSettings(share=0.2, steps=120, as_they_are=True, push=1.0),
        transport=TransportSettings(share=0.2, moments=_WIDE_MOMENTS),
        finish=_INK,
        last=_BENT_INK,
    ),
    ("ink", "tight"): SynthesisSettings(
        compression=stage_1(PCA["tight"]),
        mixture=MIXTURE["tight"],
        mixture_share=0.2,
        matching=MatchingSettings(steps=1_000, share=0.2, image_share=0.5),
        selection=SelectionSettings(share=0.2, steps=40, as_they_are=True, push=1.0),
        transport=TransportSettings(share=0.2, dim=60),
        finish=_INK,
        last=_BENT_INK,
    ),
    ("ink", "scarce"): SynthesisSettings(
        compression=stage_1(PCA["scarce"]),
        mixture=MIXTURE["scarce"],
        mixture_share=0.25,
        matching=MatchingSettings(steps=1_000, share=0.55),
        selection=SelectionSettings(candidates=1),
        transport=TransportSettings(steps=0),
        finish=_INK,
        last=_BENT_INK,
    ),
    ("object", "ample"): SynthesisSettings(
        compression=stage_1(PCA["ample"], "refined-pca"),
        mixture=MIXTURE["ample"],
        compression_share=0.225,
        mixture_share=0.15,
        selection=SelectionSettings(steps=120, as_they_are=True, push=1.0),
        transport=TransportSettings(moments=_WIDE_MOMENTS),
        finish=_CLOTH,
        last=FinishSettings(contrast=12.0, contrast_share=0.5, ground=_GROUND),
    ),
    ("object", "tight"): SynthesisSettings(
        compression=stage_1(PCA["tight"], "refined-pca"),
        mixture=MIXTURE["tight"],
        compression_share=0.225,
        mixture_share=0.15,
        selection=SelectionSettings(steps=40, as_they_are=True, push=1.0),
        transport=TransportSettings(dim=60),
        finish=_CLOTH,
        last=FinishSettings(contrast=30.0, contrast_varies=True, ground=_GROUND),
    ),
    ("object", "scarce"): SynthesisSettings(
        compression=stage_1(PCA["scarce"]),
        mixture=MIXTURE["scarce"],
        mixture_share=0.25,
        matching=MatchingSettings(steps=1_000, share=0.55),
        selection=SelectionSettings(candidates=1),
        transport=TransportSettings(steps=0),
        finish=_CLOTH,
        last=FinishSettings(contrast=20.0, contrast_share=0.5),
    ),
    ("none", "ample"): SynthesisSettings(
        compression=stage_1(PCA["ample"]),
        mixture=MIXTURE["ample"],
        selection=SelectionSettings(steps=120, as_they_are=True, push=1.0),
        transport=TransportSettings(moments=_WIDE_MOMENTS),
    ),
    ("none", "tight"): SynthesisSettings(
        compression=stage_1(PCA["tight"]),
        mixture=MIXTURE["tight"],
        selection=SelectionSettings(steps=40, as_they_are=True, push=1.0),
        transport=TransportSettings(dim=60),
    ),
    ("none", "scarce"): SynthesisSettings(
        compression=stage_1(PCA["scarce"]),
        mixture=MIXTURE["scarce"],
        mixture_share=0.25,
        matching=MatchingSettings(steps=1_000, share=0.55),
        selection=SelectionSettings(candidates=1),
        transport=TransportSettings(steps=0),
    ),
}


def settings_for(profile: str, known: Known, epsilon: Epsilon, delta: float = 1e-5) -> SynthesisSettings:
    """The synthesizer's settings in a profile; quick and paper make the same images and differ in how they are scored.

    A batch is never expected to have more images than there are.

    ``known``: what may be known of the images, as `ImageData.known` has it.
    """
    if profile == "smoke":
        chosen = smoke(SynthesisSettings())
    else:
        found = band(epsilon, known, delta)
        chosen = CELLS.get((known.kind, found), CELLS["none", found])
    return replace(chosen, fit=replace(chosen.fit, batch=min(chosen.fit.batch, known.count)))


def finishing_for(known: Known, epsilon: Epsilon, delta: float = 1e-5) -> Finishing:
    """What this book's images of a kind get at ε beside what is private, for the images of other methods.

    Ours get ``finish`` where stage 1 decodes them, and all of them ``last``; so as large a share gets it here.

    Raises:
        ValueError: for images of no kind nothing is done.
    """
    ours = settings_for("quick", known, epsilon, delta)
    share = 1 - ours.matching.image_share if ours.matches else 1.0
    if ours.finish == ours.last == FinishSettings():
        raise ValueError(f"images of kind {known.kind} are not finished: say --kind ink or object, or leave it out")
    return Finishing(ours.finish, share, ours.last)


def class_gaussian_settings(profile: str, known: Known, epsilon: Epsilon, delta: float = 1e-5) -> ClassGaussianSettings:
    """The settings in a profile: stage 1 and moments of the recipes, the same for every kind.

    Chosen on a validation split (the last 10,000) of both sets' training images, seed 1, by the Fréchet distance at
    ε = 10 and 1 and by accuracy at 0.2, where wider bounds bring the distance down and cost accuracy; between these the
    nearest one's are taken.
    """
    if profile == "smoke":
        return noised_latents_settings(profile, known, epsilon, delta)
    chosen = band(epsilon, known, delta)
    return ClassGaussianSettings(stage_1(PCA[chosen]), MIXTURE[chosen])


def noised_latents_settings(profile: str, known: Known, epsilon: Epsilon, delta: float = 1e-5) -> ClassGaussianSettings:
    """The settings of reading B: clipped tightly at every budget, as the noise on a latent grows with its bound."""
    pca = PCASettings()
    if profile == "smoke":
        pca = PCASettings(dim=8, frequencies=8)
    elif band(epsilon, known, delta) == "scarce":
        pca = PCA["scarce"]
    return ClassGaussianSettings(stage_1(pca), MIXTURE["scarce"])


def mean_embedding_settings(profile: str, known: Known, epsilon: Epsilon, delta: float = 1e-5) -> MeanEmbeddingSettings:
    """The settings in a profile; the images and ε make no difference.

    The length scale was chosen with a small classifier on a validation split of both sets' training images: larger ones
    blur the classes, much smaller ones leave the first generated images without a gradient.
    """
    if profile == "smoke":
        return MeanEmbeddingSettings(features=200, width=32, channels=4, steps=5, generated=60)
    return MeanEmbeddingSettings(steps=4_000, generated=500) if profile == "paper" else MeanEmbeddingSettings()


def real_images_settings(profile: str, known: Known, epsilon: Epsilon, delta: float = 1e-5) -> RealImagesSettings:
    """The same in every profile."""
    return RealImagesSettings()


_TINY = GeneratorSettings(latent=4, width=32, steps=5, images=10)


def sinkhorn_settings(profile: str, known: Known, epsilon: Epsilon, delta: float = 1e-5) -> SinkhornSettings:
    """DP-Sinkhorn's settings in a profile.

    ``quick`` is from a handful of trials at ε = 10 on MNIST with seed 0: a small CNN trained on the samples, scored on
    the last 10,000 training images, which no trial was fitted to. That search is not charged to ε. No trial was made
    with absolute differences in the cost under noise, at another ε or on another data set: the settings are the same
    there. ``paper`` has the same settings with more and smaller steps, for hours, and has not been tried.
    """
    if profile == "smoke":
        return SinkhornSettings(generator=_TINY, batch=min(20, known.count), iterations=5)
    if profile == "paper":
        generator = GeneratorSettings(latent=6, steps=400_000, learning_rate=1e-4, ema_decay=0.9999)
    else:
        generator = GeneratorSettings(latent=6, steps=60_000, learning_rate=3e-4, ema_decay=0.9995)
    return SinkhornSettings(generator=generator, batch=min(50, known.count), l1_weight=0.0, fresh_share=0.5)


def gan_settings(profile: str, known: Known, epsilon: Epsilon, delta: float = 1e-5) -> GANSettings:
    """GS-WGAN's settings in a profile.

    ``quick`` is the better of two trials with noise, at ε = 10 on MNIST with seed 0: a small CNN trained on the
    samples, scored on the last 10,000 training images, which no trial was fitted to. Many parts leave each
    discriminator few images, few parts leave each step much noise; in both the classes hardly differ, far less than
    without noise. That search is not charged to ε; the settings are the same at another ε and on another data set.
    ``paper`` is reasoned and has not been tried.
    """
    if profile == "smoke":
        return GANSettings(generator=_TINY, parts=4, width=16, warm_up_updates=2, updates=1, batch=10)
    parts = min(1_000, max(1, known.count // 60))  # of 60 images or more
    if profile == "paper":
        generator = GeneratorSettings(width=512, steps=200_000, images=32, learning_rate=1e-4, ema_decay=0.9999)
        return GANSettings(generator=generator, parts=parts, width=128, warm_up_updates=2_000, updates=5)
    generator = GeneratorSettings(steps=15_000, images=20, learning_rate=2e-4)
    return GANSettings(generator=generator, parts=parts, warm_up_updates=60, updates=2)


def pixel_settings(profile: str, known: Known, epsilon: Epsilon, delta: float = 1e-5) -> PixelDiffusionSettings:
    """The settings in a profile; the images and ε make no difference.

    Those of ``quick`` were chosen by few short runs, with the denoising error of 300 of MNIST's last 10,000 training
    images; there is more to be had.
    """
    if profile == "smoke":
        fit = FitSettings(steps=5, batch=min(200, known.count), physical_batch=100)
        return PixelDiffusionSettings(
            growth=2, condition=16, fit=fit, sampling=SamplingSettings("stochastic", steps=4, batch=500)
        )
    if profile == "paper":
        batch = min(4_096, known.count)
        fit = FitSettings(
            steps=4_400, batch=batch, physical_batch=64, learning_rate=3e-4, clip_norm=1.0, ema_decay=0.999
        )
        levels = NoiseLevels(log_mean=-1.2, log_std=1.2, sigma_min=0.002, sigma_max=80.0)
        sampling = SamplingSettings("stochastic", steps=100, batch=1_000)
        return PixelDiffusionSettings(1, 40, 3, 2, 2, 128, draws=32, noise_levels=levels, fit=fit, sampling=sampling)
    batch = min(512, known.count)
    fit = FitSettings(steps=400, batch=batch, physical_batch=128, learning_rate=6e-3, clip_norm=0.1, ema_decay=0.98)
    levels = NoiseLevels(log_mean=0.3, log_std=1.2)
    sampling = SamplingSettings("stochastic", steps=16, batch=500)
    return PixelDiffusionSettings(noise_levels=levels, fit=fit, sampling=sampling)
