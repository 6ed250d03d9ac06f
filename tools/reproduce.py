"""The whole reproduction of one model on one benchmark: every run, its tables, and the ledger of claims.

    python tools/reproduce.py --limit 20                   # the small model on MiniMMAR: tries everything, in a minute
    python tools/reproduce.py --model Qwen/Qwen2.5-Omni-7B --benchmark mmar --out results/reproduction
    accelerate launch tools/reproduce.py ...               # the same on several GPUs or machines

Stopped, it goes on where it was; what is finished is not run again. The tables are made from the files alone.
"""

import argparse
import math
import time
from pathlib import Path

import soundfile

from helpers import ledger
from helpers.evaluate import add_sources, evaluate, load_sources, own_style, together
from helpers.mata import MATA
from helpers.runs import agreement, is_answered, read_run, scorers_table, table

ROOT = Path(__file__).resolve().parents[1]
PAPER = {"alpha": ledger.ALPHA}  # by multiplication, on the audio keys of the middle layers
STRENGTHS = {f"mata-{alpha}": {"mata": {"alpha": alpha}} for alpha in (0.05, 0.2, 0.4)}
BLIND = {audio: {"audio": audio} for audio in ("none", "silence", "noise", "shuffled")}
TURNED = {f"rotate-{k}": {"permute": f"rotate-{k}"} for k in (1, 2, 3)}  # each of four options at each place once
RUNS = {
    "baseline": {"loglikelihood": True},
    "mata": {"mata": PAPER, "loglikelihood": True},
    **STRENGTHS,
    **BLIND,
    "mata-shuffled": {"mata": PAPER, "audio": "shuffled"},
    "mata-text": {"mata": PAPER | {"keys": "text"}},
    **TURNED,
}


def seconds(item):
    try:
        return soundfile.info(item.audio).duration
    except soundfile.LibsndfileError:
        return 0.0


def is_finished(path, items):
    records = read_run(path).records if path.exists() else {}
    return all(is_answered(records.get(item.id, {})) for item in items)


def spelled(duration):
    return f"{duration:.0f} s" if duration < 100 else f"{duration / 60:.0f} min"


def report(folder):
    """All tables of a reproduction, as Markdown, from its files alone."""

    def paths(*names):
        return [folder / f"{name}.jsonl" for name in names]

    same, n = agreement(paths("baseline", *TURNED))
    parts = {
        "MATA, at the strength of the paper and at others": table(paths("baseline", "mata", *STRENGTHS)),
        "MATA, by modality": table(paths("baseline", "mata"), by="modality"),
        "The same replies by every scorer, without MATA": scorers_table(*paths("baseline")),
        "The same replies by every scorer, with MATA": scorers_table(*paths("mata")),
        "Blind: a model that listens falls to chance": table(paths("baseline", *BLIND)),
        "Control: MATA on the audio of another item": table(paths("shuffled", "mata-shuffled")),
        "Control: MATA on the text": table(paths("baseline", "mata-text")),
        "Options in other orders": f"{table(paths('baseline', *TURNED))}\n\n"
        f"In {same} of {n} items the same option is named in all orders.",
    }
    return "\n\n".join(f"## {heading}\n\n{part}" for heading, part in parts.items()) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sources(parser)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs and tables (default: runs)")
    given = parser.parse_args(arguments)
    lalm, items = load_sources(given)
    workers = together()
    is_first = workers is None or workers.is_main_process
    say = print if is_first else lambda *_, **__: None
    parts = [given.benchmark, Path(given.model).name, *([str(given.limit)] if given.limit else [])]
    folder = given.out / "-".join(parts)
    shared = {
        "style": given.prompt or own_style(given.benchmark),
        "batch_size": given.batch_size,
        "max_new_tokens": given.max_new_tokens,
        "revision": given.revision,
    }

    left = [name for name in RUNS if not is_finished(folder / f"{name}.jsonl", items)]
    if workers:
        workers.wait_for_everyone()  # all have looked before anyone writes
    say(f"{lalm.name} on {given.benchmark}, {len(items)} items: {len(left)} of {len(RUNS)} runs to do, in {folder}")
    if left:
        longest = sorted(items, key=seconds)[-given.batch_size :]
        start = time.perf_counter()
        evaluate(lalm, longest, **shared)
        n_workers = workers.num_processes if workers else 1
        whole = (time.perf_counter() - start) * math.ceil(len(items) / len(longest)) / n_workers
        say(f"by its longest clips at most {spelled(whole)} a run, {spelled(whole * len(left))} in all", flush=True)
    for name in left:
        how = dict(RUNS[name])
        steering = MATA(lalm, **how.pop("mata")) if "mata" in how else None
        loglikelihood = how.pop("loglikelihood", False) or given.loglikelihood
        start = time.perf_counter()
        out = folder / f"{name}.jsonl"
        evaluate(lalm, items, steering=steering, loglikelihood=loglikelihood, out=out, **how, **shared)
        say(f"{name}: {spelled(time.perf_counter() - start)}", flush=True)
    if not is_first:
        return

    text = report(folder)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    results = ROOT / "results"
    results = results if folder.resolve().is_relative_to(results) else given.out
    entries = ledger.build(ROOT / "book" / "data", results)
    ledger.write(entries, results / "claims.json")
    done = [entry for entry in entries if entry["verdict"] != "not run yet"]
    say(f"\n{text}\n{len(done)} of {len(entries)} claims have a verdict in {results / 'claims.json'}.\n")
    say(ledger.markdown(done) if done else "")


if __name__ == "__main__":
    main()
