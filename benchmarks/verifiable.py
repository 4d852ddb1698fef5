"""Rewards that code checks: the tiny world's problems by SFT, then by PPO and by GRPO without a reward model.

    python benchmarks/verifiable.py

The commands are those of docs/rewards.md. A held-out problem is solved where every check that its row has passes. The
pairs of numbers in held-out problems occur in no problem of the other files (the base's pretraining has them).
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from provenance import provenance

from lora_rlhf import load_run
from lora_rlhf.cli.main import main as command
from lora_rlhf.render.palette import FAINT, INK, SERIES
from lora_rlhf.render.pictures import SMALL, save_png, style_axis
from lora_rlhf.rewards.builtin import length_window, numeric_answer, regex
from lora_rlhf.stats.intervals import share_interval
from lora_rlhf.system.disk import write_json

LIMITS = "--max-prompt-tokens 64 --max-response-tokens 32 --micro-batch-size 64"
SFT = "--model tinyworld --demonstrations {data}/demonstrations.jsonl --learning-rate 2e-3"
PPO = (
    "--prompts {data}/prompts.jsonl --reward-functions numeric_answer length_window regex --batch-size 128 "
    "--minibatch-size 64 --num-epochs 1 --policy-learning-rate 1.5e-3 --value-learning-rate 2e-3 --kl-coef 0.02"
)
METHODS = {"gae": "", "grpo": "--advantage grpo --samples-per-prompt 8"}
TITLES = {"gae": "PPO (gae)", "grpo": "GRPO"}
TEMPERATURES = {"sampled": 1.0, "greedy": 0.0}
CHECKS = ("numeric_answer", "length_window", "regex")
GOAL = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/verifiable"), help="folder of data and runs; must be new"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/verifiable.json"))
    chosen = parser.parse_args()
    data, sft, load = chosen.runs / "data", chosen.runs / "sft_run", os.getloadavg()[0]
    run(f"tinyworld problems --to {data} --seed {chosen.seed}")
    common = f"{LIMITS} --seed {chosen.seed}"
    cost = {"sft": run(f"sft --run {sft} {SFT.format(data=data)} {common}")}
    rows = [json.loads(line) for line in (data / "held_out.jsonl").read_text().splitlines()]
    held_out, curves = {"sft": accuracy(sft, "sft", rows)}, {}
    for method, flags in METHODS.items():
        folder = chosen.runs / method
        words = f"ppo --run {folder} --sft {sft}/sft {PPO.format(data=data)} {flags} --iterations {chosen.iterations}"
        cost[method] = run(f"{words} {common}")
        shutil.copytree(sft / "sft", folder / "sft", dirs_exist_ok=True)  # for load_run, which reads a whole run
        held_out[method] = accuracy(folder, "policy", rows)
        curves[method] = curve(folder)
    result = {
        **provenance(f"python benchmarks/verifiable.py --seed {chosen.seed} --iterations {chosen.iterations}"),
        "load_before": round(load, 2),
        "held_out_problems": len(rows),
        "threads": torch.get_num_threads(),
        "cost": cost,
        "held_out": held_out,
        "curves": curves,
    }
    write_json(chosen.to, result)
    plot(result, chosen.to.with_suffix(".png"))
    print(json.dumps({name: result[name] for name in ("cost", "held_out")}, indent=2))


def run(words: str) -> dict[str, float]:
    """Runs a command of lora-rlhf; returns its seconds, on the clock and of CPU time. SystemExit where it fails."""
    wall, cpu = time.monotonic(), time.process_time()
    if command(words.split()):
        raise SystemExit(f"failed: lora-rlhf {words}")
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return {"wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}


def accuracy(folder: Path, role: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of held-out problems solved at each temperature, and the share that passes each check."""
    found: dict[str, Any] = {}
    with load_run(folder, role=role) as loaded:
        for name, temperature in TEMPERATURES.items():
            asked = [row["question"] for row in rows]
            answers = loaded.generate(asked, temperature=temperature, max_response_tokens=32, batch_size=100)
            checked = [checks(row, answer.text, answer.finished) for row, answer in zip(rows, answers, strict=True)]
            solved = share_interval([all(passed.values()) for passed in checked])
            assert solved is not None
            by_check = {check: [passed[check] for passed in checked if check in passed] for check in CHECKS}
            found[name] = {
                "solved": solved._asdict(),
                "checks": {check: round(sum(flags) / len(flags), 4) for check, flags in by_check.items()},
            }
    return found


def checks(row: dict[str, Any], text: str, is_finished: bool) -> dict[str, bool]:
    """Whether a response passes each check that its row has; one that did not end passes none."""
    passed = {"numeric_answer": numeric_answer(text, row["answer"]) == 1}
    if "most" in row:
        passed["length_window"] = length_window(text, row["most"]) == 1
    if "pattern" in row:
        passed["regex"] = regex(text, row["pattern"]) == 1
    return {name: flag and is_finished for name, flag in passed.items()}


def curve(folder: Path) -> list[dict[str, float]]:
    """Of each iteration: what share of its responses passed each check, and the KL."""
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            "step": row["step"],
            **{check: round(row.get(f"reward/{check}", 0.0), 4) for check in CHECKS},
            "kl": round(row["rollout/kl"], 4),
        }
        for row in rows
        if "rollout/kl" in row
    ]


def plot(result: dict[str, Any], path: Path) -> None:
    """One panel for each method: the checks on training prompts, and the held-out share before and after."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(METHODS), sharey=True)
    start = result["held_out"]["sft"]["sampled"]["solved"]["rate"]
    for axis, (method, points) in zip(panels, result["curves"].items(), strict=True):
        steps = [point["step"] for point in points]
        for check, color in zip(CHECKS, SERIES, strict=False):
            axis.plot(steps, [point[check] for point in points], color=color, linewidth=1.2, label=check)
        end = result["held_out"][method]["sampled"]["solved"]["rate"]
        axis.plot([0, steps[-1]], [start, end], "o", color=INK, label="held-out problems solved: SFT, and policy")
        axis.axhline(GOAL, color=FAINT, linewidth=0.8, linestyle=":")
        axis.set_title(f"{TITLES[method]}: held out {start:.0%} to {end:.0%}", fontsize=10, loc="left", color=INK)
        axis.set_xlabel("iteration (128 responses)", fontsize=SMALL, color=INK)
        axis.set_ylim(0, 1.03)
        style_axis(axis)
    panels[0].set_ylabel("share of responses that pass", fontsize=SMALL, color=INK)
    panels[-1].legend(fontsize=SMALL, loc="lower right", frameon=False)
    save_png(figure, path)


if __name__ == "__main__":
    main()
