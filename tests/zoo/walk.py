"""One checkpoint through the whole path, from `plan` to the reload of its exports in plain transformers and PEFT."""

import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.report import print_plan
from lora_rlhf.stages import ppo, reward, sft
from lora_rlhf.stages.sample import sample
from lora_rlhf.system.errors import Stopped, UserError
from tests.support.stages import DEMONSTRATIONS, RANKINGS, write_rows
from tests.zoo.checkpoints import save_checkpoint
from tests.zoo.plain import adapter_in_peft, export_in_transformers, forward_agrees, greedy_agrees, roles_mix

LIMITS: dict[str, Any] = {"max_prompt_tokens": 32, "max_response_tokens": 16}
LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8}


@dataclass
class Outcome:
    """What became of each step: "works", "refused: why" or "breaks: error". Steps behind a failure are left out.

    figures: what was measured on the way.
    """

    name: str
    steps: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float | str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether all that trains works."""
        return all(self.steps.get(step) == "works" for step in ("sft", "sample", "reward", "ppo"))

    @property
    def is_refused(self) -> bool:
        """Whether nothing began: `plan` and `sft` refuse alike."""
        return all(self.steps[step].startswith("refused") for step in ("plan", "sft"))


def walk(name: str, folder: Path, without: Collection[str] = ()) -> Outcome:
    """Make the checkpoint in `folder` and lead it through every step, each from what is on disk, as users do.

    without: steps to leave out.
    """
    outcome = Outcome(name)
    model, run = str(folder / "base"), str(folder / "run")
    save_checkpoint(name, folder / "base")
    demonstrations = write_rows(folder / "demonstrations.jsonl", DEMONSTRATIONS[:12])
    rankings = write_rows(folder / "rankings.jsonl", RANKINGS[:12])
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in DEMONSTRATIONS[:4]])
    common = LIMITS | {"run": run, "device": "cpu"}
    training = common | {"learning_rate": 1e-3, "validation_fraction": 0.25}
    steps: dict[str, Callable[[], Any]] = {
        "plan": lambda: print_plan(PlanConfig(model=model, gpu_gib=8, device="cpu", lora_rank=4, json=True, **LIMITS)),
        "forward": lambda: outcome.figures.update(forward_agrees(folder / "base")),
        "greedy": lambda: outcome.figures.update(greedy_agrees(folder / "base")),
        "static": lambda: outcome.figures.update(greedy_agrees(folder / "base", "static")),
        "mixture": lambda: outcome.figures.update(roles_mix(folder / "base")),
        "sft": lambda: sft.train(
            SFTConfig(model=model, demonstrations=demonstrations, epochs=1, batch_size=8, **LORA, **training)
        ),
        "sample": lambda: sample(
            SampleConfig(prompts=prompts, to=str(folder / "samples.jsonl"), min_responses=2, max_responses=2, **common)
        ),
        "reward": lambda: reward.train(RewardConfig(rankings=rankings, batch_size=4, **training)),
        "ppo": lambda: ppo.train(
            PPOConfig(
                prompts=prompts,
                iterations=1,
                batch_size=4,
                minibatch_size=4,
                num_epochs=1,
                engine="plain",
                accept_chance_reward=True,
                **common,
            )
        ),
        "export": lambda: export(
            ExportConfig(folder=run, to=str(folder / "merged"), parity_prompts=2, parity_tokens=8, dtype="float32")
        ),
        "export reload": lambda: outcome.figures.update(export_in_transformers(folder)),
        "adapter": lambda: export(ExportConfig(folder=run, to=str(folder / "adapter"), form="adapter")),
        "adapter reload": lambda: outcome.figures.update(adapter_in_peft(folder)),
        "reward export": lambda: export(
            ExportConfig(
                folder=run, role="reward", to=str(folder / "scores"), parity_prompts=2, parity_tokens=8, dtype="float32"
            )
        ),
    }
    needs = {"sample": "sft", "reward": "sft", "ppo": "reward", "export": "ppo", "export reload": "export"}
    needs |= {"adapter": "ppo", "adapter reload": "adapter", "reward export": "reward"}
    for step, take in steps.items():
        if step in without:
            continue
        if step not in needs or outcome.steps.get(needs[step]) == "works":
            began = time.process_time()
            outcome.steps[step] = _result(take)
            outcome.seconds[step] = time.process_time() - began
    return outcome


def _result(take: Callable[[], Any]) -> str:
    try:
        take()
    except (UserError, Stopped) as error:
        return f"refused: {error}"
    except Exception as error:  # every error that a user would meet as a traceback
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"breaks: {type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
    return "works"
