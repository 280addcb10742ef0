"""What an attacker is given: examples that take part or not, and what was released with and without them.

Attackers know much: all images but the canaries, the canaries themselves, and every number a mechanism releases. They
don't know the noise. A canary that is left out adds nothing while the public number of images stays as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dpldm.privacy.accounting import Ledger
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.noise import Answer, NoiseSource, Release, watched


def in_turn(answers: Iterable[Tensor]) -> Answer:
    """Answers for `watched` that replay an earlier run on other images: one for each full-batch release, in
    order. What DP-SGD releases stays as it is."""
    following = iter(answers)
    return lambda one: one.released if one.gradients else next(following)


def full_batch(releases: Iterable[Release]) -> list[Release]:
    """Those of mechanisms on all images at once."""
    return [one for one in releases if not one.gradients]


# A fit of statistics: reads private data, draws from the noise source, releases only by Gaussian mechanisms.
Fit = Callable[[PrivateData, NoiseSource], Any]


@dataclass(frozen=True)
class Examples:
    """Images (n, C, H, W) in [0, 1] with labels (n,) of ``num_classes`` classes."""

    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Tensor | slice) -> "Examples":
        return Examples(self.images[chosen], self.labels[chosen], self.num_classes)

    def __add__(self, other: "Examples") -> "Examples":
        images, labels = torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels])
        return Examples(images, labels, self.num_classes)


def guarded(examples: Examples, n: int) -> PrivateData:
    """A guard around ``examples`` whose public number of images is ``n``, however many there are: the rest is blank.

    Where a fit takes Poisson samples, it needs `_only_the_first` as well.
    """
    guard = PrivateData(examples.images, examples.labels, examples.num_classes, Ledger())
    guard._len = n
    return guard


@contextmanager
def only_the_first(present: int) -> Iterator[None]:
    """Poisson samples inside the block skip all but the first images: the others are blank and add nothing to a sum."""
    real = NoiseSource.poisson_mask

    def poisson_mask(self: NoiseSource, n: int, sample_rate: float) -> Tensor:
        return real(self, n, sample_rate) & (torch.arange(n) < present)

    with patch.object(NoiseSource, "poisson_mask", poisson_mask):
        yield


def odd_images(n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Canaries unlike any real image (n, C, H, W): random coarse patterns of black and white."""
    channels, side, _ = shape
    coarse = torch.randn(n, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    return (fine > 0).float()


def mislabelled(examples: Examples, seed: int) -> Examples:
    """The same images, each with a wrong class at random: canaries that look real."""
    random = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, examples.num_classes, (len(examples),), generator=random)
    return Examples(examples.images, (examples.labels + shift) % examples.num_classes, examples.num_classes)


def coins(n: int, seed: int) -> Tensor:
    """Who takes part: n independent fair coins, boolean (n,)."""
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5


@dataclass(frozen=True)
class Evidence:
    """For m canaries and noise of unit variance: signal · signalᵀ (m, m), and signal · (release - what is known)."""

    gram: Tensor
    match: Tensor


def evidence_of(
    fit: Fit, taking_part: Examples, known: Examples, canaries: Examples, n: int, seed: int
) -> dict[str, Evidence]:
    """What one run tells about each canary, by mechanism and (under "all") together.

    A canary's contribution to each release is what goes into the mechanism when the run is replayed, with the same
    releases, on the canary alone; that of the known images likewise. So no formula of the library is repeated here.
    """

    def go(examples: Examples, answers: Sequence[Tensor] | None = None) -> tuple[list[Release], Ledger]:
        guard = guarded(examples, n)
        with watched(None if answers is None else in_turn(answers)) as seen, only_the_first(len(examples)):
            fit(guard, NoiseSource.seeded(seed))
        return full_batch(seen), guard.ledger

    releases, ledger = go(taking_part)
    answers = [release.released for release in releases]
    background = values_of(go(known, answers)[0])
    alone = [values_of(go(canaries[i : i + 1], answers)[0]) for i in range(len(canaries))]
    return weigh(releases, ledger, background, alone)


def values_of(releases: Sequence[Release]) -> list[Tensor]:
    """What each release was computed as before its noise, flattened."""
    return [release.value.flatten() for release in releases]


def weigh(
    releases: Sequence[Release], ledger: Ledger, background: list[Tensor], alone: list[list[Tensor]]
) -> dict[str, Evidence]:
    """What each mechanism's releases tell of every example."""
    names = [m.name for m in ledger.mechanisms if m.sample_rate == 1 for _ in range(m.steps)]
    names += ["not in the ledger"] * (len(releases) - len(names))
    found: dict[str, Evidence] = {}
    for j, (name, release) in enumerate(zip(names, releases, strict=True)):
        std = release.mechanism.sensitivity * max(release.mechanism.noise_multiplier, 1e-6)
        signal = torch.stack([values[j] for values in alone]).double() / std
        rest = (release.released.flatten().double() - background[j].double()) / std
        one = Evidence(signal @ signal.T, signal @ rest)
        for key in (name, "all"):
            before = found.get(key)
            found[key] = one if before is None else Evidence(before.gram + one.gram, before.match + one.match)
    return found


def decode(evidence: Evidence, trust: float) -> Tensor:
    """The best linear estimate of who took part (n,), trusting the noise to be ``trust`` times what is claimed."""
    # With coins s = ±1 and signals C, the rest is y = ½ Cᵀ(s + 1) + noise; the best linear estimate of s is then
    # (¼ CCᵀ + I)⁻¹ ½ C(y - ½ Cᵀ1) for noise of unit variance.
    gram = evidence.gram
    noise = trust**2 * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram / 4 + noise, (evidence.match - gram.sum(1) / 2) / 2)


def ones(examples: Examples) -> Iterator[Examples]:
    """Each example by itself."""
    for i in range(len(examples)):
        yield examples[i : i + 1]
