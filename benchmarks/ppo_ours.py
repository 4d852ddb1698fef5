"""Our half of ppo_against_trl.py: the PPO stage as a user runs it, in a process of its own; prints one JSON."""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from half import Clock, finish, resident_mib, run
from shapes import make_prompts
from transformers import PreTrainedTokenizerBase

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import render_prompt
from lora_rlhf.model.memory import count_quantized_storages
from lora_rlhf.stages import ppo, reward, sft
from lora_rlhf.stages.ppo import PPO
from lora_rlhf.stages.trainer import Trainer

PARTS = ("rollout_s", "score_s", "update_s")
NEVER = 10**9  # iterations between two checkpoints, or two records of samples


def make_data(folder: Path, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int, count: int) -> None:
    """prompts.jsonl for our PPO, the same as ids for TRL's, and eight rows for each of the parent stages."""
    prompts = make_prompts(tokenizer, prompt_tokens, count)
    ids = [render_prompt(tokenizer, Prompt((Message("user", prompt),))) for prompt in prompts]
    (folder / "prompt_ids.json").write_text(json.dumps(ids))
    write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    demonstrations = [{"prompt": prompt, "completion": "owl mill river"} for prompt in prompts[:8]]
    write_jsonl(folder / "demonstrations.jsonl", demonstrations)
    rankings = [{"prompt": prompt, "responses": ["owl", "mill"], "ranks": [1, 2]} for prompt in prompts[:8]]
    write_jsonl(folder / "rankings.jsonl", rankings)


def make_parents(folder: Path, prompt_tokens: int) -> None:
    """An SFT and a reward stage of one optimizer step each, from which every PPO run of the folder begins."""
    common: dict[str, Any] = {
        "run": str(folder / "run"),
        "max_prompt_tokens": prompt_tokens,
        "max_response_tokens": 8,
        "validation_fraction": 0.0,
        "epochs": 1,
        "batch_size": 8,
    }
    demonstrations, rankings = str(folder / "demonstrations.jsonl"), str(folder / "rankings.jsonl")
    model = sft.train(SFTConfig(model=str(folder / "model"), demonstrations=demonstrations, **common))
    reward.train(RewardConfig(rankings=rankings, **common), model)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the iterations and of their parts, the tokens generated, peak memory, what each role takes."""
    before, clock, folder = resident_mib(), Clock(), Path(args.folder)
    config = PPOConfig(
        run=str(folder / "run"),
        prompts=str(folder / "prompts.jsonl"),
        overwrite=True,
        iterations=args.iterations,
        batch_size=args.batch_size,
        minibatch_size=args.batch_size,
        micro_batch_size=args.micro_batch_size,
        generation_batch_size=args.rollout_batch_size,
        num_epochs=1,
        max_prompt_tokens=args.prompt_tokens,
        max_response_tokens=args.response_tokens,
        missing_eos_score=None,  # no response ends
        kl_coef=0.05,
        gradient_checkpointing=args.gradient_checkpointing,
        save_every=NEVER,
        sample_every=NEVER,
    )
    log, boundary, running = Trainer.log, Trainer.save_or_stop, Trainer.resume
    timed, processor = PPO._timed, dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def timing(self: PPO, name: str) -> Iterator[None]:
        begun = time.process_time()
        with timed(self, name):
            yield
        processor[name] = time.process_time() - begun

    def resume(self: Trainer) -> Any:  # the last thing before the first iteration
        found = running(self)
        clock.start()
        return found

    def logged(self: Trainer, step: int, metrics: Any, *details: Any) -> None:
        log(self, step, metrics, *details)
        clock.rollout(0.0, round(metrics["rollout/length"] * args.batch_size))
        clock.parts[-1] = {name: metrics[f"time/{name}"] for name in PARTS}
        clock.parts[-1] |= {f"processor_{name}": seconds for name, seconds in processor.items()}

    def ticking(self: Trainer, done: int, total: int, score: float) -> None:
        boundary(self, done, total, score)
        clock.tick()

    patches: dict[str, Any] = {"log": logged, "save_or_stop": ticking, "resume": resume}
    with patch.multiple(Trainer, **patches), patch.object(PPO, "_timed", timing):
        ppo.train(config)
    manifest = json.loads((folder / "run" / "ppo" / "manifest.json").read_text())
    return {
        **finish(clock, before, args),
        "adapter_bytes": manifest["results"]["adapter_bytes"],
        "base_storages": count_quantized_storages(),
    }


if __name__ == "__main__":
    run(measure, __doc__)
