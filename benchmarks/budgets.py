"""What each pass of the stages costs on a GPU, from the operations that the code itself dispatches; no GPU is needed.

    python benchmarks/budgets.py                                              # this checkout
    git worktree add ../before a15017e
    python benchmarks/budgets.py --before ../before                           # beside an older one

For 1.5B and 8B shapes in NF4, rank 16, 256 + 256 tokens: kernels, bytes moved and roofline seconds of a scoring pass,
a training pass, a step of decoding and a whole PPO iteration on several cards, and the activations that a training
pass saves. The older checkout's model code is run by this one's meter, in a process of its own (budgets_before.py).
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from provenance import provenance

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.forward import SCORED_AT_ONCE
from lora_rlhf.model.skeleton import Counts, build_skeleton, count_model, make_config
from lora_rlhf.plan.cards import BY_NAME
from lora_rlhf.plan.dryrun import Passes, measure_passes
from lora_rlhf.plan.memory import Setting
from lora_rlhf.plan.roofline import Roofline
from lora_rlhf.plan.shapes import SHAPES
from lora_rlhf.plan.work import Cost

HERE = Path(__file__).parent
# cards, and responses of a micro-batch on each, as `lora-rlhf plan` chooses; those of `before` were chosen then
MODELS: dict[str, dict[str, int]] = {
    "qwen2.5-1.5b": {"RTX 4090": 16, "RTX 3060": 8, "T4": 8, "H200": 32},
    "llama-3.1-8b": {"RTX 4090": 8, "RTX 3060": 2, "T4": 2, "H200": 32},
}
MERGING = {("qwen2.5-1.5b", "RTX 4090"), ("qwen2.5-1.5b", "RTX 3060"), ("qwen2.5-1.5b", "T4"), ("qwen2.5-1.5b", "H200")}
MERGING |= {("llama-3.1-8b", "H200")}  # where merged weights fit beside the rest
PROMPT, RESPONSE, RANK, SLOTS = 256, 256, 16, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of commit a15017e")
    parser.add_argument("--to", type=Path, default=HERE / "results" / "budgets.json")
    args = parser.parse_args()
    result: dict[str, Any] = {
        **provenance(" ".join(["python", "benchmarks/budgets.py", *sys.argv[1:]])),
        "lengths": [PROMPT, RESPONSE],
        "rank": RANK,
        "after": measure(),
        "tried on the 4090": try_other_sizes("qwen2.5-1.5b", "RTX 4090"),
    }
    if args.before is not None:
        command = [sys.executable, str(HERE / "budgets_before.py"), str(args.before)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result["before"] = json.loads(done.stdout.splitlines()[-1])
    elif args.to.exists():
        result["before"] = json.loads(args.to.read_text())["before"]
    args.to.write_text(json.dumps(result, indent=1) + "\n")


def measure(scoring_passes: int | None = None) -> dict[str, Any]:
    """Each model's figures on each card. scoring_passes: those with log-probabilities, if not the plan's."""
    found = {}
    for name, cards in MODELS.items():
        counts, passes = measure_model(name)
        saved = {
            key: round(passes.training[again]["saved"].bytes_at(4, counts.layers) / 4 / (PROMPT + RESPONSE))
            for again, key in ((False, "saved"), (True, "saved with checkpointing"))
        }
        found[name] = {
            "bytes of activations a token": saved,
            "cards": {
                card: of_card(Roofline(counts, passes, BY_NAME[card], (name, card) in MERGING), rows, scoring_passes)
                for card, rows in cards.items()
            },
        }
    return found


def measure_model(name: str) -> tuple[Counts, Passes]:
    """The counts and passes of a model of the table."""
    config = make_config(*SHAPES[name])
    counts = count_model(config, "nf4", torch.bfloat16)
    build = partial(build_skeleton, config, "nf4", torch.bfloat16, LoraSettings(rank=RANK))
    return counts, measure_passes(counts, build, PROMPT, RESPONSE)


def try_other_sizes(name: str, card: str) -> dict[str, float]:
    """Seconds of an iteration with micro-batches of half the rows, and with twice the rows in a scoring pass."""
    roofline, rows = Roofline(*measure_model(name), BY_NAME[card], (name, card) in MERGING), MODELS[name][card]

    def seconds(rows: int) -> float:
        return round(roofline.iteration_seconds(Setting(rows, SLOTS, False, RANK, True), num_epochs=1).total, 2)

    with patch("lora_rlhf.plan.roofline.SCORED_AT_ONCE", 2 * SCORED_AT_ONCE):
        more_scored = seconds(rows)
    return {"half the micro-batch": seconds(rows // 2), "twice the rows scored at once": more_scored}


def of_card(roofline: Roofline, rows: int, scoring_passes: int | None) -> dict[str, Any]:
    """Kernels, GB moved and milliseconds of each pass, and seconds of an iteration of one epoch."""
    draw = roofline.passes.head_work["drawing"].cost(SLOTS, roofline.card)
    scoring_head, training_head = roofline.head_cost(rows), roofline.head_cost(rows, "logprobs, gradients")
    passes = {
        f"scoring, {rows} responses": roofline.pass_cost("scoring", rows) + scoring_head,
        f"training, {rows} responses": roofline.pass_cost("training", rows) + training_head,
        f"step, adapter, {SLOTS} slots": roofline.pass_cost("step", SLOTS) + draw,
        f"step, merged, {SLOTS} slots": roofline.pass_cost("merged step", SLOTS) + draw,
    }
    iteration = roofline.iteration_seconds(Setting(rows, SLOTS, False, RANK, True), num_epochs=1)
    scoring = iteration.scoring
    if scoring_passes is not None:
        seconds = roofline.scoring_seconds(rows, "logprobs, entropy"), roofline.scoring_seconds(rows, head=None)
        scoring = SLOTS / rows * (scoring_passes * seconds[0] + 2 * seconds[1])
    return {
        "passes": {name: figures(cost) for name, cost in passes.items()},
        "iteration": {
            "rollout_s": round(iteration.rollout, 2),
            "scoring_s": round(scoring, 2),
            "update_s": round(iteration.update, 2),
            "all_s": round(iteration.rollout + scoring + iteration.update, 2),
        },
    }


def figures(cost: Cost) -> dict[str, float]:
    return {
        "kernels": round(cost.kernels),
        "moved_gb": round(cost.moved / 1e9, 2),
        "tflop": round(cost.flops / 1e12, 2),
        "ms": round(1000 * cost.seconds, 2),
    }


if __name__ == "__main__":
    main()
