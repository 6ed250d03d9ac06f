"""How fast head vectors are read: one pass of a batch, against one item at a time with hooks that keep whole sequences.

    python benchmarks/heads_speed.py                          # the small LALM, in some minutes on a CPU
    python benchmarks/heads_speed.py --model Qwen/Qwen2-Audio-7B-Instruct --batches 1 8 16   # needs a GPU
    python benchmarks/heads_speed.py --out results/heads_speed.json

Timed is the way from sound to vectors: feature extraction, the model, and what is kept. The usual way runs an item to
the logits, keeps the input of every output projection for all tokens, and takes the last token afterwards. CALM's
published code does so up to 20 times an item, which is the row "20 passes". The variants take turns in one process, in
an order drawn anew each round; a ratio is the median over the rounds of the two times of one round.

Memory: the most bytes that tensors take while a pass runs, at two lengths of the prompt, less what the pass takes
without any reading (CPU). What `head_vectors` adds must not grow with the length.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from helpers.attention import text_decoder
from helpers.benchmarks import load_benchmark
from helpers.heads import head_vectors
from helpers.models import LALM, load_audio, load_lalm
from helpers.prompts import multiple_choice


def whole_sequences(lalm: LALM, inputs) -> torch.Tensor:
    """The usual way: all tokens of all layers are kept, (layers, S, H * D), and all logits computed."""
    kept, n_heads = [], text_decoder(lalm).config.num_attention_heads
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: kept.append(args[0].cpu()))
        for layer in text_decoder(lalm).layers
    ]
    with torch.no_grad():
        lalm.model(**inputs)
    for hook in hooks:
        hook.remove()
    return torch.stack(kept, 1)[:, :, -1].unflatten(-1, (n_heads, -1)).float()  # (B, L, H, D); padded on the left


def one_by_one(lalm: LALM, examples: list[tuple], passes: int) -> torch.Tensor:
    vectors = []
    for prompt, audio in examples:
        inputs = lalm.prepare([prompt], [audio])
        for _ in range(passes):
            item = whole_sequences(lalm, inputs)
        vectors.append(item)
    return torch.cat(vectors)


def in_batches(lalm: LALM, examples: list[tuple], size: int) -> torch.Tensor:
    parts = [examples[start : start + size] for start in range(0, len(examples), size)]
    return torch.cat([head_vectors(lalm, lalm.prepare(*zip(*part, strict=True))) for part in parts])


def measure_speed(lalm: LALM, examples: list[tuple], batches: list[int], rounds: int) -> dict:
    """Items a second of each variant, and how many times faster it is than the usual way with 1 and with 20 passes."""
    few = examples[: max(1, len(examples) // 20)]  # enough for what is slow
    variants: dict[str, tuple[Callable, int]] = {
        "usual, 1 pass": (lambda: one_by_one(lalm, examples, passes=1), len(examples)),
        "the same again": (lambda: one_by_one(lalm, examples, passes=1), len(examples)),  # tells the machine's noise
        "usual, 20 passes": (lambda: one_by_one(lalm, few, passes=20), len(few)),
    } | {f"batch {size}": (lambda size=size: in_batches(lalm, examples, size), len(examples)) for size in batches}
    reference = one_by_one(lalm, examples, passes=1)
    off = {name: (work() - reference[:n]).abs().max().item() for name, (work, n) in variants.items()}  # also warms up
    if lalm.dtype == torch.float32 and max(off.values()) > 1e-4:
        raise AssertionError(f"the ways differ: {off}")
    times, order = {name: [] for name in variants}, random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(variants), len(variants)):
            work, n = variants[name]
            start = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - start) / n)

    def faster_than(usual):
        return {
            name: statistics.median(u / t for u, t in zip(times[usual], taken, strict=True))
            for name, taken in times.items()
        }

    return {
        "items": len(examples),
        "items_per_second": {name: 1 / statistics.median(taken) for name, taken in times.items()},
        "faster_than_1_pass": faster_than("usual, 1 pass"),
        "faster_than_20_passes": faster_than("usual, 20 passes"),
        "largest_difference": off,
    }


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that new tensors take on the CPU at any time while `work` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure_memory(lalm: LALM, lengths: list[int]) -> list[dict]:
    """Peak of one pass over text of a given length: without reading, with `head_vectors`, in the usual way."""

    def decoder_alone(inputs):
        with torch.no_grad():
            text_decoder(lalm)(**inputs, use_cache=False)

    rows = []
    for length in lengths:
        word = lalm.tokenizer("a", add_special_tokens=False)["input_ids"][0]
        ids = torch.full((4, length), word, device=lalm.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        plain = peak_bytes(lambda inputs=inputs: decoder_alone(inputs))
        ours = peak_bytes(lambda inputs=inputs: head_vectors(lalm, inputs))
        usual = peak_bytes(lambda inputs=inputs: whole_sequences(lalm, inputs))
        rows.append(
            {"tokens": length, "batch": 4, "plain": plain, "head_vectors": ours - plain, "usual": usual - plain}
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    lalm = load_lalm(args.model)
    items = load_benchmark("minimmar", split="dev")[: args.items]
    examples = [
        (multiple_choice(item.question, item.choices), load_audio(item.audio, lalm.sampling_rate)) for item in items
    ]
    record = {
        "model": lalm.name, "dtype": str(lalm.dtype).removeprefix("torch."), "rounds": args.rounds,
        "threads": args.threads, "torch": torch.__version__, "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if lalm.device.type == "cuda" else platform.machine(),
        "speed": measure_speed(lalm, examples, args.batches, args.rounds),
        "memory": measure_memory(lalm, [250, 1000]) if lalm.device.type == "cpu" else [],
    }  # fmt: skip
    speed = record["speed"]
    for name, rate in speed["items_per_second"].items():
        print(
            f"{name:16} {rate:6.1f} items/s: {speed['faster_than_1_pass'][name]:5.2f} x the usual way with 1 pass, "
            f"{speed['faster_than_20_passes'][name]:5.1f} x with 20"
        )
    for row in record["memory"]:
        print(
            f"{row['tokens']} tokens: {row['plain'] / 1e6:.1f} MB for the pass; "
            f"head_vectors adds {row['head_vectors'] / 1e6:.2f} MB, the usual way {row['usual'] / 1e6:.1f} MB"
        )
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
