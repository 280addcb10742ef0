"""Sweeps: what is planned, skipped, made at the same time, survived and interrupted; with a toy in place of a run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from dpldm.privacy.checks import PrivacyError
from dpldm.runs import sweep
from dpldm.runs.experiment import ExperimentError, Folders
from dpldm.runs.sweep import Sweep, SweepError

# Stands for a run: takes a while, says when, fails for ε = 2, and leaves its record.
TOY = textwrap.dedent("""
    import json, os, sys, time
    epsilon, record, times = float(sys.argv[1]), sys.argv[2], sys.argv[3]
    start = time.time()
    try:
        time.sleep(float(sys.argv[4]))
    except KeyboardInterrupt:
        print("put in order", file=open(record + ".stopped", "w"))
        sys.exit(130)
    if epsilon == 2:
        sys.exit("dpldm: no luck")
    with open(times, "a") as file:
        print(json.dumps([start, time.time(), os.environ["OMP_NUM_THREADS"]]), file=file)
    open(record, "w").close()
""")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Records that are known by dataset, ε and seed, without any data."""
    monkeypatch.setattr(sweep, "check", record_of)
    return Folders(records=tmp_path / "records", runs=tmp_path / "runs")


def record_of(experiment, folders) -> Path:
    return folders.records / f"{experiment.dataset}-{experiment.epsilon:g}-{experiment.seed}.json"


def toy(seconds: float = 0.3):
    def command(experiment, folders):
        times = folders.runs / "times"
        return [sys.executable, "-c", TOY, str(experiment.epsilon), str(record_of(experiment, folders)), str(times),
                str(seconds)]  # fmt: skip

    return command


def times_of(folders) -> list:
    return [json.loads(line) for line in (folders.runs / "times").read_text().splitlines()]


def test_every_combination_once_and_the_first_seed_first():
    asked = Sweep(("mnist", "fashion_mnist"), (0.5, 3, 3.0), seeds=2)
    made = [(run.seed, run.dataset, run.epsilon) for run in asked.experiments]
    assert made == [(s, d, e) for s in (0, 1) for d in ("mnist", "fashion_mnist") for e in (0.5, 3)]


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"epsilons": (3, 0)}, PrivacyError, "epsilon"),
        ({"epsilons": (float("nan"),)}, PrivacyError, "epsilon"),
        ({"datasets": ("mnist", "mnits")}, ExperimentError, "mnits"),
        ({"profile": "quik"}, ExperimentError, "quik"),
        ({"methods": ("dpldn",)}, ExperimentError, "dpldn"),
        ({"seeds": 0}, SweepError, "seeds"),
        ({"delta": 2.0}, PrivacyError, "delta"),
    ],
)
def test_one_bad_value_refuses_the_whole_sweep(change, error, word):
    good = {"datasets": ("mnist",), "epsilons": (3,)}
    with pytest.raises(error, match=word):
        Sweep(**(good | change))


def test_bad_number_of_workers(folders):
    with pytest.raises(SweepError, match="workers, got 0"):
        sweep.run(Sweep(("mnist",), (1,)), folders, workers=0, command=toy())


def test_runs_share_the_time_and_the_cores(folders, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    done = sweep.run(Sweep(("mnist",), (1, 3, 5, 7)), folders, 2, lambda line: None, toy())
    assert not done.failed
    assert all(path.exists() for path in done.records)
    spans = times_of(folders)
    assert {threads for *_, threads in spans} == {"4"}
    edges = sorted([(start, 1) for start, *_ in spans] + [(end, -1) for _, end, _ in spans])
    at_once = [sum(step for _, step in edges[: position + 1]) for position in range(len(edges))]
    assert max(at_once) == 2  # as many as asked for, and never more


@pytest.mark.parametrize(("gigabytes", "at_once"), [(100, 4), (7, 2), (1, 1)])
def test_one_run_for_each_core_as_far_as_the_memory_holds(folders, monkeypatch, gigabytes, at_once):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    monkeypatch.setattr(sweep.files, "machine_memory", lambda: gigabytes * 2**30)
    sweep.run(Sweep(("mnist",), (1, 3, 5, 7)), folders, None, lambda line: None, toy(0.1))
    assert {threads for *_, threads in times_of(folders)} == {str(4 // at_once)}


def test_what_the_book_has_is_not_made_again(folders, tmp_path):
    published = tmp_path / "published"
    sweep.run(Sweep(("mnist",), (1,)), Folders(published, folders.runs), 1, lambda line: None, toy(0))
    said: list[str] = []
    done = sweep.run(Sweep(("mnist",), (1, 3)), folders, 1, said.append, toy(0), known=published)
    assert said[0] == "mnist dpldm ε = 1 seed 0: recorded earlier, mnist-1-0.json"
    assert done.records == (published / "mnist-1-0.json", folders.records / "mnist-3-0.json")
    assert len(times_of(folders)) == 2


def test_recorded_runs_are_skipped_and_said_so(folders):
    asked, said = Sweep(("mnist",), (1, 3), seeds=2), []
    sweep.run(Sweep(("mnist",), (1,)), folders, 2, said.append, toy(0))
    said.clear()
    sweep.run(asked, folders, 2, said.append, toy(0))
    assert [line for line in said if "recorded earlier" in line] == [
        "mnist dpldm ε = 1 seed 0: recorded earlier, mnist-1-0.json"
    ]
    assert len(times_of(folders)) == 4
    said.clear()
    sweep.run(asked, folders, 2, said.append, toy(0))
    assert len(said) == 4
    assert all("recorded earlier" in line for line in said)
    assert len(times_of(folders)) == 4


def test_a_failure_stops_no_other_and_is_reported(folders):
    said: list[str] = []
    done = sweep.run(Sweep(("mnist",), (2, 1, 3)), folders, 1, said.append, toy(0))
    (failed,) = done.failed
    assert failed.startswith("mnist dpldm ε = 2 seed 0: failed with exit code 1: dpldm: no luck")
    assert [path.exists() for path in done.records] == [False, True, True]
    assert "no luck" in (folders.runs / "mnist-2-0.log").read_text()
    assert not (folders.runs / "mnist-1-0.log").exists()


def test_a_run_without_its_record_has_failed(folders):
    done = sweep.run(Sweep(("mnist",), (1,)), folders, 1, lambda line: None, lambda *_: [sys.executable, "-c", ""])
    assert "without its record" in done.failed[0]


def test_interrupt_lets_every_run_put_its_files_in_order(folders):
    threading.Timer(2.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="same command"):
        sweep.run(Sweep(("mnist",), (1, 3)), folders, 2, lambda line: None, toy(60))
    assert time.monotonic() - start < 30
    assert sorted(path.name for path in folders.records.iterdir()) == [
        "mnist-1-0.json.stopped",
        "mnist-3-0.json.stopped",
    ]


def test_command_is_the_run_of_the_experiment(tmp_path):
    """What a run is asked for is read back by the command line as the same experiment."""
    from dpldm import cli, commands

    (asked,) = Sweep(("fashion_mnist",), (0.2,), profile="smoke", delta=1e-6).experiments
    words = sweep.command(asked, Folders(records=tmp_path / "a b", runs=tmp_path / "runs"))
    assert words[1:4] == ["-m", "dpldm", "run"]
    given = cli._parser().parse_args(words[3:])
    assert commands._experiment(given, given.epsilon[0]) == asked.resolved()
    assert (given.out, given.runs) == (tmp_path / "a b", tmp_path / "runs")


@pytest.mark.slow
def test_whole_sweep_from_the_command_line(tmp_path):
    words = ["sweep", "--dataset", "mnist", "--epsilon", "3", "10", "--profile", "smoke", "--workers", "2"]
    folders = ["--out", str(tmp_path / "records"), "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "dpldm", *words, *folders]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "ε = 3 seed 0: started" in first.stderr
    assert "CNN (%)" in first.stdout
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stderr.count("recorded earlier") == 2
    assert again.stdout == first.stdout
