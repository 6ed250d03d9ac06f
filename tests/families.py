"""Small random models of the LALM families that MATA must fit, and batches for them, without any processor.

Token ids: 0 pads, 1 stands for one audio token, 2.. are text.
"""

from unittest import mock

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    GenerationConfig,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    MusicFlamingoConfig,
    MusicFlamingoForConditionalGeneration,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
)
from transformers.models.gemma3n import modeling_gemma3n

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


def music_flamingo(**decoder):
    return MusicFlamingoForConditionalGeneration(
        MusicFlamingoConfig(
            audio_config=TOWER | {"model_type": "audioflamingo3_encoder"},
            text_config=DECODER | {"model_type": "qwen2"} | decoder,
            audio_token_id=AUDIO, audio_bos_token_id=62, audio_eos_token_id=63,
        )
    )  # fmt: skip


def glm_asr(**decoder):
    tower = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_mel_bins=N_MELS)
    return GlmAsrForConditionalGeneration(
        GlmAsrConfig(
            audio_config=tower | {"model_type": "glmasr_encoder", "max_position_embeddings": FRAMES // 2},
            text_config=DECODER | {"model_type": "llama"} | decoder,
            audio_token_id=AUDIO, tie_word_embeddings=False,
        )
    )  # fmt: skip


def granite_speech(**decoder):
    encoder = dict(input_dim=N_MELS, num_layers=1, hidden_dim=16, num_heads=2, feedforward_mult=1, output_dim=8,
                   context_size=16, conv_kernel_size=3, max_pos_emb=16)  # fmt: skip
    projector = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return GraniteSpeechForConditionalGeneration(
        GraniteSpeechConfig(
            encoder_config=encoder,
            projector_config=projector | {"model_type": "blip_2_qformer", "encoder_hidden_size": 16},
            text_config=DECODER | {"model_type": "granite"} | decoder,
            audio_token_index=AUDIO, has_lora_adapter=False, tie_word_embeddings=False,
        )
    )  # fmt: skip


def phi4_multimodal(**decoder):
    audio = dict(
        hidden_size=16,
        intermediate_size=16,
        num_blocks=1,
        num_attention_heads=2,
        input_size=N_MELS,
        ext_pw_out_channel=16,
        depthwise_separable_out_channel=16,
        nemo_conv_channels=8,
        feature_layer=-1,
    )
    vision = VISION | dict(num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, crop_size=28)
    return Phi4MultimodalForCausalLM(
        Phi4MultimodalConfig(
            audio_config=audio | {"audio_token_id": AUDIO},  # the one family that names it there
            vision_config=vision | {"image_token_id": 60},
            **DECODER | {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None} | decoder,
        )
    )  # fmt: skip


def gemma3n(**decoder):
    text = dict(
        head_dim=8,
        intermediate_size=[32] * 4,
        activation_sparsity_pattern=[0.0] * 4,
        laurel_rank=4,
        altup_num_inputs=2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=64,
        num_kv_shared_layers=0,
    )
    audio = dict(vocab_size=2, vocab_offset=VOCABULARY - 2, input_feat_size=N_MELS, hidden_size=16,
                 conf_num_attention_heads=2, conf_num_hidden_layers=1, conf_conv_kernel_size=3,
                 sscp_conv_channel_size=[4, 4])  # fmt: skip
    config = Gemma3nConfig(
        text_config=DECODER | text | decoder, audio_config=audio,
        audio_token_id=AUDIO, image_token_id=60, audio_soft_tokens_per_image=20,
    )  # fmt: skip
    part = modeling_gemma3n.AutoModel.from_config

    def without_eyes(config):  # its vision tower takes the package timm, and no prompt here holds a picture
        return torch.nn.Identity() if config is vision else part(config)

    vision = config.vision_config
    with mock.patch.object(modeling_gemma3n.AutoModel, "from_config", without_eyes):
        return Gemma3nForConditionalGeneration(config)


FAMILIES = {
    "qwen2_audio": qwen2_audio,
    "qwen2_5_omni": qwen2_5_omni,
    "qwen3_omni": qwen3_omni,
    "audio_flamingo_3": audio_flamingo_3,
    "voxtral": voxtral,
    "music_flamingo": music_flamingo,
    "glm_asr": glm_asr,
    "granite_speech": granite_speech,
    "phi4_multimodal": phi4_multimodal,
    "gemma3n": gemma3n,
}
# What a family calls the mask over the mel frames; Voxtral always hears full stretches.
FRAME_MASK = dict.fromkeys(("audio_flamingo_3", "music_flamingo", "glm_asr"), "input_features_mask") | {"voxtral": None}
N_TOKENS = {"granite_speech": 15, "phi4_multimodal": FRAMES // 8, "gemma3n": 20}  # of every clip


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
    sound = sound_inputs(family, features, frame_mask)
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


def sound_inputs(family: str, features: torch.Tensor, frame_mask: torch.Tensor) -> dict:
    """What the family calls its mel features (clips, mels, frames), and the mask over their frames."""
    in_time = features.transpose(1, 2)  # (clips, frames, mels)
    if family == "granite_speech":  # these two always hear full stretches
        return {"input_features": in_time, "input_features_mask": torch.ones(len(features), 15, dtype=torch.bool)}
    if family == "phi4_multimodal":
        return {"audio_input_features": in_time, "audio_embed_sizes": torch.full((len(features),), FRAMES // 8)}
    if family == "gemma3n":
        return {"input_features": in_time, "input_features_mask": frame_mask.bool()}
    mask_name = FRAME_MASK.get(family, "feature_attention_mask")
    return {"input_features": features} | ({mask_name: frame_mask} if mask_name else {})


def audio_tokens(model, family: str, sound: dict) -> list[int]:
    """Return how many audio tokens the model makes of each clip."""
    if family in N_TOKENS:
        return [N_TOKENS[family]] * len(next(iter(sound.values())))
    if family in ("qwen2_audio", "music_flamingo"):  # no get_audio_features, or one that needs the token ids
        lengths = sound[FRAME_MASK.get(family, "feature_attention_mask")].sum(-1)
        return model.model.audio_tower._get_feat_extract_output_lengths(lengths)[1].tolist()
    counts = []
    for i in range(len(sound["input_features"])):
        with torch.no_grad():
            heard = model.get_audio_features(**{name: value[i : i + 1] for name, value in sound.items()})
        embeddings = heard.pooler_output if heard.pooler_output is not None else heard.last_hidden_state
        counts.append(embeddings.shape[-2])
    return counts


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    """The inputs with their sound in another floating type."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def audio_tower(model, family: str) -> torch.nn.Module:
    """The part of the model that reads the sound."""
    inside = {"granite_speech": "encoder", "phi4_multimodal": "embed_tokens_extend.audio_embed.encoder"}
    return model.model.get_submodule(inside.get(family, "audio_tower"))
