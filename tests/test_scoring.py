import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import FAMILIES, random_lalm
from transformers import LogitsProcessor, LogitsProcessorList

from helpers.mata import MATA
from helpers.models import load_lalm
from helpers.prompts import expected_replies, multiple_choice
from helpers.scoring import (
    SCORERS,
    Loglikelihood,
    exact_option,
    letter,
    likeliest,
    named_option,
    option_loglikelihood,
    string_match,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "string_match.json").read_text(encoding="utf-8"))


def test_string_match_is_the_official_rule():
    verdicts = [string_match(case["answer"], case["prediction"], case["choices"]) for case in GOLDEN]
    assert len(GOLDEN) == 600 and 0 < sum(verdicts) < 600
    assert verdicts == [case["match"] for case in GOLDEN]


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("a dog", True),
        ("It is not a dog!", True),  # a reader would disagree: the rule sees words, not sense
        ("A", False),
        ("", False),
        ("a dog or a cat", False),
        ("dog", False),
    ],
)
def test_string_match_sees_words_only(prediction, right):
    assert string_match("a dog", prediction, ["a dog", "a cat"]) is right


@pytest.mark.parametrize(
    ("prediction", "verdict"),
    [
        ("Dog", True),
        (" “x” <answer>\n dog. </answer>", True),
        ("**cat**", False),
        ("It is a dog", None),
        ("", None),
    ],
)
def test_exact_option(prediction, verdict):
    assert exact_option("dog", prediction, ["dog", "cat", ""]) is verdict


@pytest.mark.parametrize(
    ("prediction", "verdict"),
    [
        ("B", True),
        ("(B) cat", True),
        ("B. cat", True),
        ("**B**", True),
        ("The correct answer is (B).", True),
        ("Answer: A", False),
        ("<answer>B</answer>", True),
        ("A dog barks", None),  # an article
        ("Because of the fur", None),
        ("D", None),  # there is no fourth option
        ("", None),
    ],
)
def test_letter(prediction, verdict):
    assert letter("cat", prediction, ["dog", "cat", "bird"]) is verdict


def test_either_letter_of_duplicate_options_is_right():
    assert [letter("cat", reply, ["cat", "dog", "cat"]) for reply in "ABC"] == [True, False, True]


def test_scorers_share_one_signature():
    assert {name: scorer("dog", "dog", ["dog", "cat"]) for name, scorer in SCORERS.items()} == {
        "string_match": True,
        "exact_option": True,
        "letter": None,
    }


@pytest.mark.parametrize(
    ("prediction", "index"), [("Cat.", 1), ("(C)", 0), ("B", 1), ("A cat", None), ("D", None), ("", None)]
)
def test_named_option(prediction, index):
    assert named_option(prediction, ["dog", "cat", "dog "]) == index


# ----------------------------------------------------------------------------------- log-likelihood, without a reply
CHOICES = [["a dog barks", "cat", ""], ["yes", "no, not at all"], ["one", "two", "three", "three"]]


class Force(LogitsProcessor):
    """Makes `generate` write given tokens, whatever the model would have said."""

    def __init__(self, tokens, prompt_length):
        self.tokens, self.prompt_length = tokens, prompt_length

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[input_ids.shape[1] - self.prompt_length]] = 0
        return forced


def through_generate(lalm, prompt, audio, reply):
    """Log-probability of one reply, token by token, as `generate` sees it: one prompt, one option, no padding."""
    inputs = lalm.prepare([prompt], [audio])
    ends = torch.as_tensor(lalm.model.generation_config.eos_token_id).reshape(-1).tolist()
    tokens = [*lalm.tokenizer(reply, add_special_tokens=False)["input_ids"], ends[0]]
    written = lalm.model.generate(
        **inputs,
        max_new_tokens=len(tokens),
        do_sample=False,
        logits_processor=LogitsProcessorList([Force(tokens, inputs["input_ids"].shape[1])]),
        return_dict_in_generate=True,
        output_logits=True,
    )
    logprobs = [logits[0].float().log_softmax(-1) for logits in written.logits]
    said = sum(float(logprobs[i][token]) for i, token in enumerate(tokens[:-1]))
    return said + float(logprobs[-1][ends].logsumexp(0)), len(tokens)


def batch(lalm, seconds=(0.9, 0.3, 0.6)):
    rng = np.random.default_rng(0)
    audios = [rng.normal(scale=0.1, size=int(s * lalm.sampling_rate)).astype(np.float32) for s in seconds]
    prompts = [multiple_choice("What?" * (n + 1), choices) for n, choices in enumerate(CHOICES)]
    return prompts, audios


@pytest.mark.parametrize("alpha", [0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_loglikelihood_is_that_of_generate_one_by_one(family, alpha):
    lalm = random_lalm(family)
    prompts, audios = batch(lalm)  # of three lengths, and with 3, 2 and 4 options of unlike length
    # Batches change the first logits of a random Qwen3-Omni by 0.06, in `generate` as well: there one at a time.
    size = 1 if family == "qwen3_omni" else 3
    with MATA(lalm, alpha=alpha) if alpha else nullcontext():
        found = []
        for i in range(0, 3, size):
            inputs = lalm.prepare(prompts[i : i + size], audios[i : i + size])
            found += option_loglikelihood(lalm, inputs, CHOICES[i : i + size])
        for prompt, audio, own, likelihoods in zip(prompts, audios, CHOICES, found, strict=True):
            for reply, (total, n_tokens) in zip(own, likelihoods, strict=True):
                expected, n = through_generate(lalm, prompt, audio, reply)
                assert total == pytest.approx(expected, abs=1e-4)
                assert n_tokens == n


def test_steering_reaches_every_token_of_an_option():
    lalm = random_lalm("qwen2_audio")
    inputs = lalm.prepare(*batch(lalm))
    plain = option_loglikelihood(lalm, inputs, CHOICES)
    with MATA(lalm, alpha=0.0):
        assert option_loglikelihood(lalm, inputs, CHOICES) == plain
    with MATA(lalm, alpha=0.5, layers=[2]) as steering:
        steered = option_loglikelihood(lalm, inputs, CHOICES)
    assert all(abs(a.total - b.total) > 1e-3 for a, b in zip(plain[0], steered[0], strict=True))
    longest = [max(len(own[place]) for own in CHOICES if place < len(own)) for place in range(4)]  # a byte a token
    assert steering.calls == {2: 1 + sum(longest)}  # once behind the prompt, once behind each token


def test_any_end_of_turn_ends_an_option():
    lalm = random_lalm("qwen2_audio")
    inputs = lalm.prepare(*batch(lalm))
    one = option_loglikelihood(lalm, inputs, CHOICES)
    end = lalm.model.generation_config.eos_token_id
    lalm.model.generation_config.eos_token_id = [end, lalm.tokenizer.convert_tokens_to_ids("<|im_start|>")]
    either = option_loglikelihood(lalm, inputs, CHOICES)
    assert all(b.total > a.total for a, b in zip(sum(one, []), sum(either, []), strict=True))


def test_options_of_the_small_model_exclude_each_other():
    lalm = load_lalm("tiny", device="cpu")
    audio = np.random.default_rng(0).normal(scale=0.1, size=2 * lalm.sampling_rate).astype(np.float32)
    choices = ["dog bark", "siren", "rain", "cat meow"]
    prompt = multiple_choice("Which sound is heard first?", choices)
    (likelihoods,) = option_loglikelihood(lalm, lalm.prepare([prompt], [audio]), [choices])
    expected = [through_generate(lalm, prompt, audio, choice)[0] for choice in choices]
    assert [total for total, _ in likelihoods] == pytest.approx(expected, abs=1e-4)
    assert 0.5 < sum(map(math.exp, expected)) <= 1  # it was trained to reply with an option, so little is left


def test_likeliest_by_sum_and_by_mean():
    likelihoods = [Loglikelihood(-2.0, 1), Loglikelihood(-3.0, 3), Loglikelihood(-3.0, 3)]
    choices = ["short", "long", "as long"]
    assert likeliest("short", likelihoods, choices) and not likeliest("long", likelihoods, choices)
    assert likeliest("long ", likelihoods, choices, per_token=True)
    assert not likeliest("as long", likelihoods, choices, per_token=True)  # the first of equals


@pytest.mark.parametrize(
    ("style", "reply"),
    [("mmar", "cat"), ("mmau", "cat"), ("r1-aqa", "<answer>cat</answer>"), ("lmms-eval", "B"), ("audiobench", "cat")],
)
def test_a_reply_as_the_prompt_wants_it_is_read(style, reply):
    choices = ["dog", "cat"]
    assert expected_replies(choices, style)[1] == reply
    assert named_option(reply, choices) == 1
