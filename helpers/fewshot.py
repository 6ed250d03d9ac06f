"""Two generated few-shot tasks that the small LALM was never trained on: new sounds, and re-synthesised speech.

*sounds*: 24 classes, none of which occurs in `helpers.sounds`, each clip with a faint known sound behind, without which
the task would be too easy to compare anything. *spoofing*: speech as it was made ("bona fide") against
the same speech taken apart and put together again by a vocoder ("spoof"). Both kinds of speech come from eSpeak NG, so
the task is a model of the real one (ASVspoof, MLAAD): what is to be heard is the vocoder, not a person. Voices and
words of the test clips do not occur among the training clips.

The clips are made on first use. Taught in Part III.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import librosa
import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import lfilter
from tqdm import tqdm

from helpers import benchmarks, minimmar, sounds
from helpers.benchmarks import Item
from helpers.heads import stream_head_vectors
from helpers.minimmar import clip, in_a_row, pick, write_clip
from helpers.models import LALM
from helpers.provenance import weights_checksum
from helpers.sounds import SAMPLING_RATE, decay, fade, harmonics, mix, noise, normalise, repeat_until, seconds, sine

SPLITS = {"train": 0, "test": 2}  # in the seed of every clip; 1 was looked at while the tasks were made hard enough
SIZE = {"sounds": {"train": 60, "test": 20}, "spoofing": {"train": 60, "test": 100}}  # clips a class


# ---------------------------------------------------------------------------------------------------------- new sounds
def cow(rng):
    d = rng.uniform(0.8, 0.95)
    f0 = rng.uniform(110, 150) * np.interp(seconds(d), [0, 0.3 * d, d], [0.8, 1.1, 0.9])
    return harmonics(f0, d, [0.3, 0.6, 1, 1, 0.6, 0.5, 0.4, 0.2]) * np.sin(np.pi * seconds(d) / d) ** 0.5


def sheep(rng):
    d, f = rng.uniform(0.6, 0.8), rng.uniform(280, 380)
    tremble = 1 + 0.6 * sine(rng.uniform(8, 11), d)
    return harmonics(f * (1 + 0.03 * sine(9, d)), d, [0.5, 1, 0.9, 0.8, 0.4, 0.5, 0.3]) * tremble


def rooster(rng):
    f, parts = rng.uniform(450, 600), []
    for start, length, low, high in [(0, 0.12, 1, 1.3), (0.17, 0.12, 1.2, 1.5), (0.34, 0.5, 1.9, 1.1)]:
        glide = f * np.linspace(low, high, len(seconds(length)))
        parts.append((start, fade(harmonics(glide, length, [1, 1, 0.8, 0.5, 0.4, 0.2]), 0.02, 0.05)))
    return mix(0.85, parts)


def owl(rng):
    f, parts = rng.uniform(320, 420), []
    for start, length in [(0, 0.2), (0.3, 0.12), (0.48, 0.4)]:
        parts.append((start, fade(harmonics(np.full(len(seconds(length)), f), length, [1, 0.1]), 0.05, 0.08)))
    return mix(0.9, parts)


def frog(rng):
    rate, low = rng.uniform(22, 35), rng.uniform(350, 600)

    def croak(rng):
        return noise(rng, 0.35, low, 2.5 * low) * np.maximum(0, sine(rate, 0.35)) ** 2 * decay(0.35, 0.2)

    return repeat_until(croak, rng, 0.9, lambda r: 0.45)


def cricket(rng):
    f = rng.uniform(4000, 5200)

    def chirp(rng):
        return mix(0.12, [(0.03 * i, sine(f, 0.02) * np.hanning(320)) for i in range(4)])

    gap = rng.uniform(0.18, 0.26)
    return repeat_until(chirp, rng, 0.95, lambda r: gap)


def bee(rng):
    d = 0.95
    f0 = rng.uniform(190, 260) * (1 + 0.05 * sine(rng.uniform(1, 3), d))
    return harmonics(f0, d, 1 / np.arange(1, 20) ** 0.7) * (1 + 0.3 * sine(rng.uniform(2, 5), d))


def horse(rng):
    f, beat = rng.uniform(500, 800), rng.uniform(0.11, 0.14)

    def three_beats(rng):
        hoof = (sine(f, 0.06) + 0.5 * noise(rng, 0.06, 300, 2000)) * decay(0.06, 0.008)
        return mix(4 * beat, [(i * beat, hoof * a) for i, a in enumerate([0.7, 0.8, 1])])

    return repeat_until(three_beats, rng, 0.95, lambda r: 4 * beat)


def heartbeat(rng):
    f, gap = rng.uniform(50, 80), rng.uniform(0.2, 0.26)

    def two_beats(rng):
        beat = sine(np.linspace(1.5 * f, f, 1600), 0.1) * decay(0.1, 0.03)
        return mix(gap + 0.1, [(0, beat), (gap, 0.7 * beat)])

    return repeat_until(two_beats, rng, 0.95, lambda r: 2.6 * gap)


def telephone(rng):
    d, f = 0.8, rng.uniform(1300, 1700)
    high = (seconds(d) * rng.uniform(20, 26)) % 1 > 0.5  # the clapper between two bells
    return harmonics(np.where(high, 1.25 * f, f), d, [1, 0.4, 0.5]) * np.interp(seconds(d), [0, 0.6, d], [1, 1, 0])


def helicopter(rng):
    d = 0.95
    blades = ((seconds(d) * rng.uniform(11, 15)) % 1) ** 3
    return noise(rng, d, 60, 500) * blades + 0.05 * noise(rng, d, 500, 3000)


def steam_train(rng):
    def chuff(rng):
        return noise(rng, 0.2, 600, 3500) * np.interp(seconds(0.2), [0, 0.03, 0.2], [0, 1, 0])

    gap = rng.uniform(0.2, 0.3)
    return repeat_until(chuff, rng, 0.95, lambda r: gap)


def sea_waves(rng):
    d = 0.95
    swell = np.sin(np.pi * seconds(d) / d) ** rng.uniform(1.5, 3)
    return noise(rng, d, 200, 1200) * 0.5 + noise(rng, d, 800, 6000) * swell


def water_drops(rng):
    f = rng.uniform(700, 1100)

    def drop(rng):
        pitch = f * rng.uniform(0.9, 1.1) * np.linspace(1, 2.2, 1280)
        return sine(pitch, 0.08) * decay(0.08, 0.02)

    return repeat_until(drop, rng, 0.9, lambda r: r.uniform(0.2, 0.35))


def fireworks(rng):
    rise, f = rng.uniform(0.35, 0.45), rng.uniform(1200, 1800)
    rocket = fade(sine(np.linspace(f, 2.2 * f, len(seconds(rise))), rise), 0.1, 0.02) * 0.3
    sparks = noise(rng, 0.5, 1500) * (rng.random(8000) > 0.99) * decay(0.5, 0.15) * 4
    return mix(0.95, [(0, rocket), (rise, noise(rng, 0.5, 60, 900) * decay(0.5, 0.06) + sparks)])


def applause(rng):
    bands = [(rng.uniform(700, 1200), rng.uniform(2500, 4500)) for _ in range(8)]
    hands = [noise(rng, 0.03, low, high) * decay(0.03, 0.005) for low, high in bands]
    return repeat_until(lambda r: pick(r, hands), rng, 0.95, lambda r: r.exponential(0.012))


def saw(rng):
    teeth, stroke = rng.uniform(70, 100), rng.uniform(0.25, 0.32)

    def pull(rng):
        d = 0.8 * stroke
        return noise(rng, d, 1200, 5000) * (1 + sine(teeth, d)) * np.sin(np.pi * seconds(d) / d)

    return repeat_until(pull, rng, 0.95, lambda r: stroke)


def hammer(rng):
    partials, gap = rng.uniform(1800, 6500, 6), rng.uniform(0.28, 0.36)

    def hit(rng):
        return sum(sine(f, 0.25) for f in partials) * decay(0.25, 0.03) + 3 * noise(rng, 0.25) * decay(0.25, 0.002)

    return repeat_until(hit, rng, 0.95, lambda r: gap)


def bouncing_ball(rng):
    f, gap, bounce = rng.uniform(250, 400), rng.uniform(0.26, 0.34), rng.uniform(0.72, 0.8)
    times = np.cumsum(gap * bounce ** np.arange(9)) - gap
    hit = (sine(f, 0.07) + 0.2 * noise(rng, 0.07, 800, 3000)) * decay(0.07, 0.01)
    return mix(0.95, [(t, hit * bounce**i) for i, t in enumerate(times) if t < 0.9])


def vacuum_cleaner(rng):
    d, f = 0.95, rng.uniform(380, 480)
    return harmonics(f, d, [1, 0.5, 0.3, 0.3, 0.2, 0.2]) + 1.5 * noise(rng, d, 300, 5000)


def drill(rng):
    d = 0.95
    f0 = rng.uniform(110, 150) * np.interp(seconds(d), [0, 0.3, d], [0.5, 1, 1.05])
    return np.tanh(2 * harmonics(f0, d, 1 / np.arange(1, 30) ** 0.4)) + 0.3 * noise(rng, d, 3000)


def typing(rng):
    def key(rng):
        return noise(rng, 0.03, 1500, rng.uniform(3000, 5000)) * decay(0.03, 0.003) * rng.uniform(0.4, 1)

    return repeat_until(key, rng, 0.95, lambda r: r.uniform(0.06, 0.18))


def laser(rng):
    top, bottom = rng.uniform(3500, 5000), rng.uniform(200, 400)

    def shot(rng):
        return harmonics(np.geomspace(top, bottom, 3200) / 2, 0.2, [1, 0.5]) * decay(0.2, 0.12)

    return repeat_until(shot, rng, 0.85, lambda r: 0.3)


def sonar(rng):
    f = rng.uniform(1000, 1400)
    ping = sine(f, 0.6) * decay(0.6, 0.1)
    return mix(0.95, [(0, ping), (0.35, 0.3 * ping)])


NEW_SOUNDS = {
    function.__name__.replace("_", " "): function
    for function in (
        cow, sheep, rooster, owl, frog, cricket, bee, horse, heartbeat, telephone, helicopter, steam_train, sea_waves,
        water_drops, fireworks, applause, saw, hammer, bouncing_ball, vacuum_cleaner, drill, typing, laser, sonar,
    )
}  # fmt: skip


def render_sound(split: str, name: str, index: int) -> np.ndarray:
    """A clip of 2 to 4 seconds: an event of a class, once or twice, before a fainter known sound. Float64, 16 kHz."""
    rng = np.random.default_rng([3, SPLITS[split], list(NEW_SOUNDS).index(name), index])
    level, made = rng.uniform(-27, -21), [normalise(fade(NEW_SOUNDS[name](rng))) for _ in range(rng.integers(1, 3))]
    parts = in_a_row(rng, [sounds.at_level(event, level) for event in made], (0.05, 0.6))
    behind = sounds.lasting_sound(pick(rng, sounds.LASTING_SOUNDS), rng, rng.uniform(2, 3.5))
    return clip(rng, [(0, sounds.at_level(behind, level - rng.uniform(10, 20))), *parts])


# ------------------------------------------------------------------------------------------------ re-synthesised speech
KINDS = ("bona fide", "spoof")
VOICES = {"train": ["m1", "m3", "m7", "f1", "f2", "f4"], "test": ["m2", "m4", "m8", "f3", "f5"]}
WORDS = {
    "train": ["paper", "window", "river", "garden", "winter", "candle", "mountain", "seven", "yellow", "coffee"],
    "test": ["summer", "table", "flower", "doctor", "market", "silver", "bridge", "nine", "purple", "honey"],
}


def griffin_lim(speech, bands=32):
    """Back from a mel spectrogram of 32 bands, with phases that fit each other (Griffin and Lim 1984), by librosa."""
    shape = {"n_fft": 512, "hop_length": 128}
    filters = librosa.filters.mel(sr=SAMPLING_RATE, n_fft=512, n_mels=bands)  # (bands, frequencies)
    mel = filters @ np.abs(librosa.stft(speech, **shape)) ** 2
    power = np.maximum(np.linalg.pinv(filters) @ mel, 0)
    return librosa.griffinlim(np.sqrt(power), **shape, length=len(speech), random_state=0)


def linear_prediction(speech, order=18, frame=480, hop=160):
    """Every 10 ms a filter (linear prediction, by librosa), excited by pulses at the pitch or, in hisses, by noise."""
    rng, phase = np.random.default_rng(0), 0.0
    padded = np.pad(speech, (frame // 2, frame))
    pitch = librosa.yin(padded, fmin=60, fmax=400, sr=SAMPLING_RATE, frame_length=1024, hop_length=hop)
    window, out = np.hanning(frame), np.zeros(len(padded))
    for i, start in enumerate(range(0, len(padded) - frame, hop)):
        piece, cycles = padded[start : start + frame] * window, phase + np.arange(frame) * pitch[i] / SAMPLING_RATE
        phase = (phase + hop * pitch[i] / SAMPLING_RATE) % 1
        if np.sqrt(np.mean(piece**2)) < 1e-4:
            continue
        is_hiss = np.mean(np.diff(np.signbit(piece))) > 0.25  # crosses zero often
        source = rng.standard_normal(frame) if is_hiss else np.diff(np.floor(cycles), prepend=np.floor(cycles[0]))
        made = lfilter([1], librosa.lpc(piece + 1e-6 * rng.standard_normal(frame), order=order), source)
        out[start : start + frame] += window * made * np.linalg.norm(piece) / (np.linalg.norm(made) + 1e-9)
    return out[frame // 2 :][: len(speech)]


VOCODERS = {"Griffin-Lim": griffin_lim, "linear prediction": linear_prediction}


def draw_utterance(split, index):
    """Voice and words of an utterance; both of its clips, bona fide and spoof, share them."""
    rng = np.random.default_rng([4, SPLITS[split], index])
    return {
        "voice": pick(rng, VOICES[split]),
        "rate": int(rng.integers(13, 19)) * 10,
        "pitch": int(rng.integers(3, 8)) * 10,
        "words": " ".join(pick(rng, WORDS[split], 4)),
        "vocoder": list(VOCODERS)[index % len(VOCODERS)],
    }


def render_speech(split: str, kind: str, index: int) -> np.ndarray:
    """A clip of 2 to 4 seconds with one utterance, "bona fide" or "spoof": float64, 16 kHz.

    Level, start and noise floor are drawn for each clip in the same way, so that none of them gives the kind away.
    """
    facts = draw_utterance(split, index)
    speech = sounds.speech(facts["words"], f"en-us+{facts['voice']}", facts["rate"], facts["pitch"])
    if kind == "spoof":
        speech = VOCODERS[facts["vocoder"]](speech)
    rng = np.random.default_rng([5, SPLITS[split], list(KINDS).index(kind), index])
    return clip(rng, [(rng.uniform(0.05, 0.4), sounds.at_level(speech, rng.uniform(-24, -18)))])


# ------------------------------------------------------------------------------------------------------------ the tasks
def fewshot_items(
    task: str, split: str = "train", root: str | Path | None = None, per_class: int | None = None
) -> list[Item]:
    """The items of a task, class by class; clips are made on first use (about 40 a second) and kept in `root`.

    Parameters
    ----------
    task : {"sounds", "spoofing"}
    split : {"train", "test"}
        Draw examples from "train", 60 clips a class; "test" has 20 a class (sounds) or 100 (spoofing).
    root : path, optional
        By default the cache folder.
    per_class : int, optional
        Only so many clips of each class, the first ones; by default all.

    Returns
    -------
    list of Item
        `answer` is the class; `source` is shared by clips of the same utterance, which are not independent.
    """
    if task not in SIZE or split not in SPLITS:
        raise ValueError(f"There is no {split!r} of {task!r}; tasks are {list(SIZE)}, splits {list(SPLITS)}.")
    size = SIZE[task][split]
    per_class = size if per_class is None else per_class
    if not 1 <= per_class <= size:
        raise ValueError(f"{task!r} has {size} clips a class in {split!r}, so per_class can't be {per_class}.")
    classes, question, render = {
        "sounds": (list(NEW_SOUNDS), "What sound is this?", render_sound),
        "spoofing": (list(KINDS), "Is this audio bona fide or spoof?", render_speech),
    }[task]
    folder = Path(root or benchmarks.CACHE) / f"fewshot-{_edition()}" / task / split
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for name in classes:
        for index in range(per_class):
            key = f"{task}-{split}-{name.replace(' ', '-')}-{index:03d}"
            extra = draw_utterance(split, index) if task == "spoofing" else {}
            items.append(
                Item(
                    id=key,
                    audio=str(folder / f"{key}.wav"),
                    question=question,
                    choices=classes,
                    answer=name,
                    modality="sound" if task == "sounds" else "speech",
                    category=extra.get("vocoder", "") if name == "spoof" else "",
                    source=f"{task}-{split}-{index}" if task == "spoofing" else key,
                    extra={"index": index, **extra},
                )
            )
    missing = [item for item in items if not Path(item.audio).exists()]
    if missing:
        for item in tqdm(missing, desc=f"{task}, {split}: clips", leave=False):
            write_clip(Path(item.audio), render(split, item.answer, item.extra["index"]))
    return items


def fewshot_vectors(
    lalm: LALM, items: Sequence[Item], name: str, prompt: Callable[[Item], str] | None = None, batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Head vectors of items, computed once a model and kept in the cache folder.

    Parameters
    ----------
    lalm : LALM
    items : list of Item
        What is seen, if anything, is `item.extra["frames"]`: frames or the path of a video.
    name : str
        What this set is called on disk; sets with another prompt, or made under steering, need a name of their own.
    prompt : function of an Item, optional
        What the model is asked; by default the item's question, without the options: of three prompts that did best by
        cross-validation on training clips.

    Returns
    -------
    X : memory-mapped ndarray of float32, (n, layers, heads, head_dim)
    y : ndarray of str, (n,)
    """
    folder = Path(benchmarks.CACHE) / f"fewshot-{_edition()}" / f"heads-{weights_checksum(lalm.model)[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    ask = prompt or (lambda item: item.question)
    examples = [(item.id, ask(item), item.audio) for item in items]
    if any("frames" in item.extra for item in items):
        examples = [(*own, item.extra.get("frames")) for own, item in zip(examples, items, strict=True)]
    X = stream_head_vectors(lalm, examples, folder / f"{name}-{len(items)}.npy", batch_size)
    return X, np.array([item.answer for item in items])


def draw_shots(y: ArrayLike, k: int, seed: int) -> np.ndarray:
    """Draw k examples of each class: indices into y, sorted. With the same seed, fewer shots are some of the more."""
    rng, chosen, y = np.random.default_rng(seed), [], np.asarray(y)
    for name, count in zip(*np.unique(y, return_counts=True), strict=True):
        if count < k:
            raise ValueError(f"class {str(name)!r} has {count} examples, fewer than {k} shots.")
        chosen.extend(rng.permutation(np.flatnonzero(y == name))[:k])
    return np.sort(chosen)


def _edition():
    """Short hash of the code that makes the clips: changed code makes new clips, in a new folder."""
    code = b"".join(Path(module).read_bytes() for module in (__file__, minimmar.__file__, sounds.__file__))
    return hashlib.sha256(code).hexdigest()[:12]
