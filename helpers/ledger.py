"""The claims ledger: each published number that this harness can try, beside what was measured here.

    python -m helpers.ledger        # in a clone: book/data and the runs in results/ become results/claims.json

Published are the accuracies that the digests of MATA's paper, MMAR's README and DeSTA2.5's (for the version of MMAU
that we have) report for models whose weights are public. Ours is the official rule over a whole run on a known version
of the benchmark, with the prompt of the benchmark's authors and weights that are not quantized. The verdict follows
from the numbers alone:

- an *accuracy* is reproduced if the published value lies within our 95% interval;
- a *gain* is reproduced if ours has the same sign and McNemar's exact p is below 0.05;
- what no run is there for is "not run yet". A run whose clips failed in part counts with the items that it answered.
"""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from helpers.benchmarks import BENCHMARKS
from helpers.mata import select_layers
from helpers.runs import Run, is_answered, read_run
from helpers.statistics import accuracy_interval, cluster_bootstrap, mcnemar

ALPHA = 0.1  # of the paper, with the rule "multiply" on the audio keys of the middle layers
NAMES = {"MMAU test-mini": "mmau-test-mini", "MMAR": "mmar", "MMAR, challenge": "mmar"}  # of published tables, and ours
SAME_MODEL = {
    "Qwen2-Audio-Instruct": "Qwen2-Audio-7B-Instruct",
    "Qwen3-Omni-Thinking": "Qwen3-Omni-30B-A3B-Thinking",
    "Ke-Omni-R-7B": "Ke-Omni-R",
}
NO_WEIGHTS = ("random guess", "human", "Gemini", "GPT")
OFFICIAL = "v05.15.25, not parsed"  # the version of MMAU that we have, scored by the official rule
CITED = {"digest": "mata-interspeech", "MMAR README": "mmar", "DeSTA2.5 README": "desta"}


def build(published: str | Path, results: str | Path) -> list[dict]:
    """The ledger from the folder of the published tables and that of the runs; a run is known by its settings.

    Returns
    -------
    list of dict
        `id`, `claim`, `kind` ("accuracy" in percent, or "gain" in points), `benchmark`, `model`, `published`, and where
        from: `source`, `table`, `cite`; then `ours`, `n`, `interval`, of a gain also `won`, `lost` and `p`, and the
        `runs`, all null where there is none; `verdict`.
    """
    runs = {path: run for path in sorted(Path(results).rglob("*.jsonl")) if (run := _whole_run(path))}
    entries = []
    for entry, steered in _claims(Path(published)):
        fields = ["ours", "n", "interval", *(["won", "lost", "p"] if entry["kind"] == "gain" else []), "runs"]
        entry |= dict.fromkeys(fields) | {"verdict": "not run yet"}
        fitting = [[path for path, run in runs.items() if _fits(run, entry, is_steered)] for is_steered in steered]
        paths = next((paths for paths in product(*fitting) if _is_pair([runs[path] for path in paths])), None)
        if paths:
            measure = {"accuracy": _accuracy, "gain": _gain}[entry["kind"]]
            entry |= measure(entry["published"], *(runs[path].records for path in paths))
            entry["runs"] = [path.relative_to(results).as_posix() for path in paths]
        entries.append(entry)
    return entries


def _claims(published: Path) -> Iterable[tuple[dict, list[bool]]]:
    """What is claimed, row by row, and whether the run (for a gain: the first and the second) is a steered one."""
    table = "published-mata.csv"
    for row in _rows(published / table):
        before, after, benchmark = (row[name] for name in ("without MATA", "with MATA", "benchmark"))
        if not after or benchmark not in NAMES:  # a model for comparison; grades, which are no accuracies
            continue
        about = f"{row['model']} on {benchmark}"
        gain = round(float(after) - float(before), 2)
        yield _entry(table, row, benchmark, "without MATA", "accuracy", f"{about}, without MATA", before), [False]
        yield _entry(table, row, benchmark, "with MATA", "accuracy", f"{about}, with MATA", after), [True]
        yield _entry(table, row, benchmark, "gain", "gain", f"{about}, what MATA adds", gain), [False, True]
    for table, benchmark, column in (
        ("published-mmar.csv", "MMAR", "all"),
        ("published-mmau.csv", "MMAU test-mini", "average"),
    ):
        for row in _rows(published / table):
            if row.get("data, scoring", OFFICIAL) == OFFICIAL and not row["model"].startswith(NO_WEIGHTS):
                claim = f"{row['model']} on {benchmark}"
                yield _entry(table, row, benchmark, "baseline", "accuracy", claim, row[column]), [False]


def _rows(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _entry(table: str, row: dict, benchmark: str, what: str, kind: str, claim: str, value: str | float) -> dict:
    name = "/".join([table.removesuffix(".csv"), benchmark, row["model"], what])
    return {
        "id": name.lower().replace(",", "").replace(" ", "-"),
        "claim": claim,
        "kind": kind,
        "benchmark": benchmark,
        "model": row["model"],
        "published": float(value),
        "source": row["source"],
        "table": table,
        "cite": CITED[row["source"]],
    }


def _whole_run(path: Path) -> Run | None:
    """A run on a whole benchmark, of any version, with a record for each item; None for any other file."""
    try:
        run = read_run(path)
    except ValueError:
        return None
    whole = len(run.records) == run.settings["items"] and any(map(is_answered, run.records.values()))
    return run if whole and "dataset" in run.settings else None  # older runs do not say on what they were made


def _fits(run: Run, entry: dict, steered: bool) -> bool:
    """Whether the run is the one that the claim is about: nothing is changed but, if so claimed, the steering."""
    benchmark, settings = BENCHMARKS[NAMES[entry["benchmark"]]], run.settings
    model = SAME_MODEL.get(entry["model"], entry["model"])
    if settings["dataset"] not in benchmark.versions or Path(settings["model"]).name.lower() != model.lower():
        return False
    changed = [settings[name] for name in ("hint", "permute", "quantize")]
    if changed != [None] * 3 or (settings["audio"], settings["style"]) != ("real", benchmark.style):
        return False
    if not steered or settings["steering"] is None:
        return not steered and settings["steering"] is None
    layers = select_layers("middle", settings["depth"])
    return settings["steering"] == {"alpha": ALPHA, "layers": layers, "rule": "multiply", "keys": "audio"}


def _is_pair(runs: Sequence[Run]) -> bool:
    """Whether all settings are the same but for the steering."""
    others = [{k: v for k, v in run.settings.items() if k not in ("steering", "depth")} for run in runs]
    return all(settings == others[0] for settings in others)


def _accuracy(published: float, records: dict[str, dict]) -> dict:
    right = [record["correct"] for record in records.values() if is_answered(record)]
    interval = [round(100 * end, 1) for end in accuracy_interval(right)]
    verdict = "reproduced" if interval[0] <= published <= interval[1] else "not reproduced"
    return {"ours": round(100 * sum(right) / len(right), 1), "n": len(right), "interval": interval, "verdict": verdict}


def _gain(published: float, before: dict[str, dict], after: dict[str, dict]) -> dict:
    ids = [id for id in before if is_answered(before[id]) and is_answered(after.get(id, {}))]
    first, second = ([records[id]["correct"] for id in ids] for records in (before, after))
    won, lost, p = mcnemar(first, second)
    flips = [b - a for a, b in zip(first, second, strict=True)]
    interval = cluster_bootstrap(flips, [before[id]["source"] or id for id in ids])
    same_sign = (won - lost) * published > 0
    return {
        "ours": round(100 * (won - lost) / len(ids), 1),
        "n": len(ids),
        "interval": [round(100 * end, 1) for end in interval],
        "won": won,
        "lost": lost,
        "p": float(f"{p:.2g}"),
        "verdict": "reproduced" if same_sign and p < 0.05 else "not reproduced",
    }


def write(entries: Sequence[dict], path: str | Path) -> None:
    """Write the ledger, at once or not at all."""
    draft = Path(f"{path}.part")
    draft.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def markdown(entries: Iterable[dict]) -> str:
    """The ledger as a Markdown table."""
    lines = ["| claim | published | source | ours | 95% interval | n | verdict |", "|---" * 7 + "|"]
    for entry in entries:
        sign = "+" if entry["kind"] == "gain" else ""
        ours = "–" if entry["ours"] is None else f"{entry['ours']:{sign}}"
        interval = "–" if entry["interval"] is None else "{} to {}".format(*entry["interval"])
        cells = [entry["claim"], f"{entry['published']:{sign}}", entry["source"], ours, interval, entry["n"] or "–"]
        lines.append(f"| {' | '.join(map(str, [*cells, entry['verdict']]))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    ledger = build("book/data", "results")
    write(ledger, "results/claims.json")
    print(markdown(ledger))
