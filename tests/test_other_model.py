"""Every chapter on another model, which the environment variable `LALM` names: none is tied to the small one.

The other model is a random Qwen2.5-Omni (for one chapter, a random Qwen2-Audio). It has another class than the small
model, other numbers of layers and heads and twice as many audio tokens a second, and its replies are noise. A chapter
must run on it to the end, as it stands: what its cells assert about the small model's numbers, they must leave out
elsewhere.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from random_models import save, word_tokenizer

from helpers import benchmarks
from helpers.benchmarks import load_benchmark
from helpers.fewshot import fewshot_items
from helpers.models import load_lalm
from helpers.provenance import weights_checksum
from tools import build

NOTEBOOKS = sorted(build.NOTEBOOKS.glob("*.ipynb"))
# It takes the encoder of Qwen2-Audio apart, module by module, so here it runs on a random model of that class.
FAMILIES = {"02-from-sound-wave-to-token": "qwen2_audio"}

# Goes before the first cell: notes each model that the chapter loads.
NOTE = """
from helpers import models as _models
from helpers.provenance import weights_checksum as _checksum
_load, _loaded = _models.load_lalm, set()

def _noted(*args, **kwargs):
    found = _load(*args, **kwargs)
    _loaded.add((found.name, _checksum(found.model)))
    return found

_models.load_lalm = _noted
"""
# Goes after the last one.
CHECK = """
assert _loaded == {{({name!r}, {checksum!r})}}, f"models that were loaded: {{_loaded}}"
assert lalm.name == {name!r}, f"at its end the chapter works with {{lalm.name}}"
"""


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """Chapter -> its run, to be waited for; two chapters run at a time.

    Each of the two has a cache folder of its own, with links to the clips: two chapters must not write the same head
    vectors at once, and those of this model are of no use to the reader.
    """
    omni = save("qwen2_5_omni", tmp_path_factory.mktemp("other-model"), tokenizer=word_tokenizer)
    caches = SimpleQueue()
    for _ in range(2):
        caches.put(linked_cache(tmp_path_factory.mktemp("cache")))

    def run(path):
        cache = caches.get()
        try:
            family = FAMILIES.get(path.stem)
            folder = save(family, tmp_path_factory.mktemp(family)) if family else omni
            return execute(path, str(folder), cache)
        finally:
            caches.put(cache)

    chosen = [item.callspec.params["path"] for item in request.session.items if "runs" in item.fixturenames]
    pool = ThreadPoolExecutor(2)
    yield {path: pool.submit(run, path) for path in chosen}
    pool.shutdown(cancel_futures=True)


def linked_cache(cache: Path) -> Path:
    """Link to the generated clips, which are the same for every model."""
    splits = [load_benchmark("minimmar", split=split) for split in ("test", "dev")]
    splits += [fewshot_items(task, split) for task in ("sounds", "spoofing") for split in ("train", "test")]
    for name, part in {Path(items[0].audio).relative_to(benchmarks.CACHE).parts[:2] for items in splits}:
        (cache / name).mkdir(exist_ok=True)
        (cache / name / part).symlink_to(benchmarks.CACHE / name / part)
    return cache


def execute(path: Path, model: str, cache: Path) -> str:
    """Run a notebook on a model; return which cell failed, and how, or nothing."""
    notebook = nbformat.read(path, as_version=4)
    checksum = weights_checksum(load_lalm(model, device="cpu").model)
    own = {"note": NOTE, "check": CHECK.format(name=model, checksum=checksum)}
    note, check = (nbformat.v4.new_code_cell(source, id=id) for id, source in own.items())
    notebook.cells = [note, *notebook.cells, check]
    settings = {"LALM": model, "LALM_LISTENING_CACHE": str(cache), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    place = {"metadata": {"path": build.NOTEBOOKS}}
    try:
        NotebookClient(notebook, timeout=600, resources=place).execute(env=os.environ | build.ENVIRONMENT | settings)
    except CellExecutionError:
        errors = [(c.id, o) for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
        cell, error = errors[-1]
        trace = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback))  # without colours
        return "\n".join([f"{path.name} fails on another model, in cell {cell}:", *trace.splitlines()[-20:]])
    return ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_on_another_model(path, runs):
    failure = runs[path].result()
    assert not failure, failure


def test_the_variable_is_read_in_one_place():
    code = {
        path.name: path.read_text("utf-8")
        for path in [*build.ROOT.glob("helpers/*.py"), *build.ROOT.glob("tools/*.py")]
    }
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        code[path.name] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    readers = [name for name, source in code.items() for _ in re.findall(r"""["']LALM["']""", source)]
    assert readers == ["models.py"]
