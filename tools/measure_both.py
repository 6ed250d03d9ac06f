"""Steering and head vectors together: do CALM and SAV do better or worse on head vectors that were read under MATA?

    python -m tools.measure_both                   # writes results/both_halves.json; goes on where it was stopped

Clips of the few-shot tasks are asked about in prompts without a hint, and with a last line that names the right class,
a misleading one, any one at random, or none ("neutral"). A classifier is fitted on shots in one prompt and tried on
clips in another, under one and the same steering. `cv` holds what was tried on training clips only: 5 shots a class,
tried on the others of the pool. From it the strength and layers are chosen, one setting for each pair of prompts; these
and their controls are measured on test clips once: `test`. Outcomes are kept clip by clip, in the order of the ids:
right or wrong as hex digits (`unpack` reads them), and for CALM on test clips the class given, one letter a clip.
"""

import json
import platform
import string
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

from helpers.benchmarks import checksum
from helpers.calm import CALM
from helpers.fewshot import draw_shots, fewshot_items
from helpers.heads import head_vectors
from helpers.mata import MATA
from helpers.models import load_audio, load_lalm
from helpers.provenance import weights_checksum
from helpers.sav import SAV
from tools.measure_mata import KEYS, LAYERS
from tools.records import bits, unpack, write_whole

OUT = Path(__file__).resolve().parents[1] / "results" / "both_halves.json"
POOL = {"sounds": 10, "spoofing": 30}  # training clips a class, from which shots are drawn
HINTS = {"train": ("none", "random", "right", "misleading", "neutral"), "test": ("none", "misleading", "neutral")}
CASES = ("none > none", "none > misleading", "random > misleading", "right > misleading")  # prompts of shots > of clips
CONTROLS = ("none > neutral", "neutral > neutral")  # a last line that names no class
SHOTS, DRAWS, BATCH = 5, 10, 48
WINDOWS, ALPHAS = ("middle", "from 2", "all"), (0.1, 0.4, 1.6, 6.4)
PAPER, BOOK = ("audio", "middle", 0.1), ("audio", "from 2", 1.6)  # MATA's, and this book's choice for answers
UNSTEERED = ("audio", "all", 0.0)
GRID = [UNSTEERED] + [("audio", window, alpha) for window in WINDOWS for alpha in ALPHAS]


def hint_of(item, kind):
    """What a hint of this kind names; drawn for each item by itself, so that any subset of items gets the same."""
    rng = np.random.default_rng(list(item.id.encode()))
    wrong = [choice for choice in item.choices if choice != item.answer]
    drawn = {"random": str(rng.choice(item.choices)), "misleading": str(rng.choice(wrong))}
    return {"none": None, "right": item.answer, "neutral": "in the sound", **drawn}[kind]


def prompt_of(item, kind):
    hint = hint_of(item, kind)
    return item.question if hint is None else f"{item.question}\nHint: the answer is {hint}."


def prepare(lalm, items, kind):
    """Batches of inputs, in the order of the items."""
    batches = []
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        audios = [load_audio(item.audio, lalm.sampling_rate) for item in some]
        batches.append(lalm.prepare([prompt_of(item, kind) for item in some], audios))
    return batches


def vectors(lalm, batches, setting):
    """Head vectors under a steering: (n, L, H, D)."""
    keys, window, alpha = setting
    with MATA(lalm, alpha=alpha, layers=LAYERS[window], keys=KEYS[keys](lalm)):
        return torch.cat([head_vectors(lalm, inputs) for inputs in batches]).numpy()


def letters(classes, given):
    """The classes given to clips, one letter a clip."""
    return "".join(string.ascii_letters[classes.index(name)] for name in given)


def shots_of(data, draw):
    return draw_shots(data["y"], SHOTS, seed=draw)


def others(data, draw):
    """Which clips of the pool CALM is tried on: those that share no utterance with the shots."""
    return ~np.isin(data["sources"], data["sources"][shots_of(data, draw)])


def cross_validate(data, X):
    """Case -> draw by draw, which of the pool's other clips are right after fitting on 5 shots."""
    found = {}
    for case in CASES:
        shots, asked = case.split(" > ")
        found[case] = []
        for draw in range(DRAWS):
            chosen = shots_of(data, draw)
            given = CALM().fit(X[shots][chosen], data["y"][chosen]).predict(X[asked])
            found[case].append(bits((given == data["y"]) & others(data, draw)))
    return found


def choose(known, data):
    """Case -> the setting with the best mean accuracy on training clips; of two as good, the weaker one."""
    n_tried = sum(others(data, draw).sum() for draw in range(DRAWS))

    def accuracy(line, case):
        return sum(unpack(right, len(data["y"])).sum() for right in line["right"][case]) / n_tried

    best = {case: max(known["cv"], key=lambda line, c=case: (accuracy(line, c), -line["alpha"])) for case in CASES}
    return {case: [line[part] for part in ("keys", "window", "alpha")] for case, line in best.items()}


def measure(data, X, X_test):
    """Every case on the test clips, draw by draw, and what single heads and CALM know of sound and hint."""
    train, test = data["train"], data["test"]
    runs = []
    for case in (*CASES, *CONTROLS):
        shots, asked = case.split(" > ")
        for draw in range(DRAWS):
            chosen = shots_of(train, draw)
            few, y = X[shots][chosen], train["y"][chosen]
            shuffled = np.random.default_rng(draw).permutation(y)
            given = {
                "CALM": CALM().fit(few, y).predict(X_test[asked]),
                "SAV": SAV().fit(few, y).predict(X_test[asked]),
                "CALM, shuffled labels": CALM().fit(few, shuffled).predict(X_test[asked]),
            }
            right = {method: bits(classes == test["y"]) for method, classes in given.items()}
            runs.append({"case": case, "draw": draw, "given": letters(test["classes"], given["CALM"]), "right": right})
    return {"runs": runs, "probe": probe(data, X["random"], X_test["misleading"])}


def probe(data, X, X_test):
    """Fitted on the whole pool in random hints: what can be told from misled vectors, the sound or the hint?"""
    found = {}
    for what in ("y", "hints"):
        y, y_test = data["train"][what], data["test"][what]
        sav = SAV().fit(X, y)
        found["sound" if what == "y" else "hint"] = {
            "CALM": bits(CALM().fit(X, y).predict(X_test) == y_test),
            "heads": (sav.classes_[sav.nearest(X_test)] == y_test[:, None]).sum(0).tolist(),  # right, head by head
        }
    return found


def read(lalm, task, split):
    items = fewshot_items(task, split, per_class=POOL[task] if split == "train" else None)
    return {
        "items": items,
        "classes": items[0].choices,
        "y": np.array([item.answer for item in items]),
        "hints": np.array([hint_of(item, "random" if split == "train" else "misleading") for item in items]),
        "sources": np.array([item.source for item in items]),
        "batches": {kind: prepare(lalm, items, kind) for kind in HINTS[split]},
    }


def clips_of(data):
    """Of every clip: id, source, and the letters of its class and of the class that its hint names."""
    truth, hints = (letters(data["classes"], data[what]) for what in ("y", "hints"))
    return [[item.id, item.source, *pair] for item, *pair in zip(data["items"], truth, hints, strict=True)]


def as_line(setting):
    return dict(zip(("keys", "window", "alpha"), setting, strict=True))


def missing(settings, lines):
    have = [tuple(line[part] for part in ("keys", "window", "alpha")) for line in lines]
    return [setting for setting in dict.fromkeys(settings) if setting not in have]


def save(record):
    write_whole(OUT, json.dumps(record, indent=0) + "\n")


def main():
    lalm = load_lalm("tiny")
    record = {
        "model": lalm.name,
        "weights": weights_checksum(lalm.model),
        "versions": {p.__name__: p.__version__ for p in (np, torch, transformers)},
        "environment": {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"},
        "windows": {window: list(LAYERS[window]) for window in WINDOWS},
        "shots": SHOTS,
        "draws": DRAWS,
        "tasks": {},
    }
    if OUT.exists():
        record = json.loads(OUT.read_text())
    for task in POOL:
        data = {split: read(lalm, task, split) for split in ("train", "test")}
        train, test = data["train"], data["test"]
        known = record["tasks"].setdefault(
            task,
            {
                "asked": {split: checksum(data[split]["items"]) for split in data},
                "classes": test["classes"],
                "clips": {split: clips_of(data[split]) for split in data},
                "tried": [bits(others(train, draw)) for draw in range(DRAWS)],
                "cv": [],
                "test": [],
            },
        )
        for setting in tqdm(missing(GRID, known["cv"]), desc=f"{task}, training clips"):
            X = {kind: vectors(lalm, train["batches"][kind], setting) for kind in HINTS["train"][:4]}
            known["cv"].append({**as_line(setting), "right": cross_validate(train, X)})
            save(record)
        known["chosen"] = choose(known, train)
        reported = [UNSTEERED, PAPER, BOOK, *map(tuple, known["chosen"].values())]
        reported += [(keys, *known["chosen"]["none > misleading"][1:]) for keys in ("text", "random")]
        for setting in tqdm(missing(reported, known["test"]), desc=f"{task}, test clips"):
            X = {
                kind: vectors(lalm, train["batches"][kind], setting) for kind in HINTS["train"] if kind != "misleading"
            }
            X_test = {kind: vectors(lalm, test["batches"][kind], setting) for kind in HINTS["test"]}
            known["test"].append({**as_line(setting), **measure(data, X, X_test)})
            save(record)
        save(record)
    print(summary(record))


def summary(record):
    """Accuracy of CALM by task, case and setting, mean over the draws, in percent."""
    lines = []
    for task, known in record["tasks"].items():
        n = {split: len(clips) for split, clips in known["clips"].items()}
        tried = sum(unpack(mask, n["train"]).sum() for mask in known["tried"])
        lines.append(f"{task}: chosen {known['chosen']}")
        for line in known["cv"]:
            right = {c: sum(unpack(h, n["train"]).sum() for h in hs) / tried for c, hs in line["right"].items()}
            lines.append(f"  cv   {setting_of(line)} " + ", ".join(f"{c}: {100 * a:.1f}" for c, a in right.items()))
        for line in known["test"]:
            for method in ("CALM", "SAV", "CALM, shuffled labels"):
                right = {}
                for run in line["runs"]:
                    right.setdefault(run["case"], []).append(unpack(run["right"][method], n["test"]).mean())
                means = ", ".join(f"{case}: {100 * np.mean(a):.1f}" for case, a in right.items())
                lines.append(f"  test {setting_of(line)} {method} {means}")
            told = {what: 100 * unpack(p["CALM"], n["test"]).mean() for what, p in line["probe"].items()}
            lines.append(f"       probe {told}")
    return "\n".join(lines)


def setting_of(line):
    return f"{line['keys']} {line['window']} {line['alpha']}"


if __name__ == "__main__":
    main()
