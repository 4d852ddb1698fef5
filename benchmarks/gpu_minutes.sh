#!/usr/bin/env bash
# What only a GPU can show, in 12 minutes of it. From the root of the repository, in its environment:
#   benchmarks/gpu_minutes.sh             results in benchmarks/results/gpu/
#   SMALL=1 benchmarks/gpu_minutes.sh     the same parts with small shapes on a CPU, to see that they work; six times the time
# Each part has a limit of its own and writes its results as they come; one that fails or takes too long ends no other.
# parts.jsonl has a line for each: its name, seconds and exit status (124: it took too long).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
to=${TO:-benchmarks/results/gpu}
mkdir -p "$to"
: >"$to/parts.jsonl"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

scale=1
[ -z "${SMALL:-}" ] || scale=6

part() {  # part NAME SECONDS COMMAND...
  local name=$1 seconds=$(($2 * scale)) status=0 begun=$SECONDS
  shift 2
  echo "== $name (at most $seconds s): $*"
  timeout --kill-after=10 "$seconds" "$@" >"$to/$name.log" 2>&1 || status=$?
  tail -n 3 "$to/$name.log"
  echo "{\"part\": \"$name\", \"seconds\": $((SECONDS - begun)), \"status\": $status}" | tee -a "$to/parts.jsonl"
}

if [ -n "${SMALL:-}" ]; then
  minute=(--only tinyworld --iterations 1) rollout=(--shape llama-4x256 --rounds 1 --device cpu)
  plan=(--device cpu --only plain) against=(--shape llama-4x256 --iterations 3 --repeats 1)
else
  minute=(--device cuda --shapes qwen2.5-1.5b llama-3.1-8b --iterations 1) rollout=(--shape qwen2.5-1.5b --rounds 1)
  plan=(--device cuda --only "qwen2.5-1.5b in 6 GiB" "llama-3.1-8b in 12 GiB")
  against=(--shape qwen2.5-1.5b --iterations 3 --repeats 1)
fi
part tests 100 python -m pytest -q -p no:cacheprovider tests/gpu
part first_minute 170 python benchmarks/first_minute.py "${minute[@]}" --to "$to/first_minute.json"
part rollout 120 python benchmarks/rollout.py "${rollout[@]}" --to "$to/rollout.json"
part plan_accuracy 150 python benchmarks/plan_accuracy.py "${plan[@]}" --to "$to/plan_accuracy.json"
part against_trl 180 python benchmarks/ppo_against_trl.py "${against[@]}" --to "$to/ppo_against_trl.json" \
  ${TRL_FOLDER:+--trl-folder "$TRL_FOLDER"}
