"""What a run will work on and what it will do, in words for the owner of the images, before anything is done.

How many images each class has is told here and nowhere else: it is computed from the images, and no ε covers it.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from dpldm.data.images import ImageData, Known
from dpldm.data.kinds import KINDS
from dpldm.method.settings import SynthesisSettings
from dpldm.methods import METHODS
from dpldm.recipes import band, least_epsilons, least_useful_epsilon
from dpldm.runs.experiment import Experiment, Folders
from dpldm.runs.job import prepare

MOST_CLASSES = 20  # of which all are listed
BUDGETS = {  # what follows from how much noise there is in a class; with the ε at which the upper two begin
    "ample": "ε of {ample:.2g} or more, or noise that was given, counts as ample: there is little noise, so that "
    "images are hardly clipped and many dimensions are kept",
    "tight": "ε from {tight:.2g} to {ample:.2g} counts as tight: bounds are tighter and fewer dimensions are kept, as "
    "each of them takes noise",
    "scarce": "ε below {tight:.2g} counts as scarce: bounds are tight, few dimensions are kept, and what would be "
    "mostly noise is not measured",
}


def in_words(experiment: Experiment, folders: Folders | None = None) -> list[str]:
    """What `dpldm.runs.run.run` would do, checked as far as it checks before it works.

    Args:
        folders: of the run; None for a plan that leaves no file but missing public data.

    Raises:
        ValueError: something can't work, as the run would say.
        OSError: the images can't be read.
    """
    with tempfile.TemporaryDirectory() as nowhere:  # the secret that checksums are keyed with goes with it
        job = prepare(experiment, folders or Folders(Path(nowhere), Path(nowhere)))
    asked = job.experiment
    method, drawn = METHODS[asked.method], f"{len(job.labels):,} synthetic images, as many of each class"
    lines = [
        *_images(job.train, asked.resize),
        f"kind:      {_kind(asked, job.train.kind)}",
        f"budget:    {_budget(asked)}",
        f"method:    {method.title}. {method.about}",
    ]
    if isinstance(job.settings, SynthesisSettings):
        lines += _too_little(asked, job.train.known)
        lines += [f"recipe:    {why}" for why in _why(asked, job.train.known)]
        lines += [f"           {step}" for step in steps(job.settings)]
    lines.append(f"draws:     {drawn}; {'scored' if job.test is not None else 'not scored'}")
    lines.append(
        "expected:  time and memory are not foretold, as only MNIST's size was measured; a run shows what is left"
    )
    return lines


def _images(data: ImageData, resize: int | None) -> Iterator[str]:
    channels, height, width = data.image_shape
    colours = "grey" if channels == 1 else "RGB"
    cut = "" if resize is None else "; of each the middle square, resized"
    yield f"images:    {len(data):,} of {height} × {width} pixels, {colours}, in {data.num_classes} classes{cut}"
    counts = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    named = list(zip(counts, data.class_names, strict=True))
    if len(named) > MOST_CLASSES:
        (few, rare), (many, common) = min(named), max(named)
        told = f"from {few:,} ({rare}) to {many:,} ({common})"
    else:
        told = ", ".join(f"{name}: {count:,}" for count, name in named)
    yield f"classes:   {told} (for your eyes: no record has these numbers, and no ε covers them)"


def _budget(asked: Experiment) -> str:
    spec = asked.spec
    if spec is None:
        return "none, not private: treat what comes out like the real images"
    given = f"noise multiplier {spec.noise_multiplier}" if spec.epsilon is None else f"ε ≤ {spec.epsilon:g}"
    secret = "secret noise" if spec.secure_mode else "seeded noise, which protects nobody: use --secure for a release"
    return f"{given}, δ = {spec.delta:g}, {secret}"


def _kind(asked: Experiment, kind: str) -> str:
    who = "said by you, public" if isinstance(asked.dataset, Path) else "publicly known"
    hint = "; if it is ink or an object on an even ground, --kind gets more out of the same ε"
    return f"{kind}: {KINDS[kind]}{hint}" if kind == "none" else f"{kind} ({who}): {KINDS[kind]}"


def _too_little(asked: Experiment, known: Known) -> Iterator[str]:
    if asked.epsilon is None:
        return
    least = least_useful_epsilon(known, asked.delta)
    verdict = "; yours is below, so expect little but noise" if asked.epsilon < least else ""
    each = known.count / known.num_classes
    yield f"least ε:   with {each:,.0f} images a class about {least:.2g}, or noise hides how they differ{verdict}"


def _why(asked: Experiment, known: Known) -> Iterator[str]:
    if asked.profile == "smoke":
        yield "toy sizes, the same for every ε: smoke tries whether everything works"
    else:
        found, least = band(asked.epsilon, known, asked.delta), least_epsilons(known, asked.delta)
        yield f"for {known.count:,} images in {known.num_classes} classes, " + BUDGETS[found].format(**least)
    yield (
        "chosen by ε, δ, the number of images, their shape, the number of classes and their kind, not by their pixels "
        "or name; its numbers were tuned on MNIST (ink) and Fashion-MNIST (object)"
    )


def steps(settings: SynthesisSettings) -> Iterator[str]:
    """What the method does with these settings, a line for each stage with its share of the budget."""
    compression, fit, shares = settings.compression, settings.fit, settings.shares

    def line(share: float, text: str) -> str:
        return f"{share:4.0%}  {text}"

    dim = compression.autoencoder.dim if "autoencoder" in compression.kind else compression.pca.dim
    yield line(shares["compression"], f"{compression.kind}: an image becomes at most {dim} numbers")
    yield line(shares["mixture"], "mixture: counts, sums and second moments of these numbers, class by class")
    yield line(
        settings.diffusion_share, f"denoiser: {fit.steps} steps of DP-SGD, each on about {fit.batch:,} of the images"
    )
    if settings.matches:
        share = settings.matching.image_share
        yield line(shares["matching"], f"decoders matched to mean features: draw {share:.0%} of the images")
    if settings.selects:
        selection = settings.selection
        pushes = ", and pushes it towards its class" if settings.pushes else ""
        chosen = f"takes the best of {selection.candidates} for each image{pushes}"
        yield line(shares["selection"], f"classifier of {selection.steps} noisy steps: {chosen}")
    if settings.moves:
        yield line(
            shares["transport"], "edges: images are moved until their edges are like the private ones on average"
        )
    done = {part for finish in (settings.finish, settings.last) for part in ("bend", "contrast", "ground", "sharpen")
            if getattr(finish, part)}  # fmt: skip
    told = f"finished by {', '.join(sorted(done))}" if done else "left as they come, as nothing is known of such images"
    yield f"free  images are {told}"
