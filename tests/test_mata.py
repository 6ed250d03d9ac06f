"""MATA against a full eager reference, over families, masks, caches and beams; and what must stay as it was."""

import copy
import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Thread

import families
import pytest
import random_models
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from transformers import AutoModelForCausalLM, Qwen2AudioForConditionalGeneration, Qwen2Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.qwen2.modeling_qwen2 import repeat_kv
from transformers.utils import is_flash_attn_2_available

from helpers import attention
from helpers.mata import MATA, select_layers

PROMPTS = [[5, -64, 3], [2, -40, 2, -64, 6], [1, -30, 1]]  # different spans, several clips, different lengths
LAYERS = [1, 2]
BY_HAND = {
    "multiply": lambda s, alpha: s * (1 + alpha),
    "absolute": lambda s, alpha: s + alpha * s.abs(),
    "additive": lambda s, alpha: s + torch.log(torch.tensor(1 + alpha)),
}


@contextmanager
def eager_reference(model, inputs, alpha=0.5, rule="multiply", layers=LAYERS, beams=1, cached=True):
    """The usual patch: eager attention with all scores, steered in place, written without a look at helpers.mata.

    The batch's prompts are known from outside; a query longer than one token is a prefill.
    """
    decoder = model.get_decoder()
    source = sys.modules[type(decoder.layers[0].self_attn).__module__]
    plain = source.eager_attention_forward
    is_audio = (inputs["input_ids"] == families.AUDIO).repeat_interleave(beams, 0)
    mask = inputs["attention_mask"].repeat_interleave(beams, 0)
    attentions = {layer.self_attn: i for i, layer in enumerate(decoder.layers)}

    def steered(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        if attentions.get(module) not in layers:
            return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        key, value = (repeat_kv(x, module.num_key_value_groups) for x in (key, value))
        scores = query @ key.transpose(2, 3) * scaling  # (B, H, Q, K)
        n_queries = query.shape[2]
        for i in range(len(query)):
            generated = n_queries == 1 or n_queries > mask.shape[1]
            row = n_queries - 1 if generated else mask[i].nonzero().max()
            audio = is_audio[i].nonzero().flatten()
            scores[i, :, row, audio] = BY_HAND[rule](scores[i, :, row, audio], alpha)
        weights = (scores + attention_mask).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    source.eager_attention_forward = steered
    try:
        yield
    finally:
        source.eager_attention_forward = plain
        decoder.set_attn_implementation(before)


def last_logits(model, inputs) -> torch.Tensor:
    """Logits of each sequence's last real token: (batch, vocabulary)."""
    with torch.no_grad():
        logits = model(**inputs).logits
    return torch.stack([logits[i, row.nonzero().max()] for i, row in enumerate(inputs["attention_mask"])])


def generate(model, inputs, **kwargs):
    """Six new tokens and their logits, with no end-of-text."""
    kwargs = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True} | kwargs
    out = model.generate(**inputs, **kwargs)
    return out.sequences, torch.stack(out.logits)


@pytest.fixture(scope="module", params=families.FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return families.build(family)


@pytest.fixture
def audio_model():
    return families.build("qwen2_audio")


def test_middle_layers():
    assert select_layers("middle", 28) == list(range(10, 20))
    assert select_layers("middle", 32) == list(range(11, 23))
    assert [select_layers("middle", depth) for depth in (1, 2, 4, 8)] == [[0], [1], [1, 2], [3, 4, 5]]
    assert (
        select_layers(range(2, 4), 8) == select_layers([3, 2, 2], 8) == select_layers(torch.tensor([3, 2]), 8) == [2, 3]
    )


# ---- equal to the reference -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("rule", BY_HAND)
def test_forward_equals_the_reference(model, family, rule, padding):
    inputs = families.batch(model, family, PROMPTS, padding)
    plain = last_logits(model, inputs)
    with eager_reference(model, inputs, 0.5, rule):
        expected = last_logits(model, inputs)
    with MATA(model, alpha=0.5, layers=LAYERS, rule=rule) as steering:
        steered = last_logits(model, inputs)
    assert steering.calls == {1: 1, 2: 1}
    assert torch.allclose(steered, expected, atol=1e-4)
    assert ((expected - plain).abs().amax(1) > 1e-2).all()  # the reference itself does something, to each item


@pytest.mark.parametrize("alpha", [-0.5, 0.1, 3.0])
def test_strengths(audio_model, alpha):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    with eager_reference(audio_model, inputs, alpha):
        expected = last_logits(audio_model, inputs)
    with MATA(audio_model, alpha=alpha, layers=LAYERS):
        assert torch.allclose(last_logits(audio_model, inputs), expected, atol=1e-4)


def test_generation_equals_the_reference(model, family):
    inputs = families.batch(model, family, PROMPTS)
    _, plain = generate(model, inputs)
    with eager_reference(model, inputs):
        expected, logits = generate(model, inputs)
    with MATA(model, alpha=0.5, layers=LAYERS) as steering:
        tokens, steered_logits = generate(model, inputs)
        again, _ = generate(model, inputs)  # each prefill starts anew
    assert torch.equal(tokens, expected)
    assert torch.equal(again, tokens)
    assert ((steered_logits - plain).abs().amax(-1) > 0.01).all(0).any()  # every token of some reply
    assert torch.allclose(steered_logits, logits, atol=1e-4)
    assert steering.calls == {1: 12, 2: 12}


def test_beam_search_equals_the_reference(model, family):
    inputs = families.batch(model, family, PROMPTS)
    with eager_reference(model, inputs, beams=3):
        expected, logits = generate(model, inputs, num_beams=3)
    with MATA(model, alpha=0.5, layers=LAYERS):
        tokens, steered_logits = generate(model, inputs, num_beams=3)
    assert torch.equal(tokens, expected)
    assert torch.allclose(steered_logits, logits, atol=1e-4)


def test_without_a_cache_only_the_newest_token_is_steered(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    with eager_reference(audio_model, inputs, alpha=1.0):
        expected, logits = generate(audio_model, inputs, use_cache=False)
    with MATA(audio_model, alpha=1.0, layers=LAYERS):
        tokens, steered_logits = generate(audio_model, inputs, use_cache=False)
        cached, cached_logits = generate(audio_model, inputs)
    assert torch.equal(tokens, expected)
    assert torch.allclose(steered_logits, logits, atol=1e-4)
    assert torch.allclose(cached_logits[0], logits[0], atol=1e-4)
    assert not torch.allclose(cached_logits[1:], logits[1:], atol=1e-2)  # the rows of earlier tokens were steered there


def test_sampling_several_replies_equals_the_reference(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    with eager_reference(audio_model, inputs, beams=3):
        torch.manual_seed(0)
        expected, _ = generate(audio_model, inputs, do_sample=True, num_return_sequences=3)
    with MATA(audio_model, alpha=0.5, layers=LAYERS):
        torch.manual_seed(0)
        tokens, _ = generate(audio_model, inputs, do_sample=True, num_return_sequences=3)
    assert torch.equal(tokens, expected)
    assert not torch.equal(tokens[0], tokens[1])


def test_static_cache(model, family):
    """More keys than tokens: the end of the cache is empty."""
    inputs = families.batch(model, family, PROMPTS)
    with MATA(model, alpha=0.5, layers=LAYERS):
        expected, logits = generate(model, inputs)
        tokens, static_logits = generate(model, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(tokens, expected)
    assert torch.allclose(static_logits, logits, atol=1e-4)


SLIDING = dict(use_sliding_window=True, sliding_window=8, max_window_layers=0)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_sliding_window(padding):
    model = families.build("qwen2_audio", **SLIDING)
    assert set(model.config.text_config.layer_types) == {"sliding_attention"}
    inputs = families.batch(model, "qwen2_audio", PROMPTS, padding)
    with eager_reference(model, inputs):
        expected = last_logits(model, inputs)
    with MATA(model, alpha=0.5, layers=LAYERS):
        assert torch.allclose(last_logits(model, inputs), expected, atol=1e-4)


def test_cache_of_a_sliding_window():
    """Fewer keys than tokens: the oldest are gone. In the top layer steered rows change no later token's keys."""
    model = families.build("qwen2_audio", **SLIDING)
    inputs = families.batch(model, "qwen2_audio", PROMPTS)
    with eager_reference(model, inputs, layers=[3]):
        expected, logits = generate(model, inputs, use_cache=False)
    with MATA(model, alpha=0.5, layers=[3]):
        tokens, cached_logits = generate(model, inputs)
    assert torch.equal(tokens, expected)
    assert torch.allclose(cached_logits, logits, atol=1e-4)


def fake_flash(module, query, key, value, attention_mask, sliding_window=None, **kwargs):
    """FlashAttention's contract, on a CPU: no mask or a 2-D one, right-aligned queries, its own name in the config."""
    assert module.config._attn_implementation == "fake_flash"
    n_queries, n_keys = query.shape[2], key.shape[2]
    assert attention_mask is None or attention_mask.shape == (len(query), n_keys)
    query_at = torch.arange(n_keys - n_queries, n_keys)[:, None]
    visible = torch.arange(n_keys) <= query_at
    if sliding_window is not None:
        visible &= torch.arange(n_keys) > query_at - sliding_window
    visible = visible[None, None]
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, None, :].bool()
    return sdpa_attention_forward(module, query, key, value, visible, **kwargs)


@pytest.fixture
def flash_by_another_name():
    AttentionInterface.register("fake_flash", fake_flash)
    AttentionMaskInterface.register("fake_flash", flash_attention_mask)
    yield "fake_flash"
    del AttentionInterface._global_mapping["fake_flash"], AttentionMaskInterface._global_mapping["fake_flash"]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_on_flash_attention_s_masks(flash_by_another_name, padding):
    for sliding in ({}, SLIDING):
        model = families.build("qwen2_audio", **sliding)
        inputs = families.batch(model, "qwen2_audio", PROMPTS, padding)
        with eager_reference(model, inputs):
            expected = last_logits(model, inputs)
        model.get_decoder().config._attn_implementation = flash_by_another_name
        with MATA(model, alpha=0.5, layers=LAYERS):
            assert torch.allclose(last_logits(model, inputs), expected, atol=1e-4)
        assert model.get_decoder().config._attn_implementation == flash_by_another_name


def test_on_eager_attention(model, family):
    inputs = families.batch(model, family, PROMPTS)
    with eager_reference(model, inputs):
        expected, logits = generate(model, inputs)
        attentions = model(**inputs, output_attentions=True).attentions
    model.get_decoder().set_attn_implementation("eager")
    with MATA(model, alpha=0.5, layers=LAYERS):
        tokens, steered_logits = generate(model, inputs)
        steered = model(**inputs, output_attentions=True).attentions
    assert torch.equal(tokens, expected)
    assert torch.allclose(steered_logits, logits, atol=1e-4)
    for mine, theirs in zip(steered, attentions, strict=True):  # the weights it hands out are the steered ones
        assert torch.allclose(mine[:, :, -1], theirs[:, :, -1], atol=1e-5)


def assert_as_near_the_truth_as_the_patch(model, truth, inputs):
    """In half precision both err; MATA must not err more, and less than no steering at all."""
    inputs = families.cast(inputs, model.dtype)
    with eager_reference(model, inputs):
        patch = last_logits(model, inputs).float()
    with MATA(model, alpha=0.5, layers=LAYERS):
        steered = last_logits(model, inputs)
    assert steered.dtype == model.dtype
    plain = last_logits(model, inputs).float()
    error = (steered.float() - truth).norm()
    assert error < 1.5 * (patch - truth).norm()
    assert error < 0.3 * (plain - truth).norm()


def test_bfloat16_is_as_near_the_truth_as_the_patch(model, family):
    inputs = families.batch(model, family, PROMPTS)
    with eager_reference(model, inputs):
        truth = last_logits(model, inputs)
    assert_as_near_the_truth_as_the_patch(model.to(torch.bfloat16), truth, inputs)


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs a GPU and flash-attn")
@pytest.mark.parametrize("padding", ["left", "right"])
def test_on_flash_attention(audio_model, padding):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS, padding)
    inputs = {name: value.cuda() for name, value in inputs.items()}
    audio_model.cuda()
    with eager_reference(audio_model, inputs):
        truth = last_logits(audio_model, inputs)
    audio_model.to(torch.bfloat16).get_decoder().set_attn_implementation("flash_attention_2")
    assert_as_near_the_truth_as_the_patch(audio_model, truth, inputs)


def test_multi_turn_continues_from_the_cache(audio_model):
    """A second turn behind a filled cache: its own audio is steered, and so is the first turn's."""
    inputs = families.batch(audio_model, "qwen2_audio", [[4, -64, 3]])
    later = torch.tensor([[9, 8, 7, 6]])
    whole = inputs | {"input_ids": torch.cat([inputs["input_ids"], later], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    with eager_reference(audio_model, whole, layers=[3]):  # the top layer: earlier rows have no way to matter
        expected = last_logits(audio_model, whole)
    with torch.no_grad(), MATA(audio_model, alpha=0.5, layers=[3]):
        cache = audio_model(**inputs, use_cache=True).past_key_values
        steered = audio_model(input_ids=later, past_key_values=cache).logits[:, -1]
    assert torch.allclose(steered, expected, atol=1e-4)


def test_conversations_take_turns(audio_model):
    """Each cache keeps the mask of its own prompt, and so does each copy of a cache."""
    one, other = (families.batch(audio_model, "qwen2_audio", [prompt]) for prompt in ([5, -64, 3], [12, -64, 1]))
    following = torch.tensor([[9]])
    with torch.no_grad(), MATA(audio_model, alpha=0.5, layers=LAYERS):
        cache = audio_model(**one, use_cache=True).past_key_values
        expected = audio_model(input_ids=following, past_key_values=copy.deepcopy(cache)).logits
        other_cache = audio_model(**other, use_cache=True).past_key_values
        assert torch.equal(audio_model(input_ids=following, past_key_values=cache).logits, expected)
        assert not torch.allclose(audio_model(input_ids=following, past_key_values=other_cache).logits, expected)


def test_gradients_equal_the_reference(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    weight = audio_model.get_decoder().layers[0].self_attn.q_proj.weight
    gradients = []
    for block in (eager_reference(audio_model, inputs), MATA(audio_model, alpha=0.5, layers=LAYERS)):
        with block:
            loss = audio_model(**inputs).logits[:, -1].square().mean()
            gradients += torch.autograd.grad(loss, weight)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item())


def test_arguments_by_place(audio_model):
    """Of these, the mask alone tells where the last real token is."""
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS, "right")
    inner = audio_model.model
    order = ("input_ids", "input_features", "attention_mask", "feature_attention_mask")
    with torch.no_grad(), MATA(audio_model, alpha=0.5, layers=LAYERS):
        by_place = inner(*(inputs[name] for name in order)).last_hidden_state
        assert torch.equal(by_place, inner(**inputs).last_hidden_state)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_decoder():
    """What was compiled before a block must not serve inside it, nor the other way round."""
    model = families.build("qwen2_audio", num_hidden_layers=1)
    inputs = families.batch(model, "qwen2_audio", PROMPTS)
    expected = {0: last_logits(model, inputs)}
    for alpha in (0.5, 1.0):
        with MATA(model, alpha=alpha, layers=[0]):
            expected[alpha] = last_logits(model, inputs)
    torch.compiler.reset()
    model.get_decoder().compile(backend="eager")
    for alpha in (0, 0.5, 1.0, 0):
        steering = MATA(model, alpha=alpha, layers=[0])
        with steering if alpha else nullcontext():
            assert torch.allclose(last_logits(model, inputs), expected[alpha], atol=1e-5)
        assert steering.calls == ({0: 1} if alpha else {})


def test_beneath_the_hooks_of_accelerate(audio_model):
    """They wrap `forward`, for instance of a model that is spread over several devices."""
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    with MATA(audio_model, alpha=0.5, layers=LAYERS):
        expected, _ = generate(audio_model, inputs)
    for module in audio_model.modules():
        add_hook_to_module(module, ModelHook())
    with MATA(audio_model, alpha=0.5, layers=LAYERS):
        assert torch.equal(generate(audio_model, inputs)[0], expected)


# ---- nothing else changes -------------------------------------------------------------------------------------------


def state(model) -> list:
    return [
        [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")],
        [(len(m._forward_pre_hooks), len(m._forward_hooks), set(vars(m))) for m in model.modules()],
    ]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_zero_is_bit_identical(model, family, implementation):
    model.set_attn_implementation(implementation)
    inputs = families.batch(model, family, PROMPTS)
    plain, (tokens, logits) = last_logits(model, inputs), generate(model, inputs)
    with MATA(model, alpha=0, layers=range(4)) as steering:
        assert torch.equal(last_logits(model, inputs), plain)
        steered_tokens, steered_logits = generate(model, inputs)
    assert torch.equal(steered_tokens, tokens)
    assert torch.equal(steered_logits, logits)
    assert not steering.calls


def test_rows_before_the_last_are_bit_identical(model, family):
    inputs, heads = families.batch(model, family, PROMPTS), []
    first = model.get_decoder().layers[0].self_attn
    hook = first.register_forward_hook(lambda module, args, output: heads.append(output[0][:, :-1]))
    with torch.no_grad():
        plain = model(**inputs).logits
        with MATA(model, alpha=0.5, layers=range(4)):
            steered = model(**inputs).logits
    hook.remove()
    assert torch.equal(*heads)
    if family == "qwen3_omni":  # an expert multiplies its tokens together: one more or less moves the rounding
        torch.testing.assert_close(steered[:, :-1], plain[:, :-1], atol=1e-5, rtol=0)
    else:
        assert torch.equal(steered[:, :-1], plain[:, :-1])
    assert (steered[:, -1] != plain[:, -1]).any(-1).all()


def test_leaving_restores_the_model(model, family):
    inputs = families.batch(model, family, PROMPTS)
    plain, before = last_logits(model, inputs), state(model)
    with MATA(model, alpha=0.5, layers=LAYERS):
        last_logits(model, inputs)
        assert state(model) != before
    assert state(model) == before
    assert torch.equal(last_logits(model, inputs), plain)


def test_an_exception_restores_the_model_too(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    plain, before = last_logits(audio_model, inputs), state(audio_model)

    def fail(*args):
        raise RuntimeError("in the middle of a forward pass")

    handle = audio_model.get_decoder().layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"), MATA(audio_model, layers=LAYERS):
        last_logits(audio_model, inputs)
    handle.remove()
    assert state(audio_model) == before
    assert torch.equal(last_logits(audio_model, inputs), plain)


def test_the_audio_tower_is_left_alone(model, family):
    inputs = families.batch(model, family, PROMPTS)
    heard = []
    tower = families.audio_tower(model, family)
    tower.register_forward_hook(lambda module, args, out: heard.append(getattr(out, "last_hidden_state", out)))
    last_logits(model, inputs)
    implementation = tower.config._attn_implementation
    with MATA(model, alpha=0.5, layers=range(4)):
        assert tower.config._attn_implementation == implementation
        last_logits(model, inputs)
    assert torch.equal(*heard)


def test_nested_blocks_compose(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    plain = last_logits(audio_model, inputs)
    with MATA(audio_model, alpha=0.2, layers=[1]):
        outer = last_logits(audio_model, inputs)
    with MATA(audio_model, alpha=0.8, layers=[1, 2]) as once:  # (1 + 0.2)(1 + 0.5) = 1 + 0.8 in layer 1
        pass
    with MATA(audio_model, alpha=0.8, layers=[1]), MATA(audio_model, alpha=0.5, layers=[2]):
        expected = last_logits(audio_model, inputs)
    with MATA(audio_model, alpha=0.2, layers=[1]) as first:
        with MATA(audio_model, alpha=0.5, layers=[1, 2]) as second:
            assert torch.allclose(last_logits(audio_model, inputs), expected, atol=1e-5)
        assert torch.equal(last_logits(audio_model, inputs), outer)
    assert torch.equal(last_logits(audio_model, inputs), plain)
    assert (once.calls, first.calls, second.calls) == ({}, {1: 2}, {1: 1, 2: 1})


def test_blocks_may_close_in_any_order(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    before = state(audio_model)
    with MATA(audio_model, alpha=0.5, layers=[2]):
        expected = last_logits(audio_model, inputs)
    first, second = MATA(audio_model, alpha=0.2, layers=[1]), MATA(audio_model, alpha=0.5, layers=[2])
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert torch.equal(last_logits(audio_model, inputs), expected)
    second.__exit__()
    assert state(audio_model) == before


@pytest.mark.parametrize("shared_config", [False, True])
def test_two_models_do_not_mix(shared_config):
    one = families.build("qwen2_audio", seed=1)
    torch.manual_seed(2)
    two = Qwen2AudioForConditionalGeneration(one.config).eval() if shared_config else families.build("voxtral", seed=2)
    models = {one: "qwen2_audio", two: "qwen2_audio" if shared_config else "voxtral"}
    inputs = {model: families.batch(model, family, PROMPTS) for model, family in models.items()}
    plain = {model: last_logits(model, inputs[model]) for model in models}
    alone = {}
    for model in models:
        with MATA(model, alpha=0.5, layers=[1]):
            alone[model] = last_logits(model, inputs[model])
            other = two if model is one else one
            assert torch.equal(last_logits(other, inputs[other]), plain[other])
    with MATA(one, alpha=0.5, layers=[1]) as first, MATA(two, alpha=0.5, layers=[1]) as second:
        for model in models:
            assert torch.equal(last_logits(model, inputs[model]), alone[model])
    assert first.calls == second.calls == {1: 1}
    for model in models:
        assert torch.equal(last_logits(model, inputs[model]), plain[model])


def in_threads(*works) -> list:
    """What each work returned or raised, all at once."""
    results = [None] * len(works)

    def run(i, work):
        try:
            results[i] = work()
        except Exception as error:
            results[i] = error

    threads = [Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def hasty_threads():
    """Threads take turns after a few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_two_threads_with_a_model_each(hasty_threads):
    models = [families.build("qwen2_audio", seed=seed) for seed in (1, 2)]

    def work(model):
        inputs = families.batch(model, "qwen2_audio", PROMPTS)
        outputs = []
        for _ in range(5):
            with MATA(model, alpha=0.5, layers=LAYERS) as steering:
                outputs.append(last_logits(model, inputs))
            assert steering.calls == {1: 1, 2: 1}
        return torch.stack(outputs)

    alone = [work(model) for model in models]
    for expected, output in zip(alone, in_threads(*(partial(work, model) for model in models)), strict=True):
        assert torch.equal(output, expected)


def test_two_threads_call_one_steered_model(hasty_threads, audio_model):
    batches = [families.batch(audio_model, "qwen2_audio", [prompt]) for prompt in ([5, -64, 3], [3, -64, 5])]

    def work(inputs):
        return torch.stack([generate(audio_model, inputs)[1] for _ in range(3)])

    with MATA(audio_model, alpha=0.5, layers=LAYERS):
        alone = [work(inputs) for inputs in batches]
        for expected, output in zip(alone, in_threads(*(partial(work, inputs) for inputs in batches)), strict=True):
            assert torch.equal(output, expected)


def test_one_thread_steers_a_model(audio_model):
    """Blocks of two threads would nest: each would get the other's strength on top."""
    with MATA(audio_model), pytest.raises(ValueError, match="another thread steers this model already"):
        raise in_threads(MATA(audio_model).__enter__)[0]
    assert audio_model.get_decoder().config._attn_implementation == "sdpa"


def test_another_thread_may_close_its_block_at_any_moment():
    one, two = families.build("qwen2_audio", seed=1), families.build("qwen2_audio", seed=2)
    first, second = MATA(one), MATA(two, alpha=0.5, layers=LAYERS)
    inputs = families.batch(two, "qwen2_audio", PROMPTS)

    class Closing(dict):
        def __contains__(self, module):
            if first in attention._active and module in second.layer_of:
                first.__exit__()
            return False

    with second:
        expected = last_logits(two, inputs)
    first.__enter__()
    first.layer_of = Closing()
    with second:
        assert torch.equal(last_logits(two, inputs), expected)
    assert first not in attention._active


def test_a_block_can_be_entered_again(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    steering = MATA(audio_model, layers=LAYERS)
    for _ in range(2):
        with steering:
            last_logits(audio_model, inputs)
        assert steering.calls == {1: 1, 2: 1}


# ---- other keys, as controls ----------------------------------------------------------------------------------------


def test_text_keys_and_chosen_keys(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    is_audio = inputs["input_ids"] == families.AUDIO
    steer = dict(alpha=0.5, layers=[1], rule="additive")
    with MATA(audio_model, **steer):
        audio = last_logits(audio_model, inputs)
    with MATA(audio_model, keys=lambda ids: is_audio, **steer):
        assert torch.equal(last_logits(audio_model, inputs), audio)
    with MATA(audio_model, keys="text", **steer):
        text = last_logits(audio_model, inputs)
    with MATA(audio_model, keys=lambda ids: ~is_audio, **steer):
        assert torch.equal(last_logits(audio_model, inputs), text)
    # Softmax can't tell "more to the text" from "less to the audio".
    with MATA(audio_model, alpha=1 / 1.5 - 1, layers=[1], rule="additive"):
        assert torch.allclose(last_logits(audio_model, inputs), text, atol=1e-4)


def test_everything_steered_alike_by_addition_is_nothing(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    plain = last_logits(audio_model, inputs)
    everything = dict(alpha=0.5, layers=LAYERS, keys=lambda ids: torch.ones_like(ids, dtype=torch.bool))
    with MATA(audio_model, rule="additive", **everything):
        assert torch.allclose(last_logits(audio_model, inputs), plain, atol=1e-4)
    with MATA(audio_model, rule="multiply", **everything):
        assert not torch.allclose(last_logits(audio_model, inputs), plain, atol=1e-2)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(alpha=-1), "alpha must be a finite number above -1, got -1"),
        (dict(alpha=float("nan")), "alpha must be a finite number"),
        (dict(alpha=float("inf")), "alpha must be a finite number"),
        (dict(layers=[]), "at least one index"),
        (dict(layers="upper"), "at least one index"),
        (dict(layers=[1.5]), "at least one index"),
        (dict(layers=3), "at least one index"),
        (dict(layers=[4]), r"layers must lie in 0..3, got \[4\]"),
        (dict(layers=[-1]), r"layers must lie in 0..3, got \[-1\]"),
        (dict(rule="divide"), "rule must be one of"),
        (dict(keys="speech"), "keys must be"),
    ],
)
def test_bad_arguments(audio_model, wrong, message):
    before = state(audio_model)
    with pytest.raises(ValueError, match=message):
        MATA(audio_model, **wrong)
    assert state(audio_model) == before


def test_a_prompt_without_audio(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    inputs["input_ids"][1][inputs["input_ids"][1] == families.AUDIO] = 5
    with pytest.raises(ValueError, match="prompt 1 of the batch has no audio token"), MATA(audio_model):
        audio_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert audio_model.get_decoder().config._attn_implementation == "sdpa"


def test_a_mask_that_does_not_fit(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    for mask in (torch.ones(1, 3, dtype=torch.bool), torch.ones_like(inputs["input_ids"])):
        with (
            pytest.raises(ValueError, match="keys must return a bool mask"),
            MATA(audio_model, keys=lambda ids, m=mask: m),
        ):
            audio_model(**inputs)


def test_embeddings_instead_of_ids(audio_model):
    with pytest.raises(ValueError, match="without input_ids"), MATA(audio_model):
        audio_model(inputs_embeds=torch.zeros(1, 4, 32))


def test_the_decoder_called_behind_the_model_s_back(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    with MATA(audio_model, layers=LAYERS):
        last_logits(audio_model, inputs)
        with pytest.raises(ValueError, match="call the model that was passed"):
            audio_model.get_decoder()(inputs_embeds=torch.zeros(3, inputs["input_ids"].shape[1], 32))


def test_audio_tokens_not_expanded_by_the_processor(audio_model):
    """Qwen2-Audio's old way: one placeholder a clip, expanded inside the model, where no one knows the new ids."""
    inputs = families.batch(audio_model, "qwen2_audio", [[3, -64, 2]])
    ids = torch.tensor([[5, 6, 7, families.AUDIO, 8, 9]])
    legacy = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(ValueError, match="already expanded"), MATA(audio_model):
        audio_model(**legacy)


def test_packed_sequences(audio_model):
    """Several prompts in one row of the batch have several last rows."""
    two = families.batch(audio_model, "qwen2_audio", [[5, -64, 3], [5, -64, 3]])
    ids, sound = two["input_ids"], {name: two[name] for name in ("input_features", "feature_attention_mask")}
    packed = sound | {"input_ids": ids.reshape(1, -1), "position_ids": torch.arange(ids.shape[1]).repeat(2)[None]}
    with pytest.raises(ValueError, match="packed sequences have no last row each"), MATA(audio_model):
        audio_model(**packed)
    starts = torch.tensor([0, ids.shape[1], 2 * ids.shape[1]])
    with pytest.raises(ValueError, match="packed sequences have no last row each"), MATA(audio_model):
        audio_model(**packed | {"position_ids": None, "cu_seq_lens_q": starts})


def test_assisted_generation(audio_model):
    """An assistant's candidates are checked in one pass, but every token of the reply is to be steered."""
    inputs = families.batch(audio_model, "qwen2_audio", [[5, -64, 3]])
    expected, before = audio_model.generate(**inputs, max_new_tokens=6, prompt_lookup_num_tokens=3), state(audio_model)
    for how in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": families.build("qwen2_audio", seed=1)}):
        with MATA(audio_model), MATA(audio_model):
            with pytest.raises(ValueError, match="an assistant's candidates are several rows a call"):
                audio_model.generate(**inputs, max_new_tokens=6, **how)
    assert state(audio_model) == before
    with MATA(audio_model, alpha=0):
        assert torch.equal(audio_model.generate(**inputs, max_new_tokens=6, prompt_lookup_num_tokens=3), expected)


def test_attention_that_adds_to_its_scores(audio_model):
    attend = audio_model.get_decoder().layers[2].self_attn
    attend.forward = partial(attend.forward, softcap=30.0)
    with pytest.raises(ValueError, match="Qwen2Attention adds softcap to its scores"), MATA(audio_model, layers=LAYERS):
        last_logits(audio_model, families.batch(audio_model, "qwen2_audio", PROMPTS))


@pytest.mark.filterwarnings("ignore")  # the library is about to rename checkpointing
def test_training_with_dropout_or_checkpoints(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    audio_model.gradient_checkpointing_enable()
    with MATA(audio_model):
        audio_model(**inputs)  # evaluation mode: no checkpoints are made
    audio_model.train()
    with pytest.raises(ValueError, match=r"gradient checkpointing .* call model\.eval\(\) first"), MATA(audio_model):
        audio_model(**inputs)
    audio_model.gradient_checkpointing_disable()
    audio_model.get_decoder().layers[2].self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"dropout in its attention; call model\.eval\(\)"), MATA(audio_model):
        audio_model(**inputs)


def test_a_cache_of_more_prompts(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    with torch.no_grad(), MATA(audio_model), pytest.raises(ValueError, match="filled outside this block"):
        cache = audio_model(**inputs, use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        audio_model(input_ids=torch.full((6, 1), 5), past_key_values=cache)


def test_a_cache_from_outside(audio_model):
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    cache = audio_model(**inputs, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="filled outside this block"), MATA(audio_model):
        audio_model(input_ids=torch.full((3, 1), 5), past_key_values=cache)


def test_models_that_cannot_be_steered():
    tiny = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=2)  # fmt: skip
    text_only = AutoModelForCausalLM.from_config(Qwen2Config(**tiny))
    with pytest.raises(ValueError, match="names no audio token"):
        MATA(text_only)
    with pytest.raises(ValueError, match="expected a LALM"):
        MATA("tiny")
    whole, _ = random_models.qwen2_5_omni()
    with pytest.raises(ValueError, match=r"no text decoder with layers; .* model\.thinker"):
        MATA(whole)
    tower = families.build("qwen2_audio").model.audio_tower
    with pytest.raises(ValueError, match="names no audio token"):
        MATA(tower)


def test_a_decoder_past_the_attention_interface(audio_model):
    """A layer whose attention never asks the interface must not pass for steered."""
    inputs = families.batch(audio_model, "qwen2_audio", PROMPTS)
    attention = audio_model.get_decoder().layers[2].self_attn
    attention.forward = lambda hidden_states, **kwargs: (torch.zeros_like(hidden_states), None)
    with (
        pytest.raises(ValueError, match=r"layers \[2\] of Qwen2Model do not go through"),
        MATA(audio_model, layers=LAYERS),
    ):
        last_logits(audio_model, inputs)


def test_a_block_does_not_nest_in_itself(audio_model):
    steering = MATA(audio_model)
    with steering, pytest.raises(ValueError, match="already open"):
        steering.__enter__()
    assert audio_model.get_decoder().config._attn_implementation == "sdpa"
