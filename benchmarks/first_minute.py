"""The first minute of a user: SFT, reward and PPO end well in 16 and 8 bits, with texts of mixed lengths.

    python benchmarks/first_minute.py                               # a CPU: 3 dtypes and int8, and a played GPU
    python benchmarks/first_minute.py --device cuda --shapes qwen2.5-1.5b llama-3.1-8b --iterations 1    # a GPU

The models: tinyworld, a random one of 24 layers whose logits have a standard deviation of 5 (16-bit noise grows with
layers and logits), or a shape of `lora-rlhf plan`'s table in NF4. Random weights know no end of a response, so a share
of the vocabulary ends one. A run that a check stops is a result, with its message. Each row is written as it comes.

Then PPO of all but large shapes begins again with three mistakes, one at a time: log-probabilities of another adapter,
live dropout, and a shifted mask. Each must be stopped in the first iteration, where its message is the result.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from provenance import provenance
from random_base import random_base

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.model.adapted_linear import adapted_layers
from lora_rlhf.model.base import Base, BaseSpec, load_base
from lora_rlhf.model.memory import free_memory, peak_gpu_gib
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.model.skeleton import make_config
from lora_rlhf.plan.shapes import SHAPES
from lora_rlhf.stages import ppo, ppo_update, reward, sampler, sft
from lora_rlhf.stages.ppo import PPO
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import first_line

WORDS = "fox owl barn mill river brown black bread".split()
DEEP = ("llama", {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 24, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 512})  # fmt: skip
LOGIT_SD = 5.0
ENDING_SHARE = 0.03  # of the vocabulary ends a response: half of them end within 23 tokens
KEPT = ("rollout/kl", "rollout/length", "ppo/ratio_gap", "ppo/ratio_deviation", "ppo/updates")


@dataclass(frozen=True)
class Case:
    """One run: a model by name, its quantization and dtype, and the device, "played" being a played GPU."""

    model: str
    quantization: str
    dtype: str
    device: str


CPU_CASES = [
    Case(model, quantization, dtype, device)
    for model in ("tinyworld", "deep")
    for quantization, dtype, device in (
        ("nf4", "bfloat16", "cpu"),
        ("none", "float16", "cpu"),
        ("int8", "bfloat16", "cpu"),
        ("nf4", "bfloat16", "played"),
    )
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", nargs="*", default=["qwen2.5-1.5b"], help="of a GPU: the names of `plan`")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="models of the CPU's cases")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/first_minute.json"))
    args = parser.parse_args()
    cases = [case for case in CPU_CASES if args.only is None or case.model in args.only]
    if args.device == "cuda":
        cases = [Case(name, "nf4", "bfloat16", "cuda") for name in args.shapes]
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows.append({**vars(case), **run(case, args.iterations)})
        print(json.dumps(rows[-1]), flush=True)
        command = f"python benchmarks/first_minute.py --device {args.device} --iterations {args.iterations}"
        hardware = {"hardware": torch.cuda.get_device_name(0)} if args.device == "cuda" else {}
        write_json(args.to, {**provenance(command), **hardware, "iterations": args.iterations, "rows": rows})


def run(case: Case, iterations: int) -> dict[str, Any]:
    """The three stages; figures of PPO's first iteration and of all, or the error that ended them."""
    is_large = case.model in SHAPES
    limits: dict[str, Any] = {"max_prompt_tokens": 96, "max_response_tokens": 24}
    sizes: dict[str, Any] = {"batch_size": 8, "minibatch_size": 4, "generation_batch_size": 8}
    if is_large:
        limits = {"max_prompt_tokens": 256, "max_response_tokens": 256}
        sizes = {"batch_size": 64, "minibatch_size": 32, "generation_batch_size": 64, "num_epochs": 1}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, _device(case) as device:
        folder = Path(scratch)
        write_data(folder, limits["max_prompt_tokens"])
        common: dict[str, Any] = {"run": str(folder / "run"), "device": device, "micro_batch_size": 4, **limits}
        try:
            model = SharedModel(make_base(case, folder, device))
            demonstrations = str(folder / "demonstrations.jsonl")
            sft.train(SFTConfig(model=model.base.spec.name, demonstrations=demonstrations, epochs=1, **common), model)
            rankings = str(folder / "rankings.jsonl")
            reward.train(RewardConfig(rankings=rankings, validation_fraction=0.0, **common), model)
            config = PPOConfig(
                prompts=demonstrations, iterations=iterations, accept_chance_reward=True,
                **sizes, **common,
            )  # fmt: skip
            with _random_ends(model) if case.model != "tinyworld" else nullcontext():
                ppo.train(config, model)
                plants = {} if is_large else PLANTS
                planted = {name: stopped_by(plant, config) for name, plant in plants.items()}
        except Exception as error:
            return {"ended_well": False, "error": f"{type(error).__name__}: {first_line(error)}"}
        finally:
            model = None  # type: ignore[assignment]
            free_memory()
        rows = [json.loads(line) for line in (folder / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()]
    return {
        "planted": planted,
        "ended_well": len(rows) == iterations,
        "seconds": round(time.monotonic() - started, 1),
        "first": {name: round(rows[0][name], 6) for name in KEPT if name in rows[0]},
        "lengths": [round(row["rollout/length"], 1) for row in (rows[0], rows[-1])],
        "seconds_of_iteration": {
            part: round(statistics.median(row[f"time/{part}"] for row in rows[1:] or rows), 2)
            for part in ("rollout_s", "score_s", "update_s")
        },
        "peak_gpu_gib": round(peak_gpu_gib(), 2) if case.device == "cuda" else None,
    }


def stopped_by(plant: "Plant", config: PPOConfig) -> str | None:
    """What an iteration of PPO with a planted mistake ends with, on a base of its own; None if nothing stops it."""
    planted = replace(config, run=f"{config.run}-planted", iterations=1)
    shutil.rmtree(planted.run, ignore_errors=True)
    shutil.copytree(config.run, planted.run, ignore=shutil.ignore_patterns("ppo"))
    try:
        with plant():
            ppo.train(planted)
    except RuntimeError as error:
        return first_line(error)
    return None


@contextlib.contextmanager
def _wrong_adapter() -> Iterator[None]:
    """Inside, log-probabilities of the policy are scored by the bare base."""
    enter = SharedModel.role

    def wrong(self: SharedModel, role: str, training: bool = False) -> AbstractContextManager[SharedModel]:
        return enter(self, "base" if role == "policy" and not training else role, training)

    with patch.object(SharedModel, "role", wrong):
        yield


@contextlib.contextmanager
def _live_dropout() -> Iterator[None]:
    """Inside, the policy's adapter drops a tenth of its inputs in training."""
    iterate = PPO.iterate

    def dropping(self: PPO, *given: Any) -> Any:
        assert self.model.peft is not None
        for layer in adapted_layers(self.model.peft):
            layer.lora_dropout["policy"] = torch.nn.Dropout(0.1)
        return iterate(self, *given)

    with patch.object(PPO, "iterate", dropping):
        yield


@contextlib.contextmanager
def _shifted_mask() -> Iterator[None]:
    """Inside, scored log-probabilities stand one token too late."""
    compute = ppo.response_logprobs

    def shifted(*given: Any, **settings: Any) -> Any:
        logprobs, entropy = compute(*given, **settings)
        return (logprobs if torch.is_grad_enabled() else logprobs.roll(1, dims=1)), entropy

    with patch.object(ppo, "response_logprobs", shifted), patch.object(ppo_update, "response_logprobs", shifted):
        yield


Plant = Callable[[], AbstractContextManager[None]]
PLANTS: dict[str, Plant] = {
    "wrong adapter": _wrong_adapter,
    "live dropout": _live_dropout,
    "shifted mask": _shifted_mask,
}


@contextlib.contextmanager
def _device(case: Case) -> Iterator[str]:
    """The device's name for the stages; a played GPU is there inside alone."""
    if case.device != "played":
        yield case.device
        return
    from tests.support.pretended_cuda import pretended

    with pretended():
        yield "cuda"


def make_base(case: Case, folder: Path, device: str) -> Base:
    """The base, in memory alone for a large shape; else loaded as a user's."""
    if case.model in SHAPES:
        config, dtype = make_config(*SHAPES[case.model]), getattr(torch, case.dtype)
        return random_base(config, folder / "base", dtype, torch.device(device))
    name = case.model if case.model == "tinyworld" else str(make_deep(folder / "base"))
    return load_base(BaseSpec(name, case.quantization, case.dtype), device)


def make_deep(folder: Path) -> Path:
    """24 random layers, and an LM head that is scaled to logits of the given standard deviation."""
    from random_base import TINYWORLD
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD)
    config = make_config(*DEEP)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.15)
        ids = torch.randint(5, 2000, (8, 64), generator=torch.Generator().manual_seed(0))
        model.lm_head.weight *= LOGIT_SD / model(ids).logits.std()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def _random_ends(model: SharedModel) -> Iterator[None]:
    """Inside, a share of the vocabulary ends a response, so that responses have mixed lengths."""
    count = int(ENDING_SHARE * model.config.vocab_size)
    ends = sorted(random.Random(0).sample(range(model.config.vocab_size), count))
    with patch.object(sampler, "stop_ids", lambda _tokenizer: ends):
        yield


def write_data(folder: Path, longest: int) -> None:
    """Prompts of mixed lengths, each with an answer and a ranking of four."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(words))

    prompts = [text(rng.randint(4, longest // 3)) + f" {number}" for number in range(64)]
    write_jsonl(folder / "demonstrations.jsonl", [{"prompt": one, "completion": text(6)} for one in prompts])
    write_jsonl(
        folder / "rankings.jsonl",
        [{"prompt": one, "responses": [text(k + 2) for k in range(4)], "ranks": [1, 2, 3, 4]} for one in prompts[:8]],
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    main()
