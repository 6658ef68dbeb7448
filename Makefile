# Every target installs its packages in .venv; `make demo` and `make test` need only Python >= 3.11.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo talk clients browser page test parity voices bench lint format types spell wheel notebook check engines chromium clean

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := $(VENV)/bin
# Compilation is most of the tests' time, and a third of it without optimisation. In one piece it
# keeps the bits of an operation in programs of different sizes.
UNOPTIMISED := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false \
	--xla_cpu_parallel_codegen_split_count=1
PYTEST := JAX_PLATFORMS=cpu $(BIN)/python -m pytest --numprocesses=2 --dist=loadscope --max-worker-restart=0
ENGINES := espeak-ng libespeak-ng1 flite
# PyTorch without CUDA: make bench TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

help: ## lists the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

demo: $(VENV)/.demo ## streams the bundled recording through the demo's models; writes out/
	$(BIN)/python -m experiments.converse

talk: $(VENV)/.serve ## serves the demo pair and a page: talk to it at http://localhost:8123
	$(BIN)/python -m experiments.serve --rows=2 --folder=out/sessions

clients: $(VENV)/.clients ## talks through the clients of OpenAI, Pipecat and LiveKit, a minute each
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/clients

browser: chromium $(VENV)/.browser ## talks to the page in Chromium; writes out/browser.json and out/page.png
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/browser/test_latency.py
	JAX_PLATFORMS=cpu $(BIN)/python -m experiments.browser

# Delays need idle cores; `make browser` has them.
page: chromium $(VENV)/.browser ## tests the page in Chromium, a minute
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/browser --ignore=tests/browser/test_latency.py

test: engines $(VENV)/.test ## runs the tests on the CPU
	XLA_FLAGS="$(UNOPTIMISED)" $(PYTEST) -m "not optimised"
	$(PYTEST) -m optimised $$(grep -rl --include='test_*.py' optimised tests)

parity: $(VENV)/.test $(VENV)/.parity ## compares with independent implementations: PyTorch, librosa
	$(PYTEST) $$(find tests -name 'test_*_parity.py')

voices: engines $(VENV)/.test $(VENV)/.voices ## tests the natural voices
	$(PYTEST) tests/data/test_natural_voices.py

bench: $(VENV)/.bench ## times step, training and kernels, also in PyTorch; writes out/*.json
	mkdir -p out
	$(BIN)/python -m experiments.bench_step --preset=demo --json=out/bench_step.json
	$(BIN)/python -m experiments.bench_train --preset=demo --json=out/bench_train.json
	$(BIN)/python -m pallas_kernels.bench --json=out/kernels.json --plot=out/kernels.png

lint: $(VENV)/.dev ## checks rules and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## formats with ruff, and fixes rules where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## checks types with pyrefly
	$(BIN)/pyrefly check

spell: $(VENV)/.dev ## checks spelling with codespell
	$(BIN)/codespell

wheel: $(VENV)/.python ## builds the wheel in out/, and checks that it has all files of the library
	rm -rf build out/*.whl # a build also packs what an earlier one left in build/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir=out .
	diff <(git ls-files interaction pallas_kernels | sort) \
		<($(BIN)/python -m zipfile --list out/*.whl | sed -E '1d; s/ .*//; /dist-info/d' | sort)

notebook: wheel $(VENV)/.dev ## runs the notebooks with the wheel, outside the clone; writes them to out/
	for pair in colab/*.py; do \
		$(BIN)/jupytext --quiet --to py:percent --output - $${pair%.py}.ipynb | \
			diff -I '^#   ' - $$pair; \
	done
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/colab # talks through Chromium where it is
	place=$$(mktemp -d); trap 'rm -rf $$place' EXIT; mkdir $$place/empty; \
	$(BIN)/python -m venv $$place/venv; \
	$$place/venv/bin/python -m pip install --quiet ipykernel nbconvert; \
	cp colab/*.ipynb $$place/empty; cd $$place/empty; \
	export JAX_PLATFORMS=cpu INTERACTION_SOURCE="file://$$(echo $(CURDIR)/out/*.whl)"; \
	for notebook in *.ipynb; do \
		$$place/venv/bin/python -m nbconvert --to notebook --execute \
			--output-dir $(CURDIR)/out $$notebook; \
	done; \
	$$place/venv/bin/python -m pip install --quiet "interaction[serve] @ $$INTERACTION_SOURCE"; \
	$$place/venv/bin/python -c 'import interaction.serve.app, interaction.serve.server'

check: lint types spell ## checks rules, format, types and spelling

engines: ## installs the speech engines that sessions and tests need (Debian, Ubuntu)
	@if command -v espeak-ng >/dev/null && command -v flite >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(ENGINES); \
	else \
		echo "The speech engines are missing; install them first: sudo apt-get install $(ENGINES)" >&2; \
		exit 1; \
	fi

chromium: ## installs the browser that tests of the page need (Debian)
	@if [ -x /usr/bin/chromium ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else \
		echo "Chromium is missing; install it first: sudo apt-get install chromium" >&2; \
		exit 1; \
	fi

clean: ## removes .venv and out/
	rm -rf $(VENV) out

$(VENV)/.python:
	@[ -n "$(PYTHON)" ] || { echo "No Python >= 3.11 found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# One stamp file per extra; a change of pyproject.toml installs again.
$(VENV)/.%: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[$*]'
	touch $@
