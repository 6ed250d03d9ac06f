"""MATA: more attention to the audio, for the token that predicts the answer, at inference and without training.

Wang et al., "MATA: A Training-Free Approach to Mitigate Cross-Modal Attention Imbalance in Large Audio Language Models"
(arXiv 2509.18816; Interspeech 2026). In the middle decoder layers, the last query's raw scores s = q·k/√d on audio keys
become (1 + alpha) s before the softmax. Taught in the chapter "MATA from scratch".
"""

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable

import torch

from helpers.attention import LastRow, align, text_decoder, transformers_model
from helpers.models import audio_token_id

RULES = {
    "multiply": lambda scores, alpha: scores * (1 + alpha),  # MATA; lowers attention where a score is negative
    "absolute": lambda scores, alpha: scores + alpha * scores.abs(),  # PAI, arXiv 2407.21771
    "additive": lambda scores, alpha: scores + math.log1p(alpha),  # weights times 1 + alpha, then renormalised
}


_entries = itertools.count()  # tells masks apart that several blocks leave at one cache


class MATA(LastRow):
    """Inside `with`, every call of the model attends more to its audio; leaving restores the model.

    Parameters
    ----------
    model : LALM or transformers model
    alpha : float
        Strength, above -1. 0 leaves every bit as it was.
    layers : "middle" or iterable of int
        Decoder layers to steer. "middle" is 10/28 to 20/28 of the depth, as in the paper: 10..19 of 28.
    rule : {"multiply", "absolute", "additive"}
        What happens to the raw score s of a steered key: s(1 + alpha), s + alpha|s|, or s + log(1 + alpha).
    keys : {"audio", "text"} or callable
        Which keys of the prompt are steered; others than "audio" are negative controls. A callable gets the prompt's
        token ids (batch, seq) and returns a bool mask of that shape.

    Attributes
    ----------
    calls : Counter
        Layer index -> number of steered calls since the block was entered.

    Raises
    ------
    ValueError
        For a bad argument, a model that can't be steered, or a prompt without audio.

    Examples
    --------
    >>> with MATA(lalm, alpha=0.1) as steering:
    ...     replies = lalm.generate(inputs)
    """

    writes = True

    def __init__(
        self,
        model,
        alpha: float = 0.1,
        layers: str | Iterable[int] = "middle",
        rule: str = "multiply",
        keys: str | Callable[[torch.Tensor], torch.Tensor] = "audio",
    ):
        if not (math.isfinite(alpha) and alpha > -1):
            raise ValueError(f"alpha must be a finite number above -1, got {alpha}.")
        if rule not in RULES:
            raise ValueError(f"rule must be one of {list(RULES)}, got {rule!r}.")
        if keys not in ("audio", "text") and not callable(keys):
            raise ValueError(f'keys must be "audio", "text" or a function of the token ids, got {keys!r}.')
        self.layers = select_layers(layers, depth=len(text_decoder(model).layers))
        self.audio_token_id = audio_token_id(getattr(transformers_model(model), "config", None))
        if self.audio_token_id is None:
            kind = type(transformers_model(model)).__name__
            raise ValueError(f"the config of {kind} names no audio token, so there is no audio to steer.")
        self.alpha, self.rule, self.keys = alpha, rule, keys
        self.calls = Counter()
        super().__init__(model, self.layers if alpha != 0 else [])

    def __enter__(self):
        self.calls.clear()
        self._entry = next(_entries)
        return super().__enter__()

    def see_tokens(self, input_ids, past, cache):
        if past == 0:
            self._pass.steered = self._select(input_ids)  # (B, T)
            self._check_prompt()
            return
        before = getattr(cache, "_steered", {}).get(self._entry)  # (B, past or more)
        if before is None or len(before) != len(input_ids) or before.shape[1] < past:
            raise ValueError("the key/value cache was filled outside this block, so its audio tokens are not known.")
        # A token that comes alone is the reply's, never steered: so all beams of a prompt share one mask, and
        # reordering them changes nothing.
        alone = input_ids.shape[1] == 1
        new = torch.zeros_like(input_ids, dtype=torch.bool) if alone else self._select(input_ids)
        self._pass.steered = torch.cat([before[:, :past], new], dim=1)

    def see_cache(self, cache):
        # The mask goes with the cache: so conversations may take turns, and each copy of a cache goes on by itself.
        cache._steered = getattr(cache, "_steered", {}) | {self._entry: self._pass.steered}

    def _select(self, input_ids):
        is_audio = input_ids == self.audio_token_id
        if not callable(self.keys):
            return is_audio if self.keys == "audio" else ~is_audio
        chosen = self.keys(input_ids)
        if chosen.shape != input_ids.shape or chosen.dtype != torch.bool:
            raise ValueError(
                f"keys must return a bool mask of the token ids' shape {tuple(input_ids.shape)}, "
                f"got {chosen.dtype} of {tuple(chosen.shape)}."
            )
        return chosen.to(input_ids.device)

    def _check_prompt(self):
        deaf = ~self._pass.steered.any(1)
        if deaf.any():
            what = "audio" if self.keys == "audio" else "such"
            raise ValueError(f"prompt {deaf.int().argmax().item()} of the batch has no {what} token to steer.")

    def edit_scores(self, layer, scores):
        self.calls[layer] += 1
        steered = align(self._pass.steered, scores.shape[-1]).to(scores.device)[:, None]  # (B, 1, K)
        return torch.where(steered, RULES[self.rule](scores, self.alpha), scores)


def select_layers(layers: str | Iterable[int], depth: int) -> list[int]:
    """Return the sorted indices of the decoder layers meant by "middle", a range or a list."""
    if isinstance(layers, str) and layers == "middle":  # at least one, in a model of two layers
        start, stop = round(depth * 10 / 28), round(depth * 20 / 28)
        return list(range(start, max(stop, start + 1)))
    try:
        chosen = sorted({operator.index(layer) for layer in layers})
    except TypeError:
        chosen = None
    if not chosen:
        raise ValueError(f'layers must be "middle", a range or a list of at least one index, got {layers!r}.')
    if chosen[0] < 0 or chosen[-1] >= depth:
        raise ValueError(f"layers must lie in 0..{depth - 1}, got {chosen}.")
    return chosen
