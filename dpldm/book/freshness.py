"""When a page has to be made again: what a notebook and the reference run depend on.

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
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpldm import EXPORTS
from dpldm.book.notebooks import PACKAGE, ROOT, Notebook, Say, pages, text_of

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
                found |= {EXPORTS.get(alias.name, alias.name).split(".")[0] for alias in node.names}
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
        text, inside = text_of(file), file.is_relative_to(package)
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
    return any("record" in word for word in words) or bool(imported_modules(source) & {"records", "runs"})


def digest(*contents: bytes) -> str:
    """A short digest of several contents, each with its length."""
    whole = hashlib.sha256()
    for content in contents:
        whole.update(len(content).to_bytes(8, "big") + content)
    return whole.hexdigest()[:16]


def folder_digest(folder: Path, pattern: str) -> str:
    """A digest of the files of a folder that fit a pattern, with their names."""
    found = (file for file in folder.rglob(pattern) if "__pycache__" not in file.parts)
    files = sorted(file for file in found if file.is_file() and not file.name.startswith("."))
    return digest(*(part for file in files for part in (str(file.relative_to(folder)).encode(), file.read_bytes())))


def effective(notebook: Notebook, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a notebook runs with; 3 is 3.0 where its default is."""
    values = notebook.defaults | {name: parameters[name] for name in notebook.defaults if name in parameters}
    return {
        name: float(value) if isinstance(notebook.defaults[name], float) and value is not None else value
        for name, value in values.items()
    }


def inputs(notebook: Notebook, parameters: Mapping[str, Any], root: Path = ROOT) -> dict[str, str]:
    """Everything that a notebook's output depends on, each with a digest: what to compare with the last time."""
    source = text_of(notebook.source)
    named = {f"notebooks/{notebook.name}.py": digest(source.encode())}
    for file in sorted(dependencies(notebook.source, root / PACKAGE)):
        named[str(file.relative_to(root))] = digest(file.read_bytes())
    for text in sorted(set(_strings(ast.parse(source)))):
        if text.startswith("book/") and (root / text).is_file():
            named[text] = digest((root / text).read_bytes())
        elif text.startswith("book/") and text != "book/records" and (root / text).is_dir():
            named[text] = folder_digest(root / text, "*.json")
    if reads_records(source):
        named["the records"] = folder_digest(root / "book" / "records", "*.json")
    named["the parameters"] = digest(json.dumps(effective(notebook, parameters), sort_keys=True).encode())
    if reports(notebook):
        from dpldm.records.environment import environment_facts

        others = [done.output.encode() for done in executions(root) if done.name != notebook.name]
        named["the other notebooks"] = digest(*others)
        named["the commit"] = environment_facts()["commit"]
    return named | _versions(root)


def _versions(root: Path) -> dict[str, str]:
    lock = root / "requirements.lock"
    return {"the locked versions": digest(sys.version.encode(), lock.read_bytes() if lock.exists() else b"")}


# --- the run behind the pages -----------------------------------------------------------------------------------------


def run_inputs(root: Path = ROOT) -> dict[str, str]:
    """What the numbers of a run depend on beside its settings, each with a digest: the modules behind `experiment`, but
    not the one that only draws, and the locked versions."""
    package = root / PACKAGE
    source, drawn = package / "runs" / "run.py", package / "records" / "grids.py"
    files = ({source} | dependencies(source, package)) - {drawn} if source.exists() else set()
    return {str(file.relative_to(root)): digest(file.read_bytes()) for file in sorted(files)} | _versions(root)


def forget_stale_run(record: Path, root: Path = ROOT, say: Say = print) -> None:
    """Delete a record, and the finished stages of its run, if it is not known to be made by the code as it is now.

    Beside the record a file with the same name and the suffix `.inputs` tells what it is made by; it is written here,
    before the run.

    Args:
        record: of the run behind the pages; it need not exist. The stages are in `runs/` under its name.
    """
    from dpldm.records.files import write_atomically

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
        say(f"{record.stem}: to be made again, {shortened(changed) if before else 'made by unknown code'}")
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
    from dpldm.records.files import write_atomically

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
    return [found for name in names if (found := execution(name, root))]


def execution(name: str, root: Path) -> Execution | None:
    """None where it was not executed, or its notebook is not the one that was written then."""
    folder = root / "executed"
    try:
        found = Execution(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        return found if found.output == digest((folder / f"{name}.ipynb").read_bytes()) else None
    except (OSError, ValueError, TypeError):
        return None


def changes(notebook: Notebook, now: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """What is different from the notebook's last execution, in words; empty if nothing is."""
    last = execution(notebook.name, root)
    if last is None:
        return ["not executed yet"]
    return [f"{name} changed" for name in {**now, **last.inputs} if now.get(name) != last.inputs.get(name)]


def reports(notebook: Notebook) -> bool:
    """Whether it looks at the executed notebooks: it depends on all others."""
    here, text = Path(__file__).resolve(), text_of(notebook.source)
    return here in imported_files(text, notebook.source.parent, here.parent.parent)


def shortened(reasons: list[str]) -> str:
    """The first two reasons, and how many more there are."""
    return ", ".join(reasons[:2]) + (f" and {len(reasons) - 2} more" if len(reasons) > 2 else "")
