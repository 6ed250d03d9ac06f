"""Real few-shot corpora from their own folders: ESC-50, VGGSound, AudioSet, ASVspoof 2019 LA and MLAAD.

Nothing is downloaded, nothing copied: `load_corpus` reads the authors' tables and finds the clips that they name.
The page "Few-shot data" says what the corpora are; they have not been run for this book.
"""

import csv
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from helpers.benchmarks import Item
from helpers.models import VIDEO

AUDIO = (".wav", ".flac", ".ogg", ".mp3")

WHAT_SOUND = "What sound is this?"
WHAT_HAPPENS = "What happens in this video?"
SPOOFED = "Is this audio bonafide or spoofed?"


def load_corpus(
    name: str,
    root: str | Path,
    split: str | None = None,
    fold: int | None = None,
    classes: Iterable[str] | None = None,
    clips: str | Path | None = None,
    skip_missing: bool | None = None,
) -> list[Item]:
    """The items of a corpus in the order of its tables: for `fewshot_vectors`, `stream_head_vectors`, `draw_shots`.

    Parameters
    ----------
    name : {"esc-50", "vggsound", "vggsound-video", "audioset", "asvspoof-2019-la", "mlaad"}
        Which; `read_esc50` and its neighbours say what has to lie in the folder.
    root : path
        The corpus's own folder.
    split : str, optional
        "train" or "test" (ESC-50, VGGSound), "train" or "eval" (AudioSet), "train", "dev" or "eval" (ASVspoof), a
        language such as "en" (MLAAD). By default everything.
    fold : int, optional
        ESC-50 only, and there with each split: the fold, 1 to 5, that is "test"; the other four are "train".
    classes : names, optional
        Only these, named as in `choices`; by default all.
    clips : path, optional
        Where the clips are, if not in `root`. MLAAD: where the bona fide ones are (M-AILABS).
    skip_missing : bool, optional
        Leave out clips that are not there, with a warning that counts them, or refuse. By default they are left out of
        VGGSound and AudioSet, whose videos vanish, and refused elsewhere.

    Returns
    -------
    list of Item
        `answer` is the class, `choices` all classes, `source` what clips share that are not independent (recording,
        video, speaker, text), `extra` the rest of the row; of "vggsound-video", `extra["frames"]` is the video's path,
        and so is `audio`.

    Raises
    ------
    ValueError, FileNotFoundError
        In one sentence: what is wrong, in which file and line, and what to do.
    """
    if name not in CORPORA:
        raise ValueError(f"There is no corpus {name!r}; known are {', '.join(CORPORA)}.")
    read, splits, question = CORPORA[name]
    if splits and split not in (None, *splits):
        raise ValueError(f"{name} has no split {split!r}, only {', '.join(splits)}.")
    if (fold is not None) != (name == "esc-50" and split is not None):
        raise ValueError("fold=1 to 5 goes with split='train' or 'test' of esc-50, and with nothing else.")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"There is no folder {root}: pass the one that {name} was unpacked into.")

    chosen = None if classes is None else set(classes)
    options = {"fold": fold} if name == "esc-50" else {"classes": chosen} if name == "audioset" else {}
    choices, rows = read(Path(root), split, None if clips is None else Path(clips), **options)
    unknown = sorted((chosen or set()) - set(choices))
    if unknown:
        raise ValueError(f"{name} has no class {unknown[0]!r}; it has {', '.join(choices[:5])}, … ({len(choices)}).")
    choices = [choice for choice in choices if chosen is None or choice in chosen]
    rows = [row for row in rows if row["answer"] in choices]
    skip = name in ("vggsound", "vggsound-video", "audioset") if skip_missing is None else skip_missing
    return _items(name, _present(name, rows, skip), choices, question)


# --------------------------------------------------------------------------------------- one reader a corpus
# Each takes (root, split, clips) and returns the names of all classes and the rows: id, audio (a path, None where there
# is none), answer, source, category, extra.


def read_esc50(root, split, clips, fold):
    """`meta/esc50.csv` and `audio/*.wav`; the layout of https://github.com/karolpiczak/ESC-50.

    Fragments of one recording of Freesound (`src_file`) lie in one fold.
    """
    if fold not in (None, 1, 2, 3, 4, 5):
        raise ValueError(f"ESC-50 has the folds 1 to 5, not {fold!r}.")
    needs, number, rows = ("filename", "fold", "target", "category", "src_file"), {}, []
    for place, row in _table(root / "meta" / "esc50.csv", needs=needs):
        own = _number(place, row, "fold")
        if own not in (1, 2, 3, 4, 5):
            raise ValueError(f"{place} has fold {row['fold']!r}, not one of 1 to 5; fetch the table again.")
        answer = row["category"].replace("_", " ")
        number[answer] = _number(place, row, "target")
        if split is None or (own == fold) == (split == "test"):
            audio = _below(clips or root / "audio", row["filename"], place)
            rows.append(_row(audio.stem, audio, answer, row["src_file"], row | {"fold": int(own)}))
    return sorted(number, key=number.get), rows


def read_vggsound(root, split, clips, endings=AUDIO):
    """`vggsound.csv` without a header (video, start second, label, split), of https://github.com/hche11/VGGSound.

    The authors give no clips. Found are files anywhere below the folder that are called, with the start in seconds,
    `<video>_<000030>` (as the authors' example), in milliseconds, `<video>_<30000>_<40000>` (as by audiosetdl), or
    `<video>` alone, which must be the clip and not the whole video.
    """
    columns, found = ("video", "start", "label", "split"), _files_by_name(clips or root)
    names, rows = set(), []
    for place, row in _table(root / "vggsound.csv", columns):
        start = _number(place, row, "start")
        if row["split"] not in ("train", "test"):
            raise ValueError(f"{place} has the split {row['split']!r}, neither train nor test; fetch the table again.")
        names.add(row["label"])
        if split in (None, row["split"]):
            own = f"{row['video']}_{int(start):06d}"
            in_milliseconds = f"{row['video']}_{1000 * start:.0f}_{1000 * start + 10_000:.0f}"
            audio = _find(found, own, in_milliseconds, row["video"], endings=endings)
            rows.append(_row(own, audio, row["label"], row["video"], row | {"start": start}))
    return sorted(names), rows


def read_vggsound_video(root, split, clips):
    """The same clips as videos, .mp4 or the like: what is heard and what is seen come from one file."""
    names, rows = read_vggsound(root, split, clips, endings=VIDEO)
    for row in rows:
        row["extra"]["frames"] = str(row["audio"])
    return names, rows


def read_audioset(root, split, clips, classes):
    """`balanced_train_segments.csv`, `eval_segments.csv` and `class_labels_indices.csv`; 10 seconds of a video each.

    The format is that of https://research.google.com/audioset/download.html: three lines of comment, then video, start,
    end and the labels' ids in one pair of quotes. A segment has one or more labels; here a segment is an item if it has
    **exactly one of the chosen classes**, and all its labels are in `extra["labels"]`. Those with several are left out,
    and counted in a warning. Found are files anywhere below the folder called `<video>`, `Y<video>` (PANNs),
    `<video>_<30000>` or `<video>_<30000>_<40000>` (milliseconds).
    """
    needs = ("mid", "display_name")
    names = {row["mid"]: row["display_name"] for _, row in _table(root / "class_labels_indices.csv", needs=needs)}
    found, rows, several = _files_by_name(clips or root), [], 0
    tables = {"train": "balanced_train_segments.csv", "eval": "eval_segments.csv"}
    for part in tables if split is None else (split,):
        for place, row in _table(root / tables[part], ("video", "start", "end", "labels")):
            mids = [mid.strip() for mid in row["labels"].split(",") if mid.strip()]
            unknown = [mid for mid in mids if mid not in names]
            if unknown:
                raise ValueError(f"{place} has the label {unknown[0]!r}, which is not in class_labels_indices.csv.")
            labels = list(dict.fromkeys(names[mid] for mid in mids))
            among = [label for label in labels if classes is None or label in classes]
            several += len(among) > 1
            if len(among) == 1:
                start, end = (_number(place, row, column) for column in ("start", "end"))
                own, video = f"{row['video']}_{1000 * start:.0f}", row["video"]
                audio = _find(found, video, f"Y{video}", own, f"{own}_{1000 * end:.0f}")
                extra = {"video": video, "start": start, "end": end, "labels": labels, "split": part}
                rows.append(_row(own, audio, among[0], video, extra))
    if several:
        warnings.warn(f"Left out of audioset, as they have several of the classes: {several} segments.", stacklevel=3)
    return list(dict.fromkeys(names.values())), rows


def read_asvspoof(root, split, clips):
    """The countermeasure protocols and flac files of https://datashare.ed.ac.uk/handle/10283/3336, unpacked (`LA/`).

    `ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.train.trn.txt` (`dev.trl`, `eval.trl`) has on each line: speaker,
    file, "-", attack ("-" for bona fide) and "bonafide" or "spoof"; clips are in `ASVspoof2019_LA_train/flac/`.
    """
    root, rows = (root / "LA" if (root / "LA").is_dir() else root), []
    protocols = {"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"}
    for part in protocols if split is None else (split,):
        table = root / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{protocols[part]}.txt"
        for place, row in _table(table, ("speaker", "file", "-", "attack", "key"), delimiter=" "):
            if row["key"] not in ("bonafide", "spoof"):
                raise ValueError(f"{place} ends in {row['key']!r}, neither bonafide nor spoof; fetch it again.")
            audio = _below(clips or root / f"ASVspoof2019_LA_{part}" / "flac", f"{row['file']}.flac", place)
            attack = "" if row["attack"] == "-" else row["attack"]
            extra = {"speaker": row["speaker"], "attack": attack, "split": part}
            rows.append(_row(row["file"], audio, row["key"], row["speaker"], extra, category=attack))
    return ["bonafide", "spoof"], rows


def read_mlaad(root, split, clips):
    """`fake/<language>/<model>/meta.csv`, columns divided by "|", the synthetic clips beside it; M-AILABS for the rest.

    Columns as https://huggingface.co/datasets/mueller91/MLAAD has them, by the public code that reads it: path,
    original_file, language, is_original_language, ... Each synthetic clip reads the text of `original_file`, a path in
    M-AILABS (`en_US/by_book/<gender>/<reader>/<book>/wavs/<clip>.wav`), which is the bona fide item, once however many
    models read it; `source` is that path. Rows in languages that M-AILABS lacks are left out: there the language would
    give the class away. Of `path` only the file name is used.
    """
    folder, rows, seen = root / "fake", [], set()
    tables = sorted(folder.glob("*/*/meta.csv"))
    tables = [table for table in tables if split in (None, table.parent.parent.name)]
    if not tables:
        raise FileNotFoundError(f"{folder / (split or '*')} has no <model>/meta.csv: put the files of MLAAD there.")
    needs = ("path", "original_file", "language", "is_original_language", "model_name")
    for table in tables:
        # Quotes are left alone: one that has no partner, in a transcript, would swallow the rows after it.
        for place, row in _table(table, needs=needs, delimiter="|", quoting=csv.QUOTE_NONE):
            if row["is_original_language"].lower() not in ("true", "false"):
                raise ValueError(
                    f"{place}: is_original_language is {row['is_original_language']!r}, not True or False."
                )
            if row["is_original_language"].lower() == "false":
                continue
            text = row["original_file"]
            fake = _below(table.parent, PurePosixPath(row["path"]).name, place)
            original = _below(clips or root, text, place)
            own = fake.relative_to(folder).with_suffix("").as_posix()
            rows.append(_row(own, fake, "spoof", text, row, category=row["model_name"]))
            if text not in seen:
                extra = {"language": row["language"], "original_file": text}
                rows.append(_row(str(PurePosixPath(text).with_suffix("")), original, "bonafide", text, extra))
                seen.add(text)
    if not rows:
        raise ValueError(
            f"MLAAD has no bona fide speech in {split!r}, since M-AILABS has none; choose another language."
        )
    return ["bonafide", "spoof"], rows


CORPORA = {  # name -> reader, splits (None: languages), the question, as in CALM's public code but without options
    "esc-50": (read_esc50, ("train", "test"), WHAT_SOUND),
    "vggsound": (read_vggsound, ("train", "test"), WHAT_SOUND),
    "vggsound-video": (read_vggsound_video, ("train", "test"), WHAT_HAPPENS),
    "audioset": (read_audioset, ("train", "eval"), WHAT_SOUND),
    "asvspoof-2019-la": (read_asvspoof, ("train", "dev", "eval"), SPOOFED),
    "mlaad": (read_mlaad, None, SPOOFED),
}


# ------------------------------------------------------------------------------------------------- rows and files
def _row(own, audio, answer, source, extra, category=""):
    return {"id": own, "audio": audio, "answer": answer, "source": source, "extra": extra, "category": category}


def _table(path: Path, columns=None, needs=(), delimiter=",", quoting=csv.QUOTE_MINIMAL) -> Iterator[tuple[str, dict]]:
    """(file and line, row) of each row that is no comment; without `columns` the first row names them."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put the corpus's own table there.")
    needs = columns or needs
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
            for fields in reader:
                fields = [field.strip() for field in fields if field or delimiter != " "]
                if not any(fields) or fields[0].startswith("#"):
                    continue
                place = f"{path}, line {reader.line_num},"
                if columns is None:
                    columns = fields
                    if not set(needs) <= set(columns):
                        raise ValueError(f"{place} names the columns {columns}; needed are {', '.join(needs)}.")
                    continue
                if len(fields) < len(columns) or (len(fields) > len(columns) and quoting != csv.QUOTE_NONE):
                    raise ValueError(
                        f"{place} has {len(fields)} columns, not {len(columns)} ({', '.join(columns)}); "
                        "mend the row, or fetch the file again."
                    )
                row = dict(zip(columns, fields, strict=False))
                empty = [column for column in needs if not row[column]]
                if empty:
                    raise ValueError(f"{place} has no {empty[0]}; mend the row, or fetch the file again.")
                yield place, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} can't be read as a table in UTF-8 ({error}); fetch it again.") from None


def _number(place, row, column):
    try:
        value = float(row[column])
    except ValueError:
        value = -1
    if not 0 <= value < 1e9:
        raise ValueError(f"{place} has {row[column]!r} for {column}, which is no number of 0 or more; mend the row.")
    return value


def _below(folder: Path, name: str, place: str) -> Path:
    """`folder/name`, where the name, which comes from a download, may not climb out."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or Path(name).is_absolute() or parts[0] == "/" or ":" in parts[0]:
        raise ValueError(f"{place} names the file {name!r}, which leads out of {folder}; nothing is read there.")
    return folder.joinpath(*parts)


def _files_by_name(folder: Path) -> dict[str, list[Path]]:
    """File name without its ending -> the sounds and videos that are called so."""
    found = defaultdict(list)
    for where, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            if ending.lower() in AUDIO + VIDEO:
                found[stem].append(Path(where, name))
    return found


def _find(found: dict[str, list[Path]], *stems: str, endings=AUDIO) -> Path | None:
    """The file with one of these endings; else another, so that `_present` can tell of it."""
    paths = next((found[stem] for stem in stems if stem in found), [])
    fit = [path for path in paths if path.suffix.lower() in endings]
    if len(fit) > 1:
        raise ValueError(f"{fit[0]} and {fit[1]} are the same clip; pass clips=<the folder to be used>.")
    return next(iter(fit or paths), None)


def _present(name: str, rows: list[dict], skip: bool) -> list[dict]:
    """The rows whose clips are there; the others are told, and refused unless they may be skipped."""
    endings = VIDEO if name == "vggsound-video" else AUDIO
    there = [bool(row["audio"]) and row["audio"].suffix.lower() in endings and row["audio"].is_file() for row in rows]
    missing = [row for row, is_there in zip(rows, there, strict=True) if not is_there]
    if missing:
        told = f"{len(missing)} of {len(rows)} clips of {name} are missing: "
        told += ", ".join(str(row["audio"] or row["id"]) for row in missing[:3]) + (", …" if len(missing) > 3 else "")
        others = sum(bool(row["audio"]) and row["audio"].is_file() for row in missing)
        if others and endings == AUDIO:
            told += f"; {others} are there only as video: take the sound out, e.g. ffmpeg -i clip.mp4 -ac 1 clip.wav"
        elif others:
            told += f"; {others} are there only as sound: for that, load 'vggsound'"
        if not skip or len(missing) == len(rows):
            raise FileNotFoundError(
                f"{told}; put them there, pass clips=<their folder>, or skip_missing=True for some."
            )
        warnings.warn(f"{told}; they are left out.", stacklevel=3)
    return [row for row, is_there in zip(rows, there, strict=True) if is_there]


def _items(name: str, rows: list[dict], choices: list[str], question: str) -> list[Item]:
    left = {row["answer"] for row in rows}
    if len(left) < 2:
        raise ValueError(f"{name} has clips of {sorted(left) or 'no class'} here; a few-shot task needs two classes.")
    items, seen = [], Counter()
    for row in rows:
        seen[row["id"]] += 1
        repeat = f"#{seen[row['id']]}" if seen[row["id"]] > 1 else ""  # keys of `stream_head_vectors` must differ
        modality = "speech" if question == SPOOFED else "sound"
        fields = {**row, "id": row["id"] + repeat, "audio": str(row["audio"])}
        items.append(Item(question=question, choices=choices, modality=modality, **fields))
    return items
