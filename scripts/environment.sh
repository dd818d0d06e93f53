# Sourced by demo.sh and test.sh: makes a virtual environment with the project installed, once.
# usage: environment [EXTRA [--latest]]; sets $bin. PYTHON names another interpreter.
#
# .venv takes the versions in scripts/constraints.txt, which were tested together, where Python and platform are those
# that the file was recorded on. With --latest it is .venv-latest, which takes the newest versions at each call.

environment() {
  local extra=${1:-} latest=${2:-} python=${PYTHON:-python3} file=scripts/constraints.txt
  local venv=.venv${latest:+-latest} target=".${1:+[$1]}" here recorded stamp inputs
  local constraints=()
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "t2i needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
    exit 2
  }
  bin=$PWD/$venv/bin
  [ -x "$bin/python" ] || "$python" -m venv "$venv"

  here=$(platform_of "$bin/python")
  recorded=$(sed -n 's/^# recorded on: //p' "$file" 2>/dev/null || true)
  if [ -z "$latest" ] && [ "$here" = "$recorded" ]; then
    constraints=(--constraint "$file" --build-constraint "$file")
  elif [ -z "$latest" ]; then
    echo "$file was recorded on $recorded; this is $here: the lower bounds in pyproject.toml apply"
  fi

  stamp=$venv/installed${extra:+-$extra}
  inputs=$(cat pyproject.toml "$file" scripts/environment.sh 2>/dev/null | cksum)
  if [ -n "$latest" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$inputs" ]; then
    echo "installing t2i${extra:+ with the $extra extra} into $venv (torch is large: some minutes the first time)"
    install_quietly --upgrade pip ${constraints[@]+--constraint "$file"}
    install_quietly ${latest:+--upgrade --upgrade-strategy eager} "${constraints[@]+"${constraints[@]}"}" -e "$target"
    echo "$inputs" > "$stamp"
  fi
}

platform_of() {
  "$1" -c 'import platform, sys; print("Python %d.%d, %s %s" % (*sys.version_info[:2], sys.platform, platform.machine()))'
}

install_quietly() {
  "$bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
