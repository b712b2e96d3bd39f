# Developer commands. `make` alone lists them. The same targets run locally and in CI (.ci/run).
# Needs on the machine: Python 3.11 or later, a Rust toolchain (cargo) and make. Everything else goes into .venv.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

RUST_SOURCES := $(shell find node/raft_core -name target -prune -o -type f \( -name '*.rs' -o -name 'Cargo.*' \) -print 2>/dev/null)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# Each stamp is newer than what it was made from, so a second `make setup` is a few stat calls.
$(VENV)/.venv-stamp:
	@test -n "$(PYTHON)" || { echo "Context Store needs Python 3.11 or later on PATH (or: make PYTHON=/path/to/python)"; exit 1; }
	@command -v cargo >/dev/null || { echo "Context Store needs a Rust toolchain: https://rustup.rs"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.deps-stamp: $(VENV)/.venv-stamp requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.install-stamp: $(VENV)/.deps-stamp pyproject.toml $(RUST_SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: $(VENV)/.install-stamp ## create .venv with the locked dependencies and build the project into it

.PHONY: run
run: setup ## start one node at http://127.0.0.1:4000 (ARGS="--port 4100" for more)
	$(BIN)/contextstore dev $(ARGS)

.PHONY: test
test: setup ## run the tests (ARGS="tests/contexts -k window" for some)
	$(BIN)/python -m pytest $(ARGS)

.PHONY: lint
lint: setup ## check format, lint, layers and Rust (cargo fmt, clippy)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	cargo fmt --manifest-path node/raft_core/Cargo.toml --check
	cargo clippy --quiet --locked --manifest-path node/raft_core/Cargo.toml --all-targets -- -D warnings

.PHONY: format
format: setup ## rewrite sources in the project's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	cargo fmt --manifest-path node/raft_core/Cargo.toml

.PHONY: types
types: setup ## check types (mypy --strict)
	$(BIN)/mypy

.PHONY: bench
bench: setup ## measure the node beside bare endpoints in one run
	$(BIN)/python -m bench $(ARGS)

.PHONY: demo
demo: setup ## show windows of real conversations at three budgets, beside naive trimming
	$(BIN)/python -m bench.demo $(ARGS)

.PHONY: docs
docs: setup ## build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: site/index.html"

.PHONY: docs-settings
docs-settings: setup ## write docs/settings.md from settings.py
	$(BIN)/python -m context_node.settings docs/settings.md

.PHONY: wheel
wheel: setup ## build a wheel into dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@ls -1 dist/*.whl

.PHONY: lock
lock: setup ## resolve pyproject.toml again into the two lock files (needs the network; UPGRADE=1 for newer versions)
	$(BIN)/python tools/lock.py $(if $(UPGRADE),--upgrade)

.PHONY: e2e chaos
e2e chaos: ## (come with the cluster)
	@echo "make $@: there is nothing to run yet, these tests come with the cluster"; exit 1

.PHONY: clean
clean: ## remove what the other targets made (not your data directories)
	rm -rf $(VENV) build dist site node/*.egg-info node/context_node/raft/_core*.so node/raft_core/target
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
