"""The machinery of the book: parameters, dependencies, executed notebooks, the site; and every notebook runs."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import TOY, make_book
from nbclient import NotebookClient

from dpldm import cli
from dpldm.book import build, execution, freshness, notebooks
from dpldm.book.notebooks import BookError
from dpldm.book.site import build_site
from dpldm.runs import heartbeat

CITED = {"_toc.yml": "format: jb-book\nroot: book/index\n"}
SOURCES = sorted((notebooks.ROOT / "notebooks").glob("*.py"))


@pytest.fixture
def made(small_book, tmp_path) -> Path:
    """A copy of the small book, executed and built, to change at will."""
    shutil.copytree(small_book, tmp_path / "book")
    return tmp_path / "book"


def notebook(root: Path, name: str = "toy") -> notebooks.Notebook:
    return next(one for one in notebooks.notebooks(root) if one.name == name)


def outputs(root: Path, name: str = "toy") -> str:
    node = nbformat.read(root / "executed" / f"{name}.ipynb", as_version=4)
    return "".join(output.get("text", "") for cell in node.cells for output in cell.get("outputs", []))


# --- the pages and the parameters -------------------------------------------------------------------------------------


def test_order_is_that_of_the_table_of_contents(tmp_path):
    toc = "format: jb-book\nroot: book/index\nparts:\n- caption: A\n  chapters:\n  - file: executed/toy\n"
    toc += "    sections:\n    - file: executed/second\n"
    root = make_book(tmp_path, **{"_toc.yml": toc, "notebooks/second.py": TOY})
    assert notebooks.pages(root) == ["book/index", "executed/toy", "executed/second"]
    assert [one.name for one in notebooks.notebooks(root)] == ["toy", "second"]
    assert notebook(root).defaults == {"epsilon": 10.0, "seed": 0}


@pytest.mark.parametrize("gone", ["notebooks/toy.py", "book/index.md", "_toc.yml"])
def test_missing_page_is_named(tmp_path, gone):
    root = make_book(tmp_path)
    (root / gone).unlink()
    with pytest.raises(BookError, match=f"expected {gone}, found no such file"):
        notebooks.notebooks(root)


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("notebooks/toy.py", "print(double", "print double", r"notebooks/toy\.py, line 14: no Python: "),
        (
            "notebooks/toy.py",
            "print(double",
            "%matplotlib inline\nprint(double",
            r"notebooks/toy\.py, line 14: no Python: .* write it as `# %matplotlib inline`",
        ),
        ("notebooks/toy.py", "# It asks", "# \x00 asks", r"notebooks/toy\.py, line \d+: no Python: "),
        ("_toc.yml", "chapters:", "chapters: [", r"_toc\.yml, line \d: no YAML: "),
        ("_toc.yml", "- file", "- fiel", r"_toc\.yml, line 4: unknown key 'fiel': expected one of format, root"),
        ("_toc.yml", "executed/toy", "", r"_toc\.yml, line 4: expected the path of a page after file"),
    ],
)
def test_a_typo_is_one_line_with_file_and_line(tmp_path, path, old, new, message):
    root = make_book(tmp_path)
    (root / path).write_text((root / path).read_text().replace(old, new))
    with pytest.raises(BookError, match=message) as caught:
        build.build({}, root=root, say=pytest.fail)
    assert "\n" not in str(caught.value)


def test_a_source_that_is_no_utf8_is_named_with_its_line(tmp_path):
    root = make_book(tmp_path)
    (root / "notebooks" / "toy.py").write_bytes(TOY.encode() + b"# caf\xe9\n")
    with pytest.raises(BookError, match=r"notebooks/toy\.py, line 20: expected UTF-8, got the byte 0xe9"):
        notebooks.notebooks(root)


def test_magics_in_comments_and_a_byte_order_mark_are_read_as_their_editors_mean_them(tmp_path):
    root = make_book(tmp_path)
    magics = TOY.replace("import matplotlib", "# %matplotlib inline\nimport matplotlib")
    (root / "notebooks" / "toy.py").write_bytes(b"\xef\xbb\xbf" + magics.encode())
    build.build({}, root=root, site=False, say=lambda line: None)
    assert "20.0" in outputs(root)
    first, *_ = nbformat.read(root / "executed" / "toy.ipynb", as_version=4).cells
    assert (first.cell_type, first.source.startswith("# A toy notebook")) == ("markdown", True)


def test_every_option_of_the_command_is_a_parameter_of_the_notebooks():
    """And none is offered that the notebooks would refuse."""
    (commands,) = cli._parser()._subparsers._group_actions
    offered = {action.dest for action in commands.choices["book"]._actions} - {"help", "only", "no_site", "pdf"}
    known = {name for one in notebooks.notebooks() for name in one.defaults}
    assert offered == known == set(notebooks.SHARED)


def test_defaults_that_disagree_are_refused(tmp_path):
    toc = "format: jb-book\nroot: book/index\nchapters:\n- file: executed/toy\n- file: executed/other\n"
    other = TOY.replace("epsilon: float = 10.0", "epsilon: float = 5.0")
    root = make_book(tmp_path, **{"_toc.yml": toc, "notebooks/other.py": other})
    with pytest.raises(BookError, match=r"same default of epsilon.*10\.0 in toy and 5\.0 in other"):
        notebooks.notebooks(root)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epsiln": 3.0}, "unknown parameter 'epsiln': expected epsilon, seed"),
        ({"epsilon": "3"}, "epsilon: expected a float as in toy, got '3'"),
        ({"seed": 1.5}, "seed: expected a int as in toy, got 1.5"),
        ({"seed": True}, "seed: expected a int"),
        ({"epsilon": 10**400}, "epsilon: expected a number that fits a float, got one of 1329 bits"),
    ],
)
def test_bad_parameter_stops_before_anything_runs(made, parameters, message):
    before = (made / "executed" / "toy.ipynb").stat().st_mtime_ns
    with pytest.raises(BookError, match=message):
        build.build(parameters, root=made, say=pytest.fail)
    assert (made / "executed" / "toy.ipynb").stat().st_mtime_ns == before


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_epsilon_is_refused_in_the_words_of_the_library(tmp_path, epsilon):
    root = make_book(tmp_path, **{"notebooks/toy.py": TOY.replace("seed: int", 'dataset: str = "mnist"\nseed: int')})
    with pytest.raises(ValueError, match="epsilon"):
        build.build({"epsilon": epsilon}, root=root, say=lambda line: None)
    assert not (root / "executed").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dataset", "mnits", "unknown dataset 'mnits'"),
        ("profile", "quik", "unknown profile 'quik'"),
        ("seed", -1, "expected a seed from 0"),
    ],
)
def test_bad_value_is_refused_before_anything_runs(tmp_path, name, value, message):
    more = 'dataset: str = "mnist"\nprofile: str = "quick"\nseed: int'
    root = make_book(tmp_path, **{"notebooks/toy.py": TOY.replace("seed: int", more)})
    with pytest.raises(ValueError, match=message) as caught:
        build.build({name: value}, root=root, say=pytest.fail)
    assert "\n" not in str(caught.value)
    assert not (root / "executed").exists()


def test_unknown_notebook(made):
    with pytest.raises(BookError, match="unknown notebook 'tyo': expected one of toy"):
        build.build({}, only=["tyo"], root=made)


# --- what depends on what ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import dpldm.data, numpy", {"data"}),
        ("from dpldm import data, plots as p", {"data", "plots"}),
        ("from dpldm.results import read_all", {"results"}),
        ("def late():\n    from dpldm.audit import attack", {"audit"}),
        ("from dpldmx import data\nimport dpldm", set()),
        ("# import dpldm.data\n'import dpldm.data'", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source, found):
    assert freshness.imported_modules(source) == found


@pytest.fixture
def package(tmp_path):
    """leaf ← middle ← top, which also reads a folder; apart from them: alone; and a ring."""
    folder = tmp_path / "dpldm"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "net.safetensors").write_text("1")
    for name, text in {
        "__init__": "",
        "leaf": "x = 1",
        "middle": "from dpldm.leaf import x",
        "top": "def f():\n    from . import middle\n    return 'weights'",
        "alone": "import os",
        "ring": "import dpldm.gnir",
        "gnir": "import dpldm.ring",
        "room/__init__": "",
        "room/door": "from dpldm.room import key\nfrom . import window",
        "room/key": "from dpldm.leaf import x",
        "room/window": "from .. import alone\nglass = 'panes'",
        "room/unseen": "",
    }.items():
        (folder / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
    (folder / "room" / "panes").mkdir()
    (folder / "room" / "panes" / "one.safetensors").write_text("1")
    return folder


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("from dpldm import leaf", {"leaf.py"}),
        ("from dpldm import middle", {"leaf.py", "middle.py"}),
        ("import dpldm.top", {"leaf.py", "middle.py", "top.py", "net.safetensors"}),
        ("from dpldm import alone", {"alone.py"}),
        ("from dpldm import ring", {"ring.py", "gnir.py"}),
        ("from dpldm.room import key", {"key.py", "leaf.py"}),
        ("from dpldm.room.key import x", {"key.py", "leaf.py"}),
        (
            "import dpldm.room.door",
            {"door.py", "key.py", "leaf.py", "window.py", "alone.py", "one.safetensors"},
        ),
        ("import dpldm", set()),
    ],
)
def test_dependencies_go_through_all_imports(package, tmp_path, source, files):
    (tmp_path / "page.py").write_text(source)
    found = freshness.dependencies(tmp_path / "page.py", package)
    assert {file.name for file in found} == files | {"__init__.py"}


def test_page_without_the_library_depends_on_none_of_it(package, tmp_path):
    (tmp_path / "page.py").write_text("import os")
    assert not freshness.dependencies(tmp_path / "page.py", package)


def test_every_change_is_seen_and_named_and_nothing_else(tmp_path):
    def page(imports: str) -> str:
        return TOY.replace("from toy import double", f"{imports}\nfrom toy import double")

    toc = "format: jb-book\nroot: book/index\nchapters:\n" + "".join(f"- file: executed/{n}\n" for n in "abc")
    root = make_book(
        tmp_path,
        **{
            "_toc.yml": toc,
            "notebooks/a.py": page("from dpldm import one"),
            "notebooks/b.py": page("from dpldm.records.files import read_all"),
            "notebooks/c.py": page('text = open("book/facts.csv") or "book/rows"'),
            "dpldm/__init__.py": "",
            "dpldm/one.py": "",
            "dpldm/two.py": "",
            "dpldm/records/__init__.py": "",
            "dpldm/records/files.py": "",
            "book/facts.csv": "1",
            "book/records/x.json": "{}",
            "book/rows/x.json": "{}",
            "requirements.lock": "torch==1",
        },
    )

    def seen(path: str, parameters=None) -> dict[str, set[str]]:
        """Which notebooks see a change of a file, and under what name."""
        before = {one.name: freshness.inputs(one, {}, root) for one in notebooks.notebooks(root)}
        if path:
            (root / path).write_text((root / path).read_text() + "\n# changed\n")
        after = {one.name: freshness.inputs(one, parameters or {}, root) for one in notebooks.notebooks(root)}
        changed = {name: {k for k in after[name] if after[name][k] != before[name].get(k)} for name in "abc"}
        return {name: what for name, what in changed.items() if what}

    assert seen("dpldm/one.py") == {"a": {"dpldm/one.py"}}
    assert seen("dpldm/two.py") == {}
    assert seen("notebooks/b.py") == {"b": {"notebooks/b.py"}}
    assert seen("book/records/x.json") == {"b": {"the records"}}
    assert seen("book/facts.csv") == {"c": {"book/facts.csv"}}
    assert seen("book/rows/x.json") == {"c": {"book/rows"}}
    assert seen("requirements.lock") == {name: {"the locked versions"} for name in "abc"}
    assert seen("", {"epsilon": 3.0}) == {name: {"the parameters"} for name in "abc"}
    assert seen("", {"epsilon": 10}) == {}


def test_one_page_reports_on_the_build_and_the_others_do_not_depend_on_it():
    found = notebooks.notebooks()
    assert [notebook.name for notebook in found if freshness.reports(notebook)] == ["status"]
    for notebook in found:
        depends = {"the commit", "the other notebooks"} & set(freshness.inputs(notebook, {}))
        assert bool(depends) is (notebook.name == "status")


def test_only_code_counts_as_reading_records():
    assert not freshness.reads_records("# records\nx = 1")
    assert freshness.reads_records("x = read_records()")
    assert freshness.reads_records("from dpldm.runs import experiment")


def test_a_page_of_a_smoke_run_says_that_it_means_nothing(tmp_path):
    text = TOY.replace("seed: int = 0", 'profile: str = "quick"  # amount of work\nseed: int = 0')
    root = make_book(tmp_path, **{"notebooks/toy.py": text})
    for profile, warned in (("quick", False), ("smoke", True)):
        build.build({"profile": profile}, root=root, say=lambda line: None, site=False)
        assert ("numbers and pictures mean" in (root / "executed" / "toy.ipynb").read_text(encoding="utf-8")) is warned


# --- the run behind the pages -----------------------------------------------------------------------------------------


@pytest.fixture
def old_run(tmp_path):
    """A finished run, and the code that is said to have made it: (root, record, its files)."""
    names = ("runs/run", "method/mixture", "records/grids", "runs/sweep")
    imports = {"runs/run": "from dpldm.method import mixture\nfrom dpldm.records import grids"}
    files = {f"dpldm/{name}.py": imports.get(name, "x = 1") for name in names} | {"requirements.lock": "torch==1"}
    doors = {f"dpldm/{room}__init__.py": "" for room in ("", "runs/", "method/", "records/")}
    root = make_book(tmp_path, **doors, **files)
    record = root / "runs" / "records" / "some.json"
    made = [record, record.with_suffix(".png"), root / "runs" / "some" / "diffusion.safetensors"]

    def finish() -> None:
        for file in (*made, root / "runs" / "some" / "synthesizer.safetensors"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")

    finish()
    return root, record, made, finish


def test_run_of_unknown_code_is_forgotten_and_one_of_this_code_is_kept(old_run):
    root, record, made, finish = old_run
    said: list[str] = []
    freshness.forget_stale_run(record, root, said.append)
    assert said == ["some: to be made again, made by unknown code"]
    assert not any(file.exists() for file in made)
    assert (root / "runs" / "some" / "synthesizer.safetensors").exists()
    finish()
    freshness.forget_stale_run(record, root, pytest.fail)
    assert all(file.exists() for file in made)


def test_a_run_from_the_command_line_is_taken_as_it_is_unless_its_code_is_unknown(old_run):
    root, record, made, finish = old_run
    freshness.note_inputs(record, root / "runs", root=root)  # some of it is there already, whoever made that
    assert not record.with_suffix(".inputs").exists()
    freshness.note_inputs(record, root / "runs", anew=True, root=root)
    finish()
    freshness.forget_stale_run(record, root, pytest.fail)
    assert all(file.exists() for file in made)
    (root / "dpldm" / "method" / "mixture.py").write_text("x = 2")
    said: list[str] = []
    freshness.forget_stale_run(record, root, said.append)
    assert said == ["some: to be made again, dpldm/method/mixture.py changed"]
    for file in (*made, record.with_suffix(".inputs")):
        file.unlink(missing_ok=True)
    freshness.note_inputs(record, root / "runs", root=root)
    finish()
    freshness.forget_stale_run(record, root, pytest.fail)


@pytest.mark.parametrize(
    ("edited", "forgotten"),
    [
        ("dpldm/runs/run.py", True),
        ("dpldm/method/mixture.py", True),
        ("requirements.lock", True),
        ("dpldm/records/grids.py", False),  # draws what was computed
        ("dpldm/runs/sweep.py", False),
        ("notebooks/toy.py", False),
    ],
)
def test_run_is_forgotten_after_a_change_of_what_it_depends_on_and_nothing_else(old_run, edited, forgotten):
    root, record, made, finish = old_run
    freshness.forget_stale_run(record, root, lambda line: None)
    finish()
    (root / edited).write_text((root / edited).read_text() + "\n# changed\n")
    said: list[str] = []
    freshness.forget_stale_run(record, root, said.append)
    name = "the locked versions" if edited == "requirements.lock" else edited
    assert said == ([f"some: to be made again, {name} changed"] if forgotten else [])
    assert [file.exists() for file in made] == [not forgotten] * len(made)


def test_damaged_note_on_the_code_counts_as_none(old_run):
    root, record, made, _ = old_run
    record.with_suffix(".inputs").write_text("{")
    freshness.forget_stale_run(record, root, lambda line: None)
    assert not any(file.exists() for file in made)


def test_build_forgets_a_stale_run_before_the_first_notebook(old_run, monkeypatch):
    root, record, _made, _ = old_run
    monkeypatch.setattr(build, "check_by_library", lambda found, parameters, root: record)
    text = TOY + "\n# %%\nimport os\nprint(os.path.exists('runs/records/some.json'))\n"
    (root / "notebooks" / "toy.py").write_text(text)
    said: list[str] = []
    build.build({}, root=root, say=said.append, site=False)
    assert said[0] == "some: to be made again, made by unknown code"
    assert "False" in outputs(root)
    said.clear()
    build.build({}, root=root, say=said.append, site=False)
    assert said == ["toy: unchanged"]


def test_real_run_depends_on_the_method_and_its_scores_but_not_on_the_figures():
    names = set(freshness.run_inputs())
    rooms = {name.split("/")[1] for name in names if name.startswith("dpldm/")}
    assert {"data", "evaluation", "method", "privacy", "records", "rivals", "runs"} <= rooms
    assert not rooms & {"audit", "book", "coursework", "cli.py", "commands.py"}
    assert not names & {"dpldm/records/grids.py", "dpldm/records/tables.py", "dpldm/runs/sweep.py"}
    assert any(name.endswith(".safetensors") for name in names), "the weights of the feature networks"


# --- executed notebooks -----------------------------------------------------------------------------------------------


def test_unchanged_book_is_left_alone_and_a_change_runs_again(made):
    said: list[str] = []
    build.build({}, root=made, say=said.append)
    assert said == ["toy: unchanged", "site: unchanged"]
    (made / "notebooks" / "toy.py").write_text(TOY + "\n# %%\nprint('one more')\n")
    said.clear()
    build.build({}, root=made, say=said.append, site=False)
    assert said[0] == "toy (1 of 1): executing, notebooks/toy.py changed"
    assert "one more" in outputs(made)


def test_new_epsilon_gives_new_numbers_and_hides_the_old(made):
    assert outputs(made).startswith("20.0\n")
    execution.execute(notebook(made), {"epsilon": 3}, made)
    assert outputs(made).startswith("6.0\n")
    node = nbformat.read(made / "executed" / "toy.ipynb", as_version=4)
    tagged = {tag: cell for cell in node.cells for tag in cell.metadata.get("tags", [])}
    assert "remove-cell" in tagged["parameters"].metadata["tags"]
    assert "epsilon = 3.0" in tagged["injected-parameters"].source
    assert "seed = 0" in tagged["injected-parameters"].source
    assert node.metadata["papermill"] == {"parameters": {"epsilon": 3.0, "seed": 0}}
    with pytest.raises(BookError, match=r"expected executed/toy.ipynb with epsilon = 10\.0.*got epsilon = 3\.0"):
        execution.check_executed(notebooks.notebooks(made), {}, made)
    execution.check_executed(notebooks.notebooks(made), {"epsilon": 3.0}, made)


def test_imports_parameters_and_glue_fold_away_and_nothing_else(made):
    more = TOY.replace("print(double(epsilon) + seed)\n", "").replace("from toy", "from math import pi\nfrom toy")
    more = more.replace('glue("answer"', '# %%\nanswer = double(3)\nglue("answer"')
    (made / "notebooks" / "toy.py").write_text(more + "\n# %%\nmechanism = double(3)\nprint(glue, mechanism)\n")
    execution.execute(notebook(made), {}, made)
    node = nbformat.read(made / "executed" / "toy.ipynb", as_version=4)
    folded = [cell.source for cell in node.cells if "hide-input" in cell.metadata.get("tags", [])]
    assert [source.split()[0] for source in folded] == ["epsilon:", "import", "answer"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_cell_that_looks_at_images_or_draws_is_folded(source):
    """Folded cells read what other cells made; the first cell of code, which imports, is one of them."""
    cells = [cell for cell in notebooks.read_notebook(source).cells if cell.cell_type == "code"]
    folded = [cell.source for cell in cells if execution._is_glue(cell.source)]
    assert "import" in folded[0]
    for text in folded:
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
        assert not {
            call for call in calls if re.search(r"fit|gaussian_mechanism|release|audit\.|plots\.[a-z_]*rows", call)
        }


@pytest.mark.slow
def test_same_numbers_by_papermill_and_by_editing_the_cell(made):
    execution.execute(notebook(made), {"epsilon": 3.0}, made)
    by_parameter = outputs(made)
    source = made / "notebooks" / "toy.py"
    source.write_text(TOY.replace("= 10.0", "= 3.0"))
    execution.execute(notebook(made), {}, made)
    assert outputs(made) == by_parameter


def test_two_executions_give_the_same_bytes_with_this_python(made):
    source = made / "notebooks" / "toy.py"
    source.write_text(TOY + "\n# %%\nimport sys\nprint(sys.executable, set('abcdefgh'))\n")
    contents = set()
    for _ in range(2):
        execution.execute(notebook(made), {"seed": 1}, made)
        contents.add((made / "executed" / "toy.ipynb").read_bytes())
    assert len(contents) == 1
    assert sys.executable in outputs(made)


@pytest.mark.parametrize(("chosen", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_kernels_wait_without_spinning_unless_told_to(monkeypatch, chosen, policy):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    with execution._quiet_kernel():
        assert os.environ["OMP_WAIT_POLICY"] == policy
    assert os.environ.get("OMP_WAIT_POLICY") == chosen


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1 / 0", r"notebooks/toy.py, cell 5: ZeroDivisionError: division by zero \(all of it: executed/toy.log\)"),
        ("import warnings; warnings.warn('odd')", "cell 5: wrote to standard error: .*odd"),
        ("import os; os._exit(3)", "Kernel died"),
    ],
)
def test_failed_cell_is_named_and_nothing_is_half_written(made, cell, message):
    (made / "notebooks" / "toy.py").write_text(f"{TOY}\n# %%\n{cell}\n")
    before = {path.name: path.read_bytes() for path in (made / "executed").iterdir()}
    with pytest.raises(BookError, match=message) as caught:
        build.build({}, root=made, say=lambda line: None)
    assert "\n" not in str(caught.value)
    after = {path.name: path.read_bytes() for path in (made / "executed").iterdir()}
    assert after.pop("toy.log")
    assert after == before
    assert (made / "_build" / "html" / "index.html").exists()


def test_a_long_cell_is_told_while_it_works(tmp_path, monkeypatch):
    """Which cell of how many, under which heading, and the share that the run in it gives; also without a terminal."""
    slow = "\n# %% [markdown]\n# ## A long run\n\n# %%\nimport time\nfrom dpldm.runs.experiment import Progress\n"
    slow += "Progress().track('diffusion', 0.25)\ntime.sleep(1.5)\n"
    root = make_book(tmp_path, **{"notebooks/toy.py": TOY + slow})
    monkeypatch.setattr(heartbeat, "EVERY", 0.2)
    said: list[str] = []
    build.build({"seed": 3}, root=root, site=False, say=said.append)
    told = [line for line in said if "so far" in line]
    assert any(re.match(r"toy: cell 7 of 7 \(A long run\), diffusion 25%, \d+ s so far", line) for line in told), said
    assert said[0].startswith("toy (1 of 1): executing")
    assert re.match(r"toy: \d+ s", said[-1])


def test_no_line_is_said_before_its_time_and_without_a_build_nothing_is_written(tmp_path, monkeypatch):
    assert heartbeat.EVERY < 20
    monkeypatch.delenv(heartbeat.VARIABLE, raising=False)
    heartbeat.note("diffusion", 1.0)
    with heartbeat.Heartbeat("toy", 3, tmp_path / "note", pytest.fail):
        monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path / "note"))
        heartbeat.note("diffusion", 1.0)
        assert (tmp_path / "note").read_text() == "diffusion 100%"
    assert not (tmp_path / "note").exists()


def test_damaged_or_foreign_output_is_made_again(made):
    (made / "executed" / "toy.ipynb").write_text("{}")
    assert freshness.changes(notebook(made), freshness.inputs(notebook(made), {}, made), made) == ["not executed yet"]
    assert not freshness.executions(made)


def test_executions_tell_times_and_parameters(small_book):
    (done,) = freshness.executions(small_book)
    assert done.name == "toy"
    assert 0 < done.seconds < 600
    assert done.parameters == {"epsilon": 10.0, "seed": 0}


def test_interrupt_leaves_nothing_half_written_and_no_process(tmp_path):
    slow = TOY + "\n# %%\nimport os, time\nopen('kernel', 'w').write(str(os.getpid()))\ntime.sleep(100)\n"
    root = make_book(tmp_path, **{"notebooks/toy.py": slow})
    code = f"from pathlib import Path; from dpldm.book import build; build.build({{}}, root=Path({str(root)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + 90
    while not (root / "kernel").exists() and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    left = list((root / "executed").glob("*")) if (root / "executed").exists() else []
    assert not [path for path in left if path.suffix != ".log"]
    kernel = int((root / "kernel").read_text())
    for _ in range(50):
        if not Path(f"/proc/{kernel}").exists() and not _alive(kernel):
            break
        time.sleep(0.2)
    assert not _alive(kernel)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# --- the site ---------------------------------------------------------------------------------------------------------


def site_files(root: Path) -> dict[str, bytes]:
    html = root / "_build" / "html"
    return {str(path.relative_to(html)): path.read_bytes() for path in html.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_builds_give_the_same_pages(made):
    first = site_files(made)
    (made / "_build" / "site.stamp").unlink()
    build_site(made, say=lambda line: None)
    second = site_files(made)
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []
    assert not (made / "_build" / "new").exists()


def test_a_warning_fails_the_build_and_leaves_the_old_site(made):
    before = site_files(made)
    page = made / "book" / "index.md"
    page.write_text(page.read_text() + "\n{doc}`nowhere`\n")
    for _ in range(2):  # and again: a second try must not pass because the first one read the page
        with pytest.raises(BookError, match=r"site: 1 warnings.* book/index.md:\d+: WARNING: unknown document"):
            build_site(made, say=lambda line: None)
    assert site_files(made) == before


@pytest.mark.slow
def test_repository_gives_buttons_that_point_at_sources(made, monkeypatch):
    monkeypatch.setenv("DPLDM_REPOSITORY", "https://github.com/someone/dpldm.git")
    build_site(made, say=lambda line: None)
    page = (made / "_build" / "html" / "executed" / "toy.html").read_text()
    assert 'href="https://github.com/someone/dpldm/edit/main/notebooks/toy.py"' in page
    assert 'href="https://mybinder.org/v2/gh/someone/dpldm/main?urlpath=lab/tree/notebooks/toy.py"' in page
    assert "main/executed" not in page
    soups = [BeautifulSoup(file.read_text(), "html.parser") for file in (made / "_build" / "html").rglob("*.html")]
    links = {tag["href"] for soup in soups for tag in soup.find_all("a", href=True) if "someone/dpldm" in tag["href"]}
    paths = {found[1] or found[2] for link in links if (found := re.search(r"/main/([^?#]+)|lab/tree/([^&]+)", link))}
    assert {"notebooks/toy.py", "book/index.md"} <= paths
    assert not [path for path in paths if not (made / path).is_file()]
    prose = (made / "_build" / "html" / "book" / "index.html").read_text()
    assert 'href="https://github.com/someone/dpldm/edit/main/book/index.md"' in prose


def test_the_citation_is_shown_with_year_and_version_and_with_the_address_where_there_is_one(tmp_path, monkeypatch):
    shutil.copy(notebooks.ROOT / "CITATION.cff", tmp_path)
    root = make_book(tmp_path, **{"book/index.md": "# Here\n\n```{citation-box}\n```\n"}, **CITED)
    cited = yaml.safe_load((root / "CITATION.cff").read_text())
    for address in ("", "https://example.org/someone/dpldm"):
        monkeypatch.setenv("DPLDM_REPOSITORY", address)
        build_site(root, say=lambda line: None)
        text = BeautifulSoup((root / "_build" / "html" / "book" / "index.html").read_text(), "html.parser").get_text()
        assert f"version = {{{cited['version']}}}" in text
        assert f"year = {{{cited['date-released'].year}}}" in text
        assert (f"url = {{{address}}}" in text) == bool(address)


def downloaded(site: Path, folder: Path, **environ: str) -> subprocess.CompletedProcess:
    """What the first cell of a downloaded notebook does in a folder of its own."""
    node = nbformat.read(site / "_sources" / "executed" / "toy.ipynb", as_version=4)
    code = node.cells[0].source + "\nprint(os.getcwd())"
    command = [sys.executable, *environ.pop("flags", "").split(), "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environ})


def test_downloaded_notebook_works_anywhere(small_site, tmp_path):
    done = downloaded(small_site, tmp_path, PYTHONPATH=str(notebooks.ROOT))
    assert done.stdout.strip() == str(notebooks.ROOT)


def test_downloaded_notebook_says_at_once_what_it_needs(small_site, tmp_path):
    done = downloaded(small_site, tmp_path, flags="-S -I")
    assert done.returncode
    assert "this notebook needs the book's repository: get it, run `make setup`" in done.stderr.splitlines()[-1]


# --- the real notebooks -----------------------------------------------------------------------------------------------


def test_every_notebook_and_page_is_in_the_book():
    pages = set(notebooks.pages())
    assert {f"executed/{source.stem}" for source in SOURCES} == {page for page in pages if page.startswith("executed/")}
    sources = (notebooks.ROOT / "book").rglob("*.md")
    written = {page.relative_to(notebooks.ROOT).with_suffix("").as_posix() for page in sources}
    assert written - {"book/coursework/solutions"} <= {page for page in pages if page.startswith("book/")} <= written
    notebooks.notebooks()


def test_the_page_on_this_edition_names_its_version():
    version = yaml.safe_load((notebooks.ROOT / "CITATION.cff").read_text())["version"]
    assert f"### {version}\n" in (notebooks.ROOT / "book" / "edition.md").read_text(encoding="utf-8")


def test_the_chinese_page_is_marked_as_such_and_has_its_own_picture_and_the_figure_to_compare_with():
    text = (notebooks.ROOT / "book" / "zh.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlang: zh-CN\n---\n")
    assert {"samples_zh_html", "sinkhorn:s", "sinkhorn_again:s"} <= set(re.findall(r"(?:::|\{glue\} )([\w:]+)", text))


def test_every_module_is_on_a_page_of_the_library():
    text = "".join(page.read_text(encoding="utf-8") for page in (notebooks.ROOT / "book" / "api").glob("*.md"))
    package = notebooks.ROOT / "dpldm"
    files = [path.relative_to(package).with_suffix("") for path in package.rglob("*.py") if path.stem[0] != "_"]
    rooms = {".".join(file.parts) for file in files if file.parts[0] not in ("coursework", "cli", "commands")}
    assert set(re.findall(r"automodule:: dpldm\.([\w.]+)", text)) == rooms


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_is_text_with_parameters_and_nothing_is_hidden(source):
    text = source.read_text(encoding="utf-8")
    assert text.count("# *Question: ") == 1
    assert text.count("# ## What we now know") == 1
    assert "name: python3" in text
    assert "# %%" in text
    ast.parse(text)
    defaults = next(one for one in notebooks.notebooks() if one.name == source.stem).defaults
    assert set(defaults) <= set(notebooks.SHARED)
    (cell,) = [cell for cell in notebooks.read_notebook(source).cells if "parameters" in cell.metadata.get("tags", [])]
    assert all(" # " in line for line in cell.source.splitlines()), "a unit or a range for each"


NAMES = [os.path.basename(page) for page in notebooks.pages() if page.startswith("executed/")]
UNMOVED = {"data"}  # pages that an ε changes nothing on
TIMES = re.compile(r"\d+(\.\d+)? (s|min|h)\b|20\d\d-\d\d-\d\d \d\d:\d\d UTC")


def copy_of_the_book(root: Path) -> Path:
    """The real book in a folder of its own, without its runs; the library and the data stay where they are."""
    root.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml", "requirements.lock"):
        shutil.copy(notebooks.ROOT / name, root)
    for name in ("notebooks", "book"):
        shutil.copytree(notebooks.ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "dpldm").symlink_to(notebooks.ROOT / "dpldm")
    return root


@pytest.fixture(scope="session")
def data_of_the_book():
    before = os.environ.get("DPLDM_DATA")
    os.environ["DPLDM_DATA"] = before or str(notebooks.ROOT / "data")
    yield
    if before is None:
        del os.environ["DPLDM_DATA"]


@pytest.fixture(scope="session")
def smoke_book(tmp_path_factory, data_of_the_book) -> Path:
    """The real book, to be executed with little data."""
    return copy_of_the_book(tmp_path_factory.mktemp("smoke") / "book")


@pytest.fixture(scope="session")
def epsilon_book(tmp_path_factory, data_of_the_book) -> Path:
    """The same, to be executed with another ε."""
    return copy_of_the_book(tmp_path_factory.mktemp("epsilon") / "book")


def executed(root: Path, name: str, **parameters) -> None:
    """Execute a notebook with little data, unless that was done."""
    wanted = {"profile": "smoke", **parameters}
    one = notebook(root, name)
    done = freshness.execution(name, root)
    if done is None or done.parameters != freshness.effective(one, wanted):
        execution.execute(one, wanted, root)


def shown(root: Path, name: str) -> list[str]:
    """What the page shows: texts, tables and pictures, without times."""
    node = nbformat.read(root / "executed" / f"{name}.ipynb", as_version=4)
    found = []
    for output in (output for cell in node.cells for output in cell.get("outputs", [])):
        content = output.get("data", {})
        found.append(content.get("text/html") or content.get("image/png") or output.get("text", ""))
    return [without_times(text) for text in found]


def without_times(page: str) -> str:
    """Text or HTML without how long something took and when it was done: in words, and in the columns of tables."""
    soup = BeautifulSoup(page, "html.parser")
    for table in soup.find_all("table"):
        heads = [cell.get_text() for cell in table.find("tr").find_all(["th", "td"])]
        timed = [place for place, head in enumerate(heads) if re.search(r"\(s\)|seconds|finished", head)]
        for row in table.find_all("tr")[1:]:
            cells = row.find_all(["th", "td"])
            for place in timed:
                if place < len(cells):
                    cells[place].string = "a time"
    return TIMES.sub("a time", str(soup) if soup.find("table") else page)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_with_little_data(smoke_book, name):
    executed(smoke_book, name)
    assert json.loads((smoke_book / "executed" / f"{name}.json").read_text())["parameters"]["profile"] == "smoke"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_another_epsilon_gives_other_outputs_where_it_should(smoke_book, epsilon_book, name):
    executed(smoke_book, name)
    executed(epsilon_book, name, epsilon=1.0)
    assert (shown(smoke_book, name) == shown(epsilon_book, name)) == (name in UNMOVED)


@pytest.mark.slow
def test_a_reader_who_edits_the_cell_gets_the_numbers_of_the_build(epsilon_book, tmp_path):
    """As JupyterLab does it: started in the folder of notebooks, with another value in the tagged cell."""
    executed(epsilon_book, "evaluation", epsilon=1.0)
    root = copy_of_the_book(tmp_path / "book")
    source = root / "notebooks" / "evaluation.py"
    text = source.read_text(encoding="utf-8")
    edited = text.replace("epsilon: float = 10.0", "epsilon: float = 1.0").replace('str = "quick"', 'str = "smoke"')
    assert edited != text
    node = jupytext.reads(edited, fmt="py:percent")
    NotebookClient(node, kernel_name="python3", resources={"metadata": {"path": str(root / "notebooks")}}).execute()
    (root / "executed").mkdir()
    nbformat.write(node, root / "executed" / "evaluation.ipynb")
    assert shown(root, "evaluation") == shown(epsilon_book, "evaluation")


@pytest.mark.slow
def test_two_builds_of_the_whole_book_give_the_same_pages(smoke_book, tmp_path):
    """From the same sources, each with its own run; without a warning, or the build fails."""
    pages = []
    for root in (smoke_book, copy_of_the_book(tmp_path / "book")):
        build.build({"profile": "smoke"}, root=root, say=lambda line: None)
        pages.append(
            {name: content for name, content in site_files(root).items() if not name.endswith((".ipynb", ".js"))}
        )
    assert set(pages[0]) == set(pages[1])  # and so the same figures, whose names are made from their contents
    for name in pages[0]:
        first, second = (both[name] for both in pages)
        if first != second:
            assert name.endswith(".html"), name
            assert without_times(first.decode()) == without_times(second.decode()), name
    start = time.monotonic()
    build.build({"profile": "smoke"}, root=smoke_book, say=lambda line: None)
    assert time.monotonic() - start < 60, "nothing has changed"


def test_times_are_told_from_results():
    table = "<table><tr><th>method</th><th>time (s)</th></tr><tr><td>a</td><td>{}</td></tr></table>{}"
    assert without_times(table.format(3.1, "12.5 s")) == without_times(
        table.format(4, "1 min 3 s".replace("1 min ", ""))
    )
    assert without_times(table.format(3.1, "0.93")) != without_times(table.format(3.1, "0.94"))
