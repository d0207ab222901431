# Amalgam. `make` lists what there is. From the environment or the command line:
#   PYTHON      the interpreter that makes the virtual environment (3.11 or newer)
#   TORCH_ARGS  options for installing torch; for CPU wheels on a Linux machine that need not have CUDA:
#               make setup TORCH_ARGS='--index-url https://download.pytorch.org/whl/cpu'

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := api,worker,parquet,demo,dev
HARNESS := .harness

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ── use ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

.PHONY: setup
setup: $(STAMP) ## build .venv with everything (API, worker, demo, tests)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Amalgam needs Python 3.11 or newer; '$(PYTHON)' is not. Name another: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "setup 1/5: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup 2/5: installing torch (about 200 MB)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(TORCH_ARGS) torch==2.13.0
	@echo "setup 3/5: installing the other packages (about 300 MB, 1-2 minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@echo "setup 4/5: checking"
	@$(BIN)/python -m pip check --disable-pip-version-check
	@echo "setup 5/5: compiling the kernels (half a minute; else the first worker would)"
	@$(BIN)/python -c 'from workers.numerics import fused; fused.load()'
	@touch $@

.PHONY: demo
demo: setup ## fine-tune, merge and compare three real tasks through the REST API (under 6 minutes)
	@$(BIN)/amalgam demo

.PHONY: serve
serve: setup ## start the service on http://127.0.0.1:8000: API, reaper and one worker
	@$(BIN)/amalgam serve

# ── develop ──────────────────────────────────────────────────────────────────────────────────────────────────────────

.PHONY: test
test: setup ## run every test (PostgreSQL, Valkey and S3 come from wheels: no root, no Docker)
	$(BIN)/python -m pytest -n 2 --dist loadscope

.PHONY: harness
harness: $(HARNESS)/.installed ## run the tests of tasks of kind lm-eval with the EleutherAI harness (in a venv of their own)
	$(HARNESS)/bin/python -m pytest tests/workers/evaluators/test_lm_eval.py tests/contracts/test_tasks_page.py \
	  tests/contracts/test_constraints.py

$(HARNESS)/.installed: pyproject.toml constraints.txt
	@test -x $(HARNESS)/bin/python || $(PYTHON) -m venv $(HARNESS)
	@echo "installing torch, everything else and the harness into $(HARNESS) (about 2.5 GB, some minutes)"
	@$(HARNESS)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(TORCH_ARGS) torch==2.13.0
	@$(HARNESS)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),harness]'
	@$(HARNESS)/bin/python -m pip check --disable-pip-version-check
	@touch $@

.PHONY: test-random
test-random: setup ## run the property tests with examples that no run has had
	AMALGAM_TEST_RANDOM=1 $(BIN)/python -m pytest -n 2 --dist loadscope -m 'not slow'

.PHONY: check
check: setup ## lint, types, layers, containers, and whether what is generated is up to date
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m workers.catalog --check
	$(BIN)/python -m app.api.error_pages --check
	$(BIN)/python -m app.cli.settings_page --check
	@$(MAKE) --no-print-directory containers

.PHONY: catalog
catalog: setup ## regenerate what is made from code: the catalog of methods, the pages of errors and settings
	$(BIN)/python -m workers.catalog
	$(BIN)/python -m app.api.error_pages
	$(BIN)/python -m app.cli.settings_page

.PHONY: containers
containers: setup ## check the Dockerfiles and docker-compose.yml (needs no engine)
	$(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

.PHONY: format
format: setup ## put the code into its form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: bench
bench: setup ## run the benchmarks at a small size and print one table (under ten minutes)
	@$(BIN)/python -m benchmarks

.PHONY: bench-full
bench-full: setup ## run them at full size, against other tools too (hours; more in benchmarks/README.md)
	@$(BIN)/python -m benchmarks --full

.PHONY: parity
parity: setup ## compare the methods with mergekit and fusion-bench (in a venv of their own)
	$(BIN)/python -m benchmarks.parity

.PHONY: suite
suite: suite-train ## measure what the papers claim on five real tasks, write docs/evidence.md
	$(BIN)/python -m benchmarks.evidence

.PHONY: suite-methods
suite-methods: setup ## merge five real models by every method, write docs/suite.md (an hour or more)
	$(BIN)/python -m benchmarks.suite

.PHONY: suite-train
suite-train: setup ## train what both need; an interrupted training goes on
	$(BIN)/python -m benchmarks.evidence --train

# redis needs async-timeout on Python before 3.11.3 only, so a newer interpreter does not list it.
.PHONY: constraints
constraints: ## pin anew: install the newest allowed versions into a fresh venv and write constraints.txt
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(PYTHON) -m venv "$$fresh" \
	  && "$$fresh/bin/pip" install -qq $(TORCH_ARGS) torch==2.13.0 \
	  && "$$fresh/bin/pip" install -qq -e '.[$(EXTRAS),harness]' async-timeout \
	  && { echo "# Every distribution of all extras, pinned: what the tests ran with. Made by \`make constraints\`."; \
	       "$$fresh/bin/pip" freeze --all --exclude pip --exclude-editable \
	         | sed 's/^\(torch==[0-9.]*\).*/\1/' | sort --ignore-case; } > constraints.txt

.PHONY: clean
clean: ## remove caches and build products; keeps .venv and your data
	rm -rf .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis build dist *.egg-info
	find app workers migrations tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
