# `make demo` and `make test` first set up their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
TASK ?= deblur
# The torch version that the project is tested with. It is installed first, so that no dependency selects another one.
# On a machine without a GPU the CPU build saves gigabytes:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
# Processes that share the tests, each with one thread: make test WORKERS=8
WORKERS ?= 2
BIN = $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-all lint setup clean

demo: setup
	$(BIN)/python -m iclora_train conf=$(TASK)

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m "not gpu and not comfyui"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs shards build dist
