"""Masters: assignments with their solutions, as percent notebooks; and what a student gets of them.

A cell says what it is by nbgrader's metadata, of which a master gives only what differs from the defaults:

- answer, `{"grade_id": "noise-scale", "solution": true}`: between BEGIN SOLUTION and END SOLUTION stands the solution
- test, `{"grade_id": "test-noise-scale", "grade": true, "locked": true, "points": 3}`: examples that a student may run;
  it carries the points of the answer, which hidden checks of the name `noise-scale` give
- written, a text cell with `{"grade_id": "why", "grade": true, "solution": true, "points": 2}`: graded by hand
- given, `{"grade_id": "given-data", "locked": true}`: put back as it was before grading
- a cell with the tag `parameters`: a student's own numbers; with the tag `explore`: not run when graded
"""

import copy
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jupytext

ROOT = Path(__file__).resolve().parent.parent.parent
MASTERS = ROOT / "notebooks" / "coursework"
TEST = "test-"  # before the name of a question: its test cell
STUBS = {"code": "# YOUR CODE HERE\nraise NotImplementedError()", "markdown": "YOUR ANSWER HERE"}  # nbgrader's
REGION = re.compile(r"^([ \t]*)### BEGIN SOLUTION[^\n]*\n(.*?)^[ \t]*### END SOLUTION[^\n]*$", re.MULTILINE | re.DOTALL)
HIDDEN = re.compile(r"^[ \t]*### BEGIN HIDDEN TESTS.*?^[ \t]*### END HIDDEN TESTS[^\n]*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## (.+?)(?: \([^()]*points?\))?$", re.MULTILINE)
DEFAULTS = {"grade": False, "locked": False, "schema_version": 3, "solution": False, "task": False}
EPSILONS = (0.5, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0)

Cell = Any  # of nbformat
Notebook = Any


class CourseworkError(ValueError):
    """A master, a submission or an option is not as it should be. One line: expected, got, the way out."""


@dataclass(frozen=True)
class Assignment:
    """A master as read. ``name``: of its file, such as "1-gaussian"; ``notebook``: with solutions."""

    name: str
    notebook: Notebook
    digest: str

    @cached_property
    def title(self) -> str:
        return re.findall(r"^# (.+)$", self.notebook.cells[0].source, re.MULTILINE)[0]

    @cached_property
    def questions(self) -> dict[str, float]:
        """Points of what is graded automatically, by name of the answer, in the order of the notebook."""
        return {
            name.removeprefix(TEST): grading["points"] for name, grading in self._graded() if not grading["solution"]
        }

    @cached_property
    def written(self) -> dict[str, float]:
        """Points of what is graded by hand, by name."""
        return {name: grading["points"] for name, grading in self._graded() if grading["solution"]}

    @cached_property
    def headings(self) -> dict[str, str]:
        """The heading over each cell, without its points, by name of the cell."""
        found, heading = {}, self.title
        for cell in self.notebook.cells:
            if cell.cell_type == "markdown":
                heading = [heading, *HEADING.findall(cell.source)][-1]
            found[grade_id(cell)] = heading
        return found

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The defaults of its parameters cell."""
        for cell in self.notebook.cells:
            if "parameters" in tags(cell):
                values: dict[str, Any] = {}
                exec(cell.source, values)
                return {name: value for name, value in values.items() if not name.startswith("__")}
        return {}

    def student_parameters(self, student: str, secret: str | None) -> dict[str, Any]:
        """ε and seed of one student: the same from everyone who knows the secret, unknown to all others.

        Without a secret, the defaults of the master.
        """
        if secret is None:
            return self.parameters
        drawn = hmac.new(secret.encode(), f"{self.name}/{student}".encode(), hashlib.sha256).digest()
        own = {"epsilon": EPSILONS[drawn[0] % len(EPSILONS)], "seed": int.from_bytes(drawn[1:4], "big")}
        return self.parameters | {name: value for name, value in own.items() if name in self.parameters}

    def _graded(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for cell in self.notebook.cells:
            if grading(cell).get("grade"):
                yield grade_id(cell), grading(cell)


def tags(cell: Cell) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def grading(cell: Cell) -> dict[str, Any]:
    """nbgrader's metadata of a cell; empty where it has none."""
    found = cell.metadata.get("nbgrader", {})
    return dict(found) if isinstance(found, Mapping) else {}


def grade_id(cell: Cell) -> str:
    """The name of a cell: its grade id, or else its cell id, which a release makes the same."""
    return str(grading(cell).get("grade_id") or cell.get("id", ""))


def read(path: Path) -> Assignment:
    """Read a master and complete its metadata.

    Raises:
        CourseworkError: two cells have one name, points are missing, or a test has no answer before it.
    """
    notebook = jupytext.read(path)
    notebook.metadata = type(notebook.metadata)(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"},
        language_info={"name": "python"},
    )
    names: list[str] = []
    for position, cell in enumerate(notebook.cells):
        cell.metadata.pop("lines_to_next_cell", None)
        found = grading(cell)
        if found:
            cell.metadata["nbgrader"] = {**DEFAULTS, "cell_type": cell.cell_type, **found}
        cell["id"] = found.get("grade_id") or f"cell-{position:02d}"
        names.append(cell["id"])
        if found.get("grade") and not found.get("points", 0) > 0:
            raise CourseworkError(f"{path.name}: expected points above 0 in the cell {cell['id']}")
        answer = cell["id"].removeprefix(TEST)
        if found.get("grade") and not found.get("solution") and (answer == cell["id"] or answer not in names):
            raise CourseworkError(f"{path.name}: expected the cell {cell['id']} after an answer, as test-ANSWER")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CourseworkError(f"{path.name}: expected each grade_id once, got {twice[0]} again: rename one")
    return Assignment(path.stem, notebook, hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def read_all(folder: Path = MASTERS) -> list[Assignment]:
    """All masters of a folder, in the order of their names.

    Raises:
        CourseworkError: there is none.
    """
    found = [read(path) for path in sorted(folder.glob("*-*.py"))]
    if not found:
        raise CourseworkError(f"expected masters named N-name.py in {folder}, found none")
    return found


def without_solutions(cell: Cell) -> str:
    """A cell's source as a student gets it: stubs in place of solutions, no hidden tests."""
    source = HIDDEN.sub("", cell.source).rstrip("\n") if HIDDEN.search(cell.source) else cell.source
    if not grading(cell).get("solution"):
        return source
    stub = STUBS[cell.cell_type]

    def indented(found: re.Match[str]) -> str:
        return "\n".join(found[1] + line for line in stub.splitlines())

    return REGION.sub(indented, source) if REGION.search(source) else stub


def student_version(assignment: Assignment) -> Notebook:
    """The notebook without solutions; each cell's id is its grade id, so that two releases are the same."""
    notebook = copy.deepcopy(assignment.notebook)
    for cell in notebook.cells:
        cell.source = without_solutions(cell)
    return notebook


def solutions(assignment: Assignment) -> list[str]:
    """What must not be in a release: the text of every solution and hidden test of a master."""
    texts = []
    for cell in assignment.notebook.cells:
        texts += [found[0] for found in HIDDEN.finditer(cell.source)]
        if grading(cell).get("solution"):
            texts += [found[2] for found in REGION.finditer(cell.source)] or [cell.source]
    return texts
