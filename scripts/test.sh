#!/usr/bin/env bash
# Makes the environment with the dev extra; runs lint, types, layers and tests.
# usage: bash scripts/test.sh [pytest options ...]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
environment dev

step() { echo "== $*"; "$bin/$@"; }
step ruff check .
step ruff format --check .
step pyright
step lint-imports
step python -m pytest "$@"
