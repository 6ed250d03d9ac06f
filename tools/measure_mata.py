"""The ablation of MATA on the small LALM: rule x layers x strength on dev, the choice, and what it does on test.

    python tools/measure_mata.py                   # writes results/mata_ablation.json; goes on where it was stopped

One setting is one line of the file: its rule, keys, layers and alpha, and whether each item was answered right (exact
option), as a string of 0 and 1 in the order of the items; so every accuracy, interval and paired test can be computed
anew. The chapter "Which layers, how much?" draws from it. The prompts are prepared once: MATA acts behind the encoder.
"""

import json
import os
import platform
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from helpers.benchmarks import checksum, load_benchmark
from helpers.evaluate import weights_checksum
from helpers.mata import MATA
from helpers.models import load_audio, load_lalm
from helpers.prompts import multiple_choice
from helpers.scoring import exact_option

OUT = Path(__file__).resolve().parents[1] / "results" / "mata_ablation.json"
HINTS = ("none", "misleading")
STRENGTHS = {
    "multiply": [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4],
    "absolute": [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4],
    "additive": [0.4, 1, 3, 10, 30, 100, 1000, 10_000, 100_000],  # weights times 1 + alpha
}
LAYERS = {
    "all": range(8),
    "early": range(3),  # the paper's three windows of 28 layers, 0-10, 10-20 and 20-28, in proportion
    "middle": range(3, 6),
    "late": range(6, 8),
    "from 2": range(2, 8),
    "from 4": range(4, 8),
}
BATCH = 54


def prepare(lalm, items, hint):
    """Batches of inputs, in the order of the items."""
    batches = []
    for start in tqdm(range(0, len(items), BATCH), desc=f"hint: {hint}"):
        some = items[start : start + BATCH]
        prompts = [multiple_choice(i.question, i.choices, hint=i.extra.get(f"{hint}_hint")) for i in some]
        batches.append(lalm.prepare(prompts, [load_audio(i.audio, lalm.sampling_rate) for i in some]))
    return batches


def outcomes(lalm, items, batches):
    """Which items are answered right, as a string of 0 and 1."""
    replies = [reply for inputs in batches for reply in lalm.generate(inputs)]
    scored = (exact_option(item.answer, reply, item.choices) for item, reply in zip(items, replies, strict=True))
    return "".join("01"[right is True] for right in scored)


def random_keys(lalm, seed=0):
    """As many keys as the prompt has audio tokens, drawn from all its tokens."""

    def keys(input_ids):
        rng = torch.Generator().manual_seed(seed)
        draw = torch.rand(input_ids.shape, generator=rng).masked_fill(input_ids == lalm.tokenizer.pad_token_id, 2.0)
        rank = draw.argsort(dim=1).argsort(dim=1)
        return rank < (input_ids == lalm.audio_token_id).sum(dim=1, keepdim=True)

    return keys


KEYS = {"audio": lambda lalm: "audio", "text": lambda lalm: "text", "random": random_keys}


def run(lalm, split, data, settings, record):
    """Add the outcomes of `settings` that `record` lacks; written after each."""
    items, batches = data
    have = {key(setting) for setting in record[split]["settings"]}
    for setting in tqdm([s for s in settings if key(s) not in have], desc=split):
        line = dict(setting)
        layers = LAYERS[setting["window"]] if setting["alpha"] else range(8)
        keys = KEYS[setting["keys"]](lalm)
        with MATA(lalm, alpha=setting["alpha"], layers=layers, rule=setting["rule"], keys=keys):
            for hint in HINTS:
                line[hint] = outcomes(lalm, items, batches[hint])
        record[split]["settings"].append(line)
        save(record)


def key(setting):
    return tuple(setting[name] for name in ("rule", "keys", "window", "alpha"))


def setting(rule="multiply", keys="audio", window="all", alpha=0.0):
    return {"rule": rule, "keys": keys, "window": window, "alpha": alpha}


def save(record):
    draft = OUT.with_suffix(".part")
    draft.write_text(json.dumps(record, indent=0) + "\n")
    os.replace(draft, OUT)


def choose(record):
    """Rule -> the setting with most right answers under misleading hints on dev, at most 1% lost without a hint."""
    unsteered, *tried = record["dev"]["settings"]
    most_lost = 0.01 * len(record["dev"]["ids"])

    def harmless(setting):
        return setting["none"].count("1") >= unsteered["none"].count("1") - most_lost

    chosen = {}
    for rule in STRENGTHS:
        candidates = [s for s in tried if s["rule"] == rule and harmless(s)]
        best = max(candidates, key=lambda s: (s["misleading"].count("1"), -s["alpha"]))
        chosen[rule] = {name: best[name] for name in ("rule", "keys", "window", "alpha")}
    return chosen


def main():
    lalm = load_lalm("tiny")
    splits = {split: load_benchmark("minimmar", split=split) for split in ("dev", "test")}
    record = {
        "model": lalm.name,
        "weights": weights_checksum(lalm.model),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "environment": {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"},
        "scorer": "exact_option",
        "windows": {name: list(layers) for name, layers in LAYERS.items()},
        **{s: {"asked": checksum(items), "ids": [i.id for i in items], "settings": []} for s, items in splits.items()},
    }
    if OUT.exists():
        record = json.loads(OUT.read_text())
    data = {s: (items, {hint: prepare(lalm, items, hint) for hint in HINTS}) for s, items in splits.items()}

    grid = [
        setting(rule, "audio", window, alpha)
        for rule, alphas in STRENGTHS.items()
        for window in LAYERS
        for alpha in alphas
    ]
    run(lalm, "dev", data["dev"], [setting(), *grid], record)
    record["chosen"] = choose(record)
    best = record["chosen"]["multiply"]
    report = [setting(), *record["chosen"].values()]
    report += [best | {"keys": keys} for keys in ("text", "random")]
    report += [best | {"window": window} for window in LAYERS]
    report += [best | {"alpha": alpha} for alpha in STRENGTHS["multiply"]]
    unique = list({key(s): s for s in report}.values())
    run(lalm, "test", data["test"], unique, record)
    save(record)
    print(json.dumps(record["chosen"], indent=1))


if __name__ == "__main__":
    main()
