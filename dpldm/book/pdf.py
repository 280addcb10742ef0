"""The whole book as one PDF: all pages as one page of HTML, printed by Chromium."""

import shutil
import subprocess
import time
from pathlib import Path

from dpldm.book.notebooks import ROOT, BookError, Say
from dpldm.book.site import render

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
_PATIENCE = 100_000  # milliseconds of the page's own time, for its mathematics to be drawn
_LIMIT = 600  # seconds


def find_chromium() -> str:
    """The program that prints.

    Raises:
        BookError: there is none; says how to get it.
    """
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        raise BookError("the PDF needs Chromium and found none: install it with `sudo apt install chromium`")
    return found


def build_pdf(root: Path = ROOT, say: Say = print) -> Path:
    """Make `_build/book.pdf` of the pages and the executed notebooks; returns its path.

    Raises:
        BookError: there is no Chromium, the pages have a warning, or nothing was printed; the old PDF is left then.
    """
    program, start, new = find_chromium(), time.monotonic(), root / "_build" / "whole"
    say("PDF: …")
    folder = render(new, root, say, builder="singlehtml")
    whole, printed = folder / "whole.html", new / "book.pdf"
    (folder / "book" / "index.html").rename(whole)  # its links are those of a page in the first folder
    words = [
        f"--virtual-time-budget={_PATIENCE}",
        "--no-pdf-header-footer",
        f"--print-to-pdf={printed}",
        whole.as_uri(),
    ]
    try:
        subprocess.run([program, *_FLAGS, *words], check=True, capture_output=True, timeout=_LIMIT)
        made = printed.replace(root / "_build" / "book.pdf")
    except (subprocess.SubprocessError, OSError) as error:
        raise BookError(f"PDF: {program} printed nothing ({type(error).__name__}): try it by hand on {whole}") from None
    shutil.rmtree(new, ignore_errors=True)
    say(f"PDF: {time.monotonic() - start:.0f} s, {made.relative_to(root)}")
    return made
