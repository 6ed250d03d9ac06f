"""What CALM and SAV learn from the small LALM's own labels, against true labels, against errors of other kinds.

    python -m tools.measure_pseudo_labels          # writes results/pseudo_labels.json; goes on where it was stopped

A run is a number of classes, a hint, a temperature and a draw of 10 clips a class; draws share no clip. It holds the
label of each clip, how many of 8 replies agree on it, and method by method whether each test clip is classified right,
as hex digits of bits in the order of the test clips; so every accuracy, interval and paired test can be computed anew.
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

from helpers.calm import CALM
from helpers.heads import head_vectors
from helpers.models import load_lalm
from helpers.prompts import multiple_choice
from helpers.provenance import weights_checksum
from helpers.pseudolabels import known_sound, majority, sample_replies, usable
from helpers.sav import SAV
from helpers.sounds import SOUNDS
from tools.records import bits, unpack, write_whole

OUT = Path(__file__).resolve().parents[1] / "results" / "pseudo_labels.json"
QUESTION, SAMPLES, DRAWS, PER_CLASS, TEST_PER_CLASS, BATCH = "Which sound is heard twice?", 8, 8, 10, 15, 16
CONDITIONS = [  # classes, hint, temperature
    (16, "none", 0.5),
    (16, "none", 1.0),
    (8, "none", 0.5),
    (8, "none", 1.0),
    (16, "random", 0.5),
    (16, "fixed", 0.5),
]


def main():
    lalm = load_lalm("tiny")
    record = {
        "model": lalm.name,
        "weights": weights_checksum(lalm.model),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "environment": {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"},
        "question": QUESTION,
        "samples": SAMPLES,
        "zero-shot": {},
        "runs": [],
    }
    if OUT.exists():
        record = json.loads(OUT.read_text())
    classes = list(SOUNDS)
    clips, y = draw(classes, "test", 0, TEST_PER_CLASS)
    X = vectors(lalm, clips)
    for n_classes in (8, 16):
        if str(n_classes) not in record["zero-shot"]:
            some = np.isin(y, classes[:n_classes])
            replies = zero_shot(lalm, [c for c, chosen in zip(clips, some, strict=True) if chosen], classes[:n_classes])
            record["zero-shot"][str(n_classes)] = bits(np.array(replies) == y[some])
    for number in tqdm(range(DRAWS), desc="draws"):
        have = {(run["classes"], run["hint"], run["temperature"]) for run in record["runs"] if run["draw"] == number}
        todo = [condition for condition in CONDITIONS if condition not in have]
        if not todo:
            continue
        support, truth = draw(classes, "train", number, PER_CLASS)
        V = vectors(lalm, support)
        for n_classes, hint, temperature in todo:
            own = classes[:n_classes]
            mine, theirs = np.isin(truth, own), np.isin(y, own)
            some = [c for c, chosen in zip(support, mine, strict=True) if chosen]
            prompts = ask(own, truth[mine], hint)
            labels, confidence = label(lalm, some, prompts, own, temperature)
            right = {
                name: students(V[mine], truth[mine], labels, confidence >= least, X[theirs], y[theirs], own, number)
                for name, least in {"kept": 0.5, "all": 1 / SAMPLES}.items()
            }
            record["runs"].append(
                {"classes": n_classes, "hint": hint, "temperature": temperature, "draw": number}
                | {"labels": [own.index(name) if name else -1 for name in labels]}
                | {"votes": (SAMPLES * confidence).round().astype(int).tolist(), "right": right}
            )
            save(record)
    print(summary(record))


def draw(classes, split, number, per_class):
    """Clips of every class, number * per_class and the next ones, and their classes."""
    y = np.repeat(classes, per_class)
    return [known_sound(split, name, number * per_class + i % per_class) for i, name in enumerate(y)], y


def vectors(lalm, clips):
    parts = [clips[start : start + 32] for start in range(0, len(clips), 32)]
    return np.concatenate([head_vectors(lalm, lalm.prepare([QUESTION] * len(some), some)).numpy() for some in parts])


def ask(classes, truth, hint="none"):
    """The question with its options; with a hint at another class: "random", or "fixed": always the next class."""
    rng, prompts = np.random.default_rng(0), []
    for name in truth:
        own = classes.index(name)
        step = {"none": 0, "fixed": 1, "random": rng.integers(1, len(classes))}[hint]
        wrong = None if hint == "none" else classes[(own + step) % len(classes)]
        prompts.append(multiple_choice(QUESTION, classes, hint=wrong))
    return prompts


def label(lalm, clips, prompts, classes, temperature):
    """Pseudo-labels and their confidence; each batch has its own seed."""
    replies = []
    for start in range(0, len(clips), BATCH):
        inputs = lalm.prepare(prompts[start : start + BATCH], clips[start : start + BATCH])
        replies += sample_replies(lalm, inputs, SAMPLES, temperature, seed=start)
    return majority(replies, classes)


def zero_shot(lalm, clips, classes):
    prompt, replies = multiple_choice(QUESTION, classes), []
    for start in range(0, len(clips), BATCH):
        some = clips[start : start + BATCH]
        replies += lalm.generate(lalm.prepare([prompt] * len(some), some))
    return replies


def students(V, truth, labels, chosen, X, y, classes, seed):
    """Method -> which test clips are right, learned from labels with errors of several kinds on the same clips."""
    rng = np.random.default_rng(seed)
    kinds = {
        "pseudo-labels": labels,
        "true labels": truth,
        "same errors, other clips": same_errors_elsewhere(labels, truth, chosen, rng),
        "random errors": random_errors(labels, truth, chosen, classes, rng),
        "shuffled": shuffled(labels, chosen, rng),
    }
    right = {}
    for name, given in kinds.items():
        use = chosen.copy()
        use[chosen] = usable(given[chosen])
        if len(np.unique(given[use])) > 1:
            for model in (CALM(), SAV()):
                predicted = model.fit(V[use], given[use]).predict(X)
                right[f"{type(model).__name__}, {name}"] = bits(predicted == y)
    return right


def same_errors_elsewhere(labels, truth, chosen, rng):
    """Pseudo-labels exchanged among the chosen clips of each true class: the same confusions, of clips at random."""
    given = labels.copy()
    for name in np.unique(truth[chosen]):
        own = np.flatnonzero(chosen & (truth == name))
        given[own] = rng.permutation(labels[own])
    return given


def random_errors(labels, truth, chosen, classes, rng):
    """True labels, with as many wrong ones among the chosen clips as the pseudo-labels have: any clip, any class."""
    given = truth.copy()
    n_wrong = np.sum(labels[chosen] != truth[chosen])
    for i in rng.permutation(np.flatnonzero(chosen))[:n_wrong]:
        given[i] = rng.choice([name for name in classes if name != truth[i]])
    return given


def shuffled(labels, chosen, rng):
    given = labels.copy()
    given[chosen] = rng.permutation(labels[chosen])
    return given


def save(record):
    write_whole(OUT, json.dumps(record) + "\n")


def summary(record):
    """Accuracy by condition, threshold and method, mean over the draws, in percent."""
    lines = []
    for condition in CONDITIONS:
        runs = [r for r in record["runs"] if (r["classes"], r["hint"], r["temperature"]) == condition]
        n = TEST_PER_CLASS * condition[0]
        truth = np.repeat(np.arange(condition[0]), PER_CLASS)
        teacher = 100 * unpack(record["zero-shot"][str(condition[0])], n).mean()
        lines.append(f"{condition}: zero-shot {teacher:.1f}, n = {n}")
        for kept, least in {"kept": 4, "all": 1}.items():
            named = [(np.array(r["votes"]) >= least, np.array(r["labels"]) == truth) for r in runs]
            coverage, precision = (
                np.mean([k for k, _ in named]),
                np.concatenate([right[k] for k, right in named]).mean(),
            )
            lines.append(f"  {kept}: {100 * coverage:.1f} of the clips, {100 * precision:.1f} of their labels right")
            for name in runs[0]["right"][kept]:
                means = [100 * unpack(r["right"][kept][name], n).mean() for r in runs if name in r["right"][kept]]
                lines.append(f"    {name:32} {np.mean(means):5.1f} ({min(means):.1f} to {max(means):.1f})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
