# Everything a fresh machine needs is make, Python >= 3.10 and a C++17 compiler.
# Installed once into $(VENV); a stamp is redone only when one of the files it depends on changes.

PYTHON ?= python3
# Not ?=: `make clean` would delete the folder that a variable of the shell names. `make VENV=DIR` does.
VENV   = .venv

# A plain `torch` on Linux brings gigabytes of CUDA along: without an NVIDIA GPU take the CPU build.
# Override with any requirement: make demo TORCH='torch>=2.6'
# Nor is there a use for our CUDA kernels then, should nvcc be about: they take a minute to build.
ifeq ($(shell uname -s)$(shell command -v nvidia-smi),Linux)
TORCH ?= torch==2.13.0+cpu
export UDP_NO_CUDA ?= 1
else
TORCH ?= torch==2.13.0
endif
# Asked second, where the configured package index has no such build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# Test files at a time; their threads share the processors, so those that wait for work must not spin.
JOBS   ?= 2

BIN    := $(VENV)/bin
# Python compiles what it imports; compiling all of torch beforehand would take a third of the install.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --no-compile
NATIVE := setup.py $(shell find csrc -type f ! -name '*.pyc')
CPP    := $(filter %.h %.hpp %.cpp %.cu %.cuh,$(shell find csrc -type f))

SHELL  := /bin/bash
# Two recipes at a time: the halves of an installation, below, then linters beside tests. Of several goals
# on one command line each may want what the one before it left, or removed: these come one by one.
ifeq ($(words $(MAKECMDGOALS)),1)
MAKEFLAGS += --jobs=2
endif

.DEFAULT_GOAL := help
.PHONY: help demo test pytest lint format bench prove gpu-check clean

help:  ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 18

demo: $(VENV)/.app $(VENV)/.native  ## install, protect the four photographs into demo/, with summary and picture
	@mkdir -p demo
	@set -o pipefail; $(BIN)/udp-fast protect examples/photos -o demo --overwrite \
	    --picture demo/before_after.png | tee demo/summary.txt

test: lint pytest  ## install with [test], lint, check types, run the tests

pytest: $(VENV)/.test $(VENV)/.native  ## the tests alone
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test  ## ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(VENV)/.test  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.bench $(VENV)/.native  ## time the ops, print the table, write docs/performance.md
	$(BIN)/python -m benchmarks --write docs/performance.md

prove: $(VENV)/.test  ## compile every GPU kernel, inspect the machine code, write docs/kernel-proof.md; no GPU needed
	$(BIN)/python -m benchmarks.proof --write docs/kernel-proof.md

gpu-check: $(VENV)/.gpu $(VENV)/.native-gpu  ## on a machine with a GPU: its tests and times, into gpu-report/
	$(BIN)/python -m benchmarks.gpu_check

clean:  ## remove the environment and everything built or written by these targets
	rm -rf $(VENV) demo gpu-report .cache build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find udp_fast \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +

# What takes long to install is two halves that need each other in nothing, so they are made at once:
# torch and other packages, which keep one processor busy, and the compiled kernels.

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed, $(PYTHON) is " + sys.version)'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@# The pip that an older Python brings looks three times as long for what to install.
	$(INSTALL) --quiet --upgrade pip || true
	@touch $@

# (An environment that has its torch keeps it.)
$(VENV)/.torch: | $(VENV)/.pip
	$(INSTALL) '$(TORCH)' || $(INSTALL) --index-url $(TORCH_INDEX) '$(TORCH)'
	@touch $@

# Editable: the sources in this checkout are what runs, and the kernels among them, once there are any.
$(VENV)/.app: $(VENV)/.torch pyproject.toml setup.py
	UDP_NO_NATIVE=1 $(INSTALL) --editable .
	@touch $@

$(VENV)/.test $(VENV)/.bench: $(VENV)/.%: $(VENV)/.torch pyproject.toml setup.py
	UDP_NO_NATIVE=1 $(INSTALL) --editable '.[$*]'
	@touch $@ $(VENV)/.app

$(VENV)/.gpu: $(VENV)/.torch pyproject.toml setup.py
	UDP_NO_NATIVE=1 $(INSTALL) --editable '.[test,bench,triton]'
	@touch $@ $(VENV)/.app

# What pip would build with, in an environment of its own.
TOOLS  := $(shell sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr ',' ' ')
$(VENV)/.tools: pyproject.toml | $(VENV)/.pip
	$(INSTALL) --quiet --upgrade --target $(VENV)/tools $(TOOLS)
	@touch $@

# The kernels for this machine: for its processor, and for its GPU where there is nvcc, which may have come
# since others built without. All of them, as pip would: setuptools by itself keeps what is newer than its
# sources, however that was built. Without site-packages (-S), where one setuptools may be giving way to
# another just then.
$(VENV)/.native $(VENV)/.native-gpu: $(VENV)/.tools $(NATIVE)
	PYTHONPATH='$(abspath $(VENV))/tools' $(BIN)/python -S setup.py --quiet build_ext --inplace --force
	@test "$$UDP_NO_NATIVE" = 1 || touch $@
