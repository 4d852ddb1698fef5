"""Methods side by side on the tiny world: from the same base, SFT model and ranked prompts, judged by the gold score.

    OMP_NUM_THREADS=1 python benchmarks/methods.py --prompts 200 --seeds 0 1 2
    OMP_NUM_THREADS=1 python benchmarks/methods.py --prompts 1200
    OMP_NUM_THREADS=1 python benchmarks/methods.py --prompts 10000 --methods best_of_16 ppo dpo kto dpo_as_long

Each seed has one SFT model. It answers the first so many prompts of the same file, four times each (twice where there
are more than 2,000), and the simulated labelers rank the answers. A method runs as its command, in a process of its own
that has the libraries loaded; the result is written after every one of them, and a second call goes on where the first
one stopped, if the run folders are still there. `--methods` names those that shall be there then.

Rejection sampling: SFT again, on the demonstrations and on the best of 16 answers to as many prompts as make PPO's
number of responses. `as_long`: DPO with as many epochs as fit into the CPU seconds of reward model and PPO together.
"""

import argparse
import importlib
import json
import math
import os
import sys
import time
import traceback
from importlib import resources
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

from methods_report import plot
from provenance import provenance
from transformers import AutoTokenizer

from lora_rlhf.cli.main import main as command
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
MOST_PROMPTS = 12_500  # that can be ranked: 10,000, and those whose answers are too much alike
SPARE = 1.25
ITERATIONS, BATCH = 20, 96
RESPONSES = ITERATIONS * BATCH  # that PPO samples
REJECTION_PROMPTS = RESPONSES // BEST_OF
DEMONSTRATIONS, EVALUATION_PROMPTS, SELECTION_PROMPTS = 1500, 320, 100
LIMITS = "--max_prompt_tokens 128 --max_response_tokens 64 --generation_batch_size 416 --device cpu"
SFT = "--model tinyworld --batch_size 32 --micro_batch_size 32 --learning_rate 2e-3"
PPO = (
    f"--iterations {ITERATIONS} --batch_size {BATCH} --minibatch_size {BATCH} --micro_batch_size 48 --num_epochs 1 "
    "--policy_learning_rate 1.5e-3 --value_learning_rate 2e-3 --warmup_iterations 5 --kl_coef 0.15 --kl_target 1.2 "
    "--kl_horizon 600 --engine static --accept_chance_reward true"
)
DPO = "--micro_batch_size 64 --learning_rate 5e-4"
# {method: (the command, its own flags)}; the report is of the first one's run, and its policy is the candidate
METHODS = {
    "ppo": ("ppo", PPO),
    "dpo": ("dpo", DPO),
    "ppo_ptx": ("ppo", f"{PPO} --pretraining_text {{data}}/pretraining.jsonl --ptx_coef 1 --ptx_block_tokens 64"),
    "rloo": ("ppo", f"{PPO} --advantage rloo --samples_per_prompt 4"),
    "grpo": ("ppo", f"{PPO} --advantage grpo --samples_per_prompt 4"),
    "ipo": ("dpo", f"{DPO} --loss_type ipo"),
    "kto": ("dpo", f"{DPO} --method kto --batch_size 32"),
    "rejection": ("sft", SFT),
    "dpo_as_long": ("dpo", DPO),
}
BEST = f"best_of_{BEST_OF}"  # no training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[200, 1200], help="numbers of ranked prompts")
    parser.add_argument("--methods", nargs="+", choices=[BEST, *METHODS], default=[BEST, *METHODS])
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="folder of the run folders")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/methods.json"))
    parser.add_argument("--plot", action="store_true", help="only draw the picture of the result that is there")
    args = parser.parse_args()
    if not args.plot:
        chosen = (("--prompts", args.prompts), ("--seeds", args.seeds), ("--methods", args.methods))
        words = [
            " ".join(map(str, [flag, *values])) for flag, values in chosen if values != parser.get_default(flag[2:])
        ]
        bench = Bench(args.to, args.runs, " ".join(["python benchmarks/methods.py", *words]))
        for room in ("evaluation.report", "stages.dpo", "stages.ppo"):  # no command shall spend its time on loading
            importlib.import_module(f"lora_rlhf.{room}")
        for count in args.prompts:
            for seed in args.seeds:
                folder = args.runs / f"seed-{seed}"
                bench.begin(seed, folder)
                bench.rank(seed, folder, count)
                bench.train_all(seed, folder, count, args.methods)
                bench.judge(seed, folder, count, args.methods)
    plot(json.loads(args.to.read_text()), args.to.with_suffix(".png"))


class Bench:
    """The result so far, and the steps that fill it."""

    def __init__(self, to: Path, runs: Path, words: str) -> None:
        self.to = to
        before = json.loads(to.read_text()) if to.is_file() and runs.is_dir() else {}  # without the runs all is anew
        self.result: dict[str, Any] = {**provenance(words), "costs": {}, "judged": {}} | before
        for key, value in provenance(words).items():  # of every call that added to the result
            self.result[key] = "; ".join(dict.fromkeys([*self.result[key].split("; "), value]))
        self.result["rows"] = {
            **{"demonstrations": DEMONSTRATIONS, "ppo_responses": RESPONSES},
            **{"evaluation_prompts": EVALUATION_PROMPTS, "rejection_responses": REJECTION_PROMPTS * BEST_OF},
        }

    def step(self, name: str, words: str) -> dict[str, float]:
        """Runs a command once: its seconds, those of the CPU, its peak memory, and the load before it."""
        costs: dict[str, dict[str, float]] = self.result["costs"]
        if name not in costs:
            load, started = os.getloadavg()[0], time.monotonic()
            sys.stdout.flush()
            if (process := os.fork()) == 0:
                run_and_exit(words)
            _, status, usage = os.wait4(process, 0)
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

    def begin(self, seed: int, folder: Path) -> None:
        """The data and the SFT model."""
        data = folder / "data"
        sizes = {"demonstrations": DEMONSTRATIONS, "ranking_prompts": MOST_PROMPTS, "pretraining": 1000}
        sizes |= {"evaluation_prompts": EVALUATION_PROMPTS, "selection_prompts": SELECTION_PROMPTS}
        flags = " ".join(f"--num_{name} {count}" for name, count in sizes.items())
        self.step(f"{seed}/data", f"tinyworld make --to {data} --seed {seed} {flags}")
        reads = f"--demonstrations {data}/demonstrations.jsonl --seed {seed}"
        self.step(f"{seed}/sft", f"sft --run {folder}/start {reads} {SFT} {LIMITS}")

    def rank(self, seed: int, folder: Path, count: int) -> None:
        """The SFT model's answers to the first prompts, and their rankings."""
        data, answers = folder / "data", 4 if count <= 2000 else 2
        self.result.setdefault("answers", {})[str(count)] = answers
        prompts, candidates = (
            first_rows(data / "ranking_prompts.jsonl", int(count * SPARE)),
            f"{data}/from-{count}.jsonl",
        )
        self.step(
            f"{seed}/{count}/sample",
            f"sample --run {folder}/start --prompts {prompts} --to {candidates} --seed {seed} --engine static "
            f"--min_responses {answers} --max_responses {answers} {LIMITS}",
        )
        rankings = f"--responses {candidates} --to {data}/labelled-{count}.jsonl --seed {seed}"
        self.step(f"{seed}/{count}/label", f"tinyworld label {rankings}")

    def train_all(self, seed: int, folder: Path, count: int, names: list[str]) -> None:
        """The methods on `count` ranked prompts, each in a run of its own beside the others."""
        data, key, costs = folder / "data", f"{seed}/{count}", self.result["costs"]
        rankings = first_rows(data / f"labelled-{count}.jsonl", count)
        common = f"--seed {seed} {LIMITS} --sft {folder}/start/sft"
        reward = folder / f"reward-{count}"
        self.step(
            f"{key}/reward",
            f"reward --run {reward} --rankings {rankings} {common} --batch_size 16 --micro_batch_size 64 "
            "--learning_rate 2e-3",
        )
        for name in [*([BEST] if BEST in names else []), *(name for name in METHODS if name in names)]:
            if name == BEST:
                self._best_of(BEST, seed, folder, count, data / "evaluation_prompts.jsonl")
                continue
            if name == "rejection":
                practice = first_rows(data / "ppo_prompts.jsonl", REJECTION_PROMPTS)
                parts = [data / "demonstrations.jsonl", self._best_of("best", seed, folder, count, practice)]
                (data / f"with-best-{count}.jsonl").write_text("".join(part.read_text() for part in parts))
            kind, flags = METHODS[name]
            reads = {
                "dpo": f"--rankings {rankings} {common}",
                "ppo": f"--prompts {data}/ppo_prompts.jsonl --reward {reward}/reward {common}",
                "sft": f"--demonstrations {data}/with-best-{count}.jsonl --seed {seed} {LIMITS}",
            }[kind]
            if name.endswith("_as_long"):
                seconds = costs[f"{key}/reward"]["cpu_seconds"] + costs[f"{key}/ppo"]["cpu_seconds"]
                flags += f" --epochs {max(1, round(seconds / costs[f'{key}/dpo']['cpu_seconds']))}"
            self.step(f"{key}/{name}", f"{kind} --run {folder}/{name}-{count} {reads} {flags.format(data=data)}")

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
            f"--temperatures 0 0.5 1 --micro_batch_size 64 {LIMITS}",
        )
        read = read_report(report)
        judged = {"sft": figures_of(read, "sft")}
        for name in names:
            own = [system for system in read.systems if system.startswith(f"{name}-{count}:")]
            found = read_manifest(folder / f"{name}-{count}" / METHODS[name][0])["results"]
            judged[name] = figures_of(read, own[0] if own else read.candidate)
            judged[name] |= {key: found[key] for key in ("pairs", "steps") if key in found}
        if BEST in methods:
            rows = [json.loads(line) for line in (report / "evaluation_samples.jsonl").read_text().splitlines()]
            judged[BEST] = best_of_figures(data / f"{BEST}-{count}.jsonl", rows)
        if "rejection" in judged:
            judged["rejection"]["kl"] = None  # the report measures it from the SFT model of the same run: itself
        self.result["judged"][f"{seed}/{count}"] = judged
        write_json(self.to, self.result)


def run_and_exit(words: str) -> NoReturn:
    """Runs a command of lora-rlhf, anew where an earlier attempt was ended, and ends this process with its status."""
    status = 1
    try:
        status = command([*words.split(), *([] if words.startswith("tinyworld") else ["--overwrite"])])
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def first_rows(path: Path, count: int) -> Path:
    """A file beside this one with its first rows. SystemExit where there are fewer."""
    to = path.with_name(f"{path.stem}-first-{count}.jsonl")
    with path.open() as lines:
        rows = list(islice(lines, count))
    if len(rows) < count:
        sys.exit(f"{path} has {len(rows)} rows, {count} are needed: raise SPARE")
    to.write_text("".join(rows))
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
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("lora_rlhf") / "tinyworld" / "base"))
    return {
        "win_rate": mean_outcome(outcomes)._asdict(),
        "gold": fmean(golds),
        "length": fmean(len(tokenizer.encode(f" {response}")) + 1 for response in best.values()),  # and its end
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
