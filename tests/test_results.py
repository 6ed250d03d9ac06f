"""The committed ablation of MATA, results/mata_ablation.json, is whole, is what the other records say, and is true."""

import json
from pathlib import Path

import pytest

from helpers import minimmar
from helpers.benchmarks import checksum, load_benchmark, parse_mmar
from helpers.evaluate import evaluate, read_run, weights_checksum
from helpers.mata import MATA
from helpers.models import load_lalm
from tools import measure_mata

RESULTS = Path(__file__).parents[1] / "results"
ABLATION = json.loads((RESULTS / "mata_ablation.json").read_text())
CHOICE = json.loads((RESULTS / "mata_choice.json").read_text())
UNSTEERED = ("multiply", "audio", "all", 0.0)
CHOSEN = ("multiply", "audio", CHOICE["chosen"]["window"], CHOICE["chosen"]["alpha"])
splits = pytest.mark.parametrize("split", ["dev", "test"])

# The runs were made in other batches than the ablation, and another order of sums can turn a reply that hangs in the
# balance. Measured: not one of 1080 items differs. Allowed: what another machine may turn without changing a sentence.
MAY_DIFFER = 3


def right(split):
    """Setting -> hint -> item by item, whether the reply was right."""
    return {
        measure_mata.key(setting): {hint: [digit == "1" for digit in setting[hint]] for hint in measure_mata.HINTS}
        for setting in ABLATION[split]["settings"]
    }


@splits
def test_there_is_one_outcome_for_every_item_of_the_benchmark(split):
    kinds, numbers = minimmar.QUESTIONS, range(minimmar.ITEMS_PER_QUESTION[split])
    items = parse_mmar(minimmar.row(kind, split, number) for kind in kinds for number in numbers)  # makes no clip
    assert ABLATION[split]["ids"] == [item.id for item in items]
    assert ABLATION[split]["asked"] == checksum(items) == minimmar.CHECKSUMS[split][0]
    for setting in ABLATION[split]["settings"]:
        for hint in measure_mata.HINTS:
            assert len(setting[hint]) == len(items) and set(setting[hint]) <= {"0", "1"}, setting


@splits
def test_no_setting_is_listed_twice_and_the_unsteered_comes_first(split):
    settings = [measure_mata.key(setting) for setting in ABLATION[split]["settings"]]
    assert len(set(settings)) == len(settings) and settings[0] == UNSTEERED


def test_dev_holds_the_whole_grid():
    grid = {
        (rule, "audio", window, alpha)
        for rule, alphas in measure_mata.STRENGTHS.items()
        for window in measure_mata.LAYERS
        for alpha in alphas
    }
    assert set(right("dev")) == grid | {UNSTEERED}
    assert ABLATION["windows"] == {name: list(layers) for name, layers in measure_mata.LAYERS.items()}


def test_test_holds_what_is_reported_and_little_else():
    best = ABLATION["chosen"]["multiply"]
    expected = {measure_mata.key(setting) for setting in ABLATION["chosen"].values()} | {UNSTEERED}
    expected |= {("multiply", keys, best["window"], best["alpha"]) for keys in ("text", "random")}
    expected |= {("multiply", "audio", window, best["alpha"]) for window in measure_mata.LAYERS}
    expected |= {("multiply", "audio", best["window"], alpha) for alpha in measure_mata.STRENGTHS["multiply"]}
    assert set(right("test")) == expected


def test_it_is_of_the_shipped_checkpoint():
    assert ABLATION["weights"] == weights_checksum(load_lalm("tiny").model)


@pytest.mark.parametrize("rule", measure_mata.STRENGTHS)
def test_the_choice_follows_from_dev_by_the_stated_rule(rule):
    dev = right("dev")
    limit = sum(dev[UNSTEERED]["none"]) - 0.01 * len(ABLATION["dev"]["ids"])
    harmless = {key: sum(x["misleading"]) for key, x in dev.items() if key[0] == rule and sum(x["none"]) >= limit}
    chosen = measure_mata.key(ABLATION["chosen"][rule])
    as_good = [key for key, count in harmless.items() if count == max(harmless.values())]
    assert chosen == min(as_good, key=lambda key: key[-1])  # of equally good ones the weakest


def test_it_chooses_what_the_runs_were_made_with():
    assert measure_mata.key(ABLATION["chosen"]["multiply"]) == CHOSEN
    assert ABLATION["windows"][CHOICE["chosen"]["window"]] == CHOICE["chosen"]["layers"]


def test_dev_repeats_the_grid_of_the_first_choice():
    dev = right("dev")
    pairs = [(sum(dev[UNSTEERED]["misleading"]), CHOICE["unsteered"]["misleading"])]
    pairs += [(sum(dev[UNSTEERED]["none"]), CHOICE["unsteered"]["no_hint"])]
    pairs += [(sum(dev[CHOSEN]["none"]), CHOICE["chosen"]["no_hint"])]
    for entry in CHOICE["grid"]:
        ours = dev["multiply", "audio", entry["window"], entry["alpha"]]
        pairs.append((sum(ours["misleading"]), entry["misleading"]))
    assert all(abs(ours - theirs) <= MAY_DIFFER for ours, theirs in pairs)


@pytest.mark.parametrize(
    ("run", "setting", "hint"),
    [
        ("no-hint", UNSTEERED, "none"),
        ("misleading-hint", UNSTEERED, "misleading"),
        ("no-hint-mata", CHOSEN, "none"),
        ("misleading-mata", CHOSEN, "misleading"),
        ("misleading-mata-text-keys", ("multiply", "text", *CHOSEN[2:]), "misleading"),
    ],
)
def test_test_repeats_the_runs_item_by_item(run, setting, hint):
    records = read_run(RESULTS / f"{run}.jsonl").records
    theirs = [records[name]["exact_option"] is True for name in ABLATION["test"]["ids"]]
    ours = right("test")[setting][hint]
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= MAY_DIFFER


@pytest.mark.parametrize("setting", [UNSTEERED, CHOSEN, ("additive", "audio", "late", 10)])
def test_the_model_still_answers_like_this(setting):
    lalm, items = load_lalm("tiny"), load_benchmark("minimmar", split="dev")
    rule, keys, window, alpha = setting
    steering = MATA(lalm, alpha=alpha, layers=ABLATION["windows"][window], rule=rule, keys=keys)
    some = range(0, len(items), 9)
    for hint in measure_mata.HINTS:
        records = evaluate(
            lalm, [items[i] for i in some], hint=None if hint == "none" else hint, steering=steering, batch_size=30
        )
        ours = [record["exact_option"] is True for record in records]
        theirs = [right("dev")[setting][hint][i] for i in some]
        assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= MAY_DIFFER
