"""The built pages as a reader without a network gets them. `make book` builds them."""

import base64
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

from tools import build

if not build.STAMP.exists():
    pytest.skip("the book is not built: run `make book` first", allow_module_level=True)

DOCUMENTS = list(build.table_of_contents())
PAGES = [*DOCUMENTS, "genindex", "search"]
MAX_BYTES = 1_500_000  # a page with its pictures and sounds, without the scripts and styles that all pages share
FILE_NAME = re.compile(r"_images/|\.(png|jpe?g|gif|svg|webp)$", re.IGNORECASE)


@cache
def page(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def html(name: str) -> Path:
    return build.HTML / f"{name}.html"


def target(source: Path, url: str) -> Path:
    """The file that a relative URL on a page means."""
    path = unquote(urlsplit(url).path)
    return (source.parent / path).resolve() if path else source


def is_external(url: str) -> bool:
    return bool(urlsplit(url).netloc)


def resources(name: str) -> list[str]:
    """URLs that a browser loads to show a page: scripts, styles, fonts, pictures, sounds, frames."""
    soup = page(html(name))
    urls = [
        tag["src"] for tag in soup.select("script, img, audio, video, source, track, iframe, embed") if tag.get("src")
    ]
    links = soup.select("link[rel~=stylesheet], link[rel~=preload], link[rel~=icon], link[rel~=preconnect]")
    urls += [tag["href"] for tag in links] + [tag["data"] for tag in soup.select("object[data]")]
    return [url for url in urls if not url.startswith("data:")]


def test_every_document_has_a_page_with_content():
    assert DOCUMENTS
    assert build.empty_pages() == []


@pytest.mark.parametrize("name", PAGES)
def test_internal_links_and_anchors_lead_somewhere(name):
    broken = []
    for link in page(html(name)).select("a[href]"):
        url = urlsplit(link["href"])
        if url.scheme or url.netloc:
            continue
        file = target(html(name), link["href"])
        if not file.is_file() or (url.fragment and not page(file).find(id=unquote(url.fragment))):
            broken.append(link["href"])
    assert not broken


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_from_the_network(name):
    inline = " ".join(tag.text for tag in page(html(name)).select("style")) + " ".join(
        tag["style"] for tag in page(html(name)).select("[style]")
    )
    assert not [url for url in resources(name) if is_external(url)]
    assert not remote_in_css(inline)


def remote_in_css(text: str) -> list[str]:
    return re.findall(r"""(?:url\(\s*["']?|@import\s+["'])((?:https?:)?//[^"')\s]+)""", text)


def test_no_style_sheet_loads_from_the_network():
    sheets = {
        target(html(name), url) for name in PAGES for url in resources(name) if urlsplit(url).path.endswith(".css")
    }
    assert sheets
    assert not {sheet.name: found for sheet in sheets if (found := remote_in_css(sheet.read_text("utf-8")))}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_loads_is_there(name):
    assert not [url for url in resources(name) if not is_external(url) and not target(html(name), url).is_file()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_images_have_alternative_text(name):
    """A sentence for those who do not see the picture; the name of its file is none."""
    alts = [image.get("alt", "") for image in page(html(name)).select("article img")]
    assert not [alt for alt in alts if FILE_NAME.search(alt) or len(alt.split()) < 3]
    drawings = page(html(name)).select("article svg:not([aria-hidden=true])")
    assert not [
        str(svg)[:200] for svg in drawings if not (svg.get("aria-label") or svg.get("aria-labelledby") or svg.title)
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_players_have_a_sound_and_a_name(name):
    for player in page(html(name)).select("article :is(audio, video)"):
        shown = f"{player}"[:200]
        assert player.has_attr("controls"), shown
        assert player.get("aria-label") or player.get("aria-labelledby"), f"a player without a name: {shown}"
        sources = [tag["src"] for tag in [player, *player.select("source")] if tag.get("src")]
        assert sources, f"a player without a source: {shown}"
        assert all(media_bytes(html(name), source) > 200 for source in sources), f"a player of nothing: {shown}"


def media_bytes(source: Path, url: str) -> int:
    if url.startswith("data:"):
        return len(base64.b64decode(url.partition("base64,")[2]))
    return target(source, url).stat().st_size


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_traceback_and_no_stderr(name):
    """Only a cell tagged raises-exception may show an error."""
    tracebacks = page(html(name)).select(".cell:not(.tag_raises-exception) .output.traceback, .output.stderr")
    assert not [tag.text[:300] for tag in tracebacks]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_dead_widgets(name):
    """A live slider or a progress bar is nothing without a kernel."""
    assert not page(html(name)).select("script[type*='jupyter.widget'], .jupyter-widgets")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_page_is_light(name):
    files = {target(html(name), url) for url in resources(name) if not is_external(url)}
    own = [file for file in files if build.HTML / "_static" not in file.parents]
    total = sum(file.stat().st_size for file in [html(name), *own])
    assert total <= MAX_BYTES, f"{total / 1e6:.2f} MB"


def repository() -> tuple[str, str]:
    """Its address and its branch."""
    configured = yaml.safe_load((build.ROOT / "_config.yml").read_text())["repository"]
    return configured["url"], configured["branch"]


@pytest.mark.parametrize("name", PAGES)
def test_buttons_lead_to_this_repository(name):
    """The repository, a new issue that names the page, the page's source to edit and, of a chapter, Colab; no more."""
    url, branch = repository()
    buttons = {link["href"] for link in page(html(name)).select(".article-header-buttons a[href^=http]")}
    wanted = {url, f"{url}/issues/new?title=Issue%20on%20page%20%2F{name}.html&body=Your%20issue%20content%20here."}
    if name in DOCUMENTS:
        source = next(f"{name}{end}" for end in (".md", ".ipynb") if (build.ROOT / f"{name}{end}").is_file())
        wanted.add(f"{url}/edit/{branch}/{source}")
        if source.endswith(".ipynb"):
            path = url.removeprefix("https://github.com/")
            wanted.add(f"https://colab.research.google.com/github/{path}/blob/{branch}/{source}")
    assert buttons == wanted


@pytest.mark.parametrize("name", PAGES)
def test_links_into_this_repository_lead_somewhere(name):
    url, branch = repository()
    for link in page(html(name)).select(f"a[href^='{url}']"):
        kind, _, place = urlsplit(link["href"]).path.removeprefix(urlsplit(url).path).strip("/").partition("/")
        if kind in ("blob", "edit", "raw", "tree"):
            there, _, path = place.partition("/")
            assert there == branch and (build.ROOT / unquote(path)).exists(), link["href"]
        else:
            assert (kind, place) in {("", ""), ("issues", ""), ("issues", "new")}, link["href"]
