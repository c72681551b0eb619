# `make help` lists the targets.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
EXTRAS ?= dev
STAMP := $(VENV)/.ready-$(EXTRAS)
COMPILED := $(VENV)/.compiled
SHARED ?= ../shared
IMAGENET ?= $(firstword $(wildcard data/imagenet $(SHARED)/data/nips17) data/imagenet)
WEIGHTS ?= $(wildcard $(SHARED)/weights)

comma := ,
MODEL ?= deit_s
COSTS ?=  # of tables 1 and 2; on a GPU: batch=[256] dtype=bfloat16 modes=[eager,compiled]

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint doctor readings table1 table2 table6 table7 table8 study curves fig2 fig4a fig4b fig4c masks fig5 matrices speed clean .sweep-readings .sweep-table6 .sweep-table7 .sweep-table8 .sweep-study .sweep-curves .sweep-fig4b .sweep-fig4c

help: ## list the targets
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) $(COMPILED) ## make .venv with uv, install the project, compile its operators (EXTRAS=dev,openmmlab for more)

$(COMPILED): $(wildcard ttf/ops/native/*.cpp ttf/ops/native/*.h) $(STAMP)
	$(PY) -m ttf.ops.native
	@touch $@

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
	$(PY) scripts/doctor.py $(PLACES)

# Experiments run at one of three scales: tiny (real weights, photographs), mini (embedded, offline), paper (ImageNet).
scale ?= tiny
MODELS_mini := vit_mini
MODELS_tiny := vit_ti_augreg,deit_ti
MODELS_paper := deit_s
MODELS := $(MODELS_$(scale))
HALF_mini := 150
HALF_tiny := 500
HALF_paper := 25000
HALF := $(HALF_$(scale))
PLACES := paths.imagenet=$(IMAGENET) $(if $(WEIGHTS),paths.weights=$(WEIGHTS))
DATA := $(if $(filter mini,$(scale)),task.data.scenes.length=300,$(PLACES))
EVAL := $(PY) scripts/eval.py -m model=$(MODELS) $(DATA) throughput.batch_size=0
READINGS := method=paper,best_reading
RATIOS ?= 0.3,0.45,0.6,0.7,0.8,0.9
TOME_R ?= 2,4,7,11,13,16,20
DIFFRATE_mini := method.model=ViT-T-DeiT method.target=0.6,0.7,0.8,0.9,1.0
DIFFRATE_tiny := $(DIFFRATE_mini)
DIFFRATE_paper := method.model=ViT-S-DeiT method.target=2.3,2.5,2.7,2.9,3.1
CONFIRMED := study/default,study/informative,study/late_4_6_8,study/late_4_6_8_10,study/feature_xk
SHOWN := models=[$(MODELS)] suffix=$(if $(filter tiny,$(scale)),,_$(scale))

# Segmentation: Segmenter-L has 24 blocks, the models of the other scales have 12, with places in proportion.
CAMVID ?= $(firstword $(wildcard data/camvid $(SHARED)/data/camvid) data/camvid)
SEGMENTER_mini := segmenter_mini
SEGMENTER_tiny := segmenter_ti_camvid
SEGMENTER_paper = $(if $(findstring fig4c,$@),segmenter_l_cityscapes,segmenter_l)
SEGMENTER = $(SEGMENTER_$(scale))
SEGMENT = model=$(SEGMENTER) paths.camvid=$(CAMVID) $(if $(WEIGHTS),paths.weights=$(WEIGHTS))
DENSE = $(PY) scripts/eval.py -m $(SEGMENT) throughput.batch_size=0 on_missing=skip
COUNT = $(PY) scripts/count.py -m $(SEGMENT)
DENSE_RATIOS ?= 0.5,0.6,0.7,0.8,0.9
PEER_RATIOS ?= 0.5,0.7,0.8,0.9
12_BLOCKS := $(filter-out paper,$(scale))
EVIT_AT := 'blocks=[3,6,9]'
EVERY := 'blocks=[0,1,2,3,4,5,6,7,8,9,10,11]'
place = $(if $(12_BLOCKS),'blocks=[$(lastword $(subst :, ,$(1)))]')

# Which sweeps are complete, by content: configs, names of rows, command. Hydra needs a quarter of a second to skip a row.
SWEPT := results/runs/.swept
KEY = { find configs -name '*.yaml' | LC_ALL=C sort | xargs cat; (cd results/runs && LC_ALL=C ls | grep json); \
  echo '$@ $(EVAL) $(RATIOS) $(TOME_R) $(DIFFRATE_$(scale)) $(CONFIRMED) $(SEGMENTER) $(DENSE_RATIOS) $(PEER_RATIOS)'; } | sha256sum | cut -c1-16
define sweep
@if grep -qsx "$$($(KEY))" $(SWEPT); then echo "$@: all rows are there"; \
else $(MAKE) --no-print-directory .sweep-$@ && $(KEY) >> $(SWEPT); fi
endef

readings: setup ## every reading of the method, alone and together; skips what is done (scale=tiny, mini or paper)
	$(sweep)
	$(PY) scripts/table.py table=readings $(SHOWN)

.sweep-readings:
	$(EVAL) 'experiment=glob(readings/*)'

table6: setup ## Table 6: kappa and tau, in the reading that reproduces best
	$(sweep)
	$(PY) scripts/table.py table=table6 $(SHOWN)

.sweep-table6:
	$(EVAL) experiment=readings/none
	$(EVAL) 'experiment=glob(table6/*)' method=best_reading

table7: setup ## Table 7: scaling adaptation and assignment normalisation
	$(sweep)
	$(PY) scripts/table.py table=table7 $(SHOWN)

.sweep-table7:
	$(EVAL) experiment=readings/none
	$(EVAL) 'experiment=glob(table7/*)' $(READINGS)

table8: setup ## Table 8: selection criterion and similarity
	$(sweep)
	$(PY) scripts/table.py table=table8 $(SHOWN)

.sweep-table8:
	$(EVAL) experiment=readings/none
	$(EVAL) 'experiment=glob(table8/*)' $(READINGS)

study: setup ## beyond the paper: what lowers KL at equal GMACs, chosen on half of the images, confirmed on the others
	$(sweep)
	$(PY) scripts/table.py table=study $(SHOWN)

.sweep-study:
	$(EVAL) experiment=readings/none limit=$(HALF)
	$(EVAL) 'experiment=glob(study/*)' limit=$(HALF)
	$(EVAL) experiment=readings/none
	$(EVAL) experiment=$(CONFIRMED)

curves: setup ## the rows of Fig. 2 and Fig. 4a: all training-free methods over their budgets
	$(sweep)

.sweep-curves:
	$(EVAL) experiment=readings/none
	$(EVAL) 'experiment=glob(fig4a/*)' ratio=$(RATIOS)
	$(EVAL) 'experiment=glob(fig4a_coarse/*)' ratio=0.45,0.7,0.9
	$(EVAL) 'experiment=glob(fig4a_grid/*)' ratio=0.45,0.7,0.9
	$(EVAL) 'experiment=glob(fig4a_steps/*)' schedule.r=11,16,20
	$(EVAL) 'experiment=glob(fig4a_tome/*)' schedule.r=$(TOME_R)
	$(EVAL) 'experiment=glob(fig4a_diffrate/*)' $(DIFFRATE_$(scale))
	$(EVAL) 'experiment=glob(fig4a_prune_and_merge/*)' method.calibrate.keep_rate=0.4,0.6,0.8

fig2: curves ## Fig. 2: class-token error against accuracy, over methods and ratios
	$(PY) scripts/figure.py figure=fig2 $(SHOWN)

fig4a: curves ## Fig. 4a: accuracy and KL against GMACs
	$(PY) scripts/figure.py figure=fig4a $(SHOWN)

# $(1): the script with its options, $(2): the figure, $(3): numbers of full blocks of Hourglass, and where that is in 12.
define dense
$(1) experiment=$(2)/none
$(1) 'experiment=glob($(2)/ours*)' ratio=$(DENSE_RATIOS)
$(1) experiment=$(2)/evit ratio=$(PEER_RATIOS) $(if $(12_BLOCKS),$(EVIT_AT))
$(1) experiment=$(2)/tome_dense ratio=$(PEER_RATIOS) $(if $(12_BLOCKS),$(EVERY))
$(foreach pair,$(3),$(1) experiment=$(2)/hourglass_$(firstword $(subst :, ,$(pair))) $(call place,$(pair)) &&) true
endef

# A temperature for small models, at the budgets of the published one.
define fitted
$(DENSE) experiment=fig4b/hourglass_fitted 'blocks=[9],[7],[4]'
$(DENSE) experiment=fig4b/hourglass_fitted 'blocks=[3]' ratio=0.2501
endef

fig4b: setup ## Fig. 4b: mIoU and KL against GMACs, Segmenter-L on ADE20K (scale=tiny: CamVid, mini: scenes)
	$(sweep)
	$(PY) scripts/figure.py figure=$@ models=[$(SEGMENTER)] suffix=$(if $(filter tiny,$(scale)),,_$(scale))

fig4c: setup ## Fig. 4c: the same on Cityscapes
	$(sweep)
	$(PY) scripts/figure.py figure=$@ models=[$(SEGMENTER)] suffix=$(if $(filter tiny,$(scale)),,_$(scale))

.sweep-fig4b:
	$(if $(12_BLOCKS),,$(call dense,$(COUNT),fig4b,16 10 8))
	$(call dense,$(DENSE),fig4b,16:9 16:7 10:4 8:3)
	$(if $(12_BLOCKS),$(fitted))

.sweep-fig4c:
	$(if $(12_BLOCKS),,$(call dense,$(COUNT),fig4c,18 12 10))
	$(call dense,$(DENSE),fig4c,18:8 12:5 10:4)

masks: setup ## predicted masks side by side, and where each method's differ from the uncompressed model's
	$(PY) scripts/masks.py $(SEGMENT)

fig5: setup ## Fig. 5: informative tokens and heat maps of W on photographs
	for model in $(subst $(comma), ,$(MODELS)); do $(PY) scripts/visualize.py model=$$model limit=6 seed=3 pick=[2,3,5] \
	  $(DATA) || exit; done

matrices: setup ## the W of each method side by side
	$(PY) scripts/matrices.py model=$(firstword $(subst $(comma), ,$(MODELS))) $(DATA)

SPEED ?=  # rounds=21 seconds=null for less noise, rounds=5 seconds=5 for less time; dtype=bfloat16; modes=[eager,compiled,onnx]

speed: setup ## speed: ours, ToMe, EViT at equal GMACs; every method; 197 to 4097 tokens; figures (MODEL=deit_s, ten minutes)
	$(PY) scripts/benchmark.py --config-name=speed model=$(MODEL) $(SPEED)
	$(PY) scripts/benchmark.py --config-name=speed_methods model=$(MODEL) $(SPEED)
	$(PY) scripts/benchmark.py --config-name=speed_tokens model=$(MODEL) $(SPEED)
	$(PY) scripts/benchmark.py --config-name=speed_vit_l $(SPEED)
	$(PY) scripts/figure.py figure=speed
	$(PY) scripts/figure.py figure=speed_tokens

define zoo
$(PY) scripts/benchmark.py --config-name=costs table=$@ $(COSTS)
$(PY) scripts/eval.py -m 'experiment=glob($@/*)' on_missing=skip throughput.batch_size=0 $(PLACES)
$(PY) scripts/table.py table=$@ $(PLACES)
endef

table1: setup ## Table 1: costs on any machine, accuracy where ImageNet and weights are found; skips what is done
	$(zoo)

table2: setup ## Table 2: the same for T2T-ViT, PS-ViT and LV-ViT
	$(zoo)

clean: ## remove logs and caches, not results
	rm -rf outputs multirun .pytest_cache .ruff_cache .mypy_cache .hypothesis
