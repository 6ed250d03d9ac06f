"""The committed comparison of the few-shot classifiers, results/few_shot.json, is whole, and is what comes out anew."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers import fewshot
from helpers.benchmarks import checksum
from helpers.fewshot import draw_shots, fewshot_items
from helpers.heads import head_vectors, pooled_audio_tokens
from helpers.models import load_audio, load_lalm
from helpers.provenance import weights_checksum
from tools import measure_few_shot
from tools.measure_few_shot import DRAWS, SHOTS, TASKS, methods, unpack

RECORD = json.loads((Path(__file__).parents[1] / "results" / "few_shot.json").read_text())
tasks = pytest.mark.parametrize("task", TASKS)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """(task, split) -> all items; their clips are not made."""
    root = tmp_path_factory.mktemp("few-shot")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("render_sound", "render_speech", "write_clip"):
            patch.setattr(fewshot, name, lambda *args: None)
        return {(task, split): fewshot_items(task, split, root) for task in TASKS for split in ("train", "test")}


@pytest.fixture(scope="module")
def lalm():
    return load_lalm("tiny")


def outcomes(task, name):
    """Shots and draw -> right or wrong, item by item."""
    known = RECORD["tasks"][task]
    runs = [run for run in known["runs"] if name in run["right"]]
    return {(run["shots"], run["draw"]): unpack(run["right"][name], len(known["ids"])) for run in runs}


def test_it_is_of_the_shipped_checkpoint(lalm):
    assert (RECORD["model"], RECORD["weights"]) == ("tiny", weights_checksum(lalm.model))


@tasks
def test_it_is_of_these_items(items, task):
    known = RECORD["tasks"][task]
    assert known["asked"] == {split: checksum(items[task, split]) for split in ("train", "test")}
    assert known["ids"] == [item.id for item in items[task, "test"]]
    assert known["sources"] == [item.source for item in items[task, "test"]]


@tasks
def test_every_draw_of_every_number_of_shots_has_every_method(task):
    known, rng = RECORD["tasks"][task], np.random.default_rng(0)
    assert RECORD["draws"] == DRAWS and RECORD["grid"] == measure_few_shot.GRID
    runs = [(run["shots"], run["draw"]) for run in known["runs"]]
    assert sorted(runs) == [(shots, draw) for shots in SHOTS for draw in range(DRAWS)]
    digits = 2 * -(-len(known["ids"]) // 8)
    assert len(known["zero-shot"]) == digits
    for run in known["runs"]:
        assert set(run["right"]) == set(methods(run["shots"], rng))
        assert {len(bits) for bits in run["right"].values()} == {digits}


@tasks
def test_without_the_sound_all_clips_get_one_class(items, task):
    answers = np.array([item.answer for item in items[task, "test"]])
    for correct in outcomes(task, "CALM, text only").values():
        named = set(answers[correct])
        assert len(named) == 1 and np.array_equal(correct, answers == named.pop())


@tasks
def test_with_shuffled_labels_nothing_is_learned(items, task):
    chance = 1 / len(items[task, "test"][0].choices)
    accuracies = [correct.mean() for correct in outcomes(task, "CALM, shuffled labels").values()]
    assert abs(np.mean(accuracies) - chance) < 0.02


@tasks
def test_more_shots_are_better(task):
    for name in ("CALM", "SAV", "logistic regression, heads", "linear probe, encoder", "nearest neighbours, encoder"):
        few, many = (np.mean([outcomes(task, name)[shots, draw] for draw in range(DRAWS)]) for shots in (2, 40))
        assert many > few + 0.05, name


@tasks
def test_zero_shot_agrees(items, task, lalm):
    some = items[task, "test"][:: len(items[task, "test"]) // 4]
    known = unpack(RECORD["tasks"][task]["zero-shot"], len(items[task, "test"]))
    now = unpack(measure_few_shot.zero_shot(lalm, made(task, "test", some)), len(some))
    assert np.sum(now != [known[items[task, "test"].index(item)] for item in some]) <= 1


@tasks
def test_a_slice_agrees(items, task, lalm):
    """Draw 0 of a few shots, every method, on some test clips: all is made anew, from the clips on."""
    shots, step = {"sounds": (2, 16), "spoofing": (5, 8)}[task]
    pool, test = items[task, "train"], items[task, "test"]
    chosen = draw_shots([item.answer for item in pool], shots, seed=0)
    X = read(lalm, made(task, "train", [pool[i] for i in chosen]))
    Z = read(lalm, made(task, "test", test[::step]))
    y, answers = np.array([pool[i].answer for i in chosen]), np.array([item.answer for item in test[::step]])
    for name, (kind, fit) in methods(shots, np.random.default_rng(0)).items():
        if kind in X:
            differ = (fit(X[kind], y).predict(Z[kind]) == answers) != outcomes(task, name)[shots, 0][::step]
            assert differ.sum() <= 2, f"{name}: {differ.sum()} of {len(differ)} differ"  # near ties of another machine


def made(task, split, some):
    """Items, with their clips made anew."""
    render = {"sounds": fewshot.render_sound, "spoofing": fewshot.render_speech}[task]
    for item in some:
        fewshot.write_clip(Path(item.audio), render(split, item.answer, item.extra["index"]))
    return some


def read(lalm, some):
    inputs = lalm.prepare(
        [item.question for item in some], [load_audio(item.audio, lalm.sampling_rate) for item in some]
    )
    return {"heads": head_vectors(lalm, inputs).numpy(), "encoder": pooled_audio_tokens(lalm, inputs).numpy()}
