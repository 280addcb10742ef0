"""Prepared submissions for the first assignment, good, wrong and hostile, with the points that each should get.

`python tests/submissions.py FOLDER` writes them, a folder for each student, for `make grade SUBMISSIONS=FOLDER`.
"""

import ast
import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from dpldm.coursework.masters import MASTERS, Notebook, read, student_version
from dpldm.coursework.release import percent

MASTER = read(MASTERS / "1-gaussian.py")
WORTH = MASTER.questions
POINTS = re.compile(r"^## Question \d+: .*\((\d+) points?\)$", re.MULTILINE)

# Three styles of right answers beside the master's own.
LOOPS = {
    "gaussian-delta": """
from statistics import NormalDist
def gaussian_delta(noise_multiplier, epsilon):
    a = 1 / (2 * noise_multiplier)
    b = epsilon * noise_multiplier
    return NormalDist().cdf(a - b) - math.e ** epsilon * NormalDist().cdf(-a - b)
""",
    "noise-std": """
def noise_std(sensitivity, epsilon, delta):
    high = 1.0
    while gaussian_epsilon(high, delta) > epsilon:
        high *= 2
    low = high / 2
    for _ in range(60):
        mid = (low + high) / 2
        if gaussian_epsilon(mid, delta) > epsilon:
            low = mid
        else:
            high = mid
    return high * sensitivity
""",
    "clip-rows": """
def clip_rows(rows, clip_norm):
    result = []
    for row in rows:
        length = math.sqrt(sum(x * x for x in row))
        result.append([x if length <= clip_norm else x * clip_norm / length for x in row])
    return np.array(result)
""",
    "sum-sensitivity": """
def sum_sensitivity(clip_norm, relation):
    if relation == "add-remove":
        return clip_norm
    return clip_norm + clip_norm
""",
    "private-mean": """
def private_mean(rows, clip_norm, noise_multiplier, expected_count, normal):
    total = [0.0] * len(rows[0])
    for row in clip_rows(rows, clip_norm):
        for j, x in enumerate(row):
            total[j] += x
    return [(x + normal((1,), clip_norm * noise_multiplier)[0]) / expected_count for x in total]
""",
    "composed-epsilon": """
def composed_epsilon(noise_multipliers, delta):
    mu2 = 0
    for s in noise_multipliers:
        mu2 += (1 / s) ** 2
    return gaussian_epsilon(1 / math.sqrt(mu2), delta)
""",
    "own-noise": "own_noise_multiplier = 3 * gaussian_noise_multiplier(epsilon, 1e-5)",
}
LIBRARIES = {
    "gaussian-delta": """
from scipy.stats import norm
def gaussian_delta(noise_multiplier, epsilon):
    mu = 1 / noise_multiplier
    return norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
""",
    "noise-std": """
from scipy.optimize import brentq
def noise_std(sensitivity, epsilon, delta):
    return sensitivity * np.exp(brentq(lambda s: gaussian_epsilon(float(np.exp(s)), delta) - epsilon, -5, 9))
""",
    "clip-rows": """
import torch
def clip_rows(rows, clip_norm):
    return torch.renorm(torch.as_tensor(rows, dtype=torch.float64), 2, 0, clip_norm)
""",
    "sum-sensitivity": """
sum_sensitivity = lambda clip_norm, relation: np.float64(clip_norm) * (1 + (relation != "add-remove"))
""",
    "private-mean": """
def private_mean(rows, clip_norm, noise_multiplier, expected_count, normal):
    mean = clip_rows(rows, clip_norm).sum(0) / expected_count
    return mean + torch.as_tensor(normal(mean.shape, noise_multiplier * clip_norm / expected_count))
""",
    "composed-epsilon": """
from dp_accounting import pld
def composed_epsilon(noise_multipliers, delta):
    return gaussian_epsilon(float(1 / np.linalg.norm(1 / np.asarray(noise_multipliers))), delta)
""",
    "own-noise": """
from scipy.optimize import brentq
own_noise_multiplier = brentq(lambda s: composed_epsilon([s] * 9, 1e-5) - epsilon, 0.5, 1e4, xtol=1e-9)
""",
}

# Each classic mistake by itself: the answer that it is in, the code, a word of the sentence that names it, the points.
MEAN = "def private_mean(rows, clip_norm, noise_multiplier, expected_count, normal):\n    "
LENGTHS = "np.linalg.norm(rows, axis=1, keepdims=True)"
CLIPPED = f"rows = rows * np.minimum(1, clip_norm / {LENGTHS})\n    "
MISTAKES: dict[str, tuple[str, str, str, float]] = {
    "mixed-up": (
        "gaussian-delta",
        "def gaussian_delta(noise_multiplier, epsilon):\n"
        "    a, b = 0.5 / epsilon, epsilon * noise_multiplier\n"
        "    phi = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))\n"
        "    return phi(a - b) - math.exp(noise_multiplier) * phi(-a - b)",
        "mixed up",
        0,
    ),
    "no-sensitivity": (
        "noise-std",
        "def noise_std(sensitivity, epsilon, delta):\n    return gaussian_noise_multiplier(epsilon, delta)",
        "grow with the sensitivity",
        1,
    ),
    "every-number": (
        "clip-rows",
        "def clip_rows(rows, clip_norm):\n    return np.clip(rows, -clip_norm, clip_norm)",
        "clipped by itself",
        1,
    ),
    "replace-one": (
        "sum-sensitivity",
        "def sum_sensitivity(clip_norm, relation):\n    return 2 * clip_norm",
        "one record add",
        1,
    ),
    "after-averaging": (
        "private-mean",
        MEAN + "mean = rows.mean(0)\n    mean = mean * min(1, clip_norm / np.linalg.norm(mean))\n"
        "    return mean + normal(mean.shape, noise_multiplier * clip_norm / expected_count)",
        "after averaging",
        2,
    ),
    "per-row-noise": (
        "private-mean",
        MEAN + CLIPPED + "return (rows + normal(rows.shape, noise_multiplier * clip_norm)).sum(0) / expected_count",
        "per row",
        2,
    ),
    "noise-not-divided": (
        "private-mean",
        MEAN + CLIPPED + "return rows.sum(0) / expected_count + normal(rows.shape[1], noise_multiplier * clip_norm)",
        "after dividing",
        2,
    ),
    "noise-without-norm": (
        "private-mean",
        MEAN + CLIPPED + "return (rows.sum(0) + normal(rows.shape[1], noise_multiplier)) / expected_count",
        "sensitivity is missing",
        2,
    ),
    "not-composed": (
        "composed-epsilon",
        "def composed_epsilon(noise_multipliers, delta):\n"
        "    return max(gaussian_epsilon(sigma, delta) for sigma in noise_multipliers)",
        "not composed",
        0,
    ),
    "added-up": (
        "composed-epsilon",
        "def composed_epsilon(noise_multipliers, delta):\n"
        "    return sum(gaussian_epsilon(sigma, delta) for sigma in noise_multipliers)",
        "added up",
        0,
    ),
    "own-not-composed": (
        "own-noise",
        "own_noise_multiplier = gaussian_noise_multiplier(epsilon, 1e-5)",
        "not composed",
        0,
    ),
}

# Hostile answers: code for the answer `clip-rows`, all others are right. The host would show what got out.
LOOP = "while True:\n    pass"
PRINTER = "while True:\n    print('x' * 100_000)"
MEMORY = "import numpy\nhoard = []\nwhile True:\n    hoard.append(numpy.ones(10_000_000))"
FORK = "import os\nwhile True:\n    os.fork()"
EXIT = "import os\nos._exit(0)"
DELETER = """
import os, shutil
for top in ({places}, os.getcwd(), os.path.expanduser("~"), "/"):
    shutil.rmtree(top, ignore_errors=True)
for top in ({places}):
    try:
        os.makedirs(top, exist_ok=True)
        open(os.path.join(top, "was-here"), "w").write("x")
    except OSError:
        pass
"""
SOCKET = """
import socket, urllib.request
for connect in (
    lambda: socket.create_connection(("127.0.0.1", {port}), 2).sendall(b"out"),
    lambda: urllib.request.urlopen("http://127.0.0.1:{port}/out", timeout=2),
    lambda: socket.socket(socket.AF_UNIX).connect("{places_path}/socket"),
):
    try:
        connect()
    except OSError:
        pass
def clip_rows(rows, clip_norm):
    raise RuntimeError("no way out")
"""
PEEK = """
import glob, os, sys, gc, inspect
seen = []
python = [place for prefix in (sys.prefix, sys.base_prefix) for place in (prefix, os.path.realpath(prefix))]
for top in ("/", os.path.expanduser("~"), {places}):
    for folder, _, names in os.walk(top):
        if folder.startswith(("/proc", "/sys", "/usr", *python)):
            continue
        for name in names:
            try:
                seen.append(open(os.path.join(folder, name), errors="replace").read(300_000))
            except OSError:
                pass
for thing in gc.get_objects():
    if isinstance(thing, str | bytes):
        seen.append(str(thing)[:10_000])
for frame in inspect.stack():
    seen.append(repr(frame.frame.f_locals)[:100_000])
canary = "CANARY-" + "7f3a"
def clip_rows(rows, clip_norm):
    return [[1.0 if any(canary in text for text in seen) else 0.0]]
"""
FORGER = """
import json, os, sys, builtins
for descriptor in range(3, 40):
    try:
        os.write(descriptor, b'{"ticket": "0", "value": [[1.0]], "points": 20}\\n')
    except OSError:
        pass
for name in ("grades.csv", "gradebook.db", "points.json"):
    open(name, "w").write("alice,20")
print('{"points": 20}')
def clip_rows(rows, clip_norm):
    return {"points": 20, "right": True, "value": rows}
"""
SWALLOWER = """
import builtins, sys
sys.excepthook = lambda *error: None
get_ipython().set_custom_exc((Exception,), lambda *arguments, **named: None)
get_ipython().events.register("pre_run_cell", lambda info: print(info))
class Always:
    def __getattr__(self, name): return self
    def __call__(self, *arguments, **named): return self
    def __eq__(self, other): return True
    def __bool__(self): return True
    def __float__(self): return 0.0
builtins.AssertionError = type("Quiet", (Exception,), {})
def clip_rows(rows, clip_norm):
    try:
        raise ValueError
    except BaseException:
        return Always()
"""


@dataclass(frozen=True)
class Prepared:
    """A submission: its file's name and content, and the points it should get, by question."""

    content: str
    points: dict[str, float]
    file: str = "1-gaussian.ipynb"
    says: dict[str, str] = field(default_factory=dict)  # a part of the feedback, by question


def answered(answers: dict[str, str]) -> Notebook:
    """The student's notebook with these answers, the master's own where there is none."""
    notebook = student_version(MASTER)
    masters = {cell["id"]: cell.source for cell in MASTER.notebook.cells}
    for cell in notebook.cells:
        if cell["id"] in WORTH:
            cell.source = answers.get(cell["id"], masters[cell["id"]])
    return notebook


def lost(*questions: str) -> dict[str, float]:
    return {name: 0 if name in questions else of for name, of in WORTH.items()}


def changed(change: Callable[[Notebook], object]) -> str:
    notebook = answered({})
    change(notebook)
    return json.dumps(notebook)  # nbformat would mend what is broken on purpose


def without_cell(notebook: Notebook, name: str) -> None:
    notebook.cells = [cell for cell in notebook.cells if cell["id"] != name]


def without_metadata(notebook: Notebook) -> None:
    for cell in notebook.cells:
        cell.metadata = {}


def copy_cell(notebook: Notebook, name: str) -> None:
    position = next(number for number, cell in enumerate(notebook.cells) if cell["id"] == name)
    notebook.cells.insert(position, copy.deepcopy(notebook.cells[position]))


def change_cell(notebook: Notebook, name: str, source: str) -> None:
    next(cell for cell in notebook.cells if cell["id"] == name).source = source


def hostile(places: list[str], port: int) -> dict[str, str]:
    """The hostile answers. ``places``: folders outside that they look into and write to; ``port``: of a listener."""
    quoted = "".join(f"{place!r}, " for place in places)
    first = places[0] if places else "/nowhere"
    return {
        "loop": LOOP,
        "printer": PRINTER,
        "memory": MEMORY,
        "fork": FORK,
        "exit": EXIT,
        "deleter": DELETER.replace("{places}", quoted),
        "socket": SOCKET.replace("{port}", str(port)).replace("{places_path}", first),
        "peek": PEEK.replace("{places}", quoted),
        "forger": FORGER,
        "swallower": SWALLOWER,
    }


def prepare(places: list[str] | None = None, port: int = 9) -> dict[str, Prepared]:
    """All submissions by student."""
    whole = dict(WORTH)
    partly = {"clip-rows": MISTAKES["every-number"][1], "own-noise": "own_noise_multiplier = 1.0"}
    found = {
        "perfect-vectorised": Prepared(nbformat.writes(answered({})), whole),
        "perfect-loops": Prepared(percent(answered(LOOPS)), whole, "1-gaussian.py"),
        "perfect-libraries": Prepared(nbformat.writes(answered(LIBRARIES)), whole),
        "partly-right": Prepared(nbformat.writes(answered(partly)), whole | {"clip-rows": 1, "own-noise": 0}),
        "blank": Prepared(nbformat.writes(student_version(MASTER)), dict.fromkeys(whole, 0)),
        "renamed-file": Prepared(nbformat.writes(answered({})), whole, "final version (2).ipynb"),
        "copied-cell": Prepared(changed(lambda notebook: copy_cell(notebook, "clip-rows")), whole),
        "deleted-test": Prepared(changed(lambda notebook: without_cell(notebook, "test-clip-rows")), whole),
        "changed-test": Prepared(
            changed(lambda notebook: change_cell(notebook, "test-clip-rows", "raise SystemExit")), whole
        ),
        "changed-given": Prepared(changed(lambda notebook: change_cell(notebook, "given-imports", "pass")), whole),
        "lost-metadata": Prepared(changed(without_metadata), whole, "work.ipynb"),
        "no-notebook": Prepared("%PDF-1.7 this is no notebook", dict.fromkeys(whole, 0)),
        "half-notebook": Prepared(json.dumps({"cells": 3}), dict.fromkeys(whole, 0)),
    }
    for name, (question, source, sentence, points) in MISTAKES.items():
        content = nbformat.writes(answered({question: source}))
        found[f"mistake-{name}"] = Prepared(content, whole | {question: points}, says={question: sentence})
    for name, source in hostile(places or [], port).items():
        answers = {"clip-rows": source}
        found[f"hostile-{name}"] = Prepared(nbformat.writes(answered(answers)), lost("clip-rows"))
    return found


def sentences(source: str) -> Iterator[str]:
    """The texts in a module of checks that read as a sentence."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.strip().endswith("."):
            yield node.value


def write(folder: Path, prepared: dict[str, Prepared]) -> None:
    for student, submission in prepared.items():
        (folder / student).mkdir(parents=True, exist_ok=True)
        (folder / student / submission.file).write_text(submission.content, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), prepare([str(Path(sys.argv[1]).resolve())]))
