# Sourced by scripts/mixersweep and scripts/test: makes the environment where it is missing or out of date.
#   prepare_environment [EXTRA]      afterwards $VENV/bin has everything
# MIXERSWEEP_VENV: where it is (default: .venv in the checkout).  PYTHON: the Python to make it with.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${MIXERSWEEP_VENV:-$ROOT/.venv}

say() { echo "$(basename "$0"): $*" >&2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  say "needs Python 3.11.4 or newer; name one with PYTHON=/path/to/python3"
  return 1
}

prepare_environment() {
  local extra=${1:-} stamp wanted
  stamp=$VENV/installed${extra:+-$extra}
  wanted="$ROOT $(cksum <"$ROOT/pyproject.toml")"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi

  # One at a time: several runs may be started on a fresh checkout at once. The lock goes with its holder.
  mkdir -p "$(dirname "$VENV")"
  local lock=$VENV.lock
  until mkdir "$lock" 2>/dev/null; do
    if ! kill -0 "$(cat "$lock/pid" 2>/dev/null || echo $$)" 2>/dev/null; then rm -rf "$lock"; continue; fi
    [ -n "${waited:-}" ] || say "another process is setting up $VENV; waiting for it"
    local waited=1
    sleep 1
  done
  echo $$ >"$lock/pid"
  trap 'rm -rf "$lock"' EXIT
  if ! { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; }; then
    install_into "$extra"
    echo "$wanted" >"$stamp"
  fi
  rm -rf "$lock"
  trap - EXIT
}

install_into() {
  local python log=$VENV/pip.log
  if [ ! -x "$VENV/bin/python" ]; then
    python=$(find_python)
    say "making $VENV"
    "$python" -m venv "$VENV"
  fi
  say "installing mixersweep${1:+[$1]} with pip; torch is large, this takes minutes the first time (log: $log)"
  "$VENV/bin/python" -m pip install --editable "$ROOT${1:+[$1]}" >"$log" 2>&1 &
  local pip=$! seconds=0
  while kill -0 "$pip" 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    if [ $((seconds % 15)) -eq 0 ]; then
      say "${seconds} s: $(grep -E '^(Collecting|Downloading|Installing|  Downloading)' "$log" | tail -n 1 | cut -c 1-100)"
    fi
  done
  if ! wait "$pip"; then
    tail -n 20 "$log" >&2
    say "pip failed; the end of its log stands above, the whole in $log"
    return 1
  fi
  say "installed in ${seconds} s"
}
