"""The page of model families says what the tests of steering, reading and prompting cover."""

import re
from pathlib import Path

import families
import random_models

PAGE = Path(__file__).resolve().parents[1] / "book" / "families.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text("utf-8").splitlines()
    if line.startswith("| ") and "`" in line and "load_lalm" not in line
]


def inner(model) -> str:
    """The class that hears: of a whole omni model, its Thinker."""
    return type(getattr(model, "thinker", model)).__name__


def test_every_family_has_its_row():
    steered = {type(families.build(family)).__name__ for family in families.FAMILIES}
    loaded = {inner(build()[0]) for build in random_models.FAMILIES.values()}
    classes = {row[3].strip("`"): row for row in ROWS}
    assert set(classes) == steered
    assert {name for name, row in classes.items() if row[2] == "yes"} == loaded
    assert all(row[1] == "yes" for row in ROWS)
    assert all(re.match("no: .{20}", row[2]) for row in ROWS if row[2] != "yes")


def test_what_must_be_true_of_a_model_is_true_of_each_family():
    page = PAGE.read_text("utf-8")
    code = (
        re.search(r"```python\nimport torch\n(.*?)```", page, re.DOTALL)[0]
        .removeprefix("```python")
        .removesuffix("```")
    )
    for family in families.FAMILIES:
        model = families.build(family)
        inputs = families.batch(model, family, [[3, -64, 2]])
        if family == "phi4_multimodal":  # names its token in the audio part, which the last line leaves out
            model.config.audio_token_id = model.config.audio_config.audio_token_id
        exec(code, {"model": model, "inputs": inputs})
