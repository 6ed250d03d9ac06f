"""The prose pages: published numbers that add up and have a source, and a data card that fits the benchmark."""

import csv
import re
from itertools import pairwise

import nbformat
import pytest
from scipy.stats import binom

from helpers import minimmar, tiny, tiny_omni
from helpers.evaluate import read_run
from helpers.statistics import accuracy_interval, random_guess
from tools import build

BOOK = build.ROOT / "book"
TABLES = sorted((BOOK / "data").glob("published-*.csv"))
KEYS = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text("utf-8"), re.MULTILINE))
N_MMAU = {"sound": 333, "music": 334, "speech": 333}
N_MMAR = {"sound": 165, "music": 206, "speech": 294, "sound + music": 11, "sound + speech": 218, "music + speech": 82,
          "all three": 24}  # fmt: skip
# What the page explains under "How to read the tables", as the column "source" names it.
SOURCES = {"abstract", "digest", "index", "paper of Audio Flamingo 3", "DeSTA2.5 README, paper of Audio Flamingo 3"} | {
    f"{name} README" for name in ("MMAR", "R1-AQA", "Qwen2.5-Omni", "Ke-Omni-R", "DeSTA2.5")
}
# Rows that do not add up in their sources either; the page names them under "The recount".
ODD_MMAU = {("human", "old"), ("Qwen2-Audio-7B-Instruct", "old")}
ODD_MMAR = {("Qwen3-Omni-Thinking", "sound + music"), ("Qwen3-Omni-Thinking", "all three"),
            ("Gemini 2.5 Flash", "sound + speech")}  # fmt: skip


def table(name):
    with (BOOK / "data" / f"published-{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def items(percent, n):
    """The number of items behind a percentage of n, and whether it gives exactly this one, as far as it is printed."""
    count = round(float(percent) * n / 100)
    digits = len(percent.partition(".")[2])
    # A source that prints two digits but rounds to one shows it by a zero at the end.
    return count, any(round(100 * count / n, d) == float(percent) for d in {digits, max(digits - 1, 1)})


@pytest.mark.parametrize("row", table("mmau"), ids=lambda row: f"{row['model']}, {row['data, scoring']}")
def test_rows_of_mmau_add_up(row):
    counts = {part: items(row[part], n) for part, n in N_MMAU.items()}
    whole = all(exact for _, exact in counts.values()) and items(row["average"], 1000)[0] == sum(
        count for count, _ in counts.values()
    )
    assert whole == ((row["model"], row["data, scoring"]) not in ODD_MMAU), counts


@pytest.mark.parametrize("row", table("mmar")[1:], ids=lambda row: row["model"])  # without random guessing
def test_rows_of_mmar_add_up(row):
    counts = {part: items(row[part], n) for part, n in N_MMAR.items()}
    assert sum(count for count, _ in counts.values()) == items(row["all"], 1000)[0]
    odd = {(row["model"], part) for part, (_, exact) in counts.items() if not exact}
    assert odd == {cell for cell in ODD_MMAR if cell[0] == row["model"]}


def test_intervals_and_flips_follow_from_the_published_scores():
    accuracies = [row for row in table("mata") if row["benchmark"] != "MMAR-Rubrics"]
    for published, computed in zip(accuracies, table("mata-intervals"), strict=True):
        assert (published["benchmark"], published["model"]) == (computed["benchmark"], computed["model"])
        before, after = (items(published[f"{which} MATA"] or "0", 1000)[0] for which in ("without", "with"))
        assert computed["without: 95% interval"] == spelled(accuracy_interval(before, 1000))
        if published["with MATA"]:
            assert computed["with: 95% interval"] == spelled(accuracy_interval(after, 1000))
            assert int(computed["items gained"]) == after - before
            assert int(computed["significant if at most … items changed"]) == most_flips(after - before)


def spelled(interval):
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def most_flips(gain):
    """The most items that may change for a net gain to be significant by the exact McNemar test."""
    return max(n for n in range(gain, 1001, 2) if 2 * binom.sf((n + gain) // 2 - 1, n, 0.5) < 0.05)


def test_reach_of_small_parts():
    rows = markdown_table("published-results", "| n |")
    for n, points in list(zip(*rows, strict=True))[1:]:
        low, high = accuracy_interval(round(int(n) / 2), int(n))
        assert float(points) == round(50 * (high - low), 1)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_published_value_has_a_source(path):
    rows = table(path.stem.removeprefix("published-"))
    assert rows
    assert f":file: data/{path.name}" in (BOOK / "published-results.md").read_text("utf-8")
    if path.stem != "published-mata-intervals":  # computed from another table
        assert {row["source"] for row in rows} <= SOURCES


def test_citations_have_an_entry():
    for page in [*BOOK.glob("*.md"), *TABLES]:
        cited = re.findall(r"\{cite:?\w*\}`([^`]+)`", page.read_text("utf-8"))
        keys = {key.strip() for group in cited for key in group.split(",")} - {"key"}  # the style page's example
        assert keys <= KEYS, page.name


def test_glossary_terms_stand_once():
    terms = re.findall(r"^([^\s`#{:].*)$", (BOOK / "glossary.md").read_text("utf-8").partition(":sorted:")[2], re.M)
    assert len(terms) == len({term.lower() for term in terms}) > 35
    assert all(a != b for a, b in pairwise(terms))


def symbols(formula):
    """Latin letters and Greek ones (as commands) of a formula, without the words in it."""
    formula = re.sub(r"\\(text|operatorname\*?|begin|end)\{[^}]*\}", " ", formula)
    greek = set(re.findall(r"\\(?:alpha|beta|gamma|delta|epsilon|lambda|mu|pi|rho|sigma|tau|phi)\b", formula, re.I))
    return greek | set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", formula)))


def test_symbols_of_set_off_formulas_are_explained():
    rows = re.findall(r"^\| (\$.*?) \|", (BOOK / "symbols.md").read_text("utf-8"), re.MULTILINE)
    explained = symbols(" ".join(rows))
    found = {}
    for path in sorted(build.NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        found[path.stem] = set().union(*map(symbols, re.findall(r"\$\$(.+?)\$\$", prose, re.DOTALL)))
    assert len([name for name in found if found[name]]) >= 4  # or the pattern has missed them
    assert not {name: letters - explained for name, letters in found.items() if letters - explained}


def test_colophon_cites_the_version_of_the_citation_file():
    version = re.search(r"^version: (\S+)$", (build.ROOT / "CITATION.cff").read_text("utf-8"), re.M)[1]
    assert f"Version {version}." in (BOOK / "colophon.md").read_text("utf-8")


def markdown_table(page, first):
    """Cells of the table on a page whose first line begins with `first`, without the line of dashes."""
    lines = (BOOK / f"{page}.md").read_text("utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_data_card_fits_the_benchmark():
    per_kind = minimmar.ITEMS_PER_QUESTION["test"]
    kinds = {}
    for question in minimmar.QUESTIONS.values():
        kinds.setdefault(minimmar.SCENES[question.scene].modality, []).append(question)
    kinds["all"] = list(minimmar.QUESTIONS.values())
    card = markdown_table("data-and-model", "| modality |")[1:]
    assert {row[0] for row in card} == set(kinds)
    for modality, number, n, chance, example in card:
        own = kinds[modality]
        assert (int(number), int(n)) == (len(own), len(own) * per_kind)
        assert float(chance) == round(100 * random_guess([question.options for question in own]), 1)
        assert not example or example in {question.text for question in own}
    page = " ".join((BOOK / "data-and-model.md").read_text("utf-8").split())
    assert f"dev split has {len(minimmar.QUESTIONS) * minimmar.ITEMS_PER_QUESTION['dev']} items" in page


def test_model_card_names_the_kinds_that_were_never_learned():
    records = read_run(build.ROOT / "results" / "no-hint.jsonl").records.values()
    page = " ".join((BOOK / "data-and-model.md").read_text("utf-8").split())
    unlearned = []
    for kind, question in minimmar.QUESTIONS.items():
        right = [
            r["exact_option"] is True for r in records if r["id"].rpartition("-")[0] == "test-" + kind.replace(" ", "-")
        ]
        if accuracy_interval(right).low < 1 / question.options:
            unlearned.append(kind)
            guessing = round(len(right) / question.options)
            assert f"({sum(right)} of {len(right)}" in page and f"guessing gives {guessing})" in page
    assert unlearned == ["tempo", "speakers"]


def test_model_card_fits_the_model():
    processor = tiny.build_processor()
    model = tiny.build_model(processor)
    parts = {
        "encoder": model.model.audio_tower,
        "projector": model.model.multi_modal_projector,
        "decoder": model.model.language_model,
        "output layer": model.lm_head,
    }
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    page = (BOOK / "data-and-model.md").read_text("utf-8")
    assert f"| {sum(millions.values()):.1f} million: " in page
    assert ", ".join(f"{name} {number:.2f}" for name, number in millions.items()) in page
    assert f"| {len(processor.tokenizer)} tokens: " in page
    biased = sum(p.numel() for p in tiny.attention_projections(model)) / 1e6
    assert f"{biased:.1f} of the {sum(millions.values()):.1f} million" in " ".join(page.split())
    omni = tiny_omni.build_model(tiny_omni.build_processor())
    assert f"| {sum(p.numel() for p in omni.parameters()) / 1e6:.1f} million |" in page
    stages = re.compile(r"^\d\. `(\w+)`", re.M)
    assert stages.findall(page) == stages.findall(tiny.__doc__) + stages.findall(tiny_omni.__doc__)
