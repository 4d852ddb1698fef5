#!/usr/bin/env bash
# Puts this project into .venv, as pinned in constraints.txt; the scripts beside it source this, and go to its root.
# What they need themselves (the extras demo and test) is installed with hashes, from requirements/EXTRA.txt, but for
# torch, which is another file for each kind of GPU. HASHES=no takes what the package index has, such as builds of its own.

# The first Python here that is new enough and can make virtual environments.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer with the venv module; install one (on Debian and Ubuntu: python3.11-venv)" >&2
  return 1
}

install() {
  # a module is compiled when it is first imported: to compile all of them takes a minute, and most never are
  .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-compile "$@"
}

# ensure_environment [EXTRA]: installs what is missing; a stamp in .venv says what is there already.
ensure_environment() {
  local extra="${1:-}" wanted python
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  wanted="$(cat pyproject.toml constraints.txt requirements/*.txt | cksum)"
  if grep -qsxF -e "$wanted $extra" -e "$wanted test" .venv/installed && [ -x .venv/bin/lora-rlhf ]; then
    return
  fi
  if [ ! -x .venv/bin/python ]; then
    python="$(find_python)"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  echo "installing into .venv; the first time this takes some minutes"
  if [ -f "requirements/$extra.txt" ] && [ "${HASHES:-yes}" != no ]; then
    install --require-hashes --no-deps -r "requirements/$extra.txt" || {
      echo "error: .venv is not complete; where the index has builds of its own, HASHES=no before the command takes them" >&2
      return 1
    }
    install -c constraints.txt torch
    install --no-deps --no-build-isolation -e .
  else
    install -c constraints.txt -e ".${extra:+[$extra]}"
  fi
  echo "$wanted $extra" >>.venv/installed  # with what was installed before
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  ensure_environment "$@"
fi
