"""What several tests read of a chapter: its cells, its text, its outputs as the build keeps them."""

import re
from functools import cache

import nbformat
import pytest

from tools import build

PATHS = sorted(build.NOTEBOOKS.glob("*.ipynb"))
every_chapter = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path):
    return nbformat.read(path, as_version=4).cells


def code_cells(path):
    return [cell for cell in cells(path) if cell.cell_type == "code"]


def markdown(path):
    return "\n\n".join(cell.source for cell in cells(path) if cell.cell_type == "markdown")


def tags(cell):
    return cell.metadata.get("tags", [])


def section(path, heading):
    """The text below a heading of the second level."""
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", markdown(path), re.M | re.S)[1]


@cache
def record(path):
    """What the build's cache holds about this chapter, or None."""
    try:
        return build.CACHE.match_cache_notebook(nbformat.read(path, as_version=4))
    except KeyError:
        return None


def executed(path):
    """All cells, the code cells with their outputs as the build keeps them."""
    if (found := record(path)) is None:
        pytest.skip("not executed: run `make book` first")
    code = iter([cell for cell in build.CACHE.get_cache_bundle(found.pk).nb.cells if cell.cell_type == "code"])
    return [next(code) if cell.cell_type == "code" else cell for cell in cells(path)]


def printed(cell):
    """The text that a reader sees below an executed cell, without pictures and sounds."""
    if cell.cell_type != "code":
        return ""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        shown = [output.get("text", "")] + [data.get(kind, "") for kind in ("text/plain", "text/markdown", "text/html")]
        found += [
            re.sub(r"<svg.*?</svg>|<script.*?</script>|<style.*?</style>|<[^>]*>", " ", text, flags=re.S)
            for text in shown
        ]
    return "\n".join(found)
