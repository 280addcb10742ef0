"""Sphinx extension of the book: the coursework's pages are made from the masters in `notebooks/coursework/`."""

from typing import Any

from sphinx.application import Sphinx

from dpldm.coursework.masters import read_all
from dpldm.coursework.pages import MARKER, filled


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    if MARKER.search(source[0]):
        source[0] = filled(source[0], read_all(app.srcdir / "notebooks" / "coursework"))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
