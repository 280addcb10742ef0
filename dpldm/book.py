"""The book: notebooks → papermill → executed notebooks → Jupyter Book → site. A join; the computing is elsewhere.

One build is one reference run: all notebooks get the same parameters, and no page is made from others. A notebook is
executed again when something it depends on has changed: its source, its parameters, the modules it imports (found by
reading the sources, through all that these import), the records, the locked versions. jupyter-book's own execution
cache sees none of these but the first, so it is not used. The notebooks take a run that is finished as it is, so a run
that other code made is forgotten before they start.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpldm import EXPORTS

ROOT = Path(__file__).resolve().parent.parent
SHARED = ("dataset", "epsilon", "seed", "profile")  # of the reference run; the same in every notebook
TOC_KEYS = (
    "format", "root", "defaults", "options", "parts", "caption", "chapters", "sections", "file", "url", "glob",
    "title", "entries", "subtrees", "numbered", "maxdepth", "hidden", "reversed", "titlesonly",
)  # fmt: skip
PACKAGE = "dpldm"
KERNEL = "python3"
SMOKE = """\
```{warning}
This page was made with the profile `smoke`, which only shows that everything works: its numbers and pictures mean
nothing.
```"""
Say = Callable[[str], None]


class BookError(ValueError):
    """The book can't be built as asked. One line: what was expected, what arrived, the way out."""


# --- the notebooks and their parameters -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notebook:
    """A source in `notebooks/`. ``defaults``: its parameters, as its tagged cell gives them."""

    name: str
    source: Path
    defaults: dict[str, Any]


def notebooks(root: Path = ROOT) -> list[Notebook]:
    """The notebooks that `_toc.yml` names, in its order, which is the order of execution.

    Raises:
        BookError: a page of `_toc.yml` is missing, a source is no Python, or two notebooks differ in the default of a
            shared parameter.
    """
    found = []
    for page in pages(root):
        folder, name = os.path.split(page)
        if folder == "executed":
            source = _existing(root / "notebooks" / f"{name}.py", root)
            _check_python(source, root)
            found.append(Notebook(name, source, _defaults(source)))
        elif not any((root / f"{page}{suffix}").exists() for suffix in (".md", ".rst")):
            _existing(root / f"{page}.md", root)
    for shared in SHARED:
        values = {repr(notebook.defaults[shared]): notebook for notebook in found if shared in notebook.defaults}
        if len(values) > 1:
            (one, first), (other, second), *_ = values.items()
            raise BookError(
                f"expected the same default of {shared} in all notebooks, got {one} in {first.name} and {other} in "
                f"{second.name}: make them equal"
            )
    return found


def pages(root: Path = ROOT) -> list[str]:
    """The pages of `_toc.yml` in reading order, without their suffixes.

    Raises:
        BookError: with the line: it is no YAML, or has a key that no table of contents has.
    """
    import yaml

    path = _existing(root / "_toc.yml", root)

    def fault(mark: Any, said: str) -> BookError:
        return BookError(f"_toc.yml, line {mark.line + 1}: {said}")

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value not in TOC_KEYS:
                    raise fault(key.start_mark, f"unknown key {key.value!r}: expected one of {', '.join(TOC_KEYS)}")
                if key.value in ("root", "file"):
                    if not isinstance(value, yaml.ScalarNode) or not value.value:
                        raise fault(key.start_mark, f"expected the path of a page after {key.value}: write it there")
                    yield value.value
                else:
                    yield from files(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                yield from files(item)

    try:
        return list(files(yaml.compose(_text(path, root))))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise fault(mark, f"no YAML: {error.problem}") from None


def _text(path: Path, root: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        said = f"expected UTF-8, got the byte {error.object[error.start]:#04x}: save it as UTF-8"
        raise BookError(f"{path.relative_to(root)}, line {line}: {said}") from None


def _check_python(source: Path, root: Path) -> None:
    try:
        ast.parse(_text(source, root))
    except (SyntaxError, ValueError) as error:
        if isinstance(error, BookError):
            raise
        line = getattr(error, "lineno", None) or 1
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise BookError(f"{source.relative_to(root)}, line {line}: no Python: {said}") from None


def _existing(path: Path, root: Path) -> Path:
    if not path.is_file():
        where = path.relative_to(root)
        raise BookError(f"expected {where}, found no such file: write it or take it out of _toc.yml")
    return path


def _read(source: Path) -> Any:
    """A notebook of `notebooks/` as nbformat has it, with ids that do not change from one reading to the next."""
    import jupytext

    node = jupytext.read(source)
    node.metadata["kernelspec"] = {"name": KERNEL, "display_name": "Python 3", "language": "python"}
    for position, cell in enumerate(node.cells):
        cell["id"] = f"cell-{position:03d}"
    return node


def _defaults(source: Path) -> dict[str, Any]:
    import papermill

    found = {}
    for name, parameter in papermill.inspect_notebook(_read(source)).items():
        try:
            found[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError):
            raise BookError(
                f"{source.name}: expected a plain value for the parameter {name}, got {parameter['default']}"
            ) from None
    return found


def check_parameters(found: Iterable[Notebook], parameters: Mapping[str, Any]) -> None:
    """Every parameter is one of some notebook, and its value is of the kind of the default there.

    papermill itself lets an unknown name pass, and a build with a misspelt ε would show the default one.

    Raises:
        BookError: in one line, the first that is not.
    """
    found = list(found)
    known = sorted({name for notebook in found for name in notebook.defaults})
    for name, value in parameters.items():
        if name not in known:
            raise BookError(f"unknown parameter {name!r}: expected {', '.join(known) or 'none'}")
        for notebook in found:
            default = notebook.defaults.get(name)
            kinds = (int, float) if isinstance(default, float) else (type(default),)
            if name in notebook.defaults and default is not None and type(value) not in kinds:
                raise BookError(f"{name}: expected a {type(default).__name__} as in {notebook.name}, got {value!r}")
            if isinstance(default, float) and isinstance(value, int) and abs(value) > sys.float_info.max:
                got = f"one of {value.bit_length()} bits"
                raise BookError(f"{name}: expected a number that fits a float, got {got}: choose a smaller one")


def _check_by_library(found: Iterable[Notebook], parameters: Mapping[str, Any], root: Path) -> Path | None:
    """What a run would refuse is refused before the first notebook starts, in the words of the library.

    Returns:
        Where the record of the build's run is, or will be; None if the notebooks make no run.
    """
    defaults: dict[str, Any] = {}
    for notebook in found:
        defaults |= {name: value for name, value in notebook.defaults.items() if name in SHARED}
    asked = defaults | dict(parameters)
    if {"dataset", "epsilon"} <= set(asked):
        from dpldm.data import data_folder
        from dpldm.experiment import Experiment, Folders, check

        described = {name: asked[name] for name in SHARED if name in asked}
        runs = root / "runs"
        return check(Experiment(**described), Folders(runs / "records", runs, root / data_folder()))  # as in a notebook
    return None


# --- what a notebook depends on ---------------------------------------------------------------------------------------


def imported_modules(source: str, package: str = PACKAGE, inside: bool = False) -> set[str]:
    """The modules and folders of ``package`` that a Python source names in its imports, wherever they stand.

    Args:
        inside: whether the source belongs to the package, so that `from . import x` counts.

    >>> sorted(imported_modules("import numpy, dpldm.data; from dpldm import plots; from dpldm.results import table"))
    ['data', 'plots', 'results']
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{package}.")}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if inside and node.level == 1:
                module = f"{package}.{module}".rstrip(".")
            if module == package:
                found |= {EXPORTS.get(alias.name, alias.name) for alias in node.names}
            elif module.startswith(f"{package}."):
                found.add(module.split(".")[1])
    return found


def imported_files(source: str, place: Path, package: Path) -> set[Path]:
    """The files of ``package``, a folder of modules and of folders of modules, that a Python source imports from.

    Args:
        source: the text of a file that lies in ``place``, which `from .` starts from if that is in the package.

    Of `from dpldm.data import images` that is the module `images` if there is one, else what `dpldm.data` is; and the
    `__init__.py` of every folder on the way.
    """
    found: set[Path] = set()
    for node in ast.walk(ast.parse(source)):
        for start, parts in _imported(node, place, package):
            for end in range(len(parts) + 1):
                folder = start.joinpath(*parts[:end])
                found |= {path for path in (folder / "__init__.py", folder.with_suffix(".py")) if path.is_file()}
    return {path for path in found if path.is_relative_to(package)}


def _imported(node: ast.AST, place: Path, package: Path) -> Iterator[tuple[Path, list[str]]]:
    """Where an import starts and the names that lead on from there, as far as they may be modules."""
    if isinstance(node, ast.Import):
        dotted = [alias.name.split(".") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        module = node.module.split(".") if node.module else []
        dotted = [[*module, alias.name] for alias in node.names]
        if node.level and place.is_relative_to(package):
            start = (place, *place.parents)[node.level - 1]
            yield from ((start, parts) for parts in dotted)
            return
    else:
        return
    for parts in dotted:
        if parts[0] == package.name:
            inner = EXPORTS.get(parts[1], parts[1]).split(".") if len(parts) == 2 else parts[1:]
            yield package, inner


def dependencies(source: Path, package: Path) -> set[Path]:
    """The files of ``package`` (a folder of modules) that a source depends on, through all that these import.

    A module that names a folder beside it in a string, as for its weights, depends on the files in it.
    """
    found = set[Path]()
    waiting = [source]
    while waiting:
        file = waiting.pop()
        text, inside = file.read_text(encoding="utf-8"), file.is_relative_to(package)
        if PACKAGE not in text and not inside:
            continue
        new = imported_files(text, file.parent, package) - found
        found |= new
        waiting += sorted(new)
        if inside:
            folders = {file.parent / text for text in _strings(ast.parse(text)) if text.isidentifier()}
            found |= {item for folder in folders if folder.is_dir() for item in folder.iterdir() if item.is_file()}
    return found


def _strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def reads_records(source: str) -> bool:
    """Whether the code of a notebook says anything of records or runs; comments and prose do not count."""
    tree = ast.parse(source)
    words = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    words += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    words += list(_strings(tree))
    return any("record" in word for word in words) or bool(
        imported_modules(source) & {"experiment", "results", "sweep", "baselines", "records", "runs"}
    )


def _digest(*contents: bytes) -> str:
    whole = hashlib.sha256()
    for content in contents:
        whole.update(len(content).to_bytes(8, "big") + content)
    return whole.hexdigest()[:16]


def _folder_digest(folder: Path, pattern: str) -> str:
    found = (file for file in folder.rglob(pattern) if "__pycache__" not in file.parts)
    files = sorted(file for file in found if file.is_file() and not file.name.startswith("."))
    return _digest(*(part for file in files for part in (str(file.relative_to(folder)).encode(), file.read_bytes())))


def _effective(notebook: Notebook, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a notebook runs with; 3 is 3.0 where its default is."""
    values = notebook.defaults | {name: parameters[name] for name in notebook.defaults if name in parameters}
    return {
        name: float(value) if isinstance(notebook.defaults[name], float) and value is not None else value
        for name, value in values.items()
    }


def inputs(notebook: Notebook, parameters: Mapping[str, Any], root: Path = ROOT) -> dict[str, str]:
    """Everything that a notebook's output depends on, each with a digest: what to compare with the last time."""
    source = notebook.source.read_text(encoding="utf-8")
    named = {f"notebooks/{notebook.name}.py": _digest(source.encode())}
    for file in sorted(dependencies(notebook.source, root / PACKAGE)):
        named[str(file.relative_to(root))] = _digest(file.read_bytes())
    for text in sorted(set(_strings(ast.parse(source)))):
        if text.startswith("book/") and (root / text).is_file():
            named[text] = _digest((root / text).read_bytes())
        elif text.startswith("book/") and text != "book/records" and (root / text).is_dir():
            named[text] = _folder_digest(root / text, "*.json")
    if reads_records(source):
        named["the records"] = _folder_digest(root / "book" / "records", "*.json")
    named["the parameters"] = _digest(json.dumps(_effective(notebook, parameters), sort_keys=True).encode())
    if _reports(notebook):
        from dpldm.results import environment_facts

        others = [done.output.encode() for done in executions(root) if done.name != notebook.name]
        named["the other notebooks"] = _digest(*others)
        named["the commit"] = environment_facts()["commit"]
    return named | _versions(root)


def _versions(root: Path) -> dict[str, str]:
    lock = root / "requirements.lock"
    return {"the locked versions": _digest(sys.version.encode(), lock.read_bytes() if lock.exists() else b"")}


# --- the run behind the pages -----------------------------------------------------------------------------------------


def run_inputs(root: Path = ROOT) -> dict[str, str]:
    """What the numbers of a run depend on beside its settings, each with a digest: the modules behind `experiment`, but
    not the one that only draws, and the locked versions."""
    package = root / PACKAGE
    source = package / "experiment.py"
    files = ({source} | dependencies(source, package)) - {package / "plots.py"} if source.exists() else set()
    return {str(file.relative_to(root)): _digest(file.read_bytes()) for file in sorted(files)} | _versions(root)


def forget_stale_run(record: Path, root: Path = ROOT, say: Say = print) -> None:
    """Delete a record, and the finished stages of its run, if it is not known to be made by the code as it is now.

    Beside the record a file with the same name and the suffix `.inputs` tells what it is made by; it is written here,
    before the run.

    Args:
        record: of the run behind the pages; it need not exist. The stages are in `runs/` under its name.
    """
    from dpldm.results import write_atomically

    beside, now = record.with_suffix(".inputs"), run_inputs(root)
    try:
        before = dict(json.loads(beside.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        before = {}
    changed = [f"{name} changed" for name in {**now, **before} if now.get(name) != before.get(name)]
    if not changed:
        return
    stages = _stages(record, root / "runs")
    if record.exists() or stages:
        say(f"{record.stem}: to be made again, {_shortened(changed) if before else 'made by unknown code'}")
    for file in (record, record.with_suffix(".png"), *stages):
        file.unlink(missing_ok=True)
    text = json.dumps(now, indent=1) + "\n"
    write_atomically(beside, lambda path: path.write_text(text, encoding="utf-8"))


def note_inputs(record: Path, runs: Path, anew: bool = False, root: Path = ROOT) -> None:
    """Say beside the record of a run that begins now by what code it is made, so that the book takes it as it is.

    Where some of the run is there already, nothing is said: other code may have made that.

    Args:
        runs: the folder of stages. anew: whether the run begins anew, whatever is there.
    """
    from dpldm.results import write_atomically

    if anew or not (record.exists() or _stages(record, runs)):
        text = json.dumps(run_inputs(root), indent=1) + "\n"
        write_atomically(record.with_suffix(".inputs"), lambda path: path.write_text(text, encoding="utf-8"))


def _stages(record: Path, runs: Path) -> list[Path]:
    """The finished stages of a record's run; what it released is none."""
    return [file for file in (runs / record.stem).glob("*.safetensors") if file.stem != "synthesizer"]


# --- executed notebooks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Execution:
    """What is known of an executed notebook. ``seconds``: wall time; ``parameters``: all of them, defaults included."""

    name: str
    seconds: float
    finished: str
    parameters: dict[str, Any]
    inputs: dict[str, str]
    output: str


def executions(root: Path | None = None) -> list[Execution]:
    """The executed notebooks of the book as they are now, in its order; for the page that reports on the build.

    Args:
        root: None for the current folder if it has a book, else this repository.
    """
    root = root or (Path.cwd() if Path("_toc.yml").exists() else ROOT)
    names = [os.path.basename(page) for page in pages(root) if page.startswith("executed/")]
    return [found for name in names if (found := _execution(name, root))]


def _execution(name: str, root: Path) -> Execution | None:
    """None where it was not executed, or its notebook is not the one that was written then."""
    folder = root / "executed"
    try:
        found = Execution(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        return found if found.output == _digest((folder / f"{name}.ipynb").read_bytes()) else None
    except (OSError, ValueError, TypeError):
        return None


def changes(notebook: Notebook, now: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """What is different from the notebook's last execution, in words; empty if nothing is."""
    last = _execution(notebook.name, root)
    if last is None:
        return ["not executed yet"]
    return [f"{name} changed" for name in {**now, **last.inputs} if now.get(name) != last.inputs.get(name)]


@contextmanager
def _quiet_kernel() -> Iterator[Path]:
    """Kernels of this Python, without the settings of its user, and reproducible in the order of sets; gives the file
    in which they note how far they are."""
    from dpldm.heartbeat import VARIABLE

    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "progress"
        changed = {
            VARIABLE: str(told),
            "IPYTHONDIR": folder,
            "JUPYTER_RUNTIME_DIR": folder,
            "JUPYTER_PATH": "",
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONHASHSEED": "0",
            "TQDM_DISABLE": "1",
        }
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield told
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _check_kernel() -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    program = KernelSpecManager().get_kernel_spec(KERNEL).argv[0]
    if os.path.basename(program) != program and Path(program) != Path(sys.executable):
        raise BookError(f"expected the kernel {KERNEL} to run {sys.executable}, it runs {program}: remove that kernel")


def execute(
    notebook: Notebook, parameters: Mapping[str, Any], root: Path = ROOT, say: Say = lambda line: None
) -> float:
    """Execute a notebook into `executed/NAME.ipynb`; returns the wall time in seconds.

    The file is written when all has gone well, without anything that differs between two equal executions.

    Args:
        parameters: those that it does not have are left out; where there are none, it runs as it is.
        say: told every few seconds which cell is being executed and how far the run in it is, from another thread.

    Raises:
        BookError: a cell failed or wrote to standard error; names it, and the log that has the whole of it.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import CellControlSignal, DeadKernelError
    from traitlets.config import Config

    from dpldm.heartbeat import Heartbeat
    from dpldm.results import write_atomically

    node, start, before = _read(notebook.source), time.monotonic(), inputs(notebook, parameters, root)
    values = _effective(notebook, parameters)
    given = values if set(parameters) & set(values) else {}  # shown as one cell, the ones left at their defaults too
    if given:
        _hide_defaults(node)
    try:
        cells = len(node.cells) + bool(given)  # papermill adds one
        with _quiet_kernel() as told, Heartbeat(notebook.name, cells, told, say) as heartbeat:
            _check_kernel()
            done = papermill.execute_notebook(
                node,
                None,
                parameters=given,
                kernel_name=KERNEL,
                cwd=root,
                progress_bar=False,
                config=Config(
                    {
                        "KernelManager": {"transport_encryption": "auto"},
                        "NotebookClient": {
                            "extra_arguments": ["--IPKernelApp.log_level=50"],
                            "on_cell_start": lambda **at: heartbeat.cell_started(**at),  # a function is not copied
                        },
                    }
                ),
            )
    except papermill.PapermillExecutionError as error:
        said = f"{error.ename}: {error.evalue}"
        raise _failed(notebook, error.cell_index, said, [error.source, *error.traceback], root) from None
    except (DeadKernelError, CellControlSignal, RuntimeError) as error:
        raise _failed(notebook, None, str(error), [], root) from None
    for position, cell in enumerate(done.cells):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                text = output["text"]
                raise _failed(notebook, position, f"wrote to standard error: {text}", [cell.source, text], root)
    seconds = time.monotonic() - start
    after = inputs(notebook, parameters, root)
    if values.get("profile") == "smoke":
        done.cells.insert(1, nbformat.v4.new_markdown_cell(SMOKE))
    _normalise(done, given)
    _fold(done)
    text = nbformat.writes(done)
    folder = root / "executed"
    write_atomically(folder / f"{notebook.name}.ipynb", lambda path: path.write_text(text, encoding="utf-8"))
    facts = {
        "name": notebook.name,
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "parameters": values,
        # What was edited meanwhile is not in it, but a record may be: the notebook itself may have written it.
        "inputs": before | {name: after[name] for name in after if name == "the records"},
        "output": _digest(text.encode()),
    }
    facts_text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / f"{notebook.name}.json", lambda path: path.write_text(facts_text, encoding="utf-8"))
    (folder / f"{notebook.name}.log").unlink(missing_ok=True)
    return seconds


def _hide_defaults(node: Any) -> None:
    """The defaults are not shown beside the values that replace them."""
    for cell in node.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = [*cell.metadata["tags"], "remove-cell"]


def _fold(node: Any) -> None:
    """What the argument does not rest on folds away on the page: parameters, imports, and names for the prose.

    A cell with anything else in it stays open: no mechanism is ever hidden.
    """
    for cell in node.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and ({"parameters", "injected-parameters"} & set(tags) or _is_glue(cell.source)):
            cell.metadata["tags"] = [*tags, "hide-input"]


def _is_glue(source: str) -> bool:
    """Whether code only imports, goes to its folder, or mostly hands values to the prose with `glue`.

    >>> _is_glue("import os"), _is_glue('n = 3\\nglue("n", n)'), _is_glue('fit(private)\\nglue("n", 3)')
    (True, True, False)
    """

    def handed(statement: ast.stmt) -> bool:
        call = statement.value if isinstance(statement, ast.Expr) else None
        return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "glue"

    statements = ast.parse(source).body
    named = [statement for statement in statements if isinstance(statement, ast.Assign)]
    glued = [statement for statement in statements if handed(statement)]
    if glued:
        return len(glued) >= len(named) and len(glued) + len(named) == len(statements)
    imported = [statement for statement in statements if isinstance(statement, ast.Import | ast.ImportFrom)]
    rest = [statement for statement in statements if statement not in imported]
    return bool(imported) and all(isinstance(one, ast.If) and "chdir" in ast.unparse(one) for one in rest)


def _failed(notebook: Notebook, cell: int | None, said: str, log: list[str], root: Path) -> BookError:
    from dpldm.results import write_atomically

    path = root / "executed" / f"{notebook.name}.log"
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join([said, *log])) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    where = "" if cell is None else f", cell {cell + 1}"
    said = re.sub(r"\x1b\[[0-9;]*m", "", said).strip().splitlines()[0][:300]
    return BookError(f"notebooks/{notebook.name}.py{where}: {said} (all of it: {path.relative_to(root)})")


def _normalise(node: Any, given: Mapping[str, Any]) -> None:
    """Leave out what differs between two equal executions: times, and the ids of cells that papermill added."""
    node.metadata.pop("widgets", None)
    node.metadata["papermill"] = {"parameters": dict(given)}
    for position, cell in enumerate(node.cells):
        cell["id"] = f"cell-{position:03d}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)


def check_executed(found: Iterable[Notebook], parameters: Mapping[str, Any], root: Path = ROOT) -> None:
    """All executed notebooks are of this one run: the numbers of one page fit those of the others.

    Raises:
        BookError: one is missing or was executed with other parameters.
    """
    for notebook in found:
        done, wanted = _execution(notebook.name, root), _effective(notebook, parameters)
        if done is None or done.parameters != wanted:
            got = "nothing" if done is None else _in_words(done.parameters)
            raise BookError(
                f"expected executed/{notebook.name}.ipynb with {_in_words(wanted)}, got {got}: run it again"
            )


def _in_words(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in parameters.items()) or "no parameters"


# --- the site ---------------------------------------------------------------------------------------------------------


def _site_inputs(root: Path) -> str:
    folders = [
        ("book", "*"), ("executed", "*.ipynb"), (PACKAGE, "*.py"), ("notebooks/coursework", "*.py"),
    ]  # fmt: skip
    files = [
        root / name for name in ("_config.yml", "_toc.yml", "requirements.lock", "CITATION.cff", "_build/book.pdf")
    ]
    parts = [_folder_digest(root / folder, pattern).encode() for folder, pattern in folders]
    parts += [file.read_bytes() for file in files if file.exists()]
    return _digest(*parts, os.environ.get("DPLDM_REPOSITORY", "").encode(), sys.version.encode())


def build_site(root: Path = ROOT, say: Say = print) -> Path:
    """Make `_build/html` of the pages and the executed notebooks; returns its first page.

    A warning fails the build, which then leaves the old site as it was.

    Raises:
        BookError: with the first warning, and where all of them are.
    """
    build, stamp = root / "_build", _site_inputs(root)
    html, page = build / "html", build / "html" / "index.html"
    last = build / "site.stamp"
    if page.exists() and last.exists() and last.read_text() == stamp:
        say("site: unchanged")
        return page
    new, start = build / "new", time.monotonic()
    say("site: …")
    made = render(new, root, say)
    old = build / "old"
    shutil.rmtree(old, ignore_errors=True)
    last.unlink(missing_ok=True)
    if html.exists():
        html.rename(old)
    made.rename(html)
    last.write_text(stamp)
    for rest in (old, new):
        shutil.rmtree(rest, ignore_errors=True)
    say(f"site: {time.monotonic() - start:.0f} s, {page.relative_to(root)}")
    return page


def render(new: Path, root: Path = ROOT, say: Say = print, builder: str = "html") -> Path:
    """Have jupyter-book make pages of the sources and the executed notebooks; returns their folder.

    Args:
        new: an empty folder to work in, made anew.
        builder: html, or singlehtml for all pages as one.

    Raises:
        BookError: with the first warning, and where all of them are.
    """
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    log, made = root / "_build" / "site.log", new / "_build" / builder
    words = ["build", "-W", "-n", "--keep-going", "--builder", builder, "--path-output", str(new), str(root)]
    code = "from jupyter_book.cli.main import main; main()"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))
    warnings = [line for line in text.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
    if done.returncode or warnings or not any(made.rglob("*.html")):
        for line in warnings[:20]:
            say(f"  {line.replace(str(root) + os.sep, '')}")
        first = (warnings or text.strip().splitlines()[-1:] or ["no output"])[0].replace(str(root) + os.sep, "")
        raise BookError(f"site: {len(warnings)} warnings, the first: {first} (all: {log.relative_to(root)})")
    return made


# --- all of it --------------------------------------------------------------------------------------------------------


def build(
    parameters: Mapping[str, Any],
    only: Iterable[str] = (),
    site: bool = True,
    root: Path = ROOT,
    say: Say = print,
    pdf: bool = False,
) -> None:
    """Execute what has changed, then make the site.

    Args:
        parameters: of the reference run, such as {"epsilon": 3.0}; the notebooks' defaults for what is left out.
        only: names of notebooks; the others and the site are left as they are. Empty: all.
        site: whether to make the site. pdf: whether to print all of it before, so that the site has a link to it.

    Raises:
        BookError: a parameter, a notebook, a page or the site is not as it should be.
        ValueError: the library refuses a value; before anything runs.
    """
    found = notebooks(root)
    check_parameters(found, parameters)
    chosen = [notebook for notebook in found if notebook.name in set(only)] if only else found
    unknown = sorted(set(only) - {notebook.name for notebook in found})
    if unknown:
        names = ", ".join(notebook.name for notebook in found)
        raise BookError(f"unknown notebook {unknown[0]!r}: expected one of {names}")
    from dpldm import pdf as printing

    if pdf:
        printing.find_chromium()  # before the notebooks, which take long
    _execute_changed(chosen, found, parameters, root, say)
    if site and not only:
        check_executed(found, parameters, root)
        if pdf:
            printing.build_pdf(root, say)
        build_site(root, say)


def _execute_changed(
    chosen: list[Notebook], found: list[Notebook], parameters: Mapping[str, Any], root: Path, say: Say
) -> None:
    """Two rounds: a notebook may have written a record that one before it reads. What reports on the build is last."""
    ordered = sorted(chosen, key=_reports)
    checked = False
    for round_number in (1, 2):
        for position, notebook in enumerate(ordered, start=1):
            why = changes(notebook, inputs(notebook, parameters, root), root)
            if not why:
                if round_number == 1:
                    say(f"{notebook.name}: unchanged")
                continue
            if not checked:
                record = _check_by_library(found, parameters, root)
                if record:
                    forget_stale_run(record, root, say)
                checked = True
            say(f"{notebook.name} ({position} of {len(ordered)}): executing, {_shortened(why)}")
            say(f"{notebook.name}: {execute(notebook, parameters, root, say):.0f} s")


def _reports(notebook: Notebook) -> bool:
    """Whether it looks at the executed notebooks: it depends on all others."""
    return "book" in imported_modules(notebook.source.read_text(encoding="utf-8"))


def _shortened(reasons: list[str]) -> str:
    return ", ".join(reasons[:2]) + (f" and {len(reasons) - 2} more" if len(reasons) > 2 else "")
