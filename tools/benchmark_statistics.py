"""Count what the book says about MMAU, MMAR and MiniMMAR from their metadata: numbers only, no question leaves it.

    python tools/benchmark_statistics.py --mmau mmau-test-mini.json --mmar MMAR-meta.jsonl

Each file is the authors' own, or the one that `helpers.benchmarks.download` has put into its cache. Writes
book/data/benchmark-statistics.json, with checksums of what was counted; the chapter *Reading a benchmark* explains each
number and reads them from there.
"""

import argparse
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from string import ascii_uppercase

from helpers.benchmarks import BENCHMARKS, checksum, load_benchmark
from helpers.scoring import exact_option, letter, string_match

OUT = Path(__file__).resolve().parents[1] / "book" / "data" / "benchmark-statistics.json"
SCORERS = (string_match, exact_option, letter)
FIELDS = (
    "difficulty",
    "dataset",
    "language",
    "source",
)  # those outside `Item` that are counted where all items have it


def blind_rules(items):
    """Name -> a function that gives each option of an item a score without hearing it; the highest is the guess."""
    offered = Counter(choice for item in items for choice in item.choices)
    answers = Counter(item.answer for item in items)

    def words(text):
        return set(re.findall(r"\w+", text.lower()))

    rules = {
        name: lambda item, place=place: [number == place for number in range(len(item.choices))]
        for place, name in enumerate(("first", "second", "third", "fourth"))
    }
    return rules | {
        "last": lambda item: range(len(item.choices)),
        "longest": lambda item: [len(choice) for choice in item.choices],
        "shortest": lambda item: [-len(choice) for choice in item.choices],
        "most words": lambda item: [len(choice.split()) for choice in item.choices],
        "most words, first of these": lambda item: [(len(c.split()), -number) for number, c in enumerate(item.choices)],
        "most words of the question": lambda item: [len(words(c) & words(item.question)) for c in item.choices],
        "offered most often": lambda item: [offered[choice] for choice in item.choices],
        "answer of most other items": lambda item: [answers[c] - (c == item.answer) for c in item.choices],
    }


def expected_right(items, rule):
    """How many items a blind rule gets right on average; where options tie for the highest score, it guesses."""
    right = 0
    for item in items:
        scores = list(rule(item))
        best = [choice for choice, score in zip(item.choices, scores, strict=True) if score == max(scores)]
        right += best.count(item.answer) / len(best)
    return round(right, 3)


# Forms in which a model may reply: (item, letter of the answer) -> replies.
FORMS = {
    "gold": lambda item, letter: [item.answer],
    "(B) gold": lambda item, letter: [f"({letter}) {item.answer}"],
    "B. gold": lambda item, letter: [f"{letter}. {item.answer}"],
    "The answer is gold.": lambda item, letter: [f"The answer is {item.answer}."],
    "<answer>gold</answer>": lambda item, letter: [f"<answer>{item.answer}</answer>"],
    "B": lambda item, letter: [letter],
    "gold, not iron": lambda item, letter: [f"{item.answer}, not {wrong_options(item)[0]}"],
    "iron": lambda item, letter: wrong_options(item),
    "It is not gold": lambda item, letter: [f"It is not {item.answer}"],
}


def wrong_options(item):
    return [choice for choice in item.choices if choice != item.answer]


def verdicts(items, form):
    """How many replies of a form each scorer calls right, and how many it can't read."""
    asked = [
        (item.answer, reply, item.choices)
        for item in items
        for reply in form(item, ascii_uppercase[item.choices.index(item.answer)])
    ]
    counts = {"replies": len(asked)}
    for scorer in SCORERS:
        found = Counter(scorer(*each) for each in asked)
        counts[scorer.__name__] = {"right": found[True], "unread": found[None]}
    return counts


def count(values):
    """How often each value occurs, the most frequent first; names are text, since JSON knows no others."""
    return {str(value): number for value, number in sorted(Counter(values).items(), key=lambda c: (-c[1], str(c[0])))}


def statistics(items):
    """All that is counted of a benchmark."""
    modalities = count(item.modality for item in items)
    groups = {"all": items} | {name: [item for item in items if item.modality == name] for name in modalities}
    rules = blind_rules(items)
    fields = [field for field in FIELDS if all(field in item.extra for item in items)]
    return {
        "checksum": checksum(items),
        "n": len(items),
        "distinct questions": len({item.question for item in items}),
        "modality": modalities,
        "category": count(item.category for item in items),
        "subcategory": count(item.subcategory for item in items),
        "extra": {field: count(item.extra[field] for item in items) for field in fields},
        "items per source": count(Counter(item.source for item in items).values()),
        "options": {name: count(len(item.choices) for item in group) for name, group in groups.items()},
        "options that are not empty": {
            name: count(sum(choice != "" for choice in item.choices) for item in group)
            for name, group in groups.items()
        },
        "position": {
            name: count(ascii_uppercase[item.choices.index(item.answer)] for item in group)
            for name, group in groups.items()
        },
        "blind": {rule: {name: expected_right(group, rules[rule]) for name, group in groups.items()} for rule in rules},
        "scoring": {name: verdicts(items, form) for name, form in FORMS.items()},
        "anomalies": count(name for item in items for name in item.extra["anomalies"]),
    }


def of_file(name, path):
    """Statistics of MMAU or MMAR from a file of its metadata: a JSON array, or a JSON object a line."""
    content = Path(path).read_bytes()
    text = content.decode("utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    found = statistics(BENCHMARKS[name].parse(rows))
    version = BENCHMARKS[name].versions.get(found["checksum"], "unknown")
    return {"version": version, "file": Path(path).name, "sha256": hashlib.sha256(content).hexdigest()} | found


def of_minimmar():
    return {"version": "test split"} | statistics(load_benchmark("minimmar", split="test"))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmau", required=True, metavar="FILE", help="metadata of MMAU test-mini")
    parser.add_argument("--mmar", required=True, metavar="FILE", help="metadata of MMAR")
    parser.add_argument("--out", default=OUT, type=Path, metavar="FILE", help="by default %(default)s")
    given = parser.parse_args(arguments)
    found = {
        "minimmar": of_minimmar(),
        "mmau-test-mini": of_file("mmau-test-mini", given.mmau),
        "mmar": of_file("mmar", given.mmar),
    }
    given.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, its in found.items():
        print(f"{name}: {its['n']} items, version {its['version']!r}, checksum {its['checksum']}")


if __name__ == "__main__":
    main()
