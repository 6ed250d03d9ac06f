"""Items of the multiple-choice audio benchmarks: MMAU test-mini, MMAR and the generated MiniMMAR.

A benchmark is a list of `Item`. The parsers repair nothing silently: what they straighten out (stray white space, a
category that is a list) or leave as it is (duplicate and empty options) is noted on the item and told by `anomalies`.
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import soundfile

# Where downloaded benchmarks are kept; outside the repository, since the audio of MMAR alone is 3 GB.
CACHE = Path(os.environ.get("LALM_LISTENING_CACHE", Path.home() / ".cache" / "lalm-listening"))


@dataclass(frozen=True)
class Item:
    """One multiple-choice question about one clip.

    `audio` is a path (None: a question without audio), `answer` the text of the right option, `source` what the
    errors of several items may share (MMAR: the video, MMAU: the data set of origin), so that intervals can be
    clustered by it. All other fields of the row are in `extra`.
    """

    id: str
    audio: str | None
    question: str
    choices: list[str]
    answer: str
    modality: str
    category: str = ""
    subcategory: str = ""
    source: str = ""
    extra: dict = field(default_factory=dict)


def parse_mmau(rows: Iterable[dict]) -> list[Item]:
    """MMAU rows, as in the authors' JSON file or in the hub's parquet file, to items (Sakshi et al., arXiv 2410.19168).

    Raises
    ------
    ValueError
        If a row lacks a field; the sentence names the row.
    """
    return _parse(
        (_flat_mmau_row(row) for row in rows), audio="audio_id", modality="task", source=lambda row: row["dataset"]
    )


def parse_mmar(rows: Iterable[dict]) -> list[Item]:
    """MMAR rows to items (Ma et al., arXiv 2505.13032).

    The video is the id up to its time stamps: the `url` is less sure, as some are short links to the same video.

    Raises
    ------
    ValueError
        If a row lacks a field; the sentence names the row.
    """
    return _parse(
        rows, audio="audio_path", modality="modality", source=lambda row: re.sub(r"_\d+-\d+.*$", "", row["id"])
    )


def _flat_mmau_row(row: dict) -> dict:
    """The hub's parquet calls the question `instruction`, letters the options and packs the rest into a JSON string."""
    if "other_attributes" not in row:
        return row

    def unlettered(option: str) -> str:
        return re.sub(r"^\([A-Z]\)\s*", "", option)

    flat = {**row, **json.loads(row["other_attributes"])}
    del flat["other_attributes"]
    flat.pop("context", None)  # the bytes of the clip
    flat["question"] = flat.pop("instruction")
    flat["choices"] = [unlettered(choice) for choice in row["choices"]]
    flat["answer"] = unlettered(row["answer"])
    flat["audio_id"] = f"./test-mini-audios/{flat['id']}.wav"
    return flat


def _parse(rows: Iterable[dict], audio: str, modality: str, source: Callable[[dict], str]) -> list[Item]:
    fields = {"id", audio, "question", "choices", "answer", modality, "category", "sub-category"}
    items, seen = [], Counter()
    for number, row in enumerate(rows):
        missing = sorted(field for field in fields if row.get(field) is None)
        if missing:
            raise ValueError(
                f"Row {number} ({row.get('id')!r}) has no {', '.join(missing)}; is this another benchmark's metadata?"
            )
        category = row["category"]
        if isinstance(category, list):
            category = ", ".join(category)
        seen[row["id"]] += 1
        repeat = f"#{seen[row['id']]}" if seen[row["id"]] > 1 else ""
        items.append(
            Item(
                id=row["id"] + repeat,
                audio=row[audio],
                question=row["question"].strip(),
                choices=[choice.strip() for choice in row["choices"]],
                answer=row["answer"].strip(),
                modality=row[modality],
                category=category,
                subcategory=row["sub-category"],
                source=source(row),
                extra={key: value for key, value in row.items() if key not in fields}
                | {"anomalies": _anomalies(row, row[audio]) + (["a repeated id"] if repeat else [])},
            )
        )
    return items


def _anomalies(row: dict, audio: str) -> list[str]:
    """What is odd about a row, one short name each."""
    question, answer = row["question"], row["answer"]
    choices = [choice.strip() for choice in row["choices"]]
    found = {
        "white space around the question": question != question.strip(),
        "white space around the answer": answer != answer.strip(),
        "white space around an option": choices != row["choices"],
        "a list as category": isinstance(row["category"], list),
        "duplicate options": len(set(choices)) < len(choices),
        "the answer among the duplicate options": choices.count(answer.strip()) > 1,
        "an empty option": "" in choices,
        "an answer that is not an option": answer.strip() not in choices,
        "options that are written-out lists": any(choice.startswith("[") for choice in choices),
        "more than six options": len(choices) > 6,
        "an id that differs from the name of its audio file": Path(audio).stem != row["id"],
    }
    return [name for name, is_so in found.items() if is_so]


def anomalies(items: Iterable[Item]) -> list[str]:
    """One sentence for each kind of oddity among the items: how many have it, and which (the first three)."""
    having = defaultdict(list)
    for item in items:
        for name in item.extra.get("anomalies", []):
            having[name].append(item.id)
    return [
        f"{len(ids)} item{'s' if len(ids) > 1 else ''} with {name}: {', '.join(ids[:3])}{', …' if len(ids) > 3 else ''}"
        for name, ids in having.items()
    ]


def checksum(items: Iterable[Item]) -> str:
    """SHA-256 of what is asked (id, question, choices, answer), whatever the order of items or the file's format."""
    asked = sorted([item.id, item.question, item.choices, item.answer] for item in items)
    return hashlib.sha256(json.dumps(asked, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark is on the hub, how its files are called, and which versions of it are known (by `checksum`).

    `style` names its authors' own prompt, see `helpers.prompts.STYLES`.
    """

    parse: Callable[[Iterable[dict]], list[Item]]
    style: str
    split: str
    metadata: tuple[str, ...]
    repository: str
    revision: str
    versions: dict[str, str]


BENCHMARKS = {
    "mmau-test-mini": Benchmark(
        parse=parse_mmau,
        style="mmau",
        split="test-mini",
        metadata=("mmau-test-mini.json",),
        repository="gamma-lab-umd/MMAU-test-mini",
        revision="ccd9696c0111ea7060827598f310558df0b71b0a",
        versions={
            "bf38ec6c1b93c138c5dce188c64d78fe44f0aadf65a69d2cdb7887b2310d6628": "v05.15.25, as edited on 2025-08-09"
        },
    ),
    "mmar": Benchmark(
        parse=parse_mmar,
        style="mmar",
        split="test",
        metadata=("MMAR-meta.jsonl", "MMAR-meta.json"),
        repository="BoJack/MMAR",
        revision="3bd051123480e80d273ae9e8e9f1653f49010ac7",
        versions={"6bfc44153056617b52fdbb1b303a5c8311c82ea4d46fe1c97dc956cfff5b0587": "February 2026, with rubrics"},
    ),
}


def load_benchmark(
    name: str, root: str | Path | None = None, split: str | None = None, accept: str | None = None
) -> list[Item]:
    """The items of a benchmark, with the paths of their clips.

    Parameters
    ----------
    name : "minimmar", "mmau-test-mini" or "mmar".
    root : the folder with the authors' metadata file and the audio beside it, as its rows name it.
        None: downloaded once from the hub, at a pinned revision, into `CACHE`.
    split : MiniMMAR has "test" and "dev"; the others only their one.
    accept : `checksum` of a version of the metadata that is not among the known ones, to use it all the same.

    Warns
    -----
    Of clips that are missing or can't be read. Their items stay in the list: a failed item is not a wrong one, and the
    denominator must not depend on it. `broken_audio` lists them.

    Raises
    ------
    ValueError, FileNotFoundError
        For an unknown name, split or version, a missing file, an audio path that leaves the folder.
    """
    if name == "minimmar":
        from helpers.minimmar import minimmar_items  # here, because that module imports Item from this one

        return minimmar_items(split or "test", root)
    if name not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {name!r}; known are minimmar, {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[name]
    if split not in (None, benchmark.split):
        raise ValueError(f"{name} has no split {split!r}, only {benchmark.split!r}.")

    root = Path(root) if root is not None else download(name)
    path = next((root / file for file in benchmark.metadata if (root / file).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{root} has no {' or '.join(benchmark.metadata)}: put the metadata of {name} there.")
    items = benchmark.parse(_read_rows(path))
    found = checksum(items)
    if found not in (*benchmark.versions, accept):
        raise ValueError(
            f"{path} is no known version of {name} ({', '.join(benchmark.versions.values())}), so its scores compare "
            f"with nothing published; to use it all the same: load_benchmark({name!r}, ..., accept={found!r})."
        )
    items = [replace(item, audio=str(_inside(root, item.audio))) for item in items]
    broken = broken_audio(items)
    if broken:
        first = next(iter(broken.values()))
        warnings.warn(
            f"{len(broken)} of {len(items)} clips of {name} are missing or unreadable, the first: {first}", stacklevel=2
        )
    return items


def download(name: str) -> Path:
    """Fetch a benchmark from the hub at its pinned revision into `CACHE`, once, and lay it out as the authors do.

    Returns the folder for `load_benchmark`. Needs a network, for MMAR 6 GB of disk, for MMAU `pip install pyarrow`.

    Raises
    ------
    ValueError
        If a file is not the one the hub lists at that revision.
    """
    import huggingface_hub  # here, because a reader with a local folder needs neither it nor a network

    benchmark, folder = BENCHMARKS[name], CACHE / name
    complete = folder / f"complete-{benchmark.revision}"  # written last: a killed download is taken up again
    if complete.exists():
        return folder
    where = {"repo_id": benchmark.repository, "revision": benchmark.revision, "repo_type": "dataset"}
    patterns = [*benchmark.metadata, "*.tar.gz", "*.parquet"]
    huggingface_hub.snapshot_download(**where, local_dir=folder, allow_patterns=patterns)
    for file in huggingface_hub.HfApi().repo_info(**where, files_metadata=True).siblings:
        path = folder / file.rfilename
        if file.lfs is not None and path.exists() and _sha256(path) != file.lfs.sha256:
            raise ValueError(f"{path} is not the file that the hub lists; delete it and try again.")
    for archive in folder.glob("*.tar.gz"):
        unpack(archive, folder)
    for table in sorted(folder.rglob("*.parquet")):
        _unpack_mmau(table, folder)
    complete.touch()
    return folder


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack_mmau(table: Path, folder: Path) -> None:
    """The hub's MMAU is one parquet table with the clips in it: write them and the metadata as the authors do."""
    try:
        import pyarrow.parquet  # large, and needed only here
    except ImportError:
        raise ImportError(f"{table} needs pyarrow to be read: pip install pyarrow; the download is kept.") from None

    rows = []
    for batch in pyarrow.parquet.ParquetFile(table).iter_batches(batch_size=16):
        for row in batch.to_pylist():
            flat = _flat_mmau_row(row)
            path = _inside(folder, flat["audio_id"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["context"]["bytes"])
            rows.append(flat)
    (folder / BENCHMARKS["mmau-test-mini"].metadata[0]).write_text(json.dumps(rows), encoding="utf-8")


def _read_rows(path: Path) -> list[dict]:
    """A JSON array, or one JSON object a line."""
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); fetch the file again.") from None


def _inside(root: Path, name: str) -> Path:
    """`root/name`, if that is inside root: names come from downloads and must not point elsewhere."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name!r} leads out of {root}; nothing is read or written there.")
    return path


def broken_audio(items: Iterable[Item]) -> dict[str, str]:
    """Item id -> one sentence, for every clip that is missing, unreadable or empty (only the headers are read)."""
    broken = {}
    for item in items:
        if item.audio is None:
            continue
        if not Path(item.audio).is_file():
            broken[item.id] = f"{item.audio} is missing."
            continue
        try:
            if soundfile.info(item.audio).frames == 0:
                broken[item.id] = f"{item.audio} has no samples."
        except soundfile.LibsndfileError as error:
            broken[item.id] = f"{item.audio} can't be read as audio: {error.error_string}"
    return broken


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive into a folder: plain files only, none outside it.

    Raises
    ------
    ValueError
        At a link, a device or a path that leaves the folder; the sentence names it.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = _inside(folder, member.name)
            if member.isdir():
                continue
            if not member.isfile():
                raise ValueError(
                    f"{archive} holds {member.name!r}, which is not a plain file; don't trust this archive."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
