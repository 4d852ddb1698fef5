#!/usr/bin/env bash
# From a bare clone: environment, then ruff, mypy and pytest.
#   scripts/test.sh          all tests but those that are marked zoo or long
#   scripts/test.sh --fast   without those that are marked slow, kill, browser or gpu, too
#   scripts/test.sh --long   those that are marked long: more cases of what the others show, half an hour on two cores
#   scripts/test.sh --zoo    those that are marked zoo: every architecture, half an hour on two cores
# Other arguments go to pytest: scripts/test.sh -k ppo
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment test

selection="not zoo and not long"
case "${1:-}" in
  --fast) shift; selection="not zoo and not long and not slow and not kill and not browser and not gpu" ;;
  --long) shift; selection="long" ;;
  --zoo) shift; selection="zoo" ;;
esac
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# one thread in each of two workers: tiny tensors gain nothing from more
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadgroup -m "$selection" "$@"
