# The two commands of this repository: `make book` and `make test`. Each works alone from a fresh clone.
# A third, `make dist`, is for those who publish: it makes what a reader can take away.
# Another interpreter: `make book PYTHON=python3.12`. The newest versions instead of the pinned ones: `make test PINS=`.

PYTHON ?= python3
PINS ?= -c constraints.txt
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: book test serve dist clean

book: $(INSTALLED)
	@$(BIN)/python tools/build.py

test: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python tools/build.py
	$(BIN)/python -m pytest --durations=10

serve: book
	$(BIN)/python -m http.server --directory _build/html --bind 127.0.0.1 8000

dist: book
	@$(BIN)/python -m tools.dist

$(INSTALLED): pyproject.toml requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV): some minutes and some gigabytes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet $(PINS) -r requirements.txt -e .
	@touch $@

clean:
	rm -rf _build dist $(VENV) *.egg-info
