import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from helpers.benchmarks import Item
from helpers.evaluate import AUDIO, committed, evaluate, main, read_run, table, weights_checksum
from helpers.mata import MATA

RATE = 16000


class Parrot:
    """Says the number it hears: a clip of item k is filled with k/100. A hint in the prompt wins over the ears."""

    name, sampling_rate = "parrot", RATE

    def __init__(self, stop_at_call: int | None = None, stop=None):
        self.model = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)
        self.stop_at_call, self.stop, self.seen = stop_at_call, stop, []

    def prepare(self, prompts, audios):
        return list(zip(prompts, audios, strict=True))

    def generate(self, inputs, max_new_tokens):
        self.seen.append(inputs)
        if len(self.seen) == self.stop_at_call:
            self.stop()
        return [self.reply(prompt, audio) for prompt, audio in inputs]

    @staticmethod
    def reply(prompt, audio):
        if "Hint: the answer is " in prompt:
            return prompt.split("Hint: the answer is ")[1].rstrip(".")
        return "nothing" if audio is None else str(round(100 * float(np.abs(audio).max())))


def make_items(folder: Path, n: int = 10) -> list[Item]:
    items = []
    for k in range(n):
        path = folder / f"{k}.wav"
        clip = np.full(RATE // 10 * (1 + k % 3), k / 100, dtype=np.float32)
        soundfile.write(path, clip, RATE, subtype="FLOAT")
        items.append(
            Item(
                id=f"item-{k}",
                audio=str(path),
                question="Which number?",
                choices=[str(k), str(k + 50)],
                answer=str(k),
                modality="speech" if k % 2 else "sound",
                extra={"misleading_hint": str(k + 50), "correct_hint": str(k)},
            )
        )
    return items


@pytest.fixture
def items(tmp_path):
    return make_items(tmp_path)


def n_right(records):
    return sum(record["correct"] for record in records)


def test_records_in_the_order_of_the_items(items):
    records = evaluate(Parrot(), items, batch_size=3)
    assert [record["id"] for record in records] == [item.id for item in items]
    assert n_right(records) == 10
    assert records[3] == {
        "id": "item-3",
        "prediction": "3",
        "correct": True,
        "exact_option": True,
        "letter": None,
        "n_choices": 2,
        "modality": "speech",
        "category": "",
        "subcategory": "",
        "source": "",
    }


@pytest.mark.parametrize(("hint", "right"), [(None, 10), ("correct", 10), ("misleading", 0)])
def test_hints_reach_the_prompt(items, hint, right):
    assert n_right(evaluate(Parrot(), items, hint=hint)) == right


@pytest.mark.parametrize("audio", AUDIO)
def test_what_the_model_hears(items, audio):
    lalm = Parrot()
    evaluate(lalm, items[1:], audio=audio, batch_size=4)  # the first clip is silent
    heard = {prompt.split("\n")[-2]: clip for batch in lalm.seen for prompt, clip in batch}
    assert len(heard) == 9
    for k in range(1, 10):
        clip, real = heard[str(k)], np.full(1600 * (1 + k % 3), k / 100, dtype=np.float32)
        if audio == "none":
            assert clip is None
        elif audio == "shuffled":
            assert clip[0] != real[0]
        else:
            assert clip.shape == real.shape and clip.dtype == np.float32
            level = {"real": real[0], "silence": 0.0, "noise": real[0]}[audio]
            assert np.sqrt(np.mean(clip**2)) == pytest.approx(level, rel=0.2)
            assert (np.ptp(clip) > 0) == (audio == "noise")


def test_shuffled_audio_does_not_depend_on_the_batches(items):
    one, other = (evaluate(Parrot(), items, audio="shuffled", batch_size=size) for size in (1, 7))
    assert one == other and n_right(one) == 0


def test_batches_hold_clips_of_like_length(items):
    lalm = Parrot()
    long = [item for item in items if int(item.answer) % 3 == 2]
    evaluate(lalm, items, batch_size=len(long))
    assert {len(clip) for _, clip in lalm.seen[0]} == {4800}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hint": "loud"}, "no hint 'loud'"), ({"audio": "pink"}, "no audio 'pink'"), ({"style": "x"}, "style 'x'")],
)
def test_unknown_settings(items, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Parrot(), items, **settings)


def test_items_that_can_not_be_run(items):
    with pytest.raises(ValueError, match="same id"):
        evaluate(Parrot(), [items[0], items[0]])
    with pytest.raises(ValueError, match="plain has no correct hint"):
        evaluate(Parrot(), [Item("plain", None, "?", ["a"], "a", "sound")], hint="correct")
    with pytest.raises(ValueError, match="nothing to shuffle"):
        evaluate(Parrot(), items[:1], audio="shuffled")


def test_a_bad_clip_fails_its_own_item_only(items, tmp_path):
    Path(items[2].audio).unlink()
    Path(items[3].audio).write_text("not a sound")
    records = evaluate(Parrot(), items, batch_size=4, out=tmp_path / "run.jsonl")
    assert [record["id"] for record in records if "error" in record] == ["item-2", "item-3"]
    assert all(Path(items[k].audio).name in records[k]["error"] for k in (2, 3))
    text = table([tmp_path / "run.jsonl"])
    assert "| all | run | 8 | 100.0% |" in text and "2 not answered, 2 of them failed" in text
    # Mended, they are run; nothing else is run again.
    make_items(tmp_path)
    lalm = Parrot()
    assert n_right(evaluate(lalm, items, out=tmp_path / "run.jsonl")) == 10
    assert sum(map(len, lalm.seen)) == 2


def interrupt():
    raise KeyboardInterrupt


def test_an_interrupted_run_goes_on(items, tmp_path):
    out = tmp_path / "runs" / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Parrot(stop_at_call=3, stop=interrupt), items, batch_size=3, out=out)
    assert len(read_run(out).records) == 6
    lalm = Parrot()
    assert evaluate(lalm, items, batch_size=3, out=out) == evaluate(Parrot(), items)
    assert sum(map(len, lalm.seen)) == 4
    assert len(out.read_text().splitlines()) == 1 + 10


def test_a_killed_run_goes_on(items, tmp_path):
    out, undisturbed = tmp_path / "run.jsonl", tmp_path / "undisturbed.jsonl"
    script = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
from test_evaluate import Parrot, evaluate, make_items
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
evaluate(Parrot(stop_at_call=3, stop=kill), make_items(Path(sys.argv[2])), batch_size=3, out=sys.argv[3])
"""
    arguments = [Path(__file__).parent, tmp_path, out]
    killed = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(read_run(out).records) == 6
    evaluate(Parrot(), items, batch_size=3, out=out)
    evaluate(Parrot(), items, batch_size=3, out=undisturbed)
    assert out.read_text() == undisturbed.read_text()


@pytest.mark.parametrize("cut", [1, 20, 600])
def test_a_truncated_last_line_is_run_again(items, tmp_path, cut):
    out = tmp_path / "run.jsonl"
    evaluate(Parrot(), items, out=out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    assert 0 < len(read_run(out).records) < 10
    evaluate(Parrot(), items, out=out)
    assert out.read_bytes() == whole


def test_a_header_cut_off_is_no_run(items, tmp_path):
    out = tmp_path / "run.jsonl"
    out.write_text('{"settings": {"mod')
    with pytest.raises(ValueError, match="no whole line"):
        read_run(out)
    assert n_right(evaluate(Parrot(), items, out=out)) == 10
    assert len(read_run(out).records) == 10


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b"\x80\n\x81", b"\n"])
def test_a_file_that_is_no_run_is_left_alone(items, tmp_path, content):
    out = tmp_path / "notes.txt"
    out.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt.* move it away|notes\.txt.* move the file away"):
        evaluate(Parrot(), items, out=out)
    assert out.read_bytes() == content


@pytest.mark.parametrize("settings", [{"hint": "misleading"}, {"audio": "silence"}, {"max_new_tokens": 5}])
def test_another_setting_is_refused(items, tmp_path, settings):
    out = tmp_path / "run.jsonl"
    evaluate(Parrot(), items, out=out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=rf"run\.jsonl holds a run with other settings .*{next(iter(settings))}"):
        evaluate(Parrot(), items, out=out, **settings)
    assert out.read_bytes() == before


def test_other_weights_or_items_are_refused(items, tmp_path):
    out = tmp_path / "run.jsonl"
    evaluate(Parrot(), items, out=out)
    other = Parrot()
    torch.nn.init.zeros_(other.model.weight)
    with pytest.raises(ValueError, match="weights"):
        evaluate(other, items, out=out)
    with pytest.raises(ValueError, match="items 10 instead of 9"):
        evaluate(Parrot(), items[:-1], out=out)


def test_a_record_of_another_run_is_refused(items, tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    evaluate(Parrot(), items, out=one)
    evaluate(Parrot(), items, out=other, audio="silence")
    stray = other.read_text().splitlines()[1]
    one.write_text(one.read_text() + stray + "\n")
    with pytest.raises(ValueError, match=r"one\.jsonl, line 12, is of a run with other settings; remove the line"):
        evaluate(Parrot(), items, out=one)


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"id": "a"}'])
def test_a_line_that_is_no_record(items, tmp_path, line):
    out = tmp_path / "run.jsonl"
    evaluate(Parrot(), items, out=out)
    out.write_text(out.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"run\.jsonl, line 12, is not of a run"):
        read_run(out)


def test_table_counts_and_compares(items, tmp_path):
    real, misled, silent = (tmp_path / f"{name}.jsonl" for name in ("real", "misled", "silent"))
    evaluate(Parrot(), items, out=real)
    evaluate(Parrot(), items, out=misled, hint="misleading")
    evaluate(Parrot(), items, out=silent, audio="silence")
    lines = table([misled, real, silent]).splitlines()
    assert lines[2] == "| all | misled | 10 | 0.0% | 0.0% to 27.8% | 0 | – | – | – |"
    assert lines[3] == "| all | real | 10 | 100.0% | 72.2% to 100.0% | 0 | 10 | 0 | 0.002 |"  # 2 / 2**10
    assert lines[4].startswith("| all | silent | 10 | 10.0% |")  # item 0 is silence
    assert "of 10 asked" in lines[6]

    by = table([misled, real], by="modality").splitlines()
    assert by[6] == "| sound | real | 5 | 100.0% | 56.6% to 100.0% | 0 | 5 | 0 | 0.12 |"  # Holm: 2 * 2 / 2**5
    strict = table([silent], scorer="exact_option")
    assert "| all | silent | 10 | 10.0% | 1.8% to 40.4% | 9 |" in strict  # "0" is no option of nine items


def test_table_has_one_denominator(items, tmp_path):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    evaluate(Parrot(), items, out=whole)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Parrot(stop_at_call=3, stop=interrupt), items, batch_size=3, out=part)
    text = table([whole, part])
    assert "| all | whole | 6 |" in text and "| all | part | 6 |" in text
    assert "part: 4 not answered, 0 of them failed" in text


def test_table_from_the_command_line(items, tmp_path, capsys):
    out = tmp_path / "run.jsonl"
    evaluate(Parrot(), items, out=out)
    main(["--table", str(out), "--by", "modality"])
    assert capsys.readouterr().out.rstrip("\n") == table([out], by="modality")


def test_weights_checksum_sees_one_weight_and_the_type():
    model = torch.nn.Linear(3, 3)
    before = weights_checksum(model)
    assert weights_checksum(model) == before
    assert weights_checksum(model.to(torch.bfloat16)) != before
    model = model.to(torch.float32)
    before = weights_checksum(model)
    with torch.no_grad():
        model.weight[1, 1] += 1
    assert weights_checksum(model) != before


@pytest.fixture(scope="module")
def qwen2_audio():
    from random_models import random_lalm

    return random_lalm("qwen2_audio")


def test_a_real_model_steered(items, tmp_path, qwen2_audio):
    for item in items:  # long enough for one audio token
        noise = np.random.default_rng(0).normal(scale=0.1, size=RATE // 2)
        soundfile.write(item.audio, noise, RATE)
    out = tmp_path / "run.jsonl"
    steering = MATA(qwen2_audio, alpha=0.5, layers=range(1, 3))
    records = evaluate(qwen2_audio, items[:3], steering=steering, batch_size=2, max_new_tokens=2, out=out)
    assert len(records) == 3 and all("prediction" in record for record in records)
    assert json.loads(out.read_text().splitlines()[0])["settings"]["steering"] == {
        "alpha": 0.5,
        "layers": [1, 2],
        "rule": "multiply",
        "keys": "audio",
    }
    with pytest.raises(ValueError, match="touched no layer"):
        evaluate(Parrot(), items, steering=MATA(qwen2_audio))


def test_committed_runs_are_found_from_below_and_beside(tmp_path, monkeypatch):
    clone = tmp_path / "lalm-listening"
    run = clone / "results" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    (clone / "notebooks").mkdir()
    for folder in (clone, clone / "notebooks", tmp_path):
        monkeypatch.chdir(folder)
        assert committed("run.json") == run
    with pytest.raises(FileNotFoundError, match="clone of the book's repository"):
        committed("other.json")
