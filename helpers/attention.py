"""Who attends to what: the attention of the last token, read (or changed) where the decoder computes it.

The token that predicts the answer is one query row of every layer. A full attention matrix has T rows, so at T = 1000
it is a thousand times more than the question needs, and the fast kernels never store it. `LastRow` lets the model's own
attention do all rows and computes the one row again: q_last · K^T, softmax, · V.
"""

import inspect
import sys
import threading
from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import partial

import torch
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from helpers.models import LALM, chat, visual_token_ids


class Role(IntEnum):
    """What a token of the sequence is there for; also the index of the last axis of `attention_by_role`."""

    PAD = 0
    SYSTEM = 1  # all before the user's turn
    AUDIO = 2
    INSTRUCTION = 3  # all other text of the prompt, turn markers included
    OUTPUT = 4  # the reply


# The roles in the prompt of an omni model that was shown something. An enumeration of its own, since all else counts
# on the five roles of `Role`; of the same values, so that `Role.AUDIO` and `OmniRole.AUDIO` are one.
OmniRole = IntEnum("OmniRole", [*(role.name for role in Role), "VISUAL"], start=Role.PAD)


def token_roles(lalm: LALM, inputs: Mapping, prompt_length: int | torch.Tensor | None = None) -> torch.Tensor:
    """Tell what each token of a batch is there for.

    Parameters
    ----------
    lalm : LALM
    inputs : mapping
        From `LALM.prepare`, with `input_ids` and `attention_mask` of shape (batch, seq).
    prompt_length : int or tensor (batch,), optional
        Where the inputs hold replies too: the column where they begin.

    Returns
    -------
    Tensor of int, shape (batch, seq)
        Values of `Role`; where the batch holds pictures or frames, of `OmniRole`.
    """
    input_ids = inputs["input_ids"]
    column = torch.arange(input_ids.shape[1], device=input_ids.device)
    roles = torch.full_like(input_ids, Role.INSTRUCTION)
    roles[column < _user_turn(lalm, input_ids)[:, None]] = Role.SYSTEM
    roles[input_ids == lalm.audio_token_id] = Role.AUDIO
    for visual in visual_token_ids(lalm.model.config):
        roles[input_ids == visual] = OmniRole.VISUAL
    if prompt_length is not None:
        begins = torch.as_tensor(prompt_length, device=column.device).reshape(-1, 1)  # (1 or B, 1)
        roles = torch.where(column >= begins, Role.OUTPUT, roles)
    if inputs.get("attention_mask") is not None:
        roles[inputs["attention_mask"] == 0] = Role.PAD
    return roles


def attention_by_role(lalm: LALM, inputs: Mapping, prompt_length: int | torch.Tensor | None = None) -> torch.Tensor:
    """Sum the last real token's attention over the tokens of each role (the first figure of MATA, arXiv 2509.18816).

    Takes the parameters of `token_roles`. Inside a `MATA` block it shows the steered attention.

    Returns
    -------
    Tensor of float32, shape (batch, layers, heads, roles), on the CPU
        Shares in the order of `Role` (of `OmniRole`, where the batch holds pictures or frames); they sum to 1.
    """
    roles = token_roles(lalm, inputs, prompt_length).cpu()
    known = OmniRole if (roles == OmniRole.VISUAL).any() else Role
    is_role = F.one_hot(roles.long(), len(known)).float()  # (B, T, R)
    return torch.einsum("blht,btr->blhr", last_row_attention(lalm, inputs), is_role)


def last_row_attention(model, inputs: Mapping) -> torch.Tensor:
    """Return the attention that the last real token of each sequence pays to every token, in memory linear in T.

    Parameters
    ----------
    model : LALM or transformers model
    inputs : mapping
        What the model is called with.

    Returns
    -------
    Tensor of float32, shape (batch, layers, heads, seq), on the CPU
    """
    with torch.no_grad(), _Reader(model) as reader:
        reader.host(**inputs, use_cache=False)
    return torch.stack(reader.rows, dim=1)


def _user_turn(lalm: LALM, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the column where each sequence's first user turn begins (B,); 0 where the prompt has no turns."""
    opening = _user_opening(lalm)
    n = len(opening)
    padded = F.pad(input_ids, (0, n), value=-1)
    found = (padded.unfold(1, n, 1) == opening.to(input_ids.device)).all(-1).int()  # (B, T + 1)
    return found.argmax(1)


def _user_opening(lalm: LALM) -> torch.Tensor:
    """Return the tokens that open a user turn, such as <|im_start|> user, whatever chat template the model has.

    They are the text that the template puts between a system and a user message, from its last special token on.
    """
    system, user = "SYSTEM-MESSAGE", "USER-MESSAGE"
    between = chat(lalm, user, n_audio=0, system=system).split(system)[1].split(user)[0]
    tokens = lalm.tokenizer(between.rstrip(), add_special_tokens=False)["input_ids"]
    added = lalm.tokenizer.added_tokens_decoder
    special = [i for i, token in enumerate(tokens) if token in added and added[token].special]
    if not special:
        raise ValueError(f"the chat template of {lalm.name} opens no user turn, so its system turn can't be told.")
    return torch.tensor(tokens[special[-1] :])


def transformers_model(model) -> torch.nn.Module:
    """Return the transformers model inside a LALM, or the model itself."""
    model = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)
    if not isinstance(model, torch.nn.Module):
        raise ValueError("expected a LALM (load_lalm) or a transformers model.")
    return getattr(model, "_orig_mod", model)  # what torch.compile has wrapped


def text_decoder(model) -> PreTrainedModel:
    """Return the text decoder of a LALM or of a transformers model: the module that holds `layers`."""
    model = transformers_model(model)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise ValueError(
            f"{type(model).__name__} has no text decoder with layers; "
            "pass the part that reads the prompt (for a whole Qwen-Omni: model.thinker)."
        )
    return decoder


class LastRow:
    """Inside `with`, the attention row of each sequence's last real token, in the text decoder of one model.

    A subclass reads or changes the row. Blocks nest: an inner one sees the scores that the outer ones have changed.
    A block stands for every call of its model, from whatever thread.

    Parameters
    ----------
    model : LALM or transformers model
    layers : iterable of int, optional
        The decoder layers whose row is computed; all by default.

    Raises
    ------
    ValueError
        If the model has no text decoder that goes through transformers' attention interface, is called without
        `input_ids`, or in a way that leaves no last row: packed sequences, candidate tokens of an assistant.
    """

    writes = False  # whether the changed row goes back into the model

    def __init__(self, model, layers: Iterable[int] | None = None):
        self.model = model = transformers_model(model)
        self.decoder = text_decoder(model)
        # The innermost module that still sees the token ids: calls to it and to the model around it are both caught.
        inner = getattr(model, "base_model", model)
        self.host = model if inner is self.decoder else inner
        layers = range(len(self.decoder.layers)) if layers is None else layers
        self.layer_of = {module: i for i in layers for module in self.decoder.layers[i].modules()}

    def see_tokens(self, input_ids: torch.Tensor, past: int, cache: Cache | None) -> None:
        """Called once a forward pass: new token ids (B, Q) behind `past` ones in the cache."""

    def see_cache(self, cache: Cache) -> None:
        """Called at the end of a forward pass whose keys and values are in the cache."""

    def edit_scores(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        """Return the raw scores q·k/√d (B, H, K), float32, changed or not."""
        return scores

    def see_weights(self, layer: int, weights: torch.Tensor) -> None:
        """Called with the softmax of the scores (B, H, K), float32."""

    def __enter__(self):
        if self in _active:
            raise ValueError(f"this {type(self).__name__} block is already open; make a second one to nest.")
        self._thread = threading.get_ident()
        others = [block for block in tuple(_active) if block.decoder is self.decoder and block._thread != self._thread]
        if self.writes and any(block.writes for block in others):
            raise ValueError("another thread steers this model already: give each thread a model of its own.")
        self._base = self.decoder.config._attn_implementation.removeprefix(_PREFIX)
        _register(self._base)
        _dispatch(self.decoder.config, _PREFIX + self._base)
        _active.append(self)
        self._pass = threading.local()  # what belongs to one forward pass: threads may call the model at once
        if self.layer_of:
            vars(self.model)[_CANDIDATES] = _refuse_candidates
        self._hooks = [
            self.host.register_forward_pre_hook(self._before, with_kwargs=True),
            self.host.register_forward_hook(self._after, always_call=True),
        ]
        return self

    def __exit__(self, *exception):
        for hook in self._hooks:
            hook.remove()
        _active.remove(self)
        open_blocks = tuple(_active)
        # Models built from one config object share it: the last block that uses it puts the implementation back.
        if not any(block.decoder.config is self.decoder.config for block in open_blocks):
            _dispatch(self.decoder.config, self._base)
        if not any(block.model is self.model and block.layer_of for block in open_blocks):
            vars(self.model).pop(_CANDIDATES, None)

    def _before(self, module, args, kwargs):
        if args:  # by name, whatever their order in this model
            kwargs = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        input_ids, mask, cache = map(kwargs.get, ("input_ids", "attention_mask", "past_key_values"))
        if input_ids is None:
            raise ValueError("the model was called without input_ids, which alone tell audio tokens from text.")
        if self.layer_of:
            _check_call(self.decoder, mask, kwargs.get("position_ids"))
        past = int(cache.get_seq_length()) if cache is not None else 0
        self._pass.tokens = _Tokens(input_ids, mask, past)
        self._pass.missed = set(self.layer_of.values())
        self.see_tokens(input_ids, past, cache)

    def _after(self, module, args, output):
        self._pass.tokens = None
        if output is None:  # the pass ended in an exception, which says more
            return
        if self._pass.missed:
            raise ValueError(
                f"layers {sorted(self._pass.missed)} of {type(self.decoder).__name__} do not go through "
                "transformers' attention interface; leave them out."
            )
        if getattr(output, "past_key_values", None) is not None:
            self.see_cache(output.past_key_values)


class _Reader(LastRow):
    """Keeps the last row of every layer, in layer order."""

    def __enter__(self):
        self.rows = []
        return super().__enter__()

    def see_weights(self, layer, weights):
        self.rows.append(weights.cpu())


class _Tokens:
    """Where the new tokens of one forward pass stand: B sequences, Q new tokens behind `past` cached ones."""

    def __init__(self, input_ids, attention_mask, past):
        self.batch, self.n_new = input_ids.shape
        self.past = past
        self.real = None  # (B, past + Q), or None where no token is padding
        last = torch.full((self.batch,), self.n_new - 1, device=input_ids.device)
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            self.real = attention_mask.bool()
            last = last - self.real[:, -self.n_new :].flip(1).int().argmax(1)
        self.last = last  # (B,) index of the last real token among the new ones: right padding follows it

    def visible(self, n_keys: int, window: int | None) -> torch.Tensor:
        """Which of the K keys the last real token may attend to: (B, K) bool."""
        query = (self.past + self.last)[:, None]  # (B, 1)
        total = self.past + self.n_new
        key = torch.arange(n_keys, device=query.device) + max(total - n_keys, 0)  # (K,)
        visible = key <= query
        if window is not None:
            visible &= key > query - window
        return visible if self.real is None else visible & align(self.real, n_keys)


def align(mask: torch.Tensor, n_keys: int) -> torch.Tensor:
    """Fit a mask over all tokens (B, T) to the K keys at hand: (B, K).

    A static cache has more keys than tokens (its end is empty), a sliding window fewer (the oldest are gone).
    """
    total = mask.shape[1]
    return mask[:, -n_keys:] if n_keys <= total else F.pad(mask, (0, n_keys - total))


_PREFIX = "last_row_"
_CANDIDATES = "_get_candidate_generator"  # what `generate` calls before it lets an assistant guess
_active: list[LastRow] = []  # the open blocks, outermost first; another thread may change it, so read a copy


def _register(base: str) -> None:
    """Give transformers `last_row_<base>`: the base implementation and its masks, and the last row on top."""
    AttentionInterface.register(_PREFIX + base, partial(_attention, base))
    if base in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(_PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[base])


def _dispatch(config, name: str) -> None:
    """Point one config, and not the audio tower's below it, at an attention implementation.

    `set_attn_implementation` would do, but takes any name with "flash" in it for a kernel that it must load.
    """
    config._attn_implementation = {"": name}


def _attention(base, module, query, key, value, attention_mask, **kwargs):
    """Attention as transformers calls it: query (B, H, Q, D), key and value (B, H_kv, K, D); returns (B, Q, H, D)."""
    blocks = [block for block in tuple(_active) if module in block.layer_of]
    if not blocks:
        return _every_row(base, module, query, key, value, attention_mask, **kwargs)

    layer, tokens = blocks[0].layer_of[module], getattr(blocks[0]._pass, "tokens", None)
    _check(tokens, module, query, kwargs)
    batch, last = torch.arange(tokens.batch, device=query.device), tokens.last.to(query.device)
    scores = last_row_scores(query[batch, :, last], key, kwargs.get("scaling"))  # (B, H, K)
    for block in blocks:
        block._pass.missed.discard(layer)
        scores = block.edit_scores(layer, scores)
    weights = _mask(scores, attention_mask, tokens, kwargs.get("sliding_window")).softmax(-1)
    for block in blocks:
        block.see_weights(layer, weights)
    if not any(block.writes for block in blocks):
        return _every_row(base, module, query, key, value, attention_mask, **kwargs)

    row = last_row_output(weights, value)  # (B, H, D)
    if tokens.n_new == 1:  # decoding with a cache: there is no other row
        return row[:, None], weights[:, :, None].to(query.dtype)
    output, all_weights = _every_row(base, module, query, key, value, attention_mask, **kwargs)
    if output.requires_grad:
        output = output.clone()  # the kernel keeps its own for the backward pass
    output[batch, last] = row
    if all_weights is not None:  # eager attention also returns its (B, H, Q, K) weights
        all_weights[batch, :, last] = weights.to(all_weights.dtype)
    return output, all_weights


def _every_row(base, module, *args, **kwargs):
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)
    if "flash" not in base:
        return attend(module, *args, **kwargs)
    _dispatch(module.config, base)  # FlashAttention looks up its own name there
    try:
        return attend(module, *args, **kwargs)
    finally:
        _dispatch(module.config, _PREFIX + base)


_PACKED = "packed sequences have no last row each; pass a padded batch with its attention_mask."


def _refuse_candidates(*args, **kwargs):
    raise ValueError("an assistant's candidates are several rows a call, not the last one; generate without it.")


def _check_call(decoder, attention_mask, position_ids):
    """Refuse, before a forward pass, what would go wrong in silence."""
    if decoder.training and any(getattr(layer, "gradient_checkpointing", False) for layer in decoder.layers):
        raise ValueError("gradient checkpointing runs layers again when the call is over; call model.eval() first.")
    if attention_mask is None and position_ids is not None and position_ids.ndim == 2:
        if (position_ids.diff() < 0).any():  # they start again
            raise ValueError(_PACKED)


def _check(tokens, module, query, kwargs):
    """The same for a call of the attention."""
    if kwargs.get("cache") is not None or kwargs.get("cu_seq_lens_q") is not None:  # the first: continuous batching
        raise ValueError(_PACKED)
    if tokens is None or (tokens.batch, tokens.n_new) != (query.shape[0], query.shape[2]):
        raise ValueError(
            "the decoder's tokens are not those of input_ids: call the model that was passed, "
            "with a prompt whose audio tokens the processor has already expanded."
        )
    extra = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if extra:
        raise ValueError(f"{type(module).__name__} adds {extra[0]} to its scores, which the last row can't reproduce.")
    if kwargs.get("dropout"):
        raise ValueError("the model is in training mode, with dropout in its attention; call model.eval() first.")


def last_row_scores(query: torch.Tensor, key: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
    """Return the raw scores q·k/√d of one query a sequence: query (B, H, D), key (B, H_kv, K, D) -> (B, H, K) float32.

    Grouped queries: H / H_kv neighbouring query heads share a key head, so they are rows of one product.
    """
    n_batch, n_heads, dim = query.shape
    scaling = dim**-0.5 if scaling is None else scaling
    groups = query.view(n_batch, key.shape[1], -1, dim)  # (B, H_kv, H / H_kv, D)
    return (groups.float() @ key.float().transpose(-1, -2) * scaling).view(n_batch, n_heads, -1)


def last_row_output(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return each head's weighted mean of the values: weights (B, H, K), value (B, H_kv, K, D) -> (B, H, D)."""
    n_batch, n_heads, n_keys = weights.shape
    groups = weights.view(n_batch, value.shape[1], -1, n_keys).to(value.dtype)
    return (groups @ value).view(n_batch, n_heads, -1)


def _mask(scores, attention_mask, tokens, window):
    """Shut out the keys that the last real token may not see; scores (B, H, K)."""
    minimum = torch.finfo(scores.dtype).min
    if not (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4):  # none, or flash's (B, K)
        visible = tokens.visible(scores.shape[-1], window).to(scores.device)
        return scores.masked_fill(~visible[:, None], minimum)
    batch = torch.arange(tokens.batch, device=scores.device)
    row = attention_mask.expand(tokens.batch, -1, -1, -1)[batch, :, tokens.last.to(scores.device)]  # (B, 1 or H, K)
    return scores.masked_fill(~row, minimum) if row.dtype == torch.bool else scores + row
