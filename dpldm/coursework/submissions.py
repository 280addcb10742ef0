"""Submissions as they arrive: which file is which assignment, what of it is run, what was written by hand.

A submission is a folder with a student's name and whatever files in it. Nothing is taken on trust: a file may have
another name, lack its metadata, have a cell twice or none, or be no notebook at all.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from dpldm.coursework.masters import TEST, Assignment, Cell, grade_id, grading, student_version, tags
from dpldm.coursework.release import STUDENT

SUFFIXES = (".ipynb", ".py")
LARGEST = 20 << 20  # bytes of a file that is read
NOT_RUN = ("explore", "parameters", "injected-parameters")  # tags


@dataclass(frozen=True)
class Submission:
    """One file of a student for one assignment.

    arrived: by the file timestamp.txt beside it, which nbgrader's exchange writes, or else when it was last changed
    cells: None if it is no notebook
    notes: for the student
    """

    student: str
    assignment: Assignment
    path: Path
    arrived: datetime
    digest: str
    cells: list[Cell] | None
    notes: list[str] = field(default_factory=list)


def find(folder: Path, assignments: Sequence[Assignment]) -> tuple[list[Submission], list[str]]:
    """The submissions below FOLDER/STUDENT/, one per student and assignment, and a line for every file left out.

    If a student has several files for one assignment, one with answers counts before one without, then the one with the
    released name, then the newest.
    """
    found: dict[tuple[str, str], Submission] = {}
    left_out = []
    for student in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if not STUDENT.fullmatch(student.name):
            left_out.append(f"{student.name!r}: expected a folder with a student's name of letters, digits and . @ + -")
            continue
        for path in _files(student, assignments):
            submission = _read(student.name, path, assignments)
            if submission is None:
                left_out.append(f"{path.relative_to(folder)}: belongs to no assignment")
                continue
            key = (student.name, submission.assignment.name)
            other = found.setdefault(key, submission)
            if other is submission:
                continue
            if is_blank(other) and not is_blank(submission):  # both files were handed in, and this one worked on
                found[key], submission = submission, other
            name = submission.path.relative_to(folder)
            left_out.append(f"{name}: {found[key].path.name} counts, of the same assignment")
    return [found[key] for key in sorted(found)], left_out


def to_run(submission: Submission) -> list[tuple[str, str]]:
    """The cells to run, as (name, source), in the order of the submission.

    A given cell is put back as it was handed out, and where it is missing, after the one it followed. Parameters, tests
    and cells to explore are left out: the grader sets the first and does not need the others.
    """
    cells = [cell for cell in submission.cells or [] if cell.cell_type == "code"]
    given = [cell for cell in student_version(submission.assignment).cells if _is_given(cell)]
    originals = {cell["id"]: cell.source for cell in given}
    skipped = {cell["id"] for cell in submission.assignment.notebook.cells if _is_skipped(cell)}
    present = {grade_id(cell) for cell in cells}
    chosen = [(cell["id"], cell.source) for cell in given if cell["id"] not in present]
    for position, cell in enumerate(cells, start=1):
        name = grade_id(cell)
        if name not in skipped and not _is_skipped(cell):
            chosen.append((name or f"cell {position}", originals.get(name, cell.source)))
    return chosen


def written_answers(submission: Submission) -> dict[str, str]:
    """The text of each answer that is graded by hand; empty where the cell is gone or as it was handed out."""
    blank = {cell["id"]: cell.source.strip() for cell in student_version(submission.assignment).cells}
    answers = dict.fromkeys(submission.assignment.written, "")
    for cell in submission.cells or []:
        name, text = grade_id(cell), cell.source.strip()
        if name in answers and text != blank[name]:
            answers[name] = text
    return answers


def is_blank(submission: Submission) -> bool:
    """Whether nothing stands in any cell for an answer but what was handed out; so also where it is no notebook."""
    stubs = {
        cell["id"]: cell.source.strip()
        for cell in student_version(submission.assignment).cells
        if grading(cell).get("solution")
    }
    return all(cell.source.strip() == stubs.get(grade_id(cell), cell.source.strip()) for cell in submission.cells or [])


def other_numbers(submission: Submission, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of a student's own numbers, where that is not what they are. Read, and never run."""
    places = {cell["id"] for cell in submission.assignment.notebook.cells if "parameters" in tags(cell)}
    said: dict[str, Any] = {}
    for cell in submission.cells or []:
        if grade_id(cell) in places:
            said |= _constants(cell.source)
    return {name: said[name] for name, value in parameters.items() if said.get(name, value) != value}


def _constants(source: str) -> dict[str, Any]:
    """The plain values that a cell gives to names; empty where it can't be read."""
    try:
        lines = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found = {}
    for line in lines:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(target, ast.Name) and isinstance(getattr(line, "value", None), ast.Constant):
            found[target.id] = line.value.value  # type: ignore[attr-defined]
    return found


def _is_given(cell: Cell) -> bool:
    found = grading(cell)
    return cell.cell_type == "code" and bool(found.get("locked")) and not found.get("grade") and not _is_skipped(cell)


def _is_skipped(cell: Cell) -> bool:
    return grade_id(cell).startswith(TEST) or any(tag in NOT_RUN for tag in tags(cell))


def _files(student: Path, assignments: Sequence[Assignment]) -> list[Path]:
    """A student's files: first those with a released name, notebooks before text, then the newest."""
    names = [assignment.name for assignment in assignments]
    files = [
        path
        for path in student.rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink() and "checkpoint" not in str(path)
    ]

    def order(path: Path) -> Any:
        return path.stem not in names, SUFFIXES.index(path.suffix), -path.stat().st_mtime, str(path)

    return sorted(files, key=order)


def _read(student: str, path: Path, assignments: Sequence[Assignment]) -> Submission | None:
    """None if neither the name nor the content belongs to an assignment."""
    named = {assignment.name: assignment for assignment in assignments}
    content = path.read_bytes()[: LARGEST + 1]
    digest = hashlib.sha256(content).hexdigest()[:16]
    cells = _cells(path.suffix, content)
    assignment = named.get(path.stem) or _recognised(cells or [], assignments)
    if assignment is None:
        return None
    if cells is None:
        return Submission(student, assignment, path, _arrived(path), digest, None, ["The file is not a notebook."])
    return Submission(student, assignment, path, _arrived(path), digest, cells, list(_notes(path, cells, assignment)))


def _arrived(path: Path) -> datetime:
    try:
        written = path.with_name("timestamp.txt").read_text(encoding="utf-8").strip()
        moment = datetime.fromisoformat(written)
    except (OSError, ValueError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _cells(suffix: str, content: bytes) -> list[Cell] | None:
    """None if the content is no notebook; cells of unknown shape are dropped."""
    if len(content) > LARGEST:
        return None
    try:
        text = content.decode("utf-8")
        notebook: Any = jupytext.reads(text, fmt="py:percent") if suffix == ".py" else json.loads(text)
        cells = [nbformat.from_dict(cell) for cell in notebook["cells"] if isinstance(cell, dict)]
    except Exception:  # whatever a reader says of a broken file, it is no notebook
        return None
    for cell in cells:
        source = cell.get("source", "")
        cell["source"] = "".join(map(str, source)) if isinstance(source, list) else str(source)
        if not isinstance(cell.get("metadata"), dict):
            cell["metadata"] = nbformat.from_dict({})
    return [cell for cell in cells if cell.get("cell_type") in ("code", "markdown")]


def _recognised(cells: Sequence[Cell], assignments: Sequence[Assignment]) -> Assignment | None:
    """The assignment whose answers are most in these cells, by grade id or by cell id."""
    present = {grade_id(cell) for cell in cells}
    shared = {len(present & set(assignment.questions)): assignment for assignment in reversed(assignments)}
    best = max(shared, default=0)
    return shared[best] if best > 0 else None


def _notes(path: Path, cells: Sequence[Cell], assignment: Assignment) -> Iterator[str]:
    names = [grade_id(cell) for cell in cells]
    given = student_version(assignment).cells
    handed_out = {cell["id"]: cell.source for cell in given if "parameters" not in tags(cell)}  # see other_numbers
    if path.stem != assignment.name:
        yield f"The file has the name {path.name}; it was handed out as {assignment.name}."
    for name in assignment.questions:
        if name not in names:
            yield f"The cell of the answer {name} has lost its name or is gone; all code cells were run."
        elif names.count(name) > 1:
            yield f"The cell {name} is there {names.count(name)} times; all were run, so the last one counts."
        if TEST + name not in names:
            yield f"The examples below {name} are gone, which changes nothing in the grading."
    for cell in cells:
        name = grade_id(cell)
        if cell.source.strip() != handed_out.get(name, cell.source).strip() and grading(cell).get("locked"):
            yield f"The locked cell {name} was changed; it was graded as it was handed out."
