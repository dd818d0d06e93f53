#!/usr/bin/env bash
# Trains the three components of a recipe folder one after the other; rerun it to resume where it stopped.
# usage: bash scripts/train_all.sh configs/scenes [key=value ...]      (overrides apply to all three)
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: bash scripts/train_all.sh RECIPE_FOLDER [key=value ...]" >&2; exit 2; }
recipes=$1
shift
t2i=$(command -v t2i || echo "$(dirname "$0")/../.venv/bin/t2i")
for part in text-encoder vae unet; do
  "$t2i" train "$part" "$recipes/$part.yaml" "$@"
done
