"""Labels of a judge in place of people's, on the tiny world: the policy that each trains, and what the labels cost.

    python benchmarks/ai_feedback.py --seeds 0 1 2 --to benchmarks/results/ai_feedback.json

The forty simulated labelers and two judges rank the same sampled answers; from each file of rankings come a reward
model and a policy, by the settings of the quickstart. The tiny world's model cannot judge in words, so a judge is a
simulation on a server of this machine, which sees the gold score through noise: so much that it orders two answers as
the gold score does in 73, or 90, of 100 pairs. Only the commands, what is asked, and what training makes of it are
real. Steps that are finished are kept, so that a second call goes on.
"""

import argparse
import json
import math
import random
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from provenance import provenance
from rounds import NO_PROBES, RECIPE, agreement_with_gold, recipe_of

from lora_rlhf.cli.recipe_run import run_recipe
from lora_rlhf.configs.label import JudgeLabelConfig
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.report import evaluate
from lora_rlhf.stages.label import label as label_by_judge
from lora_rlhf.system.disk import finite, write_json
from lora_rlhf.system.typed_json import to_json
from lora_rlhf.tinyworld.config import LabelConfig
from lora_rlhf.tinyworld.datasets import label as label_by_people
from lora_rlhf.tinyworld.gold import gold_total
from lora_rlhf.tinyworld.probes import WORLD
from lora_rlhf.tinyworld.requests import find_request
from tests.support.fake_api import Raw, says, serve

PROMPTS, ANSWERS, ITERATIONS = 600, 4, 24
AGREEMENTS = {"judge 73 %": 0.73, "judge 90 %": 0.90}
PEOPLE = "40 labelers"
REQUEST = re.compile(r"===== request (\w+)\n(.*?)\n===== end of request \1\n", re.DOTALL)
ANSWER = re.compile(r"===== answer \d+ (\w+)\n(.*?)\n===== end of answer \d+ \1\n", re.DOTALL)
CHARACTERS_A_TOKEN = 4  # of English, about: the cost is of the real questions, at these prices a million tokens
PRICE_IN, PRICE_OUT = 0.15, 0.60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/ai_feedback"), help="folder of the run folders")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/ai_feedback.json"))
    args = parser.parse_args()
    command = f"python benchmarks/ai_feedback.py --seeds {' '.join(map(str, args.seeds))}"
    results: dict[str, Any] = {**provenance(command), "simulated": "labelers and judges"}
    results |= {"prompts": PROMPTS, "answers_of_a_prompt": ANSWERS, "iterations": ITERATIONS}
    results |= {"price_of_a_million_tokens": [PRICE_IN, PRICE_OUT], "characters_a_token": CHARACTERS_A_TOKEN}
    results["seeds"] = {}
    args.to.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        results["seeds"][str(seed)] = measure(args.runs / f"seed-{seed}", seed)
        write_json(args.to, finite(results))
    print(json.dumps(results, indent=2))


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """The labels of one seed and the policies trained on them."""
    first, recipe = folder / "first", read_yaml(RECIPE) | {"seed": seed}
    made = recipe_of(recipe, first, first, "tinyworld", "sft", "sample")
    made["tinyworld"]["num_ranking_prompts"] = PROMPTS
    made["sample"] |= {"min_responses": ANSWERS, "max_responses": ANSWERS}
    run_recipe(made)
    candidates, people = first / "data" / "candidates.jsonl", first / "data" / "people.jsonl"
    label_by_people(LabelConfig(responses=str(candidates), to=str(people), seed=seed))
    labels = {PEOPLE: {"as_gold": agreement_with_gold(read_rankings(str(people))[0])}}
    files = {PEOPLE: people}
    for name, agreement in AGREEMENTS.items():
        files[name] = first / "data" / f"{name[:8].replace(' ', '_')}.jsonl"
        labels[name] = judged(candidates, files[name], people, agreement, seed)
    runs = {name: folder / path.stem for name, path in files.items()}
    for name, run in runs.items():
        train(recipe, first, run, files[name])
    return {"labels": labels, "policies": compared(runs, f"{first}/data/evaluation_prompts.jsonl", seed)}


def judged(candidates: Path, to: Path, people: Path, agreement: float, seed: int) -> dict[str, Any]:
    """Rankings by a simulated judge through `lora-rlhf label`, and what its report and the gold score say of them."""
    rows = [json.loads(line) for line in candidates.read_text().splitlines()]
    noise = noise_for(agreement, [[gold_total(row["prompt"], text) for text in row["responses"]] for row in rows])
    with serve(make_judge(noise, seed)) as api:
        report = label_by_judge(
            JudgeLabelConfig(
                responses=str(candidates),
                to=str(to),
                judge="endpoint",
                judge_model="simulated judge",
                judge_url=api.url,
                judge_price_in=PRICE_IN,
                judge_price_out=PRICE_OUT,
                judge_cache=str(to.with_suffix(".replies")),
                question="listwise",
                against=str(people),
                overwrite=True,
            )
        )
    kept = {name: report["agreement"][name] for name in ("rate", "kappa", "alpha") if name in report["agreement"]}
    cost = {name: report["judge"][name] for name in ("calls", "tokens_in", "tokens_out", "cost")}
    found = agreement_with_gold(read_rankings(str(to))[0])
    return {"as_gold": found, "against_people": kept, "failed": report["failed"], **cost}


def make_judge(noise: float, seed: int) -> Callable[[str], Raw]:
    """The simulated judge: it orders the answers by their gold scores with noise of this standard deviation."""

    def reply(question: str) -> Raw:
        asked, answers = REQUEST.search(question)[2], [found[2] for found in ANSWER.finditer(question)]  # type: ignore[index]
        rng = random.Random(f"{seed} {noise} {asked} {answers}")
        known = find_request(asked) is not None  # the question that tries the judge out is not one of the world
        scores = [gold_total(asked, text) + rng.gauss(0.0, noise) if known else len(text) for text in answers]
        order = sorted(range(len(answers)), key=lambda index: -scores[index])
        ranking = " > ".join(str(index + 1) for index in order)
        text = f"By what was asked, what is true and what is to the point.\nRanking: {ranking}"
        tokens = {"prompt_tokens": len(question), "completion_tokens": len(text)}
        return says(text, usage={name: round(count / CHARACTERS_A_TOKEN) for name, count in tokens.items()})

    return reply


def noise_for(agreement: float, golds: Sequence[Sequence[float]]) -> float:
    """The standard deviation of noise on each score under which that share of unequal pairs keep their order."""
    gaps = [abs(a - b) for scores in golds for a, b in combinations(scores, 2) if a != b]
    low, high = 1e-6, 10.0
    for _ in range(60):
        noise = math.sqrt(low * high)
        kept = sum(0.5 * (1.0 + math.erf(gap / (2.0 * noise))) for gap in gaps) / len(gaps)
        low, high = (noise, high) if kept > agreement else (low, noise)
    return low


def train(recipe: dict[str, Any], first: Path, run: Path, rankings: Path) -> None:
    """A reward model and a policy from these rankings, on the SFT stage that all share."""
    if not (run / "sft").exists():
        run.mkdir(parents=True)
        shutil.copytree(first / "sft", run / "sft")
    made = recipe_of(recipe, first, run, "reward", "ppo")
    made["reward"] = {name: value for name, value in made["reward"].items() if name != "agreement"}
    made["reward"] |= {"rankings": str(rankings), "batch_size": 8}  # of fewer rankings, more steps
    made["ppo"] |= {"iterations": ITERATIONS, "accept_chance_reward": True}
    run_recipe(made)


def compared(runs: dict[str, Path], prompts: str, seed: int) -> dict[str, Any]:
    """Each policy against the SFT model by the gold score."""
    limits: dict[str, Any] = {"max_prompt_tokens": 128, "max_response_tokens": 64, "generation_batch_size": 416}
    found = {}
    for name, run in runs.items():
        settings: dict[str, Any] = {**NO_PROBES, **limits, "micro_batch_size": 64, "overwrite": True}
        report = evaluate(EvaluateConfig(run=str(run), prompts=prompts, seed=seed, **settings), None, world=WORLD)
        values = to_json(report)
        found[name] = {
            "win_rate": values["win_rates"]["policy_vs_sft"],
            "gold": values["figures"]["score"]["policy"],
            "kl_per_response": values["figures"]["kl_per_response"].get("policy"),
        }
    return found


if __name__ == "__main__":
    main()
