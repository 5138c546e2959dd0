# Everything runs in .venv, which `make venv` creates; nothing else has to be installed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Benchmarks run the package as users get it, compiled where there is a C compiler, in an environment of its own.
BENCH := .venv-bench/bin
BENCH_STAMP := .venv-bench/.installed

.PHONY: venv demo test check bench
.DEFAULT_GOAL := test

venv: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m compileall -q src
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/spine.py

test: $(STAMP)
	$(BIN)/python -m pytest -q

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BENCH_STAMP): pyproject.toml hatch_build.py $(shell find src -name '*.py')
	test -x $(BENCH)/python || $(PYTHON) -m venv .venv-bench
	RASKID_COMPILE=0 $(BENCH)/python -m pip install --quiet --disable-pip-version-check '.[bench]'
	$(BENCH)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps .
	touch $@

bench: $(BENCH_STAMP)
	$(BENCH)/python -m benchmarks.messages
	$(BENCH)/python -m benchmarks.tasks
	$(BENCH)/python -m benchmarks.reactions
