"""What comes out of grading: tables for the instructor, a page for each student, a summary for each question."""

import csv
import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dpldm.coursework.grading import Graded
from dpldm.coursework.late import Lateness
from dpldm.coursework.masters import Assignment, CourseworkError
from dpldm.coursework.sandbox import protections

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid #8886; }
td.points { white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; }
td, p, li { overflow-wrap: anywhere; }
.right { border-left: .3rem solid #2a7d46; } .part { border-left: .3rem solid #b7791f; }
.wrong { border-left: .3rem solid #b3261e; }
"""
WRITTEN = ("assignment", "student", "question", "of", "points", "comment", "answer")

Row = dict[str, Any]
Key = tuple[str, str, str]


def write_all(
    graded: Sequence[Graded],
    assignments: Sequence[Assignment],
    late: Mapping[tuple[str, str], Lateness],
    folder: Path,
) -> list[Path]:
    """Write grades.csv, questions.csv, written.csv, summary.html and feedback/STUDENT/ASSIGNMENT.html.

    written.csv is the place to grade by hand: its points and comments are kept and counted the next time.

    Raises:
        CourseworkError: points in written.csv are no number between 0 and what the answer is worth.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = written_rows(graded, assignments, folder / "written.csv")
    by_hand: dict[tuple[str, str], list[Row]] = {}
    for row in written:
        by_hand.setdefault((row["student"], row["assignment"]), []).append(row)
    totals = [total_row(each, by_hand.get((each.student, each.assignment), []), late) for each in graded]
    files = [folder / name for name in ("grades.csv", "questions.csv", "written.csv", "summary.html")]
    _write_table(files[0], totals)
    _write_table(files[1], question_rows(graded))
    _write_table(files[2], written)
    files[3].write_text(summary(graded), encoding="utf-8")
    for each, total in zip(graded, totals, strict=True):
        path = folder / "feedback" / each.student / f"{each.assignment}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        assignment = next(one for one in assignments if one.name == each.assignment)
        path.write_text(feedback(each, assignment, total, by_hand.get((each.student, each.assignment), [])), "utf-8")
        files.append(path)
    return files


def question_rows(graded: Iterable[Graded]) -> list[Row]:
    """One row per student and answer."""
    return [
        {
            "assignment": each.assignment,
            "student": each.student,
            "question": result.question,
            "points": round(result.points, 2),
            "of": result.of,
            "feedback": " ".join(result.sentences),
        }
        for each in graded
        for result in each.results
    ]


def total_row(graded: Graded, by_hand: Sequence[Row], late: Mapping[tuple[str, str], Lateness]) -> Row:
    """One row per student and assignment. ``total``: with late days; ``complete``: whether all is graded by hand."""
    lateness = late.get((graded.student, graded.assignment), Lateness())
    automatic, given = graded.points, [float(row["points"]) for row in by_hand if row["points"] != ""]
    of = sum(result.of for result in graded.results) + sum(float(row["of"]) for row in by_hand)
    return {
        "assignment": graded.assignment,
        "student": graded.student,
        "automatic": round(automatic, 2),
        "written": round(sum(given), 2),
        "late_days": lateness.days,
        "free_late_days": lateness.free,
        "total": round((automatic + sum(given)) * lateness.factor, 2),
        "of": of,
        "complete": "yes" if len(given) == len(by_hand) else "no",
        "seconds": graded.seconds,
        "protection": "sandbox" if graded.walls else "LIMITS ONLY",
    }


def written_rows(graded: Iterable[Graded], assignments: Sequence[Assignment], path: Path) -> list[Row]:
    """The written answers with their points: empty until someone fills them in, 0 where nothing was written.

    Points that were given before stay as long as the answer is the same.
    """
    points = {(one.name, question): of for one in assignments for question, of in one.written.items()}
    before = read_written(path)
    rows = []
    for each in graded:
        for question, answer in each.written.items():
            of = points[each.assignment, question]
            old = before.get((each.assignment, each.student, question), {})
            same = old.get("answer") == answer
            row = {"assignment": each.assignment, "student": each.student, "question": question, "of": of}
            row["points"] = _valid(old.get("points", ""), of, path) if same else ""
            row["comment"] = old.get("comment", "") if same else ""
            if not answer and row["points"] == "":
                row["points"] = 0
            rows.append(row | {"answer": answer})
    return rows


def read_written(path: Path) -> dict[Key, Row]:
    """The rows of written.csv by assignment, student and question; empty if it is not there yet."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{key: _plain(value or "") for key, value in row.items() if key} for row in csv.DictReader(file)]
    if rows and not set(WRITTEN) <= set(rows[0]):
        raise CourseworkError(f"expected the columns {', '.join(WRITTEN)} in {path}, got {', '.join(rows[0])}")
    return {(row["assignment"], row["student"], row["question"]): row for row in rows}


def feedback(graded: Graded, assignment: Assignment, total: Row, by_hand: Sequence[Row]) -> str:
    """A student's page: points and sentences, nothing of the hidden checks, nothing from elsewhere.

    Questions have the headings of the notebook, in which names of cells are not to be seen.
    """
    so_far = " so far; written answers are not graded yet" if total["complete"] == "no" else ""
    if total["late_days"]:
        so_far += f"; {total['late_days']} days late, {total['free_late_days']} of them free"
    points = f"<b>{total['total']:g} of {total['of']:g} points</b>"
    lines = [
        f"<p>{html.escape(graded.student)}: {points}{so_far}.</p>",
        "<table><thead><tr><th>Question</th><th>Points</th><th>What was found</th></tr></thead><tbody>",
    ]
    for result in graded.results:
        kind = "right" if result.points >= result.of else "part" if result.points > 0 else "wrong"
        said = "<br>".join(map(html.escape, result.sentences)) or "Right."
        heading = assignment.headings[result.question]
        lines.append(_row(kind, heading, f"{result.points:g} / {result.of:g}", said))
    for row in by_hand:
        share = float(row["points"] or 0) / float(row["of"])
        kind = "right" if share == 1 else "part" if share or row["points"] == "" else "wrong"
        mark = f"{row['points'] if row['points'] != '' else '…'} / {row['of']:g}"
        default = "Nothing was written." if not row["answer"] else "Graded by hand."
        said = html.escape(row["comment"]) or ("Not graded yet." if row["points"] == "" else default)
        lines.append(_row(kind, assignment.headings[row["question"]], mark, said))
    lines.append("</tbody></table>")
    lines.append(f"<h2>About the file</h2><p>Graded: {html.escape(graded.file)}.</p>")
    if graded.notes:
        lines.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in graded.notes) + "</ul>")
    return _page(assignment.title, "\n".join(lines))


def summary(graded: Sequence[Graded]) -> str:
    """How each question went: mean share of the points, how many have all and none, the commonest sentences."""
    parts = []
    for name in sorted({each.assignment for each in graded}):
        those = [each for each in graded if each.assignment == name]
        parts += [f"<h2>{html.escape(name)}: {len(those)} handed in</h2>"]
        parts += [
            "<table><thead><tr><th>Question</th><th>Mean</th><th>Full, no points</th><th>Commonest</th></tr></thead>"
        ]
        parts += ["<tbody>"]
        for results in zip(*(each.results for each in those), strict=True):
            shares = [result.points / result.of for result in results]
            said = Counter(sentence for result in results for sentence in result.sentences).most_common(4)
            common = "<br>".join(f"{count} × {html.escape(sentence)}" for sentence, count in said)
            cells = f'<td class="points">{fmean(shares):.0%}</td><td class="points">'
            cells += (
                f"{sum(share >= 1 for share in shares)}, {sum(share == 0 for share in shares)}</td><td>{common}</td>"
            )
            parts.append(f"<tr><td>{html.escape(results[0].question)}</td>{cells}</tr>")
        parts += ["</tbody></table>"]
    walls = all(each.walls for each in graded)
    return _page("Summary", "\n".join([*parts, f"<p>Graded with: {html.escape(protections(walls))}.</p>"]))


def _row(kind: str, question: str, points: str, said: str) -> str:
    cells = f'<td class="{kind}">{html.escape(question)}</td><td class="points">{points}</td><td>{said}</td>'
    return f"<tr>{cells}</tr>"


def _page(title: str, body: str) -> str:
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n'
        f"<body><main><h1>{html.escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def _valid(points: str, of: float, path: Path) -> float | str:
    if points == "":
        return ""
    try:
        value = float(points)
    except ValueError:
        value = -1.0
    if not 0 <= value <= of:
        raise CourseworkError(f"expected points between 0 and {of:g} in {path}, got {points!r}")
    return value


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]) if rows else [])
        table.writeheader()
        table.writerows([{key: _safe(value) for key, value in row.items()} for row in rows])


def _safe(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets a quote before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _plain(value: str) -> str:
    return value[1:] if value[:1] == "'" and value[1:2] in ("=", "+", "-", "@", "\t", "\r") else value
