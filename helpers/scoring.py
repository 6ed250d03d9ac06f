"""From a model's reply to right or wrong: several scorers, which disagree.

Each takes (answer, prediction, choices) and returns True, False, or None where the reply names no option. A reply that
can't be read is never guessed at: it counts as not right, and is counted. One scorer reads no reply at all:
`option_loglikelihood` asks the model how likely each option is, and `likeliest` takes the likeliest.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad


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
    named = _exactly(prediction, choices)
    return None if named is None else _bare(choices[named]) == _bare(answer)


def letter(answer: str, prediction: str, choices: Sequence[str]) -> bool | None:
    """Right if the reply names the answer by its letter: "B", "(B)", "B. gold", "The answer is B.".

    A bare "A" that is followed by a word is an article, not a letter. Compared by the option's text, since of duplicate
    options either letter is right.
    """
    named = _by_letter(prediction, choices)
    return None if named is None else choices[named].strip() == answer.strip()


def named_option(prediction: str, choices: Sequence[str]) -> int | None:
    """Index of the option that the reply names, by its text or else by its letter; of duplicate options the first."""
    named = _exactly(prediction, choices)
    if named is None:
        named = _by_letter(prediction, choices)
    return None if named is None else [choice.strip() for choice in choices].index(choices[named].strip())


def _exactly(prediction: str, choices: Sequence[str]) -> int | None:
    said, options = _bare(prediction), [_bare(choice) for choice in choices]
    return options.index(said) if said and said in options else None


def _by_letter(prediction: str, choices: Sequence[str]) -> int | None:
    reply = _final(prediction).strip().strip("*").strip()
    opening = r"(?:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?:? *)?"
    found = re.match(rf"(?i:{opening})\**(?:\(([A-Z])\)|([A-Z])(?=[).:]|\**$))", reply)
    if found is None:
        return None
    index = ord(found[1] or found[2]) - ord("A")
    return index if index < len(choices) else None


def _final(prediction: str) -> str:
    """What stands in the last <answer> tag, which some prompts ask for; else the whole reply."""
    tagged = re.findall(r"<answer>(.*?)</answer>", prediction, flags=re.DOTALL | re.IGNORECASE)
    return tagged[-1] if tagged else prediction


def _bare(text: str) -> str:
    return " ".join(_final(text).lower().split()).strip(" \"'*.!`")


SCORERS = {"string_match": string_match, "exact_option": exact_option, "letter": letter}


class Loglikelihood(NamedTuple):
    """Natural logarithm of the probability of a reply, and its length in tokens, with the end of the turn."""

    total: float
    n_tokens: int


@torch.no_grad()
def option_loglikelihood(lalm, inputs: Mapping, options: Sequence[Sequence[str]]) -> list[list[Loglikelihood]]:
    """How likely the model is to reply exactly this, for each option of each prompt: nothing is parsed.

    The tokens of an option are put into the model's mouth one after the other (teacher forcing), then the end of its
    turn. One at a time behind a cached prompt, as in `generate`: so `MATA` steers them as it steers a reply.

    Parameters
    ----------
    lalm : LALM
    inputs : mapping
        A batch from `LALM.prepare`.
    options : list of lists of str
        Each prompt's options, spelled as the prompt wants them: `helpers.prompts.expected_replies`.

    Returns
    -------
    list of lists of Loglikelihood
        In the order of the options. Of a tokenizer that can write a text in several ways, only its own way is counted.
    """
    tokens = [[lalm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in own] for own in options]
    brief = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(lalm.model.forward).parameters else {}
    # Where each token stands, which Omni models count on three axes: as `generate` itself does it.
    positions = lalm.model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))  # (..., T)
    prompt = lalm.model(**inputs, position_ids=positions, use_cache=True, **brief)
    likelihoods = [[] for _ in tokens]
    for place in range(max(map(len, tokens))):  # the first option of every prompt, then the second of every prompt ...
        column = [own[place] if place < len(own) else [] for own in tokens]
        totals = _forced(lalm, prompt, inputs["attention_mask"], positions[..., -1:] + 1, column)
        for known, own, total in zip(likelihoods, tokens, totals, strict=True):
            if place < len(own):
                known.append(Loglikelihood(total, len(own[place]) + 1))
    return likelihoods


def _forced(lalm, prompt, attention_mask, position, replies: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability of one reply to each prompt of a batch, and of its end; the prompt's cache is left as it was."""
    device = attention_mask.device
    lengths = torch.tensor([len(reply) for reply in replies], device=device)[:, None]  # (B, 1)
    longest = int(lengths.max())
    tokens = torch.tensor([[*reply, *[0] * (longest + 1 - len(reply))] for reply in replies], device=device)
    ends = torch.as_tensor(lalm.model.generation_config.eos_token_id, device=device).reshape(-1)  # any ends the turn
    logits, cache = prompt.logits, prompt.past_key_values
    said, ended = [], []  # log-probabilities step by step, (B,) each
    for step in range(longest + 1):
        logprobs = logits[:, -1].float().log_softmax(-1)  # (B, V)
        token = tokens[:, step : step + 1]  # (B, 1); behind the end of a shorter reply one that is not counted
        said.append(logprobs.gather(1, token)[:, 0])
        ended.append(logprobs[:, ends].logsumexp(-1))
        if step < longest:
            seen = pad(attention_mask, (0, step + 1), value=1)
            where = {"attention_mask": seen, "position_ids": position + step, "past_key_values": cache}
            logits = lalm.model(input_ids=token, **where, use_cache=True).logits
    cache.crop(-longest)
    is_reply = torch.arange(longest + 1, device=device) < lengths  # (B, longest + 1)
    total = torch.stack(said, 1).masked_fill(~is_reply, 0).sum(1) + torch.stack(ended, 1).gather(1, lengths)[:, 0]
    return total.tolist()


def likeliest(
    answer: str, loglikelihoods: Sequence[Loglikelihood], choices: Sequence[str], per_token: bool = False
) -> bool:
    """Right if the likeliest option is the answer; of options that are equally likely, the first is taken.

    `per_token`: by the mean over an option's tokens. The sum favours short options, the mean long ones.
    """
    scores = [total / n_tokens if per_token else total for total, n_tokens in loglikelihoods]
    return choices[scores.index(max(scores))].strip() == answer.strip()
