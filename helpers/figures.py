"""Every plot, player, slider and listening figure of the book, in one style (the style page is ``book/style.md``).

Plots take plain arrays and an optional ``ax``, label their axes with units and return the Axes; NaN, an empty array or
a wrong shape is a ValueError that names the argument. `player`, `slider` and `listening_figure` return HTML that
carries its sound, its pictures and a few lines of script inside itself, so that it works in Colab, in JupyterLab and in
the built page, read from a disk with the network off.
"""

import base64
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

import ipywidgets
import librosa
import matplotlib.pyplot as plt
import numpy as np
import soundfile
from IPython import get_ipython
from IPython.display import HTML
from matplotlib import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from numpy.typing import ArrayLike
from PIL import Image

# One fixed colour per role, in the order in which plots take them up. No two are equally light, so that a grey printer
# and every kind of colour blindness keep them apart; hatches, dashes and markers say the same a second time. All
# colours of this module stand out from the paper by 3:1 or more.
ROLE_COLORS = dict(audio="#081bae", instruction="#b28f27", system="#171717", hint="#962873", output="#17844c")
ROLE_HATCHES = dict(audio="//", instruction="\\\\", system="", hint="xx", output="||")
ROLE_DASHES = dict(audio="-", instruction="--", system="-.", hint=":", output=(0, (6, 1, 1, 1, 1, 1)))
ROLE_MARKERS = dict(audio="o", instruction="D", system="s", hint="X", output="^")
# What is no role, say a method: colour, dash and marker in the order in which names come.
OTHER_STYLES = (
    ("#222222", "-", "o"),
    ("#8c510a", "--", "s"),
    ("#7295ba", "-.", "D"),
    ("#01665e", (0, (6, 1, 1, 1, 1, 1)), "^"),
    ("#593366", ":", "X"),
    ("#8c8c8c", (0, (1, 1)), "v"),
)
WON, LOST, NEUTRAL, INK = "#3d95d0", "#b84e00", "#7295ba", "#222222"
PLAYER_RATE = 16_000  # Hz: what the models hear, and the rate of every embedded clip

STYLE = {
    "figure.figsize": (5.6, 3.2),  # inches: 12 pt is 16 px at full size and 10 px on a page of 400 px
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",  # in the dark theme too: a figure is a sheet of paper
    "savefig.dpi": 144,
    "font.size": 12,
    "legend.fontsize": 11,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=list(ROLE_COLORS.values()), linestyle=list(ROLE_DASHES.values())),
    "lines.linewidth": 2,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "image.interpolation": "none",  # cells stay cells, and SVG files keep them at their own resolution
    "svg.hashsalt": "book",  # the same picture gives the same file
}

_ids = itertools.count()


def use_style() -> None:
    """Set matplotlib up for the book; in a notebook, figures are shown as SVG, which stays sharp at every width."""
    plt.rcParams.update(STYLE)
    if get_ipython() is not None:
        set_matplotlib_formats("svg")


def is_live() -> bool:
    """Whether somebody sits at this kernel who could move a widget.

    False while the book is built (``BOOK_BUILD`` is set), and whenever a program runs the notebook: nbclient, and with
    it nbmake and jupyter-book, tells the kernel that nobody would answer a question (``allow_stdin``). JupyterLab,
    Colab and VS Code tell it the opposite.
    """
    if os.environ.get("BOOK_BUILD"):
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))


# --- plots ---------------------------------------------------------------------------------------------------------


def waveform(audio: ArrayLike, sampling_rate: int, ax: Axes | None = None) -> Axes:
    """Plot the envelope of ``audio`` (samples,) over seconds: lowest and highest sample of short blocks."""
    audio, ax = _audio(audio, sampling_rate), _axes(ax)
    duration = len(audio) / sampling_rate
    blocks = np.array_split(audio, min(len(audio), 400))  # about one a pixel: every sample would only add weight
    time = np.linspace(0, duration, len(blocks))
    low, high = [block.min() for block in blocks], [block.max() for block in blocks]
    ax.fill_between(time, low, high, color=ROLE_COLORS["audio"], linewidth=0.8)
    limit = max(1e-3, 1.05 * np.abs(audio).max())
    ax.set(xlim=(0, duration), ylim=(-limit, limit), xlabel="time (s)", ylabel="amplitude")
    return ax


def heatmap(
    values: ArrayLike, ax: Axes | None = None, *, xlabel: str, ylabel: str, unit: str, extent: tuple | None = None
) -> Axes:
    """Show ``values`` (rows, columns), first row at the bottom, with a colour bar labelled ``unit``.

    ``extent``: outer edges (left, right, bottom, top) in the units of the axes; by default rows and columns count.
    """
    values, ax = _finite(values, "values", 2), _axes(ax)
    cmap = plt.get_cmap("magma", 64)  # dark to light for any eye and in print; more levels would only add bytes
    image = ax.imshow(values, cmap, origin="lower", aspect="auto", extent=extent)
    # A colour bar in a box of the axes' own keeps axes aligned that stand above each other.
    ax.figure.colorbar(image, cax=ax.inset_axes([1.02, 0, 0.03, 1]), label=unit)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def spectrogram(audio: ArrayLike, sampling_rate: int, ax: Axes | None = None, n_mels: int = 80) -> Axes:
    """Show the log-mel spectrogram of ``audio`` (samples,): windows of 25 ms, hops of 10 ms, 80 dB below its peak."""
    audio = _audio(audio, sampling_rate)
    window, hop = int(0.025 * sampling_rate), int(0.01 * sampling_rate)
    power = librosa.feature.melspectrogram(y=audio, sr=sampling_rate, n_mels=n_mels, n_fft=window, hop_length=hop)
    level = librosa.power_to_db(power, ref=max(power.max(), 1e-10), top_db=80)
    top = librosa.hz_to_mel(sampling_rate / 2)
    step = top / (n_mels + 1)  # the centres of the bands are evenly spaced in mel
    extent = (0, len(audio) / sampling_rate, step / 2, top - step / 2)
    ax = heatmap(level, ax, xlabel="time (s)", ylabel="frequency (Hz)", unit="level (dB)", extent=extent)
    ticks = np.array([0, 1000, 2000, 4000, 8000])
    ticks = ticks[ticks <= sampling_rate / 2]
    ax.set(ylim=(0, top), yticks=librosa.hz_to_mel(ticks), yticklabels=ticks)
    return ax


def attention_over_time(attention: ArrayLike, duration: float, ax: Axes | None = None) -> Axes:
    """Plot attention on audio tokens over the ``duration`` (s) that they span in equal steps.

    ``attention``: (audio tokens,), drawn as steps, or (layers, audio tokens), drawn as a heat map.
    """
    if np.ndim(attention) == 2:
        extent = (0, duration, -0.5, len(attention) - 0.5)
        return heatmap(attention, ax, xlabel="time (s)", ylabel="decoder layer", unit="attention weight", extent=extent)
    attention, ax = _finite(attention, "attention", 1), _axes(ax)
    edges = np.linspace(0, duration, len(attention) + 1)
    ax.stairs(attention, edges, fill=True, color=ROLE_COLORS["audio"])
    ax.set(xlim=(0, duration), ylim=(0, None), xlabel="time (s)", ylabel="attention weight")
    return ax


def role_shares(shares: ArrayLike, roles: Sequence[str], ax: Axes | None = None) -> Axes:
    """Stack the share of attention of each role, layer by layer. ``shares``: (layers, roles), rows sum to 1."""
    shares, ax = _finite(shares, "shares", 2), _axes(ax)
    if shares.shape[1] != len(roles) or not set(roles) <= set(ROLE_COLORS):
        known = ", ".join(ROLE_COLORS)
        raise ValueError(
            f"shares needs one column a role, and roles out of {known}; got {shares.shape}, {list(roles)}."
        )
    if not np.allclose(shares.sum(axis=1), 1, atol=1e-3):
        raise ValueError("each row of shares must sum to 1: include every role, or divide by the row's sum.")
    edges = np.arange(len(shares) + 1) - 0.5
    tops = np.cumsum(shares, axis=1)
    for role, top, share in zip(roles, tops.T, shares.T, strict=True):
        style = {"facecolor": ROLE_COLORS[role], "hatch": ROLE_HATCHES[role], "edgecolor": "white", "linewidth": 0}
        ax.stairs(top, edges, baseline=top - share, fill=True, label=role, **style)
    ax.set(xlabel="decoder layer", ylabel="share of attention", xlim=(edges[0], edges[-1]), ylim=(0, 1))
    ax.xaxis.get_major_locator().set_params(integer=True)
    _legend_above(ax)
    return ax


def layer_curves(
    curves: Mapping[str, ArrayLike], ax: Axes | None = None, *, ylabel: str, intervals: Mapping | None = None
) -> Axes:
    """Plot one curve (layers,) a name; a role's name gives its colour. ``intervals``: (low, high) by name, if known."""
    ax, styles = _axes(ax), _curve_styles(curves)
    for name, values in curves.items():
        values = _finite(values, name, 1)
        ax.plot(values, label=name, markersize=5, **styles[name])
        if intervals and name in intervals:
            low, high = (_finite(bound, f"interval of {name}", 1) for bound in intervals[name])
            ax.fill_between(range(len(values)), low, high, color=styles[name]["color"], alpha=0.25, linewidth=0)
    ax.set(xlabel="decoder layer", ylabel=ylabel)
    ax.xaxis.get_major_locator().set_params(integer=True)
    _legend_above(ax)
    return ax


def accuracy_curves(
    curves: Mapping[str, Mapping], ax: Axes | None = None, *, xlabel: str, chance: float | None = None
) -> Axes:
    """Plot accuracies (0 to 1) over a count, drawn by ratio: name -> {count: (accuracy, low, high)}, a 95% interval."""
    ax, styles = _axes(ax), _curve_styles(curves)
    for name, points in curves.items():
        accuracy, low, high = 100 * _finite(list(points.values()), name, 2).T
        ax.plot(list(points), accuracy, label=name, markersize=5, **styles[name])
        ax.fill_between(list(points), low, high, color=styles[name]["color"], alpha=0.2, linewidth=0)
    if chance is not None:
        ax.axhline(100 * chance, color=INK, linewidth=1, linestyle=(0, (2, 3)), label=f"chance {100 * chance:.0f}%")
    counts = sorted({count for points in curves.values() for count in points})
    ax.set(xscale="log", xlabel=xlabel, ylabel="accuracy (%)")
    ax.set_xticks(counts, labels=[f"{count:g}" for count in counts])
    ax.minorticks_off()
    _legend_above(ax)
    return ax


def _curve_styles(names: Iterable[str]) -> dict[str, dict]:
    names = list(names)
    roles = {name: (ROLE_COLORS[name], ROLE_DASHES[name], ROLE_MARKERS[name]) for name in names if name in ROLE_COLORS}
    taken = {mark for _, *marks in roles.values() for mark in marks}
    # Beside a role no line may look like it in grey.
    free = [style for style in OTHER_STYLES if not taken & set(style[1:])]
    others = itertools.cycle(free or OTHER_STYLES)
    chosen = {name: roles[name] if name in roles else next(others) for name in names}
    return {name: dict(zip(("color", "linestyle", "marker"), style, strict=True)) for name, style in chosen.items()}


def accuracy_bars(
    labels: Sequence[str], accuracy: ArrayLike, intervals: ArrayLike, n: ArrayLike, ax: Axes | None = None, chance=None
) -> Axes:
    """Draw, a label, the accuracy (0 to 1), its 95% interval (``intervals``: (k, 2)) and the count ``n`` of items."""
    low, high = _finite(intervals, "intervals", 2).T
    accuracy, low, high, n = _columns(labels, accuracy=accuracy, low=low, high=high, n=n)
    if np.any(np.diff([np.zeros_like(low), low, accuracy, high, np.ones_like(low)], axis=0) < 0):
        raise ValueError("accuracy bars need 0 <= low <= accuracy <= high <= 1: give shares, not percentages.")
    ax, rows = _row_axes(ax, labels, n), np.arange(len(labels))
    ax.barh(rows, 100 * accuracy, 0.6, color=NEUTRAL)
    errors = 100 * np.array([accuracy - low, high - accuracy])
    ax.errorbar(100 * accuracy, rows, xerr=errors, fmt="none", ecolor=INK, capsize=4)
    for row, value, end in zip(rows, accuracy, high, strict=True):
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # or the line of chance would cross the number
        ax.annotate(f"{100 * value:.1f}", (100 * end, row), (4, 0), textcoords="offset points", va="center", bbox=paper)
    if chance is not None:
        ax.axvline(100 * chance, color=INK, linestyle=":", label=f"chance {100 * chance:.0f}%")
        _legend_above(ax)
    ax.set(xlim=(0, 114), xticks=range(0, 101, 25), xlabel="accuracy (%), 95% interval")
    return ax


def paired_comparison(
    labels: Sequence[str], won: ArrayLike, lost: ArrayLike, n: ArrayLike, ax: Axes | None = None
) -> Axes:
    """Draw, a label, how many of ``n`` items a change won (wrong before, right after) and how many it lost."""
    won, lost, n = _columns(labels, won=won, lost=lost, n=n)
    ax, rows = _row_axes(ax, labels, n), np.arange(len(labels))
    ax.barh(rows, won, 0.6, color=WON, label="won")
    ax.barh(rows, -lost, 0.6, color=LOST, hatch="//", edgecolor="white", linewidth=0, label="lost")
    for row, right, left in zip(rows, won, lost, strict=True):
        ax.annotate(f"{right:.0f}", (right, row), (4, 0), textcoords="offset points", va="center")
        ax.annotate(f"{left:.0f}", (-left, row), (-4, 0), textcoords="offset points", va="center", ha="right")
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.margins(x=0.2)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.xaxis.set_major_formatter(lambda x, _: f"{abs(x):.0f}")
    ax.set(xlabel="items whose answer changed")
    _legend_above(ax)
    return ax


# --- things to hear and to move ------------------------------------------------------------------------------------


def player(audio: ArrayLike, sampling_rate: int, label: str) -> HTML:
    """Play ``audio`` (samples,), under its label, duration and level. The clip is embedded as 16 kHz MP3, 5 kB/s."""
    audio = _audio(audio, sampling_rate)
    parts = _caption(audio, sampling_rate, label) + _audio_element(audio, sampling_rate, label)
    return HTML(f'<figure style="{_FIGURE_CSS}">{parts}</figure>')


def listening_figure(
    audio: ArrayLike, sampling_rate: int, attention: ArrayLike | None = None, *, label: str, alt: str
) -> HTML:
    """Waveform, spectrogram and attention on the audio tokens on one time axis, with a cursor that follows the clip.

    ``attention``: see `attention_over_time`. ``alt`` tells in words what the picture shows. The range under the picture
    moves the cursor by mouse or arrow keys. Without script, a picture and a player remain.
    """
    audio = _audio(audio, sampling_rate)
    duration, panels = len(audio) / sampling_rate, 2 + (attention is not None)
    with plt.rc_context(STYLE):
        fig = Figure(figsize=(5.6, 1.6 * panels))
        axes = fig.subplots(panels, sharex=True)
        waveform(audio, sampling_rate, axes[0])
        spectrogram(audio, sampling_rate, axes[1])
        if attention is not None:
            attention_over_time(attention, duration, axes[2])
        for ax in axes:
            ax.label_outer()
        picture = _png_uri(fig)
    box = axes[0].get_position()  # known once drawn: where the time axis lies in the picture
    key = _unique_id(picture)
    return HTML(f"""<figure id="{key}" style="{_FIGURE_CSS}">
{_caption(audio, sampling_rate, label)}
<div style="position:relative">{_image(picture, alt)}
<div class="cursor" style="{_CURSOR_CSS}"></div></div>
<div class="controls" style="display:none;margin:0 {100 - 100 * box.x1:.2f}% 0 {100 * box.x0:.2f}%">
<input type="range" min="0" max="{duration:.3f}" step="0.01" value="0" autocomplete="off"
 aria-label="time in the clip, in seconds" style="{_RANGE_CSS}"></div>
{_audio_element(audio, sampling_rate, label)}</figure>
{_script(key, _LISTEN_JS, f", {duration:.4f}, {box.x0:.4f}, {box.x1:.4f}")}""")


def slider(
    frames: Callable | Sequence, values: Sequence, *, label: str, alt: str, start: int = 0
) -> HTML | ipywidgets.VBox:
    """Show the frame of the value that the reader picks.

    ``frames``: a function that draws the Figure (or Axes) of a value, or one Figure or PNG data URI a value.
    ``alt`` tells what the frames show; the value is added to it. Frame number ``start`` is shown first, and without
    script it stays. A function before a live reader (`is_live`) draws on demand in an ipywidgets box; else the frames
    are precomputed and come as HTML.
    """
    names = [value if isinstance(value, str) else f"{value:g}" for value in values]
    if not 0 <= start < len(names):
        raise ValueError(f"start must number one of the {len(names)} values, counted from 0; got {start}.")
    if callable(frames) and is_live():
        return _live_slider(frames, dict(zip(names, values, strict=True)), label, alt, start)
    if callable(frames):
        frames = [_png_uri(frames(value)) for value in values]  # one by one, each on a fresh figure
    if len(frames) != len(names):
        raise ValueError(f"{len(frames)} frames for {len(names)} values: give one frame a value.")
    pictures = [_png_uri(frame) for frame in frames]
    alts = [f"{alt} ({label} = {name})" for name in names]
    images = [_image(pictures[i], alts[i], shown=i == start) for i in range(len(names))]
    key = _unique_id("".join(pictures))
    return HTML(f"""<figure id="{key}" aria-label="{escape(label)}" style="{_FIGURE_CSS}">
{"".join(images)}
<div class="controls" style="display:none"><label for="{key}-range">{escape(label)}</label> =
<output for="{key}-range">{escape(names[start])}</output>
<input id="{key}-range" type="range" min="0" max="{len(names) - 1}" step="1" value="{start}" autocomplete="off"
 aria-valuetext="{escape(names[start])}" data-names="{escape(json.dumps(names))}" style="{_RANGE_CSS}"></div>
<noscript>{escape(label)} = {escape(names[start])} (the slider needs JavaScript)</noscript></figure>
{_script(key, _SLIDER_JS)}""")


def _live_slider(draw: Callable, values: Mapping, label: str, alt: str, start: int) -> ipywidgets.VBox:
    control = ipywidgets.SelectionSlider(options=list(values), index=start, description=label, continuous_update=False)
    view = ipywidgets.HTML()

    def show(_=None) -> None:
        view.value = _image(_png_uri(draw(values[control.value])), f"{alt} ({label} = {control.value})")

    control.observe(show, names="value")
    show()
    return ipywidgets.VBox([control, view])


# --- HTML ----------------------------------------------------------------------------------------------------------

_FIGURE_CSS = "margin:.5rem 0;max-width:538px"  # 5.6 inches
_CURSOR_CSS = f"display:none;position:absolute;top:0;bottom:0;width:2px;background:{LOST};box-shadow:0 0 0 1px white"
_RANGE_CSS = "width:100%;margin:0"  # its colour is the browser's, which goes with light and dark

_SLIDER_JS = """(figure) => {
  const [range, output] = ["input", "output"].map(name => figure.querySelector(name));
  const names = JSON.parse(range.dataset.names);
  range.oninput = () => {
    figure.querySelectorAll("img").forEach((image, i) => image.style.display = i == range.value ? "block" : "none");
    output.textContent = names[range.value];
    range.setAttribute("aria-valuetext", names[range.value]);
  };
  figure.querySelector(".controls").style.display = "block";
}"""

_LISTEN_JS = """(figure, duration, left, right) => {
  const [audio, cursor, range] = ["audio", ".cursor", "input"].map(name => figure.querySelector(name));
  const show = (time) => {
    cursor.style.left = 100 * (left + (right - left) * Math.min(time / duration, 1)) + "%";
    range.value = time;
    range.setAttribute("aria-valuetext", time.toFixed(2) + " seconds");
  };
  const follow = () => { show(audio.currentTime); if (!audio.paused) requestAnimationFrame(follow); };
  audio.onplay = audio.onseeked = follow;
  range.oninput = () => { audio.currentTime = range.value; show(Number(range.value)); };
  cursor.style.display = figure.querySelector(".controls").style.display = "block";
  show(0);
}"""


def _script(key: str, function: str, arguments: str = "") -> str:
    # JupyterLab runs scripts before it puts the output into the page: hence the timeout.
    return f'<script>setTimeout(() => ({function})(document.getElementById("{key}"){arguments}), 0)</script>'


def _unique_id(content: str) -> str:
    # The digest tells figures of different chapters apart on one page, the count one figure that is shown twice.
    return f"figure-{hashlib.sha256(content.encode()).hexdigest()[:8]}-{next(_ids)}"


def _image(uri: str, alt: str, shown: bool = True) -> str:
    # No padding: the theme's dark mode adds some, which would shift the picture under its cursor.
    css = f"display:{'block' if shown else 'none'};width:100%;max-width:538px;height:auto;padding:0"
    return f'<img src="{uri}" alt="{escape(alt)}" style="{css}">'


def _caption(audio: np.ndarray, sampling_rate: int, label: str) -> str:
    peak, rms = np.abs(audio).max(), np.sqrt(np.mean(audio**2))
    level = f"RMS level {20 * np.log10(rms):.1f} dBFS".replace("-", "\N{MINUS SIGN}") if rms > 0 else "digital silence"
    scaled = f", turned down by {20 * np.log10(peak):.1f} dB to fit" if peak > 1 else ""
    facts = f"{len(audio) / sampling_rate:.2f} s, {level}{scaled}"
    css = "font:inherit;color:inherit;text-align:left"  # the theme's own cannot be read in its dark mode
    return f'<figcaption style="{css}">{escape(label)} <small>({facts})</small></figcaption>'


def _audio_element(audio: np.ndarray, sampling_rate: int, label: str) -> str:
    uri = "data:audio/mpeg;base64," + base64.b64encode(_mp3(audio, sampling_rate)).decode()
    css = "display:block;width:100%;max-width:25rem"
    return f'<audio controls preload="metadata" aria-label="{escape(label)}" src="{uri}" style="{css}"></audio>'


def _mp3(audio: np.ndarray, sampling_rate: int) -> bytes:
    """Encode at 16 kHz and a constant bit rate (40 kbit/s), so that browsers seek to the exact place."""
    if sampling_rate != PLAYER_RATE:
        audio = librosa.resample(audio, orig_sr=sampling_rate, target_sr=PLAYER_RATE)
    settings = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.8}
    buffer = io.BytesIO()
    soundfile.write(buffer, audio / max(1.0, np.abs(audio).max()), PLAYER_RATE, **settings)
    return buffer.getvalue()


def _png_uri(frame: Figure | Axes | str) -> str:
    """Render a frame as a PNG data URI of 256 colours: a fraction of the bytes, and no difference to be seen."""
    if isinstance(frame, str) and frame.startswith("data:image/png;base64,"):
        return frame
    fig = frame.figure if isinstance(frame, Axes) else frame
    if not isinstance(fig, Figure):
        raise TypeError(f"a frame must be a Figure, Axes or PNG data URI, got {type(frame).__name__}.")
    full, compact = io.BytesIO(), io.BytesIO()
    fig.savefig(full, format="png", dpi=STYLE["savefig.dpi"], facecolor="white")
    plt.close(fig)  # or the notebook would show it a second time
    Image.open(full).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(compact, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(compact.getvalue()).decode()


# --- checks and axes -----------------------------------------------------------------------------------------------


def _finite(values: ArrayLike, name: str, ndim: int) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != ndim or values.size == 0:
        raise ValueError(f"{name} must be a non-empty array with {ndim} axes, got the shape {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity in {(~np.isfinite(values)).sum()} places.")
    return values


def _audio(audio: ArrayLike, sampling_rate: int) -> np.ndarray:
    if not sampling_rate > 0:
        raise ValueError(f"sampling_rate must be a positive number of Hz, got {sampling_rate}.")
    return _finite(audio, "audio", 1).astype(np.float32)


def _columns(labels: Sequence[str], **columns: ArrayLike) -> list[np.ndarray]:
    arrays = [_finite(values, name, 1) for name, values in columns.items()]
    for name, array in zip(columns, arrays, strict=True):
        if len(array) != len(labels):
            raise ValueError(f"{name} must have one number a label, got {len(array)} for {len(labels)} labels.")
    return arrays


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots()[1] if ax is None else ax


def _row_axes(ax: Axes | None, labels: Sequence[str], n: np.ndarray) -> Axes:
    """Axes with one labelled row an entry, the first on top."""
    if ax is None:
        _, ax = plt.subplots(figsize=(5.6, 1.3 + 0.55 * len(labels)))
    ax.set_yticks(range(len(labels)), [f"{label}\nn = {count:.0f}" for label, count in zip(labels, n, strict=True)])
    ax.set_ylim(len(labels) - 0.5, -0.5)
    return ax


def _legend_above(ax: Axes) -> None:
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
    letters = sum(len(text) + 5 for text in ax.get_legend_handles_labels()[1])  # with the line before each
    ax.legend(ncols=5 if letters < 65 else 2, handlelength=1.5, handletextpad=0.4, columnspacing=0.9, **place)
