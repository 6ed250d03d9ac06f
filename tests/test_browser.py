"""The built pages in a real browser: no error, no request outside, nothing that a screen reader stumbles over.

They need Chromium (Debian: `apt install chromium`) and a built book; without, they are skipped and say so.
"""

import functools
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from tools import build

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if not build.STAMP.exists():
    pytest.skip("the book is not built: run `make book` first", allow_module_level=True)
if not CHROMIUM:
    pytest.skip("there is no Chromium here: the pages were not opened in a browser", allow_module_level=True)

DOCUMENTS = list(build.table_of_contents())
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 400, "height": 800}
# Faults that theme and Sphinx bring themselves: the logo outside of any landmark, the roles of a bibliography.
NOT_OURS = {"region", "aria-allowed-role", "aria-deprecated-role", "aria-required-children"}


class Pages(SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/favicon.ico":  # browsers ask every server for one; read from a disk, nobody does
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(build.HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """Open a document in a window of a size; `page.faults` collects errors and requests that leave the machine."""
    contexts = []

    def open_page(document, size=WIDE, **settings):
        contexts.append(browser.new_context(viewport=size, **settings))
        page, faults = contexts[-1].new_page(), []

        def only_here(route):
            if route.request.url.startswith((address, "data:", "blob:")):
                return route.continue_()
            faults.append(f"asks for {route.request.url}")
            route.abort()

        page.route("**/*", only_here)
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("response", lambda response: faults.append(f"no {response.url}") if response.status >= 400 else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{address}/{document}", wait_until="load")
        page.faults = faults
        return page

    yield open_page
    for context in contexts:
        context.close()


def with_a(pattern):
    """The documents whose page holds this, in the order of the book."""
    return [name for name in DOCUMENTS if re.search(pattern, (build.HTML / f"{name}.html").read_text("utf-8"))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_loads_without_a_fault(visit, name):
    page = visit(f"{name}.html")
    page.wait_for_load_state("networkidle")
    assert not page.faults  # before axe, which asks for style sheets at addresses of its own
    found = {fault["id"]: fault["nodes"][0]["html"] for fault in Axe().run(page).response["violations"]}
    assert not {fault: where for fault, where in found.items() if fault not in NOT_OURS}


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(("01-quickstart", "style"))])
def test_can_be_read_in_the_dark_theme(visit, name):
    """Of the two pages, one has figures, players and an exercise, the other tables and code."""
    page = visit(f"{name}.html", color_scheme="dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    found = Axe().run(page, options={"runOnly": ["color-contrast"]}).response["violations"]
    assert not [node["html"] for fault in found for node in fault["nodes"]]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_fits_a_narrow_window(visit, name):
    page = visit(f"{name}.html", NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_players_play(visit):
    page = visit(f"{with_a('<audio')[0]}.html")
    player = page.locator("audio").first
    assert player.evaluate("audio => audio.play().then(() => audio.duration)") > 0.5
    page.wait_for_function("document.querySelector('audio').currentTime > 0.1")


MOVING = "figure:has(input[type=range])"  # listening figures and sliders


@pytest.mark.parametrize("name", with_a("type=.range"))
def test_figures_move_by_the_keyboard(visit, name):
    page = visit(f"{name}.html")
    for figure in page.locator(MOVING).all():
        if not figure.is_visible():
            continue  # folded, in a solution
        control = figure.locator("input[type=range]")
        before = figure.screenshot(), control.get_attribute("aria-valuetext"), control.input_value()
        control.focus()
        page.keyboard.press("ArrowRight" if float(before[2]) < float(control.get_attribute("max")) else "ArrowLeft")
        for _ in range(20):  # a listening figure moves by hundredths of a second
            page.keyboard.press("ArrowRight")
        after = figure.screenshot(), control.get_attribute("aria-valuetext"), control.input_value()
        assert all(one != other for one, other in zip(before, after, strict=True)), figure.get_attribute("id")
        assert figure.locator("img:visible").count() == 1


@pytest.mark.parametrize("name", with_a("type=.range"))
def test_without_script_a_still_picture_remains(visit, name):
    page = visit(f"{name}.html", java_script_enabled=False)
    figures = page.locator(MOVING)
    assert figures.count()
    for figure in figures.all():
        assert figure.locator("img:visible").count() == 1 and figure.locator("img:visible").get_attribute("alt")
        assert not figure.locator("input").is_visible()  # it could not move anything
        player, note = figure.locator("audio"), figure.locator("noscript")
        assert player.is_visible() if player.count() else "the slider needs JavaScript" in note.inner_text()


def test_search_finds_what_the_book_explains(visit):
    page = visit("search.html?q=softmax")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li").count() >= 3
    assert not page.faults
