"""The code under "Your own clips, by tonight", as it stands on the page, on a made folder and the small model."""

import re

import numpy as np
import pytest
import soundfile

from helpers import models
from helpers.models import load_lalm
from tools import build

RATE, LABELS, N_SPEAKERS, N_CLIPS = 16000, {"low": 300, "high": 1200}, 10, 4


def code():
    page = (build.ROOT / "book" / "few-shot-data.md").read_text("utf-8")
    section = re.search(r"\(your-own-clips\)=\n(.*?)\n\([\w-]+\)=\n", page, re.DOTALL)[1]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


def make_clips(folder):
    """Noisy tones of half a second: their pitch tells the label, a hum below tells the speaker."""
    rng, time, lines = np.random.default_rng(0), np.arange(RATE // 2) / RATE, ["filename,label,speaker"]
    folder.mkdir()
    for speaker in range(N_SPEAKERS):
        hum = 0.02 * np.sin(2 * np.pi * (100 + 10 * speaker) * time)
        for label, pitch in LABELS.items():
            for take in range(N_CLIPS):
                tone = 0.1 * np.sin(2 * np.pi * pitch * rng.uniform(0.7, 1.4) * time)
                name = f"{speaker}-{label}-{take}.wav"
                soundfile.write(folder / name, tone + hum + 0.05 * rng.standard_normal(len(time)), RATE)
                lines.append(f"{name},{label},{speaker}")
    soundfile.write(folder.parent / "new.wav", tone, RATE)  # the last one, without its noise
    (folder / "clips.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # as spreadsheets write it


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the code leaves behind: its names, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("own"), []
    make_clips(folder / "my-clips")
    tell = {"__name__": "__main__", "print": lambda text: printed.append(text)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(models, "load_lalm", lambda name: load_lalm("tiny"))
        exec(compile(code(), "few-shot-data.md", "exec"), tell)
    return tell | {"folder": folder / "my-clips"}, printed


def test_it_is_short():
    lines = [line for line in code().splitlines() if line.strip() and not re.match(r"(import|from) ", line)]
    assert len(lines) < 50 and max(map(len, lines)) <= 92


def test_vectors_are_on_disk_and_no_speaker_on_both_sides(run):
    names, _ = run
    assert np.load(names["folder"] / "heads.npy", mmap_mode="r").shape == (N_SPEAKERS * 2 * N_CLIPS, 8, 8, 16)
    train, test, speakers = (names[name] for name in ("train", "test", "speakers"))
    assert not set(speakers[train]) & set(speakers[test])
    assert sorted([*train, *test]) == list(range(len(speakers)))
    asked = np.isfinite(names["right"](names["rivals"]["CALM"], 5))  # (draws, clips of train)
    assert asked.any(1).all() and len({row.tobytes() for row in asked}) > 1
    for row in asked:
        assert not set(speakers[train][row]) & set(speakers[train][~row])


def test_it_tells_what_there_is_to_tell(run):
    names, printed = run
    rivals = ["SAV", "CALM", "logistic regression"]
    line = re.compile(r"(.+): (-?[\d.]+) \((-?[\d.]+) to (-?[\d.]+)\), n = (\d+)")
    told = [line.fullmatch(text).groups() for text in printed[:-1]]
    extra = ["logistic less CALM", "CALM, shuffled labels"]
    assert [what for what, *_ in told[:-1]] == [f"{k} shots, {what}" for k in (5, 20) for what in rivals + extra]
    for what, mean, low, high, n in told:
        mean, low, high = float(mean), float(low), float(high)
        assert low <= mean <= high and int(n) == len(names["test" if "tested" in what else "train"])
        if "shuffled" in what:
            assert low < 0.5 < high
        elif "less" not in what:
            assert mean > 0.85
    assert told[-1][0] in [f"{rival}, tested" for rival in rivals]


def test_what_was_kept_knows_a_new_clip(run):
    names, printed = run
    assert printed[-1] == list(LABELS)[-1]
    assert (names["kept"]["model"], names["kept"]["question"]) == (names["name"], names["question"])
    X = names["X"][: 2 * N_CLIPS]
    assert (names["kept"]["classifier"].predict(X) == names["classifier"].predict(X)).all()
