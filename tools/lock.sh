#!/usr/bin/env bash
# Resolves pyproject.toml into lock files with hashes. The header and the body name no host and no path, so that the
# files are the same wherever they are made. Give LOCK_ARGS="--upgrade" to move to newer versions.
set -euo pipefail
cd "$(dirname "$0")/.."

resolve() { # output, then what to resolve
  local output=$1
  shift
  # shellcheck disable=SC2086  # LOCK_ARGS is a list of words
  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
    --no-emit-index-url --no-emit-find-links --output-file "$output" ${LOCK_ARGS:-} "$@"
  sed -i.bak '1i # Made by `make lock` from pyproject.toml; do not edit.' "$output" && rm -f "$output.bak"
}

resolve requirements.lock pyproject.toml
resolve requirements-operator.lock --constraints requirements.lock --extra operator --no-annotate pyproject.toml
resolve requirements-dev.lock --constraints requirements-operator.lock --extra dev --no-annotate pyproject.toml
grep -E '^uv==' requirements-dev.lock | sed 's/ .*//' > .uv.in
trap 'rm -f .uv.in' EXIT
resolve requirements-uv.lock --no-annotate .uv.in
