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

from dpldm.compression import CompressionSettings, PCASettings, RefinedPCASettings
from dpldm.finishing import Finishing, FinishSettings
from dpldm.matching import MatchingSettings
from dpldm.mixture import MixtureSettings
from dpldm.selection import SelectionSettings
from dpldm.settings import SynthesisSettings, smoke
from dpldm.transport import TransportSettings

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
