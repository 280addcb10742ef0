"""Many experiments on one machine: each in a process of its own, several at a time; recorded ones are skipped. A join.

An interrupted sweep goes on where it was when the same command is given again, as each of its runs does.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpldm.methods import METHODS
from dpldm.records import files, tables
from dpldm.records.numbers import duration
from dpldm.runs.experiment import Experiment, Folders
from dpldm.runs.job import check

Say = Callable[[str], None]
HERE = Folders()
MEMORY = 3 * 2**30  # bytes that a run of the quick profile may need


class SweepError(ValueError):
    """A sweep that can't be made as described, or some of whose runs failed. One line."""


@dataclass(frozen=True)
class Sweep:
    """All combinations of what is listed.

    datasets, methods: known names. epsilons: target ε, each above 0. seeds: how many; they are 0, 1, …

    Raises:
        ValueError: in one line, the first thing that is wrong, in any of its runs.
    """

    datasets: Sequence[str]
    epsilons: Sequence[float]
    seeds: int = 1
    profile: str = "quick"
    delta: float = 1e-5
    methods: Sequence[str] = ("dpldm",)

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= 1_000:
            raise SweepError(f"expected 1 to 1,000 seeds, got {self.seeds}: choose another number")
        _ = self.experiments

    @property
    def experiments(self) -> list[Experiment]:
        """Its runs, without repetition; the first seed of all of them comes first. A yardstick is made once, without
        any ε."""
        described = itertools.product(range(self.seeds), self.datasets, self.methods, self.epsilons)
        return list(
            dict.fromkeys(
                Experiment(
                    dataset=dataset,
                    epsilon=None if method in METHODS and not METHODS[method].private else epsilon,
                    delta=self.delta,
                    method=method,
                    profile=self.profile,
                    seed=seed,
                )
                for seed, dataset, method, epsilon in described
            )
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep. ``records``: where those of all its runs are, or would be; ``failed``: the runs that
    failed, each with its last words."""

    records: tuple[Path, ...]
    failed: tuple[str, ...]


@dataclass
class _Run:
    """One run of a sweep: waiting, at work, or done."""

    experiment: Experiment
    record: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    @property
    def name(self) -> str:
        asked = self.experiment
        budget = "not private" if asked.epsilon is None else f"ε = {asked.epsilon:g}"
        return f"{asked.dataset} {asked.method} {budget} seed {asked.seed}"

    def last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def command(experiment: Experiment, folders: Folders) -> list[str]:
    """What makes one run of a sweep: `dpldm run` with its settings."""
    asked = {
        "--dataset": experiment.dataset,
        "--epsilon": "none" if experiment.epsilon is None else repr(experiment.epsilon),
        "--delta": repr(experiment.delta),
        "--method": experiment.method,
        "--profile": experiment.profile,
        "--seed": experiment.seed,
        "--out": folders.records,
        "--runs": folders.runs,
    }
    return [sys.executable, "-m", "dpldm", "run", *(str(part) for item in asked.items() for part in item)]


def run(
    sweep: Sweep,
    folders: Folders = HERE,
    workers: int | None = None,
    say: Say = print,
    command: Callable[[Experiment, Folders], list[str]] = command,
    known: Path | None = None,
) -> Outcome:
    """Make all runs of a sweep that have no record. One that fails does not stop the others.

    Args:
        workers: runs at a time; None for one for each core, as far as the memory holds. The cores are shared out among
            them.
        say: told of every run that is skipped, starts or ends.
        command: makes the run of an experiment, in a process.
        known: a further folder of records, such as the book's; what is recorded there is not made again.

    Raises:
        ValueError: some run can't work; before any starts.
        KeyboardInterrupt: after all runs have put their files in order.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is not None and workers < 1:
        raise SweepError(f"expected 1 or more workers, got {workers}: raise the number")
    workers = workers or max(1, min(cores, files.machine_memory() // MEMORY))
    planned = _planned(sweep, folders, known)
    for recorded in [one for one in planned if one.record.exists()]:
        say(f"{recorded.name}: recorded earlier, {recorded.record.name}")
    waiting = [one for one in planned if not one.record.exists()]
    files.check_writable(folders.records)
    files.check_writable(folders.runs)
    total, at_work, failed = len(waiting), list[_Run](), list[str]()
    threads = str(max(1, cores // min(workers, max(1, total))))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    try:
        while waiting or at_work:
            while waiting and len(at_work) < workers:
                started = waiting.pop(0)
                _start(started, command(started.experiment, folders), environment)
                at_work.append(started)
                say(f"{started.name}: started, {total - len(waiting)} of {total}")
            time.sleep(0.1)
            for done in [one for one in at_work if one.process and one.process.poll() is not None]:
                at_work.remove(done)
                if message := _ended(done):
                    failed.append(f"{done.name}: {message}")
                say(f"{done.name}: {message or duration(time.monotonic() - done.started)}")
    except KeyboardInterrupt:
        _stop(at_work)
        raise KeyboardInterrupt("stopped; finished runs and stages are kept, run the same command to go on") from None
    return Outcome(tuple(one.record for one in planned), tuple(failed))


def _planned(sweep: Sweep, folders: Folders, known: Path | None) -> list[_Run]:
    planned = []
    for experiment in sweep.experiments:
        record = check(experiment, folders)
        if known is not None and not record.exists() and (known / record.name).exists():
            record = known / record.name
        planned.append(_Run(experiment, record, folders.runs / f"{record.stem}.log"))
    return planned


def _start(run: _Run, words: list[str], environment: dict[str, str]) -> None:
    run.started = time.monotonic()
    with run.log.open("wb") as log:
        run.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches each run once, from here
        )


def _ended(run: _Run) -> str:
    """What went wrong, or nothing; a run that ended well leaves no log."""
    assert run.process is not None
    if run.process.returncode:
        return f"failed with exit code {run.process.returncode}: {run.last_words()} (all of it: {run.log})"
    if not run.record.exists():
        return f"ended without its record {run.record} (what it said: {run.log})"
    run.log.unlink(missing_ok=True)
    return ""


def _stop(at_work: list[_Run], patience: float = 30.0) -> None:
    """Interrupt the runs, wait until they have put their files in order, and end those that do not."""
    processes = [run.process for run in at_work if run.process is not None]
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    end = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def as_text(records: Sequence[Path]) -> str:
    """Records as a table for the terminal, as far as they are there."""
    return tables.to_text(tables.table([files.read(path) for path in records if path.exists()]))
