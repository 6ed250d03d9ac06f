"""The committed measurement of steering and head vectors together, results/both_halves.json, is whole and agrees."""

import json
import string
from pathlib import Path

import numpy as np
import pytest

from helpers import fewshot
from helpers.benchmarks import checksum
from helpers.fewshot import fewshot_items
from tools import measure_both
from tools.measure_both import CASES, CONTROLS, DRAWS, GRID, POOL, clips_of, hint_of, unpack

RECORD = json.loads((Path(__file__).parents[1] / "results" / "both_halves.json").read_text())
tasks = pytest.mark.parametrize("task", POOL)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Task -> split -> what the tool knows of the clips; they are not made."""
    root = tmp_path_factory.mktemp("few-shot")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("render_sound", "render_speech", "write_clip"):
            patch.setattr(fewshot, name, lambda *args: None)
        patch.setattr(measure_both, "prepare", lambda *args: [])
        patch.setattr(
            measure_both, "fewshot_items", lambda task, split, per_class: fewshot_items(task, split, root, per_class)
        )
        return {t: {split: measure_both.read(None, t, split) for split in ("train", "test")} for t in POOL}


def key(line):
    return tuple(line[part] for part in ("keys", "window", "alpha"))


@tasks
def test_the_clips_and_hints_are_those_of_the_task(task, data):
    known = RECORD["tasks"][task]
    for split, own in data[task].items():
        assert known["asked"][split] == checksum(own["items"])
        assert known["clips"][split] == clips_of(own)


@tasks
def test_the_choice_follows_from_training_clips(task, data):
    known = RECORD["tasks"][task]
    assert {key(line) for line in known["cv"]} == set(GRID) and len(known["cv"]) == len(GRID)
    assert known["chosen"] == measure_both.choose(known, data[task]["train"])
    for draw, mask in enumerate(known["tried"]):
        tried = measure_both.others(data[task]["train"], draw)
        assert (unpack(mask, len(tried)) == tried).all()
        for line in known["cv"]:
            assert not any((unpack(line["right"][case][draw], len(tried)) & ~tried).any() for case in CASES)


@tasks
def test_test_clips_met_the_reported_settings_only_and_all_of_them(task):
    known = RECORD["tasks"][task]
    chosen = known["chosen"].values()
    controls = {(keys, *known["chosen"]["none > misleading"][1:]) for keys in ("text", "random")}
    reported = {measure_both.UNSTEERED, measure_both.PAPER, measure_both.BOOK, *map(tuple, chosen)} | controls
    assert {key(line) for line in known["test"]} == reported and len(known["test"]) == len(reported)
    for line in known["test"]:
        found = [(run["case"], run["draw"]) for run in line["runs"]]
        assert found == [(case, draw) for case in (*CASES, *CONTROLS) for draw in range(DRAWS)]


@tasks
def test_what_calm_says_is_what_counts_as_right(task):
    known = RECORD["tasks"][task]
    truth = np.array([letter for *_, letter, _ in known["clips"]["test"]])
    for line in known["test"]:
        for run in line["runs"]:
            assert set(run["given"]) <= set(string.ascii_letters[: len(known["classes"])])
            assert ((np.array(list(run["given"])) == truth) == unpack(run["right"]["CALM"], len(truth))).all()


def test_hints_name_what_they_should(data):
    for item in data["sounds"]["train"]["items"]:
        assert hint_of(item, "none") is None and hint_of(item, "right") == item.answer
        assert hint_of(item, "misleading") != item.answer
        assert {hint_of(item, "random"), hint_of(item, "misleading")} <= set(item.choices)
        assert hint_of(item, "neutral") not in item.choices
