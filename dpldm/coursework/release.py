"""What is handed out: assignments without solutions, as .ipynb and as percent files, checked line by line."""

import copy
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from dpldm.coursework.masters import (
    DEFAULTS,
    Assignment,
    CourseworkError,
    Notebook,
    grading,
    solutions,
    student_version,
    tags,
)

STUDENT = re.compile(r"[\w.@+-]{1,64}")
IMPORT = re.compile(r"(from [\w.]+ )?import \w")
SHORTEST = 12  # characters; shorter lines, such as `return` or `]`, tell nothing


def release(
    assignments: Sequence[Assignment],
    folder: Path,
    students: Sequence[str] = (),
    secret: str | None = None,
    hidden: Iterable[str] = (),
) -> list[Path]:
    """Write every assignment into a folder; with students, into a folder for each, with numbers of their own.

    Args:
        secret: from which a student's ε and seed follow; needed with students.
        hidden: sources of hidden checks; none of their lines may be handed out.

    Returns:
        The files, in order: a release of the same masters writes the same bytes.

    Raises:
        CourseworkError: a line of a solution or of a hidden check would be handed out, or a name is no name.
    """
    if students and not secret:
        raise CourseworkError("expected a secret with a list of students, got none: give --secret FILE")
    hidden = list(hidden)
    written = []
    for student in students or [""]:
        if student and not STUDENT.fullmatch(student):
            raise CourseworkError(f"expected a student's name of letters, digits and . @ + - _, got {student!r}")
        for assignment in assignments:
            notebook = student_version(assignment)
            if student:
                notebook = with_parameters(notebook, assignment.student_parameters(student, secret))
            check_nothing_leaks(assignment, notebook, hidden)
            written += write(notebook, folder / student / assignment.name)
    return written


def write(notebook: Notebook, path: Path) -> list[Path]:
    """Write a notebook as path.ipynb and path.py."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.ipynb"), path.with_name(f"{path.name}.py")]
    files[0].write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    files[1].write_text(percent(notebook), encoding="utf-8")
    return files


def percent(notebook: Notebook) -> str:
    """A notebook as percent text, which keeps the grade ids and needs no JupyterLab to be edited."""
    plain = copy.deepcopy(notebook)
    for cell in plain.cells:
        cell.metadata["nbgrader"] = {
            name: value for name, value in grading(cell).items() if name != "cell_type" and DEFAULTS.get(name) != value
        }
    plain.metadata["jupytext"] = {"notebook_metadata_filter": "kernelspec,-all"}
    return jupytext.writes(plain, fmt="py:percent")


def with_parameters(notebook: Notebook, values: dict[str, Any]) -> Notebook:
    """Put values in, written as papermill writes them, in place of the defaults."""
    from papermill.translators import translate_parameters

    filled = copy.deepcopy(notebook)
    for cell in filled.cells:
        if "parameters" in tags(cell):
            cell.source = translate_parameters("python3", "python", values, "Your own numbers: keep them").strip()
    return filled


def check_nothing_leaks(assignment: Assignment, notebook: Notebook, hidden: Iterable[str] = ()) -> None:
    """No line of a solution or of a hidden check is in what is handed out.

    A line that also stands in the public part of the master is no secret, nor is an import.

    Raises:
        CourseworkError: names the line.
    """
    public = {line for cell in student_version(assignment).cells for line in _lines(cell.source)}
    private = {line for text in solutions(assignment) for line in _lines(text)} - public
    private |= {line for text in hidden for line in _lines(text)} - public
    given = nbformat.writes(notebook) + percent(notebook)
    handed_out = {line for cell in notebook.cells for line in _lines(cell.source)}
    for line in sorted(private):
        if line in handed_out or line in given:
            raise CourseworkError(f"{assignment.name}: a line of a solution or hidden check is handed out: {line!r}")


def _lines(text: str) -> list[str]:
    lines = [line for line in map(str.strip, text.splitlines()) if len(line) >= SHORTEST]
    return [line for line in lines if not IMPORT.match(line)]
