"""Small randomly initialised audio-language models of the real classes, in memory or on disk as the hub keeps them.

A family is one short function that returns (model, processor); to add one, write it and enter it in `FAMILIES`.
Nothing here is trained: replies are noise, while shapes and code paths are real.

>>> lalm = random_lalm("qwen2_audio")                      # a helpers.models.LALM
>>> lalm = load_lalm(str(save("qwen2_5_omni", folder)))    # the same through from_pretrained
"""

import json
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    GenerationConfig,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    GlmAsrProcessor,
    MusicFlamingoConfig,
    MusicFlamingoForConditionalGeneration,
    MusicFlamingoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniProcessor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)

from helpers.models import CHECKPOINTS, LALM, video_is_optional, video_processor

N_MELS, CHUNK_SECONDS = 40, 4
WIDTH = 32
DECODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # ten times the usual, so that attention and logits are far from uniform
}
AUDIO_TOWER = {
    "num_mel_bins": N_MELS,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 2 * WIDTH,
    "max_source_positions": 50 * CHUNK_SECONDS,  # 100 mel frames a second, halved by a convolution
    "initializer_range": 0.2,
}
# Like the generation_config.json of Qwen2-Audio-7B-Instruct, which samples and penalises repetition.
HUB_DECODING = {"do_sample": True, "temperature": 0.7, "top_p": 0.5, "top_k": 20, "repetition_penalty": 1.1}


def byte_tokenizer(*special: str, **named: str) -> Qwen2Tokenizer:
    """Return the real tokenizer class over the 256 bytes alone: it reads any text without a downloaded vocabulary."""
    return _tokenizer({char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}, [], special, named)


def word_tokenizer(*special: str, **named: str) -> Qwen2Tokenizer:
    """Return the same class with the vocabulary of the shipped model: what the book asks is a quarter as long."""
    bpe = json.loads((CHECKPOINTS / "tiny" / "tokenizer.json").read_text("utf-8"))["model"]
    return _tokenizer(bpe["vocab"], [tuple(pair) for pair in bpe["merges"]], special, named)


def _tokenizer(vocab: dict, merges: list, special: tuple, named: dict) -> Qwen2Tokenizer:
    special = ["<|im_start|>", "<|im_end|>", *special]
    return Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", extra_special_tokens=special, model_max_length=8192, **named
    )


def mel_extractor() -> WhisperFeatureExtractor:
    """Return a Whisper feature extractor of the size of the shipped model's."""
    return WhisperFeatureExtractor(feature_size=N_MELS, chunk_length=CHUNK_SECONDS, return_attention_mask=True)


def qwen2_audio(**decoder) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2-Audio."""
    tokenizer = byte_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    config = Qwen2AudioConfig(
        audio_config=AUDIO_TOWER | {"model_type": "qwen2_audio_encoder"},
        text_config=DECODER | {"model_type": "qwen2", "vocab_size": len(tokenizer)} | decoder,
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return Qwen2AudioForConditionalGeneration(config), Qwen2AudioProcessor(mel_extractor(), tokenizer)


OMNI_TOKENS = {f"{name}_token": f"<|{name}|>" for name in ("vision_bos", "vision_eos", "audio_bos", "audio_eos")} | {
    f"{name}_token": f"<|{name.upper()}|>" for name in ("image", "audio", "video")
}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}  # sums to head_dim / 2
# What Qwen2.5-Omni speaks with: on the hub it lies beside the Thinker, and the book never loads it.
TALKER = DECODER | {f"tts_codec_{name}_token_id": i for i, name in enumerate(("start", "end", "pad", "mask"))}
TALKER |= {f"tts_text_{name}_token_id": i for i, name in enumerate(("start", "end", "pad"))}
TALKER |= {"embedding_size": WIDTH, "head_dim": 8, "rope_parameters": ROPE}
DIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "emb_dim": 8}
DIT |= {"enc_channels": [8, 8, 8, 8, 24], "enc_attention_channels": 4, "enc_se_channels": 4, "enc_emb_dim": 8}
TOKEN2WAV = {"dit_config": DIT | {"enc_dim": 8, "num_embeds": 65}, "bigvgan_config": {"upsample_initial_channel": 64}}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH}
# The part of the chat template that a question with frames or audio uses.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def omni_processor(kind: type[ProcessorMixin], tokenizer=byte_tokenizer, patch_size: int = 14) -> ProcessorMixin:
    """Return an omni model's processor; frames go in as `helpers.models.video_processor` decides."""
    tokenizer = tokenizer(*OMNI_TOKENS.values(), **OMNI_TOKENS)
    images = Qwen2VLImageProcessorPil(patch_size=patch_size)
    with video_is_optional():
        return kind(images, video_processor(images), mel_extractor(), tokenizer, chat_template=TEMPLATE)


def omni_token_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in OMNI_TOKENS.items()}
    names = {"audio_start": "audio_bos", "audio_end": "audio_eos"}
    names |= {"vision_start": "vision_bos", "vision_end": "vision_eos"}
    return {f"{new}_token_id": ids[f"{old}_token"] for new, old in names.items()} | {
        f"{name}_token_id": ids[f"{name}_token"] for name in ("audio", "image", "video")
    }


def qwen2_5_omni(tokenizer=byte_tokenizer, **decoder) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The whole Qwen2.5-Omni, as it lies on the hub."""
    processor = omni_processor(Qwen2_5OmniProcessor, tokenizer)
    ids = omni_token_ids(processor.tokenizer)
    vocabulary = {"vocab_size": len(processor.tokenizer)}
    thinker = {
        "text_config": DECODER | vocabulary | {"rope_parameters": ROPE} | decoder,
        "audio_config": AUDIO_TOWER | {"n_window": 25, "output_dim": WIDTH},
        "vision_config": VISION | {"fullatt_block_indexes": [0]},
        "initializer_range": DECODER["initializer_range"],
    }
    talker = TALKER | vocabulary
    config = Qwen2_5OmniConfig(thinker_config=thinker | ids, talker_config=talker | ids, token2wav_config=TOKEN2WAV)
    return Qwen2_5OmniForConditionalGeneration(config), processor


def qwen3_omni(**decoder) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The Thinker of Qwen3-Omni, with a mixture of experts."""
    processor = omni_processor(Qwen3OmniMoeProcessor, patch_size=16)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    config = Qwen3OmniMoeThinkerConfig(
        text_config=DECODER | experts | {"vocab_size": len(processor.tokenizer), "rope_parameters": ROPE} | decoder,
        audio_config=AUDIO_TOWER | {"output_dim": WIDTH, "downsample_hidden_size": 8},
        vision_config=VISION | {"deepstack_visual_indexes": [0]},
        initializer_range=DECODER["initializer_range"],
        **omni_token_ids(processor.tokenizer),
    )
    return Qwen3OmniMoeThinkerForConditionalGeneration(config), processor


def audio_flamingo_3(**decoder) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Audio Flamingo 3: it cuts long audio into stretches and hears them all; one clip a prompt."""
    tokenizer = byte_tokenizer("<sound>")
    config = AudioFlamingo3Config(
        audio_config=AUDIO_TOWER | {"model_type": "audioflamingo3_encoder"},
        text_config=DECODER | {"model_type": "qwen2", "vocab_size": len(tokenizer)} | decoder,
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    template = TEMPLATE.replace("<|audio_bos|><|AUDIO|><|audio_eos|>", "<sound>")
    processor = AudioFlamingo3Processor(mel_extractor(), tokenizer, chat_template=template)
    return AudioFlamingo3ForConditionalGeneration(config), processor


def music_flamingo(**decoder) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Music Flamingo: Audio Flamingo 3 with the time of each audio token turned into its embedding."""
    tokenizer = byte_tokenizer("<sound>", "<|sound_bos|>", "<|sound_eos|>")
    names = {"token": "<sound>", "bos_token": "<|sound_bos|>", "eos_token": "<|sound_eos|>"}
    config = MusicFlamingoConfig(
        audio_config=AUDIO_TOWER | {"model_type": "audioflamingo3_encoder"},
        text_config=DECODER | {"model_type": "qwen2", "vocab_size": len(tokenizer)} | decoder,
        **{f"audio_{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    template = TEMPLATE.replace("<|audio_bos|><|AUDIO|><|audio_eos|>", "<sound>")
    processor = MusicFlamingoProcessor(mel_extractor(), tokenizer, chat_template=template)
    return MusicFlamingoForConditionalGeneration(config), processor


def glm_asr(**decoder) -> tuple[PreTrainedModel, ProcessorMixin]:
    """GLM-ASR: a speech recogniser that takes any question; four frames of its encoder make one audio token."""
    tokenizer = byte_tokenizer("<|pad|>")
    config = GlmAsrConfig(
        audio_config={
            "model_type": "glmasr_encoder", "num_mel_bins": N_MELS, "hidden_size": WIDTH, "num_hidden_layers": 2,
            "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "max_position_embeddings": 50 * CHUNK_SECONDS,
        },
        text_config=DECODER | {"model_type": "llama", "vocab_size": len(tokenizer), "eos_token_id": None} | decoder,
        audio_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"), tie_word_embeddings=False,
    )  # fmt: skip
    template = TEMPLATE.replace("<|audio_bos|><|AUDIO|><|audio_eos|>", "<|pad|>")
    return GlmAsrForConditionalGeneration(config), GlmAsrProcessor(mel_extractor(), tokenizer, chat_template=template)


FAMILIES = {
    "qwen2_audio": qwen2_audio,
    "qwen2_5_omni": qwen2_5_omni,
    "qwen3_omni": qwen3_omni,
    "audio_flamingo_3": audio_flamingo_3,
    "music_flamingo": music_flamingo,
    "glm_asr": glm_asr,
}


def random_lalm(family: str, seed: int = 0, **decoder) -> LALM:
    """Build a family in memory; `decoder` overrides settings of the text decoder (`num_hidden_layers=6`, ...)."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[family](**decoder)
    model = getattr(model, "thinker", model)
    model.generation_config = GenerationConfig(
        eos_token_id=processor.tokenizer.eos_token_id, pad_token_id=processor.tokenizer.pad_token_id
    )
    return LALM(family, model.eval(), processor, processor.feature_extractor.sampling_rate)


def save(family: str, folder: Path, seed: int = 0, **decoder) -> Path:
    """Build a family and write it to `folder` in the hub's layout; return the folder.

    As on the hub: several safetensors shards, one preprocessor_config.json for all modalities, a chat_template.json,
    and a generation_config.json that samples.
    """
    torch.manual_seed(seed)
    model, processor = FAMILIES[family](**decoder)
    end = processor.tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=[end], pad_token_id=end, **HUB_DECODING)
    model.save_pretrained(folder, max_shard_size="100KB")
    processor.tokenizer.save_pretrained(folder)
    parts = [getattr(processor, name, None) for name in ("image_processor", "feature_extractor")]
    preprocessor = {key: value for part in parts if part for key, value in part.to_dict().items()}
    preprocessor["processor_class"] = type(processor).__name__
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    return folder
