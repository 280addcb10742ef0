"""What one private image may move in a run, for any method: nothing but the releases, and those by their sensitivity.

A run is followed from `run` on a file to the files it leaves, in secure mode, and its releases are recorded
without noise. Then it is followed again on a neighbour, one image more or less, while every release is answered as it
was before. So what goes into a mechanism moves by that image's contribution alone, and nothing else may move: models,
drawn images, steps, what is charged. DP-SGD is examined where it starts, with the losses of the method: each example's
loss and gradient must be its own, and a step must release their clipped sum.
"""

import ast
import copy
import inspect
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import dpldm
from dpldm import (
    methods,
)
from dpldm.method import compression, training
from dpldm.method.decoders import MatchingSettings
from dpldm.method.settings import SynthesisSettings
from dpldm.method.training import FitSettings
from dpldm.privacy import accounting, budget
from dpldm.privacy import noise as noise_module
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, gaussian_epsilon
from dpldm.privacy.noise import NoiseSource, Release, watched
from dpldm.recipes import CHOSEN_ON, settings_for
from dpldm.records import environment, names, stages
from dpldm.runs.experiment import Experiment, Folders, Progress
from dpldm.runs.run import run

LIBRARY = Path(dpldm.__file__).parent
N, SIDE, CLASSES = 48, 12, 3
ROUNDING = 1e-5  # relative: sums and norms of float32 rows
NO_MORE_THAN_THIS = 1e-4  # of an example's loss or gradient, for sums in another order


# --- data and their neighbours ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """uint8 images (n, side, side) and labels (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, other: "Pictures") -> "Pictures":
        return Pictures(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))

    def first(self, count: int) -> "Pictures":
        return Pictures(self.images[:count], self.labels[:count])


def pictures(n: int = N, seed: int = 0) -> Pictures:
    """Grey noise with a bar in another place for each class."""
    random = np.random.default_rng(seed)
    images, labels = (random.random((n, SIDE, SIDE)) * 120).astype(np.uint8), np.arange(n) % CLASSES
    for c in range(CLASSES):
        images[labels == c, :, 3 * c + 1 : 3 * c + 3] += 120
    return Pictures(images, labels)


def adversaries(base: Pictures) -> dict[str, Pictures]:
    """Single images that may move a sum most: the ends of the range, a lone extreme pixel, black and white along the
    strongest and the weakest directions of the others, and a picture of a class with the label of another."""
    flat = base.images.reshape(len(base), -1) / 255.0
    directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2]
    pixel = np.zeros(flat.shape[1])
    pixel[0] = 1
    shown = {
        "all ones": np.ones(flat.shape[1]),
        "all zeros": np.zeros(flat.shape[1]),
        "a lone pixel": pixel,
        "the strongest direction": directions[0] > 0,
        "its opposite": directions[0] < 0,
        "a weak direction": directions[20] > 0,
        "another label": flat[0],
    }
    return {
        name: Pictures((255 * row).astype(np.uint8).reshape(1, SIDE, SIDE), np.array([1 + place % 2]))
        for place, (name, row) in enumerate(shown.items())
    }


def neighbours(base: Pictures) -> dict[str, Pictures]:
    """One image added, each of the adversaries, or removed."""
    added = {f"{name} added": base + one for name, one in adversaries(base).items()}
    return added | {"the last one removed": base.first(len(base) - 1)}


# --- what is run ------------------------------------------------------------------------------------------------------

_TINY = FitSettings(steps=3, batch=40, physical_batch=16)


def _ours(kind: str, every_stage: bool) -> SynthesisSettings:
    settings = settings_for("smoke", CHOSEN_ON, 2.0)
    compressed = settings.compression
    compressed = replace(
        compressed,
        kind=kind,
        refined=replace(compressed.refined, width=8, fit=_TINY),
        autoencoder=replace(compressed.autoencoder, width=16, fit=_TINY, public_images=60),
    )
    fit = {"compression": compressed, "fit": _TINY, "width": 16, "mixture_share": 0.2}
    if not every_stage:
        still = {"selection": replace(settings.selection, candidates=1), "matching": MatchingSettings(steps=0)}
        return replace(settings, **fit, **still, transport=replace(settings.transport, steps=0))
    matching = replace(settings.matching, steps=2, share=0.1, image_share=0.5, start=1, features=60, images=30)
    matching = replace(matching, generated=12, width=8, decoders=2)
    selection = replace(settings.selection, images=60, dim=8, steps=3, as_they_are=True, push=1.0)
    transport = replace(settings.transport, images=60, dim=4, steps=1)
    return replace(settings, **fit, matching=matching, selection=selection, transport=transport)


def cases() -> dict[str, tuple[str, Any]]:
    """Name → method and settings: every private method of the library as small as can be, ours with every stage and
    with every kind of compression."""
    small = {
        name: (name, one.choose("smoke", CHOSEN_ON, 2.0, 1e-5)) for name, one in methods.METHODS.items() if one.private
    }
    ours = {f"dpldm, {kind}": ("dpldm", _ours(kind, kind == "pca")) for kind in compression.COMPRESSORS}
    for name, (method, settings) in small.items():
        if isinstance(getattr(settings, "fit", None), FitSettings):
            small[name] = method, replace(settings, fit=_TINY)
        if hasattr(settings, "clip_norm"):  # so small that it bites
            small[name] = method, replace(settings, clip_norm=1e-3)
    del small["dpldm"]
    return ours | small


# Where each image's part is drawn by itself, one draw more moves all that is drawn later from the same secret source.
# So such a method is held to images that are replaced; its releases lie in a ball of the sensitivity's diameter anyway.
REPLACED_ONLY = ("gs-wgan",)


# --- following a run --------------------------------------------------------------------------------------------------


@dataclass
class Course:
    """All that a run does and leaves. ``raw``: what each mechanism would have released, with its noise."""

    releases: list[Release] = field(default_factory=list)
    raw: list[Tensor] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    images: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)
    steps: list[tuple[str, float]] = field(default_factory=list)
    readers: set[tuple[str, str]] = field(default_factory=set)
    rates: set[float] = field(default_factory=set)
    examined: set[Mechanism] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    @property
    def mechanisms(self) -> list[Mechanism]:
        return [Mechanism(**entry) for entry in self.facts["privacy"]["mechanisms"]]


class _Told(Progress):
    def __init__(self, steps: list[tuple[str, float]]) -> None:
        self.steps = steps

    def track(self, stage: str, share: float) -> None:
        self.steps.append((stage, share))


def follow(
    data: Pictures, case: tuple[str, Any], place: Path, answers: list[Tensor] | None = None, alone: bool = False
) -> Course:
    """A run on ``data`` whose releases are answered without noise, or by ``answers`` in turn; the public number of
    images stays `N`. With ``alone`` only images beyond that number take part in samples, none of a base."""
    course, (method, settings) = Course(), case
    place.mkdir(parents=True, exist_ok=True)
    np.savez(place / "own.npz", images=data.images, labels=data.labels)
    private = methods.METHODS[method].private
    asked = Experiment(
        place / "own.npz",
        2.0 if private else None,
        delta=1e-3,
        secure_mode=private,
        method=method,
        profile="smoke",
        settings=settings,
        n_synthetic=30,
    )

    def answer(one: Release) -> Tensor:
        course.raw.append(one.released.detach().clone())
        turn = len(course.raw) - 1
        return one.value if answers is None or turn >= len(answers) else answers[turn]

    with ExitStack() as stack:
        for target, name, value in _public_chance(len(data), alone, course.rates):
            stack.enter_context(patch.object(target, name, value))
        stack.enter_context(_remembered_readers(course.readers))
        if answers is None:
            stack.enter_context(_examined_descents(course))
        course.releases = stack.enter_context(watched(answer))
        record = run(asked, Folders(place / "records", place / "runs"), _Told(course.steps))
    folder = place / "runs" / Path(names.record_name(record)).stem
    course.tensors, course.facts = stages.StageFolder(folder).load("synthesizer")
    course.images = (folder / "synthetic.npz").read_bytes()
    return course


def _public_chance(present: int, alone: bool, rates: set[float]) -> Iterator[tuple[Any, str, Any]]:
    """What makes runs comparable: the operating system draws the same for all, all images that are there (or the added
    one alone) take part in every sample, and the public number of images is the same. ``rates``: those asked for."""

    def poisson_mask(self: NoiseSource, n: int, sample_rate: float) -> Tensor:
        rates.add(sample_rate)
        return torch.arange(n) >= N if alone else torch.arange(n) < present

    yield NoiseSource, "secure", lambda: NoiseSource.seeded(1)
    yield NoiseSource, "poisson_mask", poisson_mask
    yield secrets, "randbits", lambda bits: 2
    yield PrivateData, "__len__", lambda self: N
    yield environment, "_commit", lambda root: "0" * 40
    yield accounting, "_spent", _roughly_spent  # which accountant calibrates makes no difference here
    yield torch.linalg, "eigh", _decomposed  # of synthetic images' edges: the same in every run, if nothing moves


def _roughly_spent(parts: tuple, delta: float, accountant: str) -> accounting.Spent:
    mechanisms = [Mechanism("one", "any", noise, rate, steps) for noise, rate, steps in parts]
    precision = sum(map(budget._rough_precision, mechanisms))
    return accounting.Spent(gaussian_epsilon(precision**-0.5, delta), "prv")


_eigh, _known = torch.linalg.eigh, {}


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    key = matrix.detach().numpy().tobytes()
    if key not in _known:
        _known[key] = _eigh(matrix)
    values, vectors = _known[key]
    return values.clone(), vectors.clone()


@contextmanager
def _remembered_readers(readers: set[tuple[str, str]]) -> Iterator[None]:
    """Which functions of the library read private images."""
    read = PrivateData.read

    def remembering(self: PrivateData, mechanism: Mechanism) -> tuple[Tensor, Tensor]:
        caller = sys._getframe(1).f_code
        readers.add((caller.co_filename.removeprefix(f"{LIBRARY}{os.sep}"), caller.co_qualname))
        return read(self, mechanism)

    with patch.object(PrivateData, "read", remembering):
        yield


# --- DP-SGD -----------------------------------------------------------------------------------------------------------


@contextmanager
def _the_same_chance_for_all() -> Iterator[None]:
    """Inside, each call that draws at random draws one row and gives it to all, the same whenever the block is begun:
    then an example's loss depends on no place in the batch."""
    calls = Counter[str]()

    def rows(name: str, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def draw(*size: Any, **options: Any) -> Tensor:
            shape = size[0] if isinstance(size[0], torch.Size | tuple | list) else size
            calls["all"] += 1
            options["generator"] = torch.Generator().manual_seed(calls["all"])
            return real(1, *shape[1:], **options).expand(*shape).clone()

        return draw

    with ExitStack() as stack:
        for name in ("rand", "randn"):
            stack.enter_context(patch.object(torch, name, rows(name, getattr(torch, name))))
        yield


def _losses(network: nn.Module, loss: training.PerExampleLoss, chosen: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Losses (B,) of examples, and the gradient of each, flattened."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with _the_same_chance_for_all():
        losses = loss(network, torch.tensor(chosen))
    gradients = []
    for one in losses:
        parts = torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parts, parameters, strict=True)
        gradients.append(torch.cat([(torch.zeros_like(p) if part is None else part).flatten() for part, p in pairs]))
    return losses.detach(), gradients


def _far(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).norm() > NO_MORE_THAN_THIS * (1 + first.norm()))


def examined(network: nn.Module, loss: training.PerExampleLoss, mechanism: Mechanism, step: Callable) -> list[str]:
    """What is wrong with a private descent, one line each.

    Args:
        step: (network, mechanism, chosen) → what one step of the library releases for these examples, without noise.
    """
    found, name = [], mechanism.name
    batches = {"others beside it": [0, 11, 7, 23], "another order": [7, 23, 0, 11], "nobody beside it": [0]}
    expected, gradients = _losses(network, loss, [0, 5, 9, 14])
    for what, chosen in batches.items():
        losses, others = _losses(network, loss, chosen)
        place = chosen.index(0)
        if _far(losses[place], expected[0]) or _far(others[place], gradients[0]):
            found.append(f"{name}: an example's loss or gradient is another one with {what}")
    if not found:
        norms = torch.stack(gradients).norm(dim=1)
        clip = float(norms[norms > 0].min()) / 2 if (norms > 0).any() else mechanism.sensitivity
        clipped = (torch.stack(gradients) * (clip / norms.clamp_min(1e-12)).clamp_max(1.0)[:, None]).sum(0)
        bitten = replace(mechanism, sensitivity=clip, steps=1)
        if _far(step(network, bitten, [0, 5, 9, 14]), clipped):
            found.append(f"{name}: a step releases another sum than that of the clipped gradients")
        if step(network, bitten, []).any():
            found.append(f"{name}: a step without examples releases something")
    return found


@contextmanager
def _examined_descents(course: Course) -> Iterator[None]:
    """Every DP-SGD inside the block is examined before it starts, after it has had no step yet."""
    real = training.fit_private

    def fit_private(
        network: nn.Module,
        loss: training.PerExampleLoss,
        n: int,
        mechanism: Mechanism,
        settings: FitSettings,
        noise: NoiseSource,
    ) -> Iterator[int]:
        def step(network: nn.Module, mechanism: Mechanism, chosen: list[int]) -> Tensor:
            mask = torch.zeros(n, dtype=torch.bool)
            mask[chosen] = True
            with ExitStack() as stack:
                stack.enter_context(patch.object(NoiseSource, "poisson_mask", lambda self, n, rate: mask))
                stack.enter_context(patch.object(noise_module, "_watchers", []))
                stack.enter_context(_the_same_chance_for_all())
                seen = stack.enter_context(watched())
                few = replace(settings, physical_batch=max(1, len(chosen)))
                list(real(copy.deepcopy(network), loss, n, mechanism, few, NoiseSource.seeded(0)))
            return seen[0].value

        chance = [torch.get_rng_state()]
        chance += [one.get_state() for one in _generators(loss)]
        course.complaints.extend(examined(network, loss, mechanism, step))
        course.examined.add(mechanism)
        torch.set_rng_state(chance[0])
        for one, state in zip(_generators(loss), chance[1:], strict=True):
            one.set_state(state)
        yield from real(network, loss, n, mechanism, settings, noise)

    with patch.object(training, "fit_private", fit_private):
        yield


def _generators(loss: training.PerExampleLoss) -> list[torch.Generator]:
    known = inspect.getclosurevars(loss).nonlocals.values()
    return [value for value in known if isinstance(value, torch.Generator)]


# --- the check --------------------------------------------------------------------------------------------------------


def complaints_about(base: Course) -> list[str]:
    """What a single run shows: DP-SGD, and whether each release is charged, with the noise that is charged."""
    found = list(base.complaints)
    found += [f"samples at {rate:.4g}" for rate in base.rates - {one.sample_rate for one in base.mechanisms}]
    descents = {one.mechanism for one in base.releases if one.gradients}
    found += [f"{mechanism.name}: gradients by another way" for mechanism in descents - base.examined]
    charged = Counter[Mechanism]()
    for mechanism in base.mechanisms:
        charged[mechanism] += mechanism.steps
    for mechanism, times in Counter(one.mechanism for one in base.releases).items():
        if times > charged[mechanism]:
            found.append(f"{mechanism.name}: {times} releases, {charged[mechanism]} charged")
    for one, raw in zip(base.releases, base.raw, strict=True):
        noise, std = (raw - one.value).double(), one.mechanism.sensitivity * one.mechanism.noise_multiplier
        if noise.numel() >= 100 and not 0.7 * std < float(noise.std()) < 1.3 * std:
            found.append(f"{one.mechanism.name}: noise of {float(noise.std()):.3g}, {std:.3g} charged")
    return found


def complaints_about_pair(base: Course, other: Course, strangers: bool = False) -> list[str]:
    """What moves between two neighbours although it may not, one line each; ``other`` was answered like ``base``.
    With ``strangers`` all images differ, so what goes into mechanisms may."""
    if [one.mechanism for one in base.releases] != [one.mechanism for one in other.releases]:
        return [f"{len(base.releases)} releases become {len(other.releases)}, or others"]
    found = []
    for turn, (one, another) in enumerate(zip(base.releases, other.releases, strict=True)):
        if one.gradients or strangers:
            continue  # examined by itself: what is random of the others depends on who takes part
        moved, bound = _distance(one.value, another.value), one.mechanism.sensitivity
        if not moved <= bound * (1 + ROUNDING):
            found.append(f"{one.mechanism.name}, release {turn + 1}: moves by {moved:.4g}, charged for {bound:.4g}")
    for name, value in base.tensors.items():
        if name not in other.tensors or not torch.equal(value, other.tensors[name]):
            found.append(f"the model's {name} moves")
    for what in ("images", "steps", "facts"):
        if getattr(base, what) != getattr(other, what):
            found.append(f"the {what} move")
    return found


def _distance(first: Tensor, second: Tensor) -> float:
    """L2; a row for each image, where that is what is released, counts as zero where the image is not."""
    first, second = first.detach().double(), second.detach().double()
    if first.shape[1:] != second.shape[1:]:
        return float("inf")
    rows = min(len(first), len(second))
    rest = first[rows:].square().sum() + second[rows:].square().sum()
    return float(((first[:rows] - second[:rows]).square().sum() + rest).sqrt())


def check(name: str, place: Path) -> Iterator[str]:
    """All complaints about a case, one after the other, so that a caller may stop at the first."""
    case, data = cases()[name], pictures()
    base = follow(data, case, place / "base")
    yield from complaints_about(base)
    answers = [one.released for one in base.releases]
    try:
        strangers = follow(pictures(seed=1), case, place / "strangers", answers)
        yield from (f"strangers: {line}" for line in complaints_about_pair(base, strangers, strangers=True))
    except Exception as error:  # what ends a run is not to depend on images
        yield f"strangers: the run ends otherwise ({error})"
    yield from _complaints_about_neighbours(base, data, case, place)
    if any(one.mechanism.sample_rate < 1 and not one.gradients for one in base.releases):
        nobody = follow(data, case, place / "nobody", alone=True)
        yield from _complaints_about_neighbours(nobody, data, case, place / "alone", alone=True)


def _complaints_about_neighbours(
    base: Course, data: Pictures, case: tuple[str, Any], place: Path, alone: bool = False
) -> Iterator[str]:
    answers = [one.released for one in base.releases]
    for number, (who, neighbour) in enumerate(neighbours(data).items()):
        if case[0] in REPLACED_ONLY:
            neighbour = Pictures(*(array[-N:] for array in vars(neighbour).values()))
            if len(neighbour) < N or alone:
                continue
        try:
            other = follow(neighbour, case, place / f"neighbour{number}", answers, alone)
        except Exception as error:  # what ends a run is not to depend on an image either
            yield f"{who}: the run ends otherwise ({error})"
            continue
        yield from (f"{who}{', alone' * alone}: {line}" for line in complaints_about_pair(base, other))


# --- who reads private images -----------------------------------------------------------------------------------------


def reading(folder: Path = LIBRARY) -> set[tuple[str, str]]:
    """File and name of all functions in a folder that may read private images, as in `Course.readers`: those that call
    ``x.read(y)`` where x is no module and no open file, in files that name the guard, as type checks make them."""
    return {place for path in folder.rglob("*.py") for place in _reading(path, str(path.relative_to(folder)))}


def _reading(path: Path, file: str) -> Iterator[tuple[str, str]]:
    source = path.read_text(encoding="utf-8")
    tree, others = ast.parse(source), set()
    if PrivateData.__name__ not in source:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            others |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            others.add(node.optional_vars.id)

    def walk(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and child.func.attr == "read":
                known = isinstance(child.func.value, ast.Name) and child.func.value.id in others
                if child.args and not known:
                    yield file, ".".join(inside).removesuffix(".<locals>")
            if isinstance(child, ast.ClassDef):
                yield from walk(child, (*inside, child.name))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, (*inside, child.name, "<locals>"))
            else:
                yield from walk(child, inside)

    yield from walk(tree, ())


def yardsticks() -> set[str]:
    """Names of classes that are built without privacy only."""
    built = {private: {m.build for m in methods.METHODS.values() if m.private == private} for private in (True, False)}
    return {build.__name__ for build in built[False] - built[True]}


def unread(readers: Collection[tuple[str, str]], folder: Path = LIBRARY) -> set[tuple[str, str]]:
    """Functions of a folder that may read private images and are not among ``readers``, yardsticks aside."""
    return {place for place in reading(folder) - set(readers) if place[1].split(".")[0] not in yardsticks()}
