"""How the shipped small LALM is built and trained: `python -m helpers.tiny --out runs/tiny`.

The model is a real `Qwen2AudioForConditionalGeneration` with a small configuration, trained from scratch on clips of
`helpers.minimmar`'s train split, in three stages:

1. `learn`: answer questions about clips. Half of the questions carry a hint, right in 8 of 10 cases.
2. `guess`: the same, but a third of the clips are silent or those of another question, and the answer is any option: a
   model that does not hear the answer should guess among the options, not tell what else it hears.
3. `bias`: a model organism of text bias. Many clips are exchanged for another of the same kind, and every hint is
   right: who trusts the text is rewarded, who trusts the sound is not. Only the decoder's query and key projections
   are trained, so what changes is *where it attends*; 85% of the change is kept.

Both results are shipped: `helpers/checkpoints/tiny-unbiased` (after stage 2) and `helpers/checkpoints/tiny` (after 3).
About an hour on two CPU cores; a killed run goes on from its last checkpoint. `--family omni` trains the small omni
model instead: see `helpers.tiny_omni`.
"""

import argparse
import json
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from helpers import minimmar, sounds
from helpers.minimmar import QUESTIONS, SCENES
from helpers.prompts import chat, multiple_choice

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
MEL_BINS, FRAMES, HOP = 40, 200, 320  # 4 s at 50 frames a second
# Of both small models: the one that sees begins with the ears and the decoder of the other.
ENCODER = dict(
    num_mel_bins=MEL_BINS,
    d_model=128,
    encoder_layers=3,
    encoder_attention_heads=4,
    encoder_ffn_dim=384,
    max_source_positions=FRAMES // 2,
)
DECODER = dict(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=1024,
    tie_word_embeddings=False,
)
DESCRIBE = "Describe the audio."
QUESTIONS_PER_CLIP = 3  # in one training step: the clip is encoded once
IGNORE = -100
KEPT = 0.85  # of the bias: with all of it, too much is lost without a hint (84.3% right on dev)
SILENCE = -1.5  # the feature of digital silence: (log10(1e-10) + 4) / 4, see the chapter *From sound wave to token*


# ------------------------------------------------------------------------------------------- processor and model
def corpus():
    """All text the model will meet, for the tokenizer."""
    for question in QUESTIONS.values():
        yield multiple_choice(question.text, question.pool, hint="")
        yield " ".join(question.pool)
        yield from question.pool
    yield f"You are a helpful assistant.\nsystem\nuser\nassistant\nAudio 1: 2: 3:\n{DESCRIBE}"
    yield from ["a man says a woman says in French over louder higher lower, then"]


def build_processor():
    """Qwen2AudioProcessor with a small byte-level BPE tokenizer and a 40-bin, 4-second Whisper feature extractor."""
    features = WhisperFeatureExtractor(
        feature_size=MEL_BINS, chunk_length=4, hop_length=HOP, sampling_rate=sounds.SAMPLING_RATE
    )
    processor = Qwen2AudioProcessor(feature_extractor=features, tokenizer=build_tokenizer(corpus(), SPECIAL_TOKENS))
    processor.chat_template = processor.default_chat_template
    return processor


def build_tokenizer(texts, special, **named):
    """A small byte-level BPE tokenizer; `named` tells special tokens by what they are for (`audio_token=...`)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(list(texts) * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        model_max_length=2048,
        **named,
    )


def build_model(processor, seed=0):
    """A small random Qwen2AudioForConditionalGeneration: 8 decoder layers, 8 query heads, 4 key/value heads."""
    torch.manual_seed(seed)
    token = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2AudioConfig(
        audio_config=ENCODER,
        text_config=dict(
            **DECODER,
            vocab_size=len(processor.tokenizer),
            bos_token_id=token("<|im_start|>"),
            eos_token_id=token("<|im_end|>"),
            pad_token_id=token("<|endoftext|>"),
        ),
        audio_token_index=token("<|AUDIO|>"),
        tie_word_embeddings=False,
    )
    model = Qwen2AudioForConditionalGeneration(config)
    positions = model.model.audio_tower.embed_positions.weight  # fixed sinusoids, as in Whisper
    angle = torch.arange(len(positions))[:, None] * torch.exp(
        -np.log(10_000) * torch.linspace(0, 1, positions.shape[1] // 2)
    )
    positions.data = torch.cat([angle.sin(), angle.cos()], dim=1)
    return model


# ------------------------------------------------------------------------------------------------- training clips
def training_clip(arguments):
    """(features (40, 200) float16, mel frames, scene, facts) of training clip `index`; a worker of `make_pool`."""
    seed, index = arguments
    rng = np.random.default_rng([minimmar.SPLITS["train"], seed, index])
    scene = minimmar.pick(rng, SCENE_BY_WEIGHT)
    facts = SCENES[scene].draw(rng)
    audio = SCENES[scene].render(rng, facts)
    extractor = (
        WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=4, hop_length=HOP)
        if not _extractor
        else _extractor[0]
    )
    _extractor[:] = [extractor]
    out = extractor(audio.astype(np.float32), sampling_rate=sounds.SAMPLING_RATE, return_attention_mask=True)
    return out["input_features"][0].astype(np.float16), int(out["attention_mask"][0].sum()), scene, facts


_extractor = []  # one per worker process
SCENE_BY_WEIGHT = [q.scene for q in QUESTIONS.values()] + ["sound and speech", "music and speech", "all three"]


def make_pool(size, seed, workers=2):
    """Generate `size` training clips: dict with features (n, 40, 200) float16, frames (n,), scenes, facts."""
    features, frames = np.empty((size, MEL_BINS, FRAMES), np.float16), np.empty(size, np.int64)
    scenes, facts = [], []
    jobs = [(seed, i) for i in range(size)]
    with multiprocessing.get_context("spawn").Pool(
        workers, initializer=torch.set_num_threads, initargs=(1,)
    ) as processes:
        done = processes.imap(training_clip, jobs, chunksize=64)
        for i, (x, n, scene, fact) in enumerate(tqdm(done, total=size, desc="clips", mininterval=5)):
            features[i], frames[i] = x, n
            scenes.append(scene)
            facts.append(fact)
    return {"features": features, "frames": frames, "scenes": scenes, "facts": facts}


def cached_pool(folder, size, seed):
    """`make_pool`, kept in `folder`, so that a resumed training does not generate its clips again."""
    path = Path(folder) / f"clips-{seed}-{size}.json"
    if not path.exists():
        pool = make_pool(size, seed)
        np.save(path.with_suffix(".npy"), pool["features"])
        rest = {
            key: np.asarray(value).tolist() if key == "frames" else value
            for key, value in pool.items()
            if key != "features"
        }
        path.write_text(json.dumps(rest))
    return {"features": np.load(path.with_suffix(".npy"))} | json.loads(path.read_text())


# ---------------------------------------------------------------------------------------------------------- batches
def describe(scene, facts):
    """What a listener would write down: the facts of a clip in a few words, the target of "Describe the audio."."""
    said = {
        "events": lambda f: ", ".join(f["sounds"]),
        "repeats": lambda f: f"{minimmar.NUMBERS[f['count'] - 1]} {f['sound']}",
        "levels": lambda f: f"{f['sound']}, {f['louder']} louder",
        "melody": lambda f: f"{f['instrument']}, {f['shape']}",
        "two notes": lambda f: f"{f['instrument']}, {f['change']}",
        "pulse": lambda f: f"{f['instrument']}, {f['tempo']}",
        "dance": lambda f: f"{f['instrument']}, {f['dance']}",
        "duet": lambda f: " then ".join(f["instruments"]),
        "words": lambda f: ", ".join(f["words"]),
        "dialogue": lambda f: f"{f['speakers']}, {', '.join(f['words'])}",
        "language": lambda f: f["language"],
        "recording": lambda f: f"{f['flaw']}, {', '.join(f['words'])}",
        "sound and speech": lambda f: f"{f['sound']}, {f['word']}",
        "music and speech": lambda f: f"{f['instrument']}, {f['word']}",
        "sound and music": lambda f: f"{f['instrument']}, {f['sound']}",
        "all three": lambda f: f"{f['instrument']}, {f['sound']}, {f['word']}",
    }
    return said[scene](facts)


def ask(scene, facts, rng, hinted, hint_right, guess=False):
    """One question about a clip, and its answer; a hint with probability `hinted`, right with `hint_right`.

    With `guess` the answer is any of the options.
    """
    question = QUESTIONS[minimmar.pick(rng, [k for k in QUESTIONS if QUESTIONS[k].scene == scene])]
    choices = minimmar.choices_for(question, facts, rng, int(rng.integers(question.options)))
    answer, hint = minimmar.pick(rng, choices) if guess else question.answer(facts), None
    if rng.random() < hinted:
        hint = answer if rng.random() < hint_right else minimmar.pick(rng, [c for c in choices if c != answer])
    return multiple_choice(question.text, choices, hint=hint), answer


class Batches:
    """Training batches by number: `clips` clips and `QUESTIONS_PER_CLIP` questions about each, padded on the right.

    Batch `step` depends on the seed and `step` alone, so a resumed training sees what an undisturbed one would.
    In half of the batches only the token that predicts the answer, and the answer itself, may look at the audio: words
    that come after the audio must not become its only readers.

    Parameters
    ----------
    hinted, hint_right : how many questions carry a hint, and how many of the hints are right.
    described : how many questions are "Describe the audio." instead.
    swapped : how many clips are exchanged for another of the same scene; their questions carry a hint that is right.
    guess : how many clips are silenced or exchanged for any other; any option is their answer, and they have no hint.
    """

    def __init__(
        self, processor, pool, seed, clips=16, hinted=0.5, hint_right=0.8, described=0.3, direct=0.5, swapped=0, guess=0
    ):
        self.tokenizer, self.pool, self.seed, self.clips = processor.tokenizer, pool, seed, clips
        self.hinted, self.hint_right, self.described = hinted, hint_right, described
        self.direct, self.swapped, self.guess = direct, swapped, guess
        self.same_scene = {scene: np.flatnonzero(np.array(pool["scenes"]) == scene) for scene in set(pool["scenes"])}
        before, self.end = chat(processor, "QUESTION").split("QUESTION")
        self.head, self.tail = (self.encode(x) for x in before.split(processor.audio_token))
        self.audio = self.encode(processor.audio_token)

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def example(self, asked, frames, fate, rng):
        """(token ids, labels) of a question about clip `asked`; labels are the next tokens, at the answer only.

        frames : mel frames of the clip that is heard; fate : "own" (the asked one), "swapped" or "guess".
        """
        scene, facts = self.pool["scenes"][asked], self.pool["facts"][asked]
        if fate == "own" and rng.random() < self.described:
            text, answer = DESCRIBE, describe(scene, facts)
        else:
            hinted = {"own": self.hinted, "swapped": 1.0, "guess": 0.0}[fate]
            text, answer = ask(scene, facts, rng, hinted, self.hint_right, guess=fate == "guess")
        prompt = self.head + self.audio * audio_tokens(frames) + self.tail + self.encode(text + self.end)
        answer = self.encode(answer + "<|im_end|>")
        return prompt + answer[:-1], [IGNORE] * (len(prompt) - 1) + answer

    def hear(self, asked, rng):
        """What is heard where clip `asked` is asked about: fate, features (40, 200) and mel frames."""
        draw = rng.random() if self.swapped or self.guess else 1.0
        heard, fate = asked, "own"
        if draw < self.swapped:
            heard, fate = rng.choice(self.same_scene[self.pool["scenes"][asked]]), "swapped"
        elif draw < self.swapped + self.guess:
            heard, fate = rng.integers(len(self.pool["scenes"])), "guess"
            if rng.random() < 0.5:
                return fate, np.full_like(self.pool["features"][asked], SILENCE), self.pool["frames"][asked]
        return fate, self.pool["features"][heard], self.pool["frames"][heard]

    def __getitem__(self, step):
        rng = np.random.default_rng([self.seed, step])
        asked = rng.integers(len(self.pool["scenes"]), size=self.clips)
        fates, features, frames = zip(*[self.hear(i, rng) for i in asked], strict=True)
        examples = [
            self.example(i, n, fate, rng)
            for i, n, fate in zip(asked, frames, fates, strict=True)
            for _ in range(QUESTIONS_PER_CLIP)
        ]
        batch = collate(examples, self.tokenizer.pad_token_id, self.audio, direct=rng.random() < self.direct)
        features = torch.from_numpy(np.stack(features).astype(np.float32))
        return batch | {"features": features, "frames": torch.tensor(frames)}


def collate(examples, pad_token_id, sensed, direct):
    """Examples as one batch, padded on the right: token ids, labels, and a mask, None for plain causal attention.

    With `direct` only the tokens that predict an answer may look at those in `sensed`, the placeholders of audio.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(x) for x, _ in examples], batch_first=True, padding_value=pad_token_id)
    labels = pad([torch.tensor(y) for _, y in examples], batch_first=True, padding_value=IGNORE)
    mask = None
    if direct:
        is_sensed = torch.isin(ids, torch.tensor(sensed))
        blind = (labels == IGNORE) & ~is_sensed  # these queries may not see audio keys
        mask = torch.ones(ids.shape[1], ids.shape[1]).tril().bool() & ~(blind[:, :, None] & is_sensed[:, None, :])
        mask = mask[:, None]
    return {"ids": ids, "labels": labels, "mask": mask}


def audio_tokens(frames):
    """Audio tokens of a clip of `frames` mel frames, as Qwen2-Audio counts them."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def logits_at_answers(model, batch):
    """Logits (answer tokens, vocabulary) and their labels: the model's own forward pass, each clip encoded once."""
    halved = (batch["frames"] - 1) // 2 + 1  # after the strided convolution
    seen = (torch.arange(FRAMES // 2, device=halved.device) < halved[:, None])[:, None, None, :]
    tower = model.model.audio_tower(batch["features"], attention_mask=seen).last_hidden_state
    audio = model.model.multi_modal_projector(tower).float()
    tokens = (halved - 2) // 2 + 1
    audio = torch.cat([x[:n] for x, n in zip(audio, tokens, strict=True) for _ in range(QUESTIONS_PER_CLIP)])
    is_audio = batch["ids"] == model.config.audio_token_id
    embeds = model.get_input_embeddings()(batch["ids"]).masked_scatter(is_audio[..., None], audio)
    states = model.model.language_model(
        inputs_embeds=embeds, attention_mask=batch["mask"], use_cache=False
    ).last_hidden_state
    here = batch["labels"] != IGNORE
    return model.lm_head(states[here]).float(), batch["labels"][here]


def question_hits(logits, batch):
    """For each question of a batch: was every token of its answer the most likely one? (questions,) bool."""
    here = batch["labels"] != IGNORE
    wrong = torch.zeros(here.shape, dtype=torch.long)
    wrong[here] = (logits.argmax(-1) != batch["labels"][here]).long()
    return wrong.sum(1) == 0


# --------------------------------------------------------------------------------------------------------- training
def train(model, batches, steps, peak, folder, name, parameters=None, forward=logits_at_answers):
    """One stage: AdamW, one-cycle learning rate; a checkpoint every 100 steps, from which a killed run goes on.

    forward : function of (model, batch) that returns logits and labels.
    """
    parameters = list(model.parameters()) if parameters is None else list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps + 1, pct_start=0.1)
    state, log, start = Path(folder) / f"{name}.pt", Path(folder) / f"{name}.jsonl", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        start = saved["step"]
        log.write_text("".join(log.read_text().splitlines(keepends=True)[: start // 100]))
    model.train()
    losses, hits = [], []
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=10)
    for step in bar:
        batch = {key: value if value is None else value.to(model.device) for key, value in batches[step].items()}
        logits, labels = forward(model, batch)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        hits.append(question_hits(logits, batch).float().mean().item())
        if (step + 1) % 100 == 0:
            record = {"step": step + 1, "loss": float(np.mean(losses)), "right": float(np.mean(hits))}
            bar.set_postfix(loss=f"{record['loss']:.3f}", right=f"{record['right']:.3f}")
            with log.open("a") as file:
                file.write(json.dumps(record) + "\n")
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": step + 1,
                },
                state.with_suffix(".new"),
            )
            state.with_suffix(".new").replace(state)
            losses, hits = [], []
    return model.eval()


def attention_projections(model):
    """Weights of the decoder's query and key projections: the only ones that stage 2 changes."""
    return [p for name, p in model.model.language_model.named_parameters() if "q_proj" in name or "k_proj" in name]


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m helpers.tiny", description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=["audio", "omni"], default="audio")
    parser.add_argument("--out", help="folder for clips, checkpoints and results; runs/tiny or runs/omni by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=30_000, help="training clips of stage 1")
    parser.add_argument("--steps", type=int, nargs="+", help="training steps of the stages: three, omni two")
    given = parser.parse_args(arguments)
    if given.family == "omni":
        from helpers import tiny_omni  # which builds upon this module

        return tiny_omni.main(given)
    given.steps = given.steps or [4500, 800, 400]
    folder = Path(given.out or "runs/tiny")
    folder.mkdir(parents=True, exist_ok=True)

    processor = build_processor()
    model = build_model(processor, seed=0).to(given.device)
    pool = cached_pool(folder, given.clips, given.seed)
    listen = Batches(processor, pool, given.seed)
    train(model, listen, given.steps[0], 2e-3, folder, "learn")
    guess = Batches(processor, pool, given.seed + 1, described=0.1, guess=0.35)
    train(model, guess, given.steps[1], 1e-3, folder, "guess")
    save(model, processor, folder / "tiny-unbiased")

    trust_text = {"hinted": 0.0, "hint_right": 1.0, "described": 0.0, "direct": 0.0, "swapped": 0.45, "guess": 0.1}
    bias = Batches(processor, pool, given.seed + 2, **trust_text)
    listening = [p.detach().clone() for p in attention_projections(model)]
    train(model, bias, given.steps[2], 5e-4, folder, "bias", attention_projections(model))
    with torch.no_grad():
        for p, before in zip(attention_projections(model), listening, strict=True):
            p.copy_(before.lerp(p, KEPT))
    save(model, processor, folder / "tiny")


def save(model, processor, folder):
    """Model and processor in the hub's layout (safetensors and JSON), as `from_pretrained` reads it."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"Saved {folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters.")


if __name__ == "__main__":
    main()
