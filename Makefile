# What make needs it installs into an environment that it makes itself, .venv; nothing else is changed.
# Runs and tables (demo, sweep, compare, studies, paper) use a vshift that is installed already, if any.
PYTHON  ?= python3
VENV    ?= .venv
# Extra arguments for pip, for instance --extra-index-url with PyTorch's CPU-only index.
PIP_ARGS ?=
EXTRAS  ?= dev
RUNS    ?= runs
# Runs at a time; default: one per GPU, or one without GPUs.
JOBS    ?=
CONFIGS ?= configs/quick
SEEDS   ?=
KILLS   ?= 200
GENERATED ?= 10000
SEED    ?= 0
# Options for every study, for instance STUDY_SETS="--set 'data={name: imagefolder, root: …}'"
STUDY_SETS ?=
STUDIES ?= $(sort $(wildcard configs/studies/*.yaml))
# make paper: which of table3 figure4 table4 table6, of which networks, on cifar10 or cifar100;
# PAPER_ARGS are further options of the sweep, for instance --dry-run or --shard 1/4.
TABLES ?= table3
NETWORKS ?= preresnet164 resnext29 wrn28-10 densenet100
DATA ?= cifar10
PAPER_ARGS ?=
BENCH_ARGS ?= --networks preresnet-20 --noise none,dropout,gaussian,uniform --peers
# make gpu installs nothing: the machine may have no network, but its own PyTorch.
GPU_PYTHON ?= $(or $(wildcard $(VENV)/bin/python),$(PYTHON))
GPU_OUT ?= benchmarks/results/gpu
DATA_ROOT ?=
AT_A_TIME = $(if $(JOBS),--jobs $(JOBS))
# Only in an environment that make made.
READY   := $(VENV)/.ready
OWN     := $(VENV)/bin/vshift
# A vshift that somebody else installed: in VENV, or on the PATH. (`|| true` lets a shell find it.)
FOUND   := $(if $(wildcard $(READY)),,$(or $(wildcard $(OWN)),$(shell command -v vshift || true)))
VSHIFT  := $(or $(FOUND),$(OWN))
RUNS_IN := $(if $(FOUND),,$(READY))
FAST    := $(addprefix tests/,auditing/test_audit.py auditing/test_exported.py auditing/test_probe.py \
  auditing/test_recalibrate.py cli/test_compare.py cli/test_main.py cli/test_recalibrate.py \
  cli/test_train.py compare/test_statistics.py compare/test_table.py config/test_load.py \
  config/test_problems.py kernels/test_functions.py kernels/test_modules.py live/test_tensorboard.py \
  networks/test_build.py report/test_charts.py report/test_figures.py runs/test_folder.py runs/test_frames.py \
  shift/test_recalibration.py shift/test_stats.py sweep/test_slurm.py train/test_checkpointer.py \
  train/test_loop.py train/test_optimizer.py train/test_recalibrate.py)

.DEFAULT_GOAL := help
.PRECIOUS: $(READY)
.PHONY: help setup demo test fast soak lint sweep compare studies paper bench gpu clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with vshift and its development tools

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vshift needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@[ ! -e $(VENV) ] || [ -e $@ ] || \
	  { echo "make did not make $(VENV), and installs nothing there. Write make VENV=.venv-make $(MAKECMDGOALS), or, if it has all that make needs, touch $@" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch -t 200001010000 $@  # its own from now on, and not ready until the next line succeeds
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(RUNS_IN)  ## train four small configs, two seeds each, on drawn images and compare them
	$(VSHIFT) sweep configs/demo --jobs 2 --runs-dir $(RUNS)/demo

test: $(READY)  ## run the whole test suite
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

fast: $(READY)  ## run the tests of what everybody uses: train, resume, compare, recalibrate, audit
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m 'not slow' $(FAST)

slurm-test: $(READY)  ## test sweeps on a real Slurm on this machine; as root, installs slurm-wlm if missing
	tests/slurm/cluster.sh start
	@eval "$$(tests/slurm/cluster.sh env)"; code=0; \
	VSHIFT_REQUIRE_SLURM=1 $(VENV)/bin/python -m pytest tests/slurm || code=$$?; \
	tests/slurm/cluster.sh stop; exit $$code

soak: $(READY)  ## kill small runs at KILLS random moments, resume them, compare every bit; train GENERATED configs
	KILLS=$(KILLS) SEED=$(SEED) GENERATED=$(GENERATED) $(VENV)/bin/python -m pytest tests/soak -s

lint: $(READY)  ## check style and types
	$(VENV)/bin/ruff check vshift tests benchmarks
	$(VENV)/bin/ruff format --check vshift tests benchmarks
	$(VENV)/bin/mypy

sweep: $(RUNS_IN)  ## train CONFIGS (files or folders) with SEEDS, JOBS at a time, skipping finished runs
	$(VSHIFT) sweep $(CONFIGS) $(foreach s,$(SEEDS),--seed $(s)) $(AT_A_TIME) --runs-dir $(RUNS)

compare: $(RUNS_IN)  ## print the table of all runs under RUNS
	$(VSHIFT) compare $(RUNS)

studies: $(RUNS_IN)  ## run every study of configs/studies with STUDY_SETS, JOBS runs at a time, and print its table
	@failed=0; for file in $(STUDIES); do \
	  study=$$(basename $$file .yaml); echo; echo "## $$study"; \
	  $(VSHIFT) sweep $$file $(STUDY_SETS) $(AT_A_TIME) --runs-dir $(RUNS)/studies/$$study || failed=1; \
	done; exit $$failed

paper: $(RUNS_IN)  ## run the paper's TABLES with its NETWORKS on DATA, five seeds each (docs/paper.md)
	$(VSHIFT) sweep $(foreach t,$(TABLES),$(foreach n,$(NETWORKS),configs/paper/$(t)-$(n).yaml)) \
	  --set data.name=$(DATA) $(AT_A_TIME) $(PAPER_ARGS) --runs-dir $(RUNS)/paper/$(DATA)
	@if [ -d $(RUNS)/paper ]; then \
	  for table in $(TABLES); do $(VSHIFT) compare $(RUNS)/paper --view $$table || exit; done; fi

bench: $(READY)  ## measure training speed with BENCH_ARGS, save it in benchmarks/results, write the table
	$(OWN) bench $(BENCH_ARGS) --json benchmarks/results
	$(VENV)/bin/python -m benchmarks.render

gpu:  ## on a machine with a GPU: its tests, the bench, a short study (on DATA_ROOT), in 9 minutes
	@$(GPU_PYTHON) -m benchmarks.gpu --out '$(GPU_OUT)' $(if $(DATA_ROOT),--data-root '$(DATA_ROOT)')

clean:  ## remove the environment that make made, and caches, but not the runs
	[ ! -e $(READY) ] || rm -rf $(VENV)
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
