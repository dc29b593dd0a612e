# Set-up, demo and tests. `make demo` and `make test` make .venv on first use and reuse it.
# Another interpreter than python3: make test PYTHON=python3.12 (after `make clean`).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean
.DELETE_ON_ERROR:

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## From the sample images to a registered, scored generator
	$(BIN)/gan-train run configs/demo.yaml

test: $(INSTALLED) ## Run every test, the slow ones too
	$(BIN)/pytest

lint: $(INSTALLED) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## Remove .venv, caches and build leftovers; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an installation that was cut off is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "gan-train needs Python 3.11 or newer; '$(PYTHON)' is not."; \
	    echo "Name another one: make $(or $(MAKECMDGOALS),test) PYTHON=python3.12"; \
	    exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 2 GB and a few minutes, once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[dev]'
	@touch $@
