# `make help` lists the targets.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
EXTRAS ?= dev
STAMP := $(VENV)/.ready-$(EXTRAS)
SHARED ?= ../shared
IMAGENET ?= $(firstword $(wildcard data/imagenet $(SHARED)/data/nips17) data/imagenet)
WEIGHTS ?= $(wildcard $(SHARED)/weights)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint doctor readings table1 clean

help: ## list the targets
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv with uv and install the project (EXTRAS=dev,sweep for more)

$(STAMP): pyproject.toml
	@test -x $(PY) || { command -v uv >/dev/null && uv venv --python 3.11 $(VENV); } || python3 -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(VENV)/bin/uv || $(PY) -m pip install --quiet uv
	PATH="$$PATH:$(VENV)/bin" uv pip install --python $(PY) --compile-bytecode -e '.[$(EXTRAS)]'
	@touch $@

demo: setup ## the main job on the embedded model, offline: results/demo/tokens.png and table.md
	$(PY) scripts/demo.py

test: setup ## all tests that this machine can run (those on real weights need ../shared)
	$(PY) -m pytest

lint: setup ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

doctor: setup ## what is installed, what data and weights are found, what each missing thing costs
	$(PY) scripts/doctor.py paths.imagenet=$(IMAGENET) $(if $(WEIGHTS),paths.weights=$(WEIGHTS))

readings: setup ## every reading of the method on IMAGENET with WEIGHTS (default: those in $(SHARED)); skips what is done
	$(PY) scripts/eval.py -m 'experiment=glob(readings/*)' paths.imagenet=$(IMAGENET) $(if $(WEIGHTS),paths.weights=$(WEIGHTS))
	$(PY) scripts/table.py table=readings

table1: setup ## Table 1, training-free rows, on IMAGENET with weights from WEIGHTS or the hub; skips what is done
	$(PY) scripts/eval.py -m 'experiment=glob(table1/*)' paths.imagenet=$(IMAGENET) $(if $(WEIGHTS),paths.weights=$(WEIGHTS))
	$(PY) scripts/table.py table=table1

clean: ## remove logs and caches, not results
	rm -rf outputs multirun .pytest_cache .ruff_cache .mypy_cache .hypothesis
