"""One frozen description → one run → one record. The join of data, synthesis, evaluation and records.

A run checks everything that can be checked first, then works in stages ("compression", "diffusion", "selection",
"transport", "samples", and one per part of the evaluation). Every finished stage is kept, so an interrupted run goes on
after the last of them and ends with the record of a run that was never interrupted. Private images are seen only
through `PrivateData`; the evaluation reads real images directly and is part of no guarantee.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dpldm.data.images import shared_images
from dpldm.evaluation import protocol
from dpldm.methods import Synthesizer
from dpldm.privacy import statement as privacy_statement
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.records import environment, files, numbers, schema
from dpldm.records.files import locked
from dpldm.records.images import load_images, save_images
from dpldm.records.schema import RecordError
from dpldm.runs.experiment import Experiment, ExperimentError, Folders, Progress, derived_seed
from dpldm.runs.job import SAMPLES, Job, prepare
from dpldm.runs.missing import in_words, lacking
from dpldm.runs.saved import draw, save, write_grid
from dpldm.runs.sharing import spent_before, take_over
from dpldm.runs.words import UNCOVERED, statement


class Stopped(KeyboardInterrupt):
    """A run that was interrupted; `folder` keeps its finished stages."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped; finished stages are kept in {folder}, run the same command to go on")
        self.folder = folder


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
    again, and one that is being made by another process is waited for, so that nothing is drawn twice. What another run
    in that folder has fitted or drawn by the same settings of the same images is taken over.

    Guarantee: that of the record's `privacy`, for everything but `metrics`, which are computed from real images, and
    `seconds` (with whatever else shows how long the work took), which are measured while they are read; see
    `PrivateData` and `Ledger` for its assumptions. Checksums of your own files are keyed with a secret
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
    job = prepare(experiment, folders)
    if not force and (found := _found(job, progress)):
        return found
    files.check_writable(job.stages.path, _room(job))
    files.check_writable(folders.records)
    try:
        folder = job.stages.path
        waiting = f"waiting: another process is making this run in {folder}"
        with locked(folder / ".lock", lambda: progress.say(waiting)):
            if not force and (found := _found(job, progress)):  # by the process that was waited for
                return found
            _introduce(job, progress, force)
            begins(job.record_path)
            return _work(job, progress, force)
    except KeyboardInterrupt:
        raise Stopped(job.stages.path) from None


def _found(job: Job, progress: Progress) -> dict[str, Any] | None:
    if not files.find(job.record_path.parent, job.description):
        return None
    way_out = "" if job.experiment.secure_mode else " (begin anew with --force)"
    record = files.read(job.record_path)
    progress.say(f"done earlier: {job.record_path}{way_out}")
    if parts := lacking(record):
        add = f"`dpldm evaluate --records {job.record_path}`"
        own = isinstance(job.experiment.dataset, Path)
        progress.say(f"it lacks {in_words(parts)}, {'which only a new run has' if own else f'to add them: {add}'}")
    return record


def _introduce(job: Job, progress: Progress, force: bool) -> None:
    spec, own = job.experiment.spec, isinstance(job.experiment.dataset, Path)
    if spec is None:
        budget = "not private"
    elif spec.epsilon is not None:
        budget = f"ε ≤ {spec.epsilon:g}, δ = {spec.delta:g}"
    else:
        budget = f"noise multiplier {spec.noise_multiplier:g}, δ = {spec.delta:g}"
    where = environment.device_name(str(job.device))
    what = f"{job.description['dataset']}: {len(job.train):,} images"
    progress.say(f"{what}, {budget}, {job.experiment.profile}, {where}")
    if own and spec is not None and not spec.secure_mode:
        progress.say(
            "warning: this run protects nobody: its noise follows from a seed of 32 bits, and whoever has the result "
            "can try them all; use --secure for a release"
        )
    if own and spec is not None and spec.secure_mode and (before := spent_before(job, force)):
        progress.say(before)
    if own and job.test is not None:
        progress.say("warning: scores computed from real images are not covered by ε; keep them to yourself")
    if own and job.test is not None and (shared := shared_images(job.test, job.train)):
        progress.say(
            f"warning: {shared:,} of the {len(job.test):,} test images are also among the training images: scores on "
            "them say less of new images, so take them out of one of the two (for your eyes: no record has this number)"
        )
    if own and job.test is None:
        progress.say("not scored: give real images with --test-data to measure accuracy and FID")


def _work(job: Job, progress: Progress, force: bool) -> dict[str, Any]:
    facts = environment.environment_facts(str(job.device))
    parts = [f"evaluation-{part}" for part in protocol.PARTS] if job.test is not None else []
    done = _Done(job, [*job.synthesizer.stages, SAMPLES], parts, facts["commit"], progress)
    images, spent = _drawn(job, done, progress, force)
    metrics = _metrics(job, images, done, progress) | {"parameters": _parameters(job.synthesizer)}
    fitted = {stage: done.facts[stage]["seconds"] for stage in job.synthesizer.stages}
    seconds: dict[str, float | None] = {"compression": None, "diffusion": None, **fitted}
    seconds["sampling"] = done.facts[SAMPLES]["seconds"]
    seconds["evaluation"] = sum(done.facts[part]["seconds"] for part in parts) if parts else None
    record = job.description | {"privacy": spent, "metrics": metrics, "seconds": seconds} | facts
    grid = job.record_path.with_suffix(".png")
    write_grid(grid, images, job.labels, job.train.class_names, _statement(job, spent))
    files.write(record, job.record_path.parent)
    return files.read(job.record_path)


def _drawn(job: Job, done: "_Done", progress: Progress, force: bool) -> tuple[Tensor, dict[str, Any]]:
    """Fit and draw, or what is left of it: the images, and what they spent."""
    if not force and not any(job.stages.has(stage) for stage in done.chain):
        take_over(job, done.commit, progress)
    done.look(force)
    ledger = Ledger()
    for stage in job.synthesizer.stages:
        _fit_stage(job, stage, ledger, done, progress)
    spent = _privacy(job.experiment, ledger)
    save(job, spent)
    return _samples(job, spent, done, progress), spent


def redraw(experiment: Experiment, folders: Folders, progress: Progress) -> Path:
    """Make the images of a run again, or what is left of that, where only its record is left; no record is written.

    Guarantee: that of the run. The same seed gives the same noise, so nothing is spent that its record doesn't count.

    Returns:
        Where they are.

    Raises:
        ExperimentError: its noise was secret, so they would be others, and spend its budget once more.
        Stopped: Ctrl-C; finished stages are kept.
    """
    if experiment.secure_mode:
        raise ExperimentError("images of a secure run can't be made again, as its noise is gone: restore their file")
    job = prepare(experiment, folders)
    files.check_writable(job.stages.path, _room(job))
    commit = environment.environment_facts(str(job.device))["commit"]
    try:
        with locked(job.stages.path / ".lock", lambda: progress.say("waiting: another process works on this run")):
            _drawn(job, _Done(job, [*job.synthesizer.stages, SAMPLES], [], commit, progress), progress, force=False)
    except KeyboardInterrupt:
        raise Stopped(job.stages.path) from None
    return job.images_path


def _room(job: Job) -> int:
    return 2 * len(job.labels) * math.prod(job.train.image_shape) + 50_000_000


def _parameters(synthesizer: Synthesizer) -> int:
    """How many numbers a fitted synthesizer is: weights, means, axes; all that it keeps of the images."""
    states = [synthesizer.state(stage) for stage in synthesizer.stages]
    return sum(tensor.numel() for state in states for tensor in state.values())


class _Done:
    """The finished stages of a job. A stage counts only if all before it count: each is built on those."""

    def __init__(self, job: Job, chain: list[str], parts: list[str], commit: str, progress: Progress) -> None:
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
                self.progress.say(f"{stage}: done earlier, {numbers.duration(self.facts[stage]['seconds'])}")
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
        if stage in self.chain:
            self.facts[stage]["made_of"] = self.job.made_of(stage)
        self.job.stages.save(stage, tensors, self.facts[stage])
        self.tensors[stage], self.facts[stage] = self.job.stages.load(stage)
        self.progress.say(f"{stage}: {numbers.duration(seconds)}")


def _fit_stage(job: Job, stage: str, ledger: Ledger, done: _Done, progress: Progress) -> None:
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


def _privacy(experiment: Experiment, ledger: Ledger) -> dict[str, Any]:
    """The `privacy` of the record."""
    spec = experiment.spec
    if spec is None:
        nothing = dict.fromkeys(("epsilon_target", "epsilon", "epsilon_rdp", "delta", "accountant"))
        read = [asdict(mechanism) for mechanism in ledger.mechanisms]
        return nothing | {"relation": privacy_statement.RELATION, "mechanisms": read}
    asked: dict[str, Any] = {} if experiment.kind == "none" else {"kind": experiment.kind}
    asked |= {} if spec.noise_multiplier is None else {"noise_multiplier": spec.noise_multiplier}
    return privacy_statement.to_record(spec, ledger) | asked


def _statement(job: Job, spent: Mapping[str, Any]) -> dict[str, Any]:
    return statement(spent, job.description["dataset"])


def _samples(job: Job, spent: dict[str, Any], done: _Done, progress: Progress) -> Tensor:
    """The synthetic images as they are released, rounded to 8 bits: (N, C, H, W) in [0, 1]."""
    if SAMPLES not in done:
        start = time.monotonic()
        images = draw(job.synthesizer, job.labels, job.experiment.seed, progress=progress)
        seconds = time.monotonic() - start
        save_images(job.images_path, images, job.labels, _statement(job, spent), job.train.class_names)
        del images  # those of the file take its place
        done.keep(SAMPLES, seconds, {}, sha256=_sha256(job.images_path))
    return load_images(job.images_path)[0]


def _metrics(job: Job, images: Tensor, done: _Done, progress: Progress) -> dict[str, Any]:
    nothing = dict.fromkeys(("fid_classifier", "fid_inception", "precision", "recall"))
    metrics = nothing | {"accuracy": {kind: [] for kind in schema.CLASSIFIERS}, "n_synthetic": len(images)}
    if job.test is None:
        return metrics
    assert job.experiment.evaluation is not None
    finished = [part for part in protocol.PARTS if f"evaluation-{part}" in done]
    start = time.monotonic()
    for part, scores in protocol.evaluation_parts(
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
    scores = protocol.merge(done.facts[f"evaluation-{part}"]["metrics"] for part in protocol.PARTS)
    return protocol.merge([metrics, scores]) | {"note": UNCOVERED}


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
