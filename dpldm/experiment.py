"""One frozen description → one run → one record. The join of data, synthesis, evaluation and results.

A run checks everything that can be checked first, then works in stages ("compression", "diffusion", "selection",
"transport", "samples", and one per part of the evaluation). Every finished stage is kept, so an interrupted run goes on
after the last of them and ends with the record of a run that was never interrupted. Private images are seen only
through `PrivateData`; the evaluation reads real images directly and is part of no guarantee.
"""

import fcntl
import functools
import hashlib
import hmac
import itertools
import json
import math
import os
import secrets
import shutil
import time
import types
import typing
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dpldm import baselines, evaluation, heartbeat, privacy, results
from dpldm import data as datasets
from dpldm.compression import Compressor
from dpldm.data import ImageData
from dpldm.evaluation import EvaluationSettings
from dpldm.finishing import unfinished
from dpldm.methods import METHODS, PROFILES, MethodSettings, Synthesizer
from dpldm.privacy import Ledger, Mechanism, PrivacySpec, PrivateData
from dpldm.results import RecordError, StageFolder
from dpldm.settings import SamplingSettings
from dpldm.synthesis import LatentDiffusion

SAMPLES = "samples"
GRID_COLUMNS = 10  # images of each class on a sample grid
LARGEST_SEED = 10**9
UNCOVERED = "computed from real images directly; not covered by the privacy guarantee"
NOT_PRIVATE = {
    "epsilon": None,
    "claim": "No differential privacy: this run was made without noise. Treat what it gives like the real images.",
}


class ExperimentError(ValueError):
    """A run that can't be made as described, or a saved synthesizer that can't be read. One line."""


class Stopped(KeyboardInterrupt):
    """A run that was interrupted; `folder` keeps its finished stages."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped; finished stages are kept in {folder}, run the same command to go on")
        self.folder = folder


# --- what a run is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """One run, described. `replace(base, epsilon=1.0)` describes another one.

    dataset: a key of `dpldm.data.DATASETS`, or the path of your own images (see `dpldm.data.load_own`).
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

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("profile", PROFILES)):
            if getattr(self, name) not in known:
                raise ExperimentError(f"unknown {name} {getattr(self, name)!r}: expected {' or '.join(known)}")
        if isinstance(self.dataset, str) and self.dataset not in datasets.DATASETS:
            expected = f"expected {' or '.join(datasets.DATASETS)}, or your own images with --data PATH"
            raise ExperimentError(f"unknown dataset {self.dataset!r}: {expected}")
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

    def resolved(self) -> "Experiment":
        """The same experiment with every setting of its profile written out."""
        profile = PROFILES[self.profile]
        return replace(
            self,
            settings=self.settings or METHODS[self.method].choose(self.profile, str(self.dataset), self.epsilon),
            evaluation=self.evaluation or profile.evaluation,
            n_synthetic=self.n_synthetic or profile.n_synthetic,
        )


@dataclass(frozen=True)
class Folders:
    """Where things lie. ``data`` None: see `dpldm.data.data_folder`."""

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
    facts = [experiment.method, settings, experiment.spec and asdict(experiment.spec)]
    facts += [] if experiment.secure_mode else [dict(sha256)]
    return derived_seed(experiment.seed, f"fit {json.dumps(facts, sort_keys=True)}")


def balanced_labels(n: int, num_classes: int) -> Tensor:
    """Class numbers 0, 1, …, 0, 1, …: (n,), as equal in number as can be, without a look at the real ones.

    >>> balanced_labels(5, 3).tolist()
    [0, 1, 2, 0, 1]
    """
    return torch.arange(n) % num_classes


# --- everything that is known before the work -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """A checked experiment with what it works on. ``unfinished``: the stages of the run with the same fit whose images
    are left as they are, which may be this one."""

    experiment: Experiment
    settings: MethodSettings
    train: ImageData
    test: ImageData | None
    synthesizer: Synthesizer
    labels: Tensor
    device: torch.device
    description: dict[str, Any]
    record_path: Path
    stages: StageFolder
    unfinished: StageFolder

    @property
    def model_path(self) -> Path:
        return self.stages.path / "synthesizer.safetensors"

    @property
    def images_path(self) -> Path:
        return self.stages.path / "synthetic.npz"


def _prepare(experiment: Experiment, folders: Folders) -> _Job:
    """Load the data and check all that can be checked; writes nothing but missing public data."""
    experiment = experiment.resolved()
    assert experiment.settings is not None
    assert experiment.n_synthetic is not None
    device = choose_device(experiment.device)
    train, test = _load(experiment, folders)
    results.check_memory(experiment.n_synthetic, train.image_shape)
    build = METHODS[experiment.method].build
    seed = fit_seed(experiment, train.sha256)
    synthesizer = build(train.image_shape, train.num_classes, experiment.settings, experiment.spec, seed, device)
    synthesizer.check(len(train))
    labels = balanced_labels(experiment.n_synthetic, train.num_classes)
    if test is not None:
        some = torch.zeros(1).expand(len(labels), *train.image_shape)
        evaluation.check_synthetic(some, labels, train, test)
        if os.environ.get(evaluation.INCEPTION_VARIABLE):
            evaluation.find_inception_weights()
    description = _description(experiment, train, test, synthesizer, folders)
    record_path = folders.records / results.record_name(description)
    plain = description["settings"] | {"synthesis": to_json(unfinished(experiment.settings))}
    names = [record_path.name, results.record_name(description | {"settings": plain})]
    stages = [StageFolder(folders.runs / Path(name).stem) for name in names]
    return _Job(
        experiment, experiment.settings, train, test, synthesizer, labels, device, description, record_path, *stages
    )


def check(experiment: Experiment, folders: Folders = Folders()) -> Path:
    """All that `run` checks before it works; writes nothing but missing public data.

    Returns:
        Where the record of this experiment is, or would be.

    Raises:
        ValueError: something can't work.
    """
    return _prepare(experiment, folders).record_path


def _load(experiment: Experiment, folders: Folders) -> tuple[ImageData, ImageData | None]:
    """Training images, and test images where the run is to be scored."""
    test = None
    if isinstance(experiment.dataset, Path):
        train = datasets.load_own(experiment.dataset)
        if experiment.test_data is not None:
            test = datasets.load_own(experiment.test_data)
            if (test.image_shape, test.class_names) != (train.image_shape, train.class_names):
                raise ExperimentError(
                    f"test images differ from the training images: expected {train.image_shape} and classes "
                    f"{', '.join(train.class_names)}, got {test.image_shape} and {', '.join(test.class_names)}"
                )
    else:
        train = datasets.load(experiment.dataset, "train", folders.data)
        test = datasets.load(experiment.dataset, "test", folders.data)
    limit = _limit(experiment)
    return _limited(train, limit), test and _limited(test, limit)


def _limit(experiment: Experiment) -> int | None:
    """The most images of each split that a run uses. Of your own it uses all: which ones `_limited` takes depends on
    their number, so that one image less would swap most of them, and no ε counts that."""
    return None if isinstance(experiment.dataset, Path) else PROFILES[experiment.profile].limit


def _limited(images: ImageData, limit: int | None) -> ImageData:
    """At most ``limit`` images, chosen at random and always the same: the choice depends on their number only."""
    if limit is None or len(images) <= limit:
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.subset(order[:limit])


def _description(
    experiment: Experiment, train: ImageData, test: ImageData | None, synthesizer: Synthesizer, folders: Folders
) -> dict[str, Any]:
    """What defines the run, in the form of a record."""
    own = isinstance(experiment.dataset, Path)
    return _asked(experiment, scored=test is not None) | {
        "dataset": _own_name(train.name) if own else train.name,
        "public_data": getattr(getattr(synthesizer, "compressor", None), "public_data", None),
        "data_sha256": _own_sums(train, test, folders) if own else train.sha256 | (test.sha256 if test else {}),
    }


def _asked(experiment: Experiment, scored: bool) -> dict[str, Any]:
    """What defines the run of a resolved experiment but its data, in the form of a record."""
    assert experiment.settings is not None
    assert experiment.evaluation is not None
    spec = experiment.spec
    asked: dict[str, Any] = {"epsilon_target": spec and spec.epsilon, "delta": spec and spec.delta}
    if spec is not None and spec.noise_multiplier is not None:
        asked["noise_multiplier"] = spec.noise_multiplier
    return {
        "schema": 1,
        "method": experiment.method,
        "profile": experiment.profile,
        "seed": experiment.seed,
        "settings": {
            "synthesis": to_json(experiment.settings),
            "evaluation": to_json(experiment.evaluation) if scored else None,
            "n_synthetic": experiment.n_synthetic,
            "limit": _limit(experiment),
            "secure_mode": experiment.secure_mode,
        },
        "privacy": asked,
    }


# --- records of known runs --------------------------------------------------------------------------------------------


def choose(records: Iterable[Mapping[str, Any]], experiment: Experiment) -> Mapping[str, Any] | None:
    """The record of exactly this run: same in all that decides one, settings included; None where it is not there.

    Method, data set, profile, seed and ε alone may fit several records, of which all but one are another run's.

    Args:
        experiment: on one of `dpldm.data.DATASETS`, which nobody has to load for this.

    Raises:
        ExperimentError: two fit, because they are of different files under the name of one data set.
    """
    found = {results.record_name(record): record for record in records if _is_of(record, experiment)}
    if len(found) > 1:
        raise ExperimentError(f"expected one record of the run, got {' and '.join(found)}: keep one of them")
    return next(iter(found.values()), None)


def made_today(record: Mapping[str, Any]) -> bool:
    """Whether the record is of a run as `dpldm run` makes it today of a known data set: with the settings that its
    method has in its profile at that ε, so without what a variant changes."""
    method, profile, asked = record["method"], record["profile"], record["privacy"]
    known = method in METHODS and profile in PROFILES and record["dataset"] in datasets.DATASETS
    if not known or (asked["epsilon_target"] is not None and not METHODS[method].private):
        return False
    now = Experiment(record["dataset"], asked["epsilon_target"], method=method, profile=profile, seed=record["seed"])
    return _is_of(record, now)


def _is_of(record: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether the record has the name that this run would have on the record's files; what is public data follows from
    the settings."""
    asked = _asked(experiment.resolved(), scored=True)
    files = {key: record[key] for key in ("data_sha256", "public_data")} | {"dataset": experiment.dataset}
    return results.record_name(asked | files) == results.record_name(record)


def _own_name(name: str) -> str:
    """Never the name of a public data set, always a good file name: of at most 48 letters, of whatever script, and 144
    bytes."""
    runs = itertools.groupby(unicodedata.normalize("NFC", name), results.in_names)
    short = "own-" + "".join("".join(letters) if kept else "-" for kept, letters in runs)
    return short[:48].encode()[:144].decode(errors="ignore")


def _own_sums(train: ImageData, test: ImageData | None, folders: Folders) -> dict[str, str]:
    """Checksums of private files, keyed with a secret that stays in the folder of runs.

    A plain SHA-256 in a published record would tell whoever guesses the private images whether the guess is right,
    which no ε allows.
    """
    sums = {f"{name} (keyed)": value for name, value in train.sha256.items()}
    sums |= {f"{name} (test, keyed)": value for name, value in (test.sha256 if test else {}).items()}
    secret = _secret(folders.runs)
    return {name: hmac.new(secret, value.encode(), "sha256").hexdigest() for name, value in sums.items()}


def _secret(runs: Path) -> bytes:
    path = runs / ".secret"
    if not path.exists():
        results.check_writable(runs)
        runs.mkdir(parents=True, exist_ok=True)
        with _locked(runs / ".secret.lock"):
            if not path.exists():
                results.write_atomically(path, lambda temporary: temporary.write_bytes(secrets.token_bytes(32)))
                path.chmod(0o600)
    return path.read_bytes()


@contextmanager
def _locked(path: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time; ``waits`` is called where another has the lock, which goes when that process does, however
    it ends."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- the run ----------------------------------------------------------------------------------------------------------


def run(
    experiment: Experiment,
    folders: Folders = Folders(),
    progress: Progress | None = None,
    force: bool = False,
    begins: Callable[[Path], None] = lambda record: None,
) -> dict[str, Any]:
    """Make the run, or what is left of it, and write its record.

    Beside the record there is a sample grid (`.png`); the folder `runs/<name of the record>` has the finished stages,
    the synthesizer (`synthesizer.safetensors`) and the images (`synthetic.npz`). A run whose record exists is not made
    again, and one that is being made by another process is waited for, so that nothing is drawn twice.

    Guarantee: that of the record's `privacy`, for everything but `metrics`, which are computed from real images, and
    `seconds` (with whatever else shows how long the work took), which are measured while they are read; see
    `privacy.PrivateData` and `privacy.Ledger` for its assumptions. Checksums of your own files are keyed with a secret
    that stays in the folder of runs. A secure run draws once: what would have it draw again from the same images, by
    ``force`` or in place of a stage that can't be used, is refused, because its ledger counts one run.

    Args:
        force: begin anew, whatever was done before; a secure run only if nothing was.
        begins: told where the record will be, when all is checked and the work begins.

    Returns:
        The record.

    Raises:
        ValueError: something can't work; before anything is written.
        OSError: a folder can't be written. Finished stages are kept, as after Stopped.
        Stopped: Ctrl-C.
    """
    progress = progress or Progress()
    job = _prepare(experiment, folders)
    if not force and (found := _found(job, progress)):
        return found
    room = 2 * len(job.labels) * math.prod(job.train.image_shape) + 50_000_000
    results.check_writable(job.stages.path, room)
    results.check_writable(folders.records)
    try:
        folder = job.stages.path
        waiting = f"waiting: another process is making this run in {folder}"
        with _locked(folder / ".lock", lambda: progress.say(waiting)):
            if not force and (found := _found(job, progress)):  # by the process that was waited for
                return found
            _introduce(job, progress)
            begins(job.record_path)
            return _work(job, progress, force)
    except KeyboardInterrupt:
        raise Stopped(job.stages.path) from None


def _found(job: _Job, progress: Progress) -> dict[str, Any] | None:
    if not results.find(job.record_path.parent, job.description):
        return None
    way_out = "" if job.experiment.secure_mode else " (begin anew with --force)"
    progress.say(f"done earlier: {job.record_path}{way_out}")
    return results.read(job.record_path)


def _introduce(job: _Job, progress: Progress) -> None:
    spec, own = job.experiment.spec, isinstance(job.experiment.dataset, Path)
    if spec is None:
        budget = "not private"
    elif spec.epsilon is not None:
        budget = f"ε ≤ {spec.epsilon:g}, δ = {spec.delta:g}"
    else:
        budget = f"noise multiplier {spec.noise_multiplier:g}, δ = {spec.delta:g}"
    where = results.device_name(str(job.device))
    what = f"{job.description['dataset']}: {len(job.train):,} images"
    progress.say(f"{what}, {budget}, {job.experiment.profile}, {where}")
    if own and spec is not None and not spec.secure_mode:
        progress.say(
            "warning: this run protects nobody: its noise follows from a seed of 32 bits, and whoever has the result "
            "can try them all; use --secure for a release"
        )
    if own and job.test is not None:
        progress.say("warning: scores computed from real images are not covered by ε; keep them to yourself")
    if own and job.test is None:
        progress.say("not scored: give real images with --test-data to measure accuracy and FID")


def _work(job: _Job, progress: Progress, force: bool) -> dict[str, Any]:
    facts = results.environment_facts(str(job.device))
    parts = [f"evaluation-{part}" for part in evaluation.PARTS] if job.test is not None else []
    done = _Done(job, [*job.synthesizer.stages, SAMPLES], parts, facts["commit"], progress)
    if not force:
        _take_over(job)
    done.look(force)
    ledger = Ledger()
    for stage in job.synthesizer.stages:
        _fit_stage(job, stage, ledger, done, progress)
    spent = _privacy(job.experiment.spec, ledger)
    _save(job, spent)
    images = _samples(job, spent, done, progress)
    metrics = _metrics(job, images, done, progress) | {"parameters": _parameters(job.synthesizer)}
    fitted = {stage: done.facts[stage]["seconds"] for stage in job.synthesizer.stages}
    seconds: dict[str, float | None] = {"compression": None, "diffusion": None, **fitted}
    seconds["sampling"] = done.facts[SAMPLES]["seconds"]
    seconds["evaluation"] = sum(done.facts[part]["seconds"] for part in parts) if parts else None
    record = job.description | {"privacy": spent, "metrics": metrics, "seconds": seconds} | facts
    grid = job.record_path.with_suffix(".png")
    _grid(grid, images, job.labels, job.train.class_names, _statement(job, spent))
    results.write(record, job.record_path.parent)
    return results.read(job.record_path)


def _parameters(synthesizer: Synthesizer) -> int:
    """How many numbers a fitted synthesizer is: weights, means, axes; all that it keeps of the images."""
    states = [synthesizer.state(stage) for stage in synthesizer.stages]
    return sum(tensor.numel() for state in states for tensor in state.values())


def _take_over(job: _Job) -> None:
    """Begin with what the run without finished images has fitted, where this one has nothing yet."""
    chain = job.synthesizer.stages
    if job.unfinished.path == job.stages.path or any(job.stages.has(stage) for stage in chain):
        return
    for stage in itertools.takewhile(job.unfinished.has, chain):
        copy = functools.partial(shutil.copyfile, job.unfinished.file(stage))
        results.write_atomically(job.stages.file(stage), copy)


class _Done:
    """The finished stages of a job. A stage counts only if all before it count: each is built on those."""

    def __init__(self, job: _Job, chain: list[str], parts: list[str], commit: str, progress: Progress) -> None:
        self.job, self.chain, self.parts, self.commit, self.progress = job, chain, parts, commit, progress
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.facts: dict[str, dict[str, Any]] = {}

    def __contains__(self, stage: str) -> bool:
        return stage in self.facts

    def look(self, force: bool) -> None:
        """Find what is there, nothing with ``force``; what can't be used is deleted, and done again.

        Raises:
            ExperimentError: that would have a secure run draw from the private images once more.
        """
        needs = {stage: self.chain[:position] for position, stage in enumerate(self.chain)}
        for stage, before in (needs | dict.fromkeys(self.parts, self.chain)).items():
            if not force and all(earlier in self for earlier in before):
                self._look_at(stage)
            if stage in self:
                self.progress.say(f"{stage}: done earlier, {results.duration(self.facts[stage]['seconds'])}")
                continue
            if self.job.experiment.secure_mode and stage in self.chain[:-1]:
                self._refuse_a_second_draw(stage)
            self._forget(stage)

    def _refuse_a_second_draw(self, stage: str) -> None:
        """Stop if ``stage``, which reads private images, was done before although it can't be used."""
        files = [self.job.stages.file(later) for later in self.chain[self.chain.index(stage) :]]
        kept = [file for file in (*files, self.job.model_path, self.job.images_path) if file.is_file()]
        if kept:
            raise ExperimentError(
                f"{stage} was drawn in secure mode before (see {kept[0]}), and to draw it from the same images once "
                "more would spend its budget twice where the record counts it once: keep what is there, go on with the "
                "version of dpldm that made it, or make a new run knowingly with another --seed; the budgets of both "
                "then add up"
            )

    def _look_at(self, stage: str) -> None:
        if not self.job.stages.has(stage):
            return
        try:
            tensors, facts = self.job.stages.load(stage)
        except RecordError:
            self.progress.say(f"{stage}: its file is damaged, done again")
            return
        if facts.get("commit") != self.commit:
            self.progress.say(f"{stage}: made by another version ({facts.get('commit')}), done again")
        elif stage == SAMPLES and _sha256(self.job.images_path) != facts["sha256"]:
            self.progress.say(f"{stage}: {self.job.images_path.name} is missing or changed, done again")
        else:
            self.tensors[stage], self.facts[stage] = tensors, facts

    def _forget(self, stage: str) -> None:
        self.job.stages.file(stage).unlink(missing_ok=True)

    def keep(self, stage: str, seconds: float, tensors: dict[str, Tensor], **facts: Any) -> None:
        """Write a finished stage down, and read it back."""
        self.facts[stage] = {"seconds": round(seconds, 3), "commit": self.commit, **facts}
        self.job.stages.save(stage, tensors, self.facts[stage])
        self.tensors[stage], self.facts[stage] = self.job.stages.load(stage)
        self.progress.say(f"{stage}: {results.duration(seconds)}")


def _fit_stage(job: _Job, stage: str, ledger: Ledger, done: _Done, progress: Progress) -> None:
    """Fit one stage unless that was done, and take it up from its file: sums of floats depend on how a tensor lies in
    memory, so only then does a resumed run give the same numbers."""
    if stage not in done:
        charged = Ledger(ledger.mechanisms)
        guard = PrivateData(job.train.images, job.train.labels, job.train.num_classes, charged)
        start, total = time.monotonic(), job.synthesizer.total_steps(stage)
        for step in job.synthesizer.fit_stage(stage, guard):
            progress.track(stage, step / max(step, total))
        new = [asdict(mechanism) for mechanism in charged.mechanisms[len(ledger.mechanisms) :]]
        done.keep(stage, time.monotonic() - start, job.synthesizer.state(stage), mechanisms=new)
    job.synthesizer.restore(stage, done.tensors[stage])
    for mechanism in done.facts[stage]["mechanisms"]:
        ledger.add(Mechanism(**mechanism))


def _privacy(spec: PrivacySpec | None, ledger: Ledger) -> dict[str, Any]:
    """The `privacy` of the record."""
    if spec is None:
        nothing = dict.fromkeys(("epsilon_target", "epsilon", "epsilon_rdp", "delta", "accountant"))
        read = [asdict(mechanism) for mechanism in ledger.mechanisms]
        return nothing | {"relation": privacy.RELATION, "mechanisms": read}
    asked = {} if spec.noise_multiplier is None else {"noise_multiplier": spec.noise_multiplier}
    return privacy.to_record(spec, ledger) | asked


def statement(record_privacy: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    """What goes with released images: `dpldm.privacy.statement`, or in as many words that there is no privacy.

    ``dataset``: as the record names it, since the settings were chosen on the images of some; None if it is unknown.
    """
    if record_privacy["epsilon"] is None:
        return NOT_PRIVATE
    return privacy.statement(record_privacy, None if dataset is None else dataset in datasets.DATASETS)


def _statement(job: _Job, spent: Mapping[str, Any]) -> dict[str, Any]:
    return statement(spent, job.description["dataset"])


def _samples(job: _Job, spent: dict[str, Any], done: _Done, progress: Progress) -> Tensor:
    """The synthetic images as they are released, rounded to 8 bits: (N, C, H, W) in [0, 1]."""
    if SAMPLES not in done:
        start, batches, drawn = time.monotonic(), [], 0
        for batch in job.synthesizer.sample(job.labels, derived_seed(job.experiment.seed, "sampling")):
            batches.append((batch * 255).round().to(torch.uint8))
            drawn += len(batch)
            progress.track(SAMPLES, drawn / len(job.labels))
        seconds, images = time.monotonic() - start, torch.cat(batches)
        names, said = job.train.class_names, _statement(job, spent)
        results.save_images(job.images_path, images.float() / 255, job.labels, said, names)
        done.keep(SAMPLES, seconds, {}, sha256=_sha256(job.images_path))
    return results.load_images(job.images_path)[0]


def _metrics(job: _Job, images: Tensor, done: _Done, progress: Progress) -> dict[str, Any]:
    nothing = dict.fromkeys(("fid_classifier", "fid_inception", "precision", "recall"))
    metrics = nothing | {"accuracy": {kind: [] for kind in results.CLASSIFIERS}, "n_synthetic": len(images)}
    if job.test is None:
        return metrics
    assert job.experiment.evaluation is not None
    finished = [part for part in evaluation.PARTS if f"evaluation-{part}" in done]
    start = time.monotonic()
    for part, scores in evaluation.evaluation_parts(
        images,
        job.labels,
        job.train,
        job.test,
        job.experiment.evaluation,
        job.device,
        derived_seed(job.experiment.seed, "evaluation"),
        done=finished,
        progress=lambda share, _: progress.track("evaluation", share),
    ):
        done.keep(f"evaluation-{part}", time.monotonic() - start, {}, metrics=scores)
        start = time.monotonic()
    scores = evaluation.merge(done.facts[f"evaluation-{part}"]["metrics"] for part in evaluation.PARTS)
    return evaluation.merge([metrics, scores]) | {"note": UNCOVERED}


def _grid(path: Path, images: Tensor, labels: Tensor, class_names: tuple[str, ...], said: Mapping[str, Any]) -> None:
    from dpldm import plots  # here, because matplotlib takes seconds to import

    first = torch.cat([(labels == c).nonzero()[:GRID_COLUMNS, 0] for c in range(len(class_names))])
    plots.save_grid_png(path, images[first], labels[first], class_names, said, GRID_COLUMNS)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


# --- the end, in plain words ------------------------------------------------------------------------------------------


def summary(record: Mapping[str, Any], folders: Folders = Folders()) -> str:
    """A finished run in a few lines: what, how private, how good, how long, where."""
    metrics, seconds = record["metrics"], record["seconds"]
    path = folders.records / results.record_name(record)
    spent = [f"{stage} {results.duration(value)}" for stage, value in seconds.items() if value is not None]
    lines = [
        f"{record['dataset']}: {metrics['n_synthetic']:,} synthetic images by {record['method']}, "
        f"{record['profile']}, seed {record['seed']}",
        f"privacy:   {_privacy_in_words(record['privacy'])}",
        *scores_in_words(metrics),
        f"time:      {', '.join(spent)}; {record['device']}",
        f"record:    {path} and a sample grid, {path.with_suffix('.png').name}",
        f"images:    {folders.runs / path.stem / 'synthetic.npz'}",
        f"model:     {folders.runs / path.stem / 'synthesizer.safetensors'}",
    ]
    return "\n".join(lines)


def _privacy_in_words(spent: Mapping[str, Any]) -> str:
    if spent["epsilon"] is None:
        return "none; treat the images like the real ones"
    asked = "" if spent["epsilon_target"] is None else f" of {spent['epsilon_target']:g}"
    return f"ε = {spent['epsilon']:.4g}{asked} spent, δ = {spent['delta']:g}, neighbours: {spent['relation']}"


def scores_in_words(metrics: Mapping[str, Any]) -> list[str]:
    """Accuracies and Fréchet distances of `metrics`, a line for each."""
    names = {"cnn": "CNN", "mlp": "MLP", "logreg": "logistic regression"}
    shown = []
    for kind, name in names.items():
        values = torch.tensor(metrics["accuracy"][kind], dtype=torch.float64)
        if len(values):
            spread = f" ± {100 * float(values.std()):.1f}" if len(values) > 1 else ""
            shown.append(f"{name} {100 * float(values.mean()):.1f}%{spread}")
    if not shown:
        return ["scores:    not measured"]
    seeds = max(len(values) for values in metrics["accuracy"].values())
    lines = [f"accuracy:  {', '.join(shown)} on real test images ({seeds} classifier seed{'s' * (seeds > 1)})"]
    distances = {"classifier": metrics["fid_classifier"], "Inception": metrics["fid_inception"]}
    known = [f"{value:.2f} ({name} features)" for name, value in distances.items() if value is not None]
    reason = metrics.get("fid_inception_note") if metrics["fid_inception"] is None else None
    left_out = f"; left out by Inception features: {reason}" if reason else ""
    return [*lines, f"FID:       {', '.join(known) or 'not measured'}{left_out}"]


# --- saved synthesizers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedSynthesizer:
    """A fitted synthesizer with what is known of it: ``settings`` are those of its method, ``privacy`` and ``dataset``
    those of its record, the latter None for a file of an earlier version; ``image_shape``: where it was read."""

    synthesizer: Synthesizer
    settings: Any
    class_names: tuple[str, ...]
    privacy: dict[str, Any]
    seed: int
    method: str = LatentDiffusion.method
    dataset: str | None = None
    image_shape: tuple[int, int, int] | None = None

    @property
    def statement(self) -> dict[str, Any]:
        """What goes with images that it draws."""
        return statement(self.privacy, self.dataset)


def _save(job: _Job, spent: dict[str, Any]) -> None:
    saved = SavedSynthesizer(
        job.synthesizer,
        job.settings,
        job.train.class_names,
        spent,
        job.experiment.seed,
        job.experiment.method,
        job.description["dataset"],
    )
    save_synthesizer(job.model_path, saved, job.train.image_shape)


def save_synthesizer(path: Path, saved: SavedSynthesizer, shape: tuple[int, int, int]) -> None:
    """Write a fitted synthesizer as one safetensors file: its tensors and, in the header, everything else.

    Args:
        path: must end in `.safetensors`.
        shape: of an image, (C, H, W).

    Raises:
        OSError: the folder can't be written; nothing is left behind.
    """
    synthesizer = saved.synthesizer
    states = {stage: synthesizer.state(stage) for stage in synthesizer.stages}
    tensors = {f"{stage}/{name}": value for stage, state in states.items() for name, value in state.items()}
    facts = {
        "schema": 1,
        "method": saved.method,
        "dataset": saved.dataset,
        "image_shape": list(shape),
        "class_names": list(saved.class_names),
        "settings": to_json(saved.settings),
        "privacy": saved.privacy,
        "seed": saved.seed,
    }
    StageFolder(path.parent).save(path.stem, tensors, facts)


def load_synthesizer(path: Path | str, device: torch.device | str = "cpu") -> SavedSynthesizer:
    """Read a synthesizer that `run` saved. Executes no code.

    Raises:
        ExperimentError: the file is not a whole synthesizer of this version.
        OSError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a synthesizer.safetensors that dpldm run has saved, found no file")
    try:
        if path.suffix != ".safetensors":
            raise ExperimentError(f"a file name that ends in '{path.suffix}'")
        tensors, facts = StageFolder(path.parent).load(path.stem)
        return _restored(tensors, facts, device)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, OverflowError) as error:
        reason = "a damaged file" if isinstance(error, RecordError) else " ".join(f"{error}".split())[:160]
        expected = "expected a synthesizer that dpldm run has saved"
        raise ExperimentError(f"{path}: {expected}, got {reason}; restore the file or repeat the run") from None


def _restored(tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device | str) -> SavedSynthesizer:
    method = METHODS[facts["method"]]
    privacy.check_claim(facts["privacy"])
    if not method.private and facts["privacy"]["epsilon"] is not None:
        raise ExperimentError(f"a claim of ε for the method {facts['method']!r}, which gives no privacy")
    settings = from_json(method.settings, facts["settings"])
    shape, names, seed = tuple(facts["image_shape"]), tuple(facts["class_names"]), facts["seed"]
    synthesizer = method.build(shape, len(names), settings, None, seed, device)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExperimentError(f"weights that are no finite numbers ({name})")
    for stage in synthesizer.stages:
        prefix = f"{stage}/"
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        synthesizer.restore(stage, state)
    one = next(iter(synthesizer.sample(torch.zeros(1, dtype=torch.int64), 0)))  # so that a wrong shape shows here
    if tuple(one.shape[1:]) != shape:
        raise ExperimentError(f"images of shape {tuple(one.shape[1:])} instead of {shape}")
    dataset = facts.get("dataset")
    return SavedSynthesizer(synthesizer, settings, names, facts["privacy"], seed, facts["method"], dataset, shape)


def sample(
    saved: SavedSynthesizer,
    labels: Tensor,
    seed: int,
    sampling: SamplingSettings | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Images (N, C, H, W) in [0, 1] for ``labels`` (N,); post-processing, so it costs no privacy.

    With the seed, labels and sampling settings of a run (None: those it was saved with) they are the images of that
    run.
    """
    batches: list[Tensor] = []
    for batch in saved.synthesizer.sample(labels, derived_seed(seed, "sampling"), sampling):
        batches.append(batch)
        (progress or Progress()).track(SAMPLES, sum(map(len, batches)) / len(labels))
    return torch.cat(batches)


def write_samples(path: Path, images: Tensor, labels: Tensor, saved: SavedSynthesizer) -> Path:
    """Images, labels, class names and privacy statement as `.npz`, and a grid of them as `.png` beside it, with a row
    for each class among the labels; returns the latter."""
    results.save_images(path, images, labels, saved.statement, saved.class_names)
    grid = path.with_suffix(".png")
    present, rows = labels.unique(return_inverse=True)  # no row for a class that was not asked for
    _grid(grid, images, rows, tuple(saved.class_names[label] for label in present), saved.statement)
    return grid


Settings = TypeVar("Settings")


def to_json(settings: Any) -> dict[str, Any]:
    """A frozen dataclass, and those in it, as a dictionary for records and digests.

    A field with ``later`` in its metadata is left out where it has its default, which has to be what was done before
    the field was there: so what was made then keeps its digest, its name and its seed.
    """
    kept = {}
    for described in fields(settings):
        value = getattr(settings, described.name)
        if "later" not in described.metadata or value != described.default:
            kept[described.name] = to_json(value) if is_dataclass(value) else value
    return kept


def from_json(kind: type[Settings], value: Any, where: str = "settings") -> Settings:
    """A frozen dataclass, and those in it, back from what `to_json` made of it.

    >>> from_json(SamplingSettings, {"sampler": "churn", "steps": 8, "guidance": 1.0, "batch": 100}).sampler
    'churn'
    >>> from_json(SamplingSettings, {"stepps": 8})
    Traceback (most recent call last):
    dpldm.experiment.ExperimentError: settings: unknown key 'stepps', expected sampler, steps, guidance, batch

    Raises:
        ExperimentError: an unknown or missing key, or a value of another type.
        ValueError: a value that the dataclass refuses.
    """
    assert is_dataclass(kind)
    names = [field.name for field in fields(kind)]
    if not isinstance(value, Mapping):
        raise ExperimentError(f"{where}: expected an object with {', '.join(names)}, got {value!r}")
    for key in value:
        if key not in names:
            raise ExperimentError(f"{where}: unknown key {key!r}, expected {', '.join(names)}")
    hints = typing.get_type_hints(kind)
    for described in fields(kind):
        if described.name not in value and "later" not in described.metadata:
            raise ExperimentError(
                f"{where}: expected a value for {described.name}, got none (made by another version?)"
            )
    read = {name: _typed(hints[name], given, f"{where}.{name}") for name, given in value.items()}
    return typing.cast(Settings, kind(**read))


def _typed(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):  # a type or null
        if value is None:
            return None
        kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
    if is_dataclass(kind):
        return from_json(typing.cast(type[Any], kind), value, where)
    wanted: Iterable[type] = {float: (float, int)}.get(kind, (kind,))
    if type(value) not in wanted:
        raise ExperimentError(f"{where}: expected {kind.__name__}, got {value!r}")
    return kind(value)


@dataclass(frozen=True)
class Validation:
    """How settings do on held-out training images.

    accuracy: of the first classifier asked for, in [0, 1]; ``accuracies``: of all of them, by kind.
    reconstruction_error: mean squared error of stage 1 per pixel. dim: its latent dimensions. None without one.
    seconds: of the fit. fid_classifier: Fréchet distance to the held-out images, None where not asked for or too few.
    public_data: what public images the method learned from, None for none.
    """

    accuracy: float
    reconstruction_error: float | None
    dim: int | None
    seconds: float
    accuracies: dict[str, float]
    fid_classifier: float | None = None
    public_data: str | None = None


def validate(
    experiment: Experiment,
    folders: Folders = Folders(),
    classifier: str | typing.Sequence[str] = "mlp",
    share: float = 1 / 6,
    fid: bool = False,
    reconstruct: bool = False,
) -> Validation:
    """Score settings for choosing among them; the test set is not touched.

    Fits to the training images but a random ``share`` of them, trains classifiers on a third of the profile's number
    of synthetic images and scores them on the share held out. The choice that follows has seen private images and is
    charged to no budget, as in the literature: it is for benchmark data, and the book's page on limits says so.

    Args:
        classifier: one or several of `dpldm.evaluation.CLASSIFIERS`.
        share: of the training images, above 0 and below 1.
        fid: measure the Fréchet distance, on the features of a network that has seen all real training images.
        reconstruct: take real images of the rest, encoded and decoded by stage 1, in place of synthetic ones; they are
            not private and show what compression costs.

    Raises:
        ValueError: an unknown classifier, or ``reconstruct`` for a method without stage 1.
    """
    kinds = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    if not kinds or not set(kinds) <= set(evaluation.CLASSIFIERS):
        known = " or ".join(evaluation.CLASSIFIERS)
        raise ExperimentError(
            f"expected classifiers out of {known}, got {', '.join(kinds) or 'none'}: choose among them"
        )
    experiment = experiment.resolved()
    assert experiment.settings is not None
    assert experiment.n_synthetic is not None
    assert experiment.evaluation is not None
    device = choose_device(experiment.device)
    train, _ = _load(experiment, folders)
    rest, held_out = datasets.validation_split(train, share, derived_seed(experiment.seed, "validation"))
    synthesizer = METHODS[experiment.method].build(
        train.image_shape, train.num_classes, experiment.settings, experiment.spec, experiment.seed, device
    )
    synthesizer.check(len(rest))
    compressor: Compressor | None = getattr(synthesizer, "compressor", None)
    if reconstruct and compressor is None:
        raise ExperimentError(f"method {experiment.method!r} compresses nothing: choose one with a stage 1")
    guard = PrivateData(rest.images, rest.labels, rest.num_classes, Ledger())
    start = time.monotonic()
    for stage in synthesizer.stages:
        for _ in synthesizer.fit_stage(stage, guard):
            pass
    seconds = time.monotonic() - start
    labels = balanced_labels(experiment.n_synthetic // 3, train.num_classes)
    error = None
    if compressor is not None:
        error = (compressor.decode(compressor.encode(held_out.images)) - held_out.images).square().mean().item()
    if compressor is not None and reconstruct:
        yardstick = METHODS["real"].build(train.image_shape, train.num_classes, baselines.RealImagesSettings(), None, 0)
        for _ in yardstick.fit_stage("copy", guard):
            pass
        images = compressor.decode(compressor.encode(torch.cat(list(yardstick.sample(labels, experiment.seed)))))
    else:
        images = torch.cat(list(synthesizer.sample(labels, experiment.seed)))
    accuracies = {}
    for kind in kinds:
        trained = evaluation.train_classifier(
            kind, images, labels, train.num_classes, experiment.evaluation, device, experiment.seed
        )
        accuracies[kind] = evaluation.accuracy(trained.network, held_out.images, held_out.labels)
    distance = None
    if fid and min(len(images), len(held_out)) > evaluation.FEATURE_DIMENSIONS:
        network, _ = evaluation.feature_network_for(train, experiment.evaluation, device, experiment.seed)
        distance = evaluation.fid(network.features(images), network.features(held_out.images))
    return Validation(
        accuracy=accuracies[kinds[0]],
        reconstruction_error=error,
        dim=None if compressor is None else compressor.dim,
        seconds=seconds,
        accuracies=accuracies,
        fid_classifier=distance,
        public_data=None if compressor is None else compressor.public_data,
    )
