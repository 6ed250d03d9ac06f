"""What `make dist` makes from the built book: whole, without leftovers, and of use outside this repository."""

import hashlib
import json
import re
import subprocess
import sys
import time
import venv
from functools import cache
from html import unescape
from pathlib import Path
from zipfile import ZipFile

import pytest
from playwright.sync_api import sync_playwright
from pypdf import PdfReader

from tools import build, dist

if not build.STAMP.exists():
    pytest.skip("the book is not built: run `make book` first", allow_module_level=True)

needs_chromium = pytest.mark.skipif(not dist.CHROMIUM, reason="there is no Chromium here")
ZIPS = ("html", "notebooks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("dist")
    dist.make(made)
    return made


@pytest.fixture(scope="module")
def unpacked(folder, tmp_path_factory):
    """The folder into which all zips were unpacked; each has a folder of its own in there."""
    place = tmp_path_factory.mktemp("unpacked")
    for kind in ZIPS:
        ZipFile(folder / f"{dist.NAME}-{kind}.zip").extractall(place)
    return place


@pytest.fixture(scope="module")
def reader(folder):
    return PdfReader(folder / f"{dist.NAME}.pdf")


@cache
def heading(name):
    page = (build.HTML / f"{name}.html").read_text("utf-8")
    title = re.search(r"<article.*?<h1>(.*?)<a class=.headerlink", page, re.S)[1]
    return unescape(re.sub("<[^>]*>", "", title))


def test_sums_are_right_and_cover_everything(folder):
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    others = {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    assert {name for _, name in lines} == others and len(others) == 3 + bool(dist.CHROMIUM)
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for digest, name in lines)
    assert all(f"-{dist.VERSION}" in name for name in others)


@pytest.mark.parametrize("kind", ZIPS)
def test_a_zip_is_one_folder_in_order_with_its_licences(folder, kind):
    entries = ZipFile(folder / f"{dist.NAME}-{kind}.zip").infolist()
    names = [entry.filename for entry in entries]
    assert names == sorted(names)
    assert all(name.startswith(f"{dist.NAME}-{kind}/") and ".." not in name for name in names)
    assert {entry.date_time[:5] for entry in entries} == {time.gmtime(dist.last_commit())[:5]}
    assert {f"{dist.NAME}-{kind}/{name}" for name in dist.LICENCES} <= set(names)


def test_no_leftovers_of_the_build(unpacked):
    pages = unpacked / f"{dist.NAME}-html"
    files = {path for path in pages.rglob("*") if path.is_file()}
    assert not [path for path in files if path.name.startswith(".") or path.suffix in (".doctree", ".map", ".pickle")]
    sources = {path for path in files if "_sources" in path.parts}
    linked = {
        (page.parent / link).resolve()
        for page in pages.rglob("*.html")
        for link in re.findall(r'href="([^"]*_sources/[^"]*)"', page.read_text("utf-8"))
    }
    assert sources == linked


@needs_chromium
def test_pages_work_from_a_file(unpacked):
    faults = []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
        page = playwright.chromium.launch(executable_path=dist.CHROMIUM, args=flags).new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        first = unpacked / f"{dist.NAME}-html" / "index.html"
        page.goto(first.as_uri())
        page.wait_for_url("**/book/index.html")
        page.locator("article a", has_text="From sound wave to token").first.click()
        page.wait_for_selector("mjx-container")
        assert page.locator("audio").first.evaluate("audio => audio.play().then(() => audio.duration)") > 0.5
        assert page.evaluate("[...document.images].every(image => !image.complete || image.naturalWidth)")
        assert not faults
        page.goto(first.with_name("search.html").as_uri() + "?q=softmax")
        page.wait_for_selector("#search-results li a")  # only the excerpts need a server


@needs_chromium
def test_the_pdf_has_parts_chapters_and_headings_in_its_outline(reader):
    toc = build.table_of_contents()
    chapters = [heading(toc.root.docname)]
    expected = ["Contents", *chapters]
    for part in toc.root.subtrees:
        expected += [part.caption, *map(heading, part.files())]
    top = list(two_levels(reader.outline))
    assert [item.title for item in top] == expected
    begins = [reader.get_destination_page_number(item) for item in top]
    assert begins == sorted(begins) and len(reader.outline) < len(expected) < count(reader.outline)


def two_levels(outline, level=1):
    """Parts and chapters, in their order; headings within chapters stand deeper."""
    for item in outline:
        if not isinstance(item, list):
            yield item
        elif level < 2:
            yield from two_levels(item, level + 1)


def count(outline):
    return sum(count(item) if isinstance(item, list) else 1 for item in outline)


@needs_chromium
def test_the_contents_of_the_pdf_name_the_right_pages(reader):
    contents = " ".join((reader.pages[1].extract_text() + reader.pages[2].extract_text()).split())
    for item in two_levels(reader.outline[1:]):
        if item.title in map(heading, build.table_of_contents()):
            assert f"{item.title} {reader.get_destination_page_number(item) + 1}" in contents


@needs_chromium
def test_the_pdf_is_a_book(folder, reader):
    assert (folder / f"{dist.NAME}.pdf").stat().st_size < 20e6
    assert len(reader.pages) > 10 * len(list(build.table_of_contents()))
    assert reader.metadata.title == dist.BOOK["title"] and reader.metadata.author == dist.BOOK["author"]
    assert dist.VERSION in reader.pages[0].extract_text()
    links = [note.get_object() for page in reader.pages for note in page.get("/Annots", [])]
    inside = [link["/Dest"] for link in links if "/Dest" in link]
    assert len(inside) > 300 and set(inside) <= set(reader.named_destinations)
    assert not [link["/A"]["/URI"] for link in links if "/A" in link and link["/A"].get("/URI", "").startswith("file:")]


@pytest.fixture(scope="module")
def python(folder, tmp_path_factory):
    """A Python with the wheel installed, which finds its dependencies, but not this repository."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place)
    interpreter = next(path for path in (place / "bin/python", place / "Scripts/python.exe") if path.exists())
    package = next(folder.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, package], check=True)
    packages = next(place.rglob("site-packages"))
    (packages / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))
    return interpreter


def test_notebooks_run_where_they_were_unpacked(unpacked, python):
    """All import what they import, from the wheel, and find the model, the runs and the published numbers."""
    notebooks = unpacked / f"{dist.NAME}-notebooks" / "notebooks"
    chapters = [code_cells(path) for path in sorted(notebooks.glob("*.ipynb"))]
    assert len(chapters) == len(list(build.NOTEBOOKS.glob("*.ipynb")))
    assert not any(cell["outputs"] for cells in chapters for cell in cells)
    imports = [next(text for text in map(source, cells) if "from helpers" in text) for cells in chapters]
    end = """
import helpers, sys
from helpers.models import load_lalm
from helpers.runs import committed
assert helpers.__file__.startswith(sys.prefix), helpers.__file__
print(load_lalm("tiny").name, (committed("no-hint.jsonl").parents[1] / "book/data/published-mata.csv").is_file())
"""
    script = "\n".join([*imports, end])
    run = subprocess.run([python, "-c", script], cwd=notebooks, capture_output=True, text=True)
    assert run.stdout.endswith("tiny True\n"), run.stderr


def code_cells(path):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def test_the_wheel_is_the_same_each_time_and_says_whose_it_is(folder, tmp_path):
    package = dist.wheel(tmp_path)
    assert package.read_bytes() == next(folder.glob("*.whl")).read_bytes()
    names = ZipFile(package).namelist()
    assert {"helpers/checkpoints/tiny/model.safetensors", "helpers/checkpoints/tiny-unbiased/config.json"} <= set(names)
    assert not [name for name in names if not name.startswith(("helpers/", "lalm_listening-"))]
    info = f"lalm_listening-{dist.VERSION}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    metadata = ZipFile(package).read(f"{info}/METADATA").decode()
    assert f"Author: {dist.BOOK['author']}\n" in metadata and dist.BOOK["repository"]["url"] in metadata


def test_without_chromium_a_sentence_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dist, "CHROMIUM", None)
    for part in ("pages", "wheel", "notebooks"):
        monkeypatch.setattr(dist, part, lambda folder, *_: (folder / "some.zip").touch())
    dist.make(tmp_path)
    assert "PDF was not made" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"some.zip", "SHA256SUMS"}
