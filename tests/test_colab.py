"""The notebooks' first code cell, in an imitation of Google Colab: an empty folder, and a kernel that lacks the book.

No network: git is told that the public address is a copy of this working tree, and pip that there is no index. The
kernel's environment has every package of the running one but the book's own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import nbformat
import pytest
import yaml
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from packaging.requirements import Requirement

from tools import build

NOTEBOOKS = sorted(build.NOTEBOOKS.glob("*.ipynb"))
ADDRESS = yaml.safe_load((build.ROOT / "_config.yml").read_text())["repository"]["url"]
# What Colab's kernel has imported or cannot do without: googlecolab/backend-info, pip-freeze.gpu.txt, June 2026
COLAB = {
    "ipython": "7.34.0", "ipywidgets": "7.7.1", "filelock": "3.29.0", "matplotlib": "3.10.0",
    "matplotlib-inline": "0.2.2", "numpy": "2.0.2", "pillow": "11.3.0", "scikit-learn": "1.6.1", "scipy": "1.16.3",
    "soundfile": "0.13.1", "statsmodels": "0.14.6", "torch": "2.11.0", "tqdm": "4.67.3",
}  # fmt: skip


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


CELL = code_cells(NOTEBOOKS[0])[0]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *build.ROOT.glob("tools/*.ipynb")], ids=lambda path: path.stem)
def test_every_notebook_begins_with_the_same_cell(path):
    assert code_cells(path)[0] == CELL
    assert CELL.metadata.tags == ["remove-cell"] and f'"{ADDRESS}"' in CELL.source


def test_elsewhere_it_does_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with mock.patch("subprocess.Popen", side_effect=AssertionError), mock.patch("os.chdir", side_effect=AssertionError):
        exec(CELL.source, {})
    assert not list(tmp_path.iterdir())


def test_what_colab_has_is_left_alone():
    """A range that refuses the IPython of Colab's kernel, or its torch, would have pip replace it."""
    wanted = map(Requirement, tomllib.loads((build.ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    wanted = {requirement.name: requirement.specifier for requirement in wanted}
    assert not [f"{name} {own}" for name, own in COLAB.items() if own not in wanted[name]]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The working tree as it is, changes included, committed to a repository of its own."""
    copy = tmp_path_factory.mktemp("public") / "lalm-listening"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=build.ROOT, text=True).split("\0"):
        if (build.ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(build.ROOT / name, copy / name)
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "as it is"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy


class Colab:
    """A machine that has everything but the book; `content` is the folder in which its kernels start."""

    def __init__(self, folder, published):
        self.content, self.log = folder / "content", folder / "log"
        self.content.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        self.python = folder / "env/bin/python"
        self.site = Path(sysconfig.get_path("purelib", vars=dict.fromkeys(("base", "platbase"), str(folder / "env"))))
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if "lalm_listening" not in entry.name:
                (self.site / entry.name).symlink_to(entry)
        (self.site / "google").mkdir(exist_ok=True)
        (self.site / "google/colab.py").touch()
        start = "import google.colab; from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
        spec = {"argv": [str(self.python), "-c", start, "-f", "{connection_file}"], "display_name": "", "language": ""}
        (folder / "kernels/colab").mkdir(parents=True)
        (folder / "kernels/colab/kernel.json").write_text(json.dumps(spec))
        self._command("pip", f"{self.python} -m pip")
        self._command("git", shutil.which("git"))
        kept = {name: value for name, value in os.environ.items() if not re.match("LALM$|PIP_|PYTHON|GIT_", name)}
        self.environment = kept | {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0",  # 0: without
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{published.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": ADDRESS,
        }  # fmt: skip

    def _command(self, name, real):
        """A command that notes each call, then does it."""
        script = self.python.parent / name
        script.write_text(f'#!/bin/sh\necho "{name} $1" >> {self.log}\nexec {real} "$@"\n')
        script.chmod(0o755)

    def run(self, *sources, **changed):
        """What cells print in a fresh kernel, or the error of the first one that fails; and which commands they ran."""
        self.log.write_text("")
        specs = KernelSpecManager(kernel_dirs=[str(self.content.parent / "kernels")])
        manager = KernelManager(kernel_name="colab", kernel_spec_manager=specs)
        manager.start_kernel(cwd=self.content, env=self.environment | changed)
        client = manager.blocking_client()
        client.start_channels()
        said = []

        def hear(message):
            if message["msg_type"] == "stream":
                said.append(message["content"]["text"])

        try:
            client.wait_for_ready(timeout=120)
            for source in sources:
                reply = client.execute_interactive(source, timeout=240, output_hook=hear)["content"]
                if reply["status"] == "error":
                    said.append(f"{reply['ename']}: {reply['evalue']}")
                    break
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
        return "".join(said), self.log.read_text().splitlines()


@pytest.fixture
def colab(tmp_path, published):
    return Colab(tmp_path, published)


def test_without_a_network_it_says_what_failed(colab):
    nowhere = {"GIT_CONFIG_KEY_0": "url.file:///nowhere.insteadOf"}
    said, _ = colab.run(CELL.source, "print('went on')", **nowhere)
    clone = f"git clone --depth 1 {ADDRESS}"
    assert said == f"RuntimeError: '{clone}' failed. Try again, or run '!{clone}' to see why."
    said, _ = colab.run(CELL.source, PIP_NO_BUILD_ISOLATION="1")  # cloned now, but pip looks for setuptools in vain
    assert said.startswith("RuntimeError: 'pip install ./lalm-listening' failed.") and "\n" not in said


def test_a_chapter_finds_the_book(colab):
    """As a reader does it: all first cells of a chapter; then the cell a second time; then a restarted kernel."""
    chapter = [cell.source for cell in code_cells(build.NOTEBOOKS / "10-running-it-for-real.ipynb")]
    assert "load_lalm()" in "".join(chapter[1:3])
    probe = """
import helpers
print(lalm.name, len(list(lalm.model.parameters())) > 0, torch.__version__)
print(helpers.__file__)
print(os.getcwd())
print(committed("no-hint.jsonl"))"""
    said, ran = colab.run(*chapter[:3], probe)
    clone = colab.content.resolve() / "lalm-listening"
    assert said.splitlines() == [
        f"tiny True {version('torch')}",
        str(colab.site / "helpers/__init__.py"),
        str(clone / "notebooks"),
        str(clone / "results/no-hint.jsonl"),
    ]
    assert [command for command in ran if command != "pip show"] == ["git clone", "pip install"]

    said, ran = colab.run(CELL.source, "print(os.getcwd())", CELL.source, "print(os.getcwd())")
    assert said.split() == [str(clone / "notebooks")] * 2 and ran == ["pip show"]


def test_the_package_and_the_clone_bring_what_the_chapters_use(colab, published):
    """All imports in one kernel, records and tables; and the package has each file of `helpers`, checkpoints too."""
    names = {name for path in NOTEBOOKS for name in re.findall(r'committed\(\\?"([^"{\\]+)', path.read_text("utf-8"))}
    imports = {
        line.strip()
        for path in NOTEBOOKS
        for cell in code_cells(path)
        for line in re.findall(r"^(?:from|import) [^(\n]+$|^from \S+ import \([^)]+\)", cell.source, re.M)
        if "google.colab" not in line
    }
    assert names and imports
    look = f"for name in {sorted(names)}:\n    assert committed(name).is_file(), name"
    tables = "assert list((committed('no-hint.jsonl').parents[1] / 'book/data').glob('*.csv'))"
    said, _ = colab.run(CELL.source, *sorted(imports), "from helpers.runs import committed", look, tables)
    assert said == ""

    def files(folder):
        return {f.relative_to(folder) for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts}

    assert files(colab.site / "helpers") == files(published / "helpers")
