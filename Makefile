# `make run` shows it working on this machine; `make help` lists the rest.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PYTHONS := python3.13 python3.12 python3.11 python3
ARGS ?=
# Two files at a time, each with servers and a store of its own; more would disturb the clocks.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# Commands that write committed files: each is run with `generate --check`.
GENERATED ?= dashboards alerts

.PHONY: help run test quick lint format bench clean distclean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

run: $(VENV)/pipeline.stamp ## start everything in one process; ARGS="--simulate 16"
	@exec $(BIN)/megawatch up $(ARGS)

test: $(VENV)/dev.stamp ## every test, against real servers where they can be had; ARGS="-x -k power"
	@$(BIN)/python -m deploy.fetch all
	@$(PYTEST) $(ARGS)

quick: $(VENV)/dev.stamp ## the tests that need no server and no store, in some minutes
	@$(PYTEST) -m "not real and not slow and not store" $(ARGS)

lint: $(VENV)/dev.stamp ## format, style, types, import contracts, generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pipeline.readme --check
	@set -e; for what in $(GENERATED); do $(BIN)/megawatch "$$what" generate --check; done

format: $(VENV)/dev.stamp ## put every file in order
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/pipeline.stamp ## measure this machine; ARGS="--quick"
	@$(BIN)/megawatch bench ingest $(ARGS)
	@$(BIN)/megawatch bench agent $(ARGS)

clean: ## remove what tools left behind
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also remove the virtual environment and everything fetched
	@rm -rf $(VENV) .cache

$(BIN)/python:
	@for python in $(PYTHONS); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  "$$python" -m venv $(VENV) && exit 0; \
	  rm -rf $(VENV); \
	  echo "make: $$python cannot make a virtual environment: install python3-venv" >&2; \
	  exit 1; \
	done; \
	echo "make: no Python 3.11 or newer among $(PYTHONS): install one" >&2; \
	exit 1

$(VENV)/pipeline.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "make: installing Megawatch into $(VENV), once" >&2
	@$(PIP) -e '.[pipeline]' -c constraints.txt
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "make: installing Megawatch and its tools into $(VENV), once" >&2
	@$(PIP) -e '.[dev]' -c constraints.txt
	@touch $(VENV)/pipeline.stamp $@
