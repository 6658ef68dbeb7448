# Every target sets itself up in .venv; `make demo` and `make test` need nothing but Python >= 3.11.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test parity bench lint format types spell notebook check engines clean

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := $(VENV)/bin
ENGINES := espeak-ng libespeak-ng1 flite
# PyTorch without CUDA: make bench TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

help: ## lists the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

demo: $(VENV)/.demo ## streams the bundled recording through the model; writes out/
	$(BIN)/python -m experiments.converse

test: engines $(VENV)/.test ## runs the tests on the CPU
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest --numprocesses=2 --dist=loadscope

parity: $(VENV)/.test $(VENV)/.bench ## the model against an independent PyTorch implementation
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/test_torch_parity.py tests/pallas_kernels/test_torch_parity.py

bench: $(VENV)/.bench ## step, training and kernels beside PyTorch; writes out/*.json
	mkdir -p out
	$(BIN)/python -m experiments.bench_step --preset=demo --json=out/bench_step.json
	$(BIN)/python -m experiments.bench_train --preset=demo --json=out/bench_train.json
	$(BIN)/python -m pallas_kernels.bench --json=out/kernels.json --plot=out/kernels.png

lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## ruff: mends what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## pyrefly
	$(BIN)/pyrefly check

spell: $(VENV)/.dev ## codespell
	$(BIN)/codespell

notebook: $(VENV)/.dev ## executes the notebooks; writes them to out/
	mkdir -p out
	for name in inspect_session delegation; do \
		$(BIN)/jupytext --quiet --to py:percent --output - colab/$$name.ipynb | \
			diff -I '^#   ' - colab/$$name.py; \
		JAX_PLATFORMS=cpu $(BIN)/python -m nbconvert --to notebook --execute \
			--output-dir out colab/$$name.ipynb; \
	done

check: lint types spell ## lint, types and spelling

engines: ## installs the speech engines that sessions and tests are made with (Debian, Ubuntu)
	@if command -v espeak-ng >/dev/null && command -v flite >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(ENGINES); \
	else \
		echo "The speech engines are missing; install them first: sudo apt-get install $(ENGINES)" >&2; \
		exit 1; \
	fi

clean: ## removes .venv and out/
	rm -rf $(VENV) out

$(VENV)/.python:
	@[ -n "$(PYTHON)" ] || { echo "No Python >= 3.11 found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# One stamp per extra; a changed pyproject.toml installs again.
$(VENV)/.%: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[$*]'
	touch $@
