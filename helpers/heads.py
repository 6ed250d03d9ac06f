"""Head vectors: what each attention head hands on for the last prompt token.

Head h of a layer turns the prompt into one vector, the mean of the values weighted by its attention. It is read before
the layer's output projection (`o_proj`) mixes the heads, so each head can still be told from the others. SAV (arXiv
2412.00142) and CALM (arXiv 2602.07077) classify with these vectors. Taught in Part III.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from helpers.attention import text_decoder, transformers_model
from helpers.models import LALM, load_audio, load_frames


def head_vectors(model, inputs: Mapping) -> torch.Tensor:
    """Read all heads of all layers at the last real token of each prompt, in one forward pass.

    The pass ends at the last layer's heads: what comes after them, the logits above all, is not computed. Of each layer
    one row a prompt is kept, so memory does not grow with the prompt. Inside a `MATA` block the vectors are steered.

    Parameters
    ----------
    model : LALM or transformers model
    inputs : mapping
        What the model is called with: `input_ids` (batch, seq), padded left, right or not at all.

    Returns
    -------
    Tensor of float32, shape (batch, layers, heads, head_dim), on the CPU

    Raises
    ------
    ValueError
        If the model's decoder has no output projections, or its tokens are not those of `input_ids`.
    """
    projections = _output_projections(model)
    input_ids, last = inputs["input_ids"], _last_real_token(inputs)
    kept = []

    def keep(projection, args):
        states = args[0]  # (B, S, H * D)
        if states.shape[:2] != input_ids.shape:
            raise ValueError(
                f"the decoder reads {tuple(states.shape[:2])} tokens, input_ids holds {tuple(input_ids.shape)}: "
                "pass a prompt whose audio tokens the processor has already expanded."
            )
        item = torch.arange(len(states), device=states.device)
        kept.append(states[item, last.to(states.device)].float())
        if projection is projections[-1]:
            raise _Enough

    hooks = [projection.register_forward_pre_hook(keep) for projection in projections]
    try:
        with torch.no_grad(), suppress(_Enough):
            transformers_model(model)(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if len(kept) < len(projections):
        raise ValueError(f"only {len(kept)} of {len(projections)} output projections were called.")
    vectors = torch.stack([rows.cpu() for rows in kept], dim=1)  # (B, L, H * D)
    return vectors.unflatten(-1, (text_decoder(model).config.num_attention_heads, -1))


def pooled_audio_tokens(lalm: LALM, inputs: Mapping) -> torch.Tensor:
    """Average each prompt's audio tokens as the decoder gets them: the sound as the audio encoder alone describes it.

    What a linear probe or nearest neighbours on the encoder see, the rivals of every method that reads the decoder.

    Returns
    -------
    Tensor of float32, shape (batch, hidden), on the CPU

    Raises
    ------
    ValueError
        If a prompt has no audio token.
    """
    is_audio = inputs["input_ids"] == lalm.audio_token_id  # (B, S)
    if not is_audio.any(1).all():
        raise ValueError("a prompt has no audio token to average: each needs a clip.")
    kept = []

    def keep(layer, args, kwargs):
        kept.append(args[0] if args else kwargs["hidden_states"])  # (B, S, hidden)
        raise _Enough

    hook = text_decoder(lalm).layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad(), suppress(_Enough):
            transformers_model(lalm)(**inputs, use_cache=False)
    finally:
        hook.remove()
    weight = is_audio.to(kept[0].device).float()
    return (torch.einsum("bsd,bs->bd", kept[0].float(), weight) / weight.sum(1, keepdim=True)).cpu()


def stream_head_vectors(
    lalm: LALM, examples: Iterable[tuple], out: str | os.PathLike, batch_size: int = 8
) -> np.ndarray:
    """Write the head vectors of a large set to disk, batch by batch; a run that was killed goes on where it stopped.

    The vectors go to `out`, one row an example, the keys of finished rows to `<out>.keys`, one line each. Until the
    last row is written, `out` is called `<out>.part`. The first batch is run in any case, and must give what the file
    holds: so vectors of two models, prompts or steerings never mix.

    Parameters
    ----------
    lalm : LALM
    examples : iterable of (key, prompt, audio) or, for an omni model, (key, prompt, audio, frames)
        `key`: a name of its own, on one line. `audio`: path, array or None. `frames`: path of a video, uint8 array
        (frames, height, width, 3) or None.
    out : path
        A file name ending in .npy.
    batch_size : int

    Returns
    -------
    memory-mapped ndarray of float32, shape (n, layers, heads, head_dim), read-only
        In the order of the examples.

    Raises
    ------
    ValueError
        For no examples, keys that repeat or break lines, or an `out` that holds something else.
    """
    examples, out = list(examples), Path(out)
    draft, log = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.keys")
    keys = [str(key) for key, *_ in examples]
    if not keys or len(set(keys)) < len(keys) or any(key.splitlines() != [key] for key in keys):
        raise ValueError("each example needs a key of its own, on one line, and there must be at least one example.")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} into; make it first.")
    done = _finished(log)
    if done and not (out.exists() or draft.exists()):
        raise ValueError(
            f"{log} tells of rows, but neither {out.name} nor {draft.name} is there; remove it to start anew."
        )
    if done != keys[: len(done)] or (out.exists() and done != keys):
        raise ValueError(f"{out} holds other examples (its keys are in {log}); remove both, or choose another name.")

    first = _vectors_of(lalm, examples[:batch_size])
    shape = (len(keys), *first.shape[1:])
    if done:
        X = np.load(out if out.exists() else draft, mmap_mode="r+")
        if X.shape != shape or not _agree(X[:batch_size], first, n=len(done), dtype=lalm.dtype):
            raise ValueError(f"{out} was made with another model, prompt, clip or steering; choose another name.")
    else:
        X = np.lib.format.open_memmap(draft, mode="w+", dtype=np.float32, shape=shape)

    progress = tqdm(total=len(keys), initial=len(done), unit="clip", desc=out.stem)
    with log.open("a", encoding="utf-8") as lines, progress:
        for start in range(len(done), len(keys), batch_size):
            rows = slice(start, start + batch_size)
            X[rows] = first if start == 0 else _vectors_of(lalm, examples[rows])
            X.flush()
            lines.writelines(f"{key}\n" for key in keys[rows])
            lines.flush()
            progress.update(len(keys[rows]))
    del X
    if draft.exists():
        os.replace(draft, out)
    return np.load(out, mmap_mode="r")


class _Enough(Exception):
    """Ends a forward pass once the last layer's heads are read."""


def _output_projections(model) -> list[torch.nn.Module]:
    decoder = text_decoder(model)
    found = [
        [module for name, module in layer.named_modules() if name.split(".")[-1] == "o_proj"]
        for layer in decoder.layers
    ]
    odd = [i for i, modules in enumerate(found) if len(modules) != 1]
    if odd:
        raise ValueError(
            f"layers {odd} of {type(decoder).__name__} have no single output projection o_proj to read heads before."
        )
    return [modules[0] for modules in found]


def _last_real_token(inputs: Mapping) -> torch.Tensor:
    """Column of each prompt's last token that is not padding: (batch,)."""
    input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    return input_ids.shape[1] - 1 - mask.bool().flip(1).int().argmax(1)


def _vectors_of(lalm: LALM, examples: list[tuple]) -> np.ndarray:
    _, prompts, audios, *videos = zip(*examples, strict=True)
    heard = [load_audio(audio, lalm.sampling_rate) if isinstance(audio, str | Path) else audio for audio in audios]
    seen = [load_frames(video) if isinstance(video, str | Path) else video for video in videos[0]] if videos else None
    return head_vectors(lalm, lalm.prepare(prompts, heard, videos=seen)).numpy()


def _agree(stored: np.ndarray, again: np.ndarray, n: int, dtype: torch.dtype) -> bool:
    """Whether the first n rows at hand are the same up to rounding, which also depends on the neighbours in a batch."""
    n = min(n, len(again))
    return np.abs(stored[:n] - again[:n]).max() <= torch.finfo(dtype).eps ** 0.5 * np.abs(again[:n]).max()


def _finished(log: Path) -> list[str]:
    """Keys of the rows that are written; a last line without its end was cut off, and is removed."""
    if not log.exists():
        return []
    text = log.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        log.write_bytes(whole)
    return whole.decode("utf-8").splitlines()
