"""Methods side by side on the tiny world: from the same base, SFT model and ranked prompts, judged by the gold score.

    python benchmarks/methods.py --seeds 0 1 2 --prompts 200 1200

Each seed has one SFT model, whose answers the simulated labelers rank. Of every number of ranked prompts the first ones
of the same file are taken. A method runs as its command, in a process of its own; the result is written after every one
of them, and a second call goes on where the first one stopped. `--methods` names those that shall be there then.

Rejection sampling: SFT again, on the demonstrations and on the best of 16 answers to as many prompts as make PPO's
number of responses. `as_long`: DPO with as many epochs as fit into the CPU seconds of reward model and PPO together.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from provenance import provenance

from lora_rlhf.data.schema import Demonstration
from lora_rlhf.data.sources import Source
from lora_rlhf.evaluation.report_model import Report, read_report
from lora_rlhf.runs.manifest import read_manifest
from lora_rlhf.stats.win_rates import mean_outcome
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.typed_json import to_json
from lora_rlhf.tinyworld.gold import gold_total

KIB = 1024
BEST_OF = 16
LIMITS = "--max_prompt_tokens 128 --max_response_tokens 64 --generation_batch_size 416 --device cpu"
PPO = (
    "--iterations 40 --batch_size 96 --minibatch_size 96 --micro_batch_size 48 --num_epochs 1 "
    "--policy_learning_rate 1.5e-3 --value_learning_rate 2e-3 --kl_coef 0.15 --kl_target 1.2 --kl_horizon 600 "
    "--engine static --accept_chance_reward true"
)
DPO = "--micro_batch_size 64 --learning_rate 5e-4"
# {method: (the command, its own flags)}; the report is of the first one's run, and its policy is the candidate
METHODS = {
    "ppo": ("ppo", PPO),
    "ppo_ptx": ("ppo", f"{PPO} --pretraining_text {{data}}/pretraining.jsonl --ptx_coef 1 --ptx_block_tokens 64"),
    "rloo": ("ppo", f"{PPO} --advantage rloo --samples_per_prompt 4"),
    "grpo": ("ppo", f"{PPO} --advantage grpo --samples_per_prompt 4"),
    "dpo": ("dpo", DPO),
    "ipo": ("dpo", f"{DPO} --loss_type ipo"),
    "kto": ("dpo", f"{DPO} --method kto --batch_size 32"),
    "rejection": ("sft", ""),
    "dpo_as_long": ("dpo", DPO),
}
BEST = f"best_of_{BEST_OF}"  # no training
REJECTION_PROMPTS = 40 * 96 // BEST_OF  # PPO samples 40 iterations of 96 responses
SELECTION_PROMPTS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[200, 1200], help="numbers of ranked prompts")
    parser.add_argument("--methods", nargs="+", choices=[BEST, *METHODS], default=[BEST, *METHODS])
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="folder of the run folders")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/methods.json"))
    args = parser.parse_args()
    command = f"python benchmarks/methods.py --seeds {' '.join(map(str, args.seeds))} --prompts "
    bench = Bench(args.to, command + " ".join(map(str, args.prompts)))
    for seed in args.seeds:
        folder = args.runs / f"seed-{seed}"
        bench.begin(seed, folder, max(args.prompts))
        for count in args.prompts:
            bench.train_all(seed, folder, count, args.methods)
            bench.judge(seed, folder, count, args.methods)
    print(json.dumps(bench.result, indent=2))


class Bench:
    """The result so far, and the steps that fill it."""

    def __init__(self, to: Path, command: str) -> None:
        self.to = to
        before = json.loads(to.read_text()) if to.is_file() else {}
        self.result: dict[str, Any] = {**provenance(command), "costs": {}, "judged": {}}
        self.result |= {key: before[key] for key in ("costs", "judged") if key in before}

    def step(self, name: str, words: str) -> dict[str, float]:
        """Runs a command once: its seconds, those of the CPU, its peak memory, and the load before it."""
        costs: dict[str, dict[str, float]] = self.result["costs"]
        if name not in costs:
            load, started = os.getloadavg()[0], time.monotonic()
            process = subprocess.Popen([sys.executable, "-m", "lora_rlhf.cli", *words.split()])
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"{name}: `lora-rlhf {words}` ended with status {os.waitstatus_to_exitcode(status)}")
            costs[name] = {
                "seconds": round(time.monotonic() - started, 1),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                "peak_gib": round(usage.ru_maxrss * KIB / 2**30, 3),
                "load_before": round(load, 2),
            }
            write_json(self.to, self.result)
        return costs[name]

    def begin(self, seed: int, folder: Path, most: int) -> None:
        """The data, the SFT model, its answers and their rankings."""
        data, run = folder / "data", folder / "start"
        sizes = f"--num_ranking_prompts {most} --num_pretraining 1000 --num_selection_prompts {SELECTION_PROMPTS}"
        self.step(f"{seed}/data", f"tinyworld make --to {data} --seed {seed} {sizes}")
        self.step(
            f"{seed}/sft",
            f"sft --run {run} --model tinyworld --demonstrations {data}/demonstrations.jsonl --seed {seed} "
            f"--batch_size 32 --micro_batch_size 32 --learning_rate 2e-3 {LIMITS}",
        )
        self.step(
            f"{seed}/sample",
            f"sample --run {run} --prompts {data}/ranking_prompts.jsonl --to {data}/candidates.jsonl --seed {seed} "
            f"--engine static {LIMITS}",
        )
        rankings = f"--responses {data}/candidates.jsonl --to {data}/rankings.jsonl --seed {seed}"
        self.step(f"{seed}/label", f"tinyworld label {rankings}")

    def train_all(self, seed: int, folder: Path, count: int, names: list[str]) -> None:
        """The methods on the first `count` ranked prompts, each in a run of its own beside the others."""
        data, key, costs = folder / "data", f"{seed}/{count}", self.result["costs"]
        rankings = first_rows(data / "rankings.jsonl", count)
        common = f"--seed {seed} {LIMITS} --sft {folder}/start/sft"
        reward = folder / f"reward-{count}"
        self.step(
            f"{key}/reward",
            f"reward --run {reward} --rankings {rankings} {common} --batch_size 16 --micro_batch_size 64 "
            "--learning_rate 2e-3",
        )
        for name in names:
            if name == BEST:
                self._best_of(BEST, seed, folder, count, data / "evaluation_prompts.jsonl")
                continue
            if name == "rejection":
                practice = first_rows(data / "ppo_prompts.jsonl", REJECTION_PROMPTS)
                parts = [data / "demonstrations.jsonl", self._best_of("best", seed, folder, count, practice)]
                (data / f"with-best-{count}.jsonl").write_text("".join(part.read_text() for part in parts))
            command, flags = METHODS[name]
            reads = {
                "dpo": f"--rankings {rankings} {common}",
                "ppo": f"--prompts {data}/ppo_prompts.jsonl --reward {reward}/reward {common}",
                "sft": f"--model tinyworld --demonstrations {data}/with-best-{count}.jsonl --seed {seed} {LIMITS} "
                "--batch_size 32 --micro_batch_size 32 --learning_rate 2e-3",
            }[command]
            if name.endswith("_as_long"):
                seconds = costs[f"{key}/reward"]["cpu_seconds"] + costs[f"{key}/ppo"]["cpu_seconds"]
                flags += f" --epochs {max(1, round(seconds / costs[f'{key}/dpo']['cpu_seconds']))}"
            self.step(f"{key}/{name}", f"{command} --run {folder}/{name}-{count} {reads} {flags.format(data=data)}")

    def _best_of(self, name: str, seed: int, folder: Path, count: int, prompts: Path) -> Path:
        """The file of the SFT model's best answers, of 16 to each prompt, by the reward model."""
        to = folder / "data" / f"{name}-{count}.jsonl"
        self.step(
            f"{seed}/{count}/{name}",
            f"sample --run {folder}/start --reward {folder}/reward-{count}/reward --prompts {prompts} "
            f"--to {to} --best_of {BEST_OF} --engine static --seed {seed} {LIMITS}",
        )
        return to

    def judge(self, seed: int, folder: Path, count: int, methods: list[str]) -> None:
        """One report over all of them, and what it says of each against the SFT model."""
        data, names = folder / "data", [name for name in METHODS if name in methods]
        report = folder / f"report-{count}-{len(names)}"
        runs = " ".join(f"{folder}/{name}-{count}" for name in names)
        self.step(
            f"{seed}/{count}/evaluate {' '.join(names)}",
            f"evaluate {runs} --prompts {data}/evaluation_prompts.jsonl --selection_prompts "
            f"{data}/selection_prompts.jsonl --baseline sft --sft {folder}/start/sft "
            f"--reward {folder}/reward-{count}/reward --to {report} --probes none --choices none --seed {seed} "
            f"--micro_batch_size 64 {LIMITS}",
        )
        read = read_report(report)
        judged = {"sft": figures_of(read, "sft")}
        for name in names:
            own = [system for system in read.systems if system.startswith(f"{name}-{count}:")]
            accuracy = read_manifest(folder / f"{name}-{count}" / METHODS[name][0])["results"].get("accuracy")
            judged[name] = figures_of(read, own[0] if own else read.candidate)
            judged[name]["held_out_accuracy"] = accuracy and accuracy["rate"]
        if BEST in methods:
            rows = [json.loads(line) for line in (report / "evaluation_samples.jsonl").read_text().splitlines()]
            judged[BEST] = best_of_figures(data / f"{BEST}-{count}.jsonl", rows)
        self.result["judged"][f"{seed}/{count}"] = judged
        write_json(self.to, self.result)


def first_rows(path: Path, count: int) -> Path:
    """A file beside this one with its first rows."""
    to = path.with_name(f"{path.stem}-{count}.jsonl")
    with path.open() as rows:
        to.write_text("".join(islice(rows, count)))
    return to


def best_of_figures(chosen: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Best of 16 against the SFT model's answers at temperature 1, prompt by prompt."""
    source: Source[Demonstration] = Source(str(chosen), "demonstrations")
    best = {row.prompt.messages[-1].content: row.response for row in source}
    outcomes, golds = [], []
    for row in rows:
        prompt = row["prompt"][-1]["content"] if isinstance(row["prompt"], list) else row["prompt"]
        if prompt in best:
            golds.append(gold_total(prompt, best[prompt]))
            lead = golds[-1] - row["scores"]["sft"]
            outcomes.append(0.5 if abs(lead) < 1e-9 else float(lead > 0))
    return {
        "win_rate": mean_outcome(outcomes)._asdict(),
        "gold": sum(golds) / len(golds),
        "kl": math.log(BEST_OF) - (BEST_OF - 1) / BEST_OF,
    }


def figures_of(report: Report, system: str) -> dict[str, Any]:
    """What a report says of one system: win rates against the SFT model, and figures at temperature 1."""
    found = to_json(report.figures)

    def value(figure: str) -> Any:
        return found.get(figure, {}).get(system, {}).get("value")

    tables = {"win_rate": report.win_rates, "win_rate_best_temperature": report.win_rates_best_temperature}
    return {
        **{name: against_sft(to_json(table), system) for name, table in tables.items()},
        **{"gold": value("score"), "kl": value("kl_per_response"), "length": value("length")},
        **{"perplexity": value("perplexity"), "best_temperature": report.best_temperature.get(system)},
    }


def against_sft(rates: dict[str, Any], system: str) -> dict[str, float] | None:
    """The win rate of a system against the SFT model, whichever of both the report names first."""
    if (rate := rates.get(f"{system}_vs_sft")) is not None:
        return {key: rate[key] for key in ("rate", "low", "high", "n")}
    if (rate := rates.get(f"sft_vs_{system}")) is not None:
        return {"rate": 1 - rate["rate"], "low": 1 - rate["high"], "high": 1 - rate["low"], "n": rate["n"]}
    return None


if __name__ == "__main__":
    main()
