#!/usr/bin/env bash
# From a bare clone: environment, then all three stages on the embedded tiny model, and one table of the result.
# Arguments go to `lora-rlhf run`: scripts/quickstart.sh --run runs/again --seed 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment

# Threads that wait for each other spin for some microseconds, then sleep: with tiny tensors sleeping at once halves the
# speed, and spinning on takes it away from other programs (and, where they run, from this one).
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-30000}"
.venv/bin/lora-rlhf run --config configs/quickstart.yaml "$@"
