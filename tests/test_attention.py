"""Roles of tokens, and the last row of attention against the full matrix of the eager implementation."""

import families
import numpy as np
import pytest
import random_models
import torch

from helpers.attention import OmniRole, Role, attention_by_role, last_row_attention, token_roles
from helpers.mata import MATA
from helpers.models import LALM

PROMPTS = [[5, -64, 3], [2, -40, 2, -64, 6]]


@pytest.fixture(scope="module", params=list(random_models.FAMILIES))
def lalm(request) -> LALM:
    return random_models.random_lalm(request.param)


def clip(lalm: LALM, seconds: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(int(seconds * lalm.sampling_rate))
    return (0.1 * noise).astype(np.float32)


def words(lalm: LALM, inputs, roles, role: Role, item: int = 0) -> str:
    return lalm.tokenizer.decode(inputs["input_ids"][item][roles[item] == role])


def full_rows(model, inputs) -> torch.Tensor:
    """The last real rows of the eager implementation's full matrices: (batch, layers, heads, seq)."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    last = [torch.nonzero(row).max().item() for row in inputs["attention_mask"]]
    return torch.stack([torch.stack([layer[i, :, n] for layer in attentions]) for i, n in enumerate(last)])


def test_roles_of_a_prompt(lalm):
    slot = lalm.processor.audio_token
    text = (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{slot}What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    inputs = lalm.prepare([text, "Which of the two?"], [clip(lalm, 1), clip(lalm, 2)])
    roles = token_roles(lalm, inputs)
    assert roles.shape == inputs["input_ids"].shape
    assert torch.equal(roles == Role.PAD, inputs["attention_mask"] == 0)
    assert torch.equal(roles == Role.AUDIO, inputs["input_ids"] == lalm.audio_token_id)
    assert words(lalm, inputs, roles, Role.SYSTEM) == "<|im_start|>system\nBe brief.<|im_end|>\n"
    instruction = words(lalm, inputs, roles, Role.INSTRUCTION)
    for framing in ("<|sound_bos|>", "<|sound_eos|>"):  # which Music Flamingo's processor puts around its audio tokens
        instruction = instruction.replace(framing, "")
    assert instruction == "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    assert words(lalm, inputs, roles, Role.SYSTEM, item=1).endswith("<|im_end|>\n")
    assert "Which of the two?" in words(lalm, inputs, roles, Role.INSTRUCTION, item=1)
    assert not (roles == Role.OUTPUT).any()


def test_a_prompt_without_turns_has_no_system(lalm):
    inputs = lalm.prepare([f"{lalm.processor.audio_token}What?"], [clip(lalm, 1)])
    assert set(token_roles(lalm, inputs).unique().tolist()) == {Role.AUDIO, Role.INSTRUCTION}


def test_reply_is_output(lalm):
    inputs = lalm.prepare(["What?", "And what is this here?"], [clip(lalm, 1), clip(lalm, 1)])
    n_prompt = inputs["input_ids"].shape[1]
    reply = torch.full((2, 3), 7)
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], reply], 1)}
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.tensor([[1, 1, 0], [1, 1, 1]])], 1)
    for begins in (n_prompt, torch.tensor([n_prompt, n_prompt])):
        roles = token_roles(lalm, longer, prompt_length=begins)
        assert roles[:, n_prompt:].tolist() == [[Role.OUTPUT, Role.OUTPUT, Role.PAD], [Role.OUTPUT] * 3]
        assert torch.equal(roles[:, :n_prompt], token_roles(lalm, inputs))
    shares = attention_by_role(lalm, longer, prompt_length=n_prompt)
    assert (shares[..., Role.OUTPUT] > 0).all()


def test_shares_by_hand(lalm):
    inputs = lalm.prepare(["What?", "And what is this here?"], [clip(lalm, 1), clip(lalm, 2)])
    shares = attention_by_role(lalm, inputs)
    rows, roles = full_rows(lalm.model, inputs), token_roles(lalm, inputs)
    for item in range(2):
        for role in Role:
            by_hand = rows[item][..., roles[item] == role].sum(-1)
            assert torch.allclose(shares[item][..., role], by_hand, atol=1e-5)
    assert torch.allclose(shares.sum(-1), torch.ones(()), atol=1e-5)
    assert (shares[..., Role.PAD] == 0).all()


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_last_row_equals_the_full_matrix(family, padding):
    model = families.build(family)
    inputs = families.batch(model, family, PROMPTS, padding)
    rows = last_row_attention(model, inputs)
    assert rows.shape == (2, 4, 4, inputs["input_ids"].shape[1])
    assert torch.allclose(rows, full_rows(model, inputs), atol=1e-5)


def test_reading_changes_nothing():
    model = families.build("qwen2_audio")
    inputs = families.batch(model, "qwen2_audio", PROMPTS)
    with torch.no_grad():
        before = model(**inputs).logits
        last_row_attention(model, inputs)
        assert torch.equal(model(**inputs).logits, before)
    assert model.get_decoder().config._attn_implementation == "sdpa"


def test_shows_the_steered_attention(lalm):
    inputs = lalm.prepare(["What?", "And what is this here?"], [clip(lalm, 1), clip(lalm, 2)])
    before = attention_by_role(lalm, inputs)
    with MATA(lalm, alpha=1.0, layers=[1, 2], rule="additive"):
        after = attention_by_role(lalm, inputs)
    assert torch.equal(after[:, 0], before[:, 0])  # layers below the steered ones see nothing of it
    audio, share = before[:, 1, :, Role.AUDIO], after[:, 1, :, Role.AUDIO]
    assert torch.allclose(share, 2 * audio / (1 + audio), atol=1e-5)  # weights doubled, then renormalised
    assert torch.equal(attention_by_role(lalm, inputs), before)


def test_memory_is_linear_in_the_sequence():
    """No (seq, seq) matrix: the largest tensor of the read-out is layers · heads · seq."""
    model = families.build("qwen2_audio")
    inputs = families.batch(model, "qwen2_audio", [[2000, -64, 3]])
    seq = inputs["input_ids"].shape[1]
    model.set_attn_implementation("sdpa")
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        last_row_attention(model, inputs)
    assert largest < seq * 200  # the widest hidden states have 4 · 32 numbers a token; a matrix would have seq


def test_visual_tokens_have_a_role_of_their_own_and_the_others_keep_theirs():
    omni = random_models.random_lalm("qwen2_5_omni")
    frames = np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    inputs = omni.prepare(["What happens?", "And here?"], [clip(omni, 1)] * 2, videos=[frames, None])
    roles = token_roles(omni, inputs)
    is_visual = inputs["input_ids"] == omni.processor.video_token_id
    assert torch.equal(roles == OmniRole.VISUAL, is_visual) and is_visual.sum(1).tolist() == [8, 0]
    assert [OmniRole[role.name] for role in Role] == list(Role)
    shares, rows = attention_by_role(omni, inputs), last_row_attention(omni, inputs)
    assert shares.shape[-1] == len(OmniRole) == len(Role) + 1
    for role in OmniRole:
        expected = (rows * (roles == role)[:, None, None]).sum(-1)
        torch.testing.assert_close(shares[..., role], expected)
    assert attention_by_role(omni, omni.prepare(["What?"], [clip(omni, 1)])).shape[-1] == len(Role)
