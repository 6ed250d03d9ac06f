"""What a contributor relies on: a template that is a chapter, one version everywhere, and nothing of unknown origin."""

import re
import subprocess
import tomllib

import nbformat
import pytest
import test_chapters
import test_notebooks
import yaml
from nbclient import NotebookClient

from tools import build

TEMPLATE = build.ROOT / "tools" / "chapter-template.ipynb"
MEDIA = "png jpg jpeg gif svg webp ico pdf wav mp3 ogg flac m4a mp4 webm ttf otf woff woff2 npz npy safetensors".split()


def read(name):
    return (build.ROOT / name).read_text("utf-8")


@pytest.fixture(scope="module")
def executed():
    """The template, run where it lies."""
    notebook = nbformat.read(TEMPLATE, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in build.ENVIRONMENT.items():
            patch.setenv(name, value)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": TEMPLATE.parent}}).execute()
    return notebook.cells


def test_the_template_runs(executed):
    outputs = [output for cell in executed if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and not [output.text for output in outputs if output.get("name") == "stderr"]


RULES = [
    rule for module in (test_notebooks, test_chapters) for rule in vars(module).values() if hasattr(rule, "pytestmark")
]
OF_A_BUILD = {"test_executed_as_it_is_now", "test_the_stated_time_is_true"}


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.__name__ not in OF_A_BUILD], ids=lambda rule: rule.__name__
)
def test_the_template_keeps_the_rules_of_a_chapter(rule, executed, monkeypatch):
    for module in (test_notebooks, test_chapters):
        monkeypatch.setattr(module, "executed", lambda path: executed)
    rule(TEMPLATE)


def test_the_template_begins_as_every_chapter_does():
    first = test_notebooks.code_cells(build.NOTEBOOKS / "01-quickstart.ipynb")[0]
    assert test_notebooks.code_cells(TEMPLATE)[0] == first


def test_one_version_everywhere():
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert yaml.safe_load(read("CITATION.cff"))["version"] == version
    assert re.findall(r"^## \[(\d\S*)\] - (?:unreleased|\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.M)[0] == version


def test_the_citation_file_is_valid():
    """The fields that the schema of CFF 1.2.0 asks for, and the forms of those that we use."""
    citation = yaml.safe_load(read("CITATION.cff"))
    assert set(citation) >= {"cff-version", "message", "title", "authors"} and citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert citation["authors"] and all(
        author.keys() & {"name", "family-names", "given-names"} for author in citation["authors"]
    )
    assert set(citation["license"]) == {"MIT", "CC-BY-4.0"}  # SPDX names
    for name, licence in ("LICENSE", "MIT License"), ("LICENSE-BOOK", "Attribution 4.0 International"):
        assert licence in read(name)


def test_the_colophon_says_where_each_file_that_is_no_text_comes_from():
    listed = subprocess.run(["git", "ls-files"], cwd=build.ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone: git can't tell what is committed")
    files = [name for name in listed.stdout.splitlines() if name.rpartition(".")[2].lower() in MEDIA]
    section = re.search(r"^### Files that are no text\n(.*?)^##", read("book/colophon.md"), re.M | re.S)[1]
    told = re.findall(r"^\| `([^`]+)`", section, re.M)
    assert told and not [name for name in files if not name.startswith(tuple(told))]
    assert not [path for path in told if not any(name.startswith(path) for name in files)]
