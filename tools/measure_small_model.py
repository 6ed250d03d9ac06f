"""Measure the small LALM: choose MATA's strength and layers on dev, then make the committed runs on test.

    python tools/measure_small_model.py            # writes results/*.jsonl and results/mata_choice.json

Everything that the book says about the small model is rebuilt from these files, by `python -m helpers.evaluate --table`
or, for the tables of the page *The small model and its benchmark*, by `tables` below.
"""

import json
import os
from pathlib import Path

from helpers.benchmarks import load_benchmark
from helpers.evaluate import evaluate, table
from helpers.mata import MATA
from helpers.models import load_lalm

RESULTS = Path(__file__).resolve().parents[1] / "results"
ALPHAS = [0.1, 0.2, 0.4, 0.8, 1.6]
LAYERS = {
    "all": range(8),
    "early": range(3),
    "middle": range(3, 6),
    "late": range(6, 8),
    "from 2": range(2, 8),
    "from 4": range(4, 8),
}


def right(records):
    """How many replies are exactly the right option."""
    return sum(record["exact_option"] is True for record in records)


def choose(lalm):
    """Strength and layers with the most right answers under misleading hints on dev, at most 1% lost without a hint."""
    items = load_benchmark("minimmar", split="dev")
    unsteered = {hint: right(evaluate(lalm, items, hint=hint, batch_size=32)) for hint in (None, "misleading")}
    grid = []
    for name, layers in LAYERS.items():
        for alpha in ALPHAS:
            steering = MATA(lalm, alpha=alpha, layers=layers)
            won = right(evaluate(lalm, items, hint="misleading", steering=steering, batch_size=32))
            grid.append({"window": name, "layers": list(layers), "alpha": alpha, "misleading": won})
            print(grid[-1], flush=True)
    for setting in sorted(grid, key=lambda s: -s["misleading"]):
        steering = MATA(lalm, alpha=setting["alpha"], layers=setting["layers"])
        setting["no_hint"] = right(evaluate(lalm, items, steering=steering, batch_size=32))
        if setting["no_hint"] >= unsteered[None] - 0.01 * len(items):
            break
    return {
        "n": len(items),
        "unsteered": {"no_hint": unsteered[None], "misleading": unsteered["misleading"]},
        "chosen": setting,
        "grid": grid,
    }


TABLES = {
    "Without a misleading hint. The first row is what the others are compared with:": [
        "no-hint", "correct-hint", "no-hint-mata", "none", "silence", "noise", "shuffled", "unbiased-no-hint"],
    "With a misleading hint in every prompt:": [
        "misleading-hint", "misleading-mata", "misleading-mata-text-keys", "unbiased-misleading-hint"],
    "With a misleading hint and the audio of another item:": ["misleading-shuffled", "misleading-shuffled-mata"],
}  # fmt: skip


def tables():
    """The accuracies of all runs, as Markdown, from the committed records alone."""
    parts = []
    for heading, names in TABLES.items():
        parts.append(f"{heading}\n\n{table([RESULTS / f'{name}.jsonl' for name in names], scorer='exact_option')}")
    by_modality = table([RESULTS / "no-hint.jsonl"], by="modality", scorer="exact_option")
    parts.append(f"Without a hint, by modality:\n\n{by_modality}")
    return "\n\n".join(parts) + "\n"


def main():
    lalm = load_lalm("tiny")
    path = RESULTS / "mata_choice.json"
    if not path.exists():
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(choose(lalm), indent=1))
        os.replace(draft, path)
    chosen = json.loads(path.read_text())["chosen"]
    print("chosen on dev:", chosen)
    setting = {"alpha": chosen["alpha"], "layers": chosen["layers"]}
    items = load_benchmark("minimmar", split="test")

    def run(name, model=lalm, steering=None, **how):
        evaluate(model, items, steering=steering, batch_size=32, out=RESULTS / f"{name}.jsonl", **how)

    run("no-hint")
    run("correct-hint", hint="correct")
    run("misleading-hint", hint="misleading")
    run("silence", audio="silence")
    run("noise", audio="noise")
    run("shuffled", audio="shuffled")
    run("none", audio="none")
    run("misleading-mata", steering=MATA(lalm, **setting), hint="misleading")
    run("no-hint-mata", steering=MATA(lalm, **setting))
    run("misleading-mata-text-keys", steering=MATA(lalm, keys="text", **setting), hint="misleading")
    run("misleading-shuffled", hint="misleading", audio="shuffled")
    run("misleading-shuffled-mata", steering=MATA(lalm, **setting), hint="misleading", audio="shuffled")
    unbiased = load_lalm("tiny-unbiased")
    run("unbiased-no-hint", unbiased)
    run("unbiased-misleading-hint", unbiased, hint="misleading")
    (RESULTS / "small-model.md").write_text(tables())


if __name__ == "__main__":
    main()
