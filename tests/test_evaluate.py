import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from helpers import provenance, runs
from helpers.benchmarks import Item
from helpers.evaluate import (
    AUDIO,
    _parser,
    agreement,
    committed,
    evaluate,
    even_sample,
    flips,
    main,
    permuted,
    read_run,
    scorers_table,
    table,
    weights_checksum,
)
from helpers.mata import MATA
from helpers.models import load_audio
from helpers.runs import open_run, part_of

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


def n_asked(lalm):
    return sum(map(len, lalm.seen))


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
        "chosen": 0,
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
    assert n_asked(lalm) == 2


def interrupt():
    raise KeyboardInterrupt


def assert_same(one, other):
    """Line by line, but for the environment, which may tell another commit."""
    assert one.read_text().splitlines()[1:] == other.read_text().splitlines()[1:]
    assert read_run(one).settings == read_run(other).settings


def test_an_interrupted_run_goes_on(items, tmp_path):
    out = tmp_path / "runs" / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Parrot(stop_at_call=3, stop=interrupt), items, batch_size=3, out=out)
    assert len(read_run(out).records) == 6
    lalm = Parrot()
    assert evaluate(lalm, items, batch_size=3, out=out) == evaluate(Parrot(), items)
    assert n_asked(lalm) == 4
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
    assert_same(out, undisturbed)


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


def test_table_of_nothing(items, tmp_path):
    first, second, failed = (tmp_path / f"{name}.jsonl" for name in ("first", "second", "failed"))
    evaluate(Parrot(), items[:5], out=first)
    evaluate(Parrot(), items[5:], out=second)
    with pytest.raises(ValueError, match="no answered item in common"):
        table([first, second])
    Path(items[0].audio).unlink()
    evaluate(Parrot(), items[:1], out=failed)
    with pytest.raises(ValueError, match=r"failed\.jsonl has no answered item; the first error: There is no"):
        table([first, failed])


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


# ------------------------------------------------------------------------------------------- what must be survived
def test_bad_sounds_fail_alone_and_odd_ones_are_heard(items, tmp_path):
    clips = [Path(item.audio) for item in items]
    clips[0].write_bytes(b"")
    clips[1].write_bytes(clips[1].read_bytes()[:20])  # its header is cut off
    soundfile.write(clips[2], np.zeros(0), RATE)
    clips[3].write_text("not a sound")
    soundfile.write(clips[4], np.full((9600, 8), 0.04), 96000, subtype="FLOAT")  # eight channels, 96 kHz
    assert load_audio(clips[4], RATE).shape == (1600,)
    out = tmp_path / "run.jsonl"
    records = evaluate(Parrot(), items, out=out)
    assert [record["id"] for record in records if "error" in record] == [f"item-{k}" for k in range(4)]
    for clip, record in zip(clips[:4], records, strict=False):
        assert str(clip) in record["error"] and "\n" not in record["error"]
    assert all(record["correct"] for record in records[4:])
    assert "4 not answered, 4 of them failed, the first is item-" in table([out])


def test_a_clip_that_the_model_can_not_take_fails_alone(items):
    class Picky(Parrot):
        def prepare(self, prompts, audios):
            if any(round(100 * float(np.abs(audio).max())) == 7 for audio in audios):
                raise ValueError("Prompt 0 has 0.1 s of audio but 0 audio token(s).")
            return super().prepare(prompts, audios)

    records = evaluate(Picky(), items)
    assert [record.get("error") for record in records if record["id"] == "item-7"] == [
        "Prompt 0 has 0.1 s of audio but 0 audio token(s)."
    ]
    assert n_right(record for record in records if "error" not in record) == 9


class Narrow(Parrot):
    """Has memory for three items at once, and none for item 7."""

    def generate(self, inputs, max_new_tokens):
        self.seen.append(inputs)
        if len(inputs) > 3 or any(self.reply(*one) == "7" for one in inputs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return [self.reply(*one) for one in inputs]


def test_out_of_memory_halves_the_batch_down_to_one(items, tmp_path):
    lalm, out = Narrow(), tmp_path / "run.jsonl"
    records = evaluate(lalm, items, batch_size=8, out=out)
    assert len(lalm.seen[0]) == 8  # at the first batch
    assert [record["id"] for record in records if "error" in record] == ["item-7"]
    assert "out of memory" in records[7]["error"]
    assert "1 not answered, 1 of them failed" in table([out]) and "| all | run | 9 | 100.0% |" in table([out])
    # With more memory, only that item is run.
    again = Parrot()
    assert n_right(evaluate(again, items, out=out)) == 10 and n_asked(again) == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory(items):
    def fail():
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        evaluate(Parrot(stop_at_call=1, stop=fail), items)


def test_two_processes_can_not_write_one_file(items, tmp_path):
    out = tmp_path / "run.jsonl"
    refused = []

    def start_another():
        with pytest.raises(ValueError, match=r"run\.jsonl is being written by another process") as error:
            evaluate(Parrot(), items, out=out)
        refused.append(error)

    assert n_right(evaluate(Parrot(stop_at_call=2, stop=start_another), items, batch_size=3, out=out)) == 10
    assert len(refused) == 1 and len(out.read_text().splitlines()) == 1 + 10
    assert sorted(path.name for path in tmp_path.iterdir() if "jsonl" in path.name) == ["run.jsonl"]  # no lock left


def run_script(script, *arguments):
    """Run a script that can import this module in a process of its own."""
    head = "import os, sys; from pathlib import Path; sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]\n"
    head += "from test_evaluate import *\n"
    command = [sys.executable, "-c", head + script, str(Path(__file__).parent), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


FULL_DISK = """
import resource
items = make_items(Path(sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
evaluate(Parrot(), items, batch_size=3, out=sys.argv[3])
"""


def test_a_full_disk_loses_nothing(items, tmp_path):
    """A limit on the size of files stops a write in the middle of a line, like a disk that is full."""
    out, undisturbed = tmp_path / "run.jsonl", tmp_path / "undisturbed.jsonl"
    stopped = run_script(FULL_DISK, tmp_path, out)
    assert stopped.returncode == 1
    assert "run.jsonl can't be written (File too large); what it holds is kept" in stopped.stderr.splitlines()[-1]
    assert 0 < len(read_run(out).records) < 10 and out.read_bytes().endswith(b"\n")
    evaluate(Parrot(), items, batch_size=3, out=out)
    evaluate(Parrot(), items, batch_size=3, out=undisturbed)
    assert_same(out, undisturbed)


def test_a_full_disk_is_told_in_a_sentence(items, tmp_path, monkeypatch):
    out = tmp_path / "run.jsonl"
    evaluate(Parrot(), items[:3], out=tmp_path / "other.jsonl")

    def no_space(_):
        raise OSError(28, "No space left on device")

    def fill():
        monkeypatch.setattr(runs.os, "fsync", no_space)

    with pytest.raises(OSError, match=r"run\.jsonl can't be written \(No space left on device\).*make room, and start"):
        evaluate(Parrot(stop_at_call=2, stop=fill), items, batch_size=3, out=out)
    monkeypatch.undo()
    assert len(read_run(out).records) == 3 and out.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "What was answered is kept"),
        (OSError("x can't be written"), 1, "OSError: x can't be"),
    ],
)
def test_the_command_ends_with_one_line(monkeypatch, capsys, error, code, said):
    def stop(*_, **__):
        raise error

    monkeypatch.setattr("helpers.evaluate.load_sources", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["--out", "x.jsonl"])
    told = capsys.readouterr().err + str(stopped.value.code)
    assert said in told and "\n\n" not in told and "Traceback" not in told
    assert stopped.value.code == code or code == 1  # a text is printed and makes it 1


# ------------------------------------------------------------------------------------------------- several processes
def settings_of(path):
    return read_run(path).settings, read_run(path).environment


def test_parts_of_any_number_of_workers_become_one(items, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "run.jsonl"
    evaluate(Parrot(), items, out=whole)
    settings, environment = settings_of(whole)
    records = list(read_run(whole).records.values())
    failed = [{"id": records[0]["id"], "error": "?"}]  # answered by another
    for worker, own in {0: records[:2], 1: records[2:5], 2: records[4:6], 11: failed}.items():
        with open_run(part_of(out, worker) if worker else out, settings, environment) as file:
            file.append(own)
    with open(part_of(out, 2), "ab") as file:
        file.write(b'{"run": "cut of')
    part_of(out, 3).write_bytes(b'{"settings": {"mod')  # killed at its first line
    lalm = Parrot()
    evaluate(lalm, items, out=out)
    assert n_asked(lalm) == 10 - 6
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()[1:]]
    assert sorted(ids) == sorted(item.id for item in items)  # nothing lost, nothing twice
    assert read_run(out).records == read_run(whole).records
    assert not list(tmp_path.glob("run.jsonl.*"))


def test_a_part_of_another_run_is_refused(items, tmp_path):
    out, silent = tmp_path / "run.jsonl", tmp_path / "silent.jsonl"
    evaluate(Parrot(), items, out=silent, audio="silence")
    silent.rename(part_of(out, 1))
    with pytest.raises(ValueError, match=r"run\.jsonl\.worker1 holds a run with other settings .*audio 'silence'"):
        evaluate(Parrot(), items, out=out)
    assert len(read_run(part_of(out, 1)).records) == 10


def launch(n_workers, *command):
    """`accelerate launch` as on a machine with several GPUs; without one, the processes talk through gloo."""
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launcher += ["--num_processes", n_workers, "--num_machines", 1, "--main_process_port", 0]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    return subprocess.run(
        [*map(str, launcher), *map(str, command)], capture_output=True, text=True, env=environment, cwd=root
    )


def test_two_processes_give_what_one_gives(tmp_path):
    ask = ["--benchmark", "minimmar", "--limit", "13", "--batch-size", "3", "--alpha", "0.4", "--out"]
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    main([*ask, str(alone)])
    done = launch(2, "-m", "helpers.evaluate", *ask, together)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("| all | together | 13 |") == 1  # one process tells
    one, two = read_run(alone), read_run(together)
    assert two.records == one.records and two.settings == one.settings
    assert (one.environment["workers"], two.environment["workers"]) == (1, 2)
    assert len(together.read_text().splitlines()) == 1 + 13 and not list(tmp_path.glob("together.jsonl.*"))


def test_workers_without_a_common_folder_are_told(items, tmp_path, monkeypatch):
    second = SimpleNamespace(process_index=1, num_processes=2, wait_for_everyone=lambda: None)
    monkeypatch.setattr("helpers.evaluate.together", lambda: second)
    with pytest.raises(ValueError, match="Process 1 does not see .*run.jsonl"):
        evaluate(Parrot(), items, out=tmp_path / "run.jsonl")


KILLED_WORKER = """
import os, signal, sys, time
from pathlib import Path
from test_evaluate import Parrot, evaluate, make_items, read_run
def kill():
    while len(read_run(sys.argv[2]).records) < 6:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
lalm = Parrot(stop_at_call=2, stop=kill) if os.environ["RANK"] == "1" else Parrot()
evaluate(lalm, make_items(Path(sys.argv[1], os.environ["RANK"])), batch_size=2, out=sys.argv[2])
"""


def test_one_of_two_workers_killed(tmp_path):
    for rank in "01":
        (tmp_path / rank).mkdir()
    script, out = tmp_path / "script.py", tmp_path / "run.jsonl"
    script.write_text(KILLED_WORKER)
    assert launch(2, script, tmp_path, out).returncode != 0
    # Of five batches of two, worker 0 has done its three, worker 1 one of its two.
    assert len(read_run(out).records) == 6 and len(read_run(part_of(out, 1)).records) == 2
    lalm, items = Parrot(), make_items(tmp_path / "0")
    assert evaluate(lalm, items, batch_size=2, out=out) == evaluate(Parrot(), items)
    assert n_asked(lalm) == 2 and len(out.read_text().splitlines()) == 1 + 10
    assert not list(tmp_path.glob("run.jsonl.*"))


# --------------------------------------------------------------------------------------------- options in other orders
ABC = Item("x", None, "?", ["a", "b", "c", "a"], "b", "sound")


def test_rotation_and_shuffle():
    assert permuted(ABC, None) is ABC
    assert permuted(ABC, "rotate-1").choices == ["a", "a", "b", "c"]
    assert permuted(ABC, "rotate-1").extra["order"] == [3, 0, 1, 2]
    assert permuted(ABC, "rotate-4").choices == ABC.choices
    places = {permuted(ABC, f"rotate-{k}").choices.index("b") for k in range(4)}
    assert places == {0, 1, 2, 3}  # the answer stands at every place once
    shuffled = permuted(ABC, "shuffle-3")
    assert shuffled == permuted(ABC, "shuffle-3") and sorted(shuffled.choices) == sorted(ABC.choices)
    assert len({tuple(permuted(ABC, f"shuffle-{seed}").choices) for seed in range(20)}) > 5
    assert [ABC.choices[own] for own in shuffled.extra["order"]] == shuffled.choices
    for wrong in ("rotate", "shuffle-x", "mirror-1", "rotate--1"):
        with pytest.raises(ValueError, match="no permutation"):
            permuted(ABC, wrong)


class Letters(Parrot):
    """Says the letter of the option that it hears, or always the same letter."""

    def __init__(self, always=None):
        super().__init__()
        self.always = always

    def reply(self, prompt, audio):
        heard = str(round(100 * float(np.abs(audio).max())))
        return self.always or next(line[0] for line in prompt.split("\n") if line[1:] == f". {heard}")


def test_permuted_options_are_scored_and_kept_apart(items, tmp_path):
    plain, turned = tmp_path / "plain.jsonl", tmp_path / "turned.jsonl"
    for lalm in (Letters(), Letters("A")):
        evaluate(lalm, items, style="lmms-eval", out=plain)
        evaluate(lalm, items, style="lmms-eval", out=turned, permute="rotate-1")
        letters = [[record["letter"] for record in read_run(path).records.values()] for path in (plain, turned)]
        record = read_run(turned).records["item-3"]
        assert record["order"] == [1, 0] and "order" not in read_run(plain).records["item-3"]
        assert read_run(turned).settings["permute"] == "rotate-1"
        if lalm.always:  # the gold stands first in every item
            assert all(letters[0]) and not any(letters[1]) and record["chosen"] == 1
            assert agreement([plain, turned]) == (0, 10)
        else:
            assert all(letters[0]) and all(letters[1]) and record["chosen"] == 0
            assert agreement([plain, turned]) == (10, 10)
        with pytest.raises(ValueError, match="permute 'rotate-1' instead of None"):
            evaluate(lalm, items, style="lmms-eval", out=turned)
        plain.unlink(), turned.unlink()


def test_duplicate_options_are_one_choice(items, tmp_path):
    twice = [Item("x", items[3].audio, "?", ["3", "9", "3"], "3", "sound")]
    orders = [None, "rotate-1", "rotate-2"]
    assert [evaluate(Parrot(), twice, permute=permute)[0]["chosen"] for permute in orders] == [0, 0, 0]


def test_an_unreadable_reply_agrees_with_nothing(items, tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    for path, permute in ((one, None), (other, "rotate-1")):
        evaluate(Parrot(), items, audio="silence", out=path, permute=permute)  # says "0", an option of item 0 alone
    assert agreement([one, other]) == (1, 10)


# --------------------------------------------------------------------------------------------------- log-likelihoods
@pytest.fixture
def long_items(items):
    for item in items:  # long enough for one audio token
        noise = np.random.default_rng(0).normal(scale=0.1, size=RATE // 2)
        soundfile.write(item.audio, noise, RATE)
    return items[:3]


def test_loglikelihoods_are_kept_in_the_items_own_order(long_items, qwen2_audio, tmp_path):
    how = {"max_new_tokens": 2, "loglikelihood": True, "out": tmp_path / "run.jsonl"}
    records = evaluate(qwen2_audio, long_items, batch_size=2, **how)
    assert read_run(how["out"]).settings["loglikelihood"] is True
    for record, item in zip(records, long_items, strict=True):
        sums, lengths = record["loglikelihood"], record["n_tokens"]
        assert lengths == [len(choice) + 1 for choice in item.choices]  # a byte a token, and the end
        assert record["likeliest"] == (item.choices[int(np.argmax(sums))] == item.answer)
        per_token = np.array(sums) / lengths
        assert record["likeliest_per_token"] == (item.choices[int(np.argmax(per_token))] == item.answer)
    how |= {"out": None, "permute": "rotate-1"}
    turned = evaluate(qwen2_audio, long_items, **how)
    assert [record["n_tokens"] for record in turned] == [record["n_tokens"] for record in records]
    steered = evaluate(qwen2_audio, long_items, steering=MATA(qwen2_audio, alpha=0.5), loglikelihood=True)
    assert all(a["loglikelihood"] != b["loglikelihood"] for a, b in zip(records, steered, strict=True))
    assert "likeliest" in scorers_table(tmp_path / "run.jsonl")
    assert "| all | run | 3 |" in table([tmp_path / "run.jsonl"], scorer="likeliest")


# ------------------------------------------------------------------------------------------------------------- tables
def test_scorers_table_by_hand(items, tmp_path):
    out = tmp_path / "run.jsonl"
    evaluate(Parrot(), items, audio="silence", out=out)
    assert scorers_table(out).splitlines()[2:] == [
        "| correct | 10 | 10.0% | 1.8% to 40.4% | 0 |",
        "| exact_option | 10 | 10.0% | 1.8% to 40.4% | 9 |",
        "| letter | 10 | 0.0% | 0.0% to 27.8% | 10 |",
    ]
    with pytest.raises(ValueError, match="no 'likeliest'"):
        table([out], scorer="likeliest")


def test_table_has_a_second_interval_where_items_share_a_source(items, tmp_path):
    """Ten items of two videos, one all right, one all wrong: any share is as likely as the other."""
    shared = [Item(**vars(item) | {"source": f"video {int(item.answer) % 2}"}) for item in items]
    half = [Item(**vars(item) | {"answer": "9"}) if int(item.answer) % 2 else item for item in shared]
    out = tmp_path / "run.jsonl"
    evaluate(Parrot(), half, out=out)
    lines = table([out], by="modality").splitlines()
    assert "| 95% interval | by source | unread |" in lines[0]
    assert "| all | run | 10 | 60.0% | 31.3% to 83.2% | 20.0% to 100.0% |" in lines[2]
    assert "| – | 0 |" in lines[3]  # one source has no spread


def test_flips_name_the_items(items, tmp_path, capsys):
    misled, real = tmp_path / "misled.jsonl", tmp_path / "real.jsonl"
    evaluate(Parrot(), items, out=misled, hint="misleading")
    evaluate(Parrot(), items, out=real)
    ids = sorted(item.id for item in items)
    assert flips(misled, real) == (ids, []) and flips(real, misled).lost == ids
    main(["--flips", str(misled), str(real)])
    assert capsys.readouterr().out == f"won 10: {' '.join(ids)}\nlost 0: \n"


def test_the_command_shows_all_scorers_and_says_what_it_needs(items, tmp_path, capsys):
    out = tmp_path / "run.jsonl"
    evaluate(Parrot(), items, out=out)
    main(["--table", str(out), "--scorer", "all"])
    assert capsys.readouterr().out == f"run\n\n{scorers_table(out)}\n\n"
    with pytest.raises(SystemExit):
        main([])
    assert "a run needs --out" in capsys.readouterr().err


@pytest.mark.parametrize("text, layers", [("middle", "middle"), ("10:13", [10, 11, 12]), ("2,4", [2, 4])])
def test_the_command_reads_layers(text, layers):
    assert _parser().parse_args(["--layers", text]).layers == layers


def test_even_sample():
    assert even_sample(list(range(10)), 3) == [0, 3, 6]
    assert even_sample([1, 2], 5) == [1, 2]


def test_a_run_says_what_it_was_made_with(items, tmp_path, monkeypatch):
    evaluate(Parrot(), items, out=tmp_path / "run.jsonl")
    settings, environment = settings_of(tmp_path / "run.jsonl")
    assert settings["dtype"] == "float32" and settings["quantize"] is None and settings["revision"] is None
    assert settings["decoding"] == {"do_sample": False, "num_beams": 1}
    assert environment["packages"]["torch"] == torch.__version__ and environment["workers"] == 1
    snapshot = "/cache/models--Qwen--Q/snapshots/0123abc/config.json"
    hub = SimpleNamespace(try_to_load_from_cache=lambda name, file, revision: snapshot if revision is None else None)
    monkeypatch.setattr(provenance, "huggingface_hub", hub)
    assert provenance.model_commit("Qwen/Q", None) == "0123abc"
    assert provenance.model_commit("Qwen/Q", "v2") == "v2"


def test_a_model_from_a_folder_and_code_without_git_have_no_commit(tmp_path, monkeypatch):
    assert provenance.model_commit(str(tmp_path), None) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # which holds no git
    assert provenance._code_commit.__wrapped__() is None


def test_the_decoding_that_a_model_asks_for_is_told(qwen2_audio):
    assert provenance.decoding(qwen2_audio.model)["do_sample"] is False
    config = qwen2_audio.model.generation_config
    qwen2_audio.model.generation_config = type(config)(**config.to_diff_dict() | {"repetition_penalty": 1.1})
    try:
        assert provenance.decoding(qwen2_audio.model)["repetition_penalty"] == 1.1
    finally:
        qwen2_audio.model.generation_config = config


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
