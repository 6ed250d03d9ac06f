import json
from pathlib import Path

import pytest

from helpers.scoring import SCORERS, exact_option, letter, string_match

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
