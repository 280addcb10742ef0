"""A notebook executed by papermill, and made ready for its page."""

import ast
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpldm.book.freshness import digest, effective, execution, inputs
from dpldm.book.notebooks import KERNEL, ROOT, BookError, Notebook, Say, read_notebook

SMOKE = """\
```{warning}
This page was made with the profile `smoke`, which only shows that everything works: its numbers and pictures mean
nothing.
```"""


@contextmanager
def _quiet_kernel() -> Iterator[Path]:
    """Kernels of this Python, without the settings of its user, and reproducible in the order of sets; gives the file
    in which they note how far they are."""
    from dpldm.runs.heartbeat import VARIABLE

    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "progress"
        changed = {
            VARIABLE: str(told),
            "IPYTHONDIR": folder,
            "JUPYTER_RUNTIME_DIR": folder,
            "JUPYTER_PATH": "",
            "JUPYTER_PREFER_ENV_PATH": "1",
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # as the command has it
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

    from dpldm.records.files import write_atomically
    from dpldm.runs.heartbeat import Heartbeat

    node, start, before = read_notebook(notebook.source), time.monotonic(), inputs(notebook, parameters, root)
    values = effective(notebook, parameters)
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
        "output": digest(text.encode()),
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

    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a magic, which is no Python
        return False
    named = [statement for statement in statements if isinstance(statement, ast.Assign)]
    glued = [statement for statement in statements if handed(statement)]
    if glued:
        return len(glued) >= len(named) and len(glued) + len(named) == len(statements)
    imported = [statement for statement in statements if isinstance(statement, ast.Import | ast.ImportFrom)]
    rest = [statement for statement in statements if statement not in imported]
    return bool(imported) and all(isinstance(one, ast.If) and "chdir" in ast.unparse(one) for one in rest)


def _failed(notebook: Notebook, cell: int | None, said: str, log: list[str], root: Path) -> BookError:
    from dpldm.records.files import write_atomically

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
        done, wanted = execution(notebook.name, root), effective(notebook, parameters)
        if done is None or done.parameters != wanted:
            got = "nothing" if done is None else _in_words(done.parameters)
            raise BookError(
                f"expected executed/{notebook.name}.ipynb with {_in_words(wanted)}, got {got}: run it again"
            )


def _in_words(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in parameters.items()) or "no parameters"
