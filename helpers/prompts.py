"""Prompts by name: how different authors put a multiple-choice question to an audio-language model.

The same question in another template moves a model's score by several points, so a score means little without the
name of its prompt.
"""

from collections.abc import Callable, Sequence
from string import ascii_uppercase

from helpers.models import chat

__all__ = ["STYLES", "chat", "expected_replies", "multiple_choice"]


def _mmar(question: str, choices: Sequence[str]) -> str:
    """MMAR's authors (arXiv 2505.13032): one option a line."""
    return "\n".join([question, "Select one option from the provided choices:", *choices])


def _mmau(question: str, choices: Sequence[str]) -> str:
    """MMAU's authors (arXiv 2410.19168): the options as Python prints a list; two spaces after the question."""
    return f"{question}  Select one option from the provided choices.\n{list(choices)}."


def _r1_aqa(question: str, choices: Sequence[str]) -> str:
    """R1-AQA (arXiv 2503.11197) and Ke-Omni-R: the answer is to stand in tags."""
    return (
        f"{question} Please choose the answer from the following options: {list(choices)}. "
        "Output the final answer in <answer> </answer>."
    )


def _lmms_eval(question: str, choices: Sequence[str]) -> str:
    """The MMAU task of lmms-eval: the answer is to be a letter."""
    return "\n".join(
        [question, *_lettered("{}. {}", choices), "Answer with the option's letter from the given choices directly."]
    )


def _audiobench(question: str, choices: Sequence[str]) -> str:
    """The MMAU task of AudioBench (arXiv 2406.16020)."""
    return f"Question:\n{question}\nChoices:\n{' '.join(_lettered('({}) {}', choices))}"


def _lettered(form: str, choices: Sequence[str]) -> list[str]:
    return [form.format(letter, choice) for letter, choice in zip(ascii_uppercase, choices, strict=False)]


STYLES: dict[str, Callable[[str, Sequence[str]], str]] = {
    "mmar": _mmar,
    "mmau": _mmau,
    "r1-aqa": _r1_aqa,
    "lmms-eval": _lmms_eval,
    "audiobench": _audiobench,
}


def expected_replies(choices: Sequence[str], style: str = "mmar") -> list[str]:
    """For each option, the reply that does as the prompt says: its text, in tags or as a letter if so asked."""
    if style == "r1-aqa":
        return [f"<answer>{choice}</answer>" for choice in choices]
    if style == "lmms-eval":
        return list(ascii_uppercase[: len(choices)])
    return list(choices)


def multiple_choice(question: str, choices: Sequence[str], style: str = "mmar", hint: str | None = None) -> str:
    """Write a multiple-choice question as plain text, for `LALM.prepare` or `chat`.

    Parameters
    ----------
    question : str
    choices : list of str
    style : str
        One of `STYLES`.
    hint : str, optional
        An answer, right or wrong, whispered to the model in a last line after the options.

    Raises
    ------
    ValueError
        An unknown style, no choices, more choices than letters.

    Examples
    --------
    >>> print(multiple_choice("What barks?", ["a dog", "a cat"], hint="a cat"))
    What barks?
    Select one option from the provided choices:
    a dog
    a cat
    Hint: the answer is a cat.
    """
    if style not in STYLES:
        raise ValueError(f"Unknown prompt style {style!r}: known are {', '.join(STYLES)}.")
    if not 0 < len(choices) <= len(ascii_uppercase):
        raise ValueError(f"{question!r} has {len(choices)} choices: give 1 to {len(ascii_uppercase)}.")
    prompt = STYLES[style](question, choices)
    return prompt if hint is None else f"{prompt}\nHint: the answer is {hint}."
