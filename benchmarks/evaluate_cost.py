"""What the harness costs: `evaluate` with its file against a bare loop over the same batches, and its memory.

    python benchmarks/evaluate_cost.py                     # the small LALM, 1000 items of MiniMMAR, some minutes
    python benchmarks/evaluate_cost.py --out results/evaluate_cost.json

The bare loop reads the clips, prepares, generates, and keeps the replies. The two take turns. Times are those of the
processor, which other programs on the machine hardly change, and of the clock. Memory is the most that the process
has held at the end of a run over 250, 500 and 1000 items: it should not grow with them.
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import soundfile
import torch
import transformers

from helpers.benchmarks import load_benchmark
from helpers.evaluate import evaluate, even_sample
from helpers.models import load_audio, load_lalm
from helpers.prompts import multiple_choice


def bare(lalm, items, batch_size):
    def length(item):  # as the harness sorts them
        prompt = multiple_choice(item.question, item.choices)
        return round(soundfile.info(item.audio).duration, 1), len(prompt)

    replies, ordered = [], sorted(items, key=length, reverse=True)
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        prompts = [multiple_choice(item.question, item.choices) for item in batch]
        audios = [load_audio(item.audio, lalm.sampling_rate) for item in batch]
        replies += lalm.generate(lalm.prepare(prompts, audios), max_new_tokens=32)
    return replies


def harness(lalm, items, batch_size):
    with tempfile.TemporaryDirectory() as folder:
        return evaluate(lalm, items, batch_size=batch_size, out=Path(folder) / "run.jsonl")


def timed(work, *arguments):
    clock, processor = time.perf_counter(), time.process_time()
    work(*arguments)
    return {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lalm = load_lalm("tiny", device="cpu")
    items = even_sample(load_benchmark("minimmar"), given.items)
    memory = {}
    for share in (4, 2, 1):
        harness(lalm, even_sample(items, len(items) // share), given.batch_size)
        memory[len(items) // share] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = {"bare": [], "harness": []}
    for number in range(given.rounds):
        turns = [("bare", bare), ("harness", harness)]
        for name, work in turns if number % 2 else turns[::-1]:
            seconds[name].append(timed(work, lalm, items, given.batch_size))
    ratios = [h["processor"] / b["processor"] for h, b in zip(seconds["harness"], seconds["bare"], strict=True)]
    result = {
        "items": len(items),
        "batch_size": given.batch_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "seconds": seconds,
        "processor time, harness over bare": statistics.median(ratios),
        "most megabytes after so many items": memory,
    }
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
