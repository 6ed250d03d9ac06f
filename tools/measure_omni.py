"""Measure the small omni model on fresh events, with both senses, with one of them, and with another event's.

    python tools/measure_omni.py                                    # writes results/tiny_omni.json
    python tools/measure_omni.py --model <name> --out <file>.json   # the same of your own model

The file holds every reply; `accuracies` makes the table.
"""

import argparse
import json
from pathlib import Path

from helpers.events import QUESTIONS, event_items
from helpers.models import load_lalm
from helpers.prompts import multiple_choice
from helpers.provenance import environment, weights_checksum
from helpers.scoring import exact_option
from helpers.statistics import accuracy_interval

RESULTS = Path(__file__).resolve().parents[1] / "results"
PER_QUESTION = 64
CONDITIONS = ["both", "no sound", "no frames", "another sound", "another's frames"]


def senses(items, condition):
    """What is heard and what is seen where each item is asked."""
    sounds, frames = [item.audio for item in items], [item.extra["frames"] for item in items]
    turn = len(items) // 2 + 1  # another event: half the list further on
    if condition == "no sound":
        sounds = [None] * len(items)
    if condition == "no frames":
        frames = [None] * len(items)
    if condition == "another sound":
        sounds = sounds[turn:] + sounds[:turn]
    if condition == "another's frames":
        frames = frames[turn:] + frames[:turn]
    return sounds, frames


def replies(lalm, items, condition, batch_size=32):
    """The model's reply to each item."""
    prompts = [multiple_choice(item.question, item.choices) for item in items]
    sounds, frames = senses(items, condition)
    said = []
    for start in range(0, len(items), batch_size):
        rows = slice(start, start + batch_size)
        said += lalm.generate(lalm.prepare(prompts[rows], sounds[rows], videos=frames[rows]), max_new_tokens=8)
    return said


def measure(lalm, per_question=PER_QUESTION):
    items = event_items("test", per_question)
    return {
        "model": lalm.name,
        "weights": weights_checksum(lalm.model),
        "environment": environment(lalm),
        "per_question": per_question,
        "ids": [item.id for item in items],
        "answers": [item.answer for item in items],
        "replies": {condition: replies(lalm, items, condition) for condition in CONDITIONS},
    }


def right(record, condition):
    """Item by item: is the reply exactly the answer?"""
    pairs = zip(record["answers"], record["replies"][condition], strict=True)
    return [exact_option(answer, reply, [answer]) is True for answer, reply in pairs]


def accuracies(record):
    """Condition -> sense -> (right, n, low, high), of the questions that take that sense."""
    kinds = [name.split("-")[1] for name in record["ids"]]
    out = {}
    for condition in record["replies"]:
        outcome = right(record, condition)
        out[condition] = {}
        for sense in dict.fromkeys(question.sense for question in QUESTIONS.values()):
            own = [x for x, kind in zip(outcome, kinds, strict=True) if QUESTIONS[kind].sense == sense]
            interval = accuracy_interval(own)
            out[condition][sense] = (sum(own), len(own), interval.low, interval.high)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-omni")
    parser.add_argument("--out", type=Path, help="another model needs a file of its own")
    parser.add_argument("--per-question", type=int, default=PER_QUESTION)
    given = parser.parse_args()
    if given.out is None and given.model != "tiny-omni":
        parser.error("results/tiny_omni.json is the record of tiny-omni: add --out <file>.json for this model.")
    given.out = given.out or RESULTS / "tiny_omni.json"
    record = measure(load_lalm(given.model), given.per_question)
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    for condition, by_sense in accuracies(record).items():
        row = [f"{sense} {n / total:.1%} [{low:.1%}, {high:.1%}]" for sense, (n, total, low, high) in by_sense.items()]
        print(f"{condition:18}", "; ".join(row))


if __name__ == "__main__":
    main()
