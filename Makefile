# `make demo`, `make recipes`, `make check`, `make test` and `make test-slow`. Each makes .venv and installs what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# As many workers as CPUs, but memory for no more than 8: each takes up to 2 GB.
PYTEST := $(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal
export TOKENIZERS_PARALLELISM := false
# Ray's workers would be at niceness 15, and starve beside the tests' own processes.
export RAY_worker_niceness := 0

.PHONY: demo recipes check test test-slow lint clean

demo: $(VENV)/.demo
	bash recipes/demo/run.sh

# The other methods in small, on the demo's collection and store: what `make demo` has embedded is not embedded again.
recipes: $(VENV)/.demo
	bash recipes/cl_drd/commands.sh
	bash recipes/prod/commands.sh

# The suite in three: check is for every save, test for every commit, test-slow has kills, whole runs, benchmarks and peers.
check: $(VENV)/.dev lint
	$(PYTEST) -m "not medium and not slow" --durations=5 --durations-min=1

test: $(VENV)/.dev lint
	$(PYTEST)

# Two files at a time: many of these tests mostly wait. tests/slow/conftest.py says what SLOW_TESTS_END is.
test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow tests/slow -n 2 --dist loadfile --durations=40 -rs

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
	rm -rf runs $(VENV) .venv-infinity .venv-peers .venv-trackers .venv-rclone .venv-ray-jobs
