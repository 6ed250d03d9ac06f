"""Make what a reader can take away, in `dist/`, from the built book: `make dist`.

- the pages in a zip, to be opened by a double click on `index.html`
- the whole book as a PDF (needs Chromium; without one, all the rest is made)
- the notebooks in a zip, with all that they read and the wheel that they import
- a wheel of `helpers` with the small models inside
- `SHA256SUMS` over these

The zips and the wheel are the same byte for byte for the same commit, book and tools. Nothing needs the network.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright
from pypdf import PdfReader

from tools.build import HTML, ROOT, STAMP, table_of_contents

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
NAME = f"lalm-listening-{VERSION}"
BOOK = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))  # its title, author, year and repository
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Code keeps the colours of keywords, names, strings and comments: a tag for each bracket would make half of the PDF.
PLAIN_TOKEN = re.compile(r'<span class="(?:bp|fm|kc|mf|mi|n|nb|ne|nn|o|ow|p|sa|se|si|w)">([^<]*)</span>')
LICENCES = ("LICENSE", "LICENSE-BOOK")
WHEEL_SOURCES = ("helpers", "pyproject.toml", "README.md", "LICENSE")
NOTEBOOK_FILES = ("notebooks", "results", "book/data", "benchmarks", "constraints.txt", *LICENCES)
NOTEBOOKS_README = f"""\
{BOOK["title"]}, version {VERSION}: the chapters as notebooks

With Python 3.11 or newer, in this folder:

    python3 -m venv .venv
    .venv/bin/python -m pip install -c constraints.txt {{wheel}}
    .venv/bin/python -m pip install jupyterlab
    .venv/bin/jupyter lab notebooks/

The installation fetches PyTorch and other packages, once; the notebooks need no network. The small model comes with the
wheel. Leave the folders beside one another: chapters read `results/` and `book/data/`.

Code: MIT (LICENSE). Text and figures: CC BY 4.0 (LICENSE-BOOK). {BOOK["repository"]["url"]}
"""


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def last_commit() -> int:
    """Time of the last commit, in seconds since 1970: the date of everything that is made."""
    return int(git("log", "-1", "--format=%ct"))


def tracked(*paths: str) -> dict[str, bytes]:
    """Contents of the files that git tracks, by name; what merely lies about in the folders stays out."""
    return {name: (ROOT / name).read_bytes() for name in git("ls-files", "-z", *paths).split("\0") if name}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """Pack files into one folder, which is called like the archive."""
    date = time.gmtime(last_commit())[:6]
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = ZipInfo(f"{path.stem}/{name}", date)
            entry.compress_type, entry.external_attr = ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, files[name])


# ------------------------------------------------------------------------------------------- pages, wheel, notebooks
def pages(folder: Path) -> None:
    """The built pages, without what only Sphinx and those who debug a theme read."""
    files = (file for file in HTML.rglob("*") if file.is_file())
    kept = [file for file in files if not file.name.startswith(".") and file.suffix not in (".inv", ".map")]
    write_zip(
        folder / f"{NAME}-html.zip",
        {file.relative_to(HTML).as_posix(): file.read_bytes() for file in kept} | tracked(*LICENCES),
    )


def wheel(folder: Path) -> Path:
    """The code of the book as a package; built from a copy, which leaves nothing in the working tree."""
    with tempfile.TemporaryDirectory() as copy:
        for name, content in tracked(*WHEEL_SOURCES).items():
            file = Path(copy, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", folder, copy],
            env=os.environ | {"SOURCE_DATE_EPOCH": str(last_commit())},
            check=True,
        )
    return next(folder.glob("*.whl"))


def notebooks(folder: Path, package: Path) -> None:
    readme = NOTEBOOKS_README.format(wheel=package.name).encode()
    files = tracked(*NOTEBOOK_FILES) | {package.name: package.read_bytes(), "README.txt": readme}
    write_zip(folder / f"{NAME}-notebooks.zip", files)


# --------------------------------------------------------------------------------------------------------------- PDF
def pdf(folder: Path) -> None:
    """Print all pages as one document, twice: the first time tells on which page each chapter begins."""
    path = folder / f"{NAME}.pdf"
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        source = Path(scratch, "book.html")
        source.write_text(whole_book(), "utf-8")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(source.as_uri())
        page.evaluate("MathJax.startup.promise")
        page.pdf(path=path, prefer_css_page_size=True)
        page.evaluate(
            "pages => document.querySelectorAll('.toc a')"
            ".forEach(link => link.nextElementSibling.textContent = pages[link.hash.slice(1)])",
            first_pages(path),
        )
        page.pdf(path=path, prefer_css_page_size=True, print_background=True, outline=True, tagged=True)
        browser.close()
    sign(path)


def first_pages(path: Path) -> dict[str, int]:
    """On which page, counted from 1, each anchor stands to which a link leads."""
    reader = PdfReader(path)
    anchors = reader.named_destinations.items()
    return {name.removeprefix("/"): reader.get_destination_page_number(place) + 1 for name, place in anchors}


def sign(path: Path) -> None:
    """Write the author over the browser's name and the date of the last commit over the hour of printing.

    Each takes as many bytes as what it replaces: the file finds its parts by their offsets.
    """
    data = path.read_bytes()
    date = time.strftime("D:%Y%m%d%H%M%S+00'00'", time.gmtime(last_commit())).encode()
    author = f"/Author ({BOOK['author']})".encode()
    data = re.sub(rb"D:\d{14}\+00'00'", date, data)
    data = re.sub(rb"/Creator \((\\.|[^\\)])*\)", lambda match: author.ljust(len(match[0])), data)
    path.write_bytes(data)


def whole_book() -> str:
    """One HTML document: title page, contents, and every page of the book, the parts by their names."""
    toc = table_of_contents()
    contents, body = [entry(toc.root.docname)], [chapter(toc.root.docname)]
    for part in toc.root.subtrees:
        contents.append(f"<p>{escape(part.caption)}</p>")
        body.append(f'<h1 class="part" aria-level="1">{escape(part.caption)}</h1>')
        contents += [entry(name) for name in part.files()]
        body += [chapter(name) for name in part.files()]
    return f"""<!doctype html>
<html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">
<title>{escape(BOOK["title"])}</title>
{head()}
<style>{STYLE}</style></head>
<body>
{title_page()}
<nav class="toc"><h1 aria-level="1">Contents</h1>{"".join(contents)}</nav>
{"".join(body)}
</body></html>"""


def title_page() -> str:
    author, url = escape(BOOK["author"]), BOOK["repository"]["url"]
    date = time.strftime("%Y-%m-%d", time.gmtime(last_commit()))
    return f"""<header class="title"><p>{escape(BOOK["title"])}</p><p>{author}</p><p>Version {VERSION}, {date}</p>
<p>© {BOOK["copyright"]} {author}. Text and figures: CC BY 4.0. Code: MIT.<br>
To run it, to listen and to move the sliders: <a href="{url}">{url}</a></p></header>"""


def entry(name: str) -> str:
    """The line of a document in the contents; the page number comes after the first print."""
    return f'<div><a href="#{anchor(name)}">{article(name).h1.decode_contents()}</a><span></span></div>'


def chapter(name: str) -> str:
    return f'<article class="bd-article" id="{anchor(name)}">{article(name).decode_contents()}</article>'


@cache
def article(name: str) -> Tag:
    """The text of a page, with ids and links that hold in one document of all pages, one level below its part."""
    page = HTML / f"{name}.html"
    text = BeautifulSoup(PLAIN_TOKEN.sub(r"\1", page.read_text("utf-8")), "html.parser").article
    for tag in text.select("script, noscript, .headerlink, details.above-input"):
        tag.decompose()
    for details in text.select("details.admonition"):
        details["open"] = ""
    for tag in text.select("[id]"):
        tag["id"] = anchor(name, tag["id"])
    for tag in text.select("[src]"):
        tag["src"] = urljoin(page.as_uri(), tag["src"])
    for link in text.select("a[href]"):
        link["href"] = inside(page, link["href"])
    for heading in text.select("h1, h2, h3, h4, h5"):
        heading["aria-level"] = int(heading.name[1]) + 1  # what the outline of the PDF goes by
    return text


def anchor(name: str, fragment: str = "") -> str:
    return f"{name}--{fragment}".replace("/", "-")


def inside(page: Path, url: str) -> str:
    """A link from one page to another as a link within the document; others lead where they led."""
    parts = urlsplit(url)
    if parts.scheme:
        return url
    target = (page.parent / parts.path).resolve() if parts.path else page
    return "#" + anchor(target.relative_to(HTML).with_suffix("").as_posix(), parts.fragment)


def head() -> str:
    """Style sheets and MathJax of the first page."""
    page = HTML / f"{table_of_contents().root.docname}.html"
    text = BeautifulSoup(page.read_text("utf-8"), "html.parser").head
    parts = text.select("[rel=stylesheet]") + [tag for tag in text.select("script") if "mathjax" in str(tag).lower()]
    for tag in parts:
        for attribute in {"href", "src"} & set(tag.attrs):
            tag[attribute] = urljoin(page.as_uri(), tag[attribute])
    return "".join(map(str, parts))


STYLE = """
body { --pst-font-family-base: Arial, "Liberation Sans", sans-serif; --pst-font-family-heading: Arial, sans-serif; }
:is(h1, h2, h3, h4, h5) { white-space: pre-wrap; } /* or the outline loses the space where a line breaks */
.title, .toc, .part, article { break-before: page; }
.title { text-align: center; padding-top: 60mm; }
.title p:first-child { font-size: 3em; font-weight: bold; line-height: 1.2; margin-bottom: 1em; }
.title p:last-child { margin-top: 90mm; }
.toc p { font-weight: bold; margin: 1.2em 0 0.2em; }
.toc div { display: flex; justify-content: space-between; }
h1.part { font-size: 1.3em; color: var(--pst-color-text-muted); margin: 1mm 0 0; } /* at 0 the outline has it twice */
.part + article { break-before: avoid; }
"""


def main() -> None:
    if not STAMP.exists():
        sys.exit("The book is not built: run `make book` first.")
    folder = ROOT / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    make(folder)
    print(f"{folder}:", *sorted(path.name for path in folder.iterdir()), sep="\n")


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pages(folder)
    notebooks(folder, wheel(folder))
    if CHROMIUM:
        pdf(folder)
    else:
        print("There is no Chromium here: the PDF was not made.")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
