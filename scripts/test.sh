#!/usr/bin/env bash
# Makes the environment with the dev extra; runs lint, types, layers and tests.
# usage: bash scripts/test.sh [--latest] [pytest options ...]
#   --latest  the newest versions of everything, in an environment of its own (.venv-latest): finds drift on purpose
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
latest=
if [ "${1:-}" = --latest ]; then
  latest=--latest
  shift
fi
environment dev $latest

step() { echo "== $*"; "$bin/$@"; }
step ruff check .
step ruff format --check .
step pyright --pythonpath "$bin/python"
step lint-imports
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # one thread a test process, of which there is one a core
step python -m pytest --numprocesses auto --dist loadfile "$@"
