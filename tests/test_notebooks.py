"""The notebooks as they are stored, and that the build has run each of them as it is now."""

import nbformat
import pytest
import yaml

from tools import build

notebooks = pytest.mark.parametrize("path", sorted(build.NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_table_of_contents_lists_every_notebook():
    listed = {name for name in build.table_of_contents() if name.startswith("notebooks/")}
    assert listed == {f"notebooks/{path.stem}" for path in build.NOTEBOOKS.glob("*.ipynb")}


@notebooks
def test_stored_without_outputs(path):
    dirty = [number for number, cell in enumerate(code_cells(path)) if cell.outputs or cell.execution_count]
    assert not dirty, f"clear the outputs of {path.name} before committing it: code cells {dirty}"


@notebooks
def test_runs_in_the_kernel_of_the_environment(path):
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata.kernelspec.name == "python3"
    assert not metadata.get("execution", {}).get("allow_errors"), "tag the one cell with raises-exception instead"


@notebooks
def test_cells_are_short(path):
    lengths = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code_cells(path)]
    assert max(lengths) <= 25, f"split code cell {lengths.index(max(lengths))} of {path.name}: {max(lengths)} lines"


@notebooks
def test_executed_as_it_is_now(path):
    if not build.STAMP.exists():
        pytest.skip("the book is not built: run `make book` first")
    assert build.is_executed(path), f"{path.name}, or what it reads, has changed since the last `make book`"


def test_one_repository_address():
    """Readers land in this repository, not in a template's: every address in the sources is the configured one."""
    address = yaml.safe_load((build.ROOT / "_config.yml").read_text())["repository"]["url"]
    name = address.rpartition("/")[2]
    sources = [build.ROOT / file for file in ("README.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml")]
    sources += [*build.NOTEBOOKS.glob("*.ipynb"), *(build.ROOT / "book").glob("*.md")]
    for source in filter(lambda path: path.exists(), sources):
        for word in source.read_text("utf-8").split():
            if "github.com/" in word and name in word:
                assert address in word, f"{source.name} has {word!r}, _config.yml has {address}"
