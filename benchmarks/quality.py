"""Measures whether RLHF helps, on the tiny world: the quickstart over several seeds, and the controls that must fail.

    python benchmarks/quality.py --seeds 0 1 2 --to benchmarks/results/quality.json

Each seed draws other demonstrations, prompts, labels and held-out prompts. The controls start from the first seed's
SFT and reward stages: a reward model of shuffled labels with the real one's scale, a sign-flipped reward, and PPO with
and without a KL price over the same number of iterations. Finished steps are kept, so a second call goes on.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from provenance import provenance

from lora_rlhf.cli.recipe import read_recipe
from lora_rlhf.cli.recipe_run import run_recipe
from lora_rlhf.configs.stages import PPOConfig, RewardConfig
from lora_rlhf.data.schema import Ranking, choose_split
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.report import evaluate
from lora_rlhf.evaluation.report_model import Report, read_report
from lora_rlhf.runs.folder import find_stage, has_stage
from lora_rlhf.stages import ppo, reward
from lora_rlhf.stats.intervals import mean_interval
from lora_rlhf.stats.win_rates import mean_outcome
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.typed_json import to_json
from lora_rlhf.tinyworld.config import LabelConfig
from lora_rlhf.tinyworld.datasets import label
from lora_rlhf.tinyworld.gold import gold_total
from lora_rlhf.tinyworld.probes import WORLD

RECIPE = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
KL_ITERATIONS = 60  # of the runs with and without a KL price
FLIPPED_ITERATIONS = 15
PAIRS = ("policy_vs_sft", "policy_vs_base", "sft_vs_base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the run folders")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/quality.json"))
    parser.add_argument("--skip-controls", action="store_true")
    args = parser.parse_args()
    results: dict[str, Any] = {
        **provenance(f"python benchmarks/quality.py --seeds {' '.join(map(str, args.seeds))}"),
        "seeds": {},
    }
    for seed in args.seeds:
        run = args.runs / f"seed-{seed}"
        if not (run / "report.json").is_file():
            run_recipe(RECIPE, {"run": str(run), "seed": seed})
        results["seeds"][str(seed)] = summarize(run)
    results["pooled"] = {
        key: pool([args.runs / f"seed-{seed}" for seed in args.seeds], key)
        for key in ("scores", "scores_best_temperature")
    }
    if not args.skip_controls:
        results["controls"] = controls(args.runs / f"seed-{args.seeds[0]}", args.runs)
    args.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.to, results)
    print(json.dumps(results["pooled"], indent=2))


def summarize(run: Path) -> dict[str, Any]:
    """The figures of one run's report, and the accuracy of the gold score on the reward model's held-out pairs."""
    report = read_report(run)
    assert report.reward is not None
    before = {k: v for k, v in report.reward.before.items() if k not in ("reliability", "accuracy_by_margin")}
    values = to_json(report)
    trained = find_stage(run / "ppo", "ppo").manifest["results"]
    best = [row["scores_best_temperature"] for row in _read_rows(run / "evaluation_samples.jsonl")]
    return {
        "win_rate": values["win_rates"],
        "win_rate_best_temperature": values["win_rates_best_temperature"],
        "gold_best_temperature": {name: mean_interval([row[name] for row in best])._asdict() for name in best[0]},
        **{key: values[key] for key in ("best_temperature", "temperature_sweep", "verdict", "questions", "seconds")},
        **{key: values[key] for key in ("peak_rss_gib", "base_unchanged")},
        **_figures(report),
        "reward": {**before, "gold_accuracy": gold_accuracy(run)},
        "ppo": {key: trained[key] for key in ("kl", "kl_target", "kl_coef", "first_score", "last_score")},
    }


def _figures(report: Report) -> dict[str, Any]:
    """Gold scores, KL, length, how answers end and distinct-n of a report."""
    found = to_json(report.figures)
    return {
        "gold": found["score"],
        "kl": {key: found[key]["policy"] for key in ("kl_per_response", "kl_per_token")},
        "length": {name: row["value"] for name, row in found["length"].items()},
        "eos_rate": {name: row["value"] for name, row in found["eos_rate"].items()},
        "distinct": {s: {key: found[key][s]["value"] for key in ("distinct_1", "distinct_2")} for s in report.systems},
    }


def gold_accuracy(run: Path) -> float:
    """How often the gold score orders the held-out pairs as their labeler did, gold ties counting half."""
    config = read_recipe(RECIPE, {"run": str(run)})["reward"]
    assert isinstance(config, RewardConfig) and config.rankings is not None
    rankings = read_rankings(config.rankings)[0]
    held_out = [r for r in rankings if choose_split(r.prompt.opening, config.validation_fraction) == "validation"]
    outcomes = [outcome for ranking in held_out for outcome in _gold_outcomes(ranking)]
    return sum(outcomes) / len(outcomes)


def _gold_outcomes(ranking: Ranking) -> list[float]:
    gold = [gold_total(ranking.prompt.messages[-1].content, response) for response in ranking.responses]
    return [
        0.5 if abs(gold[one] - gold[other]) < 1e-9 else float(gold[one] > gold[other])
        for one in range(len(gold))
        for other in range(len(gold))
        if ranking.ranks[one] < ranking.ranks[other]
    ]


def pool(runs: list[Path], key: str) -> dict[str, Any]:
    """Win rates over all seeds' held-out prompts together."""
    rows = [row[key] for run in runs for row in _read_rows(run / "evaluation_samples.jsonl")]
    return {pair: mean_outcome([_outcome(row, *pair.split("_vs_")) for row in rows])._asdict() for pair in PAIRS}


def _outcome(row: dict[str, float], one: str, other: str) -> float:
    return 0.5 if abs(row[one] - row[other]) < 1e-9 else float(row[one] > row[other])


def controls(parent: Path, runs: Path) -> dict[str, Any]:
    """Runs that must not help, and the pair that shows what the KL price does."""
    recipe = read_recipe(RECIPE, {"run": str(parent)})
    rl, judged = recipe["ppo"], recipe["evaluate"]
    assert isinstance(rl, PPOConfig) and isinstance(judged, EvaluateConfig)
    rl = replace(rl, sft=str(parent / "sft"), reward=str(parent / "reward"))
    shuffled = _shuffled_reward(parent, runs / "shuffled")
    longer = replace(rl, iterations=KL_ITERATIONS, kl_target=None)
    variants = {
        "shuffled": replace(rl, reward=str(shuffled)),
        "flipped": replace(rl, reward_model_weight=-1.0, iterations=FLIPPED_ITERATIONS),
        "kl_free": replace(longer, kl_coef=0.0),
        "kl_priced": replace(longer, kl_coef=rl.kl_coef),
    }
    return {name: _control(name, config, judged, runs) for name, config in variants.items()}


def _shuffled_reward(parent: Path, run: Path) -> Path:
    """A reward model of shuffled ranks, scaled like the real one: sd-1 scaling would turn its noise up."""
    if not has_stage(run, "reward"):
        run.mkdir(parents=True, exist_ok=True)
        rankings = str(run / "rankings.jsonl")
        label(LabelConfig(responses=str(parent / "data" / "candidates.jsonl"), to=rankings, shuffle_labels=True))
        config = read_recipe(RECIPE, {"run": str(parent)})["reward"]
        assert isinstance(config, RewardConfig) and config.rankings is not None
        scale = find_stage(parent / "reward", "reward").manifest["results"]["scale_divided"]
        reward.train(
            replace(config, run=str(run), sft=str(parent / "sft"), rankings=rankings, scale=scale, overwrite=True)
        )
    return run / "reward"


def _control(name: str, config: PPOConfig, judged: EvaluateConfig, runs: Path) -> dict[str, Any]:
    run = runs / name
    if not has_stage(run, "ppo"):
        ppo.train(replace(config, run=str(run), overwrite=True))
    report = evaluate(replace(judged, run=str(run), selection_prompts=None, overwrite=True), world=WORLD)
    rows = _read_rows(run / "ppo" / "metrics.jsonl")
    return {
        "iterations": len(rows),
        "kl_coef": config.kl_coef,
        "win_rate_policy_vs_sft": to_json(report.win_rates["policy_vs_sft"]),
        **{key: value for key, value in _figures(report).items() if key in ("gold", "kl")},
        "rollout_kl": [round(row["rollout/kl"], 3) for row in rows],
        "reward_accuracy": report.reward.before.get("accuracy") if report.reward else None,
    }


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
