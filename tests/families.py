"""Small random models of the LALM families that MATA must fit, and batches for them, without any processor.

Token ids: 0 pads, 1 stands for one audio token, 2.. are text.
"""

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    GenerationConfig,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
)

PAD, AUDIO, VOCABULARY = 0, 1, 64
N_MELS, FRAMES = 16, 64
DECODER = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3,  # attention far from uniform
)  # fmt: skip
TOWER = dict(num_mel_bins=N_MELS, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
             max_source_positions=FRAMES // 2)  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}  # of head_dim / 2 = 4
VISION = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32)


def qwen2_audio(**decoder):
    return Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(
            audio_config=TOWER | {"model_type": "qwen2_audio_encoder"},
            text_config=DECODER | {"model_type": "qwen2"} | decoder,
            audio_token_index=AUDIO,
        )
    )


def qwen2_5_omni(**decoder):
    return Qwen2_5OmniThinkerForConditionalGeneration(
        Qwen2_5OmniThinkerConfig(
            audio_config=TOWER | {"n_window": 8, "output_dim": 32},
            vision_config=VISION | {"fullatt_block_indexes": [0]},
            text_config=DECODER | {"rope_parameters": ROPE} | decoder,
            audio_token_index=AUDIO, image_token_index=60, video_token_index=61, vision_start_token_id=62,
        )
    )  # fmt: skip


def qwen3_omni(**decoder):
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    return Qwen3OmniMoeThinkerForConditionalGeneration(
        Qwen3OmniMoeThinkerConfig(
            audio_config=TOWER | {"output_dim": 32, "downsample_hidden_size": 8},
            vision_config=VISION | {"deepstack_visual_indexes": [0]},
            text_config=DECODER | experts | {"rope_parameters": ROPE, "head_dim": 8} | decoder,
            audio_token_id=AUDIO, image_token_id=60, video_token_id=61, vision_start_token_id=62,
        )
    )  # fmt: skip


def audio_flamingo_3(**decoder):
    return AudioFlamingo3ForConditionalGeneration(
        AudioFlamingo3Config(
            audio_config=TOWER | {"model_type": "audioflamingo3_encoder"},
            text_config=DECODER | {"model_type": "qwen2"} | decoder,
            audio_token_id=AUDIO,
        )
    )


def voxtral(**decoder):
    tower = TOWER | {"encoder_ffn_dim": 64, "model_type": "voxtral_encoder"}  # four frames of 16 make one token
    return VoxtralForConditionalGeneration(
        VoxtralConfig(
            audio_config=tower,
            text_config=DECODER | {"model_type": "llama", "head_dim": 16} | decoder,  # not hidden / heads
            audio_token_id=AUDIO,
        )
    )


FAMILIES = {
    "qwen2_audio": qwen2_audio,
    "qwen2_5_omni": qwen2_5_omni,
    "qwen3_omni": qwen3_omni,
    "audio_flamingo_3": audio_flamingo_3,
    "voxtral": voxtral,
}
# What a family calls the mask over the mel frames; Voxtral always hears full stretches.
FRAME_MASK = {"audio_flamingo_3": "input_features_mask", "voxtral": None}


def build(family: str, seed: int = 0, **decoder):
    """Return a random model of the family, in evaluation mode."""
    torch.manual_seed(seed)
    model = FAMILIES[family](**decoder).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)  # some families would start it at 0.02: logits all alike
    model.generation_config = GenerationConfig(pad_token_id=PAD, eos_token_id=None)
    return model


def batch(model, family: str, prompts: list[list[int]], padding: str = "left", seed: int = 0) -> dict:
    """Return model inputs for prompts given as stretches: n words, or -n for a clip of n frames.

    E.g. [5, -64, 3] is five words, a clip of 64 frames, three words.
    """
    noise = torch.Generator().manual_seed(seed)
    frames = torch.tensor([-n for prompt in prompts for n in prompt if n < 0])
    features = torch.randn(len(frames), N_MELS, FRAMES, generator=noise)
    frame_mask = (torch.arange(FRAMES) < frames[:, None]).long()
    mask_name = FRAME_MASK.get(family, "feature_attention_mask")
    sound = {"input_features": features} | ({mask_name: frame_mask} if mask_name else {})
    n_tokens = iter(audio_tokens(model, family, sound))
    rows = []
    for prompt in prompts:
        parts = [
            torch.full((next(n_tokens),), AUDIO) if n < 0 else torch.randint(2, 60, (n,), generator=noise)
            for n in prompt
        ]
        rows.append(torch.cat(parts))
    pad = dict(batch_first=True, padding_side=padding)
    return {
        "input_ids": pad_sequence(rows, padding_value=PAD, **pad),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], padding_value=0, **pad),
        **sound,
    }


def audio_tokens(model, family: str, sound: dict) -> list[int]:
    """Return how many audio tokens the model makes of each clip."""
    if family == "qwen2_audio":  # has no get_audio_features
        lengths = sound["feature_attention_mask"].sum(-1)
        return model.model.audio_tower._get_feat_extract_output_lengths(lengths)[1].tolist()
    counts = []
    for i in range(len(sound["input_features"])):
        with torch.no_grad():
            heard = model.get_audio_features(**{name: value[i : i + 1] for name, value in sound.items()})
        embeddings = heard.pooler_output if heard.pooler_output is not None else heard.last_hidden_state
        counts.append(embeddings.shape[-2])
    return counts
