"""Sphinx extension of the book: no scripts from elsewhere, and links that point at files that exist.

The notebooks are committed as `notebooks/NAME.py`, but the pages are made from `executed/NAME.ipynb`, which is not
committed: "edit this page" and the launch buttons lead to the former. Without a repository there are none of them.
"""

import html
import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import yaml
from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.search.en import SearchEnglish
from sphinx.util.docutils import SphinxDirective, SphinxRole

BUTTONS = ("use_repository_button", "use_edit_page_button", "use_issues_button")
FIELD = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (\S.*)")  # of a dataclass, as its docstring lists them
SIGNATURE = re.compile(r"<dl>((?:\s*<dd><em class=\"sig-param\">.*</dd>)+\s*)</dl>")  # on several lines
EXECUTED = re.compile(r"executed/([\w-]+)\.ipynb")


class AuthorYearLabels(BaseLabelStyle):
    """Labels of the bibliography as the text cites: "Dwork and Roth, 2014", "Abadi et al., 2016"."""

    def format_labels(self, sorted_entries: Any) -> Any:
        for entry in sorted_entries:
            people = entry.persons["author"]
            names = [" ".join(map(str, [*one.rich_prelast_names, *one.rich_last_names])) for one in people]
            whole = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
            yield f"{whole}, {entry.fields['year']}"


class AuthorYearStyle(PlainStyle):
    default_label_style = AuthorYearLabels


register_plugin("pybtex.style.formatting", "author_year", AuthorYearStyle)


def set_repository(app: Sphinx, config: Config) -> None:
    """Buttons where the repository's address is known: DPLDM_REPOSITORY, or `repository.url` in _config.yml."""
    options = config.html_theme_options
    url = (os.environ.get("DPLDM_REPOSITORY") or options.get("repository_url") or "").rstrip("/").removesuffix(".git")
    options["repository_url"] = url
    options.update(dict.fromkeys(BUTTONS, bool(url)))
    if not url:
        options["launch_buttons"] = {}
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or len([part for part in parts.path.split("/") if part]) < 2:
        raise ExtensionError(f"repository address: expected https://HOST/OWNER/NAME, got {url!r}")
    known = [name for name in ("github", "gitlab", "bitbucket") if name in parts.netloc]
    options["repository_provider"] = known[0] if known else "gitlab"  # the theme stops at a host it does not know


def point_at_sources(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Edit and launch links of a notebook's page lead to the notebook."""

    def corrected(buttons: list[dict[str, Any]]) -> None:
        for button in buttons:
            corrected(button.get("buttons", []))
            if "url" in button and "_sources" not in button["url"]:
                button["url"] = EXECUTED.sub(r"notebooks/\1.py", button["url"])

    corrected(context.get("header_buttons", []))


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Thebe is not used; its script names a server and is declared twice, which is an error in the browser."""

    def needed(file: Any) -> bool:
        return "thebe" not in f"{getattr(file, 'filename', file)} {getattr(file, 'attributes', {}).get('body', '')}"

    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if needed(file)]


def set_language(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """A page whose front matter has `lang: zh-CN` is marked so, for screen readers and fonts."""
    language = app.env.metadata.get(page, {}).get("lang")
    if language:
        context["language"] = language


def correct_roles(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """A bibliography is no ARIA list: its entries have a role of their own. And the lines of a long signature define
    nothing, so they are no list of definitions."""

    def as_lines(found: re.Match[str]) -> str:
        lines = found[1].replace("<dd>", "<div>").replace("</dd>", "</div>")
        return f'<div class="sig-lines">{lines}</div>'

    if "body" in context:
        body = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        context["body"] = SIGNATURE.sub(as_lines, body)


def plain_docstrings(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Lines like `seed: 0 to 10⁹` become a list, and a bar stays a bar: the docstrings are plain text."""
    written: list[str] = []
    in_list = False
    for line in lines:
        if not line.startswith((">>>", "...")):
            parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
            line = "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)
        field = FIELD.match(line)
        if field:
            written += ([] if in_list else [""]) + [f"- ``{field[1]}``: {field[2]}"]
        elif in_list and line.startswith("    "):
            written.append(f"  {line.strip()}")
        else:
            written += ["", line] if in_list and line else [line]
        in_list = bool(field) or (in_list and line.startswith("    "))
    lines[:] = written


def readable_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Defaults as one would write them: what Python prints of a function is not Python, and such a signature is shown
    as it is, with the names of all modules."""
    if signature is not None:
        signature = re.sub(r"<factory>|<function <lambda>>", "...", signature)
        signature = re.sub(r"<(?:built-in )?function (\w+)(?: at 0x\w+)?>", r"\1", signature)
        signature = signature.replace("PosixPath(", "Path(")
    return signature, returned


def skip_inherited(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """What another library puts into our classes is documented there."""
    return True if (getattr(thing, "__module__", None) or "dpldm").startswith("matplotlib") else None


def write_first_page(app: Sphinx, failure: Exception | None) -> None:
    """`index.html` leads to the book's first page, with a title and an icon, which the plain redirect lacks."""
    if failure is None and app.builder.format == "html":
        first, title = f"{app.config.root_doc}.html", html.escape(app.config.html_title)
        icon = f"_static/{Path(app.config.html_favicon).name}"
        lines = [
            "<!DOCTYPE html>",
            f'<html lang="{app.config.language}"><head><meta charset="utf-8"><title>{title}</title>',
            f'<link rel="icon" href="{icon}"><meta http-equiv="refresh" content="0; url={first}"></head>',
            f'<body><main><h1><a href="{first}">{title}</a></h1></main></body></html>',
        ]
        Path(app.outdir, "index.html").write_text("\n".join(lines) + "\n", encoding="utf-8")


CHINESE = re.compile(r"[\u3400-\u9fff]+")


class WordsAndChinese(SearchEnglish):
    """English, and Chinese by every single and every two neighbouring characters: it has no spaces between words.
    Longer queries are found by the search's partial matches."""

    def split(self, input: str) -> list[str]:
        runs = CHINESE.findall(input)
        parts = [run[start : start + size] for run in runs for size in (1, 2) for start in range(len(run) - size + 1)]
        return [*super().split(input), *parts]


class CitationBox(SphinxDirective):
    """How to cite this edition: what `CITATION.cff` says, as a sentence and for BibTeX."""

    def run(self) -> list[nodes.Node]:
        source = Path(self.env.app.confdir) / "CITATION.cff"
        self.env.note_dependency(str(source))
        cited = yaml.safe_load(source.read_text(encoding="utf-8"))
        year, url = str(cited["date-released"])[:4], self.config.html_theme_options.get("repository_url")
        authors = " and ".join(f"{{{one['name']}}}" for one in cited["authors"])
        fields = {"author": authors, "title": f"{{{cited['title']}}}", "version": cited["version"], "year": year}
        fields |= {"url": url} if url else {"note": "software"}
        entry = "\n".join(f"  {name} = {{{value}}}," for name, value in fields.items())
        said = f"{', '.join(one['name'] for one in cited['authors'])} ({year}). {cited['title']}. "
        said += f"Version {cited['version']}." + (f" {url}" if url else "")
        box = nodes.admonition("", nodes.title("", "To cite this book"), nodes.paragraph("", said), classes=["note"])
        box += nodes.literal_block("", f"@software{{dpldm,\n{entry}\n}}", language="none")
        return [box]


class PdfLink(SphinxRole):
    """A link to the PDF beside these pages; where there is none, how to make it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        path = Path(self.env.app.confdir) / "_build" / "book.pdf"
        if self.env.app.builder.format == "html" and path.is_file():
            return [nodes.raw("", '<a href="../book.pdf">The whole book as one PDF</a>.', format="html")], []
        said = "This build has none, because no `make pdf` came before it. `make pdf` prints the whole book to "
        said += "`_build/book.pdf` and links it here. It needs Chromium"
        chromium = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")))
        said += "." if chromium else ", which the machine of this build lacks: `sudo apt install chromium`."
        parts = said.split("`")
        return [nodes.literal("", part) if odd % 2 else nodes.Text(part) for odd, part in enumerate(parts)], []


def add_pdf(app: Sphinx, failure: Exception | None) -> None:
    """The PDF, where it was made, lies beside the pages."""
    path = Path(app.confdir) / "_build" / "book.pdf"
    if failure is None and app.builder.name == "html" and path.is_file():
        shutil.copy(path, Path(app.outdir) / "book.pdf")


AT_HOME = """\
# A copy of a page of the book. It needs the book's repository and environment, and works in the repository's folder.
import importlib.util
import os
from pathlib import Path

found = importlib.util.find_spec("dpldm")
home = Path(found.origin).resolve().parent.parent if found and found.origin else None
if home is None or not (home / "_toc.yml").exists():
    raise RuntimeError("{needs}")
os.chdir(home)"""
NEEDS = (
    "this notebook needs the book's repository{where}: get it, run `make setup` in it, then start Jupyter from .venv"
)


def let_downloads_work(app: Sphinx, failure: Exception | None) -> None:
    """The notebook that a page offers for download gets a first cell that finds the repository, or says that it needs
    it before anything is computed."""
    if failure is not None or app.builder.format != "html":
        return
    url = app.config.html_theme_options.get("repository_url")
    source = AT_HOME.format(needs=NEEDS.format(where=f" ({url})" if url else ""))
    for path in sorted(Path(app.outdir, "_sources", "executed").glob("*.ipynb")):
        node = nbformat.read(path, as_version=4)
        cell = nbformat.v4.new_code_cell(source, id="at-home")
        node.cells.insert(0, cell)
        path.write_text(nbformat.writes(node), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_search_language(WordsAndChinese)
    app.add_directive("citation-box", CitationBox)
    app.add_role("pdf-link", PdfLink())
    app.connect("config-inited", set_repository)
    for change in (point_at_sources, drop_thebe, set_language, correct_roles):
        app.connect("html-page-context", change, priority=900)  # after the theme
    app.connect("autodoc-process-docstring", plain_docstrings, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("autodoc-skip-member", skip_inherited)
    app.connect("build-finished", write_first_page, priority=900)
    app.connect("build-finished", add_pdf)
    app.connect("build-finished", let_downloads_work, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
