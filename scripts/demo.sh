#!/usr/bin/env bash
# From nothing to pictures: makes the environment, installs, generates from the shipped checkpoint.
# usage: bash scripts/demo.sh ["prompt" ...]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
environment

[ $# -gt 0 ] || set -- "red anvil icon on a yellow background" "yellow anchor icon on a purple background" \
  "taxi, firefox emoji" "a yellow star"
out=outputs/demo
"$bin/t2i" generate "$@" --count 4 --seed 0 --out "$out"
echo
echo "The pictures are in $PWD/$out; the newest grid is $(ls -t "$out"/grid-*.png | head -1)."
echo "Now your own:  .venv/bin/t2i generate \"blue umbrella icon on a white background\""
