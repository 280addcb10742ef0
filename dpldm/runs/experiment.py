"""The frozen description of a run, and all that it decides by itself."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpldm.data import datasets, own
from dpldm.data.images import Known, check_kind
from dpldm.evaluation.settings import EvaluationSettings
from dpldm.method.finishing import unfinished
from dpldm.methods import METHODS, PROFILES, MethodSettings
from dpldm.privacy.mechanisms import PrivacySpec
from dpldm.records.settings import to_json
from dpldm.runs import heartbeat

LARGEST_SEED = 10**9


class ExperimentError(ValueError):
    """A run that can't be made as described, or a saved synthesizer that can't be read. One line."""


@dataclass(frozen=True)
class Experiment:
    """One run, described. `replace(base, epsilon=1.0)` describes another one.

    dataset: a key of `dpldm.data.datasets.DATASETS`, or the path of your own images (see `dpldm.data.own.load_own`).
    kind: of your own images, the one public word on them (`dpldm.data.images.KINDS`); that of a known set is known.
    resize: of your own images, the side in pixels to which the middle square of each is brought; None: as they are.
    epsilon: target ε; None with a ``noise_multiplier``, or with neither for a run that is not private.
    noise_multiplier: noise of the diffusion stage instead of a target, > 0. delta: δ in (0, 1/N).
    secure_mode: noise from the operating system's cryptographic generator; such a run can't be repeated exactly.
    method: a key of `METHODS`. profile: a key of `PROFILES`. seed: 0 to 10⁹, of everything random.
    settings, evaluation, n_synthetic: None for what the profile says.
    test_data: real images to score your own data's synthesis with; without them it is not scored.
    device: "auto" (CUDA where there is a GPU of NVIDIA, else the CPU) or a torch device.

    Raises:
        ValueError: in one line, the first thing that is wrong.
    """

    dataset: str | Path
    epsilon: float | None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    secure_mode: bool = False
    method: str = "dpldm"
    profile: str = "quick"
    seed: int = 0
    settings: MethodSettings | None = None
    evaluation: EvaluationSettings | None = None
    n_synthetic: int | None = None
    test_data: Path | None = None
    device: str = "auto"
    kind: str = "none"
    resize: int | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)
        for name, known in (("method", METHODS), ("profile", PROFILES)):
            if getattr(self, name) not in known:
                raise ExperimentError(f"unknown {name} {getattr(self, name)!r}: expected {' or '.join(known)}")
        if isinstance(self.dataset, str) and self.dataset not in datasets.DATASETS:
            expected = f"expected {' or '.join(datasets.DATASETS)}, or the path of your own images"
            raise ExperimentError(f"unknown dataset {self.dataset!r}: {expected}")
        if isinstance(self.dataset, str) and self.kind != "none":
            kind = datasets.DATASETS[self.dataset].kind
            raise ExperimentError(f"the kind of {self.dataset} is known ({kind}): leave out --kind")
        if isinstance(self.dataset, str) and self.resize is not None:
            raise ExperimentError(f"images of {self.dataset} stay as they are: leave out --resize")
        if self.test_data is not None and not isinstance(self.dataset, Path):
            raise ExperimentError("test images of your own go with training images of your own: give both or neither")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ExperimentError(f"expected a seed from 0 to {LARGEST_SEED}, got {self.seed}: choose another")
        if self.noise_multiplier == 0:
            raise ExperimentError("expected a noise multiplier above 0, got 0: ask for a non-private run by its name")
        if self.n_synthetic is not None and self.n_synthetic < 1:
            raise ExperimentError(f"expected 1 or more synthetic images, got {self.n_synthetic}: raise the number")
        self._check_method()

    def _check_method(self) -> None:
        method = METHODS[self.method]
        if self.spec is not None and not method.private:
            raise ExperimentError(
                f"method {self.method!r} is a yardstick without privacy: expected no ε and no noise multiplier, got "
                "one; leave it out (--epsilon none), or choose another method"
            )
        if self.settings is not None and not isinstance(self.settings, method.settings):
            raise ExperimentError(
                f"expected {method.settings.__name__} for method {self.method!r}, got {type(self.settings).__name__}: "
                "give those of the method"
            )

    @property
    def spec(self) -> PrivacySpec | None:
        """The budget; None for a run that is not private."""
        if self.epsilon is None and self.noise_multiplier is None:
            return None
        return PrivacySpec(self.epsilon, self.delta, self.noise_multiplier, self.secure_mode)

    @property
    def known(self) -> Known:
        """What may be known of the images of the run, before any is looked at.

        Raises:
            DataError, OSError: your own images can't be read.
        """
        if isinstance(self.dataset, Path):
            return own.load_own(self.dataset, self.kind, self.resize).known
        known, limit = datasets.DATASETS[self.dataset].known, limit_of(self)
        return known if limit is None else replace(known, count=min(known.count, limit))

    def resolved(self) -> "Experiment":
        """The same experiment with every setting of its profile written out."""
        profile, choose = PROFILES[self.profile], METHODS[self.method].choose
        return replace(
            self,
            settings=self.settings or choose(self.profile, self.known, self.epsilon, self.delta),
            evaluation=self.evaluation or profile.evaluation,
            n_synthetic=self.n_synthetic or profile.n_synthetic,
        )


@dataclass(frozen=True)
class Folders:
    """Where things lie. ``data`` None: see `dpldm.data.datasets.data_folder`."""

    records: Path = Path("runs/records")
    runs: Path = Path("runs")
    data: Path | None = None


class Progress:
    """What a run tells while it works; this one keeps quiet, but for a build of the book that waits for it."""

    def say(self, line: str) -> None:
        """One line for the reader."""

    def track(self, stage: str, share: float) -> None:
        """That share (0 to 1) of a stage is done; may be called from any thread."""
        heartbeat.note(stage, share)


def choose_device(name: str = "auto") -> torch.device:
    """The device to work on: the one named; "auto" is a CUDA GPU where there is one, else the CPU.

    A GPU adds in no fixed order, so there a run repeats only up to what rounding makes of it.

    Raises:
        ExperimentError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExperimentError(f"device {name!r} can't be used here ({reason}): use auto, cpu, cuda or mps") from None
    return device


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that no two parts of a run draw the same random numbers."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:4], "big")


def fit_seed(experiment: Experiment, sha256: Mapping[str, str]) -> int:
    """The seed of a fit: it depends on the run's seed and on all that decides the fit.

    Of a seeded run these are also ``sha256``, the checksums of its images: two runs that differ in anything then share
    no noise, which their difference would cancel. A secure run has its noise from elsewhere, and what still follows
    from this seed is public (first weights, random features): it must not tell of which images the run was made.
    How the images are finished decides nothing of the fit: with it and without, it is one fit, released once.
    """
    settings = to_json(unfinished(experiment.settings))
    facts: list[Any] = [experiment.method, settings, experiment.spec and asdict(experiment.spec)]
    # The names of your own files decide nothing; those of known ones never change.
    sums = sorted(sha256.values()) if isinstance(experiment.dataset, Path) else dict(sha256)
    facts += [] if experiment.secure_mode else [sums]
    return derived_seed(experiment.seed, f"fit {json.dumps(facts, sort_keys=True)}")


def balanced_labels(n: int, num_classes: int) -> Tensor:
    """Class numbers 0, 1, …, 0, 1, …: (n,), as equal in number as can be, without a look at the real ones.

    >>> balanced_labels(5, 3).tolist()
    [0, 1, 2, 0, 1]
    """
    return torch.arange(n) % num_classes


def limit_of(experiment: Experiment) -> int | None:
    """The most images of each split that a run uses. Of your own it uses all: which ones `limited` takes depends on
    their number, so that one image less would swap most of them, and no ε counts that."""
    return None if isinstance(experiment.dataset, Path) else PROFILES[experiment.profile].limit
