"""The book as a PDF: printed by Chromium where there is one, refused in one line where there is none."""

import subprocess

import pytest
from conftest import make_book

from dpldm.book import build, pdf
from dpldm.book.notebooks import BookError


def test_without_chromium_one_line_says_so_before_any_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "CHROMIUM", ("no-such-browser",))
    root = make_book(tmp_path)
    with pytest.raises(BookError, match="the PDF needs Chromium and found none: install it with"):
        build.build({}, root=root, say=pytest.fail, pdf=True)
    assert not (root / "executed").exists()


def test_a_browser_that_prints_nothing_is_named_and_the_old_pdf_is_left(small_book, monkeypatch):
    (small_book / "_build" / "book.pdf").write_text("old")
    monkeypatch.setattr(pdf, "find_chromium", lambda: "false")
    with pytest.raises(BookError, match=r"PDF: false printed nothing \(CalledProcessError\)"):
        pdf.build_pdf(small_book, say=lambda line: None)
    assert (small_book / "_build" / "book.pdf").read_text() == "old"
    (small_book / "_build" / "book.pdf").unlink()


@pytest.mark.slow
def test_the_pdf_has_every_page_and_the_site_has_the_pdf(tmp_path):
    try:
        pdf.find_chromium()
    except BookError:
        pytest.skip("no Chromium here")
    page = "# Here\n\n{pdf-link}`book`\n"
    toc = "format: jb-book\nroot: book/index\nchapters:\n  - file: executed/toy\n  - file: book/edition\n"
    root = make_book(tmp_path, **{"book/edition.md": page, "_toc.yml": toc})
    build.build({}, root=root, say=lambda line: None)
    assert "This build has none" in (root / "_build" / "html" / "book" / "edition.html").read_text()
    build.build({}, root=root, say=lambda line: None, pdf=True)
    printed = root / "_build" / "html" / "book.pdf"
    assert printed.read_bytes().startswith(b"%PDF-")
    assert 'href="../book.pdf"' in (root / "_build" / "html" / "book" / "edition.html").read_text()
    text = subprocess.run(["pdftotext", printed, "-"], capture_output=True, text=True).stdout
    assert "A small book" in text
    assert "A toy notebook" in text
