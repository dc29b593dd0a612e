# Set-up, demo, tests, checks and the API reference. Each makes .venv on first use and reuses it.
# Another interpreter than python3: make test PYTHON=python3.12 (after `make clean`).
# Another number of processes for the tests than two: make test PROCESSES=auto
# Other faults at other moments: make soak SEED=1

PYTHON ?= python3
PROCESSES ?= 2
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/pytest --numprocesses $(PROCESSES) --no-loadscope-reorder --durations 20
# Every warning is an error but two: pdoc does not find the types that a NamedTuple names in its
# module, which mypy checks; MLflow says about the served models that one of their types is open.
WARNINGS := -W error::UserWarning -W 'ignore:Error parsing type annotation ForwardRef' \
    -W ignore::UserWarning:mlflow.types.type_hints

.DEFAULT_GOAL := help
.PHONY: help demo test test-all coverage test-long faults soak walkthrough lint lint-infra audit docs clean
.DELETE_ON_ERROR:

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## From the sample images to a registered, scored generator
	$(BIN)/gan-train run configs/demo.yaml

test: $(INSTALLED) ## Run the tests that start no engine and train for seconds at most
	$(PYTEST) -m "not slow and not long"

test-all: $(INSTALLED) ## Run all tests but the long ones
	$(PYTEST) -m "not long"

coverage: $(INSTALLED) ## Run the same tests, and measure which lines and branches they reach
	$(PYTEST) --cov -m "not long"

test-long: $(INSTALLED) ## Run the long tests: most harm real trainings, flows and nodes
	$(PYTEST) -m long

faults: $(INSTALLED) ## Inject every fault of docs/faults.md; the rows go to build/faults.md
	$(PYTEST) -m fault

soak: $(INSTALLED) ## Harm runs at random for half an hour; they end as one without faults
	$(BIN)/python -m tests.faults.soak --minutes 30 --seed $(SEED)

walkthrough: $(INSTALLED) ## Walk as three people, with real servers: docs/walkthrough.md
	docs/walkthrough.sh

lint: $(INSTALLED) ## Check style, format, types, and the files of infra/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) lint-infra

lint-infra: $(INSTALLED) ## Check the files of infra/, shell and GitHub's workflow alone
	$(BIN)/shellcheck .ci/run docs/walkthrough.sh
	$(BIN)/hadolint infra/docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec infra/compose/*.yaml
	$(BIN)/pytest --quiet tests/unit/test_infra.py tests/unit/test_kubernetes.py

# --strict: a package about which the service says nothing is an error, not a clean bill
audit: $(INSTALLED) ## Ask PyPI for known vulnerabilities of the pinned packages
	$(BIN)/python -m pip check
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

docs: $(INSTALLED) ## Build the API reference into build/docs; a warning is an error
	PDOC_ALLOW_EXEC=1 $(BIN)/python $(WARNINGS) -m pdoc --docformat markdown \
	    --output-directory build/docs gan_train pipelines

clean: ## Remove .venv, caches and build leftovers; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* \
	    .pytest_cache .mypy_cache .ruff_cache .hypothesis
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
