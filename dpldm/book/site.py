"""The site: executed notebooks and prose through Jupyter Book, to HTML."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from dpldm.book.freshness import digest, folder_digest
from dpldm.book.notebooks import PACKAGE, ROOT, BookError, Say


def site_digest(root: Path) -> str:
    """A digest of all that the site is made of."""
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
    build, stamp = root / "_build", site_digest(root)
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
