"""The front page: its replies are the model's, the last by its own line of code; its numbers are the records'."""

import re

import pytest
from bs4 import BeautifulSoup

from helpers import minimmar
from helpers.evaluate import read_run
from helpers.mata import MATA
from helpers.models import load_audio, load_lalm
from helpers.prompts import multiple_choice
from helpers.statistics import accuracy_interval, mcnemar
from tools import build

PAGE = (build.ROOT / "book" / "index.md").read_text("utf-8")
ITEM = minimmar.row("first sound", "dev", 0)  # the Quickstart's


@pytest.fixture(scope="module")
def replies(tmp_path_factory):
    """What the model says to the clip: without the hint, with it, and under the page's own line of code."""
    clip = tmp_path_factory.mktemp("clip") / "clip.wav"
    minimmar.write_clip(clip, minimmar.render_item(ITEM["kind"], "dev", ITEM["index"]))
    lalm = load_lalm("tiny")
    audio = load_audio(clip, lalm.sampling_rate)
    prompts = [
        multiple_choice(ITEM["question"], ITEM["choices"], hint=hint) for hint in (None, ITEM["misleading_hint"])
    ]
    assert "Hint: the answer is {glue:text}" in PAGE and f"Hint: the answer is {ITEM['misleading_hint']}." in prompts[1]
    plain, inputs = (lalm.prepare([prompt], [audio]) for prompt in prompts)
    scope = {"lalm": lalm, "inputs": inputs, "MATA": MATA}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], scope)
    return lalm.generate(plain) + lalm.generate(inputs) + scope["replies"]


def test_the_story_is_true(replies):
    assert replies == [ITEM["answer"], ITEM["misleading_hint"], ITEM["answer"]]
    assert f'item.id == "{ITEM["id"]}"' in (build.NOTEBOOKS / "01-quickstart.ipynb").read_text("utf-8").replace(
        "\\", ""
    )


def test_the_built_page_tells_it(replies):
    if not build.STAMP.exists():
        pytest.skip("the book is not built: run `make book` first")
    article = BeautifulSoup((build.HTML / "book" / "index.html").read_text("utf-8"), "html.parser").article
    assert [quote.text.strip() for quote in article.select("blockquote")] == replies
    assert ITEM["question"] in article.text and f"the answer is {ITEM['misleading_hint']}." in article.text
    assert len(article.select("audio")) == 1


def test_its_numbers_are_those_of_the_records():
    names = ("no-hint", "misleading-hint", "misleading-mata")
    runs = [read_run(build.ROOT / "results" / f"{name}.jsonl").records for name in names]
    right = [[run[id]["exact_option"] is True for id in sorted(runs[0])] for run in runs]
    page = " ".join(PAGE.split())
    assert f"Of the {len(right[0])} questions of the test split" in page
    for correct in right:
        low, high = accuracy_interval(correct)
        shown = rf"{sum(correct)} [a-z ]+\({sum(correct) / len(correct):.1%}, (95% interval )?{low:.1%} to {high:.1%}\)"
        assert re.search(shown, page), shown
    test = mcnemar(right[1], right[2])
    assert f"{test.won} won, {test.lost} lost, p < 0.001" in page and test.p < 0.001
