"""`python -m dpldm.coursework release` and `python -m dpldm.coursework grade FOLDER`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpldm.coursework import checks, grading, late, reports, sandbox, submissions
from dpldm.coursework.masters import MASTERS, ROOT, Assignment, CourseworkError, read_all
from dpldm.coursework.release import release

OUTPUT = ROOT / "runs" / "coursework"


def parser() -> argparse.ArgumentParser:
    """The commands `release` and `grade` with their options."""
    top = argparse.ArgumentParser(prog="python -m dpldm.coursework", description="Hand out and grade assignments.")
    commands = top.add_subparsers(dest="command", required=True)
    out = commands.add_parser("release", help="write the assignments without solutions")
    out.add_argument("--students", type=Path, metavar="FILE", help="one name a line: a folder for each")
    out.add_argument("--to", type=Path, default=OUTPUT / "release", help="folder (default: %(default)s)")
    back = commands.add_parser("grade", help="grade FOLDER/STUDENT/FILE, write tables and feedback")
    back.add_argument("folder", type=Path, metavar="FOLDER")
    back.add_argument("--to", type=Path, default=OUTPUT / "grades", help="folder (default: %(default)s)")
    back.add_argument("--workers", type=int, default=2, help="submissions at a time (default: %(default)s)")
    back.add_argument("--due", action="append", default=[], metavar="NAME=DATE", help="1-gaussian=2026-12-01T23:59")
    back.add_argument(
        "--free-late-days", type=int, default=0, metavar="N", help="of each student, over all assignments"
    )
    back.add_argument("--late-penalty", type=float, default=0.1, metavar="SHARE", help="of the points, for each day")
    back.add_argument("--without-sandbox", action="store_true", help="grade where namespaces can't be had")
    for command in (out, back):
        command.add_argument("--private", type=Path, metavar="FOLDER", help="with masters/ and checks/ of your own")
        command.add_argument("--secret", type=Path, metavar="FILE", help="each student's numbers follow from it")
    return top


def places(private: Path | None) -> tuple[Path, Path]:
    """The folders of masters and checks: the repository's, or an instructor's own where they exist."""
    if private is None:
        return MASTERS, checks.CHECKS
    if not private.is_dir():
        raise CourseworkError(f"expected a folder with masters/ or checks/, found none at {private}")
    own = private / "masters", private / "checks"
    return own[0] if own[0].is_dir() else MASTERS, own[1] if own[1].is_dir() else checks.CHECKS


def secret_of(file: Path | None) -> str | None:
    """The secret that a file holds; None without one.

    Raises:
        CourseworkError: it is too short to be one.
    """
    if file is None:
        return None
    text = file.read_text(encoding="utf-8").strip()
    if len(text) < 16:
        raise CourseworkError(f"expected a secret of 16 characters or more in {file}, got {len(text)}")
    return text


def hand_out(given: argparse.Namespace, assignments: Sequence[Assignment], check_folder: Path) -> None:
    """Write the assignments without solutions."""
    lines = given.students.read_text(encoding="utf-8").splitlines() if given.students else []
    students = [line.strip() for line in lines if line.strip()]
    sources = [checks.source_of(one.name, check_folder) for one in assignments]
    hidden = [source.read_text(encoding="utf-8") for source in sources if source.exists()]
    files = release(assignments, given.to, students, secret_of(given.secret), hidden)
    print(f"{len(files)} files in {given.to}; no line of a solution or hidden check is in them")


def take_back(given: argparse.Namespace, assignments: Sequence[Assignment], check_folder: Path) -> None:
    """Grade what students handed in, and write points, feedback and summary."""
    if not given.folder.is_dir():
        raise CourseworkError(f"expected a folder with a folder for each student, found none at {given.folder}")
    due = late.parse_due(given.due, [one.name for one in assignments])
    walls = not given.without_sandbox
    reason = sandbox.why_no_walls() if walls else ""
    if reason:
        raise CourseworkError(f"no sandbox on this machine ({reason}): grade on Linux, or give --without-sandbox")
    print(f"protection: {sandbox.protections(walls)}", flush=True)
    found, left_out = submissions.find(given.folder, assignments)
    for line in left_out:
        print(f"left out: {line}")
    secret = secret_of(given.secret)
    numbers = [one.assignment.student_parameters(one.student, secret) for one in found]
    other = [one for one, own in zip(found, numbers, strict=True) if submissions.other_numbers(one, own)]
    if other:
        first = f"{other[0].student}, {other[0].assignment.name}"
        print(f"{len(other)} of {len(found)} files have other numbers than their students (first: {first}):")
        print("  is the secret that of the release? With another one, answers typed as numbers are judged wrongly.")
    graded = grading.grade_all(found, given.to / "points", check_folder, secret, walls, given.workers)
    lateness = late.lateness(found, late.Policy(due, given.free_late_days, given.late_penalty))
    reports.write_all(graded, assignments, lateness, given.to)
    print(
        f"{len(graded)} submissions graded: {given.to / 'grades.csv'}, summary.html, feedback/, written.csv to fill in"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 1 after one line that says what is wrong."""
    given = parser().parse_args(words)
    try:
        masters, check_folder = places(given.private)
        (hand_out if given.command == "release" else take_back)(given, read_all(masters), check_folder)
    except (CourseworkError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
