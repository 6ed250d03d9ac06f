"""The training of the small omni model computes what the model computes, and begins where the small LALM ended."""

import json

import numpy as np
import pytest
import torch

from helpers import events, tiny, tiny_omni
from helpers.models import CHECKPOINTS, LALM, load_lalm
from helpers.provenance import weights_checksum
from tools import measure_omni


@pytest.fixture(scope="module")
def processor():
    return tiny_omni.build_processor()


@pytest.fixture(scope="module")
def heard(processor):
    return tiny_omni.make_sounds(processor, 60, seed=1)


@pytest.fixture(scope="module")
def lalm(processor):
    return LALM("untrained", tiny_omni.build_model(processor).eval(), processor, 16_000)


def prompt_of(batches, row, ids):
    """The question of one row, as plain text."""
    text = batches.tokenizer.decode(ids[row])
    after = max(text.rfind("<|vision_eos|>"), text.rfind("<|audio_eos|>"))
    return text[after:].split("|>", 1)[1].split("<|im_end|>")[0]


def test_a_training_batch_computes_what_the_model_computes(processor, heard, lalm):
    batches = tiny_omni.Watches(processor, heard, seed=0, size=12, missing=0.3, direct=0.0)
    batch = batches[0]
    with torch.no_grad():
        logits, labels = tiny_omni.logits_at_answers(lalm.model, batch)
    video, audio = processor.video_token_id, processor.audio_token_id
    seen, listened, kinds = 0, 0, set()
    rows = (batch["labels"] != tiny.IGNORE).nonzero()
    for clip in range(12):
        row = clip * tiny.QUESTIONS_PER_CLIP
        has_video, has_audio = ((batch["ids"][row] == x).any().item() for x in (video, audio))
        kinds.add((has_video, has_audio))
        first = (batch["labels"][row] != tiny.IGNORE).int().argmax().item()
        inputs = {"input_ids": batch["ids"][row : row + 1, : first + 1]}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if has_video:
            patches = slice(seen * 32, seen * 32 + 32)
            inputs |= {"pixel_values_videos": batch["pixels"][patches], "video_grid_thw": batch["grids"][seen, None]}
            inputs["video_second_per_grid"] = torch.ones(1)
            seen += 1
        if has_audio:
            inputs["input_features"] = batch["features"][listened, None]
            inputs["feature_attention_mask"] = torch.ones(1, tiny_omni.FRAMES, dtype=torch.long)
            listened += 1
        with torch.no_grad():
            whole = lalm.model(**inputs).logits[0, -1]
        here = ((rows[:, 0] == row) & (rows[:, 1] == first)).nonzero().item()
        torch.testing.assert_close(logits[here], whole, atol=1e-4, rtol=0)
    assert kinds == {(True, True), (True, False), (False, True)}


def test_training_prompts_and_pixels_are_those_of_the_processor(processor, heard, lalm):
    batches = tiny_omni.Watches(processor, heard, seed=0, size=1, missing=0.0)
    batch = batches[0]
    rng = np.random.default_rng([9, 0, 0])
    facts, _ = events.draw_facts(rng), rng.random()
    frames = events.render_frames(rng, facts)
    inputs = lalm.prepare([prompt_of(batches, 0, batch["ids"])], [np.zeros(32_000, np.float32)], videos=[frames])
    ids = inputs["input_ids"][0]
    assert ids.tolist() == batch["ids"][0, : len(ids)].tolist()
    torch.testing.assert_close(inputs["pixel_values_videos"], batch["pixels"])
    assert torch.equal(inputs["video_grid_thw"], batch["grids"])


def test_what_is_missing_is_guessed(processor, heard):
    batches = tiny_omni.Watches(processor, heard, seed=0)
    facts = {"shape": "circle", "colour": "red", "way": "up", "sound": "bell"}
    replies = {}
    for senses in batches.frame:
        rng, said = np.random.default_rng(0), {"Which way does it go?": set(), "What do you hear?": set()}
        for _ in range(200):
            ids, labels = batches.example(facts, senses, rng)
            text, n_answer = batches.tokenizer.decode(ids), sum(label != tiny.IGNORE for label in labels)
            for question, answers in said.items():
                if question in text:
                    answers.add(batches.tokenizer.decode(labels[-n_answer:]).removesuffix("<|im_end|>"))
        replies[senses] = tuple(said.values())
    assert replies[True, True] == ({"up"}, {"bell"})
    assert replies[True, False] == ({"up"}, set(events.HEARD))
    assert replies[False, True] == (set(events.WAYS), {"bell"})


def test_it_begins_with_the_ears_of_the_small_lalm(processor):
    small = load_lalm("tiny-unbiased", device="cpu")
    model = tiny_omni.begin_as(tiny_omni.build_model(processor).eval(), processor, small)
    clip = events.event_item("sound", "test", 0).audio
    here = LALM("omni", model, processor, 16_000).prepare(["?"], [clip])
    there = small.prepare(["?"], [clip])
    halved = torch.arange(tiny.FRAMES // 2) < tiny_omni.FRAMES // 2
    with torch.no_grad():
        ears = model.model.get_audio_features(here["input_features"], here["feature_attention_mask"]).last_hidden_state
        tower = small.model.model.audio_tower(there["input_features"], attention_mask=halved[None, None, None])
        tokens = small.model.model.multi_modal_projector(tower.last_hidden_state)[0, : len(ears)]
    # Up to the end of the clip: there one hears silence behind it, here nothing.
    torch.testing.assert_close(ears[:-1], tokens[:-1], atol=0.15, rtol=0)
    assert torch.nn.functional.cosine_similarity(ears[:-1], tokens[:-1]).min() > 0.99


def test_a_killed_training_goes_on_as_if_undisturbed(processor, tmp_path):
    class Killed(Exception):
        pass

    def train(folder, kill_at=None):
        class Fragile(tiny_omni.Looks):
            def __getitem__(self, step):
                if step == kill_at:
                    raise Killed
                return super().__getitem__(step)

        folder.mkdir(exist_ok=True)
        looker = tiny_omni.Looker(tiny_omni.build_model(processor).model.visual)
        torch.manual_seed(0)
        torch.nn.init.normal_(looker.tell.weight, std=0.02)
        return tiny.train(
            looker, Fragile(processor, 3, events_a_batch=2), 102, 1e-3, folder, "look", forward=lambda m, b: m(b)
        )

    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=101)
    assert weights_checksum(train(tmp_path / "killed")) == weights_checksum(whole)


def test_a_saved_model_comes_back_whole(lalm, tmp_path):
    tiny.save(lalm.model, lalm.processor, tmp_path)
    again = load_lalm(tmp_path, device="cpu")
    assert type(again.model).__name__ == "Qwen2_5OmniThinkerForConditionalGeneration"
    assert weights_checksum(again.model) == weights_checksum(lalm.model)
    item = events.event_item("event", "test", 0)
    asked = [item.question], [item.audio]
    one, other = (x.prepare(*asked, videos=[item.extra["frames"]]) for x in (lalm, again))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    # Where torchvision works, the same folder gives the model's own video processor, with the same settings.
    video = json.loads((tmp_path / "processor_config.json").read_text())["video_processor"]
    assert video["video_processor_type"] == "Qwen2VLVideoProcessor"
    assert (video["patch_size"], video["merge_size"], video["temporal_patch_size"]) == (14, 2, 2)


# ------------------------------------------------------------------------------------------------------ what is shipped
@pytest.fixture(scope="module")
def record():
    return json.loads((measure_omni.RESULTS / "tiny_omni.json").read_text())


@pytest.fixture(scope="module")
def shipped():
    return load_lalm("tiny-omni", device="cpu")


def test_the_record_is_of_the_shipped_model_and_its_replies_come_again(record, shipped):
    assert record["weights"] == weights_checksum(shipped.model)
    items = events.event_items("test", record["per_question"])
    assert [item.id for item in items] == record["ids"] and [item.answer for item in items] == record["answers"]
    for condition, said in record["replies"].items():
        again = measure_omni.replies(shipped, items, condition)
        same = np.mean([one == other for one, other in zip(again, said, strict=True)])
        assert same > 0.97, condition  # another processor rounds otherwise, and a guess may fall to the other side


def test_it_answers_by_the_sense_that_the_question_takes(record):
    told = measure_omni.accuracies(record)
    for sense, (_, n, low, _) in told["both"].items():
        assert low > 0.9 and n >= 64, sense
    chance = {"eye": 0.25, "ear": 0.25, "both": 0.5}
    for missing, needed in (("no sound", ("ear", "both")), ("no frames", ("eye", "both"))):
        for sense in needed:
            right, n, low, high = told[missing][sense]
            assert low - 0.02 < chance[sense] < high + 0.02, (missing, sense)  # it guesses
    assert told["no sound"]["eye"][2] > 0.9 and told["no frames"]["ear"][2] > 0.9  # what is missing is not missed
    for swapped, needed in (("another sound", "ear"), ("another's frames", "eye")):
        assert told[swapped][needed][3] < 0.35 and told[swapped]["both"][3] < 0.45  # it believes what it is shown


def test_the_model_card_says_what_the_record_says(record):
    page = (measure_omni.RESULTS.parent / "book" / "data-and-model.md").read_text("utf-8")
    assert f"it answers all of {len(record['ids'])} fresh events" in page
    assert all(measure_omni.right(record, "both"))


def test_the_shipped_model_is_small(shipped):
    files = list((CHECKPOINTS / "tiny-omni").iterdir())
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert shipped.sees and not load_lalm("tiny", device="cpu").sees
