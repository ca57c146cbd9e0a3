# Two commands need nothing but Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
# The release that was tried; pip prefers its CPU build where the configured index offers one.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# The packages as one tree, which mypy and import-linter can read.
TYPES := build/types
FOLDERS := tasks pipelines engines optimizers tracking

.PHONY: setup demo test test-slow test-gpu check bench clean

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/colever sweep arithmetic

test: setup
	$(BIN)/python -m pytest -n 2

test-slow: setup
	$(BIN)/python -m pytest -m slow tests/slow

test-gpu: setup
	$(BIN)/python -m pytest -m gpu tests/gpu

check: setup
	$(BIN)/ruff check .
	rm -rf $(TYPES) && mkdir -p $(TYPES)/colever
	ln -s $(CURDIR)/core/* $(TYPES)/colever/
	for folder in $(FOLDERS); do ln -s $(CURDIR)/$$folder $(TYPES)/colever/$$folder; done
	PYTHONPATH=$(TYPES) $(BIN)/lint-imports
	MYPYPATH=$(TYPES) $(BIN)/mypy -p colever

bench: setup
	$(BIN)/python benchmarks/rollouts.py
	$(BIN)/python benchmarks/grpo_update.py

clean:
	rm -rf build .venv *.egg-info
