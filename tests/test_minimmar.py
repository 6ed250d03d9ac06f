"""MiniMMAR: clips are what they claim to be, and no item can be answered from its text."""

from collections import Counter, defaultdict

import librosa
import numpy as np
import pytest
import soundfile

from helpers import minimmar, sounds
from helpers.benchmarks import anomalies, checksum, load_benchmark
from helpers.minimmar import ITEMS_PER_QUESTION, QUESTIONS, SCENES, draw_item, render_item
from helpers.statistics import chance_interval

RATE = sounds.SAMPLING_RATE


@pytest.fixture(scope="module")
def items():
    return {split: load_benchmark("minimmar", split=split) for split in ITEMS_PER_QUESTION}


def test_has_the_shape_of_mmar(items):
    assert len(items["test"]) >= 1000
    assert len(QUESTIONS) >= 12
    assert {item.modality for item in items["test"]} == {scene.modality for scene in SCENES.values()}
    assert len({item.modality for item in items["test"]}) == 7
    assert {item.category.split()[0] for item in items["test"]} == {"Signal", "Perception", "Semantic", "Cultural"}
    assert {len(item.choices) for item in items["test"]} == {2, 3, 4, 5}
    assert not anomalies(items["test"])


def test_every_item_has_one_answer_and_two_hints(items):
    for item in items["dev"] + items["test"]:
        assert item.choices.count(item.answer) == 1
        assert item.extra["correct_hint"] == item.answer
        assert item.extra["misleading_hint"] in set(item.choices) - {item.answer}


def test_text_is_the_same_on_every_machine(items):
    for split, (text, _) in minimmar.CHECKSUMS.items():
        assert checksum(items[split]) == text


def test_clips_sound_the_same_on_every_machine(items):
    for split, (_, audio) in minimmar.CHECKSUMS.items():
        assert minimmar.audio_checksum(items[split]) == audio


def test_splits_share_no_clip(items):
    clips = [{item.extra["sha256"] for item in items[split]} for split in items]
    assert not clips[0] & clips[1]
    assert len(clips[1]) == len(items["test"])


def test_clips_have_the_stated_length_rate_and_level(items):
    for item in items["test"]:
        audio, rate = soundfile.read(item.audio)
        assert rate == RATE and audio.ndim == 1
        assert 2.0 <= len(audio) / rate <= minimmar.LONGEST
        assert np.abs(audio).max() < 0.96, f"{item.id} is clipped"
        assert 20 * np.log10(np.sqrt(np.mean(audio**2))) > -45, f"{item.id} is too quiet to hear"


def test_a_lost_or_broken_clip_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setitem(ITEMS_PER_QUESTION, "dev", 1)
    first = minimmar.minimmar_items("dev", tmp_path)
    broken, lost = (next(tmp_path.rglob(f"{item.id}.wav")) for item in first[:2])
    whole = broken.read_bytes()
    broken.write_bytes(b"not a sound")
    lost.unlink()
    again = minimmar.minimmar_items("dev", tmp_path)
    assert broken.read_bytes() == whole and lost.exists()
    assert again == first


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="no split 'train'.*dev, test"):
        minimmar.minimmar_items("train")


def test_speech_does_not_depend_on_what_was_said_before():
    alone = sounds.speech.__wrapped__("lion", "en-us+f2")
    sounds.speech.__wrapped__("elephant", "fr+m3", 180, 30)
    np.testing.assert_array_equal(sounds.speech.__wrapped__("lion", "en-us+f2"), alone)


def test_speech_names_what_is_wrong(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no voice 'martian'"):
        sounds.speech("hello", "martian")
    import espeakng_loader

    with monkeypatch.context() as patch:
        patch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path))
        with pytest.raises(RuntimeError, match="found no voices"):
            sounds.speech("something old")
    monkeypatch.setattr(espeakng_loader, "get_library_path", lambda: "/nowhere/libespeak.so")
    with pytest.raises(RuntimeError, match="pip install espeakng-loader"):
        sounds.speech("something new")


def test_a_sound_or_instrument_that_is_not_there_is_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no sound 'moo'.*dog bark"):
        sounds.sound("moo", rng)
    with pytest.raises(ValueError, match="no instrument 'kazoo'.*piano"):
        sounds.note("kazoo", 60, 0.5, rng)


# ------------------------------------------------------------------------------------------ clips by measurement
def pitch(audio):
    """Median fundamental frequency (Hz) of a note, by librosa's pYIN."""
    f0, voiced, _ = librosa.pyin(audio.astype(np.float32), fmin=80, fmax=1200, sr=RATE)
    return np.median(f0[voiced])


@pytest.mark.parametrize("seed", range(3))
def test_flaws_are_heard_between_the_words(seed):
    facts = minimmar.draw_recording(np.random.default_rng(seed))
    clips = {
        flaw: minimmar.render_recording(np.random.default_rng(seed), facts | {"flaw": flaw}) for flaw in minimmar.FLAWS
    }
    frames = {flaw: clip[: len(clip) // 320 * 320].reshape(-1, 320) for flaw, clip in clips.items()}  # of 20 ms
    power = (frames["nothing"] ** 2).mean(1)
    pauses = power <= np.quantile(power, 0.2)
    low, high, crest = {}, {}, {}
    for flaw in clips:
        x = frames[flaw][: len(pauses)][pauses]
        spectrum = 10 * np.log10((np.abs(np.fft.rfft(x * np.hanning(320))) ** 2).mean(0))  # 50 Hz a bin
        low[flaw], high[flaw] = spectrum[1:5].mean(), spectrum[80:].mean()
        crest[flaw] = np.abs(x).max() / np.sqrt((x**2).mean())
    assert high["a hiss"] > high["nothing"] + 10 and low["a hiss"] < low["nothing"] + 10
    assert low["a hum"] > low["nothing"] + 10 and high["a hum"] < high["nothing"] + 10
    assert crest["crackle"] > 10 > max(crest["nothing"], crest["a hiss"], crest["a hum"])


@pytest.mark.parametrize("instrument", sounds.INSTRUMENTS)
@pytest.mark.parametrize("midi", [57, 66])
def test_notes_have_the_stated_pitch(instrument, midi):
    note = sounds.note(instrument, midi, 0.6, np.random.default_rng(0))
    assert abs(12 * np.log2(pitch(note) / sounds.frequency(midi))) < 0.5  # within a quarter tone


@pytest.mark.parametrize("sex, low, high", [("man", 60, 130), ("woman", 130, 260)])
def test_voices_have_the_stated_register(sex, low, high):
    rng = np.random.default_rng(0)
    spoken = minimmar.say(rng, "banana", minimmar.voice(rng, sex))
    assert low < pitch(spoken) < high


def onsets(audio):
    """Seconds at which something begins, by librosa."""
    return librosa.onset.onset_detect(
        y=audio.astype(np.float32), sr=RATE, hop_length=160, units="time", backtrack=False, delta=0.1, wait=8
    )


def test_tempo_changes_as_stated():
    found = Counter()
    for index in range(30):
        facts, *_ = draw_item("tempo", "test", index)
        if facts["instrument"] not in ("piano", "guitar"):
            continue  # soft attacks: librosa hears their onsets too late, or twice
        gaps = np.diff(onsets(render_item("tempo", "test", index)))[-6:]  # seven notes; the noise floor may come first
        ratio = gaps[-1] / gaps[0]
        heard = "it speeds up" if ratio < 0.7 else "it slows down" if ratio > 1.4 else "it stays the same"
        found[heard == facts["tempo"]] += 1
    assert found[True] >= 5 and found[False] == 0, found


def bursts(audio, gap=0.06):
    """How often the level rises from silence, with at least `gap` seconds of silence before."""
    frames = audio[: len(audio) // 160 * 160].reshape(-1, 160)
    loud = np.sqrt((frames**2).mean(1)) > 0.15 * np.sqrt((frames**2).mean(1)).max()
    starts = np.flatnonzero(np.diff(np.r_[0, loud.astype(int)]) == 1)
    ends = np.flatnonzero(np.diff(np.r_[loud.astype(int), 0]) == -1)
    return 1 + int((starts[1:] - ends[:-1] > gap * 100).sum())


def test_repeated_sounds_are_as_many_as_stated():
    for index in range(20):
        facts, *_ = draw_item("sound count", "test", index)
        assert bursts(render_item("sound count", "test", index)) == facts["count"], facts


def test_the_louder_sound_is_louder():
    for index in range(10):
        facts, *_ = draw_item("louder", "test", index)
        audio = render_item("louder", "test", index)
        level = np.convolve(audio**2, np.ones(1600) / 1600, "same")
        heard = np.flatnonzero(level > level.max() / 200)  # within 23 dB: both sounds, not the noise floor
        assert (np.argmax(level) < heard[[0, -1]].mean()) == (facts["louder"] == "the first"), facts


# --------------------------------------------------------------------------------- nothing can be had from the text
def guesser_accuracy(items, guess):
    return np.mean([guess(item) == item.answer for item in items])


def test_gold_positions_are_balanced(items):
    for n in (2, 3, 4, 5):
        of_this_length = [item for item in items["test"] if len(item.choices) == n]
        positions = Counter(item.choices.index(item.answer) for item in of_this_length)
        expected = len(of_this_length) / n
        assert all(abs(positions[i] - expected) <= 0.1 * expected + 2 for i in range(n)), positions


def test_no_text_rule_beats_chance(items):
    seen, hinted = defaultdict(Counter), Counter()
    for item in items["dev"]:
        seen[item.question][item.answer] += 1
        hinted[item.answer] += 1
    rules = {
        "always the first": lambda item: item.choices[0],
        "always the last": lambda item: item.choices[-1],
        "the longest": lambda item: max(item.choices, key=len),
        "the shortest": lambda item: min(item.choices, key=len),
        "most frequent for this question": lambda item: max(item.choices, key=lambda c: seen[item.question][c]),
        "most frequent of all": lambda item: max(item.choices, key=lambda c: hinted[c]),
        "in the question": lambda item: max(item.choices, key=lambda c: c in item.question),
    }
    low, high = chance_interval([len(item.choices) for item in items["test"]])
    for name, rule in rules.items():
        assert low <= guesser_accuracy(items["test"], rule) <= high, name


def test_the_rules_would_be_caught():
    """The check above can fail: an answer that is always first is found."""
    low, high = chance_interval([4] * 1000)
    assert not low <= 0.395 <= high  # MMAU test-mini's always-A
