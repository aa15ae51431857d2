# `make demo`, `make recipes`, `make test` and `make test-slow`. Each makes .venv and installs what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: demo recipes test test-slow lint clean

demo: $(VENV)/.demo
	bash recipes/demo/run.sh

# The other methods in small, on the demo's collection and store: what `make demo` has embedded is not embedded again.
recipes: $(VENV)/.demo
	bash recipes/cl_drd/commands.sh
	bash recipes/prod/commands.sh

test: $(VENV)/.dev lint
	$(BIN)/pytest

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow tests/slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "needs Python 3.11: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,dev]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf runs $(VENV)
