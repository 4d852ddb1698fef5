"""Measures critique and revision (Constitutional AI) on the tiny world: gold scores before any ranking.

    python benchmarks/revise.py --seeds 0 1 2 --to benchmarks/results/revise.json

The tiny world's model cannot follow a critique in words. So the model that revises is a simulation on a server of this
machine, and only the command and what training makes of its output are real: asked by a principle, it writes three
drafts with the habits of a demonstrator, and replies with the one, of these and the answer, that a simulated labeler
finds best by the quality that the principle is about.
An SFT model that learned the revisions is compared with the first.
"""

import argparse
import json
import random
import re
from pathlib import Path
from statistics import fmean
from typing import Any

from provenance import provenance

from lora_rlhf.cli.recipe_run import run_recipe
from lora_rlhf.configs.label import ReviseConfig
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.report import evaluate
from lora_rlhf.stages.revise import beside, revise
from lora_rlhf.stages.sample import sample
from lora_rlhf.stats.intervals import mean_interval
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.typed_json import to_json
from lora_rlhf.tinyworld.gold import gold_total, score_request
from lora_rlhf.tinyworld.labelers import NOISE
from lora_rlhf.tinyworld.probes import WORLD
from lora_rlhf.tinyworld.requests import find_request
from lora_rlhf.tinyworld.writers import make_writers
from tests.support.fake_api import Raw, says, serve

RECIPE = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
PARTS = [rf"===== {name} (\w+)\n(.*?)\n===== end of {name}" for name in ("request", "answer")]
ROUNDS, DRAFTS = 4, 3
QUALITIES = {"**Truthful.**": ("true",), "**Helpful.**": ("asked", "constraint", "point"), "**Harmless.**": ("civil",)}
ALL = ("asked", "true", "constraint", "point", "civil")
WRITERS = make_writers()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/revise"), help="folder of the run folders")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/revise.json"))
    parser.add_argument("--skip-training", action="store_true", help="measure the demonstrations alone")
    args = parser.parse_args()
    command = f"python benchmarks/revise.py --seeds {' '.join(map(str, args.seeds))}"
    results: dict[str, Any] = provenance(command + (" --skip-training" if args.skip_training else ""))
    results["simulated"] = "the model that revises"
    results["seeds"] = {str(seed): measure(args.runs / f"seed-{seed}", seed, args.skip_training) for seed in args.seeds}
    args.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.to, results)
    print(json.dumps(results, indent=2))


def reviser(question: str) -> Raw:
    """The simulated model: the best of its answer and three drafts, by a labeler's noisy eye on the principle."""
    asked, answer = (re.search(part, question, re.DOTALL)[2] for part in PARTS)  # type: ignore[index]
    request = find_request(asked)
    assert request is not None
    rng = random.Random(question)
    qualities = next((names for mark, names in QUALITIES.items() if mark in question.partition("The request")[0]), ALL)
    drafts = [answer, *(rng.choice(WRITERS).write(request, rng) for _ in range(DRAFTS))]

    def seen(text: str) -> float:
        score = score_request(request, text)
        return fmean(getattr(score, name) for name in qualities) + rng.gauss(0.0, NOISE)

    return says(f"Judged by {', '.join(qualities)}.\nRevision:\n{max(drafts, key=seen)}")


def measure(folder: Path, seed: int, skips_training: bool) -> dict[str, Any]:
    """Gold scores of one seed's demonstrations, sampled answers and revisions, and of both SFT models' answers."""
    written, revised = folder / "written", folder / "revised"
    recipe = read_yaml(RECIPE) | {"seed": seed, "run": str(written)}
    others = ("sample", "label", "reward", "ppo", "evaluate", "export")
    run_recipe({name: value for name, value in recipe.items() if name not in others})
    demonstrations, candidates = written / "data" / "demonstrations.jsonl", folder / "candidates.jsonl"
    limits: dict[str, Any] = {"max_prompt_tokens": 128, "max_response_tokens": 64, "generation_batch_size": 416}
    if not candidates.is_file():
        names: dict[str, Any] = {"run": str(written), "prompts": str(demonstrations), "to": str(candidates)}
        sample(SampleConfig(**names, seed=seed, min_responses=2, max_responses=2, **limits))
    to = folder / "revisions.jsonl"
    with serve(reviser) as api:
        judge: dict[str, Any] = {
            "judge_url": api.url,
            "judge_model": "simulated reviser",
            "judge_cache": str(folder / "replies.jsonl"),
        }
        names = {"responses": str(candidates), "to": str(to)}
        report = revise(ReviseConfig(**names, by="endpoint", rounds=ROUNDS, seed=seed, overwrite=True, **judge))
    steps = [json.loads(line) for line in beside(str(to), "steps").read_text().splitlines()]
    by_writers = [json.loads(line) for line in demonstrations.read_text().splitlines()]
    texts = [[row["original"], *(step["revision"] for step in row["steps"])] for row in steps]
    by_round = list(
        zip(
            *([gold_total(row["prompt"], text) for text in one] for row, one in zip(steps, texts, strict=True)),
            strict=True,
        )
    )
    measured: dict[str, Any] = {
        "prompts": report["prompts"],
        "revised": report["revised"],
        "unchanged": report["unchanged"],
        "gold_of_written_demonstrations": interval(
            [gold_total(row["prompt"], row["completion"]) for row in by_writers]
        ),
        "gold_of_answers_by_round": [interval(list(golds)) for golds in by_round],
    }
    if skips_training:
        return measured
    made = recipe | {"run": str(revised), "sft": recipe["sft"] | {"demonstrations": str(to)}}
    run_recipe({name: value for name, value in made.items() if name not in (*others, "tinyworld")})
    settings: dict[str, Any] = {
        "run": str(revised),
        "other_runs": (str(written),),
        "baseline": "written:sft",
        "seed": seed,
    }
    none: dict[str, Any] = {"probes": "none", "choices": "none", "text": "none", "overwrite": True}
    prompts = str(written / "data" / "evaluation_prompts.jsonl")
    values = to_json(evaluate(EvaluateConfig(**settings, prompts=prompts, **none, **limits), None, world=WORLD))
    return measured | {
        "held_out_gold": {name: values["figures"]["score"][name] for name in ("written:sft", "sft")},
        "win_rate_revised_against_written": values["win_rates"]["sft_vs_written:sft"],
    }


def interval(values: list[float]) -> dict[str, float]:
    return dict(mean_interval(values)._asdict())


if __name__ == "__main__":
    main()
