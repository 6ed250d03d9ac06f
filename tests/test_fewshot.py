"""Few-shot tasks: new to the small LALM, the same on every run, learnable, and without a way round the task."""

from collections import Counter

import librosa
import numpy as np
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import benchmarks, fewshot, sounds
from helpers.benchmarks import anomalies
from helpers.fewshot import (
    KINDS,
    NEW_SOUNDS,
    VOCODERS,
    draw_shots,
    draw_utterance,
    fewshot_items,
    fewshot_vectors,
    render_sound,
    render_speech,
)
from helpers.heads import head_vectors
from helpers.minimmar import QUESTIONS
from helpers.models import load_audio, load_lalm

RATE = sounds.SAMPLING_RATE


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(fewshot, "SIZE", {task: {"train": 3, "test": 2} for task in ("sounds", "spoofing")})


def spectrum(audio):
    """Mean and spread of the log-mel spectrogram over time: what any listener could use."""
    mel = librosa.power_to_db(librosa.feature.melspectrogram(y=audio, sr=RATE, n_mels=40, hop_length=320), top_db=80)
    return np.concatenate([mel.mean(1), mel.std(1), np.abs(np.diff(mel, axis=0)).mean(1)])


def probe(train, test):
    """Accuracy of a linear probe; each set is a list of (class, features)."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    (names, X), (answers, Z) = ((list(column) for column in zip(*part, strict=True)) for part in (train, test))
    return model.fit(np.array(X), names).score(np.array(Z), answers)


def test_new_sounds_are_new():
    asked = {option for question in QUESTIONS.values() for option in question.pool}
    assert len(NEW_SOUNDS) >= 20
    assert not set(NEW_SOUNDS) & (asked | set(sounds.SOUNDS) | set(sounds.INSTRUMENTS))


@pytest.mark.parametrize("task", ["sounds", "spoofing"])
def test_items(few, task, tmp_path):
    train, test = (fewshot_items(task, split, root=tmp_path) for split in ("train", "test"))
    assert not anomalies(train + test)
    assert len({item.id for item in train + test}) == len(train + test)
    assert set(Counter(item.answer for item in train).values()) == {3}
    assert set(Counter(item.answer for item in test).values()) == {2}
    for item in train + test:
        audio, rate = soundfile.read(item.audio)
        assert rate == RATE and 2 <= len(audio) / rate <= 4
        assert 0.01 < np.abs(audio).max() < 0.96 and item.answer in item.choices
    clips = [soundfile.read(item.audio)[0].tobytes() for item in train + test]
    assert len(set(clips)) == len(clips)


def test_clips_are_made_once(few, tmp_path):
    items = fewshot_items("sounds", "test", root=tmp_path)
    made = {item.audio: soundfile.read(item.audio)[0] for item in items}
    first, second = items[0].audio, items[1].audio
    soundfile.write(second, np.zeros(16_000), RATE)  # what is there is taken as it is
    (tmp_path / first).unlink()
    fewshot_items("sounds", "test", root=tmp_path)
    assert np.array_equal(soundfile.read(first)[0], made[first])
    assert not soundfile.read(second)[0].any()


def test_some_of_each_class(few, tmp_path):
    items, every = (fewshot_items("sounds", "train", root=tmp_path, per_class=n) for n in (2, None))
    assert set(Counter(item.answer for item in items).values()) == {2}
    assert [item for item in every if item.extra["index"] < 2] == items
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"3 clips a class in 'train', so per_class can't be {n}"):
            fewshot_items("sounds", "train", root=tmp_path, per_class=n)


def test_vectors_are_computed_once(few, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "CACHE", tmp_path)
    lalm, items = load_lalm("tiny"), fewshot_items("sounds", "test")[:3]
    X, y = fewshot_vectors(lalm, items, "some", batch_size=2)
    assert y.tolist() == [item.answer for item in items]
    own = lalm.prepare([items[2].question], [load_audio(items[2].audio, lalm.sampling_rate)])
    assert np.allclose(X[2], head_vectors(lalm, own)[0], atol=1e-4)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert np.array_equal(fewshot_vectors(lalm, items, "some", batch_size=2)[0], X)
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} and len(made) == 1
    asked, _ = fewshot_vectors(lalm, items, "asked", prompt=lambda item: "What?")
    assert not np.allclose(asked, X, atol=1e-2)
    with pytest.raises(ValueError, match="made with another model, prompt"):
        fewshot_vectors(lalm, items, "some", prompt=lambda item: "What?")


def test_refuses_what_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="There is no 'dev' of 'sounds'"):
        fewshot_items("sounds", "dev", root=tmp_path)
    with pytest.raises(ValueError, match="There is no 'train' of 'birds'"):
        fewshot_items("birds", root=tmp_path)


def test_the_same_seed_makes_the_same_clip():
    assert np.array_equal(render_sound("train", "owl", 3), render_sound("train", "owl", 3))
    for index in range(len(VOCODERS)):
        assert np.array_equal(render_speech("test", "spoof", index), render_speech("test", "spoof", index))


def test_sounds_can_be_told_apart():
    train, test = (
        [(name, spectrum(render_sound(split, name, i))) for name in NEW_SOUNDS for i in range(n)]
        for split, n in (("train", 6), ("test", 3))
    )
    assert 0.4 < probe(train, test) < 0.99  # by a plain listener, of 24; and with room above


# ------------------------------------------------------------------------------------------------------------ spoofing
def test_voices_and_words_of_the_test_are_unseen():
    drawn = {split: [draw_utterance(split, i) for i in range(100)] for split in ("train", "test")}
    for part in (lambda u: {u["voice"]}, lambda u: set(u["words"].split())):
        seen, unseen = (set().union(*map(part, utterances)) for utterances in drawn.values())
        assert len(seen) >= 5 and len(unseen) >= 5 and not seen & unseen


def test_each_utterance_is_there_in_both_kinds(few, tmp_path):
    items = fewshot_items("spoofing", "train", root=tmp_path)
    for source in {item.source for item in items}:
        pair = [item for item in items if item.source == source]
        assert {item.answer for item in pair} == set(KINDS)
        assert len({item.extra["words"] + item.extra["voice"] for item in pair}) == 1
    assert {item.category for item in items} == {"", *VOCODERS}  # real speech has no vocoder


@pytest.mark.parametrize("vocoder", VOCODERS.values(), ids=VOCODERS)
def test_a_vocoder_keeps_what_is_said_and_not_the_waveform(vocoder):
    def mel(audio):
        return librosa.power_to_db(librosa.feature.melspectrogram(y=audio, sr=RATE, n_mels=24), top_db=50)

    for voice in ("m2", "f5"):
        speech = sounds.speech("silver honey market", f"en-us+{voice}")
        again = vocoder(speech)
        assert again.shape == speech.shape and np.isfinite(again).all()
        assert np.corrcoef(mel(speech).ravel(), mel(again).ravel())[0, 1] > 0.85
        assert abs(np.corrcoef(speech, again)[0, 1]) < 0.5


def test_linear_prediction_keeps_the_pitch():
    for voice in ("m2", "f5"):
        speech = sounds.speech("silver honey market", f"en-us+{voice}")
        both = (speech, fewshot.linear_prediction(speech))
        own, again = (np.median(librosa.yin(x, fmin=60, fmax=400, sr=RATE)) for x in both)
        assert abs(np.log2(own / again)) < 0.1  # to about a semitone


def test_spoofs_can_be_told_but_not_by_length_or_level():
    def part(split, n, features):
        return [(kind, features(clips[split, kind, i])) for kind in KINDS for i in range(n)]

    clips = {
        (split, kind, i): render_speech(split, kind, i)
        for split, n in (("train", 30), ("test", 30))
        for kind in KINDS
        for i in range(n)
    }

    def outside(audio):
        frames = np.sort((audio[: len(audio) // 320 * 320].reshape(-1, 320) ** 2).mean(1))
        return [len(audio), np.log(frames[len(frames) // 2 :].mean()), np.log(frames[: len(frames) // 20].mean())]

    assert probe(part("train", 30, spectrum), part("test", 30, spectrum)) > 0.75
    assert abs(probe(part("train", 30, outside), part("test", 30, outside)) - 0.5) < 0.2  # 3 standard errors of 60


# --------------------------------------------------------------------------------------------------------------- shots
def test_shots():
    y = np.array(list("aabbbcccc"))
    for k in (1, 2):
        chosen = draw_shots(y, k, seed=0)
        assert Counter(y[chosen]) == {"a": k, "b": k, "c": k} and len(set(chosen)) == 3 * k
    assert set(draw_shots(y, 1, seed=0)) <= set(draw_shots(y, 2, seed=0))
    assert np.array_equal(draw_shots(y, 2, seed=5), draw_shots(list(y), 2, seed=5))
    assert len({tuple(draw_shots(y, 1, seed)) for seed in range(10)}) > 3
    with pytest.raises(ValueError, match="class 'a' has 2 examples, fewer than 3 shots"):
        draw_shots(y, 3, seed=0)
