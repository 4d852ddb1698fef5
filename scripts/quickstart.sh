#!/usr/bin/env bash
# From a bare clone: environment, then all three stages on the embedded tiny model, and one table of the result; then
# `lora-rlhf demo` shows them side by side in a browser.
# Arguments go to `lora-rlhf run`: scripts/quickstart.sh --run runs/again --seed 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment demo

.venv/bin/lora-rlhf run --config configs/quickstart.yaml "$@"

echo
echo "Talk to all stages side by side in your browser: .venv/bin/lora-rlhf demo"
