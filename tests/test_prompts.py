"""Prompts: the templates letter by letter, and the chat markup."""

import pytest
from random_models import FAMILIES, random_lalm

from helpers.prompts import STYLES, chat, multiple_choice

QUESTION, CHOICES = "What barks?", ["a dog", "a cat", "it's a seal"]
EXPECTED = {
    "mmar": "What barks?\nSelect one option from the provided choices:\na dog\na cat\nit's a seal",
    "mmau": "What barks?  Select one option from the provided choices.\n['a dog', 'a cat', \"it's a seal\"].",
    "r1-aqa": (
        "What barks? Please choose the answer from the following options: ['a dog', 'a cat', \"it's a seal\"]. "
        "Output the final answer in <answer> </answer>."
    ),
    "lmms-eval": (
        "What barks?\nA. a dog\nB. a cat\nC. it's a seal\n"
        "Answer with the option's letter from the given choices directly."
    ),
    "audiobench": "Question:\nWhat barks?\nChoices:\n(A) a dog (B) a cat (C) it's a seal",
}


def test_every_style_is_checked_here():
    assert set(EXPECTED) == set(STYLES)


@pytest.mark.parametrize("style", STYLES)
def test_templates(style):
    assert multiple_choice(QUESTION, CHOICES, style=style) == EXPECTED[style]
    assert multiple_choice(QUESTION, tuple(CHOICES), style=style) == EXPECTED[style]


@pytest.mark.parametrize("style", STYLES)
def test_hint_is_the_last_line(style):
    hinted = multiple_choice(QUESTION, CHOICES, style=style, hint="a cat")
    assert hinted == EXPECTED[style] + "\nHint: the answer is a cat."


def test_mmar_is_the_default():
    assert multiple_choice(QUESTION, CHOICES) == EXPECTED["mmar"]


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="Unknown prompt style 'mmlu': known are mmar, mmau"):
        multiple_choice(QUESTION, CHOICES, style="mmlu")
    with pytest.raises(ValueError, match="0 choices"):
        multiple_choice(QUESTION, [])
    with pytest.raises(ValueError, match="27 choices"):
        multiple_choice(QUESTION, ["x"] * 27)


def test_chat_renders_the_real_qwen2_audio_prompt():
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nAudio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nWhat barks?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    lalm = random_lalm("qwen2_audio")
    assert chat(lalm, QUESTION) == chat(lalm.processor, QUESTION) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_places_audio_text_and_system(family):
    lalm = random_lalm(family)
    slot = lalm.processor.audio_token
    first, last = chat(lalm, QUESTION, n_audio=2), chat(lalm, QUESTION, n_audio=2, audio_first=False)
    assert first.count(slot) == last.count(slot) == 2
    assert first.rindex(slot) < first.index(QUESTION)
    assert last.index(slot) > last.index(QUESTION)
    assert slot not in chat(lalm, QUESTION, n_audio=0)
    told = chat(lalm, QUESTION, system="Listen well.")
    assert "<|im_start|>system\nListen well.<|im_end|>" in told and "helpful assistant" not in told
