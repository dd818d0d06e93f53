# Sourced by demo.sh and test.sh: a virtual environment in .venv with the project installed, made once.
# usage: environment [EXTRA]; sets $bin. PYTHON names another interpreter.

environment() {
  local extra=${1:-} python=${PYTHON:-python3} stamp wanted
  bin=$PWD/.venv/bin
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "t2i needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
    exit 2
  }
  [ -x "$bin/python" ] || "$python" -m venv .venv
  stamp=.venv/installed${extra:+-$extra}
  wanted=$(cksum < pyproject.toml)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing t2i${extra:+ with the $extra extra} into .venv (torch is large: some minutes the first time)"
    "$bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
    "$bin/python" -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}"
    echo "$wanted" > "$stamp"
  fi
}
