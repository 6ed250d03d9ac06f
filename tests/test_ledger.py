"""The claims ledger, the command that fills it, and the pages, which state no benchmark number that has no source."""

import json
import re

import pytest

from helpers import benchmarks, ledger
from helpers.runs import open_run
from tools import build, reproduce

BOOK, RESULTS = build.ROOT / "book", build.ROOT / "results"
CLAIMS = json.loads((RESULTS / "claims.json").read_text("utf-8"))
QWEN = "Qwen2.5-Omni-7B"
SETTINGS = {
    "model": f"Qwen/{QWEN}",
    "items": 1000,
    "dataset": next(iter(benchmarks.BENCHMARKS["mmar"].versions)),
    "style": "mmar",
    "hint": None,
    "audio": "real",
    "permute": None,
    "quantize": None,
    "steering": None,
    "depth": None,
    "weights": "...",
}
STEERED = {
    "steering": {"alpha": 0.1, "layers": list(range(10, 20)), "rule": "multiply", "keys": "audio"},
    "depth": 28,
}


def test_the_committed_ledger_is_what_the_code_builds():
    assert CLAIMS == ledger.build(BOOK / "data", RESULTS)


def test_each_claim_has_a_name_and_a_source():
    assert len({entry["id"] for entry in CLAIMS}) == len(CLAIMS) > 20
    keys = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text("utf-8"), re.MULTILINE))
    for entry in CLAIMS:
        assert entry["cite"] in keys
        assert entry["model"] in (BOOK / "data" / entry["table"]).read_text("utf-8")


def write_run(path, right, items=1000, failed=0, **settings):
    """A run whose first `right` items are right; `right` may also be a range. Two items share each source."""
    right = range(right) if isinstance(right, int) else right
    records = [{"id": f"{k}", "prediction": "?", "correct": k in right, "source": f"{k // 2}"} for k in range(items)]
    records[items - failed :] = [{"id": f"{k}", "error": "?"} for k in range(items - failed, items)]
    with open_run(path, SETTINGS | settings, {}) as file:
        file.append(records)


def verdicts(results):
    """What the ledger says of Qwen2.5-Omni-7B on MMAR: without MATA, with it, its gain; and the README's baseline."""
    entries = ledger.build(BOOK / "data", results)
    about = [entry for entry in entries if (entry["model"], entry["benchmark"]) == (QWEN, "MMAR")]
    assert all(entry["verdict"] == "not run yet" and entry["ours"] is None for entry in entries if entry not in about)
    return about


def test_nothing_is_run_yet(tmp_path):
    assert [entry["published"] for entry in verdicts(tmp_path)] == [56.6, 61.2, 4.6, 56.7]
    assert {entry["verdict"] for entry in verdicts(tmp_path)} == {"not run yet"}


def test_accuracies_are_reproduced_within_the_interval(tmp_path):
    write_run(tmp_path / "deep" / "a.jsonl", 590)  # 95% interval: 55.9 to 62.0
    before, after, gain, readme = verdicts(tmp_path)
    assert (before["ours"], before["n"], before["interval"]) == (59.0, 1000, [55.9, 62.0])
    assert before["verdict"] == readme["verdict"] == "reproduced" and before["runs"] == ["deep/a.jsonl"]
    assert after["verdict"] == gain["verdict"] == "not run yet"


def test_accuracies_outside_are_not(tmp_path):
    write_run(tmp_path / "a.jsonl", 600)  # 56.9 to 63.0
    before, _, _, readme = verdicts(tmp_path)
    assert before["verdict"] == readme["verdict"] == "not reproduced"


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        (range(20, 580), "not reproduced"),  # 14 won, 20 lost
        (range(20, 600), "not reproduced"),  # 34 won, 20 lost, p = 0.08
        (range(10, 600), "reproduced"),  # 34 won, 10 lost
        (range(0, 540), "not reproduced"),  # significant, but a loss
    ],
)
def test_a_gain_takes_its_sign_and_significance(tmp_path, right, verdict):
    write_run(tmp_path / "a.jsonl", 566)
    write_run(tmp_path / "b.jsonl", right, **STEERED)
    gain = verdicts(tmp_path)[2]
    won, lost = len(set(right) - set(range(566))), len(set(range(566)) - set(right))
    assert (gain["won"], gain["lost"], gain["ours"]) == (won, lost, round((won - lost) / 10, 1))
    assert gain["verdict"] == verdict and gain["runs"] == ["a.jsonl", "b.jsonl"]
    assert gain["interval"][0] <= gain["ours"] <= gain["interval"][1]


def test_failed_items_are_outside_of_n(tmp_path):
    write_run(tmp_path / "a.jsonl", 566, failed=10)
    assert verdicts(tmp_path)[0]["n"] == 990


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "tiny"},
        {"dataset": "0" * 64},  # another version, or a sample
        {"items": 1001},  # not finished
        {"style": "mmau"},
        {"hint": "misleading"},
        {"audio": "silence"},
        {"permute": "rotate-1"},
        {"quantize": "4bit"},
        STEERED | {"steering": STEERED["steering"] | {"alpha": 0.2}},
        STEERED | {"steering": STEERED["steering"] | {"keys": "text"}},
        STEERED | {"depth": 36},  # there the middle is elsewhere
    ],
    ids=str,
)
def test_other_runs_do_not_count(tmp_path, settings):
    write_run(tmp_path / "a.jsonl", 590, **settings)
    assert {entry["verdict"] for entry in verdicts(tmp_path)} == {"not run yet"}


def test_a_gain_takes_two_runs_that_differ_in_nothing_else(tmp_path):
    write_run(tmp_path / "a.jsonl", 566)
    write_run(tmp_path / "b.jsonl", 612, **STEERED, weights="others")
    assert [entry["verdict"] for entry in verdicts(tmp_path)[1:3]] == ["reproduced", "not run yet"]
    write_run(tmp_path / "c.jsonl", 612, **STEERED)
    assert verdicts(tmp_path)[2]["runs"] == ["a.jsonl", "c.jsonl"]


def test_other_files_do_not_disturb(tmp_path):
    (tmp_path / "notes.jsonl").write_text("my notes\n")
    write_run(tmp_path / "failed.jsonl", 0, items=3, failed=3)
    assert {entry["verdict"] for entry in verdicts(tmp_path)} == {"not run yet"}


def test_markdown_tells_the_sign_of_a_gain(tmp_path):
    write_run(tmp_path / "a.jsonl", 566)
    write_run(tmp_path / "b.jsonl", 612, **STEERED)
    lines = ledger.markdown(verdicts(tmp_path)).splitlines()
    assert lines[2].startswith(f"| {QWEN} on MMAR, without MATA | 56.6 | digest | 56.6 | 53.5 to 59.6 | 1000 | rep")
    assert "| +4.6 | digest | +4.6 |" in lines[4]


def test_the_whole_reproduction(tmp_path, capsys):
    arguments = ["--limit", "6", "--batch-size", "6", "--out", str(tmp_path)]
    reproduce.main(arguments)
    told = capsys.readouterr().out
    n = len(reproduce.RUNS)
    assert f"tiny on minimmar, 6 items: {n} of {n} runs to do" in told and "at most" in told
    folder = tmp_path / "minimmar-tiny-6"
    assert {path.stem for path in folder.glob("*.jsonl")} == set(reproduce.RUNS)
    assert (folder / "tables.md").read_text("utf-8") in told and "| all | mata-0.4 | 6 |" in told
    assert f"0 of {len(CLAIMS)} claims" in told  # of the small model nothing is claimed
    before = {path: path.read_bytes() for path in folder.glob("*")}
    reproduce.main(arguments)
    assert f"0 of {n} runs to do" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.glob("*")} == before


# ------------------------------------------------------------------------------------------------ numbers on the pages
NUMBER = re.compile(r"(?<![\w.,/+−-])[+−]?([1-9]\d{0,2}\.\d{1,2})(?!\d|\.\d|\s*(?:GB|MB|kB|s|Hz|kHz|million)\b)")
REAL = re.compile(r"\bMM(?:AU|AR)\b")  # not MiniMMAR
# The recount of published rows (book/published-results.md) says what they should be.
RECOUNTED = {"published-results": {49.3, 63.6, 79.2, 76.1}}


def numbers(text):
    """Numbers with a decimal in the sentences and table rows of a Markdown text that speak of MMAU or MMAR."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        if block.lstrip().startswith("|"):
            rows = block.strip().splitlines()
            spoken = rows if REAL.search(rows[0]) else [row for row in rows if REAL.search(row)]
        else:
            spoken = [s for s in re.split(r"(?<=[.!?;])\s+", " ".join(block.split())) if REAL.search(s)]
        found += [float(number) for part in spoken for number in NUMBER.findall(part)]
    return found


def sourced():
    """Every number of the published tables and of the ledger, and each share that the counts of the metadata give."""
    tables = [path.read_text("utf-8") for path in (BOOK / "data").glob("*.csv")]
    known = {float(number) for table in tables for number in re.findall(r"\d+\.\d+", table)}
    for entry in CLAIMS:
        known |= {entry["published"], entry["ours"], *(entry["interval"] or [])}
    counted = BOOK / "data" / "benchmark-statistics.json"
    for counts in json.loads(counted.read_text("utf-8")).values() if counted.exists() else ():
        guessed = sum(n / int(options) for options, n in counts["options"]["all"].items())
        shares = [100 * right / counts["n"] for right in (guessed, *(rule["all"] for rule in counts["blind"].values()))]
        for case in counts["scoring"].values():
            replies = case["replies"]
            shares += [100 * scored["right"] / replies for name, scored in case.items() if name != "replies"]
        known |= {round(share, digits) for share in shares for digits in (1, 2)}
    return known


def pages():
    yield from ((path.stem, path.read_text("utf-8")) for path in sorted(BOOK.glob("*.md")))
    for path in sorted(build.NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        yield path.stem, "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize(("name", "text"), [pytest.param(*page, id=page[0]) for page in pages()])
def test_each_benchmark_number_on_a_page_has_a_source(name, text):
    assert not set(numbers(text)) - sourced() - RECOUNTED.get(name, set())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("On MMAU the model\nreaches 77.31%.", [77.31]),
        ("| model | MMAR |\n|---|---|\n| ours | 77.31 |", [77.31]),
        ("| benchmark | accuracy |\n|---|---|\n| MMAR | 77.31 |\n| MiniMMAR | 66.2 |", [77.31]),
        ("It gains +77.31 on MMAR.", [77.31]),
        ("59.4 on MMAU; elsewhere 77.3.", [59.4]),
        ("On MiniMMAR 77.3%. MMAU v05.15.25 too.", []),
        ("MMAR takes 3.1 GB.", []),
        ("MMAR: Qwen2.5-Omni, arXiv 2505.13032, p = 0.05.", []),
    ],
)
def test_how_numbers_are_found(text, found):
    assert numbers(text) == found
    assert 77.31 not in sourced() and 59.4 in sourced()
