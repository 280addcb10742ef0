"""Grade submissions: run the cells in a sandbox, judge what the functions return outside of it.

If a cell or a call has to be stopped, the sandbox is started anew and the cells are run again without that cell; so an
endless loop in one answer does not cost the points of another.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpldm.coursework import checks, submissions
from dpldm.coursework.checks import Broken, Finding, Student
from dpldm.coursework.masters import Assignment, CourseworkError
from dpldm.coursework.sandbox import Limits, Sandbox, Stopped
from dpldm.coursework.submissions import Submission

Check = Callable[[Student], Iterator[Finding]]
MISTAKES = 3  # stopped cells after which nothing more of a submission is run


@dataclass(frozen=True)
class Result:
    """Points of one answer, and what to tell the student about it."""

    question: str
    points: float
    of: float
    sentences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Graded:
    """A submission with its points. ``seconds``: how long it took; ``key``: of all that the points depend on."""

    student: str
    assignment: str
    file: str
    results: list[Result]
    written: dict[str, str]
    notes: list[str]
    seconds: float
    walls: bool
    key: str

    @property
    def points(self) -> float:
        return sum(result.points for result in self.results)


class Runner:
    """A submission in a sandbox that is started again when it had to be stopped."""

    def __init__(self, cells: Sequence[tuple[str, str]], parameters: Mapping[str, Any], walls: bool, limits: Limits):
        self._cells, self._parameters, self._walls, self._limits = list(cells), dict(parameters), walls, limits
        self._sandbox: Sandbox | None = None
        self._end = time.monotonic() + limits.all_seconds
        self._stops = 0
        self.notes: list[str] = []

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Ask the worker, with the submission's cells run before.

        Raises:
            Broken: it had to be stopped; the next question starts it again.
        """
        while self._sandbox is None:
            self._start()
        try:
            return self._sandbox.ask(command, self._seconds())
        except Stopped as why:
            self._end_sandbox()
            self._stops += 1
            name = command.get("call") or command.get("value")
            raise Broken(f"{name} had to be stopped: {why}.") from None

    def close(self) -> None:
        self._end_sandbox()

    def _start(self) -> None:
        """Run all cells; a cell that had to be stopped is left out from then on."""
        if self._stops >= MISTAKES:
            raise Broken("The notebook had to be stopped too often; nothing more of it was run.")
        self._sandbox, notes = Sandbox(self._walls, self._limits), []
        for cell in [("the student's numbers", ""), *self._cells]:
            name, source = cell
            command = {"run": source, "where": name} if source else {"set": self._parameters}
            try:
                reply = self._sandbox.ask(command, self._seconds())
            except Stopped as why:
                self._end_sandbox()
                self._stops += 1
                if not source:
                    raise Broken(f"The sandbox could not be started: {why}.") from None
                self._cells.remove(cell)
                self.notes.append(f"The cell {name} had to be stopped: {why}. The rest was run without it.")
                return
            if "error" in reply:
                notes.append(f"The cell {name} ended with an error: {str(reply['error'])[:300]}")
        self.notes += [note for note in notes if note not in self.notes]

    def _seconds(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            self._end_sandbox()
            raise Broken("The notebook took too long as a whole; nothing more of it was run.")
        return min(left, self._limits.cell_seconds)

    def _end_sandbox(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None


def judged(question: str, check: Check, student: Student, of: float) -> Result:
    """Points and sentences of one answer. A sentence is told once; an error of the submission ends the check."""
    points, sentences = 0.0, []
    try:
        for finding in check(student):
            points += finding.points if finding.right else 0
            if not finding.right:
                sentences.append(finding.sentence)
    except Broken as why:
        sentences.append(str(why))
    except Exception as error:  # a check that meets what nobody thought of must not end the grading of all
        sentences.append(f"The check itself failed ({type(error).__name__}: {error}): ask your instructor to look.")
    return Result(question, min(points, of), of, list(dict.fromkeys(sentences)))


def grade(
    submission: Submission,
    questions: Mapping[str, Check],
    parameters: Mapping[str, Any],
    walls: bool,
    limits: Limits | None = None,
    key: str = "",
) -> Graded:
    """Grade one submission. Whatever it does, this returns: what fails has zero points.

    Args:
        questions: the check of each answer.
        parameters: the student's own numbers.
        walls: whether to use namespaces.
    """
    start, points = time.monotonic(), submission.assignment.questions
    notes = list(submission.notes)
    for name, said in submissions.other_numbers(submission, parameters).items():
        notes.append(f"The file says {name} = {said!r:.40}; yours is {parameters[name]}, and that was used.")
    if submission.cells is None:
        results = [Result(question, 0, of, list(notes)) for question, of in points.items()]
    else:
        runner = Runner(submissions.to_run(submission), parameters, walls, limits or Limits())
        student = Student(runner.ask, parameters)
        try:
            results = [judged(question, questions[question], student, of) for question, of in points.items()]
        finally:
            runner.close()
        notes += runner.notes
    return Graded(
        student=submission.student,
        assignment=submission.assignment.name,
        file=submission.path.name,
        results=results,
        written=submissions.written_answers(submission),
        notes=notes,
        seconds=round(time.monotonic() - start, 1),
        walls=walls,
        key=key,
    )


def grade_all(
    found: Sequence[Submission],
    folder: Path,
    check_folder: Path = checks.CHECKS,
    secret: str | None = None,
    walls: bool = True,
    workers: int = 2,
    say: Callable[[str], None] = print,
) -> list[Graded]:
    """Grade submissions, some at a time; what was graded before and has not changed is taken from the folder.

    Args:
        folder: for one JSON file per student and assignment.
        check_folder: of the hidden checks.
        secret: from which each student's numbers follow; None for the defaults.

    Raises:
        CourseworkError: an assignment has no check for one of its answers.
    """
    questions = {}
    for assignment in {each.assignment.name: each.assignment for each in found}.values():
        questions[assignment.name] = checks.load(assignment.name, check_folder)
        missing = sorted(set(assignment.questions) - set(questions[assignment.name]))
        if missing:
            raise CourseworkError(f"{assignment.name}: expected a hidden check for {missing[0]}, found none")

    def one(submission: Submission) -> Graded:
        assignment = submission.assignment
        parameters = assignment.student_parameters(submission.student, secret)
        key = _key(submission, checks.source_of(assignment.name, check_folder), parameters, walls)
        path = folder / assignment.name / f"{submission.student}.json"
        before = load(path)
        if before is not None and before.key == key:
            say(f"{submission.student}, {assignment.name}: unchanged, {before.points:g} points")
            return before
        done = grade(submission, questions[assignment.name], parameters, walls, limits_of(assignment), key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(done), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        say(f"{submission.student}, {assignment.name}: {done.points:g} points in {done.seconds:.0f} s")
        return done

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, found))


def limits_of(assignment: Assignment) -> Limits:
    """The limits, with the seconds that a master asks for in its metadata on its first cell."""
    asked = assignment.notebook.cells[0].metadata.get("limits", {})
    return Limits(**asked)


def load(path: Path) -> Graded | None:
    """A grade as written before; None if there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Graded(**{**found, "results": [Result(**result) for result in found["results"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _key(submission: Submission, check: Path, parameters: Mapping[str, Any], walls: bool) -> str:
    parts = [submission.digest, submission.path.name, submission.assignment.digest, repr(sorted(parameters.items()))]
    return hashlib.sha256("\0".join([*parts, str(walls)]).encode() + check.read_bytes()).hexdigest()[:16]
