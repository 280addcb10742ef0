"""What hidden checks are made of: a student's functions to call, findings to give, sentences that name mistakes.

A check is a generator, outside the sandbox: it calls a function that runs inside, and yields what it finds.

    def noise_scale(student: Student) -> Iterator[Finding]:
        got = student.call("noise_scale", sensitivity=2.0, epsilon=1.0, delta=1e-5).number()
        yield judge(1, got, 7.46, {"The sensitivity is left out.": 3.73}, "The scale is off.")

A module of checks has `QUESTIONS`, a dictionary from the name of an answer to its check. If a function cannot be
called, the check ends there: what it found before counts.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpldm.coursework.masters import ROOT, CourseworkError

CHECKS = ROOT / "tests" / "coursework"
STANDARD_ERRORS = 6.0  # a right answer fails a statistical check with probability 2e-9

Array = np.ndarray
Ask = Callable[[dict[str, Any]], dict[str, Any]]


class Broken(Exception):
    """A function or value of the submission can't be had; the text is for the student."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``points``: what it is worth; ``sentence``: for the student, where it is not right."""

    points: float
    right: bool
    sentence: str = ""


@dataclass(frozen=True)
class Answer:
    """What a function returned. ``asked``: the shape and the standard deviation of each noise that it asked for."""

    name: str
    value: Any
    asked: tuple[tuple[tuple[int, ...], float], ...] = ()

    def number(self) -> float:
        """As one number.

        Raises:
            Broken: it is none, or not finite.
        """
        return float(self.array(()))

    def array(self, shape: tuple[int | None, ...] | None = None) -> Array:
        """As an array of finite numbers; None in a shape for any size.

        Raises:
            Broken: it has another shape, or holds something else.
        """
        try:
            found = np.asarray(self.value, dtype=float)
        except (TypeError, ValueError, OverflowError):
            raise Broken(f"{self.name} should return numbers, and returned something else.") from None
        if shape == () and found.size == 1:
            found = found.reshape(())
        if shape is not None and not fits(found.shape, shape):
            raise Broken(f"{self.name} should return {_in_words(shape)}, and returned {_in_words(found.shape)}.")
        if not np.isfinite(found).all():
            raise Broken(f"{self.name} returned a number that is not finite.")
        return found


class Student:
    """A submission, as checks see it. ``parameters``: its ε and seed, computed anew and not taken from it."""

    def __init__(self, ask: Ask, parameters: Mapping[str, Any]) -> None:
        self._ask = ask
        self.parameters = dict(parameters)

    def call(self, function: str, **arguments: Any) -> Answer:
        """Call a function of the submission, in its sandbox. Arrays arrive there as arrays; see `normal`, `tensor`.

        Raises:
            Broken: it is not there, raised an error, took too long or too much.
        """
        reply = self._ask({"call": function, "arguments": {key: _sent(value) for key, value in arguments.items()}})
        return _answer(function, reply)

    def value(self, name: str) -> Answer:
        """A variable of the submission.

        Raises:
            Broken: it is not there, or nothing that can be sent.
        """
        return _answer(name, self._ask({"value": name}))


def normal(seed: int | None, tensors: bool = False) -> dict[str, Any]:
    """An argument: a function `normal(shape, std)` that draws from NumPy's generator with this seed; None: zeros."""
    return {"normal": seed, "tensors": tensors}


@contextmanager
def told(case: str) -> Iterator[None]:
    """Says of what can't be had in which case that is, such as "With an empty batch"."""
    try:
        yield
    except Broken as why:
        raise Broken(f"{case}: {why}") from None


def tensor(values: Any, dtype: str = "float32") -> dict[str, Any]:
    """An argument that arrives as a tensor; one without rows keeps its columns."""
    array = np.asarray(values)
    return {"tensor": array.tolist(), "dtype": dtype, "shape": list(array.shape)}


def named(name: str) -> dict[str, str]:
    """An argument that is an object of the notebook, such as a function that the assignment gives."""
    return {"name": name}


def close(got: Any, right: Any, relative: float = 1e-4) -> bool:
    """Whether all numbers agree, relative to the largest right one."""
    got, right = np.asarray(got, dtype=float), np.asarray(right, dtype=float)
    return got.shape == right.shape and bool(np.abs(got - right).max(initial=0) <= relative * _size(right))


def judge(
    points: float, got: Any, right: Any, mistakes: Mapping[str, Any], otherwise: str, relative: float = 1e-4
) -> Finding:
    """Compare with the right value, and if it differs, with what each known mistake gives.

    Args:
        mistakes: from the sentence for the student to the value that the mistake leads to.
        otherwise: the sentence where none fits.
    """
    if close(got, right, relative):
        return Finding(points, True)
    for sentence, wrong in mistakes.items():
        if not close(wrong, right, relative) and close(got, wrong, relative):
            return Finding(points, False, sentence)
    return Finding(points, False, otherwise)


def has_std(values: Array, std: float) -> bool:
    """Whether draws may have this standard deviation, within 6 standard errors of it (normal draws, mean 0)."""
    return bool(abs(np.sqrt(np.mean(np.square(values))) / std - 1) <= STANDARD_ERRORS / math.sqrt(2 * values.size))


def judge_noise(
    points: float,
    noise: Array,
    asked: Sequence[tuple[tuple[int, ...], float]],
    clip_norm: float,
    noise_multiplier: float,
    count: int,
    expected: int,
) -> Finding:
    """Judge the noise (d,) in a sum of clipped rows by its size, and by what was asked of `normal`.

    Args:
        asked: shape and standard deviation of each draw.
        count: of the rows; expected: the public number that a mean is divided by.
    """
    right, draws = noise_multiplier * clip_norm, sum(math.prod(shape) for shape, _ in asked)
    if draws == 0:
        return Finding(points, False, "No noise was drawn by normal(shape, std).")
    if draws == 1:
        return Finding(points, False, "One number of noise is shared by all coordinates: each needs its own.")
    if has_std(noise, right):  # also where it is put together from several draws
        return Finding(points, True)
    if draws > noise.size:
        return Finding(points, False, "More noise is drawn than one release needs: is it added per row or per part?")
    mistakes = {
        "The noise multiplier is not the standard deviation: the sensitivity is missing.": noise_multiplier,
        "Noise added after dividing has to be as much smaller as the mean is.": right * expected,
        "The sensitivity is that of replacing a record, not of adding or removing one.": 2 * right,
        "The sensitivity of a mean is used for noise that is added to a sum.": right / expected,
        "The noise is divided by the number of rows, which is private.": right * expected / count,
        "The sensitivity does not take part as it should: it is squared.": right * clip_norm,
    }
    for sentence, wrong in mistakes.items():
        if has_std(noise, wrong):
            return Finding(points, False, sentence)
    return Finding(points, False, "The noise has not the size that the noise multiplier says.")


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether a shape is the one wanted; None stands for any size."""
    return len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))


def load(assignment: str, folder: Path = CHECKS) -> dict[str, Callable[[Student], Iterator[Finding]]]:
    """The checks of an assignment "N-name", from checks_name.py in a folder.

    Raises:
        CourseworkError: there is no such file, or it has no QUESTIONS.
    """
    path = source_of(assignment, folder)
    if not path.is_file():
        raise CourseworkError(f"expected hidden checks in {path}, found no such file")
    found = importlib.util.spec_from_file_location(f"coursework_{path.stem}", path)
    if found is None or found.loader is None:
        raise CourseworkError(f"expected Python in {path}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, "QUESTIONS"):
        raise CourseworkError(f"expected QUESTIONS, from the name of an answer to its check, in {path}")
    return module.QUESTIONS


def source_of(assignment: str, folder: Path = CHECKS) -> Path:
    """Where the checks of an assignment (its name, as `1-gaussian`) lie."""
    return folder / f"checks_{assignment.partition('-')[2]}.py"


def _sent(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": value.dtype.name}
    return value


def _answer(name: str, reply: Mapping[str, Any]) -> Answer:
    if "error" in reply:
        raise Broken(f"{name} could not be used: {str(reply['error'])[:300]}")
    try:
        asked = tuple((tuple(map(int, each["shape"])), float(each["std"])) for each in reply.get("asked", []))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise Broken(f"{name} could not be used: its answer can't be read") from None
    return Answer(name, reply.get("value"), asked)


def _size(values: Array) -> float:
    return float(np.abs(values).max(initial=0)) or 1.0


def _in_words(shape: Sequence[int | None]) -> str:
    if not shape:
        return "one number"
    return "an array of shape (" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
