"""Generated audio: sound events, notes and speech. The raw material of MiniMMAR.

Everything is 16 kHz mono float64 with a peak of at most 1, drawn from a `numpy` random generator, so that one seed
gives one waveform. Sounds and notes are synthesised here in a few lines each; speech comes from eSpeak NG.
"""

import _ctypes
import ctypes
from functools import lru_cache

import numpy as np
from scipy.signal import butter, lfilter, resample_poly, sosfilt

SAMPLING_RATE = 16_000


# ---------------------------------------------------------------------------------------------- small building blocks
def seconds(duration):
    """Time axis in seconds for a clip of `duration` seconds."""
    return np.arange(int(duration * SAMPLING_RATE)) / SAMPLING_RATE


def silence(duration):
    return np.zeros(int(duration * SAMPLING_RATE))


def sine(frequency, duration):
    """Sine of constant (number) or changing (array, Hz) frequency."""
    t = seconds(duration)
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(frequency, t.shape)) / SAMPLING_RATE)


def noise(rng, duration, low=None, high=None):
    """White noise, band-limited to low..high Hz where these are given."""
    x = rng.standard_normal(int(duration * SAMPLING_RATE))
    if low is None and high is None:
        return x
    kind, cut = ("lowpass", high) if low is None else ("highpass", low) if high is None else ("bandpass", [low, high])
    return sosfilt(butter(2, cut, kind, fs=SAMPLING_RATE, output="sos"), x)


def harmonics(frequency, duration, amplitudes):
    """Sum of harmonics of `frequency` (number or array, Hz); those above 7.5 kHz are left out, so nothing aliases."""
    top = np.max(frequency)
    return sum(
        a * sine(np.multiply(frequency, k), duration) for k, a in enumerate(amplitudes, 1) if a and k * top < 7500
    )


def decay(duration, half_life):
    """Exponential decay: a factor 1/2 every `half_life` seconds."""
    return 0.5 ** (seconds(duration) / half_life)


def fade(x, attack=0.005, release=0.01):
    """Linear fade in and out (seconds), so that no clip starts or ends with a click."""
    x = np.array(x, dtype=float)
    a, r = (min(int(s * SAMPLING_RATE), len(x) // 2) for s in (attack, release))
    x[:a] *= np.linspace(0, 1, a)
    x[len(x) - r :] *= np.linspace(1, 0, r)
    return x


def normalise(x: np.ndarray, peak: float = 1.0) -> np.ndarray:
    """Scale so that the largest absolute sample is `peak`."""
    top = np.max(np.abs(x), initial=0.0)
    return x * (peak / top) if top > 0 else x


def at_level(x: np.ndarray, decibels: float) -> np.ndarray:
    """Scale to an active level (RMS over the loudest half of 20 ms frames) of `decibels` re full scale."""
    frames = x[: len(x) // 320 * 320].reshape(-1, 320)
    power = np.sort((frames**2).mean(axis=1))[len(frames) // 2 :].mean()
    return x * 10 ** (decibels / 20) / np.sqrt(power + 1e-12)


def repeat_until(make, rng, duration, gap):
    """Calls of `make(rng)` in a row, `gap(rng)` seconds between their starts, cut to `duration` seconds."""
    out, start = silence(duration), 0.0
    while start < duration - 0.02:
        piece = make(rng)[: len(out) - int(start * SAMPLING_RATE)]
        out[int(start * SAMPLING_RATE) :][: len(piece)] += piece
        start += gap(rng)
    return out


def mix(length, parts):
    """Add (start in seconds, waveform) parts into a clip of `length` seconds; what reaches past the end is cut."""
    out = silence(length)
    for start, part in parts:
        begin = int(start * SAMPLING_RATE)
        part = part[: max(0, len(out) - begin)]
        out[begin : begin + len(part)] += part
    return out


# --------------------------------------------------------------------------------------------------- sound events
def dog_bark(rng):
    d = rng.uniform(0.18, 0.28)
    f0 = rng.uniform(350, 550) * np.interp(seconds(d), [0, 0.3 * d, d], [0.8, 1.2, 0.6])
    return (harmonics(f0, d, [1, 0.9, 0.7, 0.5, 0.3]) + 0.5 * noise(rng, d, 400, 2500)) * np.sin(
        np.pi * seconds(d) / d
    ) ** 0.7


def cat_meow(rng):
    d = rng.uniform(0.5, 0.7)
    f0 = rng.uniform(550, 750) * np.interp(seconds(d), [0, 0.35 * d, d], [0.75, 1.25, 0.8])
    return harmonics(f0, d, [0.5, 1, 0.6, 0.4, 0.2]) * np.sin(np.pi * seconds(d) / d)


def bird_chirp(rng):
    low, d = rng.uniform(2800, 3600), rng.uniform(0.07, 0.1)

    def sweep(rng):
        return sine(np.linspace(low, low * 1.8, len(seconds(d))), d) * np.sin(np.pi * seconds(d) / d)

    return repeat_until(sweep, rng, 3.5 * d, lambda r: 1.15 * d)


def rain(rng):
    d = 0.9
    drops = noise(rng, d, 2000) * (rng.random(len(seconds(d))) > 0.995) * 12
    return noise(rng, d, 1500) * 0.5 + lfilter([1], [1, -0.6], drops)


def thunder(rng):
    d = 0.95
    return noise(rng, d, 25, 160) * (decay(d, 0.25) + 0.5 * np.abs(sine(rng.uniform(2, 4), d)) * decay(d, 0.4))


def bell(rng):
    f, d = rng.uniform(600, 1000), 0.8
    return sum(
        a * sine(f * r, d) * decay(d, h)
        for r, a, h in [
            (0.5, 0.4, 0.3),
            (1, 1, 0.25),
            (2.4, 0.7, 0.15),
            (3.0, 0.4, 0.12),
            (4.5, 0.3, 0.08),
            (5.3, 0.2, 0.05),
        ]
    )


def alarm(rng):
    f, d, period = rng.uniform(900, 1200), 0.9, rng.uniform(0.16, 0.22)
    high = (seconds(d) % period) > period / 2
    return np.tanh(3 * sine(np.where(high, f * 1.35, f), d))


def siren(rng):
    d = 0.95
    f = rng.uniform(800, 950) * 2 ** (0.6 * sine(rng.uniform(1.3, 2.0), d))
    return harmonics(f, d, [1, 0.3, 0.15])


def knock(rng):
    d, f = 0.14, rng.uniform(150, 240)
    return sine(f, d) * decay(d, 0.018) + 0.5 * noise(rng, d, 200, 1500) * decay(d, 0.006)


def car_horn(rng):
    d, f = rng.uniform(0.35, 0.5), rng.uniform(370, 450)
    return harmonics(f, d, 1 / np.arange(1, 12)) + harmonics(f * 1.26, d, 1 / np.arange(1, 12))


def clock_tick(rng):
    def tick(rng):
        return noise(rng, 0.03, 3000, 6000) * decay(0.03, 0.003)

    gap = rng.uniform(0.2, 0.25)
    return repeat_until(tick, rng, 0.9, lambda r: gap)


def footsteps(rng):
    def step(rng):
        return noise(rng, 0.12, 60, 400) * decay(0.12, 0.02) + 0.3 * noise(rng, 0.12, 800, 2500) * decay(0.12, 0.012)

    gap = rng.uniform(0.28, 0.34)
    return repeat_until(step, rng, 0.95, lambda r: gap * r.uniform(0.95, 1.05))


def glass_breaking(rng):
    d = 0.7
    shards = sum(
        a * mix(d, [(s, sine(f, 0.3) * decay(0.3, 0.03))])
        for f, s, a in zip(
            rng.uniform(2500, 7000, 14), rng.uniform(0, 0.35, 14) ** 1.5, rng.uniform(0.2, 0.6, 14), strict=True
        )
    )
    return shards + noise(rng, d, 2500) * decay(d, 0.03)


def engine(rng):
    d, f = 0.95, rng.uniform(45, 70)
    return (harmonics(f, d, 1 / np.arange(1, 16) ** 0.8) + 0.6 * noise(rng, d, 100, 900)) * (1 + 0.5 * sine(f / 3, d))


def wind(rng):
    d = 0.95
    gust = 0.55 + 0.45 * sine(rng.uniform(0.8, 1.6), d)
    return noise(rng, d, 250, 700) * gust


def whistle(rng):
    d, f = rng.uniform(0.45, 0.6), rng.uniform(1500, 2000)
    return sine(f * np.interp(seconds(d), [0, 0.5 * d, d], [0.8, 1, 1.3]), d) + 0.02 * noise(rng, d, 1000, 4000)


SOUNDS = {
    "dog bark": dog_bark,
    "cat meow": cat_meow,
    "bird chirp": bird_chirp,
    "rain": rain,
    "thunder": thunder,
    "bell": bell,
    "alarm": alarm,
    "siren": siren,
    "knock": knock,
    "car horn": car_horn,
    "clock": clock_tick,
    "footsteps": footsteps,
    "breaking glass": glass_breaking,
    "engine": engine,
    "wind": wind,
    "whistle": whistle,
}
SHORT_SOUNDS = ["dog bark", "knock", "car horn", "bird chirp", "whistle"]  # one clear onset: can be counted
LASTING_SOUNDS = ["rain", "alarm", "siren", "clock", "footsteps", "engine", "wind"]  # can go on behind a voice


def sound(name: str, rng: np.random.Generator) -> np.ndarray:
    """One event of class `name` (a key of `SOUNDS`), peak 1, 0.1 to 1 s."""
    if name not in SOUNDS:
        raise ValueError(f"There is no sound {name!r}; the sounds are: {', '.join(SOUNDS)}.")
    return normalise(fade(SOUNDS[name](rng)))


def lasting_sound(name: str, rng: np.random.Generator, duration: float) -> np.ndarray:
    """The event repeated without a gap for `duration` seconds, peak 1."""
    return normalise(fade(repeat_until(lambda r: sound(name, r), rng, duration, lambda r: 0.88), 0.05, 0.05))


# ---------------------------------------------------------------------------------------------------------- music
def piano(f, d, rng):
    return harmonics(f, d, [1, 0.6, 0.35, 0.2, 0.1, 0.06]) * decay(d, 0.18)


def flute(f, d, rng):
    vibrato = 1 + 0.006 * sine(5, d)
    return fade(harmonics(f * vibrato, d, [1, 0.12, 0.05]), 0.06, 0.06) + 0.015 * noise(rng, d, 1500, 5000)


def organ(f, d, rng):
    return fade(harmonics(f, d, [1, 0.9, 0, 0.8, 0, 0, 0, 0.6]), 0.01, 0.03)


def guitar(f, d, rng):
    """Karplus-Strong: a burst of noise in a delay line whose feedback is a two-point average."""
    period = int(round(SAMPLING_RATE / f))
    burst = np.zeros(int(d * SAMPLING_RATE))
    burst[:period] = rng.uniform(-1, 1, period)[: len(burst)]
    feedback = np.zeros(period + 2)
    feedback[0], feedback[period], feedback[period + 1] = 1, -0.498, -0.498
    return lfilter([1], feedback, burst)


def violin(f, d, rng):
    vibrato = 1 + 0.012 * sine(6, d)
    return fade(harmonics(f * vibrato, d, 1 / np.arange(1, 14)), 0.09, 0.06)


def trumpet(f, d, rng):
    t = seconds(d)
    bright = np.clip(t / 0.08, 0, 1)  # high harmonics come in later: the brass attack
    return fade(harmonics(f, d, [0.6, 0.9, 1]) + bright * harmonics(f, d, [0, 0, 0, 1, 0.9, 0.7, 0.5, 0.4]), 0.02, 0.05)


INSTRUMENTS = {"piano": piano, "flute": flute, "organ": organ, "guitar": guitar, "violin": violin, "trumpet": trumpet}


def frequency(midi):
    """Hertz of a MIDI note number (69 is A4, 440 Hz)."""
    return 440.0 * 2 ** ((midi - 69) / 12)


def note(instrument: str, midi: int, duration: float, rng: np.random.Generator) -> np.ndarray:
    """One note of `instrument` (a key of `INSTRUMENTS`), peak 1."""
    if instrument not in INSTRUMENTS:
        raise ValueError(f"There is no instrument {instrument!r}; the instruments are: {', '.join(INSTRUMENTS)}.")
    return normalise(fade(INSTRUMENTS[instrument](frequency(midi), duration, rng), 0.004, 0.02))


def drum(rng, strong):
    """A strong (low) or weak (light) drum beat."""
    if strong:
        return 1.0 * sine(np.linspace(130, 60, len(seconds(0.16))), 0.16) * decay(0.16, 0.04)
    return 0.45 * noise(rng, 0.06, 3000, 7000) * decay(0.06, 0.012)


# --------------------------------------------------------------------------------------------------------- speech
WORDS = {
    "animal": ["lion", "rabbit", "elephant", "monkey", "tiger"],
    "colour": ["red", "blue", "yellow", "purple", "green"],
    "fruit": ["apple", "banana", "cherry", "lemon", "melon"],
    "number": ["two", "five", "seven", "nine", "eleven"],
}
PHRASES = {
    "English": (
        "en-us",
        [
            "good morning my friend",
            "where is the station",
            "thank you very much",
            "the weather is nice today",
            "how much does it cost",
            "see you tomorrow then",
        ],
    ),
    "French": (
        "fr",
        [
            "bonjour mon ami",
            "où est la gare",
            "merci beaucoup monsieur",
            "il fait beau aujourd'hui",
            "combien ça coûte",
            "à demain alors",
        ],
    ),
    "German": (
        "de",
        [
            "guten morgen mein freund",
            "wo ist der bahnhof",
            "vielen herzlichen dank",
            "das wetter ist heute schön",
            "was kostet das bitte",
            "also dann bis morgen",
        ],
    ),
    "Spanish": (
        "es",
        [
            "buenos días amigo mío",
            "dónde está la estación",
            "muchas gracias señor",
            "hoy hace muy buen tiempo",
            "cuánto cuesta esto",
            "pues hasta mañana",
        ],
    ),
    "Russian": (
        "ru",
        [
            "доброе утро мой друг",
            "где находится вокзал",
            "большое вам спасибо",
            "сегодня хорошая погода",
            "сколько это стоит",
            "тогда до завтра",
        ],
    ),
}
MEN, WOMEN = ["m1", "m3", "m7"], ["f1", "f2", "f4"]


def _espeak(text, voice, words_per_minute, pitch):
    """Samples (int16) and sampling rate from eSpeak NG.

    The library keeps state from one text to the next, which would make a word depend on the words before it. So it is
    loaded afresh for each text (2 ms) and unloaded after.
    """
    try:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        folder = espeakng_loader.get_data_path()
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f"eSpeak NG, which speaks the words of MiniMMAR, could not be loaded ({error}). "
            "Install it with `pip install espeakng-loader`."
        ) from error
    # 2: synchronous, samples to a callback; 0x8000: report what is wrong, and don't end the process
    rate = library.espeak_Initialize(2, 0, str(folder).encode(), 0x8000)
    if rate <= 0:
        raise RuntimeError(f"eSpeak NG found no voices in {folder}. Reinstall it: `pip install espeakng-loader`.")
    chunks = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, events):
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(collect)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    known = library.espeak_SetVoiceByName(voice.encode()) == 0
    library.espeak_SetParameter(1, int(words_per_minute), 0)
    library.espeak_SetParameter(3, int(pitch), 0)
    data = text.encode() + b"\0"
    if known:
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, 1, None, None)  # 1: the text is UTF-8
    library.espeak_Terminate()
    (_ctypes.FreeLibrary if hasattr(_ctypes, "FreeLibrary") else _ctypes.dlclose)(library._handle)
    if not known:
        raise ValueError(
            f"eSpeak NG has no voice {voice!r}; try a language such as 'en-us', 'fr' or 'de', "
            "and a variant such as '+f2'."
        )
    return np.concatenate(chunks), rate


@lru_cache(maxsize=4096)
def speech(text: str, voice: str = "en-us+m1", words_per_minute: int = 160, pitch: int = 50) -> np.ndarray:
    """`text` spoken by eSpeak NG, 16 kHz, peak 1, silence trimmed.

    voice : language and variant, e.g. "en-us+f2" (f1-f5 sound female, m1-m8 male); pitch : 0 to 99.
    """
    samples, rate = _espeak(text, voice, words_per_minute, pitch)
    x = resample_poly(samples / 32768, SAMPLING_RATE, rate)
    loud = np.flatnonzero(np.abs(x) > 0.01 * np.abs(x).max())
    return normalise(fade(x[loud[0] : loud[-1] + 1]))
