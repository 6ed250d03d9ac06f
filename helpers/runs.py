"""Runs on disk, and what is made of them without any model: tables, flips, agreement.

A run is one JSONL file: a line with its settings and its environment, then a line an item, written batch by batch. A
line holds as soon as it ends; what a kill or a full disk cut off is written again. Of several processes each writes a
part of its own, `<file>.worker1`, ..., which the first one adds to the file at the end, or at the next start.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from helpers.statistics import accuracy_interval, cluster_bootstrap, holm, mcnemar

SCORES = ("correct", "exact_option", "letter", "likeliest", "likeliest_per_token")  # fields of a record


class Run(NamedTuple):
    """A run as read from its file; `records`: item id -> its last record."""

    settings: dict
    environment: dict
    records: dict[str, dict]


class Flips(NamedTuple):
    """Ids of the items that a second run won and lost against a first one."""

    won: list[str]
    lost: list[str]


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


def is_answered(record: dict) -> bool:
    """Whether the record holds a reply; one with an `error` in its place is tried again at the next start."""
    return "prediction" in record


# ------------------------------------------------------------------------------------------------------------- writing
@dataclass
class RunFile:
    """The file of a run, open for writing; made by `open_run`. Without a path, records that nobody keeps."""

    path: Path | None
    settings: dict
    environment: dict
    records: dict[str, dict]

    def append(self, records: Sequence[dict]) -> None:
        """Add records, and return when they are on the disk."""
        if records and self.path:
            _write(self.path, [{"run": _run_id(self.settings), **record} for record in records])
        self.records |= {record["id"]: record for record in records}

    def add_parts(self) -> None:
        """Take over what other workers have written, and remove their files. Killed in between, it is done again."""
        for part in sorted(self.path.parent.glob(f"{escape(self.path.name)}.worker*[0-9]")):
            with open_run(part, self.settings, self.environment) as other:
                known = {id: record for id, record in self.records.items() if is_answered(record)}
                self.append([record for id, record in other.records.items() if id not in known])
                part.unlink()


def part_of(path: str | Path, worker: int) -> Path:
    """The file of one of several workers; the first one, number 0, writes the run's own file."""
    return Path(f"{path}.worker{worker}")


@contextmanager
def open_run(path: str | Path, settings: dict, environment: dict) -> Iterator[RunFile]:
    """Begin a run's file, or go on with one that has the same settings; no other process can open it meanwhile.

    Raises
    ------
    ValueError
        If the file holds something else, or is open in another process.
    OSError
        If it can't be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")  # the system lets go of it even when the process is killed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{path} is being written by another process; let it finish, or give this run another file."
        ) from None
    try:
        yield RunFile(path, plain(settings), environment, _begin(path, plain(settings), environment))
    finally:
        with suppress(OSError):  # Windows removes no open file; a lock file left behind does no harm
            os.unlink(f"{path}.lock")
        lock.release()


def _begin(path: Path, settings: dict, environment: dict) -> dict[str, dict]:
    """Records already in the file, which is begun if it is not there, and cut back to its last whole line if it is."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if not whole and content.startswith(b'{"settings"'):  # killed while its first line was written
        content = b""
    if not content:
        path.write_bytes(content)
        _write(path, [{"settings": settings, "environment": environment}])
        return {}
    run = read_run(path)
    other = [name for name in settings if run.settings.get(name) != settings[name]]
    if other:
        found = ", ".join(f"{name} {run.settings.get(name)!r} instead of {settings[name]!r}" for name in other)
        raise ValueError(f"{path} holds a run with other settings ({found}); give this run another file.")
    os.truncate(path, whole)
    return run.records


def _write(path: Path, lines: list[dict]) -> None:
    """Append whole lines and wait until they are on the disk; on failure leave none of them."""
    before = path.stat().st_size
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        os.truncate(path, before)
        raise OSError(
            f"{path} can't be written ({error.strerror}); what it holds is kept: make room, and start the same "
            "command again."
        ) from None


def _run_id(settings: dict) -> str:
    return digest(settings)[:12]


def digest(content: object) -> str:
    """SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def plain(value: object) -> object:
    """As it comes back from JSON; a function by its name."""
    return json.loads(json.dumps(value, default=lambda function: function.__name__))


# ------------------------------------------------------------------------------------------------------------- reading
def table(paths: Sequence[str | Path], by: str | None = None, scorer: str = "correct") -> str:
    """Accuracy of runs over the same items, as a Markdown table.

    All rows have one denominator: the items that every run answered; how many that leaves out stands below. The first
    run is the baseline of the others: items won and lost against it, and McNemar's exact p (with `by`, corrected by
    Holm over the groups). Where items share a source, such as a video, a second interval takes that into account: it
    is bootstrapped over the sources.

    Parameters
    ----------
    by : a field of the records, such as "modality", for rows of each group besides those of all.
    scorer : "correct" (the official rule), "exact_option", "letter", or, of runs with log-likelihoods, "likeliest" or
        "likeliest_per_token"; replies it can't read count as not right, and stand in their own column.
    """
    runs = {str(path): read_run(path) for path in paths}
    shared = _answered_by_all(runs, scorer)
    baseline = next(iter(runs.values())).records
    groups = {"all": shared}
    if by is not None:
        values = sorted({baseline[id][by] for id in shared})
        groups |= {value: [id for id in shared if baseline[id][by] == value] for value in values}

    sources = {id: baseline[id]["source"] or id for id in shared}
    is_clustered = len(set(sources.values())) < len(shared)
    columns = [
        "items",
        "run",
        "n",
        "accuracy",
        "95% interval",
        *["by source"] * is_clustered,
        "unread",
        "won",
        "lost",
        "p",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for number, (path, run) in enumerate(runs.items()):
        tests = {
            name: mcnemar(_right(baseline, ids, scorer), _right(run.records, ids, scorer))
            for name, ids in groups.items()
        }
        p_values = [tests["all"].p, *(holm([tests[name].p for name in groups if name != "all"]) if by else [])]
        for (name, ids), p in zip(groups.items(), p_values, strict=True):
            right = _right(run.records, ids, scorer)
            by_source = [_by_source(right, [sources[id] for id in ids])] if is_clustered else []
            unread = sum(run.records[id][scorer] is None for id in ids)
            won, lost, _ = tests[name]
            against = [won, lost, f"{p:.2g}"] if number else ["–"] * 3
            cells = [
                name,
                Path(path).stem,
                len(ids),
                f"{sum(right) / len(ids):.1%}",
                _spelled(accuracy_interval(right)),
            ]
            lines.append(f"| {' | '.join(map(str, [*cells, *by_source, unread, *against]))} |")
    asked = max(run.settings["items"] for run in runs.values())
    lines += ["", f"n: the items that every run answered, of {asked} asked."]
    for path, run in runs.items():
        errors = [f"{id}: {record['error']}" for id, record in run.records.items() if not is_answered(record)]
        if missing := asked - len(run.records) + len(errors):
            first = f", the first is {errors[0]}" if errors else "."
            lines.append(f"{Path(path).stem}: {missing} not answered, {len(errors)} of them failed{first}")
    return "\n".join(lines)


def _answered_by_all(runs: dict[str, Run], scorer: str) -> list[str]:
    answered = [{id for id, record in run.records.items() if is_answered(record)} for run in runs.values()]
    shared = sorted(set.intersection(*answered))
    for (path, run), ids in zip(runs.items(), answered, strict=True):
        if not ids:
            errors = [record["error"] for record in run.records.values()]
            raise ValueError(f"{path} has no answered item{f'; the first error: {errors[0]}' if errors else '.'}")
    if not shared:
        raise ValueError(f"{', '.join(runs)} have no answered item in common, so they can't be compared.")
    for path, run in runs.items():
        if scorer not in run.records[shared[0]]:
            raise ValueError(f"{path} has no {scorer!r} in its records; the likeliest take a run with log-likelihoods.")
    return shared


def _right(records: dict[str, dict], ids: Sequence[str], scorer: str) -> list[bool]:
    return [bool(records[id][scorer]) for id in ids]


def _spelled(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _by_source(right: Sequence[bool], sources: Sequence[str]) -> str:
    return _spelled(cluster_bootstrap(right, sources)) if len(set(sources)) > 1 else "–"


def scorers_table(path: str | Path) -> str:
    """The accuracy of one run by every scorer that its records hold, as a Markdown table: the replies are the same."""
    run = read_run(path)
    answered = [record for record in run.records.values() if is_answered(record)]
    lines = ["| scorer | n | accuracy | 95% interval | unread |", "|---" * 5 + "|"]
    for scorer in (name for name in SCORES if answered and name in answered[0]):
        outcomes = [record[scorer] for record in answered]
        right = [bool(outcome) for outcome in outcomes]
        share, interval = f"{sum(right) / len(right):.1%}", _spelled(accuracy_interval(right))
        lines.append(f"| {scorer} | {len(right)} | {share} | {interval} | {outcomes.count(None)} |")
    return "\n".join(lines)


def flips(first: str | Path, second: str | Path, scorer: str = "correct") -> Flips:
    """Which items the second run won and lost against the first, of those that both answered: listen to them."""
    runs = {str(path): read_run(path) for path in (first, second)}
    ids = _answered_by_all(runs, scorer)
    before, after = (_right(run.records, ids, scorer) for run in runs.values())
    won = [id for id, a, b in zip(ids, before, after, strict=True) if b > a]
    return Flips(won, [id for id, a, b in zip(ids, before, after, strict=True) if a > b])


def agreement(paths: Sequence[str | Path]) -> tuple[int, int]:
    """In how many items all runs name the same option, and of how many: of runs whose options stand in other orders.

    A reply that names no option agrees with nothing.
    """
    runs = {str(path): read_run(path) for path in paths}
    ids = _answered_by_all(runs, "chosen")
    chosen = [{run.records[id]["chosen"] for run in runs.values()} for id in ids]
    return sum(len(options) == 1 and None not in options for options in chosen), len(ids)
