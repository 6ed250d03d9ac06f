"""The notebooks as they are stored, and that the build has run each of them as it is now."""

import json
import re

import nbformat
import pytest
import yaml
from chapters import cells, code_cells, every_chapter, executed, markdown

from tools import build


def test_table_of_contents_lists_every_notebook():
    listed = {name for name in build.table_of_contents() if name.startswith("notebooks/")}
    assert listed == {f"notebooks/{path.stem}" for path in build.NOTEBOOKS.glob("*.ipynb")}


@every_chapter
def test_stored_without_outputs(path):
    dirty = [number for number, cell in enumerate(code_cells(path)) if cell.outputs or cell.execution_count]
    assert not dirty, f"clear the outputs of {path.name} before committing it: code cells {dirty}"


@every_chapter
def test_runs_in_the_kernel_of_the_environment(path):
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata.kernelspec.name == "python3"
    assert not metadata.get("execution", {}).get("allow_errors"), "tag the one cell with raises-exception instead"


@every_chapter
def test_cells_are_short(path):
    lengths = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code_cells(path)]
    assert max(lengths) <= 25, f"split code cell {lengths.index(max(lengths))} of {path.name}: {max(lengths)} lines"


@every_chapter
def test_a_returned_markdown_table_is_shown_as_one(path):
    for cell in code_cells(path):
        if re.search(r"^\s*(display\()?Markdown\(", cell.source, re.M):
            assert "gfm" in json.dumps(cell.metadata), (
                f'{path.name}: give this cell "mystnb": {{"markdown_format": "gfm"}}'
            )


@every_chapter
def test_exercises_have_solutions(path):
    found = exercises(path)
    assert found and all(exercise["solution"] for exercise in found.values())
    for label, exercise in found.items():
        if exercise["task"]:  # one with a function to fill in, so with a check
            assert any("assert" in cell.source for cell in exercise["solution"]), (
                f"{label}: its solution is not checked"
            )


@every_chapter
def test_hints_come_folded_and_few(path):
    for exercise in re.split(r"\{exercise\}", markdown(path))[1:]:
        label = re.search(r":label: (\S+)", exercise)[1]
        before, _, after = exercise.partition("{solution-start}")
        hints = re.findall(r"\{hint\}\n(.*)", before)
        assert len(hints) <= 2 and set(hints) <= {":class: dropdown"}, f"{label}: fold its hints, and give two at most"
        assert "{hint}" not in after, f"{label}: a hint stands behind the solution"


@every_chapter
def test_what_is_unfinished_fails_its_check(path):
    for label, exercise in exercises(path, executed(path)).items():
        said = "".join(output.get("text", "") for cell in exercise["task"] for output in cell.outputs)
        assert not exercise["task"] or "not yet" in said, f"{label}: its check is content with the empty function"


@every_chapter
def test_executed_as_it_is_now(path):
    if not build.STAMP.exists():
        pytest.skip("the book is not built: run `make book` first")
    assert build.is_executed(path), f"{path.name}, or what it reads, has changed since the last `make book`"


def exercises(path, chapter=None):
    """Label -> its code cells: those of the task, which the reader fills in, and those of the solution."""
    found, part = {}, None
    for cell in chapter or cells(path):
        if cell.cell_type == "code":
            if part is not None:
                part.append(cell)
            continue
        for mark in re.finditer(r"\{(exercise|solution-start|solution-end)\}(.*)(?:\n:label: (\S+))?", cell.source):
            if mark[1] == "exercise":
                part = found.setdefault(mark[3], {"task": [], "solution": []})["task"]
            else:
                part = found[mark[2].strip()]["solution"] if mark[1] == "solution-start" else None
    return found


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
