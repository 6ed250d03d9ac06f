"""Head vectors against a slow reference that keeps everything, over families and paddings; streams that are cut off."""

import sys

import families
import numpy as np
import pytest
import random_models
import soundfile
import torch
from videos import write_video

from benchmarks.heads_speed import measure_memory
from helpers import heads
from helpers.attention import last_row_attention
from helpers.heads import head_vectors, pooled_audio_tokens, stream_head_vectors
from helpers.mata import MATA
from helpers.models import load_audio, load_frames, load_lalm

PROMPTS = [[5, -64, 3], [2, -40, 2, -64, 6], [1, -48, 1]]  # different spans, several clips, different lengths


def whole_sequences(model, inputs, monkeypatch) -> torch.Tensor:
    """A prompt on its own, unpadded, by eager attention; all outputs kept, (layers, S, H, D), then the last one alone.

    It reads what the attention function returns, where heads have an axis of their own.
    """
    decoder = model.get_decoder()
    source = sys.modules[type(decoder.layers[0].self_attn).__module__]
    plain, layers, kept = source.eager_attention_forward, [layer.self_attn for layer in decoder.layers], []

    def keeping(module, *args, **kwargs):
        output, weights = plain(module, *args, **kwargs)  # (1, S, H, D)
        if module in layers:
            kept.append(output[0])
        return output, weights

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(source, "eager_attention_forward", keeping)
        decoder.set_attn_implementation("eager")
        model(**inputs)
        decoder.set_attn_implementation("sdpa")
    return torch.stack(kept)[:, -1]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_equals_the_slow_reference(family, padding, monkeypatch):
    model = families.build(family)
    inputs = families.batch(model, family, PROMPTS, padding)
    model.double().set_experts_implementation("eager")  # so that what differs is not rounding
    inputs = families.cast(inputs, torch.float64)
    vectors = head_vectors(model, inputs)
    assert vectors.shape == (3, 4, 4, 16 if family == "voxtral" else 8)
    assert vectors.dtype == torch.float32 and vectors.device.type == "cpu" and not vectors.requires_grad
    clip = 0
    for i, prompt in enumerate(PROMPTS):
        n_clips = sum(stretch < 0 for stretch in prompt)
        real = inputs["attention_mask"][i].bool()
        alone = {name: inputs[name][i : i + 1, real] for name in ("input_ids", "attention_mask")}
        sound = {name: value[clip : clip + n_clips] for name, value in inputs.items() if name not in alone}
        clip += n_clips
        reference = whole_sequences(model, alone | sound, monkeypatch).float()
        torch.testing.assert_close(vectors[i], reference, atol=3e-5, rtol=0)  # the norms round to float32 all the same


def test_memory_is_flat_in_the_length_of_the_prompt():
    short, long = measure_memory(load_lalm("tiny"), [100, 400])
    assert long["plain"] > 3 * short["plain"] and long["usual"] > 3 * short["usual"]
    assert long["head_vectors"] < 1.2 * short["head_vectors"] < 50_000  # bytes that reading adds to the pass


@pytest.mark.parametrize("family", families.FAMILIES)
def test_nothing_is_computed_that_nobody_reads(family):
    model = families.build(family)
    inputs = families.batch(model, family, PROMPTS)
    passes = []
    count = [model.lm_head, model.get_decoder().layers[-1].mlp, model.get_decoder().layers[0].mlp]
    for module in count:
        module.register_forward_hook(lambda module, *_: passes.append(module))
    head_vectors(model, inputs)
    assert passes == [model.get_decoder().layers[0].mlp]  # one pass of the batch, without its end


def test_leaves_the_model_as_it_was():
    model = families.build("qwen2_audio")
    inputs = families.batch(model, "qwen2_audio", PROMPTS)
    with torch.no_grad():
        before = model(**inputs).logits
        head_vectors(model, inputs)
        with pytest.raises(AttributeError):
            head_vectors(model, inputs | {"input_features": "no sound"})
        assert torch.equal(model(**inputs).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_shows_steering(family):
    model = families.build(family)
    inputs = families.batch(model, family, PROMPTS)
    before = head_vectors(model, inputs)
    with MATA(model, alpha=0.5, layers=[1, 2]) as steering:
        steered = head_vectors(model, inputs)
        assert steering.calls == {1: 1, 2: 1}
        replies = model.generate(**inputs, max_new_tokens=3)
    with MATA(model, alpha=0.5, layers=[1, 2]):
        assert torch.equal(
            model.generate(**inputs, max_new_tokens=3), replies
        )  # the pass that ended early left nothing
    with MATA(model, alpha=0.0, layers=[1, 2]):
        torch.testing.assert_close(head_vectors(model, inputs), before)
    assert torch.equal(steered[:, 0], before[:, 0])  # below the steered layers
    assert ((steered - before)[:, 1:].abs().amax(-1) > 0).all()
    assert torch.equal(head_vectors(model, inputs), before)


def test_the_steered_vector_by_hand():
    """A head's vector is its attention times the values: the first steered layer gives it away."""
    model = families.build("qwen2_audio")
    inputs = families.batch(model, "qwen2_audio", [[5, -64, 3]])
    values = {}
    attention = model.get_decoder().layers[1].self_attn
    attention.v_proj.register_forward_hook(lambda module, args, output: values.update(v=output))
    with MATA(model, alpha=0.5, layers=[1]) as steering:
        vectors = head_vectors(model, inputs)
        rows = last_row_attention(model, inputs)
    v = (
        values["v"].unflatten(-1, (2, 8)).repeat_interleave(2, dim=2)[0]
    )  # (S, H, D): two query heads share a value head
    torch.testing.assert_close(vectors[0, 1], torch.einsum("hs,shd->hd", rows[0, 1], v), atol=1e-5, rtol=0)
    assert steering.calls[1] == 2


@pytest.mark.parametrize("padding", ["left", "right"])
def test_pooled_audio_tokens_by_hand(padding):
    lalm = load_lalm("tiny")
    audios = [np.sin(np.arange(seconds * 16_000) / 9).astype("float32") for seconds in (1, 2)]
    inputs = lalm.prepare(["What?", "And what is this here?"], audios)
    if padding == "right":
        shift = (inputs["attention_mask"] == 0).sum(1).tolist()
        inputs = dict(inputs) | {
            name: torch.stack([row.roll(-n) for row, n in zip(inputs[name], shift, strict=True)])
            for name in ("input_ids", "attention_mask")
        }
    pooled = pooled_audio_tokens(lalm, inputs)
    embeddings = {}
    hook = lalm.decoder.register_forward_pre_hook(lambda m, args, kwargs: embeddings.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        lalm.model(**inputs)
    hook.remove()
    for item in range(2):
        is_audio = inputs["input_ids"][item] == lalm.audio_token_id
        assert is_audio.sum() == 12.5 * (item + 1) // 1
        expected = embeddings["inputs_embeds"][item, is_audio].mean(0)
        torch.testing.assert_close(pooled[item], expected, atol=1e-5, rtol=0)
    assert not any(module._forward_pre_hooks for module in lalm.model.modules())
    with pytest.raises(ValueError, match="a prompt has no audio token"):
        pooled_audio_tokens(lalm, lalm.prepare(["What?"], [None]))


def test_half_precision_and_text_alone():
    model = families.build("qwen2_audio")
    words = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])}
    vectors = head_vectors(model, words)
    half = head_vectors(model.to(torch.bfloat16), words)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, vectors, atol=0.05 * vectors.abs().max().item(), rtol=0)


@pytest.mark.parametrize("family", random_models.FAMILIES)
def test_takes_a_lalm(family):
    lalm = random_models.random_lalm(family)
    inputs = lalm.prepare(["What?", "And what is this here?"], [noise(1), noise(2)])
    vectors = head_vectors(lalm, inputs)
    assert torch.equal(vectors, head_vectors(lalm.model, inputs))
    for i, (prompt, clip) in enumerate([("What?", noise(1)), ("And what is this here?", noise(2))]):
        alone = head_vectors(lalm, lalm.prepare([prompt], [clip]))
        torch.testing.assert_close(vectors[i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_refuses_what_it_cannot_read():
    model = families.build("qwen2_audio")
    inputs = families.batch(model, "qwen2_audio", PROMPTS)
    with pytest.raises(ValueError, match="no text decoder"):
        head_vectors(torch.nn.Linear(2, 2), inputs)
    attention = model.get_decoder().layers[2].self_attn
    attention.dense = attention.__dict__["_modules"].pop("o_proj")
    with pytest.raises(ValueError, match=r"layers \[2\] of Qwen2Model have no single output projection"):
        head_vectors(model, inputs)


def test_refuses_a_pass_that_misses_a_layer():
    model = families.build("qwen2_audio")
    model.get_decoder().layers[3].forward = lambda hidden_states, **kwargs: hidden_states
    with pytest.raises(ValueError, match="only 3 of 4"):
        head_vectors(model, families.batch(model, "qwen2_audio", PROMPTS))


def test_refuses_tokens_that_are_not_those_of_the_prompt():
    model = families.build("qwen2_audio")
    inputs = families.batch(model, "qwen2_audio", PROMPTS)
    decoder = model.get_decoder()
    decoder.layers[0].register_forward_pre_hook(lambda module, args: (args[0][:, :-1], *args[1:]))
    decoder.layers[0].self_attn.register_forward_pre_hook(shorter, with_kwargs=True)
    with pytest.raises(ValueError, match="already expanded"):
        head_vectors(model, inputs)


def shorter(module, args, kwargs):
    cos, sin = kwargs["position_embeddings"]
    return args, kwargs | {"position_embeddings": (cos[:, :-1], sin[:, :-1]), "attention_mask": None}


# ------------------------------------------------------------------------------------------------------------- streams
def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))).astype(np.float32)


@pytest.fixture(scope="module")
def lalm():
    return random_models.random_lalm("qwen2_audio")


@pytest.fixture
def examples():
    return [(f"clip {i}", "What is this?", noise(0.4 + 0.1 * i, seed=i)) for i in range(7)]


@pytest.fixture
def seen(monkeypatch):
    """Keys of the examples that went through the model, batch by batch."""
    batches, plain = [], heads._vectors_of

    def counting(lalm, examples):
        batches.append([key for key, *_ in examples])
        return plain(lalm, examples)

    monkeypatch.setattr(heads, "_vectors_of", counting)
    return batches


def test_stream_equals_one_batch(lalm, examples, tmp_path):
    X = stream_head_vectors(lalm, iter(examples), tmp_path / "X.npy", batch_size=3)
    assert isinstance(X, np.memmap) and not X.flags.writeable
    _, prompts, audios = zip(*examples, strict=True)
    whole = head_vectors(lalm, lalm.prepare(prompts, audios)).numpy()
    assert X.shape == whole.shape and X.dtype == np.float32
    np.testing.assert_allclose(X, whole, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["X.npy", "X.npy.keys"]
    assert (tmp_path / "X.npy.keys").read_text().splitlines() == [key for key, *_ in examples]


def test_stream_reads_files(lalm, examples, tmp_path):
    paths = [tmp_path / f"{i}.wav" for i in range(2)]
    for path, (_, _, audio) in zip(paths, examples, strict=False):
        soundfile.write(path, audio, 16_000, subtype="FLOAT")
    from_disk = [(path.name, "What is this?", path) for path in paths]
    X = stream_head_vectors(lalm, from_disk, tmp_path / "X.npy")
    np.testing.assert_allclose(X, stream_head_vectors(lalm, examples[:2], tmp_path / "Y.npy"), atol=1e-6)


def test_stream_reads_videos(tmp_path):
    pytest.importorskip("av", reason="reading videos takes PyAV")
    omni = random_models.random_lalm("qwen2_5_omni")
    paths = [tmp_path / f"{i}.mp4" for i in range(2)]
    for i, path in enumerate(paths):
        write_video(path, [(200, 100 * i, 30)] * 10, pitch=300 + 200 * i)
    prompts, frames = ["What happens?"] * 2, [load_frames(path) for path in paths]
    X = stream_head_vectors(omni, list(zip(paths, prompts, paths, paths, strict=True)), tmp_path / "X.npy")
    sounds = [load_audio(path, omni.sampling_rate) for path in paths]
    expected = head_vectors(omni, omni.prepare(prompts, sounds, videos=frames)).numpy()
    np.testing.assert_allclose(X, expected, atol=1e-5)
    given = list(zip("ab", prompts, sounds, [frames[0], None], strict=True))  # arrays, and one without frames
    Y = stream_head_vectors(omni, given, tmp_path / "Y.npy")
    np.testing.assert_allclose(Y[0], X[0], atol=1e-4)
    assert np.abs(Y[1] - X[1]).max() > 1e-3


@pytest.mark.parametrize("torn", ["", "clip 6", "cl"])
def test_a_killed_stream_goes_on(lalm, examples, tmp_path, seen, torn):
    out = tmp_path / "X.npy"
    broken = [*examples[:5], ("clip 5", "What is this?", noise(0.001)), examples[6]]
    with pytest.raises(ValueError, match="too short"):
        stream_head_vectors(lalm, broken, out, batch_size=2)
    assert not out.exists()  # what is not complete does not look complete
    with (tmp_path / "X.npy.keys").open("a") as keys:
        keys.write(torn)
    seen.clear()
    X = stream_head_vectors(lalm, examples, out, batch_size=2)
    assert seen == [["clip 0", "clip 1"], ["clip 4", "clip 5"], ["clip 6"]]  # the first is run to compare
    assert np.array_equal(X, stream_head_vectors(lalm, examples, tmp_path / "Y.npy", batch_size=2))


def test_a_finished_stream_is_not_run_again(lalm, examples, tmp_path, seen):
    X = stream_head_vectors(lalm, examples, tmp_path / "X.npy", batch_size=2)
    seen.clear()
    assert np.array_equal(stream_head_vectors(lalm, examples, tmp_path / "X.npy", batch_size=2), X)
    assert seen == [["clip 0", "clip 1"]]
    again = stream_head_vectors(
        lalm, examples, tmp_path / "X.npy", batch_size=5
    )  # another padding: equal up to rounding
    assert np.array_equal(again, X)


def test_killed_before_the_last_rename(lalm, examples, tmp_path):
    out = tmp_path / "X.npy"
    X = np.array(stream_head_vectors(lalm, examples, out))
    out.rename(tmp_path / "X.npy.part")
    assert np.array_equal(stream_head_vectors(lalm, examples, out), X)
    assert out.exists() and not (tmp_path / "X.npy.part").exists()


def test_files_of_different_runs_never_mix(lalm, examples, tmp_path):
    out = tmp_path / "X.npy"
    stream_head_vectors(lalm, examples, out)
    before = out.read_bytes()
    other = random_models.random_lalm("qwen2_audio", seed=1)
    asked = [(key, "How many?", audio) for key, _, audio in examples]
    with pytest.raises(ValueError, match="another model, prompt, clip or steering"):
        stream_head_vectors(other, examples, out)
    with pytest.raises(ValueError, match="another model, prompt, clip or steering"):
        stream_head_vectors(lalm, asked, out)
    with pytest.raises(ValueError, match="another model, prompt, clip or steering"), MATA(lalm, alpha=0.1):
        stream_head_vectors(lalm, examples, out)
    with pytest.raises(ValueError, match="other examples"):
        stream_head_vectors(lalm, examples[::-1], out)
    with pytest.raises(ValueError, match="other examples"):
        stream_head_vectors(lalm, examples[:3], out)
    (tmp_path / "X.npy.keys").unlink()
    with pytest.raises(ValueError, match="other examples"):
        stream_head_vectors(lalm, examples, out)
    assert out.read_bytes() == before


def test_files_that_were_moved_away(lalm, examples, tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        stream_head_vectors(lalm, examples, tmp_path / "nowhere" / "X.npy")
    out = tmp_path / "X.npy"
    stream_head_vectors(lalm, examples, out)
    out.unlink()
    with pytest.raises(ValueError, match="X.npy.keys tells of rows.*remove it to start anew"):
        stream_head_vectors(lalm, examples, out)


@pytest.mark.parametrize("keys", [[], ["a", "a"], ["a", "b\nc"], ["a", ""]])
def test_keys_are_names(lalm, tmp_path, keys):
    with pytest.raises(ValueError, match="a key of its own"):
        stream_head_vectors(lalm, [(key, "What?", noise(1)) for key in keys], tmp_path / "X.npy")
