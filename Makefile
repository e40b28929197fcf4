# Two commands: `make demo` and `make test`. Each makes .venv from constraints.txt first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-vllm lint types unit clean

demo: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/steerback demo

test: lint types unit

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

unit: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# the vLLM engine, in an environment of its own
test-vllm:
	PYTHON=$(PYTHON) .ci/vllm

clean:
	rm -rf .venv .venv-vllm .mypy_cache .ruff_cache .pytest_cache
