"""Coursework: what is handed out, how it is judged, and that a hostile submission harms nobody.

The checks are tested without a sandbox, in this process, on many right and wrong answers; the sandbox on short hostile
programs; all of it together on all prepared submissions in a slow test.
"""

import copy
import csv
import hashlib
import json
import math
import re
import resource
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import mistakes
import nbformat
import numpy as np
import pytest
import submissions as prepared

from dpldm.coursework import __main__ as command
from dpldm.coursework import checks, grading, late, masters, pages, release, reports, sandbox, submissions, worker
from dpldm.coursework.__main__ import main
from dpldm.coursework.checks import Answer, Broken, Finding, Student, judge
from dpldm.coursework.masters import CourseworkError
from dpldm.coursework.sandbox import Limits, Sandbox, Stopped

ROOT = Path(__file__).resolve().parent.parent
ALL = masters.read_all()
SECRET = "a secret of the tests, 32 signs ok"
QUICK = Limits(cell_seconds=3.0, all_seconds=20.0)
PREPARED = prepared.prepare()
needs_walls = pytest.mark.skipif(bool(sandbox.why_no_walls()), reason="no namespaces on this machine")


def student_of(cells: list[tuple[str, str]], parameters: dict) -> Student:
    """A submission that runs here, without a sandbox: only for what these tests wrote themselves."""
    namespace = {"__name__": "__main__", "get_ipython": worker.NoShell}
    for wish in ({"set": parameters}, *({"run": source, "where": name} for name, source in cells)):
        worker.answer(json.loads(json.dumps(wish)), namespace)
    return Student(lambda wish: json.loads(worker.answer(json.loads(json.dumps(wish)), namespace)), parameters)


def results_of(assignment: masters.Assignment, cells: list[tuple[str, str]], parameters: dict) -> dict:
    student, questions = student_of(cells, parameters), checks.load(assignment.name)
    return {name: grading.judged(name, questions[name], student, of) for name, of in assignment.questions.items()}


def read_prepared(folder: Path, *names: str) -> list[submissions.Submission]:
    prepared.write(folder, {name: PREPARED[name] for name in names})
    found, left_out = submissions.find(folder, ALL)
    assert not left_out
    return found


# ---- masters and releases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assignment", ALL, ids=lambda one: one.name)
def test_points_of_an_assignment_are_what_its_text_says(assignment):
    text = "\n".join(cell.source for cell in assignment.notebook.cells if cell.cell_type == "markdown")
    automatic, written = sum(assignment.questions.values()), sum(assignment.written.values())
    assert f"**Points**: {automatic + written:g}, of which {written:g} are for" in text
    said = [float(number) for number in prepared.POINTS.findall(text)]
    assert sum(said) == automatic + written
    assert 0.07 <= written / (automatic + written) <= 0.13
    for word in ("**Difficulty**", "**Time**", "At the end you can", "no solution in this book"):
        assert word in text


@pytest.mark.parametrize(
    "assignment",
    [pytest.param(one, marks=[pytest.mark.slow] if one.name == "3-diffusion" else []) for one in ALL],
    ids=lambda one: one.name,
)
def test_the_solution_gets_all_points_with_any_students_numbers(assignment):
    """Also: the points that a check can give are those that the notebook promises."""
    cells = [
        (cell["id"], cell.source)
        for cell in assignment.notebook.cells
        if cell.cell_type == "code" and not submissions._is_skipped(cell)
    ]
    for secret in (None, SECRET):
        for result in results_of(assignment, cells, assignment.student_parameters("mei", secret)).values():
            assert result.sentences == []
            assert result.points == result.of, result.question


@pytest.mark.parametrize("assignment", ALL, ids=lambda one: one.name)
def test_what_is_handed_out_gets_no_points(assignment, tmp_path):
    release.release([assignment], tmp_path / "blank")
    (tmp_path / "blank" / f"{assignment.name}.py").unlink()
    ((found,), _) = submissions.find(tmp_path, ALL)
    results = results_of(assignment, submissions.to_run(found), assignment.parameters)
    assert all(result.points == 0 and result.sentences for result in results.values())
    assert all(answer == "" for answer in submissions.written_answers(found).values())


@pytest.mark.parametrize("assignment", ALL, ids=lambda one: one.name)
def test_time_follows_from_difficulty_and_points_as_the_page_says(assignment):
    page = (ROOT / "book" / "coursework" / "index.md").read_text()
    minutes = {word: (int(low), int(high)) for word, low, high in re.findall(r"(easy|medium|hard) (\d) to (\d)", page)}
    facts = dict(pages.FACT.findall(assignment.notebook.cells[0].source))
    low, high = (each * float(facts["Points"]) / 30 for each in minutes[facts["Difficulty"]])
    hours = [str(halves // 2) + "½" * (halves % 2) for halves in (math.floor(low), math.ceil(high))]
    assert facts["Time"] == " to ".join(hours) + " hours"


@pytest.mark.parametrize("assignment", ALL, ids=lambda one: one.name)
def test_chapters_to_read_before_have_the_names_that_the_book_gives_them(assignment):
    titles = {re.findall(r"^# # (.+)$", path.read_text(), re.M)[0] for path in (ROOT / "notebooks").glob("*.py")}
    named = re.findall(r"“(.+?)”", assignment.notebook.cells[0].source)
    assert len(named) > 1
    assert set(named) <= titles | {"Coursework"}


@pytest.mark.parametrize("assignment", ALL, ids=lambda one: one.name)
def test_every_answer_has_a_heading_of_its_own(assignment):
    headings = [assignment.headings[name] for name in (*assignment.questions, *assignment.written)]
    numbers = [heading.partition(":")[0] for heading in headings]
    assert numbers == [f"Question {number}" for number in range(1, len(headings) + 1)]
    assert not any("point" in heading for heading in headings)


def test_release_is_reproducible_and_reads_the_same_from_both_files(tmp_path):
    first = [path.read_bytes() for path in release.release(ALL, tmp_path / "first")]
    second = [path.read_bytes() for path in release.release(ALL, tmp_path / "second")]
    assert first == second
    for assignment in ALL:
        for suffix in (".ipynb", ".py"):
            folder = tmp_path / suffix / "mei"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{assignment.name}{suffix}").write_bytes(
                (tmp_path / "first" / f"{assignment.name}{suffix}").read_bytes()
            )
    by_suffix = [submissions.find(tmp_path / suffix, ALL)[0] for suffix in (".ipynb", ".py")]
    assert [submissions.to_run(one) for one in by_suffix[0]] == [submissions.to_run(one) for one in by_suffix[1]]


def test_release_is_a_valid_notebook_for_nbgrader(tmp_path):
    release.release(ALL, tmp_path)
    for assignment in ALL:
        notebook = nbformat.read(tmp_path / f"{assignment.name}.ipynb", 4)
        nbformat.validate(notebook)
        assert [cell["id"] for cell in notebook.cells] == [cell["id"] for cell in assignment.notebook.cells]
        answers = [cell for cell in notebook.cells if masters.grading(cell).get("solution")]
        assert all(masters.STUBS[cell.cell_type].splitlines()[-1] in cell.source for cell in answers)


@pytest.mark.parametrize("assignment", ALL, ids=lambda one: one.name)
def test_nbgrader_makes_the_same_release_of_a_master(assignment):
    """A second way to the student's version, where the extra `coursework` is installed."""
    preprocessors = pytest.importorskip("nbgrader.preprocessors", reason="needs the extra coursework (nbgrader)")
    from nbgrader.nbgraderformat import MetadataValidator

    notebook = copy.deepcopy(assignment.notebook)
    MetadataValidator().validate_nb(notebook)
    for name in ("ClearSolutions", "ClearHiddenTests"):
        notebook, _ = getattr(preprocessors, name)().preprocess(notebook, {})
    ours = masters.student_version(assignment)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in ours.cells]


@pytest.mark.parametrize("where", ["solution", "hidden check"])
def test_release_refuses_to_hand_out_a_line_that_is_secret(tmp_path, where):
    assignment = ALL[0]
    secret = masters.solutions(assignment)[0] if where == "solution" else "assert sigma == secret_value"
    notebook = masters.student_version(assignment)
    notebook.cells[3].source += "\n" + secret
    with pytest.raises(CourseworkError, match="handed out"):
        release.check_nothing_leaks(assignment, notebook, [secret])


def test_all_assignments_can_be_handed_out_beside_all_hidden_checks(tmp_path, capsys):
    """An import that a hidden check shares with a longer one in a master tells nothing."""
    assert main(["release", "--to", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == 2 * len(ALL), capsys.readouterr()


def test_each_student_gets_own_numbers_that_only_the_secret_tells(tmp_path):
    release.release(ALL[:1], tmp_path, ["mei", "noor"], SECRET)
    texts = {name: (tmp_path / name / "1-gaussian.py").read_text() for name in ("mei", "noor")}
    own = {name: ALL[0].student_parameters(name, SECRET) for name in texts}
    assert own["mei"] != own["noor"] != ALL[0].student_parameters("noor", SECRET + "!")
    for name, text in texts.items():
        assert f"epsilon = {own[name]['epsilon']}" in text
        assert f"seed = {own[name]['seed']}" in text
        assert "epsilon: float = 1.0" not in text
    before = (tmp_path / "mei" / "1-gaussian.ipynb").read_bytes()
    release.release(ALL[:1], tmp_path, ["mei"], SECRET)
    assert (tmp_path / "mei" / "1-gaussian.ipynb").read_bytes() == before


def test_a_list_of_students_has_one_name_a_line(tmp_path, capsys):
    (tmp_path / "secret").write_text(SECRET)
    words = ["release", "--secret", str(tmp_path / "secret"), "--to", str(tmp_path / "out"), "--students"]
    (tmp_path / "names").write_text("mei\n\n  noor \n")
    assert main([*words, str(tmp_path / "names")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mei", "noor"]
    (tmp_path / "names").write_text("Ada Lovelace\n")
    assert main([*words, str(tmp_path / "names")]) == 1
    assert "got 'Ada Lovelace'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b"])
def test_release_refuses_a_name_that_is_no_name(tmp_path, name):
    with pytest.raises(CourseworkError, match="expected a"):
        release.release(ALL[:1], tmp_path, [name or "/"], SECRET)


def test_a_master_with_a_cell_twice_or_without_points_is_refused(tmp_path):
    text = (masters.MASTERS / "1-gaussian.py").read_text()
    path = tmp_path / "1-gaussian.py"
    path.write_text(text.replace('"grade_id": "test-clip-rows"', '"grade_id": "test-noise-std"'))
    with pytest.raises(CourseworkError, match="each grade_id once, got test-noise-std"):
        masters.read(path)
    path.write_text(text.replace('"locked": true, "points": 3', '"locked": true, "points": 0'))
    with pytest.raises(CourseworkError, match="points above 0"):
        masters.read(path)


def test_pages_of_the_book_show_questions_and_only_one_of_them_solutions():
    book_pages = {path.stem: path.read_text() for path in (ROOT / "book" / "coursework").glob("*.md")}
    assert set(book_pages) == {one.name for one in ALL} | {"index", "instructor", "solutions"}
    made = {name: pages.filled(text, ALL) for name, text in book_pages.items()}
    assert not any(pages.MARKER.search(text) for text in made.values())
    for assignment in ALL:
        assert f"# {assignment.title}" in made[assignment.name]
        assert f"]({assignment.name}.md)" in made["index"]
        public = masters.student_version(assignment)
        secret = {line for text in masters.solutions(assignment) for line in release._lines(text)}
        secret -= {line for cell in public.cells for line in release._lines(cell.source)}
        assert secret
        for line in secret:
            assert line in made["solutions"]
            assert line not in "".join(text for name, text in made.items() if name != "solutions")


# ---- the checks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PREPARED if not name.startswith("hostile")])
def test_prepared_submissions_get_the_points_they_should(tmp_path, name):
    (found,) = read_prepared(tmp_path, name)
    results = results_of(ALL[0], submissions.to_run(found), ALL[0].parameters)
    expected = PREPARED[name]
    assert {question: result.points for question, result in results.items()} == expected.points
    for question, words in expected.says.items():
        assert words in " ".join(results[question].sentences)


@pytest.mark.parametrize(
    ("name", "question", "source", "points", "words"),
    mistakes.ANSWERS,
    ids=[f"{one[0]}-{one[1]}-{one[4] or 'right'}" for one in mistakes.ANSWERS],
)
def test_other_styles_pass_and_each_mistake_is_named(name, question, source, points, words):
    assignment = next(one for one in ALL if one.name == name)
    given = [(cell["id"], cell.source) for cell in assignment.notebook.cells if submissions._is_given(cell)]
    student = student_of([*given, (question, source)], assignment.parameters)
    result = grading.judged(question, checks.load(name)[question], student, assignment.questions[question])
    assert words in " ".join(result.sentences)
    assert result.points == points, result.sentences


def test_no_sentence_gives_an_answer_away():
    """Sentences hold no formula: no digit but those of the text itself, no code."""
    for assignment in ALL:
        source = checks.source_of(assignment.name).read_text()
        assert "sqrt(" not in " ".join(text for text in prepared.sentences(source))


def test_a_statistical_check_accepts_right_noise_and_rejects_five_percent():
    random = np.random.default_rng(0)
    right = random.normal(0, 2.0, size=(2000, 500))
    assert all(checks.has_std(row, 2.0) for row in right)
    assert not checks.has_std(random.normal(0, 2.0 * 1.05, 30_259), 2.0)
    assert not checks.has_std(random.normal(0, 2.0 * 2**0.5, 613), 2.0)
    assert not checks.has_std(np.zeros(500), 2.0)


def test_judge_names_the_mistake_and_never_one_that_gives_the_right_value():
    mistakes = {"doubled": 2.0, "the same by chance": 1.0}
    assert judge(1, 1.0, 1.0, mistakes, "else") == Finding(1, True)
    assert judge(1, 2.0, 1.0, mistakes, "else") == Finding(1, False, "doubled")
    assert judge(1, 7.0, 1.0, mistakes, "else").sentence == "else"
    assert judge(1, float("nan"), 1.0, mistakes, "else").sentence == "else"


@pytest.mark.parametrize("value", ["text", None, {"a": 1}, [[1], [1, 2]], [1.0, 2.0], float("nan"), [[[[]]]], 10**400])
def test_an_answer_that_is_no_number_is_refused_in_words(value):
    with pytest.raises(Broken, match="number"):
        Answer("noise_std", value).number()


def test_a_check_that_fails_by_itself_ends_only_itself():
    def check(student):
        yield Finding(1, True)
        raise ZeroDivisionError("in the check")

    result = grading.judged("q", check, Student(lambda wish: {}, {}), 2)
    assert (result.points, result.of) == (1, 2)
    assert "ask your instructor" in result.sentences[0]


def test_an_instructors_own_folder_replaces_checks_and_masters(tmp_path):
    (tmp_path / "checks").mkdir()
    assert command.places(tmp_path) == (masters.MASTERS, tmp_path / "checks")
    assert command.places(None) == (masters.MASTERS, checks.CHECKS)
    with pytest.raises(CourseworkError, match="hidden checks"):
        checks.load("1-gaussian", tmp_path / "checks")


# ---- the sandbox -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param(True, marks=needs_walls, id="walls"), pytest.param(False, id="limits only")])
def walls(request):
    return request.param


def outcome(walls: bool, source: str, limits: Limits = QUICK) -> str:
    """What becomes of a cell: "ran", its error, or why it was stopped."""
    with Sandbox(walls, limits) as box:
        try:
            return box.ask({"run": source, "where": "cell"}).get("error", "ran")
        except Stopped as why:
            return f"stopped: {why}"


def test_the_sandbox_runs_cells_and_answers(walls):
    with Sandbox(walls, QUICK) as box:
        box.ask(
            {"run": "%matplotlib inline\n!ls\nimport numpy\ndef f(x, normal): return x + normal(3, 2.0)", "where": "a"}
        )
        arguments = {"x": {"array": [1, 2, 3]}, "normal": {"normal": None}}
        reply = box.ask({"call": "f", "arguments": arguments})
        assert reply["value"] == [1, 2, 3]
        assert reply["asked"] == [{"shape": [3], "std": 2.0}]
        box.ask({"run": "import sys; sys.exit(3)", "where": "b"})
        box.ask({"run": "import numpy as np", "where": "c"})
        for value in ("np.array([1j])", "np.complex128(2)", "np.array([{1}])", "10**5000"):
            box.ask({"run": f"x = {value}", "where": "d"})
            assert "Error" in box.ask({"value": "x"})["error"]
        assert box.ask({"value": "numpy"})["error"].startswith("TypeError")
        assert "no g" in box.ask({"call": "g", "arguments": {}})["error"]


@needs_walls
def test_the_sandbox_starts_where_the_environment_is_a_link(tmp_path, monkeypatch):
    (tmp_path / "linked").symlink_to(Path(sys.prefix).resolve())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "linked" / "bin" / Path(sys.executable).name))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "linked"))
    assert outcome(True, "import numpy") == "ran"


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ("5", [5]),
        ("numpy.int64(5)", [5]),
        ("numpy.prod((2, 3))", [6]),
        ("()", []),
        ("[2, 3]", [2, 3]),
        ("numpy.array([2, 3])", [2, 3]),
    ],
)
def test_noise_takes_every_shape_that_it_takes_in_the_notebook(shape, seen):
    cell = f"import numpy\ndef f(normal): return numpy.shape(normal({shape}, 1.0))"
    answer = student_of([("f", cell)], {}).call("f", normal=checks.normal(1))
    assert (answer.value, answer.asked) == (seen, ((tuple(seen), 1.0),))


def to_every_descriptor(statement: str) -> str:
    return f"import os\nfor fd in range(3, 9):\n    try:\n        {statement}\n    except OSError: pass"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (prepared.LOOP, "too long"),
        (prepared.PRINTER, "too long"),
        (prepared.FORK, "more than 32 processes"),
        (prepared.EXIT, "its process ended"),
        (prepared.MEMORY, "GB of memory"),
        (to_every_descriptor("os.write(fd, b'x\\n')"), "is no answer"),
        (to_every_descriptor("while True: os.write(fd, b'x' * 65536)"), "was longer than"),
        (to_every_descriptor('os.write(fd, b\'{"ticket": "1"}\\n\')'), "what was not asked"),
    ],
)
def test_what_floods_or_ends_is_stopped_and_leaves_nothing(walls, source, words, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))  # no other grading on this machine is seen
    limits = Limits(cell_seconds=20.0 if "memory" in words else 3.0, resident_bytes=1 << 30)
    assert words in outcome(walls, source, limits)
    assert not list(tmp_path.iterdir())


@needs_walls
@pytest.mark.parametrize(
    "source",
    [
        "open('/usr/was-here', 'w')",
        f"open({str(ROOT / 'dpldm' / 'was-here')!r}, 'w')",
        "open('/proc/sys/kernel/core_pattern', 'w')",
        "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "import os; os.kill(os.getppid(), 0) if os.getppid() else 1 / 0",
        f"open({str(checks.source_of('1-gaussian'))!r})",
        f"open({str(masters.MASTERS / '1-gaussian.py')!r})",
        "import os; os.listdir('/home')",
        "open('big', 'wb').write(b'x' * (40 << 20))",
        "import ctypes; ctypes.CDLL(None).unshare(0x10000000) and 1 / 0",
        "import ctypes; ctypes.CDLL(None).mount(b'x', b'/usr', b'tmpfs', 0, None) and 1 / 0",
    ],
)
def test_the_walls_let_nothing_through(source):
    assert "Error" in outcome(True, source)


def test_limits_hold_without_walls():
    assert "too large" in outcome(False, "open('big', 'wb').write(b'x' * (40 << 20))").lower()


def test_one_endless_answer_does_not_cost_the_points_of_another(tmp_path, walls):
    cells = [("a", "def f(): return 1"), ("b", "while True: pass"), ("c", "def g(): return 2")]
    runner = grading.Runner(cells, {}, walls, Limits(cell_seconds=1.0))
    student = Student(runner.ask, {})
    assert student.call("f").number() == 1
    assert student.call("g").number() == 2
    runner.close()
    assert "The cell b had to be stopped: it took too long" in runner.notes[0]


def test_a_notebook_that_is_stopped_again_and_again_is_left_alone(walls):
    cells = [(f"cell {number}", "import os; os._exit(0)") for number in range(9)]
    runner = grading.Runner(cells, {}, walls, QUICK)
    with pytest.raises(Broken, match="too often"):
        Student(runner.ask, {}).call("f")
    runner.close()


def test_without_namespaces_grading_refuses_unless_told_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "why_no_walls", lambda: "no program unshare")
    read_prepared(tmp_path / "in", "no-notebook")
    words = ["grade", str(tmp_path / "in"), "--to", str(tmp_path / "out")]
    assert command.main(words) == 1
    assert "no program unshare" in capsys.readouterr().err
    assert command.main([*words, "--without-sandbox"]) == 0
    assert "WITHOUT a sandbox" in capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "out" / "grades.csv").open())
    assert row["protection"] == "LIMITS ONLY"


def test_the_reason_is_said_where_namespaces_are_missing(monkeypatch):
    sandbox.why_no_walls.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    assert "no program unshare" in sandbox.why_no_walls()
    sandbox.why_no_walls.cache_clear()


# ---- finding, late days, tables --------------------------------------------------------------------------------------


def test_submissions_are_recognised_by_content_and_the_rest_is_named(tmp_path):
    prepared.write(tmp_path, {name: PREPARED[name] for name in ("renamed-file", "lost-metadata", "no-notebook")})
    (tmp_path / "renamed-file" / "notes.py").write_text("print(1)")
    (tmp_path / "bad name!").mkdir()
    found, left_out = submissions.find(tmp_path, ALL)
    assert [(one.student, one.assignment.name) for one in found] == [
        ("lost-metadata", "1-gaussian"),
        ("no-notebook", "1-gaussian"),
        ("renamed-file", "1-gaussian"),
    ]
    assert sorted(left_out)[0].startswith("'bad name!'")
    assert "notes.py: belongs to no assignment" in " ".join(left_out)


def test_a_changed_given_cell_is_put_back_and_said(tmp_path):
    (found,) = read_prepared(tmp_path, "changed-given")
    assert dict(submissions.to_run(found))["given-imports"].startswith("import math")
    assert "The locked cell given-imports was changed" in " ".join(found.notes)


def test_of_two_files_the_one_with_answers_counts(tmp_path):
    """Both are handed out, and a student who hands in the whole folder worked on one of them."""
    release.release(ALL[:1], tmp_path / "mei")
    worked, blank = (tmp_path / "mei" / f"1-gaussian{suffix}" for suffix in (".py", ".ipynb"))
    worked.write_text(worked.read_text().replace("# YOUR CODE HERE", "# answered", 1))
    ((found,), (left_out,)) = submissions.find(tmp_path, ALL)
    assert found.path == worked
    assert left_out == f"mei/{blank.name}: {worked.name} counts, of the same assignment"
    blank.write_text(PREPARED["perfect-vectorised"].content)  # both have answers: the notebook counts, as before
    assert submissions.find(tmp_path, ALL)[0][0].path == blank
    blank.unlink()
    assert not submissions.is_blank(found)
    assert submissions.find(tmp_path, ALL)[0][0].path == worked


class RunsNothing(grading.Runner):
    """In place of a sandbox, for tests of what is said beside the points."""

    def ask(self, command: dict) -> dict:
        return {"error": "not run"}


def test_own_numbers_are_not_taken_for_a_changed_cell_and_others_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grading, "Runner", RunsNothing)
    release.release(ALL[:1], tmp_path / "in", ["mei", "noor"], SECRET)
    copied = tmp_path / "in" / "noor" / "1-gaussian.ipynb"
    copied.write_bytes((tmp_path / "in" / "mei" / "1-gaussian.ipynb").read_bytes())
    mei, noor = submissions.find(tmp_path / "in", ALL)[0]
    assert (mei.notes, noor.notes) == ([], [])
    own = {one.student: one.assignment.student_parameters(one.student, SECRET) for one in (mei, noor)}
    assert submissions.other_numbers(mei, own["mei"]) == {}
    assert submissions.other_numbers(noor, own["noor"]) == own["mei"]

    (tmp_path / "secret").write_text(SECRET)
    words = ["grade", str(tmp_path / "in"), "--to", str(tmp_path / "out"), "--without-sandbox"]
    assert main([*words, "--secret", str(tmp_path / "secret")]) == 0
    assert "1 of 2 files have other numbers than their students (first: noor, 1-gaussian)" in capsys.readouterr().out
    said, right = (f"seed = {own[name]['seed']}" for name in ("mei", "noor"))
    page = (tmp_path / "out" / "feedback" / "noor" / "1-gaussian.html").read_text()
    assert f"The file says {said}; yours is {right.removeprefix('seed = ')}, and that was used." in page
    assert main(words) == 0  # the secret of the release is forgotten
    assert "2 of 2 files have other numbers" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["epsilon = (", "epsilon = f()", "epsilon.x = 1", "(" * 9000, "epsilon = 1\0"])
def test_a_cell_of_numbers_that_says_nothing_readable_says_nothing(source):
    assert submissions._constants(source) == {}


def test_late_days_are_free_first_and_then_cost(tmp_path):
    (found,) = read_prepared(tmp_path, "no-notebook")
    (tmp_path / "no-notebook" / "timestamp.txt").write_text("2026-12-03 10:00:00+00:00")
    ((found,), _) = submissions.find(tmp_path, ALL)
    assert found.arrived == datetime(2026, 12, 3, 10, tzinfo=UTC)
    due = late.parse_due(["1-gaussian=2026-12-01T23:59"], ["1-gaussian"])
    (lateness,) = late.lateness([found], late.Policy(due, free_days=1, penalty=0.25)).values()
    assert (lateness.days, lateness.free, lateness.factor) == (2, 1, 0.75)
    (on_time,) = late.lateness([found], late.Policy({})).values()
    assert on_time.factor == 1
    for word in ("1-gaussian=soon", "9-x=2026-12-01"):
        with pytest.raises(CourseworkError, match="expected"):
            late.parse_due([word], ["1-gaussian"])


def graded_example(answer: str = "=HYPERLINK(1)") -> grading.Graded:
    results = [grading.Result("clip-rows", 1, 3, ["<b>not</b> right"]), grading.Result("own-noise", 2, 2)]
    return grading.Graded("mei", "1-gaussian", "x.ipynb", results, {"why": answer}, ["<i>note</i>"], 1.0, True, "k")


def test_written_answers_are_graded_in_the_table_and_kept(tmp_path):
    def write(answer: str = "=HYPERLINK(1)") -> dict:
        reports.write_all([graded_example(answer)], ALL, {}, tmp_path)
        (row,) = csv.DictReader((tmp_path / "grades.csv").open())
        return row

    assert write()["complete"] == "no"
    table = tmp_path / "written.csv"
    (row,) = csv.DictReader(table.open())
    assert row["answer"].startswith("'=")  # no formula of a student runs in an instructor's spreadsheet
    table.write_text(table.read_text().replace(",why,2.0,,", ",why,2.0,1.5,").replace(",why,2,,", ",why,2,1.5,"))
    assert (write()["total"], write()["complete"]) == ("4.5", "yes")
    assert write("another answer")["complete"] == "no"
    table.write_text(table.read_text().replace(",why,2,,", ",why,2,9,"))
    with pytest.raises(CourseworkError, match="between 0 and 2"):
        write("another answer")


def test_feedback_shows_points_and_sentences_as_text(tmp_path):
    reports.write_all([graded_example()], ALL, {("mei", "1-gaussian"): late.Lateness(2, 1, 0.5)}, tmp_path)
    page = (tmp_path / "feedback" / "mei" / "1-gaussian.html").read_text()
    assert ">Question 3: a bound on what one person can do<" in page  # as in the notebook, which shows no names
    assert ">clip-rows<" not in page
    assert "Not graded yet." in page
    assert "Graded: x.ipynb." in page
    assert "&lt;b&gt;not&lt;/b&gt; right" in page
    assert "<b>not" not in page
    assert "1.5 of 7 points" in page
    assert "2 days late, 1 of them free" in page
    assert "http" not in page
    assert "clip-rows" in (tmp_path / "summary.html").read_text()


def test_a_grade_is_kept_until_submission_or_checks_change(tmp_path, monkeypatch):
    prepared.write(tmp_path / "in", {"no-notebook": PREPARED["no-notebook"]})
    lines: list[str] = []

    def grade() -> str:
        found, _ = submissions.find(tmp_path / "in", ALL)
        grading.grade_all(found, tmp_path / "out", walls=False, say=lines.append)
        return lines[-1]

    assert "0 points in" in grade()
    assert "unchanged" in grade()
    (tmp_path / "in" / "no-notebook" / "1-gaussian.ipynb").write_text("still none")
    assert "0 points in" in grade()


# ---- everything ------------------------------------------------------------------------------------------------------


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and ".git" not in path.parts:
            whole.update(str(path).encode() + path.read_bytes())
    return whole.hexdigest()


@needs_walls
@pytest.mark.slow
def test_all_prepared_submissions_in_one_command(tmp_path):
    """Points as expected; nothing outside changed, no test seen, nothing sent; the grader stays small."""
    arrived: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            arrived.append(listener.accept()[0].recv(99))

    threading.Thread(target=listen, daemon=True).start()
    folder, outside = tmp_path / "in", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("CANARY-7f3a")
    private = tmp_path / "private" / "checks"
    private.mkdir(parents=True)
    source = checks.source_of("1-gaussian").read_text()
    (private / "checks_gaussian.py").write_text(source + '\nCANARY = "CANARY-7f3a"\n')
    everything = prepared.prepare([str(outside), str(folder), str(ROOT)], listener.getsockname()[1])
    prepared.write(folder, everything)
    before = [digest(place) for place in (folder, outside, private, ROOT / "dpldm", ROOT / "tests", ROOT / "notebooks")]
    words = ["grade", str(folder), "--to", str(tmp_path / "out"), "--private", str(private.parent)]
    done = subprocess.run([sys.executable, "-m", "dpldm.coursework", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = [digest(place) for place in (folder, outside, private, ROOT / "dpldm", ROOT / "tests", ROOT / "notebooks")]
    assert after == before
    assert arrived == []
    points: dict[str, dict[str, float]] = {}
    for row in csv.DictReader((tmp_path / "out" / "questions.csv").open()):
        points.setdefault(row["student"], {})[row["question"]] = float(row["points"])
    assert points == {name: one.points for name, one in everything.items()}
    seen = json.loads((tmp_path / "out" / "points" / "1-gaussian" / "hostile-peek.json").read_text())
    assert "returned an array of shape (1, 1)" in str(seen["results"][2]["sentences"])
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 << 20  # KB; the submissions' own included
