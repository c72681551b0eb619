# `make help` lists the targets.
SHELL := /bin/bash
unexport PYTHONDONTWRITEBYTECODE # set on some machines: every process would compile torch and timm anew, ten seconds each
VENV ?= .venv
PY := $(VENV)/bin/python
EXTRAS ?= dev
STAMP := $(VENV)/.ready-$(EXTRAS)
COMPILED := $(VENV)/.compiled
SHARED ?= ../shared
IMAGENET ?= $(firstword $(wildcard data/imagenet $(SHARED)/data/nips17) data/imagenet)
BCCD ?= $(firstword $(wildcard data/bccd $(SHARED)/data/bccd) data/bccd)
CAMVID ?= $(firstword $(wildcard data/camvid $(SHARED)/data/camvid) data/camvid)
REDKITCHEN ?= $(firstword $(wildcard data/redkitchen $(SHARED)/data/redkitchen) data/redkitchen)
WEIGHTS ?= $(wildcard $(SHARED)/weights)
LLAVA_EVAL ?= data/llava_eval
PLACES := paths.llava_eval=$(LLAVA_EVAL) paths.imagenet=$(IMAGENET) paths.camvid=$(CAMVID) paths.bccd=$(BCCD) paths.redkitchen=$(REDKITCHEN) $(if $(WEIGHTS),paths.weights=$(WEIGHTS))
scale ?= tiny  # tiny: real weights, photographs; mini: embedded, offline; paper: ImageNet, ADE20K, Cityscapes
OPTIONS ?=  # of sweeps: "overrides=['device=cuda']"; of make speed: benchmark=equal model=deit_b rounds=21

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint app browser docs release doctor readings table1 table2 table3 table4 table5 table6 table7 table8 study search fig2 fig4a fig4b fig4c prune_and_merge masks fig5 matrices speed report clean

help: ## list the targets
	@grep -hE '^[a-z0-9_ -]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-42s %s\n", $$1, $$2}'

setup: $(STAMP) $(COMPILED) ## make .venv with uv, install the project, compile its operators (EXTRAS=dev,openmmlab for more)
$(COMPILED): $(wildcard ttf/ops/native/*.cpp ttf/ops/native/*.h) $(STAMP)
	$(PY) -m ttf.ops.native
	@touch $@
$(STAMP): pyproject.toml
	@test -x $(PY) || { command -v uv >/dev/null && uv venv --python 3.11 $(VENV); } || python3 -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(VENV)/bin/uv || $(PY) -m pip install --quiet uv
	PATH="$$PATH:$(VENV)/bin" uv pip install --python $(PY) -e '.[$(EXTRAS)]'
	@touch $@

demo: setup ## the main job on the embedded model, offline: outputs/demo/tokens.png and table.md
	$(PY) scripts/demo.py

test: setup ## all tests that this machine can run (those on real weights need ../shared)
	OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 TORCHINDUCTOR_VEC_ISA_OK=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: setup ## ruff, mypy, and whether numbers in README.md and docs are those of the rows
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(PY) scripts/report.py compare=true & $(VENV)/bin/mypy; types=$$?; wait $$! && exit $$types

browser: ## Debian's Chromium, for the test of the page
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -yqq --no-install-recommends chromium >/dev/null; } || echo "no Chromium to be had: the test of the page skips"

app doctor: setup ## the page to look at (http://127.0.0.1:7860); what is installed and found here, what each missing thing costs
	$(PY) scripts/$@.py $(PLACES) $(OPTIONS)

# A table or figure: measure what is missing and can be measured here, publish it, draw (scale=tiny, mini or paper).
SWEEP = $(PY) scripts/sweep.py table=$@ scale=$(strip $(scale)) publish=true $(PLACES) $(OPTIONS)

readings table3 table4 table5 table6 table7 table8 study search fig4a fig4b fig4c: setup ## a table or figure of sweeps (fig4c: Cityscapes)
	$(SWEEP)

fig4c: scale = paper
fig2: fig4a ## Fig. 2 shows the rows of Fig. 4a, and is drawn with it

table1 table2 prune_and_merge: setup ## the papers' lines; accuracy where data and weights are, costs from make speed
	$(PY) scripts/sweep.py table=$@ scale=paper publish=true $(PLACES) $(OPTIONS)

masks: setup ## predicted masks side by side, and where each method's differ from the uncompressed model's
	$(PY) scripts/masks.py figures=results/figures $(PLACES) $(OPTIONS)
fig5: setup ## Fig. 5: informative tokens and heat maps of W on photographs
	$(PY) scripts/visualize.py -m model=vit_ti_augreg,deit_ti limit=6 seed=3 pick=[2,3,5] figures=results/figures $(PLACES)
matrices: setup ## the W of each method side by side
	$(PY) scripts/matrices.py model=vit_ti_augreg figures=results/figures $(PLACES)

speed: setup ## all benchmarks of configs/tables/speed.yaml on this machine, with figures (half an hour); OPTIONS=benchmark=equal
	$(PY) scripts/benchmark.py table=speed $(OPTIONS)
	$(PY) scripts/figure.py figure=speed
	$(PY) scripts/figure.py figure=speed_tokens
GPU = PYTHONPATH=. PYTHONUNBUFFERED=1 $(if $(wildcard $(PY)),$(PY),python3)
speed-gpu: ## the contract of the kernels on this GPU, then its benchmarks: under 8 minutes, and goes on where it stopped
	$(GPU) scripts/contract.py jobs=8 || echo "The rows say which operators ran."
	$(GPU) scripts/benchmark.py table=speed_gpu jobs=12 minutes=5 $(OPTIONS)
	$(GPU) scripts/figure.py figure=speed_gpu
report: setup ## write the numbers of README.md and docs anew from rows
	$(PY) scripts/report.py
docs: setup ## the documentation site, in outputs/site
	$(PY) .ci/site.py
release: lint ## what stands against a tag: version, changelog, citation, numbers; a wheel that builds, in outputs/dist
	PATH="$$PATH:$(VENV)/bin" uv build -q --no-build-isolation --python $(PY) -o outputs/dist
	$(PY) .ci/release.py
clean: ## remove logs and caches, not results
	rm -rf outputs multirun .pytest_cache .ruff_cache .mypy_cache .hypothesis
