"""Models by name: loading, preparing, generating, on small random checkpoints of the real classes."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import soundfile
import torch
from random_models import CHUNK_SECONDS, DECODER, FAMILIES, N_MELS, random_lalm, save
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AutoProcessor, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging
from videos import write_video

from helpers import models
from helpers.attention import OmniRole, attention_by_role, token_roles
from helpers.heads import head_vectors
from helpers.models import CHECKPOINTS, LALM, FramesAsImages, chat, load_audio, load_frames, load_lalm

RATE = 16_000
CLASSES = {
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """One folder a family, in the hub's layout."""
    return {family: str(save(family, tmp_path_factory.mktemp(family))) for family in FAMILIES}


@pytest.fixture(params=CLASSES)
def family(request):
    return request.param


@pytest.fixture
def lalm(family, checkpoints) -> LALM:
    return load_lalm(checkpoints[family], device="cpu")


@pytest.fixture
def qwen2_audio(checkpoints) -> LALM:
    return load_lalm(checkpoints["qwen2_audio"], device="cpu")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * RATE)).astype(np.float32)


def logits(lalm: LALM, prompts, audios) -> torch.Tensor:
    """Scores of the first new token, (batch, vocabulary)."""
    with torch.no_grad():
        return lalm.model(**lalm.prepare(prompts, audios)).logits[:, -1].float()


# ---------------------------------------------------------------------------------------------------------- loading


def test_class_and_properties(lalm, family):
    assert type(lalm.model).__name__ == CLASSES[family]
    assert not lalm.model.training
    assert lalm.sampling_rate == RATE
    assert lalm.max_seconds == CHUNK_SECONDS
    assert lalm.frame_seconds == pytest.approx(0.04)  # 100 mel frames a second, convolution and pooling halve each
    assert lalm.tokenizer.convert_ids_to_tokens(lalm.audio_token_id) == "<|AUDIO|>"
    assert len(lalm.decoder.layers) == DECODER["num_hidden_layers"]
    assert lalm.device == torch.device("cpu") and lalm.dtype == torch.float32


def test_weights_are_the_saved_ones(lalm, family):
    original = random_lalm(family).model.state_dict()
    loaded = lalm.model.state_dict()
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[key], original[key]) for key in original)


def test_the_omni_checkpoint_is_the_whole_one(checkpoints):
    folder = checkpoints["qwen2_5_omni"]
    with open(f"{folder}/model.safetensors.index.json") as file:
        halves = {key.split(".")[0] for key in json.load(file)["weight_map"]}
    assert halves == {"thinker", "talker", "token2wav"}


def test_layout_of_processor_save_pretrained(qwen2_audio, tmp_path):
    qwen2_audio.model.save_pretrained(tmp_path)
    qwen2_audio.processor.save_pretrained(tmp_path)
    again = load_lalm(tmp_path, device="cpu")
    x = ["Which?"], [noise(1)]
    assert torch.equal(logits(again, *x), logits(qwen2_audio, *x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_bfloat16_on_the_cpu(family, checkpoints, dtype):
    lalm = load_lalm(checkpoints[family], device="cpu", dtype=dtype)
    inputs = lalm.prepare(["What is it?", "And this?"], [noise(1), noise(2)])
    assert lalm.dtype == inputs["input_features"].dtype == torch.bfloat16
    assert inputs["input_ids"].dtype == torch.int64
    exact = load_lalm(checkpoints[family], device="cpu")
    x = ["What is it?", "And this?"], [noise(1), noise(2)]
    torch.testing.assert_close(logits(lalm, *x), logits(exact, *x), atol=0.15, rtol=0)
    assert len(lalm.generate(inputs, max_new_tokens=2)) == 2


def test_name_from_the_environment(checkpoints, monkeypatch, tmp_path):
    monkeypatch.setenv("LALM", checkpoints["qwen2_audio"])
    assert load_lalm(device="cpu").name == checkpoints["qwen2_audio"]
    monkeypatch.delenv("LALM")
    monkeypatch.setattr(models, "CHECKPOINTS", tmp_path)
    os.symlink(checkpoints["qwen2_audio"], tmp_path / "tiny")
    assert load_lalm(device="cpu").name == "tiny"


def test_a_shipped_checkpoint_loads_without_a_progress_bar(checkpoints, monkeypatch, tmp_path):
    shown = []
    logging.set_tqdm_hook(lambda factory, args, kwargs: shown.append(factory is tqdm) or factory(*args, **kwargs))
    monkeypatch.setattr(models, "CHECKPOINTS", tmp_path)
    os.symlink(checkpoints["qwen2_audio"], tmp_path / "tiny")
    load_lalm("tiny", device="cpu")
    load_lalm(checkpoints["qwen2_audio"], device="cpu")
    logging.set_tqdm_hook(None)
    assert shown == [False, True]


def test_unknown_name_lists_the_known(monkeypatch, tmp_path):
    (tmp_path / "tiny").mkdir()
    monkeypatch.setattr(models, "CHECKPOINTS", tmp_path)
    for name in ("qwen", "./no/such", "/no/such", "a/b/c"):
        with pytest.raises(ValueError, match="known are tiny, .*Qwen2-Audio-7B-Instruct.* network"):
            load_lalm(name)


def test_hub_id_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"'Qwen/Qwen2-Audio-7B-Instruct' can't be had from the hub.* network") as caught:
        load_lalm("Qwen/Qwen2-Audio-7B-Instruct")
    assert len(str(caught.value).splitlines()) == 1


def test_pickled_weights_are_refused(qwen2_audio, tmp_path):
    qwen2_audio.model.config.save_pretrained(tmp_path)
    torch.save(qwen2_audio.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="no \\*.safetensors weights.*can run code"):
        load_lalm(tmp_path)


def test_a_text_model_is_no_lalm(tmp_path):
    tiny = Qwen2Config(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=8,
    )
    Qwen2ForCausalLM(tiny).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a qwen2 model, whose config names no audio token"):
        load_lalm(tmp_path)


def granite_like(processor):
    processor.audio_processor = processor.feature_extractor
    del processor.feature_extractor


def gemma_like(processor):
    del processor.feature_extractor.n_samples


def voxtral_like(processor):
    def refuse(self, **inputs):
        raise ValueError("use the apply_chat_template method instead")

    processor.__class__ = type("VoxtralProcessor", (type(processor),), {"__call__": refuse})


@pytest.mark.parametrize(
    ("change", "said"),
    [(granite_like, "feature_extractor"), (gemma_like, "n_samples"), (voxtral_like, "apply_chat_template")],
)
def test_processors_of_another_kind(checkpoints, monkeypatch, change, said):
    made = AutoProcessor.from_pretrained

    def of_another_kind(*args, **kwargs):
        processor = made(*args, **kwargs)
        change(processor)
        return processor

    monkeypatch.setattr(AutoProcessor, "from_pretrained", of_another_kind)
    with pytest.raises(ValueError, match=f"can't be asked as this book asks .*{said}.*inputs that you make"):
        load_lalm(checkpoints["qwen2_audio"])


def test_missing_weights_are_not_made_up(qwen2_audio, tmp_path):
    qwen2_audio.model.save_pretrained(tmp_path)
    qwen2_audio.processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in weights if "lm_head" in key)
    save_file({k: v for k, v in weights.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of its model: lm_head.weight"):
        load_lalm(tmp_path, device="cpu")


def test_quantization_says_what_it_needs(checkpoints, monkeypatch):
    folder = checkpoints["qwen2_audio"]
    with pytest.raises(ValueError, match="quantize='3bit' is not known"):
        load_lalm(folder, quantize="3bit")
    with pytest.raises(RuntimeError, match="takes a CUDA GPU, but the model would be loaded on cpu"):
        load_lalm(folder, device="cpu", quantize="4bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        load_lalm(folder, device="cuda", quantize="4bit")


@pytest.mark.parametrize(
    ("cuda", "mps", "bf16", "expected"),
    [
        (True, False, True, ("cuda", torch.bfloat16)),
        (True, False, False, ("cuda", torch.float16)),
        (False, True, False, ("mps", torch.float32)),
        (False, False, False, ("cpu", torch.float32)),
    ],
)
def test_device_and_dtype_by_what_is_there(monkeypatch, cuda, mps, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    # A T4 emulates bfloat16 and says it supports it, unless asked for the real thing.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    device = torch.device(models._best_device())
    assert (device.type, models._best_dtype(device)) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_on_a_gpu(family, checkpoints):
    lalm = load_lalm(checkpoints[family])
    x = ["What is it?", "And this?"], [noise(1), noise(2)]
    assert lalm.device.type == "cuda"
    assert all(value.device.type == "cuda" for value in lalm.prepare(*x).values())
    on_cpu = load_lalm(checkpoints[family], device="cpu")
    torch.testing.assert_close(logits(lalm, *x).cpu(), logits(on_cpu, *x), atol=0.15, rtol=0)


# ------------------------------------------------------------------------------------------------------------ frames
def frames(n: int = 4, height: int = 56, width: int = 84, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.fixture
def omni(checkpoints) -> LALM:
    return load_lalm(checkpoints["qwen2_5_omni"], device="cpu")


def test_one_function_decides_how_frames_go_in(omni):
    here = models.is_torchvision_available()
    assert isinstance(models.video_processor(omni.processor.image_processor), FramesAsImages) != here
    assert isinstance(omni.processor.video_processor, FramesAsImages) != here


def test_patches_span_two_frames_as_the_models_own_processor_lays_them_out(omni):
    video, images = frames(3), omni.processor.image_processor  # of an odd number the last frame stands still
    out = FramesAsImages(images)([video], return_tensors="pt", do_resize=False)
    assert out["video_grid_thw"].tolist() == [[2, 4, 6]]
    pixels = out["pixel_values_videos"].view(2, 2, 3, 2, 2, 3, 2, 14, 14)  # time, block, 2 x 2 in it, RGB, frame, y, x
    mean, std = np.array(images.image_mean), np.array(images.image_std)
    for place in [(0, 0, 0, 0, 0), (1, 1, 2, 1, 0), (0, 1, 0, 0, 1)]:
        time, block_y, block_x, dy, dx = place
        y, x = 14 * (2 * block_y + dy), 14 * (2 * block_x + dx)
        shown = video[[2 * time, min(2 * time + 1, 2)], y : y + 14, x : x + 14]
        expected = ((shown / 255 - mean) / std).transpose(3, 0, 1, 2)  # RGB, frame, y, x
        np.testing.assert_allclose(pixels[place].numpy(), expected, atol=1e-5)


@pytest.mark.skipif(not models.is_torchvision_available(), reason="takes torchvision")
def test_frames_as_images_agree_with_the_models_own_processor(omni):
    images = omni.processor.image_processor
    theirs = models.video_processor(images)([frames()], return_tensors="pt", do_resize=False)
    ours = FramesAsImages(images)([frames()], return_tensors="pt", do_resize=False)
    torch.testing.assert_close(ours["pixel_values_videos"], theirs["pixel_values_videos"], atol=1e-4, rtol=0)
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])


def test_frames_take_their_place_before_the_audio_and_matter(omni):
    prompts, clips = ["What happens?", "And here?"], [noise(1), None]
    inputs = omni.prepare(prompts, clips, videos=[frames(), frames(2)])
    texts = [text.split("user\n")[1] for text in omni.tokenizer.batch_decode(inputs["input_ids"])]
    video, audio = "<|VIDEO|>", "<|AUDIO|>"
    assert texts[0].startswith(f"<|vision_bos|>{video * 12}<|vision_eos|><|audio_bos|>{audio * 25}<|audio_eos|>What")
    assert texts[1].startswith(f"<|vision_bos|>{video * 6}<|vision_eos|>And")
    seconds = inputs["video_second_per_grid"].tolist()
    assert seconds == [1, 1]  # two frames, two a second
    with torch.no_grad():
        one, other = (
            omni.model(**omni.prepare(prompts[:1], clips[:1], videos=[frames(seed=seed)])).logits[0, -1]
            for seed in (0, 1)
        )
    assert (one - other).abs().max() > 1e-3
    assert all(isinstance(reply, str) for reply in omni.generate(inputs, 2))


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen3_omni"])
def test_every_omni_model_sees(family, checkpoints):
    lalm = load_lalm(checkpoints[family], device="cpu")
    side = 2 * lalm.processor.image_processor.patch_size  # of one visual token
    shown = [frames(4, 2 * side, 3 * side, seed) for seed in (0, 1)]
    inputs = lalm.prepare(["What happens?"] * 2, [noise(1)] * 2, videos=shown)
    assert (token_roles(lalm, inputs) == OmniRole.VISUAL).sum(1).tolist() == [2 * 2 * 3] * 2
    vectors, shares = head_vectors(lalm, inputs), attention_by_role(lalm, inputs)
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3  # what is seen gets through
    torch.testing.assert_close(shares.sum(-1), torch.ones(shares.shape[:-1]))
    assert shares[..., OmniRole.VISUAL].min() > 0


def test_frames_that_do_not_fit_the_grid_are_resized(omni):
    inputs = omni.prepare(["What is it?"], [None], videos=[frames(2, 50, 90)])
    _, rows, columns = inputs["video_grid_thw"][0].tolist()
    assert rows * columns // 4 >= 128  # the least that Qwen2.5-Omni gives a frame
    assert rows % 2 == columns % 2 == 0


def test_without_videos_nothing_changes(omni):
    plain = omni.prepare(["What is it?"], [noise(1)])
    none = omni.prepare(["What is it?"], [noise(1)], videos=[None])
    assert plain.keys() == none.keys() and all(torch.equal(plain[key], none[key]) for key in plain)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([frames()[0]], "no uint8 array"),
        ([frames().astype(np.float32)], "no uint8 array"),
        ([frames()[:0]], "no uint8 array"),
        (frames(), "one entry a prompt"),
        ([frames(), None], "one entry a prompt"),
    ],
)
def test_what_is_no_video_is_refused(omni, videos, message):
    with pytest.raises(ValueError, match=message):
        omni.prepare(["What is it?"], [None], videos=videos)


def test_a_video_without_a_slot_is_refused(omni):
    with pytest.raises(ValueError, match="0 video slot"):
        omni.prepare(["<|im_start|>user\nWhat?<|im_end|>\n"], [None], videos=[frames()])


def test_a_model_without_eyes_says_so(qwen2_audio):
    with pytest.raises(ValueError, match="does not see"):
        qwen2_audio.prepare(["What is it?"], [noise(1)], videos=[frames()])


@pytest.mark.parametrize("name", ["tiny", "tiny-unbiased"])
def test_shipped_checkpoints_answer_offline(name):
    if not (CHECKPOINTS / name).is_dir():
        pytest.skip(f"{name} is not trained yet")
    program = f"""
import numpy as np
from helpers.models import load_lalm
lalm = load_lalm({name!r}, device="cpu")
print(lalm.generate(lalm.prepare(["What is heard?"], [np.zeros(lalm.sampling_rate, np.float32)]), 8))
"""
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | nowhere, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and done.stdout.startswith("['")


@pytest.mark.parametrize(
    ("other", "frame_seconds"),
    [("qwen3_omni", 1 / 13), ("audio_flamingo_3", 0.04)],  # Qwen3-Omni: three strided convolutions, 13 tokens a second
)
def test_families_without_a_line_of_their_own(other, frame_seconds, checkpoints):
    lalm = load_lalm(checkpoints[other], device="cpu")
    assert lalm.frame_seconds == pytest.approx(frame_seconds)
    prompts, long = ["What is it?", "And this?"], noise(2.5 * CHUNK_SECONDS, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # these hear clips of any length
        batched = logits(lalm, prompts, [noise(1), long])
    torch.testing.assert_close(batched[1], logits(lalm, prompts[1:], [long])[0], atol=1e-4, rtol=1e-4)
    assert (batched[1] - logits(lalm, prompts[1:], [noise(2.5 * CHUNK_SECONDS, 2)])[0]).abs().max() > 1e-3
    assert len(lalm.generate(lalm.prepare(prompts, [noise(1), long]), max_new_tokens=2)) == 2


# -------------------------------------------------------------------------------------------------------- preparing


def test_shapes_and_left_padding(lalm):
    inputs = lalm.prepare(["Short?", "A question that is a good deal longer?"], [noise(1), noise(2)])
    batch, seq = inputs["input_ids"].shape
    assert batch == 2 and inputs["attention_mask"].shape == (2, seq)
    assert inputs["input_features"].shape == (2, N_MELS, 100 * CHUNK_SECONDS)
    short, long = inputs["attention_mask"]
    assert long.all() and short[0] == 0 and short[-1] == 1 and (short.diff() >= 0).all()


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1.23, 3.999, CHUNK_SECONDS])
def test_audio_tokens_last_as_long_as_the_sound(lalm, seconds):
    tokens = (lalm.prepare(["?"], [noise(seconds)])["input_ids"] == lalm.audio_token_id).sum().item()
    assert tokens * lalm.frame_seconds == pytest.approx(seconds, abs=lalm.frame_seconds)


def test_plain_question_equals_its_rendered_chat(lalm):
    plain = lalm.prepare(["What is it?"], [noise(1)])
    rendered = lalm.prepare([chat(lalm, "What is it?")], [noise(1)])
    assert torch.equal(plain["input_ids"], rendered["input_ids"])


def test_features_are_the_extractors(lalm):
    inputs = lalm.prepare(["What is it?"], [noise(1)])
    expected = lalm.processor.feature_extractor(noise(1), sampling_rate=RATE, return_tensors="pt")["input_features"]
    assert torch.equal(inputs["input_features"], expected)


MIXED = [
    ("What is it?", noise(1.0, 1)),
    ("Which of the two clips is the longer one?", [noise(2.5, 2), noise(0.7, 3)]),
    ("Say anything.", None),
    ("Silence?", np.zeros(RATE, np.float32)),
]


def test_batched_equals_single(lalm):
    prompts, audios = zip(*MIXED, strict=True)
    batched = logits(lalm, prompts, audios)
    for row, prompt, audio in zip(batched, prompts, audios, strict=True):
        single = logits(lalm, [prompt], [audio])[0]
        assert single.std() > 0.5  # the scores differ enough for closeness to mean something
        torch.testing.assert_close(row, single, atol=1e-4, rtol=1e-4)


def test_replies_do_not_depend_on_the_batch(lalm):
    prompts, audios = zip(*MIXED, strict=True)
    batched = lalm.generate(lalm.prepare(prompts, audios), max_new_tokens=8)
    assert batched == [lalm.generate(lalm.prepare([p], [a]), max_new_tokens=8)[0] for p, a in MIXED]


def test_no_prompt_with_audio(lalm):
    inputs = lalm.prepare(["One?", "Two?"], [None, []])
    assert "input_features" not in inputs
    assert len(lalm.generate(inputs, max_new_tokens=2)) == 2


def test_it_hears(lalm):
    prompt = ["What is it?"]
    heard = logits(lalm, prompt, [noise(1, 1)])
    for other in (noise(1, 2), np.zeros(RATE, np.float32)):
        assert (heard - logits(lalm, prompt, [other])).abs().max() > 0.01


def test_several_clips_are_heard_in_order(lalm):
    prompt, a, b = ["Which?"], noise(1, 1), noise(1, 2)
    assert (logits(lalm, prompt, [[a, b]]) - logits(lalm, prompt, [[b, a]])).abs().max() > 0.001
    features = lalm.prepare(prompt, [[a, b]])["input_features"]
    assert torch.equal(features[0], lalm.prepare(prompt, [a])["input_features"][0])


def test_audio_flamingo_tells_what_it_cuts(checkpoints):
    lalm = load_lalm(checkpoints["audio_flamingo_3"], device="cpu")
    lalm.processor.max_audio_len = 2 * CHUNK_SECONDS
    with pytest.warns(UserWarning, match=r"Prompt 0: 2\.00 s of its 10\.00 s of audio are cut off"):
        lalm.prepare(["?"], [noise(10)])


def test_long_audio_is_cut_and_told(lalm):
    clip = noise(CHUNK_SECONDS + 1.5)
    with pytest.warns(UserWarning, match=r"Prompt 1: 1\.50 s of its 5\.50 s of audio are cut off"):
        long = lalm.prepare(["a", "b"], [noise(1), clip])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut = lalm.prepare(["a", "b"], [noise(1), clip[: CHUNK_SECONDS * RATE]])
    assert all(torch.equal(long[key], cut[key]) for key in cut)
    with pytest.warns(UserWarning, match=r"0\.00 s of its 4\.00 s"):  # even one sample
        lalm.prepare(["a"], [noise(CHUNK_SECONDS + 1 / RATE)])


def test_float64_and_lists_of_one_are_taken(qwen2_audio):
    plain = qwen2_audio.prepare(["?"], [noise(1)])
    for audio in (noise(1).astype(np.float64), [noise(1)], (noise(1),)):
        assert torch.equal(qwen2_audio.prepare(("?",), (audio,))["input_features"], plain["input_features"])


BROKEN = {
    "NaN": (np.full(RATE, np.nan, np.float32), ValueError, "prompt 1 holds NaN"),
    "infinite": (np.full(RATE, np.inf, np.float32), ValueError, "prompt 1 holds NaN or infinite"),
    "empty": (np.zeros(0, np.float32), ValueError, "prompt 1 is empty: for no audio pass None"),
    "stereo": (np.zeros((2, RATE), np.float32), ValueError, r"shape \(2, 16000\).*load_audio"),
    "integers": (np.zeros(RATE, np.int16), TypeError, "prompt 1 is a int16 array, not an array of floats"),
    "path": ("clip.wav", TypeError, "prompt 1 is a str, not an array of floats: read files with load_audio"),
    "tensor": (torch.zeros(RATE), TypeError, "prompt 1 is a Tensor"),
    "too short": (noise(0.01), ValueError, "Prompt 1 has 0.010 s of audio but 0 audio token.*too short"),
    "second clip too short": ([noise(1), noise(0.02)], ValueError, "Prompt 1 has 1.020 s of audio but 25 audio token"),
    "too quiet": (1e-9 * noise(1), ValueError, "constant though its sound is not"),
    "more clips than slots": ([noise(1), noise(1)], ValueError, r"Prompt 1 has 1 audio slot.*2 audio clip"),
    "fewer clips than slots": (None, ValueError, r"Prompt 1 has 1 audio slot.*0 audio clip"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_audio(qwen2_audio, case):
    audio, error, message = BROKEN[case]
    n_audio = 2 if "second" in case else 1
    prompts = [chat(qwen2_audio, "What is it?"), chat(qwen2_audio, "And this?", n_audio)]
    with pytest.raises(error, match=message):
        qwen2_audio.prepare(prompts, [noise(1), audio])


def test_prompt_without_an_audio_slot(qwen2_audio):
    with pytest.raises(ValueError, match=r"Prompt 0 has 0 audio slot\(s\) \(<\|AUDIO\|>\) but comes with 1"):
        qwen2_audio.prepare([chat(qwen2_audio, "What is it?", n_audio=0)], [noise(1)])


def test_broken_batches(qwen2_audio):
    with pytest.raises(ValueError, match=r"Got 2 prompt\(s\) and 1 audio entries"):
        qwen2_audio.prepare(["a", "b"], [None])
    with pytest.raises(ValueError, match=r"Got 0 prompt\(s\)"):
        qwen2_audio.prepare([], [])
    with pytest.raises(TypeError, match="are lists"):
        qwen2_audio.prepare("What is it?", noise(1))


def test_wrong_sampling_rate(qwen2_audio):
    qwen2_audio.prepare(["?"], [noise(1)], sampling_rate=RATE)
    with pytest.raises(ValueError, match=r"44100 Hz but .* hears 16000 Hz: .*load_audio\(path, 16000\)"):
        qwen2_audio.prepare(["?"], [noise(1)], sampling_rate=44_100)


def deaf(extract, change):
    def extractor(*args, **kwargs):
        out = extract(*args, **kwargs)
        out["input_features"] = change(out["input_features"])
        return out

    return extractor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda features: features * 0, "constant though its sound is not"),
        (lambda features: features * torch.tensor([1.0, 0.0])[:, None, None], "constant though"),
        (lambda features: features * np.nan, "NaN or infinite"),
    ],
)
def test_deaf_features_are_noticed(lalm, monkeypatch, change, message):
    extractor = lalm.processor.feature_extractor
    monkeypatch.setattr(type(extractor), "__call__", deaf(type(extractor).__call__, change))
    with pytest.raises(ValueError, match=message):
        lalm.prepare(["a", "b"], [noise(1), noise(1)])


def test_audio_tokens_that_do_not_fit_the_sound_are_noticed(lalm, monkeypatch):
    process = LALM._process
    monkeypatch.setattr(
        LALM, "_process", lambda self, texts, clips, *seen: process(self, texts, [c[: RATE // 2] for c in clips], *seen)
    )
    lalm.__dict__["frame_seconds"] = 0.04
    with pytest.raises(ValueError, match=r"Prompt 0 has 1\.000 s of audio but 12 audio token\(s\) of 0\.040 s"):
        lalm.prepare(["a"], [noise(1)])


# ------------------------------------------------------------------------------------------------------- generating


def test_greedy_by_hand(lalm):
    """The reply is the arg max, token after token, without a cache, whatever the hub's generation config says."""
    inputs = lalm.prepare(["What is it?"], [noise(1)])
    ids, steps = inputs["input_ids"], 6
    for _ in range(steps):
        batch = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            token = lalm.model(**batch).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], dim=1)
        if token.item() == lalm.tokenizer.eos_token_id:
            break
    by_hand = lalm.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert lalm.generate(inputs, max_new_tokens=steps) == [by_hand]
    bare = lalm.model.generate(**inputs, max_new_tokens=steps)  # as inside a `with MATA(...)` block
    assert torch.equal(bare, ids)


def test_no_default_of_the_hub_is_left(lalm, checkpoints, family):
    with open(f"{checkpoints[family]}/generation_config.json") as file:
        assert json.load(file)["repetition_penalty"] == 1.1
    left = lalm.model.generation_config.to_diff_dict()
    left.pop("transformers_version", None)
    end = lalm.tokenizer.eos_token_id
    assert left == {"eos_token_id": [end], "pad_token_id": lalm.tokenizer.pad_token_id}


def test_generate_is_quiet(lalm, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lalm.generate(lalm.prepare(["What is it?"], [noise(1)]), max_new_tokens=2)
    assert capfd.readouterr() == ("", "")


def test_only_new_text_without_special_tokens(lalm, monkeypatch):
    inputs = lalm.prepare(["What is it?"], [noise(1)])
    reply = lalm.tokenizer("\n a dog <|im_end|>", return_tensors="pt")["input_ids"]
    monkeypatch.setattr(lalm.model, "generate", lambda input_ids, **_: torch.cat([input_ids, reply], dim=1))
    assert lalm.generate(inputs) == ["a dog"]


def test_sampling_when_asked(lalm):
    inputs = lalm.prepare(["What is it?"], [noise(1)])
    torch.manual_seed(0)
    replies = lalm.generate(inputs, max_new_tokens=6, do_sample=True, temperature=2.0, num_return_sequences=8)
    assert len(replies) == 8 and len(set(replies)) > 1


# ---------------------------------------------------------------------------------------------------------- reading


def test_load_audio_resamples_and_mixes_down(tmp_path):
    rate, channels = 96_000, 8
    time = np.arange(rate) / rate
    sound = 0.8 * np.sin(2 * np.pi * 440 * time)[:, None] * np.arange(channels) / channels  # channel k at k/8
    soundfile.write(tmp_path / "eight.wav", sound, rate, subtype="FLOAT")
    audio = load_audio(tmp_path / "eight.wav", RATE)
    assert audio.dtype == np.float32 and audio.shape == (RATE,)
    expected = 0.8 * np.arange(channels).mean() / channels * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    middle = slice(1000, -1000)  # the resampler rings at the edges
    np.testing.assert_allclose(audio[middle], expected[middle], atol=1e-3)


def test_load_audio_leaves_the_right_rate_alone(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(0.5), RATE)
    expected, _ = soundfile.read(tmp_path / "a.flac", dtype="float32")
    np.testing.assert_array_equal(load_audio(str(tmp_path / "a.flac"), RATE), expected)


def test_load_audio_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no audio file .*missing\.wav"):
        load_audio(tmp_path / "missing.wav", RATE)
    with pytest.raises(FileNotFoundError, match="There is no audio file"):
        load_audio(tmp_path, RATE)
    for name, content in {"text.wav": b"this is no sound", "zero.wav": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} can't be read as audio .*damaged"):
            load_audio(tmp_path / name, RATE)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(ValueError, match=r"empty\.wav holds no samples"):
        load_audio(tmp_path / "empty.wav", RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav holds NaN"):
        load_audio(tmp_path / "nan.wav", RATE)


# ------------------------------------------------------------------------------------------------------ video files
COLOURS = [(230, 40, 40)] * 5 + [(40, 40, 230)] * 5 + [(40, 200, 40)] * 5 + [(230, 230, 40)] * 5  # 10 a second


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    pytest.importorskip("av", reason="reading videos takes PyAV")
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, COLOURS, pitch=440)
    return path


def test_frames_come_two_a_second_and_in_their_colours(video):
    seen = load_frames(video)
    assert seen.shape == (4, 48, 64, 3) and seen.dtype == np.uint8
    assert np.abs(seen.mean((1, 2)) - np.array(COLOURS[::5])).max() < 12  # H.264 rounds colours
    assert load_frames(video, per_second=5).shape[0] == 10


def test_the_sound_of_a_video_is_heard(video):
    sound = load_audio(video, RATE)
    assert sound.dtype == np.float32 and abs(len(sound) / RATE - 2) < 0.1
    spectrum = np.abs(np.fft.rfft(sound[RATE // 4 : -RATE // 4]))
    assert abs(spectrum.argmax() * RATE / (len(sound) - 2 * (RATE // 4)) - 440) < 5
    assert 0.2 < np.abs(sound[RATE // 4 : -RATE // 4]).max() < 0.25  # the mean of a channel at 0.3 and one at 0.15


def test_an_omni_model_takes_a_video_file_whole(omni, video):
    inputs = omni.prepare(["What happens?"], [load_audio(video, RATE)], videos=[load_frames(video)])
    assert inputs["video_second_per_grid"].tolist() == [1]
    assert (inputs["input_ids"] == omni.model.config.video_token_id).sum() == inputs["video_grid_thw"].prod() // 4


def test_a_video_that_can_not_be_read_is_told(video, tmp_path, monkeypatch):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    write_video(tmp_path / "silent.mp4", COLOURS, sound=False)
    for load in (load_frames, lambda path: load_audio(path, RATE)):
        with pytest.raises(ValueError, match=r"broken\.mp4 can't be read as a video"):
            load(tmp_path / "broken.mp4")
        with pytest.raises(FileNotFoundError, match="There is no (audio|video) file"):
            load(tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match=r"silent\.mp4 can't be read as a video with sound"):
        load_audio(tmp_path / "silent.mp4", RATE)
    assert load_frames(tmp_path / "silent.mp4").shape[0] == 4
    with pytest.raises(ValueError, match=r"silent\.mp4 can't be read as a video of whole frames"):
        load_frames(tmp_path / "silent.mp4", per_second=100)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"clip\.mp4 is a video, which takes PyAV to be read: pip install av"):
        load_frames(video)
