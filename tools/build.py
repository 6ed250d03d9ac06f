"""Build the book: run every stale notebook under nbmake, render the pages with warnings as errors, count them.

A notebook is executed once. What nbmake ran goes into the execution cache, and Jupyter Book takes the outputs from
there. The cache itself compares the code cells and their metadata alone; here a notebook is stale as well when one of
`NOTEBOOK_INPUTS` has changed since.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from unittest import mock

import nbformat
import pytest
from bs4 import BeautifulSoup
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbmake.nb_run import NotebookRun
from sphinx_external_toc.api import SiteMap
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
HTML = ROOT / "_build" / "html"
STAMP = HTML / ".inputs"
CACHE = get_cache(ROOT / "_build" / ".jupyter_cache")

NOTEBOOK_INPUTS = ("helpers", "results", "book/data", "constraints.txt")  # what a notebook reads besides itself
BOOK_INPUTS = (*NOTEBOOK_INPUTS, "_config.yml", "_toc.yml", "book", "notebooks", "tools/build.py")

# Nothing in the book needs the network, and progress bars would leave dead text in the pages.
ENVIRONMENT = {"BOOK_BUILD": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


@cache  # a run goes by what was there when it began
def digest(names: tuple[str, ...]) -> str:
    """SHA-256 over the names and the contents of files, and of all files in folders, below the root."""
    sha = hashlib.sha256()
    for name in names:
        path = ROOT / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(file.parts):
                sha.update(f"{file.relative_to(ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()


def is_executed(path: Path) -> bool:
    """Whether the cache holds an execution of these very code cells with the inputs as they are now."""
    try:
        record = CACHE.match_cache_notebook(nbformat.read(path, as_version=4))
    except KeyError:
        return False
    return record.data.get("inputs") == digest(NOTEBOOK_INPUTS)


def keep(path: Path, executed: nbformat.NotebookNode, seconds: float) -> None:
    """Put an executed notebook into the cache, with the metadata of its source: the cache compares them."""
    for cell, source in zip(executed.cells, nbformat.read(path, as_version=4).cells, strict=True):
        cell.metadata = source.metadata
    bundle = CacheBundleIn(executed, path, data={"inputs": digest(NOTEBOOK_INPUTS), "execution_seconds": seconds})
    CACHE.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def execute(stale: list[Path]) -> bool:
    """Run notebooks under nbmake, keep each that passes in the cache at once; True where all pass."""
    run = NotebookRun.execute

    def run_and_keep(self):
        start = time.perf_counter()
        result = run(self)
        if result.error is None:
            keep(Path(self.filename), result.nb, time.perf_counter() - start)
        return result

    with mock.patch.object(NotebookRun, "execute", run_and_keep):
        quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # nbmake was imported here, before pytest began
        return pytest.main(["--nbmake", "-v", "--durations=0", *quiet, *map(str, stale)]) == 0


def render() -> None:
    """Build all pages from nothing: Sphinx would neither see new outputs of an old notebook nor warn a second time."""
    shutil.rmtree(HTML, ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    if subprocess.run([jupyter_book, "build", "--all", "-W", "-n", "--keep-going", "-q", ROOT]).returncode:
        sys.exit("The book was not built: see the warnings above.")


def table_of_contents() -> SiteMap:
    """The documents of the book, by name, as `_toc.yml` lists them."""
    return parse_toc_yaml(ROOT / "_toc.yml")


def empty_pages() -> list[str]:
    """Documents of the table of contents without a page that has a heading and some text."""
    return [name for name in table_of_contents() if not has_content(HTML / f"{name}.html")]


def has_content(page: Path) -> bool:
    article = page.exists() and BeautifulSoup(page.read_text("utf-8"), "html.parser").find("article")
    return bool(article and article.h1 and len(re.findall(r"\w+", article.text)) >= 20)


def main() -> None:
    os.environ.update(ENVIRONMENT)
    os.chdir(ROOT)
    start = time.perf_counter()
    notebooks = sorted(NOTEBOOKS.glob("*.ipynb"))
    stale = [path for path in notebooks if not is_executed(path)]
    print(f"{len(notebooks)} notebooks, {len(stale)} to be executed", flush=True)
    if stale and not execute(stale):
        sys.exit("A notebook failed: see above.")

    inputs = digest(BOOK_INPUTS)
    if not STAMP.exists() or STAMP.read_text() != inputs:
        render()
        if empty := empty_pages():
            sys.exit(f"Pages of _toc.yml missing or empty: {', '.join(empty)}")
        STAMP.write_text(inputs)
    toc = table_of_contents()
    print(f"{len(toc)} pages in {time.perf_counter() - start:.0f} s. The first page:\n{HTML / toc.root.docname}.html")


if __name__ == "__main__":
    main()
