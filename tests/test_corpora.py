"""Loaders of real few-shot corpora, on folders of the same shape made here: no corpus is needed."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from videos import write_video

from helpers import benchmarks
from helpers.calm import CALM
from helpers.corpora import CORPORA, load_corpus
from helpers.fewshot import draw_shots, fewshot_vectors
from helpers.heads import stream_head_vectors
from helpers.models import load_audio, load_lalm

RATE = 16000


def write_clip(path, pitch=440.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(RATE // 2) / RATE
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * time), RATE)


def write_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_esc50(root, per_fold=1, **clip):
    """Three classes, five folds; the pitch tells the class."""
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category in [(36, "vacuum_cleaner"), (0, "dog"), (20, "crying_baby")]:
            for take in "ABCD"[:per_fold]:
                recording = 1000 * fold + target
                name = f"{fold}-{recording}-{take}-{target}.wav"
                lines.append(f"{name},{fold},{target},{category},{target == 0},{recording},{take}")
                write_clip(root / "audio" / name, pitch=300 * (1 + target) ** 0.5 + 5 * fold)
    write_lines(root / "meta" / "esc50.csv", *lines)


def write_vggsound(root, ending="wav"):
    write_lines(
        root / "vggsound.csv",
        "---g-f_I2yQ,1,people whistling,test",
        '--0PQM4-hqg,30,"cattle, bovinae cowbell",train',
        "--0gone-hqg,7,people marching,train",
        "--56QUhyDQM,185,playing tennis,train",
    )
    write_clip(root / "audio" / f"---g-f_I2yQ_000001.{ending}")
    write_clip(root / "audio" / "train" / "--0PQM4-hqg_30000_40000.flac")
    write_clip(root / "more" / "--56QUhyDQM.wav")


def write_audioset(root):
    write_lines(
        root / "class_labels_indices.csv",
        "index,mid,display_name",
        '0,/m/09x0r,"Speech"',
        '1,/m/05zppz,"Male speech, man speaking"',
        '2,/m/0bt9lr,"Dog"',
        '3,/t/dd00088,"Gush"',
    )
    head = (
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        "# num_ytids=3, num_segs=3, num_unique_labels=4, num_positive_labels=6",
        "# YTID, start_seconds, end_seconds, positive_labels",
    )
    write_lines(
        root / "balanced_train_segments.csv",
        *head,
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"',
        '--4gqARaEJE, 0.000, 10.000, "/m/0bt9lr"',
        '-0RWZT-miFs, 420.000, 430.000, "/m/05zppz"',
        '-0gone-miFs, 1.000, 11.000, "/m/09x0r"',
    )
    write_lines(root / "eval_segments.csv", *head, '-0evalmiFs_, 5.500, 15.500, "/m/09x0r"')
    write_clip(root / "bal_train" / "--PJHxphWEs.flac")
    write_clip(root / "bal_train" / "Y--4gqARaEJE.wav")
    write_clip(root / "bal_train" / "-0RWZT-miFs_420000_430000.flac")
    write_clip(root / "eval" / "-0evalmiFs__5500.wav")


ASVSPOOF = {
    "train": ("train.trn", ["LA_0079 LA_T_1138215 - - bonafide", "LA_0079 LA_T_1271820 - A01 spoof"]),
    "dev": ("dev.trl", ["LA_0069 LA_D_1047731 - - bonafide", "LA_0070 LA_D_1105538 - A02 spoof "]),
    "eval": ("eval.trl", ["LA_0039 LA_E_2834763 - A11 spoof", "LA_0014  LA_E_8877452 - - bonafide"]),
}


def write_asvspoof(root):
    for split, (name, lines) in ASVSPOOF.items():
        write_lines(root / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{name}.txt", *lines)
        for line in lines:
            write_clip(root / f"ASVspoof2019_LA_{split}" / "flac" / f"{line.split()[1]}.flac")


MLAAD_HEAD = (
    "path|original_file|language|is_original_language|duration|training_data|model_name|architecture|transcript"
)
BOOK = "en_US/by_book/female/a_reader/ozma_of_oz/wavs"


def write_mlaad(root):
    for model in ("bark", "vits"):
        row = "./fake/en/{0}/oz_{1}.wav|{2}/oz_{1}.wav|en|True|1.5|LJ|{0}|{0}|{3}"
        write_lines(
            root / "fake" / "en" / model / "meta.csv",
            MLAAD_HEAD,
            row.format(model, 1, BOOK, '"Oh, said Dorothy | and left.'),  # a quote without its partner, and a bar
            row.format(model, 2, BOOK, "It was naïve: שלום 你好."),
        )
        for n in (1, 2):
            write_clip(root / "fake" / "en" / model / f"oz_{n}.wav")
    for n in (1, 2):
        write_clip(root / BOOK / f"oz_{n}.wav")
    write_lines(
        root / "fake" / "ga" / "bark" / "meta.csv",
        MLAAD_HEAD,
        f"./fake/ga/bark/oz_1.wav|{BOOK}/oz_1.wav|ga|False|1.5|x|bark|bark|Dúirt",
    )


def write_vggsound_videos(root):
    pytest.importorskip("av", reason="reading videos takes PyAV")
    write_vggsound(root)
    for name in ("---g-f_I2yQ_000001", "--0PQM4-hqg_30000_40000", "--56QUhyDQM"):
        write_video(root / "video" / f"{name}.mp4", [(200, 30, 30)] * 10)


WRITERS = {
    "esc-50": write_esc50,
    "vggsound": write_vggsound,
    "vggsound-video": write_vggsound_videos,
    "audioset": write_audioset,
    "asvspoof-2019-la": write_asvspoof,
    "mlaad": write_mlaad,
}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.filterwarnings("ignore:.*[Ll]eft out")
def test_every_corpus_gives_items(name, tmp_path):
    WRITERS[name](tmp_path)
    items = load_corpus(name, tmp_path)
    assert all(load_audio(item.audio, RATE).size for item in items)
    assert len({item.id for item in items}) == len(items) >= 3
    for item in items:
        assert item.answer in item.choices and item.source and item.question.endswith("?")
    assert load_corpus(name, str(tmp_path)) == items


# -------------------------------------------------------------------------------------------------------------- ESC-50
def test_esc50(tmp_path):
    write_esc50(tmp_path, per_fold=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        items = load_corpus("esc-50", tmp_path)
    assert items[0].choices == ["dog", "crying baby", "vacuum cleaner"]  # by number, made readable
    assert items[0].id == "1-1036-A-36" and items[0].answer == "vacuum cleaner"  # in the order of the table
    assert items[0].source == items[1].source == "1036" and items[0].id != items[1].id
    assert items[0].question == "What sound is this?" and items[0].modality == "sound"
    assert items[0].extra["esc10"] == "False"


def test_esc50_folds_share_no_recording(tmp_path):
    write_esc50(tmp_path, per_fold=2)
    everything = [item.id for item in load_corpus("esc-50", tmp_path)]
    tested = []
    for fold in range(1, 6):
        train, test = (load_corpus("esc-50", tmp_path, split, fold=fold) for split in ("train", "test"))
        assert {item.extra["fold"] for item in test} == {fold}
        assert {item.extra["fold"] for item in train} == set(range(1, 6)) - {fold}
        assert len(train) + len(test) == len(everything)
        assert not {item.source for item in train} & {item.source for item in test}
        tested += [item.id for item in test]
    assert sorted(tested) == sorted(everything)


def test_some_classes(tmp_path):
    write_esc50(tmp_path)
    items = load_corpus("esc-50", tmp_path, classes=["vacuum cleaner", "dog"])
    assert {item.answer for item in items} == {"dog", "vacuum cleaner"} and len(items) == 10
    assert items[0].choices == ["dog", "vacuum cleaner"]
    with pytest.raises(ValueError, match="esc-50 has no class 'vacuum_cleaner'; it has dog, crying baby"):
        load_corpus("esc-50", tmp_path, classes=["vacuum_cleaner"])
    with pytest.raises(ValueError, match=r"esc-50 has clips of \['dog'\] here; a few-shot task needs two classes"):
        load_corpus("esc-50", tmp_path, classes=["dog"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1-1-A-0.wav,6,0,dog,True,1,A", r"esc50\.csv, line 17, has fold '6', not one of 1 to 5"),
        ("1-1-A-0.wav,one,0,dog,True,1,A", r"line 17, has 'one' for fold, which is no number"),
        ("1-1-A-0.wav,1,0,dog,True", r"line 17, has 5 columns, not 7 \(filename, fold, "),
        ("1-1-A-0.wav,1,0,,True,1,A", r"line 17, has no category"),
        ('1-1-A-0.wav,1,0,"dog,True,1,A', r"esc50\.csv can't be read as a table in UTF-8"),
        ("../../secret.wav,1,0,dog,True,1,A", r"line 17, names the file '\.\./\.\./secret\.wav', which leads out of"),
        ("/etc/secret.wav,1,0,dog,True,1,A", "leads out of"),
        ("..\\secret.wav,1,0,dog,True,1,A", "leads out of"),
    ],
)
def test_a_malformed_row(tmp_path, line, message):
    write_esc50(tmp_path)
    with open(tmp_path / "meta" / "esc50.csv", "a") as file:
        file.write(line + "\n")
    write_clip(tmp_path.parent / "secret.wav")
    with pytest.raises(ValueError, match=message):
        load_corpus("esc-50", tmp_path)


def test_another_table(tmp_path):
    write_lines(tmp_path / "meta" / "esc50.csv", "path,label", "a.wav,dog")
    with pytest.raises(ValueError, match=r"line 1, names the columns \['path', 'label'\]; needed are filename, fold"):
        load_corpus("esc-50", tmp_path)
    (tmp_path / "meta" / "esc50.csv").write_bytes(b"filename,\xff\xfe")
    with pytest.raises(ValueError, match=r"esc50\.csv can't be read as a table in UTF-8"):
        load_corpus("esc-50", tmp_path)


def test_a_byte_order_mark_windows_ends_and_blank_lines(tmp_path):
    write_esc50(tmp_path)
    items, table = load_corpus("esc-50", tmp_path), tmp_path / "meta" / "esc50.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert load_corpus("esc-50", tmp_path) == items


def test_missing_clips_of_a_complete_corpus_are_refused_unless_told(tmp_path):
    write_esc50(tmp_path)
    for path in sorted((tmp_path / "audio").iterdir())[:4]:
        path.unlink()
    message = r"4 of 15 clips of esc-50 are missing: .*1-1036-A-36\.wav, .*1-1000-A-0\.wav, .*1-1020-A-20\.wav, …"
    with pytest.raises(FileNotFoundError, match=message):
        load_corpus("esc-50", tmp_path)
    with pytest.warns(UserWarning, match=f"{message}; they are left out"):
        assert len(load_corpus("esc-50", tmp_path, skip_missing=True)) == 11


def test_clips_elsewhere(tmp_path):
    write_esc50(tmp_path)
    (tmp_path / "audio").rename(tmp_path / "44k")
    items = load_corpus("esc-50", tmp_path, clips=tmp_path / "44k")
    assert len(items) == 15 and Path(items[0].audio).parent == tmp_path / "44k"
    with pytest.raises(FileNotFoundError, match="15 of 15 clips .* pass clips=<their folder>"):
        load_corpus("esc-50", tmp_path, skip_missing=True)  # none at all is no corpus


# ------------------------------------------------------------------------------------------------------------ VGGSound
def test_vggsound(tmp_path):
    write_vggsound(tmp_path)
    with pytest.warns(UserWarning, match="1 of 4 clips of vggsound are missing: --0gone-hqg_000007; they are left out"):
        items = load_corpus("vggsound", tmp_path)
    assert [item.id for item in items] == ["---g-f_I2yQ_000001", "--0PQM4-hqg_000030", "--56QUhyDQM_000185"]
    assert items[0].choices == ["cattle, bovinae cowbell", "people marching", "people whistling", "playing tennis"]
    assert items[1].answer == "cattle, bovinae cowbell" and items[1].audio.endswith("_30000_40000.flac")
    assert [item.source for item in items] == ["---g-f_I2yQ", "--0PQM4-hqg", "--56QUhyDQM"]
    with pytest.warns(UserWarning, match="1 of 3 clips"):
        train = load_corpus("vggsound", tmp_path, "train")
    assert [item.id for item in train] == [item.id for item in items[1:]]
    assert train[0].choices == items[0].choices  # also those that only the other split has
    with pytest.raises(FileNotFoundError, match="1 of 4 clips"):
        load_corpus("vggsound", tmp_path, skip_missing=False)


def test_clips_that_are_videos(tmp_path):
    write_vggsound(tmp_path)
    (tmp_path / "audio" / "--0gone-hqg_000007.mp4").write_bytes(b"a video")
    with pytest.warns(UserWarning, match=r"--0gone-hqg_000007\.mp4; 1 are there only as video: .* ffmpeg -i clip\.mp4"):
        assert len(load_corpus("vggsound", tmp_path)) == 3
    write_clip(tmp_path / "sound" / "--0gone-hqg_000007.wav")
    assert len(load_corpus("vggsound", tmp_path)) == 4  # and nothing to warn of
    write_clip(tmp_path / "sound-16k" / "--0gone-hqg_000007.wav")
    with pytest.raises(ValueError, match=r"sound-16k.* are the same clip; pass clips=<the folder to be used>"):
        load_corpus("vggsound", tmp_path)


def test_videos_with_their_sound(tmp_path):
    write_vggsound_videos(tmp_path)
    (tmp_path / "video" / "--56QUhyDQM.mp4").unlink()
    with pytest.warns(UserWarning, match="2 of 4 clips of vggsound-video are missing: .*; 1 are there only as sound"):
        items = load_corpus("vggsound-video", tmp_path)
    assert [item.id for item in items] == ["---g-f_I2yQ_000001", "--0PQM4-hqg_000030"]
    assert all(item.audio == item.extra["frames"] and item.audio.endswith(".mp4") for item in items)
    with pytest.warns(UserWarning, match="1 of 4 clips of vggsound are missing"):
        heard = load_corpus("vggsound", tmp_path)  # beside a video the sound file still serves
    assert heard[0].audio.endswith(".wav") and "frames" not in heard[0].extra


def test_shadows_of_files_are_no_clips(tmp_path):
    write_vggsound(tmp_path)
    (tmp_path / "audio" / "._--0gone-hqg_000007.wav").write_bytes(b"left by another system")
    with pytest.warns(UserWarning, match="1 of 4 clips"):
        load_corpus("vggsound", tmp_path)


def test_a_video_id_can_not_leave_the_folder(tmp_path):
    write_vggsound(tmp_path)
    write_clip(tmp_path.parent / "secret.wav")
    write_clip(tmp_path.parent / "secret_000001.wav")
    with open(tmp_path / "vggsound.csv", "a") as file:
        file.write("../secret,1,people marching,train\n")
    with pytest.warns(UserWarning, match="2 of 5 clips"):
        items = load_corpus("vggsound", tmp_path)
    assert all(Path(item.audio).resolve().is_relative_to(tmp_path.resolve()) for item in items)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--0PQM4-hqg,start,dog,train", r"vggsound\.csv, line 5, has 'start' for start, which is no number"),
        ("--0PQM4-hqg,-1,dog,train", "line 5, has '-1' for start"),
        ("--0PQM4-hqg,nan,dog,train", "line 5, has 'nan' for start"),
        ("--0PQM4-hqg,30,dog,dev", "line 5, has the split 'dev', neither train nor test"),
        ("--0PQM4-hqg,30,cattle, bovinae cowbell,train", "line 5, has 5 columns, not 4"),
    ],
)
def test_a_malformed_row_of_vggsound(tmp_path, line, message):
    write_vggsound(tmp_path)
    with open(tmp_path / "vggsound.csv", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_corpus("vggsound", tmp_path)


def test_a_repeated_row_has_a_key_of_its_own(tmp_path):
    write_vggsound(tmp_path)
    with open(tmp_path / "vggsound.csv", "a") as file:
        file.write("--56QUhyDQM,185,playing tennis,train\n")
    with pytest.warns(UserWarning, match="1 of 5"):
        assert [item.id for item in load_corpus("vggsound", tmp_path)][-1] == "--56QUhyDQM_000185#2"


# ------------------------------------------------------------------------------------------------------------ AudioSet
def test_audioset_takes_segments_with_one_label(tmp_path):
    write_audioset(tmp_path)
    with pytest.warns(UserWarning) as told:
        items = load_corpus("audioset", tmp_path, "train")
    assert [str(warning.message)[:40] for warning in told] == [
        "Left out of audioset, as they have sever",
        "1 of 3 clips of audioset are missing: -0",
    ]
    assert all(warning.filename == __file__ for warning in told)  # the reader's own line is named
    assert [(item.id, item.answer) for item in items] == [
        ("--4gqARaEJE_0", "Dog"),
        ("-0RWZT-miFs_420000", "Male speech, man speaking"),
    ]
    assert items[0].choices == ["Speech", "Male speech, man speaking", "Dog", "Gush"]
    assert Path(items[0].audio).name == "Y--4gqARaEJE.wav"


def test_audioset_of_chosen_classes_keeps_all_labels(tmp_path):
    write_audioset(tmp_path)
    with pytest.warns(UserWarning, match="1 of 3 clips"):
        items = load_corpus("audioset", tmp_path, "train", classes=["Speech", "Dog"])
    assert [(item.answer, item.extra["labels"]) for item in items] == [("Speech", ["Speech", "Gush"]), ("Dog", ["Dog"])]
    assert items[0].choices == ["Speech", "Dog"] and items[0].source == "--PJHxphWEs"
    with pytest.warns(UserWarning, match="1 of 4 clips"):
        both = load_corpus("audioset", tmp_path, classes=["Speech", "Dog"])
    assert [item.extra["split"] for item in both] == ["train", "train", "eval"]
    assert both[2].extra["start"] == 5.5 and both[2].extra["end"] == 15.5


def test_an_unknown_label(tmp_path):
    write_audioset(tmp_path)
    with open(tmp_path / "eval_segments.csv", "a") as file:
        file.write('-0RWZT-miFs, 1.0, 11.0, "/m/0bt9lr,/m/none"\n')
    with pytest.raises(
        ValueError, match=r"eval_segments\.csv, line 5, has the label '/m/none', which is not in class_l"
    ):
        load_corpus("audioset", tmp_path, "eval")


# ------------------------------------------------------------------------------------------------------------ spoofing
@pytest.mark.parametrize("within", ["", "LA"])
def test_asvspoof(tmp_path, within):
    write_asvspoof(tmp_path / within)
    items = load_corpus("asvspoof-2019-la", tmp_path)
    assert [item.id[:4] for item in items] == ["LA_T", "LA_T", "LA_D", "LA_D", "LA_E", "LA_E"]
    assert [item.answer for item in items] == ["bonafide", "spoof", "bonafide", "spoof", "spoof", "bonafide"]
    assert [item.category for item in items] == ["", "A01", "", "A02", "A11", ""]
    assert items[0].source == items[1].source == items[0].extra["speaker"] == "LA_0079"
    assert items[0].question == "Is this audio bonafide or spoofed?" and items[0].choices == ["bonafide", "spoof"]
    assert [item.id for item in load_corpus("asvspoof-2019-la", tmp_path, "eval")] == ["LA_E_2834763", "LA_E_8877452"]
    assert {item.modality for item in items} == {"speech"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("LA_0079 LA_T_1 - A01 fake", "line 3, ends in 'fake', neither bonafide nor spoof"),
        ("LA_0079 LA_T_1 bonafide target", "line 3, has 4 columns, not 5"),
        ("LA_0079 ../../LA_T_1 - A01 spoof", "line 3, names the file .* leads out of"),
    ],
)
def test_a_malformed_row_of_asvspoof(tmp_path, line, message):
    write_asvspoof(tmp_path)
    with open(tmp_path / "ASVspoof2019_LA_cm_protocols" / "ASVspoof2019.LA.cm.train.trn.txt", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_corpus("asvspoof-2019-la", tmp_path, "train")


def test_mlaad(tmp_path):
    write_mlaad(tmp_path)
    items = load_corpus("mlaad", tmp_path)
    assert Counter(item.answer for item in items) == {"spoof": 4, "bonafide": 2}  # each original once
    assert [item.id for item in items[:2]] == ["en/bark/oz_1", f"{BOOK}/oz_1"]
    assert items[0].source == items[1].source == f"{BOOK}/oz_1.wav"  # the same text
    assert [item.category for item in items if item.answer == "spoof"] == ["bark", "bark", "vits", "vits"]
    assert items[2].extra["transcript"] == "It was naïve: שלום 你好."
    assert load_corpus("mlaad", tmp_path, "en") == items
    with pytest.raises(ValueError, match="MLAAD has no bona fide speech in 'ga'"):
        load_corpus("mlaad", tmp_path, "ga")
    with pytest.raises(FileNotFoundError, match=r"fake/xx has no <model>/meta\.csv"):
        load_corpus("mlaad", tmp_path, "xx")


def test_mlaad_without_the_bona_fide_speech(tmp_path):
    write_mlaad(tmp_path)
    (tmp_path / "en_US").rename(tmp_path / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"2 of 6 clips of mlaad are missing: .*oz_1\.wav, .*oz_2\.wav; .*clips="
    ):
        load_corpus("mlaad", tmp_path)
    with (
        pytest.warns(UserWarning, match="2 of 6"),
        pytest.raises(ValueError, match=r"mlaad has clips of \['spoof'\] here"),
    ):
        load_corpus("mlaad", tmp_path, skip_missing=True)
    (tmp_path / "m-ailabs").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "m-ailabs" / "en_US")
    assert len(load_corpus("mlaad", tmp_path, clips=tmp_path / "m-ailabs")) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"./fake/en/bark/x.wav|../../{BOOK}/x.wav|en|True|1|x|bark|bark|x", "leads out of"),
        (f"./fake/en/bark/x.wav|{BOOK}/x.wav|en|maybe|1|x|bark|bark|x", "is_original_language is 'maybe'"),
        ("x.wav|y.wav|en", "line 4, has 3 columns, not 9"),
    ],
)
def test_a_malformed_row_of_mlaad(tmp_path, line, message):
    write_mlaad(tmp_path)
    with open(tmp_path / "fake" / "en" / "bark" / "meta.csv", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_corpus("mlaad", tmp_path)


def test_a_path_of_mlaad_counts_by_its_name_only(tmp_path):
    write_mlaad(tmp_path)
    table = tmp_path / "fake" / "en" / "bark" / "meta.csv"
    table.write_text(table.read_text("utf-8").replace("./fake/en/bark/oz_1", "../../../../oz_1"), "utf-8")
    write_clip(tmp_path.parent / "oz_1.wav")
    assert load_corpus("mlaad", tmp_path)[0].audio == str(tmp_path / "fake" / "en" / "bark" / "oz_1.wav")


# ------------------------------------------------------------------------------------------------------ what is asked
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"name": "esc50"},
            ValueError,
            "There is no corpus 'esc50'; known are esc-50, vggsound, vggsound-video, audioset, asvspoof-2019",
        ),
        ({"split": "dev"}, ValueError, "esc-50 has no split 'dev', only train, test"),
        ({"split": "test"}, ValueError, "fold=1 to 5 goes with split='train' or 'test' of esc-50"),
        ({"fold": 1}, ValueError, "fold=1 to 5 goes with split"),
        ({"name": "vggsound", "split": "test", "fold": 1}, ValueError, "fold=1 to 5 goes with split"),
        ({"split": "test", "fold": 6}, ValueError, "ESC-50 has the folds 1 to 5, not 6"),
        ({"root": "nowhere"}, FileNotFoundError, "There is no folder nowhere: pass the one that esc-50 was unpacked"),
        ({"name": "vggsound"}, FileNotFoundError, r"vggsound\.csv is missing: put the corpus's own table there"),
        ({"name": "mlaad"}, FileNotFoundError, r"has no <model>/meta\.csv"),
    ],
)
def test_what_can_not_be_loaded(tmp_path, arguments, error, message):
    write_esc50(tmp_path)
    with pytest.raises(error, match=message):
        load_corpus(**{"name": "esc-50", "root": tmp_path, **arguments})


def test_from_a_corpus_to_a_prediction(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "CACHE", tmp_path / "cache")
    write_esc50(tmp_path, per_fold=2)
    lalm = load_lalm("tiny")
    train, test = (load_corpus("esc-50", tmp_path, split, fold=3) for split in ("train", "test"))
    X, y = fewshot_vectors(lalm, train, "esc-50-3-train")
    shots = draw_shots(y, 4, seed=0)
    assert len(shots) == 12 and Counter(y[shots]) == {"dog": 4, "crying baby": 4, "vacuum cleaner": 4}
    examples = [(item.id, item.question, item.audio) for item in test]
    X_test = stream_head_vectors(lalm, examples, tmp_path / "test.npy")
    calm = CALM().fit(X[shots], y[shots])
    assert calm.score(X_test, [item.answer for item in test]) == 1  # three pure tones, far apart
    wrong = CALM().fit(X[shots], np.roll(y[shots], 1))
    assert wrong.score(X_test, [item.answer for item in test]) < 1
