"""The site as readers have it: in Chromium, on a desk and on a phone, light and dark, from a folder and from a server.

The small book of conftest.py is always looked at; `make test-all` looks at the real one too, the site in `_build/html`,
where it is up to date.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from dpldm.book import notebooks

AXE = Path(__file__).resolve().parent / "vendor" / "axe.min.js"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
)
DESK, PHONE = (1280, 900), (390, 844)
WAYS = [(DESK, "light", "folder"), (DESK, "dark", "server"), (PHONE, "light", "server"), (PHONE, "dark", "folder")]


# --- which site, which browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["small", pytest.param("real", marks=pytest.mark.slow)])
def site(request) -> Path:
    """The folder of a built site."""
    return request.getfixturevalue(f"{request.param}_site")


def chromium() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if shutil.which(name):
            return shutil.which(name)
    return None


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright in this environment")
    with playwright.sync_playwright() as started:
        program = chromium() or started.chromium.executable_path
        if not os.path.exists(program):
            pytest.skip("no Chromium here: install it with `apt install chromium` or `playwright install chromium`")
        browser = started.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(site):
    """The address of the site on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def pages_of(site: Path) -> list[str]:
    """Every page, without the ones in _static and the like, and without the first, which leads on to another."""
    found = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    return [page for page in found if not page.startswith("_") and page != "index.html"]


class Visit:
    """A page in the browser, and what went wrong on it."""

    def __init__(self, browser, size, scheme: str, base: str) -> None:
        width, height = size
        self.base, self.faults = base, []
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.on("request", self.note_request)
        self.page.on("requestfailed", self.note_failure)
        self.page.on("response", self.note_response)
        self.page.on("console", self.note_console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))

    def note_request(self, request) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.faults.append(f"request to {request.url}")

    def note_failure(self, request) -> None:
        if "ERR_ABORTED" not in (request.failure or ""):  # the first page leads on before its icon has come
            self.faults.append(f"failed: {request.url}")

    def note_response(self, response) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status} for {response.url}")

    def note_console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text}")

    def open(self, page: str) -> None:
        self.page.goto(f"{self.base}/{page}", wait_until="load")
        self.page.wait_for_timeout(100)
        # mathematics is drawn after the page has loaded
        self.page.evaluate("() => window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 0) : 0")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *error) -> None:
        self.context.close()


def visit(browser, way, site: Path, server: str) -> Visit:
    size, scheme, place = way
    return Visit(browser, size, scheme, site.as_uri() if place == "folder" else server)


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0][0]}-{way[1]}-{way[2]}")
def test_pages_load_without_fault_and_for_everybody(browser, site, server, way):
    """No request to another host, no error, nothing wider than the screen, no serious fault found by axe."""
    faults = []
    with visit(browser, way, site, server) as opened:
        for page in pages_of(site):
            opened.open(page)
            wider = opened.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wider > 1:
                opened.faults.append(f"{wider} pixels wider than the screen")
            assert opened.page.evaluate("document.documentElement.dataset.theme") == way[1]
            faults += [f"{page}: {fault}" for fault in opened.faults]
            opened.page.add_script_tag(path=AXE)
            found = opened.page.evaluate("axe.run({resultTypes: ['violations'], preload: false})")["violations"]
            opened.faults.clear()
            for violation in found:
                if violation["impact"] in ("serious", "critical"):
                    where = "; ".join(node["html"][:160] for node in violation["nodes"][:3])
                    opened.faults.append(f"axe {violation['id']} ({len(violation['nodes'])}): {where}")
            faults += [f"{page}: {fault}" for fault in opened.faults]
            opened.faults.clear()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("place", ["folder", "server"])
def test_search_finds_noise_multiplicity(browser, site, server, place):
    with visit(browser, (DESK, "light", place), site, server) as opened:
        opened.open("search.html?q=noise+multiplicity")
        opened.page.wait_for_selector("#search-results ul.search li a", timeout=10_000)
        opened.page.wait_for_timeout(500)  # the excerpts come later
        assert opened.page.locator("#search-results ul.search li a").count() >= 1
        opened.page.locator("#search-results ul.search li a").first.click()
        opened.page.wait_for_load_state("load")
        text = opened.page.inner_text("main").lower()
        assert "noise" in text
        assert "multiplicity" in text
        assert not opened.faults


@pytest.mark.parametrize("query", ["隐私", "差分隐私", "隐私合成"])
def test_search_finds_chinese_within_a_sentence(browser, site, server, query):
    with visit(browser, (DESK, "light", "server"), site, server) as opened:
        opened.open(f"search.html?q={query}")
        opened.page.wait_for_selector("#search-results ul.search li a", timeout=10_000)
        assert not opened.faults


def test_the_slider_shows_one_epsilon_at_a_time(browser, small_site, tmp_path):
    shutil.copytree(small_site, tmp_path / "site")
    page = tmp_path / "site" / "book" / "index.html"
    parts = "".join(f'<section data-epsilon="{epsilon}"><p>at {epsilon}</p></section>' for epsilon in (1, 10))
    slider = '<input type="range" min="0" max="1" step="1" value="1">'
    made = f'<div class="epsilon-slider"><label hidden>{slider} <output></output></label>{parts}</div>'
    page.write_text(page.read_text().replace("<section", f"{made}<section", 1))
    with Visit(browser, PHONE, "light", (tmp_path / "site").as_uri()) as opened:
        opened.open("book/index.html")
        seen = [opened.page.get_by_text(f"at {epsilon}", exact=True) for epsilon in (1, 10)]
        assert [part.is_visible() for part in seen] == [False, True]
        opened.page.locator(".epsilon-slider input").press("ArrowLeft")
        assert [part.is_visible() for part in seen] == [True, False]
        assert opened.page.locator(".epsilon-slider output").inner_text() == "ε = 1"
        assert not opened.faults


def test_mathematics_is_drawn(browser, site, server):
    drawn = 0
    with visit(browser, (DESK, "light", "folder"), site, server) as opened:
        for page in pages_of(site):
            if 'class="math' in (site / page).read_text(encoding="utf-8"):
                opened.open(page)
                assert opened.page.locator("mjx-container svg").count() >= 1, page
                assert opened.page.locator("[data-mjx-error]").count() == 0, page
                drawn += 1
    assert drawn


def test_a_fault_is_noticed(browser, small_site, tmp_path):
    """The checks above can fail."""
    shutil.copytree(small_site, tmp_path / "site")
    page = tmp_path / "site" / "book" / "index.html"
    bad = '<script src="https://example.invalid/x.js"></script><img src="gone.png"><div style="width:3000px">wide</div>'
    page.write_text(page.read_text().replace("<section", f"{bad}<section", 1))
    with Visit(browser, PHONE, "light", (tmp_path / "site").as_uri()) as opened:
        opened.open("book/index.html")
        assert any("request to https://example.invalid" in fault for fault in opened.faults)
        assert opened.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    assert any("gone.png" in fault for fault in broken_links(tmp_path / "site"))
    assert images_without_text(tmp_path / "site")


# --- in the files -----------------------------------------------------------------------------------------------------


def soup_of(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def broken_links(site: Path) -> list[str]:
    """Links, images and scripts of all pages that lead to no file, or to no place in it."""
    soups = {(site / page).resolve(): soup_of(site / page) for page in pages_of(site)}
    anchors = {
        page: {tag[key] for key in ("id", "name") for tag in soup.find_all(attrs={key: True})}
        for page, soup in soups.items()
    }
    faults = []
    for page, soup in soups.items():
        for tag in soup.find_all(["a", "img", "link", "script", "source"]):
            address = tag.get("href") or tag.get("src") or ""
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if tag.name != "a" and parts.scheme != "data":
                    faults.append(f"{page.relative_to(site)}: loads {address}")
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                faults.append(f"{page.relative_to(site)}: no file {address}")
            elif parts.fragment and target in anchors and unquote(parts.fragment) not in anchors[target]:
                faults.append(f"{page.relative_to(site)}: no place {address}")
    return faults


def images_without_text(site: Path) -> list[str]:
    """A text of nothing says "decoration", which is right in the frame of a page only; a file's name is no text."""
    faults = []
    for page in pages_of(site):
        for image in soup_of(site / page).find_all("img"):
            text = image.get("alt")
            decoration = text == "" and not image.find_parent("article")
            if not decoration and (not text or re.fullmatch(r"\S+\.(png|svg|jpg|gif)", text)):
                faults.append(f"{page}: {str(image)[:160]}")
    return faults


def test_every_link_and_anchor_works(site):
    assert not broken_links(site)


def test_every_image_has_a_text(site):
    assert not images_without_text(site)


def test_no_page_names_the_machine(site):
    """Neither the folder it was built in nor a service that is not used."""
    for file in [*site.rglob("*.html"), site / "searchindex.js"]:
        text = file.read_text(encoding="utf-8")
        for word in (str(Path.home()) + os.sep, str(notebooks.ROOT), "unpkg.com", "cdn.jsdelivr", "cdnjs"):
            assert word == "/" or word not in text, f"{file.relative_to(site)}: {word}"


def test_signatures_are_readable(site):
    """What Python prints of functions and other objects is for no reader."""
    for page in pages_of(site):
        text = soup_of(site / page).get_text()
        assert not re.findall(r".{0,60}(?:~dpldm|~torch|<factory>|<function| at 0x).{0,60}", text), page


def test_bibliography_is_labelled_as_the_text_cites(site):
    labels = [
        label.get_text().strip("[]")
        for page in pages_of(site)
        for label in soup_of(site / page).select(".citation > .label")
    ]
    assert labels
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"\D+, (19|20)\d\d[a-z]?", label) for label in labels), labels


def test_without_a_repository_there_are_no_dead_buttons(small_site):
    soup = soup_of(small_site / "executed" / "toy.html")
    links = " ".join(tag.get("href", "") for tag in soup.find_all("a"))
    assert "github" not in links
    assert "mybinder" not in links
