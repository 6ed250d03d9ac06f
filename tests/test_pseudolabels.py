"""Pseudo-labels: replies drawn by the model's own probabilities, counted fairly; and the committed record is true."""

import json
from pathlib import Path

import numpy as np
import pytest
from random_models import random_lalm

from helpers.mata import MATA
from helpers.models import load_lalm
from helpers.prompts import multiple_choice
from helpers.provenance import weights_checksum
from helpers.pseudolabels import known_sound, majority, sample_labels, sample_replies, usable
from helpers.scoring import option_loglikelihood
from helpers.sounds import SOUNDS
from tools import measure_pseudo_labels as measure

CLASSES = list(SOUNDS)
RECORD = json.loads((Path(__file__).parents[1] / "results" / "pseudo_labels.json").read_text())


@pytest.fixture(scope="module")
def lalm():
    return load_lalm("tiny")


@pytest.fixture(scope="module")
def inputs(lalm):
    """Three clips, of prompts that differ in length, so that some are padded."""
    prompts = [multiple_choice("Which sound is heard twice?", CLASSES[:k]) for k in (3, 8, 16)]
    return lalm.prepare(prompts, [known_sound("train", name, 90) for name in ("rain", "bell", "siren")])


def test_cold_samples_are_the_greedy_reply(lalm, inputs):
    greedy = lalm.generate(inputs, max_new_tokens=12)
    assert sample_replies(lalm, inputs, n=3, temperature=1e-4) == [[reply] * 3 for reply in greedy]


def test_replies_come_as_often_as_they_are_likely(lalm, inputs):
    n, replies = 1000, sample_replies(lalm, inputs, n=1000)
    options = [CLASSES[:k] for k in (3, 8, 16)]
    for own, named, found in zip(replies, options, option_loglikelihood(lalm, inputs, options), strict=True):
        likely = np.exp([x.total for x in found])
        often = np.array([own.count(option) / n for option in named])
        assert np.all(np.abs(often - likely) < 4.5 * np.sqrt(likely * (1 - likely) / n) + 2 / n)


def test_seed_decides(lalm, inputs):
    first, again, other = (sample_replies(lalm, inputs, n=20, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_replies_are_steered_as_in_generate(lalm, inputs):
    plain = lalm.generate(inputs, max_new_tokens=12)
    with MATA(lalm, alpha=-0.9, layers=range(8)), MATA(lalm, alpha=0.1, keys="text"):
        steered = lalm.generate(inputs, max_new_tokens=12)
        assert sample_replies(lalm, inputs, n=3, temperature=1e-4) == [[reply] * 3 for reply in steered]
    assert steered != plain


def test_replies_are_cut_at_the_limit(lalm, inputs):
    assert all(len(reply) < 12 for own in sample_replies(lalm, inputs, max_new_tokens=1) for reply in own)


@pytest.mark.parametrize("family", ["qwen2_audio", "qwen2_5_omni"])
def test_other_families(family):
    lalm = random_lalm(family)
    inputs = lalm.prepare(["What?", "Which sound is this?"], [np.random.default_rng(0).normal(size=16_000) / 9] * 2)
    greedy = lalm.generate(inputs, max_new_tokens=4)
    assert sample_replies(lalm, inputs, n=2, temperature=1e-5, max_new_tokens=4) == [[reply] * 2 for reply in greedy]


@pytest.mark.parametrize("bad", [{"n": 0}, {"temperature": 0.0}, {"temperature": -1.0}, {"temperature": np.inf}])
def test_refuses_what_has_no_meaning(lalm, inputs, bad):
    with pytest.raises(ValueError, match="n must be"):
        sample_replies(lalm, inputs, **bad)


def test_majority():
    replies = [
        ["rain", "rain", "Rain.", "wind"],
        ["wind", "rain", "rain", "wind"],  # a tie: the one named first
        ["rain", "a noise", "", "I don't know"],  # what names no class counts against
        ["", "?", "a noise", "hm"],
    ]
    labels, confidence = majority(replies, ["wind", "rain"])
    assert labels.tolist() == ["rain", "wind", "rain", ""]
    assert confidence.tolist() == [0.75, 0.5, 0.25, 0.0]


def test_sample_labels_is_the_majority_of_samples(lalm, inputs):
    labels, confidence = sample_labels(lalm, inputs, CLASSES, n=5, seed=3)
    expected = majority(sample_replies(lalm, inputs, 5, seed=3), CLASSES)
    assert np.array_equal(labels, expected[0]) and np.array_equal(confidence, expected[1])


def test_usable():
    assert usable(np.array(["a", "b", "a", "", "", "c", "c"])).tolist() == [True, False, True, False, False, True, True]


def test_clips_of_known_sounds():
    clips = [known_sound(split, name, i) for split in ("train", "test") for name in CLASSES[:2] for i in range(2)]
    assert np.array_equal(clips[0], known_sound("train", CLASSES[0], 0))
    assert len({c.tobytes() for c in clips}) == len(clips)
    assert all(c.dtype == np.float32 and 2 <= len(c) / 16_000 <= 4 and 0.01 < np.abs(c).max() < 0.96 for c in clips)


# ------------------------------------------------------------ the measurement
def test_errors_of_each_kind():
    rng = np.random.default_rng(0)
    truth = np.repeat(["a", "b", "c"], 20)
    labels = np.where(rng.random(60) < 0.5, "a", truth)
    chosen = rng.random(60) < 0.7

    def confusions(given):
        return sorted(zip(truth[chosen], given[chosen], strict=True))

    elsewhere = measure.same_errors_elsewhere(labels, truth, chosen, rng)
    assert confusions(elsewhere) == confusions(labels) and not np.array_equal(elsewhere, labels)
    at_random = measure.random_errors(labels, truth, chosen, ["a", "b", "c"], rng)
    assert np.sum(at_random[chosen] != truth[chosen]) == np.sum(labels[chosen] != truth[chosen])
    assert np.array_equal(at_random[~chosen], truth[~chosen])
    mixed = measure.shuffled(labels, chosen, rng)
    assert sorted(mixed[chosen]) == sorted(labels[chosen]) and np.array_equal(mixed[~chosen], labels[~chosen])


def test_hints_are_wrong():
    truth = np.array(["rain", "wind", "whistle"])
    for kind in ("random", "fixed"):
        for name, prompt in zip(truth, measure.ask(CLASSES, truth, kind), strict=True):
            hint = prompt.rpartition("Hint: the answer is ")[2].rstrip(".")
            assert hint in CLASSES and hint != name
    assert "Hint" not in measure.ask(CLASSES, truth)[0]


def test_record_is_whole_and_of_the_shipped_checkpoint(lalm):
    assert RECORD["weights"] == weights_checksum(lalm.model)
    keys = [(run["classes"], run["hint"], run["temperature"], run["draw"]) for run in RECORD["runs"]]
    assert sorted(keys) == sorted((*condition, d) for condition in measure.CONDITIONS for d in range(measure.DRAWS))
    for run in RECORD["runs"]:
        n = run["classes"]
        assert len(run["labels"]) == len(run["votes"]) == n * measure.PER_CLASS
        assert all((votes > 0) == (label >= 0) for label, votes in zip(run["labels"], run["votes"], strict=True))
        assert set(run["votes"]) <= set(range(measure.SAMPLES + 1)) and max(run["labels"]) < n
        for kept in run["right"].values():
            assert {len(right) for right in kept.values()} == {2 * -(-n * measure.TEST_PER_CLASS // 8)}


def test_a_stretch_of_the_record_again(lalm):
    """Another machine rounds otherwise, and a draw that hangs in the balance falls otherwise."""
    run = next(
        r for r in RECORD["runs"] if (r["classes"], r["hint"], r["temperature"], r["draw"]) == (16, "none", 0.5, 0)
    )
    some = slice(0, 2 * measure.BATCH)
    truth = np.repeat(CLASSES, measure.PER_CLASS)[some]
    clips = [known_sound("train", name, i % measure.PER_CLASS) for i, name in enumerate(truth)]
    labels, confidence = measure.label(lalm, clips, measure.ask(CLASSES, truth), CLASSES, 0.5)
    theirs = np.array(CLASSES)[run["labels"][some]]
    assert np.mean(labels == theirs) > 0.85
    assert np.abs(8 * confidence - run["votes"][some]).mean() < 0.5
