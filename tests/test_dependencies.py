"""What the code imports is declared, and every declared dependency has its reason in the README."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements):
    """Normalised names of requirements such as ``Torch>=2,<3  # reason``."""
    found = (re.match(r"[\w.-]+", line) for line in requirements)
    return {re.sub(r"[_.-]+", "-", match[0]).lower() for match in found if match}


RUNTIME = names(PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), []))
TOOLS = names((ROOT / "requirements.txt").read_text().splitlines())


def imported(path):
    """Top-level names of all modules that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "helpers").glob("*.py")), ids=lambda path: path.stem)
def test_imports_are_declared(path):
    packages = packages_distributions()
    others = set(imported(path)) - sys.stdlib_module_names - {"helpers"}
    assert not [module for module in others if not names(packages.get(module, [module])) & RUNTIME]


def test_readme_gives_a_reason_for_each():
    rows = [row.split("|") for row in (ROOT / "README.md").read_text().splitlines() if row.startswith("|")]
    explained = {name for row in rows if row[2].strip() for name in re.findall(r"[a-z0-9-]+", row[1].replace("_", "-"))}
    assert RUNTIME | TOOLS <= explained


def test_everything_declared_is_pinned():
    pinned = names((ROOT / "constraints.txt").read_text().splitlines())
    assert names(PROJECT["dependencies"]) | TOOLS <= pinned
