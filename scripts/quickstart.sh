#!/usr/bin/env bash
# From a bare clone: environment, then all three stages on the embedded tiny model, and one table of the result.
# Arguments go to `lora-rlhf run`: scripts/quickstart.sh --run runs/again --seed 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment

# threads that wait must sleep: spinning ones make small models five times slower on a machine with other work
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
.venv/bin/lora-rlhf run --config configs/quickstart.yaml "$@"
