"""The notebooks of the book: where they lie, their order, and the parameters that they take."""

import ast
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = ("dataset", "epsilon", "seed", "profile")  # of the reference run; the same in every notebook
TOC_KEYS = (
    "format", "root", "defaults", "options", "parts", "caption", "chapters", "sections", "file", "url", "glob",
    "title", "entries", "subtrees", "numbered", "maxdepth", "hidden", "reversed", "titlesonly",
)  # fmt: skip
PACKAGE = "dpldm"
KERNEL = "python3"
Say = Callable[[str], None]


class BookError(ValueError):
    """The book can't be built as asked. One line: what was expected, what arrived, the way out."""


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
        return list(files(yaml.compose(_checked_text(path, root))))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise fault(mark, f"no YAML: {error.problem}") from None


def text_of(path: Path) -> str:
    """The text of a source, without the mark that some editors begin UTF-8 with."""
    return path.read_text(encoding="utf-8-sig")


def _checked_text(path: Path, root: Path) -> str:
    try:
        return text_of(path)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        said = f"expected UTF-8, got the byte {error.object[error.start]:#04x}: save it as UTF-8"
        raise BookError(f"{path.relative_to(root)}, line {line}: {said}") from None


def _check_python(source: Path, root: Path) -> None:
    text = _checked_text(source, root)
    try:
        ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        written = text.split("\n")[line - 1].strip()
        if written.startswith(("%", "!")):
            said = f"magics stand in comments in a source, write it as `# {written}`"
        raise BookError(f"{source.relative_to(root)}, line {line}: no Python: {said}") from None


def _existing(path: Path, root: Path) -> Path:
    if not path.is_file():
        where = path.relative_to(root)
        raise BookError(f"expected {where}, found no such file: write it or take it out of _toc.yml")
    return path


def read_notebook(source: Path) -> Any:
    """A notebook of `notebooks/` as nbformat has it, with ids that do not change from one reading to the next."""
    import jupytext

    node = jupytext.reads(text_of(source), fmt=source.suffix[1:])
    node.metadata["kernelspec"] = {"name": KERNEL, "display_name": "Python 3", "language": "python"}
    for position, cell in enumerate(node.cells):
        cell["id"] = f"cell-{position:03d}"
    return node


def _defaults(source: Path) -> dict[str, Any]:
    import papermill

    found = {}
    for name, parameter in papermill.inspect_notebook(read_notebook(source)).items():
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


def check_by_library(found: Iterable[Notebook], parameters: Mapping[str, Any], root: Path) -> Path | None:
    """What a run would refuse is refused before the first notebook starts, in the words of the library.

    Returns:
        Where the record of the build's run is, or will be; None if the notebooks make no run.
    """
    defaults: dict[str, Any] = {}
    for notebook in found:
        defaults |= {name: value for name, value in notebook.defaults.items() if name in SHARED}
    asked = defaults | dict(parameters)
    if {"dataset", "epsilon"} <= set(asked):
        from dpldm.data.datasets import data_folder
        from dpldm.runs.experiment import Experiment, Folders
        from dpldm.runs.job import check

        described = {name: asked[name] for name in SHARED if name in asked}
        runs = root / "runs"
        return check(Experiment(**described), Folders(runs / "records", runs, root / data_folder()))  # as in a notebook
    return None
