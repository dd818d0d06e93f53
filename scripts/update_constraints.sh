#!/usr/bin/env bash
# Tests the newest versions of everything and, if all passes, records them in scripts/constraints.txt.
# usage: bash scripts/update_constraints.sh
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .venv-latest
bash scripts/test.sh --latest
. scripts/environment.sh
bin=$PWD/.venv-latest/bin
file=scripts/constraints.txt
install_quietly --upgrade hatchling editables # what builds t2i itself
{
  echo "# The versions that were tested together, written by scripts/update_constraints.sh."
  echo "# recorded on: $(platform_of "$bin/python")"
  "$bin/python" -m pip freeze --all --exclude-editable | grep -v '^setuptools=='
} > "$file.new"
mv "$file.new" "$file"
echo "recorded $(grep -c == "$file") versions in $file"
