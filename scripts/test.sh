#!/usr/bin/env bash
# From a bare clone: environment, then ruff, mypy and pytest.
#   scripts/test.sh          all tests
#   scripts/test.sh --fast   all but those that are marked slow, kill, browser or gpu: two minutes on two cores
# Other arguments go to pytest: scripts/test.sh -k ppo
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment test

selection=()
if [ "${1:-}" = --fast ]; then
  shift
  selection=(-m "not slow and not kill and not browser and not gpu")
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# one thread in each of two workers: tiny tensors gain nothing from more
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadgroup "${selection[@]}" "$@"
