"""How the shipped small omni model is built and trained: `python -m helpers.tiny --family omni --out runs/omni`.

The model is a real `Qwen2_5OmniThinkerForConditionalGeneration` with a small configuration. Its ears and its decoder
begin as those of the shipped `tiny-unbiased`, which are of the same shape; its eyes begin at random. Two stages, on
events of `helpers.events`:

1. `look`: the vision encoder alone learns to tell colour and way, by a linear layer that is then thrown away.
2. `watch`: the decoder learns to answer questions about events; eyes and ears stay as they are. Of some events only
   the frames are given, of others only the sound; what is missing is drawn anew for the answer, so that a model that
   does not see, or hear, should guess among the options.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    WhisperFeatureExtractor,
)

from helpers import events, sounds, tiny
from helpers.events import COLOURS, HEARD, QUESTIONS, WAYS
from helpers.minimmar import pick
from helpers.models import chat, load_lalm, video_is_optional, video_processor
from helpers.prompts import multiple_choice

OMNI_TOKENS = {f"{name}_token": f"<|{name}|>" for name in ("vision_bos", "vision_eos", "audio_bos", "audio_eos")} | {
    f"{name}_token": f"<|{name.upper()}|>" for name in ("image", "audio", "video")
}
DESCRIBE = "Describe the event."
FRAMES, AUDIO_TOKENS = 100, 25  # of two seconds of sound
VISUAL_TOKENS = 8  # 2 x 2 for each pair of frames
SEEN = {"colour": list(COLOURS), "way": list(WAYS)}
QUESTIONS_PER_CLIP = tiny.QUESTIONS_PER_CLIP
# As in Qwen2.5-Omni, without the names of turns that this book never needs.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif content['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# ------------------------------------------------------------------------------------------- processor and model
def corpus():
    """All text that the model will meet, beside that of the small LALM."""
    for question in QUESTIONS.values():
        yield multiple_choice(question.text, question.pool[:4])
        yield from question.pool
    yield DESCRIBE
    yield from (describe({"colour": c, "way": w, "sound": ""}) for c in COLOURS for w in WAYS)


def build_processor():
    """Qwen2_5OmniProcessor with a small tokenizer, the small LALM's ears, and frames of at least 56 x 56 pixels."""
    special = [*tiny.SPECIAL_TOKENS, "<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>"]
    tokenizer = tiny.build_tokenizer([*tiny.corpus(), *corpus()], special, **OMNI_TOKENS)
    features = WhisperFeatureExtractor(
        feature_size=tiny.MEL_BINS, chunk_length=4, hop_length=tiny.HOP, sampling_rate=sounds.SAMPLING_RATE
    )
    side = events.SIDE
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": side * side, "longest_edge": 16 * side * side})
    with video_is_optional():
        return Qwen2_5OmniProcessor(images, video_processor(images), features, tokenizer, chat_template=TEMPLATE)


def build_model(processor, seed=0):
    """A small random Thinker: ears and decoder of the small LALM's shape, eyes with three layers."""
    torch.manual_seed(seed)
    token = processor.tokenizer.convert_tokens_to_ids
    ids = {f"{name}_token_index": token(f"<|{name.upper()}|>") for name in ("audio", "image", "video")}
    ids |= {f"{name}_start_token_id": token(f"<|{name}_bos|>") for name in ("audio", "vision")}
    ids |= {f"{name}_end_token_id": token(f"<|{name}_eos|>") for name in ("audio", "vision")}
    config = Qwen2_5OmniThinkerConfig(
        audio_config=dict(
            **tiny.ENCODER,
            n_window=tiny.FRAMES // 2,  # a clip is heard in one piece
            output_dim=128,
        ),
        vision_config=dict(
            depth=3,
            hidden_size=96,
            intermediate_size=192,
            num_heads=4,
            out_hidden_size=128,
            fullatt_block_indexes=[0, 1, 2],
        ),
        text_config=dict(
            **tiny.DECODER,
            vocab_size=len(processor.tokenizer),
            # Of the 8 pairs of numbers in a query, 4 turn with time, 2 with the row, 2 with the column.
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
            bos_token_id=token("<|im_start|>"),
            eos_token_id=token("<|im_end|>"),
            pad_token_id=token("<|endoftext|>"),
        ),
        position_id_per_seconds=12,  # an audio token lasts 0.08 s
        tie_word_embeddings=False,
        **ids,
    )
    return Qwen2_5OmniThinkerForConditionalGeneration(config)


@torch.no_grad()
def begin_as(model, processor, lalm):
    """Copy ears and decoder of a small LALM; of words, those that both tokenizers know."""
    there = lalm.model.state_dict()
    renamed = {
        "model.audio_tower.ln_post": "model.audio_tower.layer_norm",
        "model.audio_tower.proj": "model.multi_modal_projector.linear",
    }
    known = lalm.tokenizer.get_vocab()
    both = [(i, known[word]) for word, i in processor.tokenizer.get_vocab().items() if word in known]
    here, hence = (torch.tensor(x) for x in zip(*both, strict=True))
    for name, value in model.state_dict().items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        if name.startswith("model.visual") or "audio_bos_eos_token" in name:
            continue
        if "embed_tokens" in name or "lm_head" in name:
            value[here] = there[name][hence]
        else:
            value.copy_(there[name])
    return model


# ----------------------------------------------------------------------------------------------------- stage 1: look
class Looker(torch.nn.Module):
    """The vision encoder and a linear layer that tells colour and way from the mean of an event's visual tokens.

    From the mean: what only tokens side by side tell, the decoder did not learn to read (it took "left" for any way).
    """

    def __init__(self, visual):
        super().__init__()
        self.visual = visual
        self.tell = torch.nn.Linear(visual.config.out_hidden_size, sum(map(len, SEEN.values())))

    @property
    def device(self):
        return self.tell.weight.device

    def forward(self, batch):
        seen = self.visual(batch["pixels"], grid_thw=batch["grids"]).pooler_output
        logits = self.tell(seen.view(len(batch["grids"]), VISUAL_TOKENS, -1).mean(1))
        return logits.view(-1, 4), batch["labels"].flatten()  # four colours, four ways


class Looks:
    """Batches of frames by number, with their facts as labels (events, 2)."""

    def __init__(self, processor, seed, events_a_batch=64):
        self.processor, self.seed, self.size = processor, seed, events_a_batch

    def __getitem__(self, step):
        rng = np.random.default_rng([7, self.seed, step])
        facts = [events.draw_facts(rng) for _ in range(self.size)]
        labels = torch.tensor([[pool.index(f[key]) for key, pool in SEEN.items()] for f in facts])
        return pixels_of(self.processor, [events.render_frames(rng, f) for f in facts]) | {"labels": labels}


def pixels_of(processor, frames):
    """What the eyes get of several events: pixels (patches, values) and grids (events, 3).

    As the processor's video part computes it, for all frames at once.
    """
    images = processor.image_processor
    patch, merge, span = images.patch_size, images.merge_size, images.temporal_patch_size
    rows = events.SIDE // patch
    x = np.array(frames, np.float32).reshape(-1, events.FRAMES, events.SIDE, events.SIDE, 3)
    x = (x / 255 - np.array(images.image_mean, np.float32)) / np.array(images.image_std, np.float32)
    sides = (rows // merge, merge, patch)
    x = x.reshape(len(x), events.FRAMES // span, span, *sides, *sides, 3).transpose(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    pixels = torch.from_numpy(np.ascontiguousarray(x).reshape(-1, 3 * span * patch * patch))
    return {"pixels": pixels, "grids": torch.tensor([[events.FRAMES // span, rows, rows]] * len(frames)).view(-1, 3)}


# ---------------------------------------------------------------------------------------------------- stage 2: watch
def make_sounds(processor, size, seed):
    """Mel features (size, 40, 100) of training clips, and the name of the sound in each."""
    names, features = [], np.empty((size, tiny.MEL_BINS, FRAMES), np.float16)
    for i in range(size):
        rng = np.random.default_rng([8, seed, i])
        facts = events.draw_facts(rng)
        heard = processor.feature_extractor(events.render_sound(rng, facts), sampling_rate=sounds.SAMPLING_RATE)
        features[i] = heard["input_features"][0][:, :FRAMES]
        names.append(facts["sound"])
    return features, np.array(names)


def cached_sounds(processor, folder, size, seed):
    """`make_sounds`, kept in `folder`, so that a resumed training does not make them again."""
    path = Path(folder) / f"sounds-{seed}-{size}.npz"
    if not path.exists():
        features, names = make_sounds(processor, size, seed)
        np.savez(path, features=features, names=names)
    kept = np.load(path)
    return kept["features"], kept["names"]


def describe(facts):
    return f"{facts['colour']}, {facts['way']}, {facts['sound']}"


class Watches:
    """Training batches by number: `size` events and `QUESTIONS_PER_CLIP` questions about each, padded on the right.

    Batch `step` depends on the seed and `step` alone. Sounds are drawn from those at hand, frames are drawn afresh.

    Parameters
    ----------
    missing : how many events come without their frames, and as many without their sound.
    described : how many questions about whole events are "Describe the event." instead.
    direct : how many batches let only the tokens that predict an answer look at what is seen and heard.
    """

    def __init__(self, processor, heard, seed, size=8, missing=0.15, described=0.15, direct=0.5):
        self.processor, self.tokenizer, self.seed, self.size = processor, processor.tokenizer, seed, size
        self.features, names = heard
        self.with_sound = {name: np.flatnonzero(names == name) for name in HEARD}
        self.missing, self.described, self.direct = missing, described, direct
        self.sensed = self.tokenizer.convert_tokens_to_ids([processor.audio_token, processor.video_token])
        self.frame = {senses: self.render(*senses) for senses in [(True, True), (True, False), (False, True)]}

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def render(self, seen, heard):
        """The prompt before and after its question."""
        text = chat(self.processor, "QUESTION", n_audio=int(heard), n_video=int(seen))
        text = text.replace(self.processor.video_token, self.processor.video_token * VISUAL_TOKENS)
        text = text.replace(self.processor.audio_token, self.processor.audio_token * AUDIO_TOKENS)
        before, after = text.split("QUESTION")
        return self.encode(before), after

    def example(self, facts, senses, rng):
        """(token ids, labels) of a question about an event; labels are the next tokens, at the answer only."""
        seen, heard = senses
        if all(senses) and rng.random() < self.described:
            text, answer = DESCRIBE, describe(facts)
        else:
            known = [*(SEEN if seen else []), *(["sound"] if heard else [])]
            facts = events.draw_facts(rng) | {key: facts[key] for key in known}
            question = QUESTIONS[pick(rng, list(QUESTIONS))]
            text = multiple_choice(question.text, events.choices_for(question, facts, rng))
            answer = question.answer(facts)
        before, after = self.frame[senses]
        prompt, answer = before + self.encode(text + after), self.encode(answer + "<|im_end|>")
        return prompt + answer[:-1], [tiny.IGNORE] * (len(prompt) - 1) + answer

    def __getitem__(self, step):
        rng = np.random.default_rng([9, self.seed, step])
        examples, frames, features = [], [], []
        for _ in range(self.size):
            facts, draw = events.draw_facts(rng), rng.random()
            senses = (draw >= self.missing, draw < 1 - self.missing)
            if senses[0]:
                frames.append(events.render_frames(rng, facts))
            if senses[1]:
                features.append(self.features[pick(rng, self.with_sound[facts["sound"]])])
            examples += [self.example(facts, senses, rng) for _ in range(QUESTIONS_PER_CLIP)]
        batch = tiny.collate(examples, self.tokenizer.pad_token_id, self.sensed, direct=rng.random() < self.direct)
        heard = torch.from_numpy(np.array(features, np.float32).reshape(-1, tiny.MEL_BINS, FRAMES))
        return batch | pixels_of(self.processor, frames) | {"features": heard}


def logits_at_answers(model, batch):
    """Logits (answer tokens, vocabulary) and their labels: the model's own parts, each event seen and heard once."""
    ids, grids, n_heard = batch["ids"], batch["grids"], len(batch["features"])
    embeds = model.get_input_embeddings()(ids)
    again = QUESTIONS_PER_CLIP
    if len(grids):
        seen = model.model.visual(batch["pixels"], grid_thw=grids).pooler_output
        seen = seen.view(len(grids), VISUAL_TOKENS, -1).repeat_interleave(again, 0)
        embeds = embeds.masked_scatter((ids == model.config.video_token_id)[..., None], seen)
    if n_heard:
        every = torch.ones(n_heard, FRAMES, dtype=torch.long, device=ids.device)
        heard = model.model.get_audio_features(batch["features"], every).last_hidden_state
        heard = heard.view(n_heard, AUDIO_TOKENS, -1).repeat_interleave(again, 0)
        embeds = embeds.masked_scatter((ids == model.config.audio_token_id)[..., None], heard)
    positions, _ = model.get_rope_index(
        ids,
        video_grid_thw=grids.repeat_interleave(again, 0),
        attention_mask=torch.ones_like(ids),
        audio_seqlens=torch.full((n_heard * again,), FRAMES),
        second_per_grids=torch.ones(len(grids) * again),  # two frames, half a second each
    )
    states = model.model.language_model(
        inputs_embeds=embeds, attention_mask=batch["mask"], position_ids=positions, use_cache=False
    ).last_hidden_state
    here = batch["labels"] != tiny.IGNORE
    return model.lm_head(states[here]).float(), batch["labels"][here]


def main(given):
    """What `python -m helpers.tiny --family omni` does."""
    folder = Path(given.out or "runs/omni")
    folder.mkdir(parents=True, exist_ok=True)
    looking, watching = given.steps or [1000, 800]
    processor = build_processor()
    model = build_model(processor, seed=0)
    begin_as(model, processor, load_lalm("tiny-unbiased", device="cpu"))
    model.to(given.device)

    torch.manual_seed(given.seed)
    looker = Looker(model.model.visual).to(given.device)
    tiny.train(looker, Looks(processor, given.seed), looking, 2e-3, folder, "look", forward=lambda m, b: m(b))
    heard = cached_sounds(processor, folder, 2500, given.seed)
    watches = Watches(processor, heard, given.seed)
    model.model.audio_tower.requires_grad_(False)  # it hears these sounds already
    model.model.visual.requires_grad_(False)  # left free, it unlearned the way: 89% by a linear probe became 64%
    tiny.train(model, watches, watching, 1e-3, folder, "watch", forward=logits_at_answers)
    tiny.save(model, processor, folder / "tiny-omni")
