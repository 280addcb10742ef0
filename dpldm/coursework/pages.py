"""The assignments as pages of the book: without solutions, and the solutions on a page of their own.

A page has a comment where the text belongs; `book/_ext/coursework_pages.py` replaces it when the book is built. So the
book has no second copy of a master, and a page that is taken out of `_toc.yml` is not made.
"""

import re
from collections.abc import Iterator, Sequence

from dpldm.coursework.masters import Assignment, Cell, Notebook, grade_id, grading, student_version

MARKER = re.compile(r"^<!-- coursework: (\S+) -->$", re.MULTILINE)
SOLUTION_LINES = re.compile(r"^[ \t]*### (?:BEGIN|END) SOLUTION[^\n]*\n?", re.MULTILINE)
FACT = re.compile(r"\*\*(Difficulty|Time|Points)\*\*: ([^.,]+)")


def filled(text: str, assignments: Sequence[Assignment]) -> str:
    """A page with every `<!-- coursework: NAME -->` replaced; NAME: of an assignment, or `table`, or `solutions`.

    Raises:
        KeyError: another name.
    """
    whole = {one.name: markdown(student_version(one)) for one in assignments}
    whole |= {"table": table(assignments), "solutions": "\n\n".join(map(solutions, assignments))}
    return MARKER.sub(lambda found: whole[found[1]], text)


def markdown(notebook: Notebook) -> str:
    """A notebook as the text of a page: code in blocks, nothing of it is run."""
    return "\n\n".join(map(_block, notebook.cells))


def table(assignments: Sequence[Assignment]) -> str:
    """A row for each assignment, with what its first cell says."""
    lines = ["| assignment | difficulty | time | points |", "|---|---|---|---|"]
    for one in assignments:
        facts = dict(FACT.findall(one.notebook.cells[0].source))
        title = one.title.partition(": ")[2]
        number = one.name.partition("-")[0]
        line = [f"[{number}. {title}]({one.name}.md)", facts["Difficulty"], facts["Time"], facts["Points"]]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def solutions(assignment: Assignment) -> str:
    """The answers of one assignment under the headings of their questions, with the rubrics of written ones."""
    return "\n\n".join([f"## {assignment.title}", *_answers(assignment)])


def _answers(assignment: Assignment) -> Iterator[str]:
    for cell in assignment.notebook.cells:
        if grading(cell).get("solution"):
            yield f"### {assignment.headings[grade_id(cell)]}"
            yield _block(cell)


def _block(cell: Cell) -> str:
    if cell.cell_type == "markdown":
        return cell.source
    return f"```python\n{SOLUTION_LINES.sub('', cell.source).rstrip()}\n```"
