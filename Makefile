# make demo   install what the demo needs into .venv and run it
# make docs   build the documentation into build/site
# make test   install what the tests need into .venv, lint, check the types and run the tests

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo docs test lint clean

demo: .venv/.demo
	@$(BIN)/cache-dit demo

docs: .venv/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: .venv/.dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

# The stamps .venv/.demo, .venv/.docs and .venv/.dev say which extra is installed.
.venv/.demo .venv/.docs .venv/.dev: .venv/.%: .venv/.torch pyproject.toml
	@echo "Installing cache-dit[$*] into .venv"
	@$(PIP) -e '.[$*]'
	@touch $@

# torch goes first and alone, so that nothing else has a say in which build of it is taken.
.venv/.torch: constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "cache-dit's pinned packages need Python 3.11 or newer; found '$(PYTHON)'." \
	    "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Creating .venv and installing torch (this can take some minutes)"
	@"$(PYTHON)" -m venv .venv
	@$(PIP) torch
	@touch $@
