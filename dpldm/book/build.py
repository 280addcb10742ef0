"""The book: notebooks → papermill → executed notebooks → Jupyter Book → site. A join; the computing is elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpldm.book.execution import check_executed, execute
from dpldm.book.freshness import changes, digest, folder_digest, forget_stale_run, inputs, reports, shortened
from dpldm.book.notebooks import PACKAGE, ROOT, BookError, Notebook, Say, check_by_library, check_parameters, notebooks

# --- the site ---------------------------------------------------------------------------------------------------------


def _site_inputs(root: Path) -> str:
    folders = [
        ("book", "*"), ("executed", "*.ipynb"), (PACKAGE, "*.py"), ("notebooks/coursework", "*.py"),
    ]  # fmt: skip
    files = [
        root / name for name in ("_config.yml", "_toc.yml", "requirements.lock", "CITATION.cff", "_build/book.pdf")
    ]
    parts = [folder_digest(root / folder, pattern).encode() for folder, pattern in folders]
    parts += [file.read_bytes() for file in files if file.exists()]
    return digest(*parts, os.environ.get("DPLDM_REPOSITORY", "").encode(), sys.version.encode())


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
    from dpldm.book.pdf import build_pdf, find_chromium

    if pdf:
        find_chromium()  # before the notebooks, which take long
    _execute_changed(chosen, found, parameters, root, say)
    if site and not only:
        check_executed(found, parameters, root)
        if pdf:
            build_pdf(root, say)
        build_site(root, say)


def _execute_changed(
    chosen: list[Notebook], found: list[Notebook], parameters: Mapping[str, Any], root: Path, say: Say
) -> None:
    """Two rounds: a notebook may have written a record that one before it reads. What reports on the build is last."""
    ordered = sorted(chosen, key=reports)
    checked = False
    for round_number in (1, 2):
        for position, notebook in enumerate(ordered, start=1):
            why = changes(notebook, inputs(notebook, parameters, root), root)
            if not why:
                if round_number == 1:
                    say(f"{notebook.name}: unchanged")
                continue
            if not checked:
                record = check_by_library(found, parameters, root)
                if record:
                    forget_stale_run(record, root, say)
                checked = True
            say(f"{notebook.name} ({position} of {len(ordered)}): executing, {shortened(why)}")
            say(f"{notebook.name}: {execute(notebook, parameters, root, say):.0f} s")
