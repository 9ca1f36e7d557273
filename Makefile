# `make demo` shows the pack at work in a real ComfyUI, `make test` checks all of it.
# Both set up what they need on first use (virtual environment, ComfyUI) and reuse it afterwards;
# nothing outside this folder is touched. COMFYUI_PATH=/path/to/ComfyUI takes that one instead.

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)

# torch comes first and alone: asked for together with other packages, pip may settle on another build.
# A machine without a GPU wants the CPU build; pip's own settings say where to find one.
TORCH := torch==2.13.0
# Without its dependencies, so that it cannot replace that torch.
TORCHVISION := torchvision==0.28.0

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq install
READY := $(VENV)/.ready
REQUIREMENTS := demo/requirements.txt demo/requirements-dev.txt

.DELETE_ON_ERROR:
.PHONY: help setup demo bench bench-quick bench-settings studies full-size test lint clean

help:
	@echo "make setup   virtual environment and ComfyUI, once"
	@echo "make demo    the demonstration, headless on the CPU"
	@echo "make bench   every method against every other on the tiny Wan, an hour or two; goes on where it was stopped"
	@echo "make bench-quick  some of them on 4 prompts, some minutes"
	@echo "make bench-settings  the main methods at 13 settings that artists render with, some hours"
	@echo "make studies  what else planned mode promises: samplers, profiles, rough models ..., an hour"
	@echo "make full-size  speed and memory at Wan2.1's real dimensions, with random weights, on a GPU"
	@echo "make test    lint, type check and every test"
	@echo "make lint    lint and type check only"
	@echo "make clean   remove all that these commands have made"

setup: $(READY)
	@$(PY) -m demo.comfyui

# 3.11 is what the pinned versions need; the pack itself runs on 3.10.
$(READY): $(REQUIREMENTS) Makefile
	@test -n "$(PYTHON)" || { echo "No Python found. Install Python 3.11, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), but the demo and the tests need Python 3.11 or newer." >&2; \
	  echo "Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(PY) || { echo "Making the virtual environment $(VENV) ..."; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing $(TORCH) ..."
	@$(PIP) $(TORCH)
	@$(PIP) --no-deps $(TORCHVISION)
	@echo "Installing what ComfyUI and the tests need ..."
	@$(PIP) -r demo/requirements.txt -r demo/requirements-dev.txt
	@touch $@

demo: setup
	@$(PY) -m demo.run $(ARGS)

bench: setup
	@$(PY) -m bench $(ARGS)

bench-quick: setup
	@$(PY) -m bench --quick $(ARGS)

bench-settings: setup
	@$(PY) -m bench settings $(ARGS)

studies: setup
	@$(PY) -m bench studies $(ARGS)

full-size: setup
	@$(PY) -m bench full-size $(ARGS)

# -P keeps this folder off sys.path: its nodes/ would hide ComfyUI's nodes.py.
test: lint
	$(PY) -P -m pytest $(ARGS)

# The third line is the registry's own rule, as it runs it, but with findings as errors.
lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m ruff check . --select S102,S307,E702
	$(PY) -m mypy

clean:
	rm -rf $(VENV) .cache demo/output bench/output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
