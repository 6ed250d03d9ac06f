"""A large audio-language model (LALM) by name: its weights, its processor, and what the book asks of it.

Taught in the chapters *Quickstart* and *From sound wave to token*.
"""

import importlib.util
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import librosa
import numpy as np
import soundfile
import torch
from transformers import (
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    BatchFeature,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
    Qwen2VLVideoProcessor,
)
from transformers import processing_utils as processing
from transformers.models.auto import video_processing_auto
from transformers.utils import is_torchvision_available, logging
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import load_video

CHECKPOINTS = Path(__file__).parent / "checkpoints"
VIDEO = (".mp4", ".webm", ".mkv", ".m4a")  # containers that PyAV opens
ON_THE_HUB = ("Qwen/Qwen2-Audio-7B-Instruct", "Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-3B")


@dataclass
class LALM:
    """A large audio-language model with its processor.

    Attributes
    ----------
    name : str
        What it was loaded by.
    model : PreTrainedModel
        The `transformers` model, in evaluation mode.
    processor : ProcessorMixin
        Turns text and sound into the model's inputs.
    sampling_rate : int
        Samples per second (Hz) of the audio that the model expects.
    """

    name: str
    model: PreTrainedModel = field(repr=False)
    processor: ProcessorMixin = field(repr=False)
    sampling_rate: int

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def decoder(self) -> PreTrainedModel:
        """The text decoder, where audio and text tokens attend to each other."""
        return self.model.get_decoder()

    @property
    def audio_token_id(self) -> int:
        """The id of the placeholder that stands for one audio token in `input_ids`."""
        return audio_token_id(self.model.config)

    @property
    def sees(self) -> bool:
        """Whether `prepare` takes frames: true of omni models."""
        return getattr(self.processor, "video_token", None) is not None

    @property
    def max_seconds(self) -> float:
        """The longest stretch of sound the feature extractor takes at once, in seconds."""
        return self.processor.feature_extractor.n_samples / self.sampling_rate

    @cached_property
    def frame_seconds(self) -> float:
        """Seconds of audio per audio token, counted on one full stretch of silence."""
        silence = np.zeros(self.processor.feature_extractor.n_samples, dtype=np.float32)
        probe = self._process([self.processor.audio_token], [silence])
        return self.max_seconds / (probe["input_ids"] == self.audio_token_id).sum().item()

    def prepare(
        self,
        prompts: Sequence[str],
        audios: Sequence[np.ndarray | Sequence[np.ndarray] | None],
        sampling_rate: int | None = None,
        videos: Sequence[np.ndarray | None] | None = None,
    ) -> BatchFeature:
        """Turn prompts and sounds (and, for an omni model, frames) into one left-padded batch on the model's device.

        Parameters
        ----------
        prompts : list of str
            A plain question is put into the chat template, frames first, then audio, then text. A prompt that already
            holds one of the tokenizer's special tokens is taken as rendered and used as it is.
        audios : list
            Per prompt: a mono array of floats, a list of them, or None.
        sampling_rate : int, optional
            The arrays' rate (Hz), to be checked against the model's.
        videos : list, optional
            Per prompt: the frames of a video, two a second, as a uint8 array (frames, height, width, 3), or None.
            Frames whose sides fit the model's grid of visual tokens are taken as they are, others are resized.

        Returns
        -------
        BatchFeature
            `input_ids` and `attention_mask` of shape (batch, seq), features in the model's dtype.

        Raises
        ------
        ValueError, TypeError
            On any input that the model could not hear in full, with one exception: a clip longer than `max_seconds`
            is cut, and a warning says which and by how much.
        """
        prompts, clips = _check_batch(prompts, audios)
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"The audio has {sampling_rate} Hz but {self.name} hears {self.sampling_rate} Hz: "
                f"read the file with load_audio(path, {self.sampling_rate}), which resamples."
            )
        frames = self._check_videos(prompts, videos)
        shown = [0 if own is None else 1 for own in frames]
        texts = [self._render(prompt, len(own), n) for prompt, own, n in zip(prompts, clips, shown, strict=True)]
        for item, (text, own, n) in enumerate(zip(texts, clips, shown, strict=True)):
            if videos is not None and text.count(self.processor.video_token) != n:
                raise ValueError(
                    f"Prompt {item} has {text.count(self.processor.video_token)} video slot(s) "
                    f"({self.processor.video_token}) but comes with {n} video(s): give one video a slot."
                )
            slots = text.count(self.processor.audio_token)
            if slots != len(own):
                raise ValueError(
                    f"Prompt {item} has {slots} audio slot(s) ({self.processor.audio_token}) but comes with "
                    f"{len(own)} audio clip(s): give one clip a slot."
                )
        flat = [clip for own in clips for clip in own]
        seen = [own for own in frames if own is not None]
        inputs = self._process(texts, flat, seen)
        self._check_heard(inputs, clips)
        return inputs.to(self.device, self.dtype)

    def generate(self, inputs: BatchFeature, max_new_tokens: int = 32, **kwargs) -> list[str]:
        """Answer each prompt of a batch, greedily unless `kwargs` (of `transformers`' `generate`) ask otherwise.

        Returns the new text only, without special tokens and surrounding space.
        """
        kwargs = {"do_sample": False, "num_beams": 1} | kwargs
        output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **kwargs)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _render(self, prompt: str, n_audio: int, n_video: int = 0) -> str:
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return prompt if any(token in prompt for token in special) else chat(self, prompt, n_audio, n_video=n_video)

    def _process(self, texts: list[str], clips: list[np.ndarray], videos: Sequence[np.ndarray] = ()) -> BatchFeature:
        # `audio=`: these processors no longer know the older `audios=`.
        sound = {"audio": clips, "sampling_rate": self.sampling_rate} if clips else {}
        sight = {"videos": list(videos), "videos_kwargs": {"do_resize": not self._fit(videos)}} if videos else {}
        padding = {"padding": True, "padding_side": "left"}
        return self.processor(text=texts, text_kwargs=padding, return_tensors="pt", **sound, **sight)

    def _fit(self, videos: Sequence[np.ndarray]) -> bool:
        """Whether the sides of all frames are multiples of those of a visual token."""
        grid = self.processor.image_processor.patch_size * self.processor.image_processor.merge_size
        return all(side % grid == 0 for frames in videos for side in frames.shape[1:3])

    def _check_videos(self, prompts: list[str], videos: Sequence | None) -> list[np.ndarray | None]:
        if videos is None:
            return [None] * len(prompts)
        if not self.sees:
            raise ValueError(f"{self.name} hears but does not see: leave out videos, or load an omni model.")
        if isinstance(videos, np.ndarray) or len(videos) != len(prompts):
            raise ValueError(f"videos is a list with one entry a prompt ({len(prompts)}): frames, or None.")
        for item, frames in enumerate(videos):
            if frames is None:
                continue
            is_bytes = isinstance(frames, np.ndarray) and frames.dtype == np.uint8
            if not is_bytes or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
                raise ValueError(
                    f"The video of prompt {item} is no uint8 array of shape (frames, height, width, 3), nor None."
                )
        return list(videos)

    def _check_heard(self, inputs: BatchFeature, clips: list[list[np.ndarray]]) -> None:
        """Guard against deafness: the audio tokens must last as long as the sound, the features must hold it."""
        tokens = (inputs["input_ids"] == self.audio_token_id).sum(dim=1).tolist()
        for item, own in enumerate(clips):
            seconds = [len(clip) / self.sampling_rate for clip in own]
            heard = tokens[item] * self.frame_seconds if own else 0.0
            slack = 2 * self.frame_seconds * len(own)  # convolutions round each clip to whole tokens
            least = sum(min(s, self.max_seconds) for s in seconds)
            too_short = any(s < self.frame_seconds for s in seconds)
            if too_short or not least - slack <= heard <= sum(seconds) + slack:
                raise ValueError(
                    f"Prompt {item} has {sum(seconds):.3f} s of audio but {tokens[item]} audio token(s) of "
                    f"{self.frame_seconds:.3f} s: a clip is too short, or the processor does not fit the model."
                )
            if any(s > self.max_seconds for s in seconds) and heard < sum(seconds):
                warnings.warn(
                    f"Prompt {item}: {sum(seconds) - heard:.2f} s of its {sum(seconds):.2f} s of audio are cut off: "
                    f"{self.name} does not take clips of that length.",
                    stacklevel=3,
                )
        longest = round(self.max_seconds * self.sampling_rate)
        sounding = sum(np.ptp(clip[:longest]) > 0 for own in clips for clip in own)  # silence is legal, as a control
        if sounding:
            features = inputs["input_features"].flatten(start_dim=1)
            if not features.isfinite().all():
                raise ValueError("The audio features hold NaN or infinite values: the processor is broken.")
            if (features.amax(dim=1) > features.amin(dim=1)).sum() < sounding:
                raise ValueError(
                    "The audio features of a clip are constant though its sound is not: scale it to a usual level "
                    "(peak near 1), or pass zeros where silence is meant."
                )


def load_lalm(
    name: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    revision: str | None = None,
    default: str = "tiny",
) -> LALM:
    """Load a LALM: safetensors only, never a repository's own code.

    Parameters
    ----------
    name : str, optional
        "tiny", "tiny-unbiased" or "tiny-omni" (shipped, no network needed), a local folder, or a hub id. By default
        what the environment variable `LALM` says, else `default`.
    device : optional
        By default a CUDA GPU, else Apple's (mps), else the CPU.
    dtype : optional
        By default bfloat16 on CUDA (float16 where the GPU lacks it), else float32.
    quantize : {"4bit"}, optional
        Keep the weights in 4 bits (NF4) through bitsandbytes, for small CUDA GPUs.
    revision : str, optional
        The hub repository's commit, tag or branch.
    default : str
        What is loaded where neither `name` nor the environment names a model.

    Raises
    ------
    ValueError
        An unknown name, a model without audio tokens, one whose processor can't be asked as the book asks, a checkpoint
        that lacks weights, an unknown `quantize`.
    OSError
        A folder without safetensors weights, a hub id that can't be fetched.
    ImportError, RuntimeError
        `quantize` without bitsandbytes, without a CUDA GPU.
    """
    name = str(name or os.environ.get("LALM") or default)
    source = _locate(name)
    device = torch.device(device or _best_device())
    dtype = dtype or _best_dtype(device)
    quantization = _quantization(quantize, device, dtype)
    try:
        model, processor = _from_pretrained(
            source, revision, dtype=dtype, device_map={"": device}, quantization_config=quantization
        )
    except OSError as error:
        if isinstance(source, Path):
            raise
        reason = str(error).splitlines()[0]
        raise OSError(f"{name!r} can't be had from the hub, which takes a network the first time: {reason}") from error
    # The hub's decoding defaults (Qwen2-Audio samples, and penalises repetition) would change every number: keep only
    # the token ids, and what is left is greedy.
    model.generation_config = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id or processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    try:
        lalm = LALM(name, model.eval(), processor, processor.feature_extractor.sampling_rate)
        assert lalm.frame_seconds > 0  # the processor makes audio tokens of sound and text as `prepare` will ask it to
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{name} has a {type(processor).__name__}, which can't be asked as this book asks ({error}). MATA, "
            "attention rows and head_vectors still take its model, with inputs that you make by its own processor."
        ) from error
    return lalm


def audio_token_id(config: PreTrainedConfig) -> int | None:
    """Return the id of the placeholder of one audio token that a model's config, or its audio part, names, if any."""
    for part in (config, getattr(config, "audio_config", None)):
        if getattr(part, "audio_token_id", None) is not None:
            return part.audio_token_id
    return None


def visual_token_ids(config: PreTrainedConfig) -> list[int]:
    """Return the ids of the placeholders of one visual token, of pictures and videos; none for a model without eyes."""
    ids = [getattr(config, f"{name}_token_id", None) for name in ("image", "video")]
    return [number for number in ids if number is not None]


def load_audio(path: str | os.PathLike, sampling_rate: int) -> np.ndarray:
    """Read a sound file as float32 mono at `sampling_rate` (Hz): channels averaged, resampled by librosa.

    Of a video file (.mp4, .webm, .mkv) its sound, which takes PyAV: `pip install av`.

    Returns
    -------
    ndarray, shape (samples,)

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; a file that is not sound, holds no samples, or holds NaN or infinite ones.
    ImportError
        A video file where PyAV is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no audio file {path}.")
    if Path(path).suffix.lower() in VIDEO:
        audio, rate = _sound_of_video(path)
    else:
        try:
            audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(
                f"{path} can't be read as audio ({error.error_string}): is it damaged, or not a sound?"
            ) from error
    if not audio.size:
        raise ValueError(f"{path} holds no samples.")
    if not np.isfinite(audio).all():
        raise ValueError(f"{path} holds NaN or infinite samples.")
    return librosa.resample(librosa.to_mono(audio.T), orig_sr=rate, target_sr=sampling_rate)


def _sound_of_video(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """The sound of a video file: (samples, channels), and its rate."""
    av = _pyav(path)
    try:
        with av.open(str(path)) as container:
            to_floats = av.AudioResampler(format="fltp")
            heard = [part for frame in container.decode(audio=0) for part in to_floats.resample(frame)]
            heard += to_floats.resample(None)  # what is still in there
        rate = heard[0].sample_rate
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} can't be read as a video with sound: is it damaged, or silent?") from error
    return np.concatenate([part.to_ndarray() for part in heard], axis=1).T, rate


def load_frames(path: str | os.PathLike, per_second: float = 2) -> np.ndarray:
    """Read frames of a video file, evenly spaced, two a second as Qwen2.5-Omni takes them. Needs PyAV.

    Returns
    -------
    ndarray of uint8, shape (frames, height, width, 3)

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        No such file; one that is no video or shorter than a frame's time; PyAV is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no video file {path}.")
    av = _pyav(path)
    try:
        frames, _ = load_video(str(path), fps=per_second, backend="pyav")
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path} can't be read as a video of whole frames: is it damaged? Else write it as .mp4."
        ) from error
    return frames


def _pyav(path):
    try:
        import av  # 100 MB, and needed for videos only
    except ImportError:
        raise ImportError(f"{path} is a video, which takes PyAV to be read: pip install av.") from None
    return av


def chat(
    processor: LALM | ProcessorMixin,
    text: str,
    n_audio: int = 1,
    system: str | None = None,
    audio_first: bool = True,
    n_video: int = 0,
) -> str:
    """Render a user's turn with the processor's own chat template, up to where the answer begins.

    Parameters
    ----------
    processor : LALM or ProcessorMixin
    text : str
        The question.
    n_audio : int
        Audio slots in the turn.
    system : str, optional
        The system turn; by default what the template says.
    audio_first : bool
        Whether the audio comes before the text or after it.
    n_video : int
        Video slots in the turn, before all else. Only omni models have them.
    """
    processor = getattr(processor, "processor", processor)
    # Older templates look for the key "audio" rather than at the type; its value is never read.
    audio = [{"type": "audio", "audio": ""}] * n_audio
    question = [{"type": "text", "text": text}]
    video = [{"type": "video", "video": ""}] * n_video
    content = video + (audio + question if audio_first else question + audio)
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


class FramesAsImages(VideoProcessorMixin):
    """Video without torchvision, whose wheels fail beside a CPU-only torch: each frame is an image, read by PIL.

    The pixels are laid out as the model's own video processor does it: each patch spans `temporal_patch_size` frames.
    """

    def __init__(self, image_processor=None):
        self.images = image_processor or Qwen2VLImageProcessorPil()
        self.merge_size, self.temporal_patch_size = self.images.merge_size, self.images.temporal_patch_size

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return cls(Qwen2VLImageProcessorPil.from_pretrained(*args, **kwargs))

    def to_dict(self):
        """What is saved: the settings under the name of the real class, which reads them where torchvision is."""
        return self.images.to_dict() | {"video_processor_type": "Qwen2VLVideoProcessor"}

    def __call__(self, videos, return_tensors=None, **kwargs):
        """Frames (T, height, width, 3) of each video to patches (T / 2 * rows * columns, values), and their grids."""
        known = {name: kwargs[name] for name in ("do_resize", "size") if name in kwargs}
        pixels, grids = zip(*[self._patches(frames, known) for frames in videos], strict=True)
        data = {"pixel_values_videos": np.concatenate(pixels), "video_grid_thw": np.array(grids)}
        return BatchFeature(data, tensor_type=return_tensors)

    def _patches(self, frames, known):
        span = self.temporal_patch_size
        frames = [*frames, *[frames[-1]] * (-len(frames) % span)]  # the last frame stands still
        seen = self.images(frames, temporal_patch_size=1, return_tensors="np", **known)
        _, rows, columns = seen["image_grid_thw"][0].tolist()
        steps = len(frames) // span
        patches = seen["pixel_values"].reshape(steps, span, rows * columns, 3, -1)
        return patches.transpose(0, 2, 3, 1, 4).reshape(steps * rows * columns, -1), (steps, rows, columns)


def video_processor(image_processor) -> VideoProcessorMixin:
    """How frames go in: by the model's own video processor where torchvision is, else by the image processor.

    A torchvision that does not fit the torch beside it counts for nothing: `transformers` can't be imported with it.
    """
    if is_torchvision_available():
        settings = image_processor.to_dict()
        return Qwen2VLVideoProcessor(**{key: settings[key] for key in ("size", "patch_size", "merge_size")})
    return FramesAsImages(image_processor)


@contextmanager
def video_is_optional() -> Iterator[None]:
    """Let processors with a video part be built without torchvision; where it is there, change nothing."""
    if is_torchvision_available():
        yield
        return
    with (
        patch.object(video_processing_auto, "AutoVideoProcessor", FramesAsImages),
        # Without torchvision `transformers` hides the class that it would check the video processor against.
        patch.dict(processing.MODALITY_TO_BASE_CLASS_MAPPING, video_processor="ImageProcessingMixin"),
    ):
        yield


def _locate(name: str) -> Path | str:
    """A shipped checkpoint's or a local folder as a Path, a hub id as it is."""
    shipped = {folder.name: folder for folder in sorted(CHECKPOINTS.glob("*/"))}
    folder = shipped.get(name, Path(name))
    if not folder.is_dir():
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
            return name
        raise ValueError(
            f"Unknown model {name!r}: known are {', '.join(shipped)}, any local folder that holds a model, and hub ids "
            f"such as {', '.join(ON_THE_HUB)} (a hub id takes a network the first time)."
        )
    if not any(folder.glob("*.safetensors")):
        raise OSError(
            f"{folder} holds no *.safetensors weights: pickled ones (.bin, .pt) can run code and are not read; "
            "convert them with save_pretrained."
        )
    return folder


def _from_pretrained(source: Path | str, revision: str | None, **weights) -> tuple[PreTrainedModel, ProcessorMixin]:
    where = {"revision": revision, "trust_remote_code": False, "local_files_only": isinstance(source, Path)}
    config = AutoConfig.from_pretrained(source, **where)
    # An omni model is a Thinker, which hears and writes, and a Talker, which the book leaves on disk.
    config = getattr(config, "thinker_config", config)
    if audio_token_id(config) is None:
        raise ValueError(
            f"{source} is a {config.model_type} model, whose config names no audio token: it hears nothing."
        )
    with _progress_bar(shown=CHECKPOINTS not in Path(source).parents):
        model, info = _auto_class(config).from_pretrained(
            source, config=config, use_safetensors=True, output_loading_info=True, **weights, **where
        )
    if info["missing_keys"]:  # `transformers` would fill them with random numbers and only warn
        raise ValueError(f"{source} lacks weights of its model: {', '.join(sorted(info['missing_keys'])[:3])}, ...")
    with video_is_optional():
        return model, AutoProcessor.from_pretrained(source, **where)


def _auto_class(config: PreTrainedConfig) -> type:
    # Most LALMs are filed under both; the Thinkers only under the first, the Audio Flamingos only under the second.
    return AutoModelForMultimodalLM if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING else AutoModelForSeq2SeqLM


@contextmanager
def _progress_bar(shown: bool) -> Iterator[None]:
    """Hide the bar over the weights of a shipped checkpoint: they load in a blink, and a bar would litter the pages."""
    before = logging.is_progress_bar_enabled()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _best_dtype(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _quantization(quantize: str | None, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantize is None:
        return None
    if quantize != "4bit":
        raise ValueError(f"quantize={quantize!r} is not known: use '4bit' or None.")
    if device.type != "cuda":
        raise RuntimeError(f"quantize='4bit' takes a CUDA GPU, but the model would be loaded on {device}.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("quantize='4bit' needs bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _check_batch(prompts: Sequence[str], audios: Sequence) -> tuple[list[str], list[list[np.ndarray]]]:
    """Bring audios to a list of float32 clips per prompt; refuse what is no mono sound."""
    if isinstance(prompts, str) or isinstance(audios, np.ndarray):
        raise TypeError("prompts and audios are lists, one entry a prompt: write [prompt], [audio] for one.")
    if not prompts or len(prompts) != len(audios):
        raise ValueError(f"Got {len(prompts)} prompt(s) and {len(audios)} audio entries: give one entry a prompt.")
    clips = [[] if own is None else list(own) if isinstance(own, list | tuple) else [own] for own in audios]
    return list(prompts), [[_check_clip(clip, item) for clip in own] for item, own in enumerate(clips)]


def _check_clip(clip: np.ndarray, item: int) -> np.ndarray:
    if not isinstance(clip, np.ndarray) or not np.issubdtype(clip.dtype, np.floating):
        kind = f"{clip.dtype} array" if isinstance(clip, np.ndarray) else type(clip).__name__
        raise TypeError(f"The audio of prompt {item} is a {kind}, not an array of floats: read files with load_audio.")
    if clip.ndim != 1:
        raise ValueError(
            f"The audio of prompt {item} has shape {clip.shape}, not (samples,): load_audio mixes it down."
        )
    if not clip.size:
        raise ValueError(f"The audio of prompt {item} is empty: for no audio pass None.")
    if not np.isfinite(clip).all():
        raise ValueError(f"The audio of prompt {item} holds NaN or infinite samples: repair the clip or leave it out.")
    return clip.astype(np.float32, copy=False)
