# Context Store: one command each. `make` alone lists them.
#
# A fresh machine needs Python 3.11+, a Rust toolchain and make; everything else goes into .venv from the lock files.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

RUST_SOURCES := $(wildcard node/raft_core/Cargo.toml node/raft_core/Cargo.lock node/raft_core/src/*.rs)

.PHONY: help setup run test lint format types bench bench-memory demo wheel docs docs-settings lock ci clean e2e image bench-cluster bench-idle chaos grow behind archive-chaos bench-archive sim sim-replay sim-mutants

help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.installed ## Create .venv, install the locked dependencies and build the package into it

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.dependencies: $(VENV)/.python requirements-uv.lock requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.dependencies pyproject.toml $(RUST_SOURCES)
	@command -v cargo >/dev/null || { echo "A Rust toolchain (cargo) is needed to build the Raft core: https://rustup.rs" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: setup ## Run one node on http://127.0.0.1:4000 (ARGS="--port 4100 --data-dir data")
	exec $(BIN)/contextstore dev $(ARGS)

test: setup ## Run all tests (ARGS="tests/contexts -k pins")
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## Check format, lint, layers, locks and the Rust crate
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python tools/check_locks.py
	cd node/raft_core && cargo fmt --check && cargo clippy --locked --release --all-targets -- -D warnings

format: setup ## Format Python and Rust
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	cd node/raft_core && cargo fmt

types: setup ## Check types (mypy --strict)
	$(BIN)/mypy

bench: setup ## Measure the node beside a bare endpoint
	$(BIN)/python bench/run.py $(ARGS)

bench-cluster: setup ## Measure three nodes beside etcd, NATS JetStream and pysyncobj (needs Go; ARGS="single --rounds 4 --connections 32": 4 min)
	$(BIN)/python bench/cluster.py $(ARGS)

bench-idle: setup ## Measure what three nodes cost that nobody asks anything (ARGS="--contexts 10000 --shards 256"; 3 min)
	$(BIN)/python bench/idle.py $(ARGS)

bench-memory: setup ## Measure memory: 100,000 contexts restarted, 1,000,000 messages imported (10 min)
	$(BIN)/python bench/memory.py $(ARGS)

demo: setup ## Windows of real conversations at 2,000, 4,000 and 8,000 tokens, beside two naive ways
	$(BIN)/python bench/demo.py $(ARGS)

crash: setup ## Kill a node under load and cut its power, a hundred times each (ARGS="--kills 20")
	$(BIN)/python bench/crash.py $(ARGS)

wheel: setup ## Build a wheel into dist/
	rm -f dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

docs-settings: setup ## Regenerate docs/settings.md from settings.py and docs/resources.md from crds/, and the dashboard
	$(BIN)/python -m context_node.settings docs/settings.md
	$(BIN)/python tools/resource_docs.py docs/resources.md
	$(BIN)/python -m context_operator.resources.dashboard helm/contextstore/dashboards/overview.json

docs: setup ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: $(VENV)/.python ## Resolve the dependencies again and rewrite the lock files
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	PATH="$(abspath $(BIN)):$$PATH" tools/lock.sh

ci: ## What CI runs
	.ci/run

clean: ## Remove everything that was built (not the data directory)
	rm -rf $(VENV) build dist site node/*.egg-info node/raft_core/target node/context_node/raft/*.so \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

e2e: setup ## End-to-end tests on Kubernetes: $$KUBECONFIG's cluster, else a local one (needs root, Go, apt; compiles its tools the first time)
	cd e2e && ../$(BIN)/python -m pytest -c pytest.ini $(ARGS)

image: ## Build the image contextstore:dev with docker (IMAGE=... names another)
	docker build --tag $(or $(IMAGE),contextstore:dev) .

grow: setup ## Grow a developer's directory from 1 to 3 to 5 nodes and back to 3 under load; moves and latencies (2 min)
	$(BIN)/python bench/grow.py $(ARGS)

behind: setup ## Let a node miss 500,000 messages and catch up by snapshots while writes go on (ARGS="--messages 50000")
	$(BIN)/python bench/behind.py $(ARGS)

archive-chaos: setup ## Kill the node that archives most, 50 times under load, while a checker looks for holes in Postgres (ARGS="--kills 50"; 5 min)
	$(BIN)/python bench/archive_chaos.py $(ARGS)

bench-archive: setup ## Measure three nodes with an archive beside none, a million messages copied and compared (needs Go; 40 min)
	$(BIN)/python bench/archive.py $(ARGS)

SEEDS ?= 150
SEED ?= 1

sim: setup ## Simulate clusters under faults, every seed twice (SEEDS=2000 ARGS="--first 1 --events 20000 --once")
	cd tests && ../$(BIN)/python -m simulation run --seeds $(SEEDS) $(ARGS)

sim-replay: setup ## One seed of the simulation again, with its story (SEED=4711)
	cd tests && ../$(BIN)/python -m simulation replay $(SEED) $(ARGS)

sim-mutants: setup ## Plant bugs, one at a time, and count the seeds that the simulation needs to find each (ARGS="--seeds 200 vote")
	cd tests && ../$(BIN)/python -m simulation mutants $(ARGS)

chaos: setup ## Kill, pause, cut off, fill, drain and empty nodes of a cluster under load, every answer judged (ARGS="--seconds 180 --nodes 5")
	$(BIN)/python bench/chaos.py $(ARGS)
