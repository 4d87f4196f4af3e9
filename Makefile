# Every target makes what it needs: system packages where it may, a virtual environment in .venv, the C core.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-quick check lab bench fuzz fresh gen clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.ready ## drive the embedded edu device from another process, step by step
	@echo "demo: a backend with model:edu and, in this process, an edu driver; messages over shared memory"
	@$(BIN)/pcisplit demo

test: $(VENV)/.ready-dev ## everything: unit, property, spec, sanitizers, two processes, real VFIO in the lab
	@tools/system-packages test
	@echo "test: all tests; those of the lab boot a Debian kernel under QEMU and use real VFIO in it"
	@$(BIN)/python -m pytest

test-quick: $(VENV)/.ready-dev ## what needs neither the lab nor further system packages, in less than a minute
	@$(BIN)/python -m pytest -m "not lab and not system and not slow"

check: $(VENV)/.ready-dev ## formatting, lint, types, generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pcisplit.gen --check

lab: $(VENV)/.ready-dev ## only the tests against real VFIO
	@tools/system-packages test
	@$(BIN)/python -m pytest -m lab

bench: $(VENV)/.ready-dev ## latency and throughput against the floor of this machine
	@$(BIN)/python bench/bench.py

fuzz: $(VENV)/.ready-dev ## libFuzzer on both ends of the rings: make fuzz SECONDS=600, both together
	@tools/system-packages test
	@$(BIN)/python -m tests.fuzz $(or $(SECONDS),600)

fresh: ## as root: the README's two commands on a bare Debian: make fresh SUITE=trixie [COMMAND="make demo"]
	@tools/system-packages fresh
	@$(PYTHON) tools/fresh $(or $(SUITE),bookworm) $(if $(COMMAND),"$(COMMAND)")

gen: $(VENV)/.ready-dev ## write the generated files anew
	@$(BIN)/python -m pcisplit.gen

clean: ## forget the virtual environment, builds and caches
	rm -rf $(VENV) .cache build *.egg-info pcisplit/_core*.so

CORE := pyproject.toml $(wildcard pcisplit/*.c pcisplit/*/*.[ch] pcisplit/*/*/*.[ch])

$(VENV)/.ready: $(CORE)
	@tools/system-packages build
	@echo "setup: virtual environment in $(VENV), pcisplit and its dependencies, the C core"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "setup: the tools of tests and checks"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
