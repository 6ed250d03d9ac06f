"""What steering costs: a forward pass and a generation with MATA, against the same model unsteered and eagerly patched.

    python benchmarks/mata_cost.py                    # a small decoder, in a minute on a CPU
    python benchmarks/mata_cost.py --size 7b          # a decoder of Qwen2-Audio-7B's size, random weights: needs a GPU
    python benchmarks/mata_cost.py --out results/mata_cost.json

The prompt holds placeholders of audio tokens but no sound, so the audio tower, which MATA never touches, does not run
and all that is timed is the decoder. The variants take turns in one process, in an order drawn anew each round
(what ran before leaves its mark on caches and allocator). A ratio is the median over the rounds of the variant's time
divided by the unsteered one of the same round, which a busy machine disturbs least.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import transformers
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration
from transformers.models.qwen2 import modeling_qwen2

from helpers.mata import MATA, select_layers

AUDIO, WORD = 1, 2
SMALL = dict(vocab_size=512, hidden_size=128, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8,
             num_key_value_heads=4)  # fmt: skip
# The decoder of Qwen/Qwen2-Audio-7B-Instruct, from its config.json.
FULL = dict(vocab_size=156032, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=32)  # fmt: skip
TOWER = dict(model_type="qwen2_audio_encoder", num_mel_bins=16, d_model=16, encoder_layers=1, encoder_ffn_dim=16,
             encoder_attention_heads=2, max_source_positions=32)  # fmt: skip
ALPHA = 0.1


def build(size: str, device: str, dtype: torch.dtype) -> Qwen2AudioForConditionalGeneration:
    """Return a model with random weights; its audio tower is tiny, since it does not run."""
    decoder = {"model_type": "qwen2"} | (FULL if size == "7b" else SMALL)
    config = Qwen2AudioConfig(audio_config=TOWER, text_config=decoder, audio_token_index=AUDIO, dtype=dtype)
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2AudioForConditionalGeneration._from_config(config).to(dtype)
    model.generation_config.eos_token_id = None
    return model.eval()


def prompt(batch: int, keys: int, device: str) -> dict[str, torch.Tensor]:
    """Thirty seconds of audio are 750 tokens of 1000: here three in four, whatever `keys` is."""
    ids = torch.full((batch, keys), WORD, device=device)
    ids[:, keys // 8 : keys // 8 + keys * 3 // 4] = AUDIO
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@contextmanager
def eager_patch(model, layers: list[int], is_audio: torch.Tensor) -> Iterator[None]:
    """MATA as it is usually done: eager attention, all scores of all rows at hand, the last row's scaled."""
    plain, chosen = modeling_qwen2.eager_attention_forward, set(layers)

    def steered(module, query, key, value, attention_mask, scaling, **kwargs):
        if module.layer_idx not in chosen:
            return plain(module, query, key, value, attention_mask, scaling, **kwargs)
        key = modeling_qwen2.repeat_kv(key, module.num_key_value_groups)
        value = modeling_qwen2.repeat_kv(value, module.num_key_value_groups)
        scores = query @ key.transpose(2, 3) * scaling  # (B, H, Q, K)
        audio = torch.nn.functional.pad(is_audio, (0, scores.shape[-1] - is_audio.shape[1]))[:, None]  # (B, 1, K)
        scores[:, :, -1] = torch.where(audio, scores[:, :, -1] * (1 + ALPHA), scores[:, :, -1])
        weights = (scores + attention_mask).softmax(-1, dtype=torch.float32).to(query.dtype)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    decoder = model.get_decoder()
    decoder.set_attn_implementation("eager")
    modeling_qwen2.eager_attention_forward = steered
    try:
        yield
    finally:
        modeling_qwen2.eager_attention_forward = plain
        decoder.set_attn_implementation("sdpa")


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall clock on a GPU; on a CPU the processor time of the one thread, which other programs disturb less."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """Return the most bytes that tensors took while `work` ran, beyond what was there before (CPU) or in all (GPU)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure(model, inputs, layers, rounds: int, new_tokens: int) -> dict:
    """Time the variants in turn; `new_tokens` 0 is one forward pass, else a whole greedy generation."""
    device = model.device.type
    variants = {
        "stock": nullcontext,
        "stock again": nullcontext,  # its ratio to "stock" is the machine's noise
        "mata": lambda: MATA(model, alpha=ALPHA, layers=layers),
        "eager patch": lambda: eager_patch(model, layers, inputs["input_ids"] == AUDIO),
    }

    def work():
        if new_tokens:
            return model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        return model(**inputs, use_cache=False).logits[:, -1]

    times, memory, results = {name: [] for name in variants}, {}, {}
    with torch.inference_mode():
        for name, variant in variants.items():  # also warms up
            with variant():
                results[name] = work()
                memory[name] = peak_bytes(work, device)
        order = random.Random(0)
        for _ in range(rounds):
            for name in order.sample(list(variants), len(variants)):
                with variants[name]():
                    times[name].append(seconds(work, device))
    if not new_tokens and model.dtype == torch.float32:
        torch.testing.assert_close(results["mata"], results["eager patch"], atol=1e-4, rtol=0)
    ratios = {
        name: statistics.median(t / s for t, s in zip(times[name], times["stock"], strict=True)) for name in times
    }
    return {
        "seconds": {name: statistics.median(taken) for name, taken in times.items()},
        "time_over_stock": ratios,
        "patch_over_mata": statistics.median(p / m for p, m in zip(times["eager patch"], times["mata"], strict=True)),
        "peak_bytes": memory,
        "memory_over_stock": {name: taken / memory["stock"] for name, taken in memory.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["small", "7b"], default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--batches", type=int, nargs="+", help="default: 2, or 1 and 16 with --size 7b")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of the generation")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    if args.size == "7b" and args.device == "cpu":
        sys.exit("--size 7b takes a GPU of 40 GB or more: 15 GB of weights, and caches for 16 prompts.")

    if args.device == "cpu":
        torch.set_num_threads(1)
    dtype = torch.bfloat16 if args.size == "7b" else torch.float32
    model = build(args.size, args.device, dtype)
    # The paper's middle layers of a 7B model; of the small one half of the layers, which is more.
    layers = select_layers("middle" if args.size == "7b" else range(2, 6), model.config.text_config.num_hidden_layers)
    record = {
        "size": args.size, "dtype": str(dtype).removeprefix("torch."), "keys": args.keys, "layers": layers,
        "rounds": args.rounds, "new_tokens": args.new_tokens, "torch": torch.__version__,
        "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine(),
        "runs": [],
    }  # fmt: skip
    for batch in args.batches or ([1, 16] if args.size == "7b" else [2]):
        inputs = prompt(batch, args.keys, args.device)
        for name, new_tokens in [("forward", 0), ("generate", args.new_tokens)]:
            run = {"batch": batch, "what": name, **measure(model, inputs, layers, args.rounds, new_tokens)}
            record["runs"].append(run)
            taken, peak = run["time_over_stock"], run["memory_over_stock"]
            print(
                f"{name}, batch {batch}: MATA {taken['mata']:.3f} x stock in time (stock itself "
                f"{taken['stock again']:.3f} x), {peak['mata']:.3f} x in memory; "
                f"eager patch {taken['eager patch']:.2f} x, {peak['eager patch']:.2f} x; "
                f"patch / MATA {run['patch_over_mata']:.2f}"
            )
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
