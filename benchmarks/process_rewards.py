"""A process reward against an outcome reward on the tiny world's sums in steps: best of n, and PPO.

    python benchmarks/process_rewards.py --seeds 0 1 2

All reward models are `reward --steps` on the SFT model's own answers, five to each sum, which code labels. The outcome
reward has one label an answer, at its last step: whether the result is right. The process reward has one label a step,
of as many answers ("process"), or of as few as give the same number of labels ("process, equal labels"). Each takes the
same number of optimizer steps. Every best of n chooses among the same responses of the SFT model to sums that no file
of the training has.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from provenance import provenance

from lora_rlhf.cli.main import main as command
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.sources import Source
from lora_rlhf.data.template import decode_response, render_prompt
from lora_rlhf.model.generate import Response, draw_seeds
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.render.palette import INK, SERIES
from lora_rlhf.render.pictures import SMALL, save_png, style_axis
from lora_rlhf.rewards.builtin import numeric_answer
from lora_rlhf.runs.folder import find_stage
from lora_rlhf.stages.best_of import BestOf
from lora_rlhf.stages.sampler import Sampler
from lora_rlhf.stages.session import PROCESS, load_parent_role, open_parent_base, step_end_of
from lora_rlhf.stats.intervals import share_interval
from lora_rlhf.system.disk import write_json
from lora_rlhf.tinyworld.facts import NUMBERS
from lora_rlhf.tinyworld.worked import judge_steps

LIMITS = "--max-prompt-tokens 40 --max-response-tokens 48 --micro-batch-size 64"
DATA = "--num-demonstrations 250 --num-step-labels 300 --num-prompts 200 --num-held-out 120"
SFT = "--model tinyworld --learning-rate 2e-3 --epochs 6 --batch-size 16"
REWARD = "--step-end . --learning-rate 1e-3"
PPO = (
    "--batch-size 64 --minibatch-size 32 --num-epochs 1 --policy-learning-rate 1e-3 --value-learning-rate 2e-3 "
    "--kl-coef 0.1 --warmup-iterations 2 --accept-chance-reward true"
)
ANSWERS = 5  # labelled ones of a sum
EPOCHS, STEPS = 4, 4  # passes over the answers of which all are labelled; steps of an answer
SIZES = (1, 2, 4, 8)
WAYS = {  # how the best of n is chosen: (reward model, what its steps become)
    "process, product": ("process", "product"),
    "process, minimum": ("process", "minimum"),
    "process, equal labels, product": ("process_few", "product"),
    "process, equal labels, minimum": ("process_few", "minimum"),
    "outcome": ("outcome", "last"),
}
POLICIES = {"process, product": "process", "process, equal labels, product": "process_few", "outcome": "outcome"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/process"), help="folder of data and runs; must be new")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=12, help="of PPO; 0 leaves it out")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/process_rewards.json"))
    chosen = parser.parse_args()
    seeds = " ".join(map(str, chosen.seeds))
    result: dict[str, Any] = {
        **provenance(f"python benchmarks/process_rewards.py --seeds {seeds} --iterations {chosen.iterations}"),
        "load_before": round(os.getloadavg()[0], 2),
        "seeds": {},
    }
    for seed in chosen.seeds:
        result["seeds"][str(seed)] = measure(chosen.runs / str(seed), seed, chosen.iterations)
        write_json(chosen.to, result)
        plot(result, chosen.to.with_suffix(".png"))
        print(json.dumps({"seed": seed, **result["seeds"][str(seed)]}, indent=2), flush=True)


def measure(runs: Path, seed: int, iterations: int) -> dict[str, Any]:
    """Trains every reward model and policy of a seed in that folder, and compares them."""
    data, sft, common = runs / "data", runs / "sft_run", f"{LIMITS} --seed {seed}"
    run(f"tinyworld worked --to {data} --seed {seed} {DATA}")
    cost = {"sft": run(f"sft --run {sft} --demonstrations {data}/demonstrations.jsonl {SFT} {common}")}
    rewards = {}
    for name, rows in label_files(label_answers(sft, data / "step_labels.jsonl", seed)).items():
        folder, epochs = runs / name, EPOCHS * (STEPS if name == "process_few" else 1)
        path = f"{data}/{name}.jsonl"
        write_jsonl(path, rows)
        words = f"reward --run {folder} --sft {sft}/sft --steps {path} {REWARD} --epochs {epochs} {common}"
        cost[name] = run(words)
        rewards[name] = held_out_figures(folder)
    held_out = read_rows(data / "held_out.jsonl")
    found = best_of(sft, runs, data / "held_out.jsonl", held_out, seed)
    return {
        "held_out_sums": len(held_out),
        "rewards": rewards,
        "best_of": found,
        "policies": policies(runs, sft, data, held_out, iterations, common, cost),
        "cost": cost,
    }


def run(words: str) -> dict[str, float]:
    """Runs a command of lora-rlhf; returns its seconds, on the clock and of CPU time. SystemExit where it fails."""
    wall, cpu = time.monotonic(), time.process_time()
    if command(words.split()):
        raise SystemExit(f"failed: lora-rlhf {words}")
    return {"wall_seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def label_answers(sft: Path, path: Path, seed: int) -> list[dict[str, Any]]:
    """Whole answers of the SFT model to those sums, each step labelled: all first answers, then all second ones."""
    questions = read_rows(path)
    model, config = open_sampler(sft, "sft", path, seed)
    _, groups = sample(model, config, "sft", questions, ANSWERS)
    rows = []
    for answers in zip(*groups, strict=True):
        for question, answer in zip(questions, answers, strict=True):
            steps = [
                f"{step.strip()}." for step in decode_response(model.tokenizer, answer.ids).split(".") if step.strip()
            ]
            if not answer.finished or not steps:
                continue
            words = question["prompt"].removeprefix("How much is ").removesuffix("?").split(" plus ")
            numbers = tuple(map(NUMBERS.index, words))
            is_right = steps[-1].endswith(f" {NUMBERS[sum(numbers)]}.")
            labels = judge_steps(numbers, steps)
            rows.append({"prompt": question["prompt"], "completions": steps, "labels": labels, "is_right": is_right})
    return rows


def label_files(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The labels that each reward model learns from."""
    outcomes = [{**row, "labels": [None] * (len(row["labels"]) - 1) + [row["is_right"]]} for row in rows]
    return {"process": rows, "process_few": rows[: len(rows) // STEPS], "outcome": outcomes}


def held_out_figures(folder: Path) -> dict[str, Any]:
    """How a reward model judges the labels that it was not trained on, and how many it was trained on."""
    results = find_stage(folder / "reward", "reward").manifest["results"]
    names = ("answers", "labelled_steps", "held_out_steps", "step_accuracy", "majority", "ece", "accuracy_by_step")
    return {name: results[name] for name in names}


def open_sampler(folder: Path, role: str, path: Path, seed: int) -> tuple[SharedModel, SampleConfig]:
    """The model with a stage's role in memory, and settings to sample with."""
    config = SampleConfig(
        run=str(folder), prompts=str(path), to="unused", best_of=max(SIZES), max_prompt_tokens=40, seed=seed,
        max_response_tokens=48, micro_batch_size=64, generation_batch_size=64,
    )  # fmt: skip
    stage = find_stage(folder / ("sft" if role == "sft" else "ppo"), "sft" if role == "sft" else "ppo")
    model = open_parent_base(config, stage, None)
    load_parent_role(model, role, stage)
    return model, config


def sample(
    model: SharedModel, config: SampleConfig, role: str, rows: Sequence[dict[str, Any]], count: int
) -> tuple[list[EncodedPrompt], list[list[Response]]]:
    """`count` responses to each sum."""
    prompts = [Prompt.of(row["prompt"]) for row in rows]
    encoded = [EncodedPrompt(render_prompt(model.tokenizer, prompt), prompt) for prompt in prompts]
    seeds = draw_seeds(torch.Generator().manual_seed(config.seed), len(rows), count)
    return encoded, Sampler(config, model, role).sample([one.prompt_ids for one in encoded], seeds)


def is_right(model: SharedModel, row: dict[str, Any], response: Response) -> bool:
    text = decode_response(model.tokenizer, response.ids)
    return response.finished and numeric_answer(text, row["answer"]) == 1


def best_of(sft: Path, runs: Path, path: Path, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The share of sums whose chosen response has the right result: {way: {n: share with interval}}."""
    model, config = open_sampler(sft, "sft", path, seed)
    prompts, groups = sample(model, config, "sft", rows, max(SIZES))
    right = [[is_right(model, row, one) for one in group] for row, group in zip(rows, groups, strict=True)]
    found: dict[str, Any] = {}
    for way, (name, form) in WAYS.items():
        reward = find_stage(runs / name / "reward", "reward")
        model.remove_role(PROCESS)
        load_parent_role(model, PROCESS, reward)
        chooser = BestOf(
            SampleConfig(**{**vars(config), "score_steps_by": form}), Source(str(path), "prompts"), step_end_of(reward)
        )
        scores = [one["scores"] for one in chooser.candidates(model, prompts, groups)]
        found[way] = {
            str(n): share([flags[_best(own[:n])] for own, flags in zip(scores, right, strict=True)]) for n in SIZES
        }
    texts = [
        [decode_response(model.tokenizer, one.ids).rstrip(".").split(" ")[-1] for one in group] for group in groups
    ]
    found["most frequent result"] = {
        str(n): share([flags[_mode(own[:n])] for own, flags in zip(texts, right, strict=True)]) for n in SIZES
    }
    found["any of them"] = {str(n): share([any(flags[:n]) for flags in right]) for n in SIZES}
    return found


def _best(scores: Sequence[float | None]) -> int:
    return max(range(len(scores)), key=lambda index: -1.0 if scores[index] is None else scores[index])  # type: ignore


def _mode(results: Sequence[str]) -> int:
    """The index of the first response with the most frequent result."""
    return list(results).index(Counter(results).most_common(1)[0][0])


def share(flags: Sequence[bool]) -> dict[str, float]:
    interval = share_interval(list(flags))
    assert interval is not None
    return {name: round(value, 4) for name, value in interval._asdict().items()}


def policies(
    runs: Path, sft: Path, data: Path, rows: list[dict[str, Any]], iterations: int, common: str, cost: dict[str, Any]
) -> dict[str, Any]:
    """The share of right results of the SFT model and of the policies, one response to each sum at temperature 1."""
    found: dict[str, Any] = {}
    if not iterations:
        return found
    names = {"SFT": ("sft_run", "sft")} | {way: (f"ppo_{name}", "policy") for way, name in POLICIES.items()}
    for way, name in POLICIES.items():
        folder, form = runs / f"ppo_{name}", WAYS[way][1]
        words = f"ppo --run {folder} --sft {sft}/sft --reward {runs / name}/reward --prompts {data}/prompts.jsonl"
        cost[f"ppo_{name}"] = run(f"{words} {PPO} --iterations {iterations} --score-steps-by {form} {common}")
        shutil.copytree(sft / "sft", folder / "sft", dirs_exist_ok=True)
    for way, (folder_name, role) in names.items():
        model, config = open_sampler(runs / folder_name, role, data / "held_out.jsonl", 1)
        _, groups = sample(model, config, role, rows, 2)
        pairs = [(row, one) for row, group in zip(rows, groups, strict=True) for one in group]
        found[way] = {"right": share([is_right(model, row, one) for row, one in pairs])}
        if role == "policy":
            lines = (runs / folder_name / "ppo" / "metrics.jsonl").read_text().splitlines()
            metrics = [json.loads(line) for line in lines]
            found[way]["score"] = [round(row["rollout/score"], 4) for row in metrics if "rollout/score" in row]
            found[way]["kl"] = [round(row["rollout/kl"], 4) for row in metrics if "rollout/kl" in row]
    return found


def mean_rate(shares: Iterable[dict[str, float]]) -> float:
    return statistics.mean(one["rate"] for one in shares)


def plot(result: dict[str, Any], path: Path) -> None:
    """The share of right results by n, the seeds' mean; beside it, that of the policies of each seed."""
    seeds = list(result["seeds"].values())
    policies = list(seeds[0]["policies"])
    figure = Figure(figsize=(9 if policies else 5.5, 3.8), layout="constrained")
    axes = figure.subplots(1, 2 if policies else 1, squeeze=False)[0]
    for number, way in enumerate([*WAYS, "most frequent result", "any of them"]):
        points = [mean_rate(seed["best_of"][way][str(n)] for seed in seeds) for n in SIZES]
        color = SERIES[number] if number < len(SERIES) else INK
        style = {"most frequent result": "--", "any of them": ":"}.get(way, "-")
        axes[0].plot(SIZES, points, style, marker="o", markersize=3, color=color, linewidth=1.3, label=way)
    axes[0].set_xscale("log", base=2, subs=())
    axes[0].set_xticks(SIZES, [str(n) for n in SIZES])
    axes[0].set_xlabel("responses to choose from", fontsize=SMALL, color=INK)
    axes[0].set_ylabel("share of right results", fontsize=SMALL, color=INK)
    axes[0].set_title("best of n", fontsize=10, loc="left", color=INK)
    axes[0].legend(fontsize=SMALL, frameon=False)
    for axis in axes[1:]:
        for place, name in enumerate(policies):
            rates = [seed["policies"][name]["right"]["rate"] for seed in seeds]
            axis.plot([min(rates), max(rates)], [place, place], color=INK, linewidth=1)
            axis.plot(rates, [place] * len(rates), "o", color=SERIES[0])
        axis.set_yticks(range(len(policies)), [name.replace(", ", ",\n", 1) for name in policies], fontsize=SMALL)
        axis.set_title("PPO, a point for each seed", fontsize=10, loc="left", color=INK)
        axis.set_xlabel("share of right results", fontsize=SMALL, color=INK)
    for axis in axes:
        style_axis(axis)
    save_png(figure, path)


if __name__ == "__main__":
    main()
