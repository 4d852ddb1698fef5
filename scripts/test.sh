#!/usr/bin/env bash
# From a bare clone: environment, then ruff, mypy and pytest. Arguments go to pytest: scripts/test.sh -k ppo
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment test

.venv/bin/ruff check .
.venv/bin/mypy
# one thread in each of two workers: tiny tensors gain nothing from more
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadgroup "$@"
