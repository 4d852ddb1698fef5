"""Measures three rounds against one pass with the same number of labels, on the tiny world; and kills a round.

    python benchmarks/rounds.py --seeds 0 --to benchmarks/results/rounds.json

Both start from one SFT stage. One pass: 720 prompts sampled from the SFT model and labelled, a reward model, 36
iterations of PPO. Rounds: 240 prompts and 12 iterations, three times, with `lora-rlhf round`, which chooses the prompts
of rounds 2 and 3 and keeps a fifth of their labels for measuring. Simulated labelers rank. Then a small round is killed
with SIGKILL at random instants and compared with one that was not. Finished steps are kept, so a second call goes on.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from provenance import provenance

from lora_rlhf.cli.recipe_run import run_recipe
from lora_rlhf.cli.rounds import run_round
from lora_rlhf.cli.rounds_record import reward_accuracy
from lora_rlhf.configs.rounds import RoundConfig
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.data.schema import Ranking
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.report import evaluate
from lora_rlhf.evaluation.report_model import Report, read_report
from lora_rlhf.runs.folder import adapter_hash
from lora_rlhf.runs.rounds import read_rounds, round_folder
from lora_rlhf.stages.sample import sample
from lora_rlhf.system.disk import finite, write_json
from lora_rlhf.system.errors import Stopped
from lora_rlhf.system.typed_json import to_json
from lora_rlhf.tinyworld.config import LabelConfig
from lora_rlhf.tinyworld.datasets import label
from lora_rlhf.tinyworld.gold import gold_total
from lora_rlhf.tinyworld.probes import WORLD

RECIPE = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
ROUNDS = 3
LABELS, ITERATIONS = 240, 12  # of one round
HELD_OUT = 320  # prompts of each round's own evaluation and gate; as many others compare at the end
MEASURED = 150  # prompts whose answers measure the reward models at the end
NO_PROBES = {"probes": "none", "choices": "none", "text": "none"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--runs", type=Path, default=Path("runs/rounds"), help="folder of the run folders")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/rounds.json"))
    args = parser.parse_args()
    results: dict[str, Any] = provenance(f"python benchmarks/rounds.py --seeds {' '.join(map(str, args.seeds))}")
    results |= {"rounds": ROUNDS, "labels_of_a_round": LABELS, "iterations_of_a_round": ITERATIONS}
    args.to.parent.mkdir(parents=True, exist_ok=True)
    if args.kills:
        results["kills"] = kill(args.kills)
        write_json(args.to, results)
    results["seeds"] = {}
    for seed in args.seeds:
        results["seeds"][str(seed)] = measure(args.runs / f"seed-{seed}", seed)
        write_json(args.to, finite(results))
    print(json.dumps(results, indent=2))


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """Both ways of one seed, and what came of them."""
    started = time.monotonic()
    sft, one_pass, rounds = folder / "sft", folder / "one-pass", folder / "rounds"
    recipe = read_yaml(RECIPE) | {"seed": seed}
    made = recipe_of(recipe, sft, sft, "tinyworld", "sft")
    made["tinyworld"]["num_evaluation_prompts"] = 2 * HELD_OUT
    run_recipe(made)
    begin(recipe, sft, one_pass, LABELS * ROUNDS, ITERATIONS * ROUNDS)
    begin(recipe, sft, rounds, LABELS, ITERATIONS)
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps({"evaluate": NO_PROBES}))
    held_out, unseen = folder / "held_out.jsonl", folder / "unseen.jsonl"
    lines = (sft / "data" / "evaluation_prompts.jsonl").read_text().splitlines(keepends=True)
    held_out.write_text("".join(lines[:HELD_OUT]))
    unseen.write_text("".join(lines[HELD_OUT:]))
    for number in range(2, ROUNDS + 1):
        make_round(
            RoundConfig(
                folder=str(rounds),
                number=number,
                prompts=f"{sft}/data/ranking_prompts.jsonl",
                held_out=str(held_out),
                labels=LABELS,
                settings=str(settings),
                seed=seed,
            )
        )
    last = round_folder(rounds, ROUNDS)
    return {
        "labels": {"one_pass": LABELS * ROUNDS, "rounds": LABELS * ROUNDS},
        "records": read_rounds(rounds),
        **compared(last, one_pass, str(unseen), seed),
        "reward_accuracy_on_own_policy": {
            "one_pass": own_accuracy(one_pass, f"{sft}/data/selection_prompts.jsonl", seed),
            "rounds": own_accuracy(last, f"{sft}/data/selection_prompts.jsonl", seed),
        },
        "seconds": round(time.monotonic() - started, 1),
    }


def recipe_of(recipe: dict[str, Any], sft: Path, run: Path, *sections: str) -> dict[str, Any]:
    """The sections of the quickstart, with the data of the SFT run and a run folder of their own."""
    known = ("tinyworld", "sft", "sample", "label", "reward", "ppo", "evaluate", "export")
    kept = {name: value for name, value in recipe.items() if name not in known or name in sections}
    text = json.dumps(kept).replace("{run}/data/ppo", f"{sft}/data/ppo").replace("{run}/data/dem", f"{sft}/data/dem")
    return json.loads(text) | {"run": str(run)}


def begin(recipe: dict[str, Any], sft: Path, run: Path, labels: int, iterations: int) -> None:
    """A pass from the SFT stage: labels on the first prompts, a reward model, PPO."""
    if not (run / "sft").exists():
        (run / "data").mkdir(parents=True)
        shutil.copytree(sft / "sft", run / "sft")
    prompts = (sft / "data" / "ranking_prompts.jsonl").read_text().splitlines(keepends=True)[:labels]
    (run / "data" / "prompts.jsonl").write_text("".join(prompts))
    made = recipe_of(recipe, sft, run, "sample", "label", "reward", "ppo")
    made["sample"] |= {"prompts": f"{run}/data/prompts.jsonl", "min_responses": 2, "max_responses": 4}
    made["label"].pop("agreement_to")
    made["reward"] = {name: value for name, value in made["reward"].items() if name != "agreement"}
    made["reward"]["batch_size"] = 8  # of few rankings, more steps
    # 240 rankings hold out too few pairs to show that a reward model is better than chance
    made["ppo"] |= {"iterations": iterations, "accept_chance_reward": True}
    run_recipe(made)


def make_round(config: RoundConfig) -> None:
    """A round whose candidates the simulated labelers rank."""
    folder = round_folder(Path(config.folder), config.number or 2)
    try:
        run_round(config)
    except Stopped:
        label(LabelConfig(responses=f"{folder}/candidates.jsonl", to=f"{folder}/rankings.jsonl", seed=config.seed))
        run_round(config)


def compared(last: Path, one_pass: Path, prompts: str, seed: int) -> dict[str, Any]:
    """The last round's policy against that of one pass, by the gold score."""
    folder = last.parent / "compared"
    if not (folder / "report.json").is_file():
        settings: dict[str, Any] = {**NO_PROBES, "max_prompt_tokens": 128, "max_response_tokens": 64, "overwrite": True}
        evaluate(
            EvaluateConfig(
                run=str(last),
                other_runs=(str(one_pass),),
                prompts=prompts,
                baseline="one-pass:policy",
                to=str(folder),
                seed=seed,
                micro_batch_size=64,
                generation_batch_size=416,
                **settings,
            ),
            None,
            world=WORLD,
        )
    report: Report = read_report(folder)
    values = to_json(report)
    systems = ("sft", "policy", "one-pass:policy")
    return {
        "win_rate": values["win_rates"]["policy_vs_one-pass:policy"],
        "win_rate_against_sft": values["win_rates"]["policy_vs_sft"],
        "gold": {name: values["figures"]["score"][name] for name in systems},
        "kl_per_response": {name: values["figures"]["kl_per_response"].get(name) for name in systems},
    }


def own_accuracy(run: Path, prompts: str, seed: int) -> dict[str, Any]:
    """How often the reward model, and the gold score, order answers of its policy as simulated labelers do."""
    candidates, rankings = run / "own_candidates.jsonl", run / "own_rankings.jsonl"
    if not candidates.is_file():
        settings: dict[str, Any] = {"run": str(run), "prompts": prompts, "to": str(candidates), "seed": seed}
        limits: dict[str, Any] = {"max_prompt_tokens": 128, "max_response_tokens": 64, "generation_batch_size": 416}
        sample(SampleConfig(**settings, **limits, role="policy", min_responses=2, max_responses=4))
    label(LabelConfig(responses=str(candidates), to=str(rankings), seed=seed))
    found = read_rankings(str(rankings))[0][:MEASURED]
    return {"reward_model": reward_accuracy(run, found, "auto"), "gold_score": agreement_with_gold(found)}


def agreement_with_gold(rankings: Sequence[Ranking]) -> dict[str, float]:
    """In how many of the pairs, which neither calls a tie, both have the same order."""
    agree = pairs = 0
    for ranking in rankings:
        golds = [gold_total(ranking.prompt.messages[-1].content, text) for text in ranking.responses]
        for one, two in combinations(range(len(golds)), 2):
            if golds[one] != golds[two] and ranking.ranks[one] != ranking.ranks[two]:
                pairs += 1
                agree += (golds[one] > golds[two]) == (ranking.ranks[one] < ranking.ranks[two])
    return {"rate": agree / pairs, "pairs": pairs}


# ---------------------------------------------------------------------------------------------------------------------
# kills


def kill(count: int) -> dict[str, Any]:
    """A small round as a process that is killed `count` times, and one that is not."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first = root / "whole" / "run"
        recipe = read_yaml(RECIPE)
        made = recipe_of(recipe, first, first, "tinyworld", "sft", "sample", "label", "reward", "ppo")
        sizes = {"demonstrations": 200, "ranking_prompts": 60, "ppo_prompts": 120, "evaluation_prompts": 40}
        made["tinyworld"] |= {f"num_{name}": size for name, size in sizes.items()}
        made["label"]["overlap"] = 20
        made["ppo"] |= {
            "iterations": 4,
            "batch_size": 24,
            "minibatch_size": 24,
            "micro_batch_size": 24,
            "kl_horizon": 100,
        }
        made["ppo"] |= {"accept_chance_reward": True, "save_every": 1}
        made["reward"] |= {"save_every": 2, "validation_fraction": 0.3}
        run_recipe(made)
        (root / "settings.yaml").write_text(json.dumps({"evaluate": NO_PROBES}))
        shutil.copytree(root / "whole", root / "killed")
        seconds, _ = complete(root / "whole", root, lambda: None)
        kills = 0

        def next_kill() -> float | None:
            nonlocal kills
            kills += 1
            return rng.uniform(1.0, 1.0 + 0.8 * seconds) if kills <= count else None

        complete(root / "killed", root, next_kill)
        whole, killed = (
            {stage: adapter_hash(root / name / "run-round-2" / stage) for stage in ("sft", "reward", "ppo")}
            for name in ("whole", "killed")
        )
        records = [json.loads((root / name / "run-round-2" / "round.json").read_text()) for name in ("whole", "killed")]
        return {"kills": count, "equal_adapters": whole == killed, "equal_records": records[0] == records[1]}


def complete(folder: Path, root: Path, next_kill: Any) -> tuple[float, int]:
    """Gives the command again and again until the round is finished; returns its seconds, and how often."""
    command = [sys.executable, "-m", "lora_rlhf.cli", "round", "run", "--number", "2", "--labels", "16"]
    command += ["--prompts", "run/data/ppo_prompts.jsonl", "--held-out", "run/data/evaluation_prompts.jsonl"]
    command += ["--settings", str(root / "settings.yaml"), "--max-responses", "3"]
    record, started, times = folder / "run-round-2" / "round.json", time.monotonic(), 0
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent.parent) + ":" + os.environ.get("PYTHONPATH", "")
    }
    while not (record.is_file() and json.loads(record.read_text())["status"] == "finished"):
        times += 1
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, errors = process.communicate(timeout=next_kill())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            continue
        this = folder / "run-round-2"
        if (this / "candidates.jsonl").is_file() and not (this / "rankings.jsonl").is_file():
            label(LabelConfig(responses=str(this / "candidates.jsonl"), to=str(this / "rankings.jsonl")))
        elif process.returncode not in (0, 1):
            raise SystemExit(errors.decode())
    return time.monotonic() - started, times


if __name__ == "__main__":
    main()
