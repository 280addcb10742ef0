"""The settings of a profile with one thing changed: the rows of the ablation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dpldm.data import datasets
from dpldm.method.mixture import MixtureSettings
from dpldm.method.settings import SynthesisSettings
from dpldm.rivals.class_gaussian import ClassGaussianSettings
from dpldm.rivals.real import RealImagesSettings
from dpldm.runs.experiment import Experiment

Change = Callable[[SynthesisSettings], SynthesisSettings]
DEFAULT = "default"
YARDSTICKS = ("non-private", "reconstructed", "real")  # no release: they show what privacy and compression cost
SHARE = 1 / 6  # of the training images, held out


class AblationError(ValueError):
    """Variations that can't be measured as described, or a file of them that can't be read. One line."""


@dataclass(frozen=True)
class Variation:
    """One thing changed. ``title``: in words. ``reconstructs``: real images through stage 1 are scored in place of
    synthetic ones."""

    title: str
    experiment: Experiment
    reconstructs: bool = False


def _always(base: SynthesisSettings) -> bool:
    return True


def _shown(base: SynthesisSettings) -> bool:
    """Whether images of stage 1 are released: elsewhere nobody sees what is done to them."""
    return not (base.matches and base.matching.image_share == 1)


def _with_pca(base: SynthesisSettings, **changes: Any) -> SynthesisSettings:
    pca = replace(base.compression.pca, **changes)
    refined = replace(base.compression.refined, pca=pca)
    return replace(base, compression=replace(base.compression, pca=pca, refined=refined))


def _with_stage_1(base: SynthesisSettings, kind: str, taken: float = 0.0) -> SynthesisSettings:
    """Another compressor, which gets a part of what DP-SGD had."""
    share = base.compression_share + taken * base.diffusion_share
    return replace(base, compression=replace(base.compression, kind=kind), compression_share=share)


def _with_mixture(base: SynthesisSettings, components: int, iterations: int, moment_share: float) -> SynthesisSettings:
    kept = {"clip_norm": base.mixture.clip_norm, "floor": base.mixture.floor}
    return replace(base, mixture=MixtureSettings(components, iterations, moment_share=moment_share, **kept))


def _paid_by_mixture(base: SynthesisSettings, taken: float, **changes: Any) -> SynthesisSettings:
    return replace(base, mixture_share=base.mixture_share - taken, **changes)


def _without(base: SynthesisSettings, stage: str, **changes: Any) -> SynthesisSettings:
    """A stage switched off; what it costs goes back to the mixture."""
    return _paid_by_mixture(base, -base.shares[stage], **{stage: replace(getattr(base, stage), **changes)})


def _with(base: SynthesisSettings, stage: str, **changes: Any) -> SynthesisSettings:
    """A stage switched on, for half of what the mixture has."""
    half = base.mixture_share / 2
    return _paid_by_mixture(base, half, **{stage: replace(getattr(base, stage), share=half, **changes)})


def _matched(base: SynthesisSettings) -> SynthesisSettings:
    """Matched decoders in place of what is done to images of stage 1, or for half of what the mixture has."""
    plain = {"selection": replace(base.selection, candidates=1), "transport": replace(base.transport, steps=0)}
    freed, half = base.shares["selection"] + base.shares["transport"], base.mixture_share / 2
    fitted = replace(base.matching, steps=4 * base.fit.steps, share=freed or half)
    return _paid_by_mixture(base, 0.0 if freed else half, **plain, matching=fitted)


def _inner(field: str, **changes: Any) -> Change:
    """A change of some settings within the settings."""
    return lambda base: replace(base, **{field: replace(getattr(base, field), **changes)})


def _contrasts(base: SynthesisSettings) -> bool:
    return max(base.finish.contrast, base.last.contrast) > 0


@dataclass(frozen=True)
class Row:
    """A change, told in words, and the settings that it changes anything in: what is on in them is switched off, and
    the other way round."""

    name: str
    title: str
    where: Callable[[SynthesisSettings], bool]
    change: Change


ROWS = (
    Row(DEFAULT, "as the profile has it", _always, lambda s: s),
    Row("one-gaussian", "one Gaussian per class", lambda s: s.mixture.components > 1,
        lambda s: _with_mixture(s, 1, 1, moment_share=0.85)),
    Row("eight-components", "eight components per class", lambda s: s.mixture.components == 1,
        lambda s: _with_mixture(s, 8, 4, moment_share=0.6)),
    Row("no-selection", "no private classifier that selects", lambda s: s.selects and _shown(s),
        lambda s: _without(s, "selection", candidates=1)),
    Row("selection", "a private classifier that selects", lambda s: not s.selects and _shown(s),
        lambda s: _with(s, "selection", candidates=3)),
    Row("no-push", "not pushed towards their class", lambda s: s.selects and s.selection.push > 0,
        _inner("selection", push=0.0)),
    Row("push", "pushed towards their class", lambda s: s.selects and s.selection.push == 0,
        _inner("selection", push=1.0)),
    Row("one-view", "classifier sees no image as it is", lambda s: s.selects and s.selection.as_they_are,
        _inner("selection", as_they_are=False)),
    Row("two-views", "classifier sees images as they are, too", lambda s: s.selects and not s.selection.as_they_are,
        _inner("selection", as_they_are=True)),
    Row("no-transport", "edges not moved", lambda s: s.moves and _shown(s),
        lambda s: _without(s, "transport", steps=0)),
    Row("transport", "edges moved", lambda s: not s.moves and _shown(s), lambda s: _with(s, "transport", steps=6)),
    Row("no-matching", "no matched decoders", lambda s: s.matches, lambda s: _without(s, "matching", steps=0)),
    Row("matching", "matched decoders draw all images", lambda s: not s.matches, _matched),
    Row("no-bend", "strokes not bent", lambda s: s.last.bend > 0, _inner("last", bend=0.0)),
    Row("bend", "images bent by a pixel", lambda s: s.last.bend == 0, _inner("last", bend=1.0)),
    Row("no-sharpening", "edges not sharpened", lambda s: s.finish.sharpen > 0 and _shown(s),
        _inner("finish", sharpen=0.0)),
    Row("sharpening", "edges sharpened", lambda s: s.finish.sharpen == 0 and _shown(s), _inner("finish", sharpen=0.4)),
    Row("no-ground", "ground left as it is", lambda s: s.last.ground > 0, _inner("last", ground=0.0)),
    Row("ground", "even ground", lambda s: s.last.ground == 0, _inner("last", ground=0.1)),
    Row("no-contrast", "no contrast added", _contrasts,
        lambda s: _inner("last", contrast=0.0)(_inner("finish", contrast=0.0)(s))),
    Row("contrast", "contrast added", lambda s: not _contrasts(s), _inner("finish", contrast=10.0)),
    Row("contrast-of-half", "contrast in half of the images", lambda s: s.last.contrast_varies,
        _inner("last", contrast_share=0.5, contrast_varies=False)),
    Row("contrast-of-all", "contrast in all images",
        lambda s: not s.last.contrast_varies and s.last.contrast_share < 1, _inner("last", contrast_share=1.0)),
    Row("contrast-of-half", "contrast in half of the images",
        lambda s: not s.last.contrast_varies and s.last.contrast_share == 1,
        lambda s: _inner("last", contrast=s.last.contrast or 12.0, contrast_share=0.5)(s)),
    Row("no-floor", "no floor under decoded pixels", _shown, lambda s: _with_pca(s, floor=0.0)),
    Row("half-dimensions", "half of the latent dimensions at most", _always,
        lambda s: _with_pca(s, dim=s.compression.pca.dim // 2)),
    Row("all-frequencies", "all cosine frequencies kept", _always, lambda s: _with_pca(s, frequencies=28)),
    Row("more-gradients", "more budget for DP-SGD", _always,
        lambda s: replace(s, mixture_share=s.mixture_share / 2)),
    Row("linear-decoder", "decoder not refined", lambda s: s.compression.kind == "refined-pca",
        lambda s: _with_stage_1(s, "pca")),
    Row("refined-decoder", "decoder refined by DP-SGD", lambda s: s.compression.kind != "refined-pca",
        lambda s: _with_stage_1(s, "refined-pca", taken=0.5)),
    Row("autoencoder", "autoencoder by DP-SGD", _always, lambda s: _with_stage_1(s, "autoencoder", taken=0.5)),
    Row("public-autoencoder", "autoencoder on public shapes", _always,
        lambda s: _with_stage_1(s, "public-autoencoder")),
)  # fmt: skip


def variations(dataset: str, epsilon: float, profile: str = "quick", seed: int = 0) -> dict[str, Variation]:
    """The profile's settings as they are (`DEFAULT`), everything that is varied, and the yardsticks, by name.

    Raises:
        ValueError: an unknown data set or profile, or a bad ε or seed.
    """
    described = Experiment(dataset, epsilon, profile=profile, seed=seed)
    base = described.resolved().settings
    assert isinstance(base, SynthesisSettings)
    if dataset not in datasets.DATASETS or described.spec is None:
        raise AblationError(f"expected a public data set and an ε, got {dataset!r} and {epsilon!r}: name both")
    found = {
        row.name: Variation(row.title, replace(described, settings=row.change(base)))
        for row in ROWS if row.where(base)
    }  # fmt: skip
    share = base.compression_share / (base.compression_share + base.mixture_share)
    alone = ClassGaussianSettings(base.compression, base.mixture, share)
    gaussian = replace(described, method="class-gaussian", settings=alone)
    stage_1_only = replace(alone, compression_share=base.compression_share)
    free = replace(described, epsilon=None)
    return found | {
        "mixture-alone": Variation("the mixture alone, nothing trained", gaussian),
        "non-private": Variation("without privacy", replace(free, method="non-private", settings=base)),
        "reconstructed": Variation("real images through stage 1", replace(gaussian, settings=stage_1_only), True),
        "real": Variation("real images", replace(free, method="real", settings=RealImagesSettings())),
    }
