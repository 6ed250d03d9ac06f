"""Generated audio-visual events: a shape that moves for two seconds, and a sound. What an omni model sees and hears.

Four facts are drawn independently: shape, colour, way and sound. So some questions can be answered only by eye, some
only by ear, and some only by both: "What happens?" offers two ways times two sounds, of which either sense alone
leaves two. The shape is for variety, nothing asks for it. The sounds are those of `helpers.sounds`.

For few-shot classification the sounds are new ones, which the model was never trained on: `labelled_events`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from helpers.benchmarks import Item
from helpers.fewshot import NEW_SOUNDS
from helpers.minimmar import SPLITS, clip, event, pick
from helpers.sounds import at_level, fade, normalise

SIDE, FRAMES, FRAMES_PER_SECOND = 56, 4, 2  # pixels; 2 seconds
SHAPES = ["circle", "square", "triangle", "cross"]
COLOURS = {"red": (230, 50, 50), "green": (60, 200, 80), "blue": (70, 110, 250), "yellow": (240, 220, 60)}
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x to the right, y down
HEARD = ["dog bark", "cat meow", "bird chirp", "bell", "siren", "knock", "car horn", "whistle"]
NEW = ["cow", "sheep", "frog", "telephone"]  # of `helpers.fewshot.NEW_SOUNDS`
EYE, EAR, BOTH = "eye", "ear", "both"


# ---------------------------------------------------------------------------------------------------------- rendering
def draw_facts(rng):
    """What is seen and heard in one event."""
    return {
        "shape": pick(rng, SHAPES),
        "colour": pick(rng, list(COLOURS)),
        "way": pick(rng, list(WAYS)),
        "sound": pick(rng, HEARD),
    }


def outline(shape, x, y, radius):
    """Which pixels the shape covers; x and y are their distances from its centre."""
    across, along = np.abs(x), np.abs(y)
    return {
        "circle": x**2 + y**2 <= radius**2,
        "square": np.maximum(across, along) <= 0.85 * radius,
        "triangle": (along <= radius) & (across <= (y + radius) / 2),
        "cross": (np.maximum(across, along) <= radius) & (np.minimum(across, along) <= radius / 3),
    }[shape]


def render_frames(rng: np.random.Generator, facts: Mapping[str, str]) -> np.ndarray:
    """Four frames of 56 x 56 pixels in which the shape goes its way: uint8, (frames, height, width, 3)."""
    step, radius = rng.uniform(5, 8), rng.uniform(9, 12)
    way = np.array(WAYS[facts["way"]])
    room = (SIDE - (FRAMES - 1) * step * np.abs(way)) / 2 - radius  # how far the middle of the path may be off centre
    middle = SIDE / 2 + rng.uniform(-1, 1, 2) * np.maximum(room, 0)
    y, x = np.mgrid[:SIDE, :SIDE]
    grain = 6 * rng.standard_normal((FRAMES, SIDE, SIDE, 1), dtype=np.float32)
    frames = np.repeat(rng.uniform(20, 70) + grain, 3, axis=3)  # a dark, grainy background
    colour = np.array(COLOURS[facts["colour"]]) * rng.uniform(0.8, 1.0)
    for frame, moment in zip(frames, np.arange(FRAMES) - (FRAMES - 1) / 2, strict=True):
        centre = middle + moment * step * way
        frame[outline(facts["shape"], x - centre[0], y - centre[1], radius)] = colour
    return frames.clip(0, 255).astype(np.uint8)


def render_sound(rng: np.random.Generator, facts: Mapping[str, str]) -> np.ndarray:
    """The sound once, somewhere in two seconds of faint noise: float32, 16 kHz."""
    return clip(rng, [(rng.uniform(0.05, 0.6), event(rng, facts["sound"]))]).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- questions
@dataclass(frozen=True)
class Question:
    """`sense` tells what it takes to answer; `answer` and `choices` (four, the answer among them) read the facts."""

    text: str
    sense: str
    pool: list
    answer: Callable


def both(way, sound):
    return f"{way}, {sound}"


QUESTIONS = {
    "colour": Question("Which colour is it?", EYE, list(COLOURS), lambda f: f["colour"]),
    "way": Question("Which way does it go?", EYE, list(WAYS), lambda f: f["way"]),
    "sound": Question("What do you hear?", EAR, HEARD, lambda f: f["sound"]),
    "event": Question(
        "What happens?",
        BOTH,
        [both(way, sound) for way in WAYS for sound in HEARD],
        lambda f: both(f["way"], f["sound"]),
    ),
}


def choices_for(question, facts, rng):
    """Four options in random order. Of an event: two ways times two sounds, so that either sense alone leaves two."""
    if question.sense == BOTH:
        way = pick(rng, [x for x in WAYS if x != facts["way"]])
        sound = pick(rng, [x for x in HEARD if x != facts["sound"]])
        options = [both(x, y) for x in (facts["way"], way) for y in (facts["sound"], sound)]
    else:
        answer = question.answer(facts)
        options = [answer, *pick(rng, [x for x in question.pool if x != answer], 3)]
    return pick(rng, options, len(options))


def event_item(kind: str, split: str, index: int) -> Item:
    """One item: its frames are `item.extra["frames"]`, its sound, an array, `item.audio`. The same at each call.

    Answers take turns, so that none is more frequent than another.
    """
    if kind not in QUESTIONS or split not in SPLITS:
        raise ValueError(f"There is no {kind!r} in {split!r}: kinds are {list(QUESTIONS)}, splits {list(SPLITS)}.")
    question, number = QUESTIONS[kind], list(QUESTIONS).index(kind)
    rng = np.random.default_rng([6, SPLITS[split], number, index])
    facts = draw_facts(rng)
    while question.answer(facts) != question.pool[index % len(question.pool)]:
        facts = draw_facts(rng)
    choices = choices_for(question, facts, rng)
    name = f"{split}-{kind}-{index:03d}"
    return Item(
        id=name,
        audio=render_sound(rng, facts),
        question=question.text,
        choices=choices,
        answer=question.answer(facts),
        modality=question.sense,
        category=kind,
        source=name,
        extra={"facts": facts, "frames": render_frames(rng, facts)},
    )


def event_items(split: str = "test", per_question: int = 64) -> list[Item]:
    """Items of all questions, `per_question` of each. Drawn and rendered at each call, 100 in about a second."""
    return [event_item(kind, split, i) for kind in QUESTIONS for i in range(per_question)]


# ------------------------------------------------------------------------------------------------------------- classes
def labelled_events(split: str = "train", per_class: int = 20) -> list[Item]:
    """Events of 16 classes for few-shot classification: four ways times four sounds that no training clip holds.

    Two classes that share their sound differ by eye alone, two that share their way by ear alone.

    Returns
    -------
    list of Item
        Class by class; `answer` is "<way>, <sound>"; frames and sound as in `event_item`, shape and colour at random.
    """
    if split not in SPLITS or per_class < 1:
        raise ValueError(f"There is no {split!r} with {per_class} a class: splits are {list(SPLITS)}.")
    classes = [both(way, sound) for way in WAYS for sound in NEW]
    return [_labelled(split, classes, number, index) for number in range(len(classes)) for index in range(per_class)]


def _labelled(split, classes, number, index):
    rng = np.random.default_rng([10, SPLITS[split], number, index])
    way, sound = classes[number].split(", ")
    facts = draw_facts(rng) | {"way": way, "sound": sound}
    made = at_level(normalise(fade(NEW_SOUNDS[sound](rng))), rng.uniform(-27, -21))
    name = f"{split}-{way}-{sound}-{index:03d}"
    return Item(
        id=name,
        audio=clip(rng, [(rng.uniform(0.05, 0.6), made)]).astype(np.float32),
        question=QUESTIONS["event"].text,
        choices=classes,
        answer=classes[number],
        modality=BOTH,
        source=name,
        extra={"facts": facts, "frames": render_frames(rng, facts)},
    )
