"""Run a LALM over a benchmark, keep every reply, and make tables of the kept replies.

A run is one JSONL file: a line with its settings, then a line an item, written batch by batch. A run that was killed
goes on where it stopped; a run with other settings is refused, so that no file mixes two. Every table and figure is
made from such files, without the model (`helpers.runs`):

    python -m helpers.evaluate --model tiny --benchmark minimmar --hint misleading --out runs/misled.jsonl
    python -m helpers.evaluate --model tiny --benchmark minimmar --hint misleading --alpha 0.1 --out runs/steered.jsonl
    python -m helpers.evaluate --table runs/misled.jsonl runs/steered.jsonl --by modality

On several GPUs or machines: `accelerate launch -m helpers.evaluate ...`. The processes share the items, and what they
write becomes one file; that any of them is killed, or that the next start has more or fewer, costs nothing but time.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm import tqdm

from helpers.benchmarks import BENCHMARKS, Item, checksum, load_benchmark
from helpers.mata import MATA, RULES
from helpers.models import LALM, load_audio, load_lalm
from helpers.prompts import STYLES, expected_replies, multiple_choice
from helpers.provenance import decoding, environment, model_commit, weights_checksum
from helpers.runs import (
    SCORES,
    Flips,
    Run,
    RunFile,
    agreement,
    committed,
    digest,
    flips,
    is_answered,
    open_run,
    part_of,
    read_run,
    scorers_table,
    table,
)
from helpers.scoring import (
    Loglikelihood,
    exact_option,
    letter,
    likeliest,
    named_option,
    option_loglikelihood,
    string_match,
)

__all__ = [
    "AUDIO", "HINTS", "Flips", "Run", "agreement", "committed", "evaluate", "even_sample", "flips", "permuted",
    "read_run", "scorers_table", "table", "weights_checksum",
]  # fmt: skip

HINTS = (None, "misleading", "correct")
AUDIO = ("real", "silence", "noise", "shuffled", "none")
CODE = ("attention", "evaluate", "mata", "models", "prompts", "scoring")  # what can change a record


def evaluate(
    lalm: LALM,
    items: Iterable[Item],
    style: str = "mmar",
    hint: str | None = None,
    audio: str = "real",
    steering: MATA | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 32,
    out: str | Path | None = None,
    permute: str | None = None,
    loglikelihood: bool = False,
    revision: str | None = None,
) -> list[dict]:
    """Ask the model every item, greedily, and score the replies by the official rule.

    Parameters
    ----------
    style : name of the prompt, see `helpers.prompts.STYLES`.
    hint : None, or which of an item's hints its prompt carries: "misleading" or "correct".
    audio : what the model hears: the "real" clip; "silence" or "noise" as long and as loud; the clip of another item
        ("shuffled"); or no audio at all ("none"). A model that listens falls to chance with all but "real".
    steering : a `MATA` of this model, switched on for this run.
    batch_size : items asked at once; a batch that does not fit the memory is halved.
    out : file of the run. Asked again, only what is missing is run; None keeps nothing. Processes that were started
        together (`accelerate launch`) share the work if there is a file.
    permute : another order of the options, see `permuted`.
    loglikelihood : also compute how likely each option is as a reply (`option_loglikelihood`), under the same steering.
    revision : the hub's commit or branch that `lalm` was loaded with, if not the default one: only to be recorded.

    Returns
    -------
    list of dict, in the order of the items: `id`, `prediction`, `correct` (`string_match`), `exact_option` and `letter`
    (None: names no option), `chosen` (index of the option named, in the item's own order, or None), `n_choices`,
    `modality`, ... With `loglikelihood` also `loglikelihood` and `n_tokens` of each option, in the item's own order,
    `likeliest` and `likeliest_per_token`; with `permute` the `order` in which the options stood. An item whose clip
    can't be heard has `error` in place of these: a failed item is not a wrong one.

    Raises
    ------
    ValueError
        For an unknown setting, an item without the hint, repeated ids, or an `out` that holds another run or is open in
        another process.
    OSError
        If `out` can't be written.
    """
    items = list(items)
    if len({item.id for item in items}) < len(items):
        raise ValueError("Two items have the same id, so their records could not be told apart; rename one.")
    asked = [permuted(item, permute) for item in items]
    prompts = {item.id: _prompt(item, style, hint) for item in asked}
    clips = _clips(asked, audio)
    settings = {
        "model": lalm.name,
        "revision": model_commit(lalm.name, revision),
        "weights": weights_checksum(lalm.model),
        "dtype": str(next(lalm.model.parameters()).dtype).removeprefix("torch."),
        "quantize": "4bit" if getattr(lalm.model, "is_loaded_in_4bit", False) else None,
        "items": len(items),
        "dataset": checksum(items),
        "asked": digest([[item.id, prompts[item.id], item.answer, item.extra.get("sha256")] for item in asked]),
        "style": style,
        "hint": hint,
        "audio": audio,
        "permute": permute,
        "steering": steering and {name: getattr(steering, name) for name in ("alpha", "layers", "rule", "keys")},
        "depth": steering and len(steering.decoder.layers),
        "loglikelihood": loglikelihood,
        "max_new_tokens": max_new_tokens,
        "decoding": decoding(lalm.model),
        "code": digest([(Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8") for module in CODE]),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }

    def ask(batch: Sequence[Item]) -> list[dict]:
        try:
            heard = [_hear(clips[item.id], audio, lalm.sampling_rate, seed=item.id) for item in batch]
            inputs = lalm.prepare([prompts[item.id] for item in batch], heard)
        except (OSError, ValueError) as error:
            raise _Unheard(error) from None
        replies = lalm.generate(inputs, max_new_tokens=max_new_tokens)
        records = [_record(item, reply) for item, reply in zip(batch, replies, strict=True)]
        if loglikelihood:
            likelihoods = option_loglikelihood(lalm, inputs, [expected_replies(item.choices, style) for item in batch])
            records = [r | _likelihood_fields(*pair) for r, *pair in zip(records, batch, likelihoods, strict=True)]
        return records

    batches = list(_batches(asked, clips, prompts, batch_size))  # the same ones, whoever runs them and when
    with ExitStack() as stack:
        file, worker, n_workers = stack.enter_context(_shared(out, settings, lalm))
        pending = [[item for item in batch if not is_answered(file.records.get(item.id, {}))] for batch in batches]
        own = [batch for batch in pending[worker::n_workers] if batch]
        done = len(items) - sum(map(len, pending))
        name, shown = Path(out or lalm.name).stem, {"disable": True} if worker else {}  # one bar: the first process's
        progress = tqdm(total=done + sum(map(len, own)), initial=done, unit="item", desc=name, **shown)
        stack.enter_context(progress)
        stack.enter_context(steering or nullcontext())
        for batch in own:
            new = _in_halves(ask, batch)
            if any(map(is_answered, new)) and steering is not None and steering.alpha != 0 and not steering.calls:
                raise ValueError("The steering touched no layer: make it of the model that is run, MATA(lalm, ...).")
            file.append(new)
            progress.update(len(batch))
    return [file.records[item.id] for item in items]


class _Unheard(ValueError):
    """A clip of the batch that can't be read, or that the model can't take."""


def _in_halves(ask: Callable[[Sequence[Item]], list[dict]], batch: Sequence[Item]) -> list[dict]:
    """`ask(batch)`; where a clip is bad or the memory too small, each half alone: so what fails, fails alone."""
    try:
        return ask(batch)
    except (_Unheard, RuntimeError, MemoryError) as error:
        if not isinstance(error, _Unheard | MemoryError) and not should_reduce_batch_size(error):
            raise
        if len(batch) == 1:
            reason = str(error) if isinstance(error, _Unheard) else "out of memory, even alone in its batch"
            return [{"id": batch[0].id, "error": reason}]
    clear_device_cache(garbage_collection=True)  # here, where the failed batch's tensors are no longer held
    half = len(batch) // 2
    return _in_halves(ask, batch[:half]) + _in_halves(ask, batch[half:])


@contextmanager
def _shared(out: str | Path | None, settings: dict, lalm: LALM) -> Iterator[tuple[RunFile, int, int]]:
    """The file that this process writes, with what is known already; its number, and how many processes there are.

    At the end each of them has the records of all.
    """
    if out is None:
        yield RunFile(None, settings, {}, {}), 0, 1
        return
    state = together()
    worker, n_workers = (state.process_index, state.num_processes) if state else (0, 1)
    wait_for_all = state.wait_for_everyone if state else lambda: None
    surroundings = environment(lalm) | {"workers": n_workers}
    if worker == 0:
        with open_run(out, settings, surroundings) as file:
            file.add_parts()  # of an earlier start
            wait_for_all()
            yield file, worker, n_workers
            wait_for_all()
            file.add_parts()
        wait_for_all()
    else:
        wait_for_all()
        if not Path(out).exists():
            raise ValueError(f"Process {worker} does not see {out}: put it where all machines can write.")
        known = read_run(out).records
        with open_run(part_of(out, worker), settings, surroundings) as part:
            part.records |= known
            yield part, worker, n_workers
        wait_for_all()
        wait_for_all()
        part.records |= read_run(out).records


def together() -> PartialState | None:
    """The processes that `accelerate launch` started, this one among them; None for a process that is alone."""
    if "LOCAL_RANK" not in os.environ:
        return None
    # A fast worker waits for a slow one as long as it takes: by default it would give up after minutes.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def permuted(item: Item, permute: str | None) -> Item:
    """The item with its options in another order, and that order in `extra["order"]`: indices of the own options.

    Parameters
    ----------
    permute : None, "rotate-K" (every option K places on, the last ones first), or "shuffle-SEED".
    """
    if permute is None:
        return item
    kind, _, number = permute.partition("-")
    if kind not in ("rotate", "shuffle") or not number.isdecimal():
        raise ValueError(f"There is no permutation {permute!r}; write rotate-1, rotate-2, ... or shuffle-0, ...")
    n = len(item.choices)
    if kind == "rotate":
        order = [(place - int(number)) % n for place in range(n)]
    else:
        order = np.random.default_rng([int(number), int(digest(item.id), 16)]).permutation(n).tolist()
    return replace(item, choices=[item.choices[i] for i in order], extra=item.extra | {"order": order})


def own_style(benchmark: str) -> str:
    """The prompt of a benchmark's authors; MiniMMAR takes that of MMAR."""
    return BENCHMARKS[benchmark].style if benchmark in BENCHMARKS else "mmar"


def even_sample(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, at even distances: neighbours are often of one kind."""
    n = min(limit, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _prompt(item: Item, style: str, hint: str | None) -> str:
    if hint not in HINTS:
        raise ValueError(f"There is no hint {hint!r}; known are {', '.join(map(str, HINTS))}.")
    if hint is not None and f"{hint}_hint" not in item.extra:
        raise ValueError(f"Item {item.id} has no {hint} hint (extra[{hint + '_hint'!r}]); run it with hint=None.")
    return multiple_choice(item.question, item.choices, style, hint=hint and item.extra[f"{hint}_hint"])


def _clips(items: Sequence[Item], audio: str) -> dict[str, str | None]:
    """Item id -> path of the clip that is read for it: its own; for "shuffled" that of another, always the same."""
    if audio not in AUDIO:
        raise ValueError(f"There is no audio {audio!r}; known are {', '.join(AUDIO)}.")
    if audio == "none":
        return {item.id: None for item in items}
    if audio != "shuffled":
        return {item.id: item.audio for item in items}
    order = sorted(items, key=lambda item: digest(item.id))
    donors = {}
    for place, item in enumerate(order):
        others = (other.audio for other in order[place + 1 :] + order[:place] if other.audio not in (None, item.audio))
        donors[item.id] = next(others, None)
        if donors[item.id] is None:
            raise ValueError(f"No other item has another clip than {item.id}, so there is nothing to shuffle.")
    return donors


def _batches(
    items: Sequence[Item], clips: dict[str, str | None], prompts: dict[str, str], batch_size: int
) -> Iterator[list[Item]]:
    """Items of like length together, so that little is padded; the longest first: memory runs out early or never."""

    def length(item: Item) -> tuple[float, int]:
        try:
            seconds = soundfile.info(clips[item.id]).duration if clips[item.id] else 0.0
        except soundfile.LibsndfileError:
            seconds = 0.0  # what is wrong is told when the clip is read
        return round(seconds, 1), len(prompts[item.id])

    ordered = sorted(items, key=length, reverse=True)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def _hear(path: str | None, audio: str, sampling_rate: int, seed: str) -> np.ndarray | None:
    if path is None:
        return None
    clip = load_audio(path, sampling_rate)
    if audio == "silence":
        return np.zeros_like(clip)
    if audio == "noise":
        rng = np.random.default_rng(int(digest(seed), 16))
        return rng.normal(scale=np.sqrt(np.mean(clip**2)), size=clip.shape).astype(clip.dtype)
    return clip


def _record(item: Item, prediction: str) -> dict:
    asked = (item.answer, prediction, item.choices)
    order = item.extra.get("order")
    return {
        "id": item.id,
        "prediction": prediction,
        "correct": string_match(*asked),
        "exact_option": exact_option(*asked),
        "letter": letter(*asked),
        "chosen": _own_index(item, named_option(prediction, item.choices)),
        "n_choices": len(item.choices),
        "modality": item.modality,
        "category": item.category,
        "subcategory": item.subcategory,
        "source": item.source,
    } | ({"order": order} if order is not None else {})


def _own_index(item: Item, named: int | None) -> int | None:
    """Where the named option stands in the item's own order; of options that read the same, the first."""
    if named is None:
        return None
    order = item.extra.get("order", range(len(item.choices)))
    return min(own for own, choice in zip(order, item.choices, strict=True) if choice == item.choices[named])


def _likelihood_fields(item: Item, likelihoods: Sequence[Loglikelihood]) -> dict:
    order = item.extra.get("order", range(len(item.choices)))
    own = [likelihood for _, likelihood in sorted(zip(order, likelihoods, strict=True))]
    return {
        "loglikelihood": [round(total, 4) for total, _ in own],
        "n_tokens": [n_tokens for _, n_tokens in own],
        "likeliest": likeliest(item.answer, likelihoods, item.choices),
        "likeliest_per_token": likeliest(item.answer, likelihoods, item.choices, per_token=True),
    }


# ------------------------------------------------------------------------------------------------------ command line
def _layers(text: str) -> str | list[int]:
    """ "middle", "10:20" (10 to 19) or "10,12,14"."""
    if ":" in text:
        start, stop = text.split(":")
        return list(range(int(start), int(stop)))
    return text if text == "middle" else [int(layer) for layer in text.split(",")]


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Arguments that name a model and a benchmark, for `load_sources`, and what all runs of a comparison share."""
    add = parser.add_argument_group("the benchmark").add_argument
    add("--benchmark", default="minimmar", help="minimmar, mmau-test-mini or mmar (default: minimmar)")
    add("--root", metavar="FOLDER", help="the benchmark's files; by default they are fetched from the hub")
    add("--split", help="of MiniMMAR: test (default) or dev")
    add("--accept", metavar="CHECKSUM", help="take this version of the benchmark, though it is not a known one")
    add("--limit", type=int, metavar="N", help="only N items, at even distances")
    add = parser.add_argument_group("the model").add_argument
    add("--model", default="tiny", help="tiny, tiny-unbiased, a folder or a hub id (default: tiny)")
    add("--revision", help="the hub's commit, tag or branch")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="by default what the device does best")
    add("--quantize", choices=["4bit"], help="4-bit weights, for small GPUs")
    add = parser.add_argument_group("how it is asked").add_argument
    add("--batch-size", type=int, default=8, metavar="N", help="halved where memory runs out (default: 8)")
    add("--max-new-tokens", type=int, default=32, metavar="N", help="longest reply (default: 32)")
    add("--prompt", choices=STYLES, help="whose template (default: that of the benchmark's authors)")
    add("--loglikelihood", action="store_true", help="also how likely each option is: a scorer that parses nothing")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.evaluate",
        description="Run a benchmark, or tabulate runs. Started again with the same settings, a run goes on where it "
        "stopped. On several GPUs or machines: accelerate launch -m helpers.evaluate ...",
    )
    parser.add_argument("--out", metavar="FILE", help="file of the run, one line an item")
    add_sources(parser)
    add = parser.add_argument_group("what is changed").add_argument
    add("--hint", choices=HINTS[1:], help="an answer whispered in the prompt, where the items have one")
    add("--audio", default="real", choices=AUDIO, help="what the model hears (default: real)")
    add("--permute", metavar="ORDER", help="options in another order: rotate-1, rotate-2, ..., shuffle-0, ...")
    add = parser.add_argument_group("steering (MATA)").add_argument
    add("--alpha", type=float, help="its strength; without it nothing is steered")
    add("--layers", type=_layers, default="middle", help="middle, 10:20 or 10,12,14 (default: middle)")
    add("--rule", default="multiply", choices=RULES, help="what happens to a score (default: multiply)")
    add("--keys", default="audio", choices=["audio", "text"], help="which keys; text is a control (default: audio)")
    add = parser.add_argument_group("tables, without a model").add_argument
    add("--table", nargs="+", metavar="RUN", help="tabulate these runs; the first is the baseline")
    add("--by", metavar="FIELD", help="rows for each group as well, e.g. modality")
    add("--scorer", default="correct", choices=[*SCORES, "all"], help="who judges; all: each run by every scorer")
    add("--flips", nargs=2, metavar="RUN", help="list the items that the second run won and lost")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    given = parser.parse_args(arguments)
    if not (given.table or given.flips or given.out):
        parser.error("a run needs --out, the file to keep it in")
    try:
        _main(given)
    except KeyboardInterrupt:
        print("Stopped. What was answered is kept; the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _main(given: argparse.Namespace) -> None:
    if given.flips:
        for name, ids in flips(*given.flips, scorer=given.scorer)._asdict().items():
            print(f"{name} {len(ids)}: {' '.join(ids)}")
    elif not given.table:
        _run(given)
    if given.out and (state := together()) and not state.is_main_process:
        return
    runs = given.table or ([given.out] if given.out else [])
    if given.scorer == "all":
        for run in runs:
            print(f"{Path(run).stem}\n\n{scorers_table(run)}\n")
    elif runs:
        print(table(runs, given.by, given.scorer))


def _run(given: argparse.Namespace) -> None:
    lalm, items = load_sources(given)
    steering = None
    if given.alpha is not None:
        steering = MATA(lalm, alpha=given.alpha, layers=given.layers, rule=given.rule, keys=given.keys)
    evaluate(
        lalm,
        items,
        style=given.prompt or own_style(given.benchmark),
        hint=given.hint,
        audio=given.audio,
        steering=steering,
        batch_size=given.batch_size,
        max_new_tokens=given.max_new_tokens,
        out=given.out,
        permute=given.permute,
        loglikelihood=given.loglikelihood,
        revision=given.revision,
    )


def load_sources(given: argparse.Namespace) -> tuple[LALM, list[Item]]:
    """The model and the items that the arguments of `add_sources` name."""
    state = together()
    # Of the processes on a machine one downloads, the others find it done.
    with state.local_main_process_first() if state else nullcontext():
        items = load_benchmark(given.benchmark, root=given.root, split=given.split, accept=given.accept)
        device = state and torch.device(state.device.type, state.device.index if state.device.type == "cuda" else None)
        lalm = load_lalm(
            given.model, device=device, dtype=given.dtype, quantize=given.quantize, revision=given.revision
        )
    return lalm, items if given.limit is None else even_sample(items, given.limit)


if __name__ == "__main__":
    main()
