"""The book: notebooks → papermill → executed notebooks → Jupyter Book → site. A join; the computing is elsewhere."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpldm.book.execution import check_executed, execute
from dpldm.book.freshness import changes, forget_stale_run, inputs, reports, shortened
from dpldm.book.notebooks import ROOT, BookError, Notebook, Say, check_by_library, check_parameters, notebooks
from dpldm.book.pdf import build_pdf, find_chromium
from dpldm.book.site import build_site


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
