"""MiniMMAR: a generated benchmark in MMAR's schema. Clips of 2 to 4 seconds, multiple choice, no download.

A *scene* draws facts (which sounds, in which order, which word ...) and renders them to a waveform; a *question* turns
the facts into an item with options. Facts, options and gold position are drawn so that the text alone says nothing
about the answer: answers are balanced within each question, distractors come from the same pool as the answer, and
gold positions take turns. Taught in the chapter *Quickstart*; the real MMAR: arXiv 2505.13032.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from helpers import benchmarks, sounds
from helpers.sounds import INSTRUMENTS, LASTING_SOUNDS, MEN, PHRASES, SHORT_SOUNDS, SOUNDS, WOMEN, WORDS

SPLITS = {"train": 0, "dev": 1, "test": 2}  # the first number of every random seed
ITEMS_PER_QUESTION = {"dev": 20, "test": 40}
LONGEST = 4.0  # seconds
NUMBERS = ["one", "two", "three", "four", "five"]
ALL_WORDS = [word for words in WORDS.values() for word in words]
KIND_OF_WORD = {word: kind for kind, words in WORDS.items() for word in words}


# ------------------------------------------------------------------------------------------------ helpers of scenes
def pick(rng, options, n=None):
    """One of `options` (or `n` different ones, as a list)."""
    if n is None:
        return options[int(rng.integers(len(options)))]
    return [options[int(i)] for i in rng.permutation(len(options))[:n]]


def in_a_row(rng, pieces, gap):
    """(start, piece) pairs: pieces one after the other, `gap` = (least, most) seconds of silence in between."""
    start, parts = rng.uniform(0.05, 0.3), []
    for piece in pieces:
        parts.append((start, piece))
        start += len(piece) / sounds.SAMPLING_RATE + rng.uniform(*gap)
    return parts


def clip(rng, parts, shortest=2.0):
    """Parts mixed over a faint noise floor; 2 to 4 seconds, peak at most 0.95."""
    end = max(start + len(part) / sounds.SAMPLING_RATE for start, part in parts)
    length = round(min(LONGEST, max(shortest, end + rng.uniform(0.05, 0.4))), 2)
    floor = sounds.at_level(sounds.noise(rng, length), rng.uniform(-65, -48))
    audio = sounds.mix(length, [(0, floor), *parts])
    return audio * min(1.0, 0.95 / np.max(np.abs(audio)))


def event(rng, name, level=None):
    return sounds.at_level(sounds.sound(name, rng), rng.uniform(-25, -19) if level is None else level)


def voice(rng, sex=None):
    """A speaker: an eSpeak NG variant, a rate and a pitch, fixed for the clip."""
    variants = {"man": MEN, "woman": WOMEN}[sex or pick(rng, ["man", "woman"])]
    return {
        "variant": pick(rng, variants),
        "rate": int(rng.integers(13, 19)) * 10,
        "pitch": int(rng.integers(3, 8)) * 10,
    }


def say(rng, text, speaker, language="en-us", level=None):
    x = sounds.speech(text, f"{language}+{speaker['variant']}", speaker["rate"], speaker["pitch"])
    return sounds.at_level(x, rng.uniform(-24, -18) if level is None else level)


def notes(rng, instrument, pitches, durations, level=None):
    """Notes in a row; `durations` are the times from onset to onset, in seconds."""
    level = rng.uniform(-25, -19) if level is None else level
    starts = np.cumsum([0, *durations[:-1]])
    parts = [
        (s, sounds.note(instrument, p, max(0.12, 0.95 * d), rng))
        for s, p, d in zip(starts, pitches, durations, strict=True)
    ]
    return sounds.at_level(sounds.mix(starts[-1] + max(0.12, durations[-1]), parts), level)


# ---------------------------------------------------------------------------------------------------------- scenes
def draw_events(rng):
    return {"sounds": pick(rng, list(SOUNDS), int(rng.integers(2, 4)))}


def render_events(rng, facts):
    return clip(rng, in_a_row(rng, [event(rng, name) for name in facts["sounds"]], (0.1, 0.3)))


def draw_repeats(rng):
    return {"sound": pick(rng, SHORT_SOUNDS), "count": int(rng.integers(1, 6))}


def render_repeats(rng, facts):
    one = event(rng, facts["sound"])
    gap = rng.uniform(0.14, 0.3) if facts["count"] > 3 else rng.uniform(0.18, 0.45)
    return clip(rng, in_a_row(rng, [one] * facts["count"], (gap, gap + 0.03)), shortest=rng.uniform(2, 3))


def draw_levels(rng):
    return {"sound": pick(rng, list(SOUNDS)), "louder": pick(rng, ["the first", "the second"])}


def render_levels(rng, facts):
    soft = rng.uniform(-36, -30)
    levels = [soft + rng.uniform(11, 15), soft]
    if facts["louder"] == "the second":
        levels.reverse()
    one = sounds.sound(facts["sound"], rng)
    return clip(rng, in_a_row(rng, [sounds.at_level(one, level) for level in levels], (0.2, 0.5)))


SHAPES = {
    "rising": [0, 1, 2, 3, 4],
    "falling": [4, 3, 2, 1, 0],
    "rising then falling": [0, 2, 4, 2, 0],
    "falling then rising": [4, 2, 0, 2, 4],
}
SCALE = np.array([0, 2, 4, 7, 9])  # the major pentatonic scale, in semitones


def draw_melody(rng):
    return {
        "instrument": pick(rng, list(INSTRUMENTS)),
        "shape": pick(rng, list(SHAPES)),
        "base": int(rng.integers(55, 70)),
    }


def render_melody(rng, facts):
    pitches = facts["base"] + SCALE[SHAPES[facts["shape"]]]
    step = rng.uniform(0.3, 0.55)
    return clip(rng, [(rng.uniform(0.05, 0.3), notes(rng, facts["instrument"], pitches, [step] * 5))])


def draw_two_notes(rng):
    change = pick(rng, ["higher", "lower", "the same"])
    interval = 0 if change == "the same" else int(rng.integers(4, 13)) * (1 if change == "higher" else -1)
    return {
        "instrument": pick(rng, list(INSTRUMENTS)),
        "change": change,
        "base": int(rng.integers(60, 70)),
        "interval": interval,
    }


def render_two_notes(rng, facts):
    step = rng.uniform(0.6, 1.1)
    return clip(
        rng,
        [
            (
                rng.uniform(0.05, 0.4),
                notes(rng, facts["instrument"], [facts["base"], facts["base"] + facts["interval"]], [step, step]),
            )
        ],
    )


TEMPI = {"it speeds up": 0.78, "it slows down": 1 / 0.78, "it stays the same": 1.0}


def draw_pulse(rng):
    return {
        "instrument": pick(rng, list(INSTRUMENTS)),
        "tempo": pick(rng, list(TEMPI)),
        "base": int(rng.integers(57, 72)),
    }


def render_pulse(rng, facts):
    ratios = TEMPI[facts["tempo"]] ** np.arange(7)
    durations = ratios / ratios.sum() * rng.uniform(2.6, 3.4)
    return clip(rng, [(rng.uniform(0.05, 0.25), notes(rng, facts["instrument"], [facts["base"]] * 7, durations))])


DANCES = {"a waltz": 3, "a march": 2}


def draw_dance(rng):
    return {
        "instrument": pick(rng, list(INSTRUMENTS)),
        "dance": pick(rng, list(DANCES)),
        "base": int(rng.integers(55, 67)),
    }


def render_dance(rng, facts):
    beats, beat, start = DANCES[facts["dance"]], rng.uniform(0.24, 0.34), rng.uniform(0.05, 0.2)
    parts = []
    for i in range(int((3.7 - start) / beat)):
        strong = i % beats == 0
        parts.append((start + i * beat, 0.3 * sounds.drum(rng, strong)))
        if strong:
            parts.append(
                (start + i * beat, notes(rng, facts["instrument"], [facts["base"] + pick(rng, [0, 4, 7])], [beat], -24))
            )
    return clip(rng, parts)


def draw_duet(rng):
    return {"instruments": pick(rng, list(INSTRUMENTS), 2), "base": int(rng.integers(57, 70))}


def render_duet(rng, facts):
    step = rng.uniform(0.28, 0.4)
    turns = [
        notes(rng, name, facts["base"] + SCALE[rng.permutation(5)[:3]], [step] * 3) for name in facts["instruments"]
    ]
    return clip(rng, in_a_row(rng, turns, (0.1, 0.25)))


def draw_words(rng):
    return {"words": pick(rng, ALL_WORDS, int(rng.integers(1, 5))), "voice": voice(rng)}


def render_words(rng, facts):
    spoken = [say(rng, word, facts["voice"], level=-21) for word in facts["words"]]
    return clip(rng, in_a_row(rng, spoken, (0.12, 0.25)))


SPEAKERS = {
    "a man then a woman": ["man", "woman"],
    "a woman then a man": ["woman", "man"],
    "only a man": ["man", "man"],
    "only a woman": ["woman", "woman"],
}


def draw_dialogue(rng):
    return {"speakers": pick(rng, list(SPEAKERS)), "words": pick(rng, ALL_WORDS, 2)}


def render_dialogue(rng, facts):
    first, second = SPEAKERS[facts["speakers"]]
    voices = [voice(rng, first)] * 2 if first == second else [voice(rng, first), voice(rng, second)]
    return clip(rng, in_a_row(rng, [say(rng, w, v) for w, v in zip(facts["words"], voices, strict=True)], (0.2, 0.4)))


def draw_language(rng):
    language = pick(rng, list(PHRASES))
    return {"language": language, "phrase": pick(rng, PHRASES[language][1]), "voice": voice(rng)}


def render_language(rng, facts):
    return clip(
        rng, [(rng.uniform(0.05, 0.4), say(rng, facts["phrase"], facts["voice"], PHRASES[facts["language"]][0]))]
    )


FLAWS = ["a hiss", "a hum", "crackle", "nothing"]


def draw_recording(rng):
    return {"flaw": pick(rng, FLAWS), "words": pick(rng, ALL_WORDS, 2), "voice": voice(rng)}


def render_recording(rng, facts):
    parts = in_a_row(rng, [say(rng, word, facts["voice"]) for word in facts["words"]], (0.2, 0.5))
    length = max(2.0, parts[-1][0] + len(parts[-1][1]) / sounds.SAMPLING_RATE + 0.2)
    if facts["flaw"] == "a hiss":
        parts.append((0, sounds.at_level(sounds.noise(rng, length, 2500), rng.uniform(-38, -32))))
    if facts["flaw"] == "a hum":
        parts.append(
            (
                0,
                sounds.at_level(
                    sounds.harmonics(pick(rng, [100, 120]), length, [1, 0.6, 0.4, 0.2]), rng.uniform(-34, -28)
                ),
            )
        )
    if facts["flaw"] == "crackle":
        clicks = (rng.random(int(length * sounds.SAMPLING_RATE)) < 12 / sounds.SAMPLING_RATE) * rng.uniform(0.1, 0.3)
        parts.append((0, clicks * rng.choice([-1, 1], len(clicks))))
    return clip(rng, parts)


def draw_sound_and_speech(rng):
    return {"sound": pick(rng, LASTING_SOUNDS), "word": pick(rng, ALL_WORDS), "voice": voice(rng)}


def render_sound_and_speech(rng, facts):
    length = rng.uniform(2, 3)
    behind = sounds.at_level(sounds.lasting_sound(facts["sound"], rng, length), rng.uniform(-32, -27))
    return clip(rng, [(0, behind), (rng.uniform(0.3, 1.0), say(rng, facts["word"], facts["voice"]))])


def draw_music_and_speech(rng):
    return {
        "instrument": pick(rng, list(INSTRUMENTS)),
        "word": pick(rng, ALL_WORDS),
        "voice": voice(rng),
        "base": int(rng.integers(57, 70)),
    }


def render_music_and_speech(rng, facts):
    tune = notes(
        rng,
        facts["instrument"],
        facts["base"] + SCALE[rng.integers(0, 5, 7)],
        [rng.uniform(0.32, 0.42)] * 7,
        rng.uniform(-31, -27),
    )
    return clip(rng, [(0, tune), (rng.uniform(0.3, 1.2), say(rng, facts["word"], facts["voice"]))])


def draw_sound_and_music(rng):
    return {
        "instrument": pick(rng, list(INSTRUMENTS)),
        "sound": pick(rng, list(SOUNDS)),
        "base": int(rng.integers(57, 70)),
    }


def render_sound_and_music(rng, facts):
    tune = notes(
        rng,
        facts["instrument"],
        facts["base"] + SCALE[rng.integers(0, 5, 7)],
        [rng.uniform(0.32, 0.42)] * 7,
        rng.uniform(-29, -25),
    )
    return clip(rng, [(0, tune), (rng.uniform(0.5, 1.4), event(rng, facts["sound"], rng.uniform(-21, -18)))])


def draw_all_three(rng):
    return draw_music_and_speech(rng) | {"sound": pick(rng, list(SOUNDS))}


def render_all_three(rng, facts):
    tune = notes(
        rng,
        facts["instrument"],
        facts["base"] + SCALE[rng.integers(0, 5, 9)],
        [rng.uniform(0.34, 0.4)] * 9,
        rng.uniform(-32, -28),
    )
    pieces = [event(rng, facts["sound"], rng.uniform(-23, -20)), say(rng, facts["word"], facts["voice"])]
    return clip(rng, [(0, tune), *in_a_row(rng, pieces if rng.random() < 0.5 else pieces[::-1], (0.1, 0.4))])


@dataclass(frozen=True)
class Scene:
    modality: str
    draw: Callable  # rng -> facts
    render: Callable  # rng, facts -> waveform


# fmt: off
SCENES = {
    "events": Scene("sound", draw_events, render_events),
    "repeats": Scene("sound", draw_repeats, render_repeats),
    "levels": Scene("sound", draw_levels, render_levels),
    "melody": Scene("music", draw_melody, render_melody),
    "two notes": Scene("music", draw_two_notes, render_two_notes),
    "pulse": Scene("music", draw_pulse, render_pulse),
    "dance": Scene("music", draw_dance, render_dance),
    "duet": Scene("music", draw_duet, render_duet),
    "words": Scene("speech", draw_words, render_words),
    "dialogue": Scene("speech", draw_dialogue, render_dialogue),
    "language": Scene("speech", draw_language, render_language),
    "recording": Scene("speech", draw_recording, render_recording),
    "sound and speech": Scene("mix-sound-speech", draw_sound_and_speech, render_sound_and_speech),
    "music and speech": Scene("mix-music-speech", draw_music_and_speech, render_music_and_speech),
    "sound and music": Scene("mix-sound-music", draw_sound_and_music, render_sound_and_music),
    "all three": Scene("mix-sound-music-speech", draw_all_three, render_all_three),
}
# fmt: on


# ------------------------------------------------------------------------------------------------------- questions
@dataclass(frozen=True)
class Question:
    """`answer` reads the facts; `pool` holds all possible answers; `options` is how many of them are offered.

    `present` names what else is in the clip: it comes first among the distractors, so that one must hear the order.
    """

    scene: str
    text: str
    pool: list
    answer: Callable
    category: str
    subcategory: str
    options: int = 4
    present: Callable = lambda facts: []


PERCEPTION, SEMANTIC, SIGNAL, CULTURAL = "Perception Layer", "Semantic Layer", "Signal Layer", "Cultural Layer"
ENVIRONMENT, CONTENT = "Environmental Perception and Reasoning", "Content Analysis"
COUNTING, THEORY, TEMPORAL = "Counting and Statistics", "Music Theory", "Temporal Analysis"
ALL_SOUNDS, ALL_INSTRUMENTS = list(SOUNDS), list(INSTRUMENTS)
KINDS = {"animal": "an animal", "colour": "a colour", "fruit": "a fruit", "number": "a number"}

# fmt: off
QUESTIONS = {
    "first sound": Question("events", "Which sound is heard first?", ALL_SOUNDS, lambda f: f["sounds"][0],
                            PERCEPTION, TEMPORAL, present=lambda f: f["sounds"]),
    "last sound": Question("events", "Which sound is heard last?", ALL_SOUNDS, lambda f: f["sounds"][-1],
                           PERCEPTION, TEMPORAL, present=lambda f: f["sounds"]),
    "repeated sound": Question("repeats", "Which sound is this?", SHORT_SOUNDS, lambda f: f["sound"],
                               PERCEPTION, ENVIRONMENT),
    "sound count": Question("repeats", "How many times is the sound heard?", NUMBERS, lambda f: NUMBERS[f["count"] - 1],
                            PERCEPTION, COUNTING, options=5),
    "sound": Question("levels", "Which sound is heard twice?", ALL_SOUNDS, lambda f: f["sound"],
                      PERCEPTION, ENVIRONMENT, options=5),
    "louder": Question("levels", "Which of the two sounds is louder?", ["the first", "the second"],
                       lambda f: f["louder"], SIGNAL, "Audio Difference Analysis", options=2),
    "instrument": Question("melody", "Which instrument plays the melody?", ALL_INSTRUMENTS, lambda f: f["instrument"],
                           PERCEPTION, ENVIRONMENT),
    "melody": Question("melody", "Which way does the melody go?", list(SHAPES), lambda f: f["shape"],
                       PERCEPTION, THEORY),
    "pitch": Question("two notes", "How is the second note, compared with the first?", ["higher", "lower", "the same"],
                      lambda f: f["change"], PERCEPTION, THEORY, options=3),
    "tempo": Question("pulse", "What happens to the tempo?", list(TEMPI), lambda f: f["tempo"],
                      PERCEPTION, TEMPORAL, options=3),
    "dance": Question("dance", "Which dance fits this rhythm?", list(DANCES), lambda f: f["dance"],
                      CULTURAL, "Professional Knowledge and Reasoning", options=2),
    "first instrument": Question("duet", "Which instrument plays first?", ALL_INSTRUMENTS,
                                 lambda f: f["instruments"][0], PERCEPTION, TEMPORAL,
                                 present=lambda f: f["instruments"]),
    "first word": Question("words", "Which word is said first?", ALL_WORDS, lambda f: f["words"][0],
                           SEMANTIC, CONTENT, present=lambda f: f["words"]),
    "last word": Question("words", "Which word is said last?", ALL_WORDS, lambda f: f["words"][-1],
                          SEMANTIC, CONTENT, present=lambda f: f["words"]),
    "word count": Question("words", "How many words are said?", NUMBERS[:4], lambda f: NUMBERS[len(f["words"]) - 1],
                           PERCEPTION, COUNTING),
    "kind of word": Question("words", "What is named first?", list(KINDS.values()),
                             lambda f: KINDS[KIND_OF_WORD[f["words"][0]]], SEMANTIC, CONTENT),
    "speakers": Question("dialogue", "Who is speaking?", list(SPEAKERS), lambda f: f["speakers"],
                         SEMANTIC, "Speaker Analysis"),
    "language": Question("language", "Which language is spoken?", list(PHRASES), lambda f: f["language"],
                         CULTURAL, "Culture of Speaker", options=5),
    "flaw": Question("recording", "What is wrong with this recording?", FLAWS, lambda f: f["flaw"],
                     SIGNAL, "Acoustic Quality Analysis"),
    "sound behind voice": Question("sound and speech", "Which sound is heard behind the voice?", LASTING_SOUNDS,
                                   lambda f: f["sound"], PERCEPTION, ENVIRONMENT),
    "word over sound": Question("sound and speech", "Which word is said over the noise?", ALL_WORDS,
                                lambda f: f["word"], SEMANTIC, CONTENT),
    "instrument behind voice": Question("music and speech", "Which instrument plays behind the voice?", ALL_INSTRUMENTS,
                                        lambda f: f["instrument"], PERCEPTION, ENVIRONMENT),
    "word over music": Question("music and speech", "Which word is said over the music?", ALL_WORDS,
                                lambda f: f["word"], SEMANTIC, CONTENT),
    "sound over music": Question("sound and music", "Which sound interrupts the music?", ALL_SOUNDS,
                                 lambda f: f["sound"], PERCEPTION, ENVIRONMENT),
    "instrument with sound": Question("sound and music", "Which instrument is interrupted?", ALL_INSTRUMENTS,
                                      lambda f: f["instrument"], PERCEPTION, ENVIRONMENT),
    "sound of three": Question("all three", "Which sound is heard with voice and music?", ALL_SOUNDS,
                               lambda f: f["sound"], PERCEPTION, ENVIRONMENT),
    "word of three": Question("all three", "Which word is said between the sounds?", ALL_WORDS,
                              lambda f: f["word"], SEMANTIC, CONTENT),
}
# fmt: on


def choices_for(question, facts, rng, gold_position):
    """The options offered, with the answer at `gold_position`."""
    answer = question.answer(facts)
    present = [x for x in question.present(facts) if x != answer]
    others = [x for x in question.pool if x != answer and x not in present]
    distractors = (present + pick(rng, others, len(others)))[: question.options - 1]
    distractors = pick(rng, distractors, len(distractors))
    return distractors[:gold_position] + [answer] + distractors[gold_position:]


def draw_item(kind, split, index):
    """Facts, choices, answer and wrong hint of one item, and the generator that renders its clip."""
    question, number = QUESTIONS[kind], list(QUESTIONS).index(kind)
    rng = np.random.default_rng([SPLITS[split], number, index])
    turns = pick(np.random.default_rng([SPLITS[split], number]), question.pool, len(question.pool))
    target = turns[index % len(turns)]  # answers take turns, so that none is more frequent
    position = (index + index // len(question.pool)) % question.options
    facts = SCENES[question.scene].draw(rng)
    while question.answer(facts) != target:
        facts = SCENES[question.scene].draw(rng)
    choices = choices_for(question, facts, rng, position)
    wrong = pick(rng, [c for c in choices if c != target])
    return facts, choices, target, wrong, rng


def render_item(kind, split, index):
    """The clip of one item: float32, 16 kHz mono, 2 to 4 seconds."""
    facts, *_, rng = draw_item(kind, split, index)
    return SCENES[QUESTIONS[kind].scene].render(rng, facts).astype(np.float32)


# ----------------------------------------------------------------------------------------------------- the benchmark
# SHA-256 of the text of all items (`benchmarks.checksum`) and of what is to be heard (`audio_checksum`).
CHECKSUMS = {
    "dev": (
        "854e138f4af6c1e68ead76a88e2d58ec86ca77230a173b2fcf3fb5e6d45e4933",
        "c4e4c0af2d2d228161e2d77211e27802a7bbbb037f60346def79e57686886074",
    ),
    "test": (
        "15637f9650d0f443688dd6f3f26b80354842c06b5134e71749b3714ffe49a7fc",
        "c029127991fd63a24086cae61bdb576c5c707a727994d24a371ca5b7f471a65c",
    ),
}


def row(kind, split, index):
    """One item in MMAR's schema, with two hints: the right answer and one of the wrong ones."""
    question = QUESTIONS[kind]
    facts, choices, answer, wrong, _ = draw_item(kind, split, index)
    name = f"{split}-{kind.replace(' ', '-')}-{index:02d}"
    return {
        "id": name,
        "audio_path": f"./audio/{name}.wav",
        "question": question.text,
        "choices": choices,
        "answer": answer,
        "modality": SCENES[question.scene].modality,
        "category": question.category,
        "sub-category": question.subcategory,
        "language": facts.get("language"),
        "source": "generated",
        "url": None,
        "timestamp": None,
        "kind": kind,
        "index": index,
        "facts": facts,
        "correct_hint": answer,
        "misleading_hint": wrong,
    }


def write_clip(path: Path, audio: np.ndarray) -> None:
    """16-bit WAV, written under another name first, so that a killed run leaves no half clip."""
    draft = path.with_suffix(".part")
    soundfile.write(draft, audio, sounds.SAMPLING_RATE, format="WAV", subtype="PCM_16")
    os.replace(draft, path)


def minimmar_items(split: str = "test", root: str | Path | None = None):
    """The items of a split; their clips are generated on first use (about 10 seconds) and kept in `root`.

    A clip that is missing or was changed (its SHA-256 is kept beside it) is generated again.

    Raises
    ------
    ValueError
        If there is no such split.
    """
    if split not in ITEMS_PER_QUESTION:
        raise ValueError(f"MiniMMAR has no split {split!r}, only {', '.join(ITEMS_PER_QUESTION)}.")
    folder = Path(root or benchmarks.CACHE) / f"minimmar-{_edition()}" / split
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    known = folder / "sha256.json"
    sums = json.loads(known.read_text()) if known.exists() else {}
    rows = [row(kind, split, i) for kind in QUESTIONS for i in range(ITEMS_PER_QUESTION[split])]
    stale = [r for r in rows if _sha256(folder / r["audio_path"]) != sums.get(r["id"], "none yet")]
    if stale:
        for r in tqdm(stale, desc=f"MiniMMAR, {split}: clips", leave=False):
            path = folder / r["audio_path"]
            write_clip(path, render_item(r["kind"], split, r["index"]))
            sums[r["id"]] = _sha256(path)
        known.with_suffix(".part").write_text(json.dumps(sums))
        os.replace(known.with_suffix(".part"), known)
    for r in rows:
        r["sha256"] = sums[r["id"]]
        r["audio_path"] = str(folder / r["audio_path"])
    return benchmarks.parse_mmar(rows)


def _edition():
    """Short hash of the code that makes the clips: changed code makes new clips, in a new folder."""
    code = b"".join(Path(module).read_bytes() for module in (__file__, sounds.__file__))
    return hashlib.sha256(code).hexdigest()[:12]


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def audio_checksum(items):
    """SHA-256 over the levels of the clips, every 0.1 s to 0.1 dB: other processors round a few samples otherwise."""
    digest = hashlib.sha256()
    for item in items:
        audio, _ = soundfile.read(item.audio)
        power = (audio[: len(audio) // 1600 * 1600].reshape(-1, 1600) ** 2).mean(1)
        digest.update(np.round(10 * np.log10(power + 1e-10), 1).astype(np.float32).tobytes())
    return digest.hexdigest()
