"""Run a LALM over a benchmark, keep every reply, and make tables of the kept replies.

A run is one JSONL file: a line with its settings, then a line an item, written batch by batch. A run that was killed
goes on where it stopped; a run with other settings is refused, so that no file mixes two. Every table and figure is
made from such files, without the model:

    python -m helpers.evaluate --model tiny --benchmark minimmar --hint misleading --out runs/misled.jsonl
    python -m helpers.evaluate --model tiny --benchmark minimmar --hint misleading --alpha 0.1 --out runs/steered.jsonl
    python -m helpers.evaluate --table runs/misled.jsonl runs/steered.jsonl --by modality
"""

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import transformers
from tqdm import tqdm

from helpers.benchmarks import Item, load_benchmark
from helpers.mata import MATA, RULES
from helpers.models import LALM, load_audio, load_lalm
from helpers.prompts import STYLES, multiple_choice
from helpers.scoring import exact_option, letter, string_match
from helpers.statistics import accuracy_interval, holm, mcnemar

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
) -> list[dict]:
    """Ask the model every item, greedily, and score the replies by the official rule.

    Parameters
    ----------
    style : name of the prompt, see `helpers.prompts.STYLES`.
    hint : None, or which of an item's hints its prompt carries: "misleading" or "correct".
    audio : what the model hears: the "real" clip; "silence" or "noise" as long and as loud; the clip of another item
        ("shuffled"); or no audio at all ("none"). A model that listens falls to chance with all but "real".
    steering : a `MATA` of this model, switched on for this run.
    out : file of the run. Asked again, only what is missing is run; None keeps nothing.

    Returns
    -------
    list of dict, in the order of the items: `id`, `prediction`, `correct` (`string_match`), `exact_option` and `letter`
    (None: names no option), `n_choices`, `modality`, ... An item whose clip can't be read has `error` in place of
    these: a failed item is not a wrong one.

    Raises
    ------
    ValueError
        For an unknown setting, an item without the hint, repeated ids, or an `out` that holds another run.
    """
    items = list(items)
    if len({item.id for item in items}) < len(items):
        raise ValueError("Two items have the same id, so their records could not be told apart; rename one.")
    prompts = {item.id: _prompt(item, style, hint) for item in items}
    clips = _clips(items, audio)
    settings = {
        "model": lalm.name,
        "weights": weights_checksum(lalm.model),
        "items": len(items),
        "asked": _checksum([[item.id, prompts[item.id], item.answer, item.extra.get("sha256")] for item in items]),
        "style": style,
        "hint": hint,
        "audio": audio,
        "steering": steering
        and {name: _plain(getattr(steering, name)) for name in ("alpha", "layers", "rule", "keys")},
        "max_new_tokens": max_new_tokens,
        "code": _checksum([(Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8") for module in CODE]),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    records = {} if out is None else _open_run(Path(out), settings, _environment(lalm))

    def is_pending(item: Item) -> bool:
        return "prediction" not in records.get(item.id, {})  # a failed item is tried again

    done = sum(not is_pending(item) for item in items)
    progress = tqdm(total=len(items), initial=done, unit="item", desc=Path(out or lalm.name).stem)
    with steering or nullcontext(), progress:
        for whole_batch in _batches(items, clips, prompts, batch_size):  # the same ones when a run goes on
            batch = [item for item in whole_batch if is_pending(item)]
            new = _answer(lalm, batch, prompts, clips, audio, max_new_tokens)
            if new and steering is not None and steering.alpha != 0 and not steering.calls:
                raise ValueError("The steering touched no layer: make it of the model that is run, MATA(lalm, ...).")
            if out is not None and new:
                _append(Path(out), settings, new)
            records |= {record["id"]: record for record in new}
            progress.update(len(batch))
    return [records[item.id] for item in items]


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
    order = sorted(items, key=lambda item: _checksum(item.id))
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


def _answer(
    lalm: LALM,
    batch: Sequence[Item],
    prompts: dict[str, str],
    clips: dict[str, str | None],
    audio: str,
    max_new_tokens: int,
) -> list[dict]:
    """The records of one batch. A clip that can't be read fails its own item only."""
    heard, failed = {}, []
    for item in batch:
        try:
            heard[item.id] = _hear(clips[item.id], audio, lalm.sampling_rate, seed=item.id)
        except (OSError, ValueError) as error:
            failed.append({"id": item.id, "error": str(error)})
    readable = [item for item in batch if item.id in heard]
    if not readable:  # the batch was done before, or no clip of it can be read
        return failed
    inputs = lalm.prepare([prompts[item.id] for item in readable], [heard[item.id] for item in readable])
    predictions = lalm.generate(inputs, max_new_tokens=max_new_tokens)
    return failed + [_record(item, prediction) for item, prediction in zip(readable, predictions, strict=True)]


def _hear(path: str | None, audio: str, sampling_rate: int, seed: str) -> np.ndarray | None:
    if path is None:
        return None
    clip = load_audio(path, sampling_rate)
    if audio == "silence":
        return np.zeros_like(clip)
    if audio == "noise":
        rng = np.random.default_rng(int(_checksum(seed), 16))
        return rng.normal(scale=np.sqrt(np.mean(clip**2)), size=clip.shape).astype(clip.dtype)
    return clip


def _record(item: Item, prediction: str) -> dict:
    asked = (item.answer, prediction, item.choices)
    return {
        "id": item.id,
        "prediction": prediction,
        "correct": string_match(*asked),
        "exact_option": exact_option(*asked),
        "letter": letter(*asked),
        "n_choices": len(item.choices),
        "modality": item.modality,
        "category": item.category,
        "subcategory": item.subcategory,
        "source": item.source,
    }


class Run(NamedTuple):
    """A run as read from its file; `records`: item id -> its last record."""

    settings: dict
    environment: dict
    records: dict[str, dict]


def read_run(path: str | Path) -> Run:
    """Read the file of a run. A last line that was cut off by a kill is left out.

    Raises
    ------
    ValueError
        If a line is not readable or belongs to a run with other settings.
    """
    path = Path(path)
    settings = environment = None
    records = {}
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            entry = json.loads(line)
            if number == 1:
                settings, environment = entry["settings"], entry["environment"]
                continue
            run, name = entry.pop("run"), entry["id"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}, is not of a run; remove the line, or move the file away."
            ) from None
        if run != _run_id(settings):
            raise ValueError(f"{path}, line {number}, is of a run with other settings; remove the line.")
        records[name] = entry
    if settings is None:
        raise ValueError(f"{path} has no whole line, so it is no run; move it away.")
    return Run(settings, environment, records)


def _whole_lines(path: Path) -> list[str]:
    """The lines up to the last newline: what a kill cut off may end in the middle of a character."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1].decode("utf-8", errors="replace").split("\n")[:-1]


def committed(name: str) -> Path:
    """Path of `results/<name>`, a run that the book cites: in the working folder or above it, or in a clone beside.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the package does not carry the runs, the repository does.
    """
    here = Path.cwd()
    places = [folder / "results" / name for folder in (here, *here.parents, here / "lalm-listening")]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"No results/{name} in {here} or above: work in a clone of the book's repository.")
    return found


def _open_run(path: Path, settings: dict, environment: dict) -> dict[str, dict]:
    """Records already in the file, which is begun if it is not there, and cut back to its last whole line if it is."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if not whole and content.startswith(b'{"settings"'):  # killed while its first line was written
        content = b""
    if not content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        _write(path, [{"settings": settings, "environment": environment}])
        return {}
    run = read_run(path)
    other = [name for name in settings if run.settings.get(name) != _plain(settings[name])]
    if other:
        found = ", ".join(f"{name} {run.settings.get(name)!r} instead of {settings[name]!r}" for name in other)
        raise ValueError(f"{path} holds a run with other settings ({found}); give this run another file.")
    os.truncate(path, whole)
    return run.records


def _append(path: Path, settings: dict, records: list[dict]) -> None:
    _write(path, [{"run": _run_id(settings), **record} for record in records])


def _write(path: Path, lines: list[dict]) -> None:
    """Append whole lines and wait until they are on the disk."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def _run_id(settings: dict) -> str:
    return _checksum(settings)[:12]


def _checksum(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> object:
    """As it comes back from JSON; a function by its name."""
    return json.loads(json.dumps(value, default=lambda function: function.__name__))


def weights_checksum(model: torch.nn.Module) -> str:
    """SHA-256 of 64 values of each tensor, its name, type and shape: tells models apart without reading 15 GB."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        values = tensor.flatten()[:: max(1, tensor.numel() // 64)][:64].contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _environment(lalm: LALM) -> dict:
    device = next(lalm.model.parameters()).device
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def table(paths: Sequence[str | Path], by: str | None = None, scorer: str = "correct") -> str:
    """Accuracy of runs over the same items, as a Markdown table.

    All rows have one denominator: the items that every run answered; how many that leaves out stands below. The first
    run is the baseline of the others: items won and lost against it, and McNemar's exact p (with `by`, corrected by
    Holm over the groups).

    Parameters
    ----------
    by : a field of the records, such as "modality", for rows of each group besides those of all.
    scorer : "correct" (the official rule), "exact_option" or "letter"; replies it can't read count as not right, and
        stand in their own column.
    """
    runs = {str(path): read_run(path).records for path in paths}
    answered = [{id for id, record in records.items() if "prediction" in record} for records in runs.values()]
    shared = sorted(set.intersection(*answered))
    if not shared:
        raise ValueError(f"{', '.join(runs)} have no answered item in common, so they can't be compared.")
    baseline = next(iter(runs.values()))
    groups = {"all": shared}
    if by is not None:
        values = sorted({baseline[id][by] for id in shared})
        groups |= {value: [id for id in shared if baseline[id][by] == value] for value in values}

    lines = ["| items | run | n | accuracy | 95% interval | unread | won | lost | p |", "|---" * 9 + "|"]
    for number, (path, records) in enumerate(runs.items()):
        tests = {
            name: mcnemar([bool(baseline[id][scorer]) for id in ids], [bool(records[id][scorer]) for id in ids])
            for name, ids in groups.items()
        }
        p_values = [tests["all"].p, *(holm([tests[name].p for name in groups if name != "all"]) if by else [])]
        for (name, ids), p in zip(groups.items(), p_values, strict=True):
            right = sum(bool(records[id][scorer]) for id in ids)
            low, high = accuracy_interval(right, len(ids))
            unread = sum(records[id][scorer] is None for id in ids)
            won, lost, _ = tests[name]
            against = f"{won} | {lost} | {p:.2g}" if number else "– | – | –"
            lines.append(
                f"| {name} | {Path(path).stem} | {len(ids)} | {right / len(ids):.1%} "
                f"| {low:.1%} to {high:.1%} | {unread} | {against} |"
            )
    asked = max(read_run(path).settings["items"] for path in paths)
    lines += ["", f"n: the items that every run answered, of {asked} asked."]
    for path, records in runs.items():
        failed = sum("error" in record for record in records.values())
        if missing := asked - len(records) + failed:
            lines.append(f"{Path(path).stem}: {missing} not answered, {failed} of them failed (see `error`).")
    return "\n".join(lines)


def _layers(text: str) -> str | list[int]:
    """ "middle", "10:20" (10 to 19) or "10,12,14"."""
    if ":" in text:
        start, stop = text.split(":")
        return list(range(int(start), int(stop)))
    return text if text == "middle" else [int(layer) for layer in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.evaluate", description="Run a benchmark, or tabulate runs."
    )
    parser.add_argument(
        "--table", nargs="+", metavar="RUN", help="make a table of these runs; the first is the baseline"
    )
    parser.add_argument("--by", help="a field to group the table by, e.g. modality")
    parser.add_argument("--scorer", default="correct", choices=["correct", "exact_option", "letter"])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--benchmark", default="minimmar")
    parser.add_argument("--root", help="folder of the benchmark's files")
    parser.add_argument("--split")
    parser.add_argument("--prompt", default="mmar", choices=STYLES)
    parser.add_argument("--hint", choices=HINTS[1:])
    parser.add_argument("--audio", default="real", choices=AUDIO)
    parser.add_argument("--alpha", type=float, help="steer with MATA at this strength")
    parser.add_argument("--layers", type=_layers, default="middle", help="middle, 10:20 or 10,12,14")
    parser.add_argument("--rule", default="multiply", choices=RULES)
    parser.add_argument("--keys", default="audio", choices=["audio", "text"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--out", help="file of the run")
    given = parser.parse_args(arguments)
    if given.table:
        print(table(given.table, given.by, given.scorer))
        return
    if given.out is None:
        parser.error("a run needs --out, the file to keep it in")
    lalm = load_lalm(given.model)
    steering = None
    if given.alpha is not None:
        steering = MATA(lalm, alpha=given.alpha, layers=given.layers, rule=given.rule, keys=given.keys)
    evaluate(
        lalm,
        load_benchmark(given.benchmark, root=given.root, split=given.split),
        style=given.prompt,
        hint=given.hint,
        audio=given.audio,
        steering=steering,
        batch_size=given.batch_size,
        max_new_tokens=given.max_new_tokens,
        out=given.out,
    )
    print(table([given.out], given.by, given.scorer))


if __name__ == "__main__":
    main()
