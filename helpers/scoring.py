"""From a model's reply to right or wrong: several scorers, which disagree.

Each takes (answer, prediction, choices) and returns True, False, or None where the reply names no option. A reply that
can't be read is never guessed at: it counts as not right, and is counted.
"""

import re
from collections.abc import Sequence


def _tokens(text: str) -> set[str]:
    return set(re.findall(r"\b\w+\b", text.lower()))


def string_match(answer: str, prediction: str, choices: Sequence[str]) -> bool:
    """The official rule of MMAU and MMAR, on sets of lower-case words.

    Right if the reply has every word of the answer, and no word that only other options have. So "It is not gold" is
    right where "gold" is the answer, and the letter alone is wrong: see `letter`.
    """
    right, said = _tokens(answer), _tokens(prediction)
    if not said:  # an empty answer must not make an empty reply right
        return False
    others = set().union(*(_tokens(choice) for choice in choices)) - right
    return right <= said and said.isdisjoint(others)


def exact_option(answer: str, prediction: str, choices: Sequence[str]) -> bool | None:
    """Right if the reply is the answer, and nothing else, up to case, white space, quotes and final punctuation."""
    said = _bare(prediction)
    if not said or said not in map(_bare, choices):
        return None
    return said == _bare(answer)


def letter(answer: str, prediction: str, choices: Sequence[str]) -> bool | None:
    """Right if the reply names the answer by its letter: "B", "(B)", "B. gold", "The answer is B.".

    A bare "A" that is followed by a word is an article, not a letter. Compared by the option's text, since of duplicate
    options either letter is right.
    """
    reply = _final(prediction).strip().strip("*").strip()
    opening = r"(?:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?:? *)?"
    found = re.match(rf"(?i:{opening})\**(?:\(([A-Z])\)|([A-Z])(?=[).:]|\**$))", reply)
    if found is None:
        return None
    index = ord(found[1] or found[2]) - ord("A")
    return choices[index].strip() == answer.strip() if index < len(choices) else None


def _final(prediction: str) -> str:
    """What stands in the last <answer> tag, which some prompts ask for; else the whole reply."""
    tagged = re.findall(r"<answer>(.*?)</answer>", prediction, flags=re.DOTALL | re.IGNORECASE)
    return tagged[-1] if tagged else prediction


def _bare(text: str) -> str:
    return " ".join(_final(text).lower().split()).strip(" \"'*.!`")


SCORERS = {"string_match": string_match, "exact_option": exact_option, "letter": letter}
