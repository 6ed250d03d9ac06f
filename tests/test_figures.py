"""Figures: what a page gets is complete, correct and safe, and bad input is told in one sentence."""

import base64
import io
import itertools
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile
from bs4 import BeautifulSoup
from jupyter_client.manager import start_new_kernel
from matplotlib.colors import to_rgb
from PIL import Image

from helpers import figures

matplotlib.use("agg")
RATE = 16_000
STYLE_PAGE = Path(__file__).parents[1] / "book" / "style.md"
NASTY = """<b onload="x">'&'</b>"""


@pytest.fixture(autouse=True)
def clean_figures():
    with plt.rc_context():
        figures.use_style()
        yield
        plt.close("all")


def tone(duration: float, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    time = np.arange(round(duration * rate)) / rate
    return (level * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


def soup_of(output) -> BeautifulSoup:
    return BeautifulSoup(output.data, "html.parser")


def decoded(element) -> tuple[np.ndarray, int]:
    kind, payload = element["src"].split(",", 1)
    assert kind == "data:audio/mpeg;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(payload)))


def listening(**settings):
    attention = np.random.default_rng(0).random(50)
    return figures.listening_figure(tone(2), RATE, attention, **{"label": "A tone", "alt": "One band", **settings})


def frames_of(values):
    return figures.slider(lambda v: plt.plot([0, v])[0].axes, values, label="alpha", alt="A line")


# --- colours ---


def lightness_and_ab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB, white D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ rgb / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira and Fernandes (2009), severity 1.0
VISION = {
    "usual": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(color) -> np.ndarray:
    srgb = np.array(to_rgb(color))
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def pairs_seen(colors, vision: str) -> list[tuple]:
    seen = [lightness_and_ab(np.clip(np.array(VISION[vision]) @ linear(color), 0, 1)) for color in colors]
    return list(itertools.combinations(seen, 2))


@pytest.mark.parametrize("vision", VISION)
def test_colours_can_be_told_apart_by_every_eye_and_in_grey(vision):
    roles = pairs_seen(figures.ROLE_COLORS.values(), vision)
    assert min(np.linalg.norm(a - b) for a, b in roles) > 30
    others = pairs_seen([color for color, *_ in figures.OTHER_STYLES], vision)
    assert min(np.linalg.norm(a - b) for a, b in others) > 15  # their dashes and markers differ as well
    changed = pairs_seen([figures.WON, figures.LOST], vision)
    assert min(np.linalg.norm(a - b) for a, b in changed) > 60
    if vision == "usual":
        assert min(abs(a[0] - b[0]) for a, b in roles + changed) > 12  # a grey printer leaves lightness alone


# The dark theme shows pictures through the CSS filter brightness(.8) contrast(1.2).
@pytest.mark.parametrize("filtered", [lambda srgb: srgb, lambda srgb: 1.2 * (0.8 * srgb - 0.5) + 0.5])
def test_colours_stand_out_from_the_paper_of_both_themes(filtered):
    def luminance(color):
        return linear(np.clip(filtered(np.array(to_rgb(color))), 0, 1)) @ [0.2126, 0.7152, 0.0722]

    used = [*figures.ROLE_COLORS.values(), *(color for color, *_ in figures.OTHER_STYLES)]
    paper = luminance(figures.STYLE["figure.facecolor"])
    for color in (*used, figures.WON, figures.LOST, figures.NEUTRAL, figures.INK):
        assert (paper + 0.05) / (luminance(color) + 0.05) >= 3, color


def test_matrices_run_from_dark_to_light():
    for ax in (figures.heatmap(SHARES, xlabel="x", ylabel="y", unit="u"), figures.spectrogram(tone(1), RATE)):
        levels = ax.images[0].cmap(np.arange(64))[:, :3]
        lightness = [lightness_and_ab(linear(level))[0] for level in levels]
        assert np.diff(lightness).min() > 0 and np.ptp(lightness) > 90


def test_every_role_and_every_line_has_each_kind_of_mark_of_its_own():
    for marks in zip(*figures.OTHER_STYLES, strict=True):
        assert len(set(marks)) == len(figures.OTHER_STYLES)
    for marks in (figures.ROLE_COLORS, figures.ROLE_HATCHES, figures.ROLE_DASHES, figures.ROLE_MARKERS):
        assert set(marks) == {"system", "audio", "instruction", "output", "hint"}
        assert len(set(marks.values())) == 5


# --- plots ---

SHARES = np.array([[0.5, 0.1, 0.4], [0.2, 0.5, 0.3]])
PLOTS = {
    "waveform": (lambda ax: figures.waveform(tone(1), RATE, ax), "time (s)", "amplitude"),
    "spectrogram": (lambda ax: figures.spectrogram(tone(1), RATE, ax), "time (s)", "frequency (Hz)"),
    "attention": (lambda ax: figures.attention_over_time(np.ones(25), 1.0, ax), "time (s)", "attention weight"),
    "attention by layer": (
        lambda ax: figures.attention_over_time(np.ones((4, 25)), 1.0, ax),
        "time (s)",
        "decoder layer",
    ),
    "shares": (
        lambda ax: figures.role_shares(SHARES, ["system", "audio", "instruction"], ax),
        "decoder layer",
        "share of attention",
    ),
    "curves": (
        lambda ax: figures.layer_curves({"audio": [0.1, 0.2]}, ax, ylabel="share of attention"),
        "decoder layer",
        "share of attention",
    ),
    "shots": (
        lambda ax: figures.accuracy_curves({"CALM": {1: (0.4, 0.3, 0.5)}}, ax, xlabel="shots"),
        "shots",
        "accuracy (%)",
    ),
    "accuracy": (
        lambda ax: figures.accuracy_bars(["hint"], [0.5], [(0.4, 0.6)], [1000], ax),
        "accuracy (%), 95% interval",
        "",
    ),
    "pairs": (lambda ax: figures.paired_comparison(["MATA"], [63], [4], [1000], ax), "items whose answer changed", ""),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots_label_their_axes_and_draw_where_they_are_told(name):
    draw, xlabel, ylabel = PLOTS[name]
    own = draw(None)
    assert (own.get_xlabel(), own.get_ylabel()) == (xlabel, ylabel)
    _, ax = plt.subplots()
    assert draw(ax) is ax
    ax.figure.savefig(io.BytesIO(), format="svg")


def test_waveform_keeps_the_peaks_of_a_long_clip():
    clip = np.zeros(10 * RATE)
    clip[12_345] = 0.8
    (outline,) = figures.waveform(clip, RATE).collections
    points = outline.get_paths()[0].vertices
    assert len(points) < 2000
    peak = points[points[:, 1].argmax()]
    assert peak == pytest.approx([12_345 / RATE, 0.8], abs=0.03)


def test_spectrogram_puts_a_tone_at_its_frequency_and_time():
    clip = np.concatenate([np.zeros(RATE), tone(1)])  # silence, then 440 Hz
    ax = figures.spectrogram(clip, RATE)
    (image,) = ax.images
    rows, columns = image.get_array().shape
    row, column = np.unravel_index(image.get_array().argmax(), (rows, columns))
    left, right, bottom, top = image.get_extent()
    mel = bottom + (row + 0.5) * (top - bottom) / rows
    hertz = np.interp(mel, ax.get_yticks(), [float(tick.get_text()) for tick in ax.get_yticklabels()])
    assert hertz == pytest.approx(440, abs=60)
    assert 1 < left + column * (right - left) / columns < 2


def test_colour_bars_name_their_unit():
    ax = figures.spectrogram(tone(1), RATE)
    assert ax.child_axes[0].get_ylabel() == "level (dB)"


def test_role_shares_are_stacked_in_order():
    ax = figures.role_shares(SHARES, ["system", "audio", "instruction"])
    patches = [patch.get_data() for patch in ax.patches]
    np.testing.assert_allclose([p.values for p in patches], np.cumsum(SHARES, axis=1).T)
    np.testing.assert_allclose(patches[2].baseline, [0.6, 0.7])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["system", "audio", "instruction"]


def test_layer_curves_give_roles_their_colour_and_intervals_a_band():
    intervals = {"audio": ([0.0, 0.1], [0.2, 0.3])}
    ax = figures.layer_curves({"audio": [0.1, 0.2], "alpha 0.1": [0, 1]}, ylabel="share", intervals=intervals)
    assert ax.lines[0].get_color() == figures.ROLE_COLORS["audio"]
    assert ax.lines[1].get_color() not in figures.ROLE_COLORS.values()
    (band,) = ax.collections
    assert band.get_paths()[0].get_extents().intervaly == pytest.approx([0.0, 0.3])


def test_a_line_beside_roles_has_a_dash_and_a_marker_of_its_own():
    for roles in (["audio"], ["audio", "instruction"], ["system", "output"]):
        styles = figures._curve_styles([*roles, "visual"]).values()
        for mark in ("linestyle", "marker"):
            assert len({style[mark] for style in styles}) == len(styles), (roles, mark)


def test_accuracy_curves_may_begin_at_different_counts():
    points = {count: (0.1 * count, 0.1 * count - 0.05, 0.1 * count + 0.05) for count in (1, 2, 5)}
    few = {count: points[count] for count in (2, 5)}
    ax = figures.accuracy_curves({"CALM": points, "SAV": few}, xlabel="shots", chance=0.25)
    assert [line.get_xydata().tolist() for line in ax.lines[:2]] == [[[1, 10], [2, 20], [5, 50]], [[2, 20], [5, 50]]]
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines[:2]}) == 2
    assert ax.collections[1].get_paths()[0].get_extents().intervaly == pytest.approx([15, 55])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "5"]
    assert "chance 25%" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_accuracy_bars_tell_n_value_and_interval():
    ax = figures.accuracy_bars(["clean", "hint"], [0.9, 0.5], [(0.88, 0.92), (0.46, 0.53)], [1000, 800], chance=0.28)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["clean\nn = 1000", "hint\nn = 800"]
    assert [text.get_text() for text in ax.texts] == ["90.0", "50.0"]
    whiskers = ax.containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose([w[:, 0] for w in whiskers], [(88, 92), (46, 53)])
    assert ax.get_legend().get_texts()[0].get_text() == "chance 28%"


def test_paired_comparison_counts_both_ways():
    ax = figures.paired_comparison(["MATA", "text keys"], [63, 12], [4, 60], [1000, 1000])
    assert [text.get_text() for text in ax.texts] == ["63", "4", "12", "60"]
    assert [patch.get_width() for patch in ax.patches] == [63, 12, -4, -60]


# --- players ---


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("duration", [0.2, 1.0, 7.3])
def test_embedded_clip_is_as_long_and_as_loud_as_the_input(rate, duration):
    clip = tone(duration, rate)
    heard, heard_rate = decoded(soup_of(figures.player(clip, rate, "A tone")).audio)
    assert heard_rate == 16_000
    assert len(heard) / heard_rate == pytest.approx(duration, abs=0.05)
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(np.sqrt(np.mean(clip**2)), rel=0.1)


def test_embedded_clip_is_in_time():
    clip = np.zeros(2 * RATE, np.float32)
    clip[RATE : RATE + 40] = 0.9
    heard, _ = decoded(soup_of(figures.player(clip, RATE, "A click")).audio)
    assert np.abs(heard).argmax() / RATE == pytest.approx(1.0, abs=0.01)


def test_player_weighs_little_and_names_itself():
    output = figures.player(tone(10), RATE, "A tone")
    assert len(output.data) < 7_500 * 10  # 5 kB a second, a third more in base64
    soup = soup_of(output)
    assert soup.audio["aria-label"] == "A tone" and soup.audio.has_attr("controls")
    assert soup.figcaption.text == "A tone (10.00 s, RMS level −9.0 dBFS)"


def test_player_tells_silence_and_what_it_turned_down():
    assert "digital silence" in soup_of(figures.player(np.zeros(RATE), RATE, "Nothing")).figcaption.text
    loud = soup_of(figures.player(tone(1, level=2.0), RATE, "Loud"))
    assert "turned down by 6.0 dB" in loud.figcaption.text
    assert np.abs(decoded(loud.audio)[0]).max() < 1.1


# --- listening figures and sliders ---


def test_listening_figure_has_picture_words_controls_and_cursor():
    soup = soup_of(listening())
    assert soup.img["alt"] == "One band" and "A tone" in soup.figcaption.text
    assert soup.audio.has_attr("controls")
    control = soup.select_one("input[type=range]")
    assert float(control["max"]) == pytest.approx(2.0) and control["aria-label"]
    assert "display:none" in soup.select_one(".cursor")["style"]  # no dead controls without script
    assert soup.img["src"].startswith("data:image/png;base64,")


def test_cursor_runs_along_the_time_axis_of_the_picture():
    """The script's left and right ends are where the picture's axes have their spines."""
    soup = soup_of(listening())
    left, right = (float(x) for x in re.search(r", 2\.0000, ([\d.]+), ([\d.]+)\)", soup.script.text).groups())
    picture = Image.open(io.BytesIO(base64.b64decode(soup.img["src"].split(",")[1]))).convert("L")
    pixels = np.asarray(picture)
    dark = (pixels < 100).mean(axis=0)  # the left spines of waveform and attention, the edges of the spectrogram
    assert abs(int(dark[: len(dark) // 2].argmax()) - left * picture.width) <= 2
    bottom = np.flatnonzero((pixels < 100).mean(axis=1) > 0.9 * (right - left))[-1]  # the lowest time axis
    assert abs(int(np.flatnonzero(pixels[bottom] < 100).max()) - right * picture.width) <= 4


def test_listening_figure_without_attention_and_with_layers():
    shapes = []
    for attention in (None, np.ones((3, 50))):
        output = figures.listening_figure(tone(2), RATE, attention, label="l", alt="a")
        shapes.append(Image.open(io.BytesIO(base64.b64decode(soup_of(output).img["src"].split(",")[1]))).size)
    assert shapes[1][1] == pytest.approx(1.5 * shapes[0][1], abs=2)


def test_slider_has_one_frame_a_value_and_shows_one():
    soup = soup_of(frames_of([0, 0.1, 0.25]))
    images = soup.find_all("img")
    assert [image["alt"] for image in images] == ["A line (alpha = 0)", "A line (alpha = 0.1)", "A line (alpha = 0.25)"]
    assert ["display:block" in image["style"] for image in images] == [True, False, False]
    control = soup.select_one("input[type=range]")
    assert (control["min"], control["max"], control["value"]) == ("0", "2", "0")
    assert soup.label["for"] == control["id"] and soup.label.text == "alpha"
    assert "alpha = 0" in soup.noscript.text
    assert len({image["src"] for image in images}) == 3


def test_slider_takes_ready_frames_and_a_start():
    ready = [image["src"] for image in soup_of(frames_of([1, 2])).find_all("img")]
    soup = soup_of(figures.slider(ready, ["soft", "hard"], label="tap", alt="A tap", start=1))
    assert [image["src"] for image in soup.find_all("img")] == ready
    assert soup.output.text == "hard" and "display:block" in soup.find_all("img")[1]["style"]


def test_frames_are_compact_and_not_shown_twice():
    output = frames_of(list(np.linspace(0, 1, 20)))
    assert len(output.data) < 600_000
    assert plt.get_fignums() == []


def test_live_slider_draws_on_demand(monkeypatch):
    monkeypatch.setattr(figures, "is_live", lambda: True)
    drawn = []

    def draw(value):
        drawn.append(value)
        return plt.plot([0, value])[0].axes

    box = figures.slider(draw, [0.0, 0.1, 0.4], label="alpha", alt="A line", start=1)
    control, view = box.children
    before = view.value
    control.index = 2
    assert drawn == [0.1, 0.4]
    assert view.value != before and "A line (alpha = 0.4)" in view.value


def test_live_only_before_a_reader():
    assert not figures.is_live()  # no kernel at all
    manager, client = start_new_kernel(cwd=str(Path(__file__).parents[1]))
    try:

        def answer(code: str, reader: bool) -> str:
            seen = []
            client.execute_interactive(
                code, allow_stdin=reader, timeout=60, output_hook=lambda m: seen.append(m["content"])
            )
            return "".join(content.get("text", "") for content in seen)

        question = "from helpers.figures import is_live; print(is_live())"
        assert answer(question, reader=False) == "False\n"  # as nbclient, nbmake and jupyter-book run it
        assert answer(question, reader=True) == "True\n"
        assert answer("import os; os.environ['BOOK_BUILD'] = '1'; print(is_live())", reader=True) == "False\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


OUTPUTS = {
    "player": lambda text: figures.player(tone(1), RATE, text),
    "listening figure": lambda text: listening(label=text, alt=text),
    "slider": lambda text: figures.slider(lambda v: plt.subplots()[1], [text, "b"], label=text, alt=text),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_html_escapes_its_texts_and_asks_for_nothing_outside(kind):
    output = OUTPUTS[kind](NASTY)
    soup = soup_of(output)
    assert soup.b is None and NASTY not in output.data
    assert not [tag for tag in soup.find_all(True) if tag.has_attr("onload")]
    shown = [tag.get("alt") or tag.get("aria-label") or "" for tag in soup.find_all(["img", "audio"])]
    assert all(text.startswith(NASTY) for text in shown) and shown
    assert all(tag["src"].startswith("data:") for tag in soup.find_all(src=True))
    assert not re.search("https?:|import|fetch", re.sub('src="data:[^"]*"', "", output.data))
    assert not soup.find_all("link")


@pytest.mark.parametrize("kind", ["listening figure", "slider"])
def test_the_same_figure_twice_on_a_page_does_not_collide(kind):
    soup = BeautifulSoup(OUTPUTS[kind]("x").data + OUTPUTS[kind]("x").data, "html.parser")
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids)) >= 2
    for figure, script in zip(soup.find_all("figure"), soup.find_all("script"), strict=True):
        assert f'getElementById("{figure["id"]}")' in script.text


# --- bad input ---

WRONG = {
    "nan audio": (lambda: figures.player([0.0, np.nan], RATE, "x"), "audio must be finite"),
    "stereo audio": (lambda: figures.waveform(np.zeros((2, 100)), RATE), r"audio must .* got the shape \(2, 100\)"),
    "empty audio": (lambda: figures.spectrogram([], RATE), "audio must be a non-empty"),
    "no rate": (lambda: figures.player(tone(1), 0, "x"), "sampling_rate must be a positive"),
    "infinite attention": (lambda: figures.attention_over_time([np.inf], 1.0), "attention must be finite"),
    "attention by head": (lambda: figures.attention_over_time(np.ones((2, 2, 2)), 1), "attention must"),
    "shares above 1": (lambda: figures.role_shares([[0.9, 0.9]], ["audio", "system"]), "must sum to 1"),
    "unknown role": (lambda: figures.role_shares([[1.0]], ["noise"]), "roles out of audio, instruction"),
    "too few roles": (lambda: figures.role_shares(SHARES, ["audio"]), "one column a role"),
    "percentages": (lambda: figures.accuracy_bars(["a"], [50], [(40, 60)], [10]), "shares, not percentages"),
    "interval beside": (lambda: figures.accuracy_bars(["a"], [0.5], [(0.6, 0.7)], [10]), "low <= accuracy"),
    "missing n": (
        lambda: figures.paired_comparison(["a", "b"], [1, 2], [1, 2], [10]),
        "n must have one number a label",
    ),
    "nan point": (lambda: figures.accuracy_curves({"SAV": {1: (0.5, np.nan, 1)}}, xlabel="x"), "SAV must be finite"),
    "nan curve": (lambda: figures.layer_curves({"audio": [np.nan]}, ylabel="y"), "audio must be finite"),
    "frames missing": (lambda: figures.slider([], [1, 2], label="x", alt="y"), "0 frames for 2 values"),
    "no values": (lambda: figures.slider([], [], label="x", alt="y"), "one of the 0 values"),
    "start outside": (lambda: figures.slider([], [1], label="x", alt="y", start=1), "start must"),
    "odd frame": (lambda: figures.slider(["cat.png"], [1], label="x", alt="y"), "a frame must be a Figure"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_told_in_one_sentence(case):
    call, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_style_page_lists_the_colours_as_they_are():
    row = r'^\| (\w+) \| `(#[0-9a-f]{6})` <span style="background:(#\w+);'
    rows = re.findall(row, STYLE_PAGE.read_text("utf-8"), re.MULTILINE)
    assert {role: color for role, color, _ in rows} == figures.ROLE_COLORS
    assert all(named == shown for _, named, shown in rows)
