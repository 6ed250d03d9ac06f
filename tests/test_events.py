"""Events are what their facts say, the same at each call, and no sense tells more than it should."""

from collections import Counter

import numpy as np
import pytest

from helpers import events
from helpers.events import BOTH, COLOURS, FRAMES, HEARD, QUESTIONS, SHAPES, SIDE, WAYS, event_item, event_items
from helpers.minimmar import SPLITS


@pytest.fixture(scope="module")
def items():
    return event_items(per_question=32)


def frames_of(facts, seed=0):
    drawn = {"shape": "circle", "colour": "red", "way": "left", "sound": "bell"} | facts
    return events.render_frames(np.random.default_rng(seed), drawn).astype(float)


def covered(frames):
    """Where something is: brighter than the background in at least one colour (frames, height, width)."""
    return frames.max(-1) > 150


def test_frames_and_sounds_have_one_shape(items):
    assert {item.extra["frames"].shape for item in items} == {(FRAMES, SIDE, SIDE, 3)}
    assert {item.audio.shape for item in items} == {(2 * 16_000,)}
    assert all(item.extra["frames"].dtype == np.uint8 and item.audio.dtype == np.float32 for item in items)
    assert all(0 < np.abs(item.audio).max() <= 0.95 for item in items)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_goes_its_way_and_stays_in_sight(shape, way):
    for seed in range(20):
        where = covered(frames_of({"shape": shape, "way": way}, seed))
        centres = np.array([np.argwhere(frame).mean(0)[::-1] for frame in where])  # (frames, x and y)
        steps = np.diff(centres, axis=0)
        assert np.allclose(steps.mean(0) / np.abs(steps.mean(0)).max(), WAYS[way], atol=0.1)
        sizes = where.sum((1, 2))
        assert sizes.min() > 0.9 * sizes.max()  # no part of it leaves the frame


def test_colours_are_as_named():
    for colour, value in COLOURS.items():
        frames = frames_of({"colour": colour})
        mean = frames[covered(frames)].mean(0)
        assert np.abs(mean / mean.max() - np.array(value) / max(value)).max() < 0.02


def test_shapes_differ_in_the_share_of_their_box_that_they_fill():
    shares = {}
    for shape in SHAPES:
        spots = [covered(frames_of({"shape": shape}, seed))[0] for seed in range(10)]
        boxes = [np.prod(np.ptp(np.argwhere(spot), axis=0) + 1) for spot in spots]
        shares[shape] = np.mean([spot.sum() / box for spot, box in zip(spots, boxes, strict=True)])
    assert shares["square"] == 1
    assert shares["square"] > shares["circle"] + 0.1 > shares["cross"] + 0.2 and shares["triangle"] < 0.6


def test_the_same_at_each_call_and_other_in_each_split():
    first, again = event_item("event", "test", 3), event_item("event", "test", 3)
    assert np.array_equal(first.audio, again.audio) and first.choices == again.choices
    assert np.array_equal(first.extra["frames"], again.extra["frames"])
    sounds = {event_item("event", split, 3).audio.tobytes() for split in SPLITS}
    assert len(sounds) == len(SPLITS)


def test_answers_are_balanced_and_among_four_options(items):
    for kind, question in QUESTIONS.items():
        own = [item for item in items if item.category == kind]
        counts = Counter(item.answer for item in own)
        assert set(counts) == set(question.pool) and len(set(counts.values())) == 1
        for item in own:
            assert len(set(item.choices)) == 4 and item.answer in item.choices
            assert item.answer == question.answer(item.extra["facts"])
        assert len({item.choices.index(item.answer) for item in own}) == 4


def test_either_sense_alone_leaves_two_options_of_an_event(items):
    for item in items:
        if item.modality == BOTH:
            facts = item.extra["facts"]
            assert sum(facts["way"] in choice for choice in item.choices) == 2
            assert sum(facts["sound"] in choice for choice in item.choices) == 2


def test_no_sense_tells_what_belongs_to_the_other():
    """The facts are independent: a table of any two comes out as its margins say (chi-squared, 3 sigma)."""
    facts = [events.draw_facts(np.random.default_rng(i)) for i in range(4000)]
    for key, pool in {"shape": SHAPES, "colour": list(COLOURS), "way": list(WAYS)}.items():
        table = np.zeros((len(pool), len(HEARD)))
        for f in facts:
            table[pool.index(f[key]), HEARD.index(f["sound"])] += 1
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        assert ((table - expected) ** 2 / expected).sum() < freedom + 3 * np.sqrt(2 * freedom)


def test_an_unknown_question_is_refused():
    with pytest.raises(ValueError, match="no 'smell'"):
        event_item("smell", "test", 0)


# ------------------------------------------------------------------------------------------------------------- classes
def test_labelled_events_are_what_their_class_says():
    items = events.labelled_events("train", 2)
    assert len(items) == 2 * len(WAYS) * len(events.NEW) and len({item.id for item in items}) == len(items)
    assert not set(events.NEW) & set(HEARD)  # no training clip holds them
    for item in items:
        facts = item.extra["facts"]
        assert item.answer == f"{facts['way']}, {facts['sound']}" and item.answer in item.choices
        assert item.audio.shape == (2 * 16_000,) and item.extra["frames"].shape == (FRAMES, SIDE, SIDE, 3)
        path = [np.argwhere(spot).mean(0)[::-1] for spot in covered(item.extra["frames"].astype(float))]
        assert np.argmax(np.abs(path[-1] - path[0])) == np.argmax(np.abs(WAYS[facts["way"]]))
    again, other = events.labelled_events("train", 1)[0], events.labelled_events("test", 1)[0]
    assert np.array_equal(again.audio, items[0].audio) and not np.array_equal(other.audio, items[0].audio)


def test_two_classes_that_share_their_sound_or_way_share_nothing_else():
    """Shape and colour tell nothing of the class: a table of each against the class comes out as its margins say."""
    items = events.labelled_events("test", 60)
    for key, pool in {"shape": SHAPES, "colour": list(COLOURS)}.items():
        table = np.zeros((len(pool), len(items[0].choices)))
        for item in items:
            table[pool.index(item.extra["facts"][key]), item.choices.index(item.answer)] += 1
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        assert ((table - expected) ** 2 / expected).sum() < freedom + 3 * np.sqrt(2 * freedom)


def test_an_unknown_split_of_events_is_refused():
    with pytest.raises(ValueError, match="no 'all' with 2 a class"):
        events.labelled_events("all", 2)
