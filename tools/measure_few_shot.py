"""CALM, SAV and their rivals on the generated few-shot tasks, from 1 to 40 shots, and their controls.

    python -m tools.measure_few_shot               # writes results/few_shot.json; goes on where it was stopped

One line a task, number of shots, draw of the shots and method: whether each test clip was classified right, as hex
digits of the bits in the order of `ids`; so every accuracy, interval and paired test can be computed anew. Nothing is
chosen on test clips: settings are the published defaults, or chosen by cross-validation among the shots.
"""

import json
import platform
from pathlib import Path

import numpy as np
import sklearn
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from tqdm import tqdm

from helpers.benchmarks import checksum
from helpers.calm import CALM
from helpers.fewshot import draw_shots, fewshot_items, fewshot_vectors
from helpers.heads import head_vectors, pooled_audio_tokens
from helpers.models import load_audio, load_lalm
from helpers.prompts import multiple_choice
from helpers.provenance import weights_checksum
from helpers.sav import SAV
from helpers.scoring import likeliest, option_loglikelihood
from tools.records import bits, unpack, write_whole

OUT = Path(__file__).resolve().parents[1] / "results" / "few_shot.json"
TASKS, SHOTS, DRAWS = ("sounds", "spoofing"), (1, 2, 5, 10, 20, 40), 10
GRID = {"tau": [0.01, 0.03, 0.07, 0.2], "tau_w": [0.3, 1.0], "weighting": ["margin_clamped", "prob_softmax"]}


def main():
    lalm = load_lalm("tiny")
    record = {
        "model": lalm.name,
        "weights": weights_checksum(lalm.model),
        "versions": {p.__name__: p.__version__ for p in (np, sklearn, torch, transformers)},
        "environment": {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"},
        "draws": DRAWS,
        "grid": GRID,
        "tasks": {},
    }
    if OUT.exists():
        record = json.loads(OUT.read_text())
    for task in TASKS:
        data = {split: read(lalm, task, split) for split in ("train", "test")}
        items = data["test"]["items"]
        known = record["tasks"].setdefault(
            task,
            {
                "asked": {split: checksum(data[split]["items"]) for split in data},
                "ids": [item.id for item in items],
                "sources": [item.source for item in items],
                "zero-shot": zero_shot(lalm, items),
                "runs": [],
            },
        )
        have = {(run["shots"], run["draw"]) for run in known["runs"]}
        todo = [(shots, draw) for shots in SHOTS for draw in range(DRAWS) if (shots, draw) not in have]
        for shots, draw in tqdm(todo, desc=task):
            known["runs"].append({"shots": shots, "draw": draw, "right": compare(data, shots, draw)})
            save(record)
    print(summary(record))


def read(lalm, task, split):
    """Of every clip of a split: head vectors, head vectors of the prompt without its sound, pooled audio tokens."""
    items = fewshot_items(task, split)
    X, y = fewshot_vectors(lalm, items, f"{task}-{split}")
    pooled = []
    for start in tqdm(range(0, len(items), 32), desc=f"{task}, {split}: encoder"):
        some = items[start : start + 32]
        audios = [load_audio(item.audio, lalm.sampling_rate) for item in some]
        pooled.append(pooled_audio_tokens(lalm, lalm.prepare([item.question for item in some], audios)).numpy())
    deaf = head_vectors(lalm, lalm.prepare([items[0].question], [None])).numpy()  # one prompt, so one for all
    return {
        "items": items,
        "y": y,
        "heads": np.array(X),
        "encoder": np.concatenate(pooled),
        "text": deaf.repeat(len(y), 0),
    }


def zero_shot(lalm, items):
    """Is the class the reply that the model finds most likely, of all classes, after the options were read out?"""
    right = []
    for start in tqdm(range(0, len(items), 16), desc="zero-shot"):
        some = items[start : start + 16]
        prompts = [multiple_choice(item.question, item.choices) for item in some]
        inputs = lalm.prepare(prompts, [load_audio(item.audio, lalm.sampling_rate) for item in some])
        for item, found in zip(some, option_loglikelihood(lalm, inputs, [i.choices for i in some]), strict=True):
            right.append(likeliest(item.answer, found, item.choices))
    return bits(right)


def compare(data, shots, draw):
    """Method -> which test clips are right, after fitting on the shots of a draw."""
    train, test = data["train"], data["test"]
    chosen = draw_shots(train["y"], shots, seed=draw)
    right = {}
    for name, (kind, fit) in methods(shots, np.random.default_rng(draw)).items():
        model = fit(train[kind][chosen], train["y"][chosen])
        right[name] = bits(model.predict(test[kind]) == test["y"])
    return right


def methods(shots, rng):
    """Name -> (what it reads, how it is fitted): the methods, then their ablations and negative controls."""

    def calm(X, y):
        return CALM().fit(X, y) if shots > 1 else in_sample(X, y)  # one shot leaves none to judge it by

    def in_sample(X, y):
        return CALM().fit(X, y, X_val=X, y_val=y)

    def equal_weights(X, y):
        model = calm(X, y)
        model.weights_ = np.full_like(model.weights_, 1 / len(model.weights_))
        return model

    def weights_of_other_heads(X, y):
        model = calm(X, y)
        model.weights_ = rng.permuted(model.weights_, axis=0)
        return model

    def random_heads(X, y):
        model = SAV().fit(X, y)
        model.heads_ = rng.permutation(len(model.hits_))[: model.n_heads]
        return model

    def cross_validated(X, y):
        return GridSearchCV(CALM(), GRID, cv=5).fit(X, y)

    def logistic(X, y):
        model = make_pipeline(FunctionTransformer(flat), StandardScaler(), LogisticRegression(max_iter=2000))
        return model.fit(X, y)

    def neighbours(X, y):
        return KNeighborsClassifier(min(shots, 5), metric="cosine").fit(X, y)

    return {
        "CALM": ("heads", calm),
        "CALM, in-sample": ("heads", in_sample),
        **({"CALM, cross-validated": ("heads", cross_validated)} if shots >= 5 else {}),
        "SAV": ("heads", lambda X, y: SAV().fit(X, y)),
        "logistic regression, heads": ("heads", logistic),
        "linear probe, encoder": ("encoder", logistic),
        "nearest neighbours, encoder": ("encoder", neighbours),
        "CALM, equal weights": ("heads", equal_weights),
        "CALM, weights of other heads": ("heads", weights_of_other_heads),
        "SAV, random heads": ("heads", random_heads),
        "CALM, shuffled labels": ("heads", lambda X, y: calm(X, rng.permutation(y))),
        "CALM, text only": ("text", calm),
    }


def flat(X):
    return X.reshape(len(X), -1)


def save(record):
    write_whole(OUT, json.dumps(record, indent=0) + "\n")


def summary(record):
    """Accuracy by task, method and shots, mean over the draws, in percent."""
    lines = []
    for task, known in record["tasks"].items():
        n = len(known["ids"])
        lines.append(f"{task}, n = {n}; zero-shot {100 * unpack(known['zero-shot'], n).mean():.1f}")
        for name in known["runs"][-1]["right"]:
            means = []
            for shots in SHOTS:
                runs = [run["right"] for run in known["runs"] if run["shots"] == shots]
                some = [unpack(right[name], n).mean() for right in runs if name in right]
                means.append(f"{100 * np.mean(some):5.1f}" if some else "    -")
            lines.append(f"{name:30} {' '.join(means)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
