"""A linter of the chapters as texts: what a reader relies on from the first page to the last.

Each message names the chapter, the place and the remedy. The rules stand in book/style.md.
"""

import ast
import re
from statistics import median

import pytest
from chapters import PATHS, cells, code_cells, every_chapter, executed, markdown, printed, record, section, tags
from IPython.core.inputtransformer2 import TransformerManager

from tools import build

# Words with a plain sense beside the glossary's, in which the chapters use them all the time.
EVERYDAY = {"cosine", "hits", "key", "mask", "power", "precision", "sample", "score", "share", "value"}


@every_chapter
def test_goals_are_the_headings(path):
    goals = re.findall(r"^\d+\. (.*(?:\n   .*)*)", section(path, "What you will learn"), re.M)
    goals = [" ".join(goal.split()) for goal in goals]
    headings = re.findall(r"^## (.*)", markdown(path), re.M)
    assert 3 <= len(goals) <= 6 and [heading for heading in headings if heading in goals] == goals
    assert headings[:2] == ["What you will learn", "What you need"] and headings[-2:] == ["Exercises", "Recap"]


@every_chapter
def test_time_and_memory_are_told(path):
    needs = section(path, "What you need")
    assert stated_seconds(path) and re.search(r"[\d.]+ [GM]B of memory", needs), (
        f'{path.name}: "What you need" must say "... in about half a minute on one CPU core", and the memory'
    )


def stated_seconds(path):
    """The time of a run that the chapter promises, in seconds, or None. An upper limit counts as the time itself."""
    needs = " ".join(section(path, "What you need").split())
    found = re.search(r"(half a|a|\d+) (second|minute)s?(?: to run)? on (?:one|two) CPU cores?", needs)
    if found is None:
        return None
    count = {"half a": 0.5, "a": 1}.get(found[1]) or int(found[1])
    return count * {"second": 1, "minute": 60}[found[2]]


@every_chapter
def test_the_stated_time_is_true(path):
    """Within a factor of two, measured in units of this machine.

    The build keeps how long each chapter took. On a slower or busy machine all chapters take longer than they say, by
    about the same factor; so that factor, the median over the chapters, is taken off. What is left tells whether this
    chapter is out of line with the others. A change of the chapter can bring that about; another machine does not.
    Where many chapters are out of line, the machine was busy now and then, and the times say nothing about a chapter.
    """
    found = {chapter: record(chapter) for chapter in PATHS}
    ratios = {
        chapter: kept.data["execution_seconds"] / stated_seconds(chapter) for chapter, kept in found.items() if kept
    }
    if path not in ratios or len(ratios) < 8:
        pytest.skip("too few chapters are executed: run `make book` first")
    usual = median(ratios.values())
    out_of_line = {chapter: ratio / usual for chapter, ratio in ratios.items() if not 0.5 <= ratio / usual <= 2}
    if len(out_of_line) > len(ratios) / 4:
        pytest.skip("the machine was busy now and then while the chapters were executed: see `make book`")
    assert path not in out_of_line, (
        f'{path.name} says {stated_seconds(path):.0f} s under "What you need" and took {out_of_line[path]:.1f} times '
        "as long, as chapters go on this machine: correct the time, or build again if the machine was busy meanwhile"
    )


@every_chapter
def test_random_numbers_come_from_a_seed(path):
    found = [f"{name} in code cell {number}" for number, cell in enumerate(code_cells(path)) for name in unseeded(cell)]
    assert not found, f"{path.name}: draw from np.random.default_rng(0) or a seeded torch.Generator: {found}"
    assert any("torch.manual_seed(0)" in cell.source for cell in code_cells(path)[:4]), (
        f"{path.name}: the setup cell sets no seed; copy it from the first chapter"
    )


def unseeded(cell):
    """Names of what draws numbers that another run would not draw; torch's own generator has its seed in the setup."""
    for node in syntax(cell):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (name.name for name in node.names if "random" in (name.name, getattr(node, "module", "")))
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        if re.fullmatch(r"(np|numpy)\.random\.\w+", name) and not (name.endswith("default_rng") and node.args):
            yield name
        elif name == "torch.seed" or name.endswith("Generator") and "manual_seed" not in cell.source:
            yield name
        elif "shuffle" in given and "random_state" not in given:  # a split by scikit-learn
            yield name


def syntax(cell):
    """All nodes of the cell's code, with its lines for the shell as calls."""
    return list(ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))))


@every_chapter
def test_prose_stands_between_code_cells(path):
    """A folded figure or a check may follow the cell that it belongs to; after it, too, comes a sentence."""
    above, bare = None, []
    for cell in cells(path):
        if "remove-cell" in tags(cell):
            continue
        if cell.cell_type == "code" and above is not None and not belongs_to_the_cell_above(cell):
            bare.append(cell.source.partition("\n")[0])
        above = cell if cell.cell_type == "code" and not is_setup(cell) else None
    assert not bare, f"{path.name}: say in a sentence what these cells are for, or join them to the one above: {bare}"


def is_setup(cell):
    """Imports, and the line that names the model, which has to stand alone."""
    return cell.source.startswith(("import ", "from ", "lalm = load_lalm("))


def belongs_to_the_cell_above(cell):
    """Folded, or a check without words: asserts, and nothing that prints or shows."""
    kinds = {type(node) for node in syntax(cell)}
    return "hide-input" in tags(cell) or is_setup(cell) or (ast.Assert in kinds and ast.Expr not in kinds)


@every_chapter
def test_a_figure_has_a_caption_and_an_alternative_text(path):
    for number, cell in enumerate(code_cells(path)):
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
        assert bool(caption(cell)) == bool(alt), f"{path.name}, code cell {number}: a figure needs both caption and alt"


def caption(cell):
    return cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")


GLOSSARY = (build.ROOT / "book" / "glossary.md").read_text("utf-8").partition(":sorted:")[2]
# The names of an entry stand on lines of their own, one below the other.
ENTRIES = [entry.split("\n") for entry in re.findall(r"^((?:[^\s`#{:].*\n)+)  ", GLOSSARY, re.M)]
TERMS = {term.strip(): names[0].strip() for names in ENTRIES for term in names if term.strip()}
NOT_PROSE = re.compile(
    r"^## What you will learn\n.*?(?=^## )|^#.*?$|^\|.*?$|^:\w+:.*?$|^ *`{3,}.*?$"  # goals, headings, tables, fences
    r"|\{[\w:]+\}`[^`]*`|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$"  # roles, code, formulas
    r"|\[[^\]]*\]\([^)]*\)|\"[^\"\n]*\"",  # links, quotes
    re.M | re.S,
)


@every_chapter
def test_first_use_of_a_term_leads_to_the_glossary(path):
    """Whoever meets a word for the first time in a chapter is one click from what it means."""
    text = markdown(path)
    linked = {}
    for role in re.finditer(r"\{term\}`([^`<]*?)(?:\s*<([^>]*)>)?`", text):
        linked.setdefault(entry_of(role[2] or role[1]), role.start())
    bare = {
        term: text[use.start() - 30 : use.end()].replace("\n", " ")
        for term, use in first_uses(text).items()
        if use.start() < linked.get(term, len(text))
    }
    assert not bare, f"{path.name}: link the first use with {{term}}`...`: {bare}"


def entry_of(name):
    return next((entry for term, entry in TERMS.items() if term.lower() == " ".join(name.split()).lower()), name)


def first_uses(text):
    """Entry -> where running prose first names it without a link. A longer term hides those within it."""
    prose = NOT_PROSE.sub(lambda match: re.sub(r"\S", "·", match[0]), text)
    found = {}
    for term in sorted(TERMS, key=len, reverse=True):
        words = re.escape(term).replace(r"\ ", r"\s+")
        flags = re.I if term.islower() or " " in term else 0
        uses = list(re.finditer(rf"(?<![\w-]){words}s?(?![\w-])", prose, flags))
        if uses and TERMS[term] not in EVERYDAY:
            found[TERMS[term]] = min(found.get(TERMS[term], uses[0]), uses[0], key=lambda use: use.start())
        prose = re.sub(rf"(?<![\w-]){words}s?(?![\w-])", lambda match: re.sub(r"\S", "·", match[0]), prose, flags=flags)
    return found


# A percentage, a decimal, "n of m", a number of points.
CLAIM = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?: ?(%)| of (?:the |its )?(\d+)\b|( points?)\b)?(?!\w|[.,]?\d)")
NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?(?:e-?\d+)?)( ?%)?")
SOURCE = re.compile(r"\{(cite|doc|ref)|https?://|[GM]B of memory")  # the memory is rounded up
ARITHMETIC = re.compile(r"\(?\d[\d.() ×/+−]* = [\d.() ×/+−]*\d%?")  # a reader can check it


@every_chapter
def test_numbers_in_prose_were_computed_above(path):
    """Each stands in code, or in the output of the same section, maybe with more digits, or its paragraph has a source.

    This cannot tell whether the number is the one that the sentence means. It finds about every second wrong digit.
    """
    everything, shown, unknown = executed(path), [], []
    code = [found for cell in everything if cell.cell_type == "code" for found in numbers(cell.source.replace("_", ""))]
    for cell in everything:
        shown += numbers(printed(cell))
        said = cell.source if cell.cell_type == "markdown" else caption(cell)
        unknown += [claim[0] for claim in claims(said) if not is_known(claim, shown, code)]
        if cell.cell_type == "markdown" and re.search(r"^## (?!Recap)", cell.source, re.M):
            shown = []
    assert not unknown, f"{path.name}: print these numbers in a cell above, or name their source: {unknown}"


def numbers(text):
    """(value, kind) of each number; the kind is %, . for a decimal, or nothing for a whole number."""
    return [
        (float(n), "%" if percent else "." if re.search(r"\.|e-", n) else "") for n, percent in NUMBER.findall(text)
    ]


def claims(source):
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-|*]|\d+\.) )", source):
        prose = ARITHMETIC.sub(" ", re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", " ", paragraph))
        if not SOURCE.search(paragraph):
            yield from (claim for claim in CLAIM.finditer(prose) if any(claim.groups()[1:]) or "." in claim[1])


def is_known(claim, shown, code):
    value, percent, total, points = float(claim[1]), *claim.groups()[1:]
    kinds = {"%", "."} if percent or "." in claim[1] else {"%", ".", ""} if points else {""}
    scales = (1, 100) if percent or points else (1,)
    half = 0.5 * 10 ** -len(claim[1].partition(".")[2])

    def among(numbers, tolerance, kinds):
        return any(
            kind in kinds and abs((scale if kind == "." else 1) * number - value) <= tolerance + 1e-9
            for number, kind in numbers
            for scale in scales
        )

    of_those = total is None or any(number == float(total) for number, _ in shown + code)
    return of_those and (among(shown, half, kinds) or among(code, 0, kinds | {""} if percent else kinds))
