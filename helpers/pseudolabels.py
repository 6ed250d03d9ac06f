"""Pseudo-labels: what the model itself says a clip is, when it is asked several times; and a task to try them on.

CALM (arXiv 2602.07077) labels its support set so where nobody else has: 8 sampled answers a clip, and a clip is kept if
at least half of them agree. Taught in the chapter *Labels from the model itself*. B clips, n answers a clip.
"""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from helpers import sounds
from helpers.minimmar import clip, in_a_row, pick
from helpers.models import LALM
from helpers.scoring import named_option

SPLITS = {"train": 0, "test": 2}  # in the seed of every clip; 8 and 9 were looked at while the task was made


@torch.no_grad()
def sample_replies(
    lalm: LALM, inputs: Mapping, n: int = 8, temperature: float = 1.0, max_new_tokens: int = 12, seed: int = 0
) -> list[list[str]]:
    """Draw n replies to each prompt of a batch, token by token, from the model's own probabilities.

    Clip and prompt are read once, however many replies are drawn: the keys and values that the model kept of them are
    repeated. (`generate(num_return_sequences=n)` reads them n times.) A `MATA` block steers them
    as it steers `generate`.

    Parameters
    ----------
    lalm : LALM
    inputs : mapping
        A batch from `LALM.prepare`.
    temperature : float
        The logits are divided by it: 1 leaves the probabilities as they are, less makes likely tokens likelier.
    seed : int
        The same seed, batch and machine give the same replies.

    Returns
    -------
    list of B lists of n str
    """
    if n < 1 or not 0 < temperature < np.inf:
        raise ValueError(f"n must be at least 1 and the temperature above 0 and finite, got {n} and {temperature}.")
    model, device = lalm.model, inputs["input_ids"].device
    ends = torch.as_tensor(model.generation_config.eos_token_id, device=device).reshape(-1)
    brief = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    # Where each token stands, which Omni models count on three axes: as `generate` itself does it.
    positions = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))  # (..., B, S)
    prompt = model(**inputs, position_ids=positions, use_cache=True, **brief)
    cache, logits = prompt.past_key_values, prompt.logits[:, -1].repeat_interleave(n, 0)  # (B * n, V)
    cache.batch_repeat_interleave(n)
    for entry, steered in getattr(cache, "_steered", {}).items():  # which tokens a MATA block around this call steers
        cache._steered[entry] = steered.repeat_interleave(n, 0)
    seen = inputs["attention_mask"].repeat_interleave(n, 0)
    position = positions[..., -1:].repeat_interleave(n, -2)

    draw, written = torch.Generator(device).manual_seed(seed), []
    ended = torch.zeros(len(logits), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        token = torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=draw)  # (B * n, 1)
        token[ended] = ends[0]
        written.append(token)
        ended |= torch.isin(token[:, 0], ends)
        if ended.all() or step == max_new_tokens - 1:
            break
        seen, position = torch.cat([seen, torch.ones_like(token)], 1), position + 1
        where = {"attention_mask": seen, "position_ids": position, "past_key_values": cache}
        logits = model(input_ids=token, **where, use_cache=True).logits[:, -1]
    replies = lalm.tokenizer.batch_decode(torch.cat(written, 1), skip_special_tokens=True)
    return [[reply.strip() for reply in replies[i : i + n]] for i in range(0, len(replies), n)]


def majority(replies: Sequence[Sequence[str]], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Take the class that most replies to a clip name, and the share of its replies that do.

    A reply that names no class counts against all. Of classes named equally often, the one named first is taken.

    Returns
    -------
    labels : ndarray of str, (B,)
        Empty where no reply names a class.
    confidence : ndarray of float, (B,)
    """
    labels, confidence = [], []
    for own in replies:
        named = Counter(option for reply in own if (option := named_option(reply, classes)) is not None)
        option, votes = named.most_common(1)[0] if named else (None, 0)
        labels.append("" if option is None else classes[option])
        confidence.append(votes / len(own))
    return np.array(labels, dtype=str), np.array(confidence)


def sample_labels(
    lalm: LALM, inputs: Mapping, classes: Sequence[str], n: int = 8, temperature: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Label each clip of a batch by the majority of n sampled replies: `majority` of `sample_replies`."""
    return majority(sample_replies(lalm, inputs, n, temperature, seed=seed), classes)


def usable(labels: np.ndarray) -> np.ndarray:
    """Whether each label is one and has company: CALM judges an example by the others of its class."""
    classes, count = np.unique(labels, return_counts=True)
    return np.isin(labels, classes[(count > 1) & (classes != "")])


def known_sound(split: str, name: str, index: int) -> np.ndarray:
    """A clip of a class that the small LALM was trained on: the event twice, 10 to 20 dB over another, lasting sound.

    Parameters
    ----------
    split : {"train", "test"}
    name : a key of `helpers.sounds.SOUNDS`
    index : the clip's number within its class

    Returns
    -------
    ndarray of float32, 2 to 4 s at 16 kHz
    """
    rng = np.random.default_rng([15, SPLITS[split], list(sounds.SOUNDS).index(name), index])
    level = rng.uniform(-27, -21)
    event = sounds.at_level(sounds.sound(name, rng), level)
    other = pick(rng, [sound for sound in sounds.LASTING_SOUNDS if sound != name])
    behind = sounds.lasting_sound(other, rng, rng.uniform(2, 3.5))
    parts = [(0, sounds.at_level(behind, level - rng.uniform(10, 20))), *in_a_row(rng, [event, event], (0.2, 0.5))]
    return clip(rng, parts).astype(np.float32)
