"""The committed statistics of the benchmarks: recounted where the metadata is at hand, else checked for consistency."""

import json
from collections import Counter
from pathlib import Path

import pytest

from helpers.benchmarks import BENCHMARKS, parse_mmar, parse_mmau
from tools import benchmark_statistics as tool

DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = {"mmau-test-mini": DATA / "mmau-test-mini.json", "mmar": DATA / "MMAR-meta.jsonl"}
COMMITTED = json.loads(tool.OUT.read_text("utf-8"))

needs_metadata = pytest.mark.skipif(
    not DATA.is_dir(), reason="the benchmarks' metadata is not committed: put it into ../shared/data to recount it"
)
each_benchmark = pytest.mark.parametrize("its", COMMITTED.values(), ids=COMMITTED)

ROWS = [
    {
        "id": name,
        "audio_path": f"./audio/{name}.wav",
        "question": "Is it gold or iron?",
        "choices": choices,
        "answer": answer,
        "modality": "sound",
        "category": "Signal Layer",
        "sub-category": "Metals",
    }
    for name, choices, answer in [
        ("a", ["old iron", "gold", "tin"], "gold"),
        ("b", ["tin", "a tin can", "a can of tin"], "a tin can"),
        ("c", ["gold", ""], "gold"),
        ("d", ["a dog then a cat", "a cat then a dog"], "a cat then a dog"),
    ]
]


@pytest.fixture(scope="module")
def made():
    return parse_mmar(ROWS)


@needs_metadata
@pytest.mark.parametrize("name", FILES)
def test_committed_numbers_are_those_of_the_metadata(name):
    assert tool.of_file(name, FILES[name]) == COMMITTED[name]


def test_committed_numbers_are_those_of_minimmar():
    assert tool.of_minimmar() == COMMITTED["minimmar"]


@needs_metadata
@pytest.mark.parametrize("name", FILES)
def test_no_question_is_committed(name):
    text = FILES[name].read_text("utf-8")
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    committed = tool.OUT.read_text("utf-8")
    asked = {text.strip() for row in rows for text in (row["question"], *row["choices"])}
    assert not [text for text in asked if len(text) > 25 and text in committed]  # shorter ones may be a category
    assert not [row["id"] for row in rows if row["id"] in committed]


@each_benchmark
def test_counts_add_up(its):
    n = its["n"]
    for whole in (its["modality"], its["category"], its["subcategory"], *its["extra"].values()):
        assert sum(whole.values()) == n
    assert sum(int(size) * number for size, number in its["items per source"].items()) == n
    for by_group in (its["options"], its["options that are not empty"], its["position"]):
        assert {name: sum(counts.values()) for name, counts in by_group.items()} == {"all": n} | its["modality"]
        parts = sum((Counter(counts) for name, counts in by_group.items() if name != "all"), Counter())
        assert parts == by_group["all"]


@each_benchmark
def test_blind_rules_add_up(its):
    for right in its["blind"].values():
        parts = {name: number for name, number in right.items() if name != "all"}
        assert sum(parts.values()) == pytest.approx(right["all"], abs=0.01)
        assert all(0 <= number <= its["modality"][name] for name, number in parts.items())
    assert its["blind"]["first"]["all"] >= its["position"]["all"]["A"]  # more, where the answer is offered twice


@each_benchmark
def test_scoring_adds_up(its):
    options = sum(int(k) * number for k, number in its["options"]["all"].items())
    for form, counts in its["scoring"].items():
        scorers = [counts[scorer.__name__] for scorer in tool.SCORERS]
        assert all(0 <= of["right"] <= counts["replies"] - of["unread"] for of in scorers)
        assert form == "iron" or counts["replies"] == its["n"]
    assert its["scoring"]["iron"]["replies"] <= options - its["n"]  # fewer, where the answer is offered twice
    assert its["scoring"]["gold"]["exact_option"]["right"] == its["n"]
    assert its["scoring"]["B"]["letter"]["right"] == its["n"]


@pytest.mark.parametrize("name", FILES)
def test_committed_version_is_a_known_one(name):
    assert COMMITTED[name]["n"] == 1000
    assert BENCHMARKS[name].versions[COMMITTED[name]["checksum"]] == COMMITTED[name]["version"]


def test_blind_rules_by_hand(made):
    right = {name: tool.expected_right(made, rule) for name, rule in tool.blind_rules(made).items()}
    assert right["first"] == 1  # c
    assert right["second"] == 3  # a, b, d
    assert right["fourth"] == pytest.approx(1 / 3 + 1 / 3 + 1 / 2 + 1 / 2, abs=1e-3)  # there is none: a pure guess
    assert right["longest"] == 1.5  # c, and d by half: its options are equally long
    assert right["most words"] == 1.5  # c, half of d; b has an option of more words
    assert right["most words, first of these"] == 1  # c
    assert right["most words of the question"] == pytest.approx(1 / 2 + 1 / 3 + 1 + 1 / 2, abs=1e-3)
    assert right["answer of most other items"] == pytest.approx(1 + 1 / 3 + 1 + 1 / 2, abs=1e-3)  # gold, twice


def test_verdicts_by_hand(made):
    right = {form: tool.verdicts(made, replies) for form, replies in tool.FORMS.items()}
    assert right["gold"] == {
        "replies": 4,
        "string_match": {"right": 4, "unread": 0},
        "exact_option": {"right": 4, "unread": 0},
        "letter": {"right": 0, "unread": 4},
    }
    assert right["B"]["letter"]["right"] == 4 and right["B"]["string_match"]["right"] == 0
    assert right["iron"]["replies"] == 2 + 2 + 1 + 1
    assert right["iron"]["string_match"]["right"] == 1  # d: the same words in another order
    assert right["iron"]["exact_option"] == {"right": 0, "unread": 1}  # the empty option
    assert right["It is not gold"]["string_match"]["right"] == 4


def test_a_readers_own_download(monkeypatch, tmp_path, capsys):
    """Files of an unknown version are counted, and called so; both forms of file are read."""
    monkeypatch.setattr(tool, "of_minimmar", lambda: COMMITTED["minimmar"])  # tested above
    rows = [
        {"id": row["id"], "audio_id": row["audio_path"], "task": "sound", "dataset": "made", "difficulty": "easy"}
        | {name: row[name] for name in ("question", "choices", "answer", "category", "sub-category")}
        for row in ROWS
    ]
    mmau, mmar, out = tmp_path / "mmau.json", tmp_path / "mmar.jsonl", tmp_path / "out.json"
    mmau.write_text(json.dumps(rows), encoding="utf-8")
    mmar.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    tool.main(["--mmau", str(mmau), "--mmar", str(mmar), "--out", str(out)])
    found = json.loads(out.read_text("utf-8"))
    assert {name: its["version"] for name, its in found.items()} == {
        "minimmar": "test split",
        "mmau-test-mini": "unknown",
        "mmar": "unknown",
    }
    assert found["mmau-test-mini"]["extra"] == {"difficulty": {"easy": 4}, "dataset": {"made": 4}}
    assert found["mmau-test-mini"]["blind"] == found["mmar"]["blind"]
    assert found["mmar"]["anomalies"] == {"an empty option": 1}
    assert "mmar: 4 items, version 'unknown'" in capsys.readouterr().out
    assert tool.statistics(parse_mmau(rows))["n"] == 4
