"""The plan's peak memory against the measured one, for every stage over many settings.

    python benchmarks/plan_accuracy.py             # on a GPU where there is one, else on the CPU
    python benchmarks/plan_accuracy.py --device cpu

The stages run as users run them, on random models of real architectures. On a CPU PyTorch's profiler sees every
allocation and release of PyTorch's allocator, those inside of kernels too. On a GPU each row is a process of its own
under a hard cap (`set_per_process_memory_fraction`), its flags are those that the plan gives for a card of that size,
and the peak is `torch.cuda.max_memory_allocated`; a row that does not fit is reported as such.
"""

import argparse
import gc
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from matplotlib.figure import Figure
from provenance import provenance
from random_base import random_base
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PreTrainedConfig

from lora_rlhf.configs.catalogue import BY_NAME
from lora_rlhf.configs.stages import DPOConfig, PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.model.skeleton import build_skeleton, count_model, make_config
from lora_rlhf.plan.cards import GIB, find_card
from lora_rlhf.plan.choose import choose_plan
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.dryrun import measure_passes
from lora_rlhf.plan.memory import CPU, CUDA, Setting, highest_point, memory_points
from lora_rlhf.plan.shapes import SHAPES
from lora_rlhf.plan.subject import measure_model
from lora_rlhf.stages import dpo, ppo, reward, sft
from lora_rlhf.stages.ppo import PPO
from lora_rlhf.stages.ppo_loop import PPOLoop
from lora_rlhf.stages.ppo_update import Update
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import Stopped, UserError

WORDS = "fox owl barn mill river brown black bread".split()
STAGES = ("sft", "reward", "dpo", "ppo")
PARTS = (
    (PPOLoop, "_rehearse", "rehearsal"),
    (PPO, "act", "rollout"),
    (PPO, "judge", "scoring"),
    (Update, "policy_step", "update of policy"),
    (Update, "value_step", "update of value"),
)


@dataclass(frozen=True)
class Row:
    """One setting. `family` and `sizes` are a transformers model type and its numbers."""

    name: str
    family: str
    sizes: dict[str, Any]
    prompt: int = 48
    response: int = 8
    micro: int = 4
    generation: int = 8
    rank: int = 8
    checkpointing: bool = False
    advantage: Literal["gae", "rloo"] = "gae"
    dtype: str = "float32"
    batch: int = 8
    minibatch: int = 8
    cap_gib: float | None = None

    def config(self) -> PreTrainedConfig:
        return make_config(self.family, self.sizes)

    def setting(self) -> Setting:
        return Setting(
            self.micro,
            self.generation,
            self.checkpointing,
            self.rank,
            self.advantage == "gae",
            self.minibatch,
            self.batch,
        )


SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
UNTIED = {**SMALL, "tie_word_embeddings": False}
GPT2 = {
    "n_embd": 256,
    "n_layer": 4,
    "n_head": 8,
    "vocab_size": 2048,
    "n_positions": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    **dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
}
CPU_ROWS = [
    Row("plain", "qwen2", SMALL),
    Row("1 a pass", "qwen2", SMALL, micro=1, minibatch=4, batch=4),
    Row("8 a pass", "qwen2", SMALL, micro=8),
    Row("long prompts", "qwen2", SMALL, prompt=160),
    Row("long responses", "qwen2", SMALL, prompt=24, response=40),
    Row("rank 32", "qwen2", SMALL, rank=32),
    Row("2 layers", "qwen2", {**SMALL, "num_hidden_layers": 2}),
    Row("checkpointing", "qwen2", SMALL, checkpointing=True),
    Row("checkpointing, 10 layers", "qwen2", {**SMALL, "num_hidden_layers": 10}, checkpointing=True),
    Row("no value role", "qwen2", SMALL, advantage="rloo"),
    Row("vocabulary 32k, checkpointing", "qwen2", {**SMALL, "vocab_size": 32_768}, checkpointing=True),
    Row("vocabulary 152k, no value role", "llama", {**UNTIED, "vocab_size": 151_936}, advantage="rloo"),
    Row("llama, untied", "llama", UNTIED),
    Row("qwen3", "qwen3", {**SMALL, "head_dim": 64}),
    Row("gemma2", "gemma2", {**SMALL, "head_dim": 64, "sliding_window": 32}),
    Row("gpt2", "gpt2", GPT2),
    Row("bfloat16", "qwen2", SMALL, dtype="bfloat16"),
    Row("wide", "qwen2", {**SMALL, "hidden_size": 512, "intermediate_size": 2048}, micro=2, checkpointing=True),
]
GPU_CARDS = [("qwen2.5-1.5b", 6), ("qwen2.5-3b", 8), ("llama-3.1-8b", 12), ("qwen2.5-14b", 16), ("qwen2.5-32b", 24)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one row of a GPU, in a process of its own
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(Row(**json.loads(args.row)), torch.device("cuda"))))
        return
    to = args.to or Path(f"benchmarks/results/plan_accuracy_{args.device}.json")
    rows = [
        row for row in (CPU_ROWS if args.device == "cpu" else gpu_rows()) if args.only is None or row.name in args.only
    ]
    found, started = [], time.monotonic()
    for row in rows:
        found.append(compare(row, args.device))
        print(json.dumps(found[-1]), flush=True)
    result = {
        **provenance(f"python benchmarks/plan_accuracy.py --device {args.device}"),
        **({"hardware": torch.cuda.get_device_name(0)} if args.device == "cuda" else {}),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started),
        "measured_by": "torch.cuda.max_memory_allocated"
        if args.device == "cuda"
        else "memory events of torch.profiler",
        "summary": summarize(found),
        "rows": found,
    }
    write_json(to, result)
    plot(found, to.with_suffix(".png"), args.device)
    print(json.dumps(result["summary"], indent=2))


def gpu_rows() -> list[Row]:
    """The shapes of the table, each with flags that the plan gives for a card of its size, the same in all stages."""
    rows = []
    for name, gib in GPU_CARDS:
        asked = PlanConfig(model=name, gpu_gib=gib)
        family, sizes = SHAPES[name]
        row = Row(
            f"{name} in {gib} GiB", family, sizes, 256, 256, 1, 1, 16, True, "rloo", "bfloat16", 64, 32, float(gib)
        )
        try:
            stages = choose_plan(measure_model(asked), asked, find_card(asked)).stages
        except UserError as error:
            print(f"{error}\ntried all the same, with the least", file=sys.stderr)
        else:
            own = stages["ppo"].setting
            row = replace(
                row,
                micro=min(stage.setting.micro_batch for stage in stages.values()),
                generation=own.generation_batch,
                checkpointing=any(stage.setting.checkpointing for stage in stages.values()),
                advantage="gae" if own.value_role else "rloo",
            )
        rows.append(row)
    return rows


def compare(row: Row, device: str) -> dict[str, Any]:
    """A row's settings, and per stage its peak as predicted and as measured, in bytes."""
    predicted = predict(row, device)
    if device == "cpu":
        measured = measure(row, torch.device("cpu"))
    else:
        command = [sys.executable, __file__, "--row", json.dumps(asdict(row))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        lines = done.stdout.strip().splitlines()
        measured = json.loads(lines[-1]) if done.returncode == 0 and lines else {"failed": f"status {done.returncode}"}
    stages: dict[str, Any] = {}
    for stage in STAGES:
        both = {"predicted": predicted[stage], **measured.get(stage, {})}
        if "peak" in both:
            both["error"] = round(both["predicted"]["peak"] / both["peak"] - 1, 4)
        stages[stage] = both
    rest: dict[str, Any] = {key: measured[key] for key in ("failed", "went_on_with_less") if key in measured}
    return {**asdict(row), "stages": stages, **rest}


def predict(row: Row, device: str) -> dict[str, dict[str, Any]]:
    """Per stage: the peak of what PyTorch's allocator holds, where it is, and that of each memory point."""
    config, dtype = row.config(), getattr(torch, row.dtype)
    counts = count_model(config, "nf4", dtype)
    lora = LoraSettings(rank=row.rank)
    passes = measure_passes(
        counts,
        lambda layers: build_skeleton(config, "nf4", dtype, lora, layers, on_gpu=device == "cuda"),
        row.prompt,
        row.response,
        row.minibatch,
    )
    found = {}
    for stage in STAGES:
        points = memory_points(BY_NAME[stage], counts, passes, row.setting(), CPU if device == "cpu" else CUDA)
        top = highest_point(points)
        allocated = {point.name: round(point.allocated) for point in points}
        found[stage] = {"peak": round(top.allocated), "at": top.name, "heights": allocated}
    return found


def measure(row: Row, device: torch.device) -> dict[str, Any]:
    """Per stage: its peak in bytes, that of PPO's parts, and on a GPU PPO's seconds per iteration."""
    found: dict[str, Any] = {}
    if device.type == "cuda" and row.cap_gib is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        # the cap is for what PyTorch allocates: what the driver takes for the process is left out of it beforehand
        torch.cuda.set_per_process_memory_fraction(min(1.0, (row.cap_gib * GIB - CUDA.context) / total))
    halved: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: halved.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lora_rlhf").addHandler(handler)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            write_data(row, folder)
            model = SharedModel(random_base(row.config(), folder / "base", getattr(torch, row.dtype), device))
            if row.checkpointing:
                model.enable_gradient_checkpointing()
            for stage in STAGES:
                for parameter in model.causal.parameters():
                    parameter.grad = None  # as in a process of its own
                if stage == "dpo":
                    model.remove_role("reward")
                found[stage] = {}
                with watched(found[stage], device), parts_marked():
                    run_stage(stage, row, folder, model, device)
                if stage == "dpo":
                    model.remove_role("dpo")
                if stage == "ppo":
                    found[stage]["seconds_per_iteration"] = seconds_of(folder)
        except (Stopped, UserError, MemoryError, torch.OutOfMemoryError) as error:
            found["failed"] = str(error).splitlines()[0]
    if smaller := [message for message in halved if message.startswith("out of memory")]:
        found["went_on_with_less"] = smaller  # these peaks are of smaller pieces than planned
    return found


def run_stage(stage: str, row: Row, folder: Path, model: SharedModel, device: torch.device) -> None:
    """One short stage, as a user's command would run it."""
    common: dict[str, Any] = {
        "dequantize": "never",
        "run": str(folder / "run"),
        "device": str(device),
        "micro_batch_size": row.micro,
        "generation_batch_size": row.generation,
        "max_prompt_tokens": row.prompt,
        "max_response_tokens": row.response,
        "long_responses": "cut",
        "gradient_checkpointing": row.checkpointing,
    }
    data = {name: str(folder / f"{name}.jsonl") for name in ("demonstrations", "rankings", "pairs")}
    held_out: dict[str, Any] = {"validation_fraction": 0.0}
    if stage == "sft":
        sft_config = SFTConfig(
            model=model.base.spec.name,
            demonstrations=data["demonstrations"],
            epochs=1,
            batch_size=row.minibatch,
            lora_rank=row.rank,
            **held_out,
            **common,
        )
        sft.train(sft_config, model)
    elif stage == "reward":
        reward.train(RewardConfig(rankings=data["rankings"], **held_out, **common), model)
    elif stage == "dpo":
        pairs = row.minibatch // 2
        dpo.train(DPOConfig(rankings=data["pairs"], batch_size=pairs, **held_out, **common), model)
    else:
        ppo_config = PPOConfig(
            engine="plain",
            decode_weights="adapter",
            prompts=data["demonstrations"],
            iterations=1 if device.type == "cpu" else 3,
            batch_size=row.batch,
            minibatch_size=row.minibatch,
            num_epochs=1 if device.type == "cpu" else 2,
            advantage=row.advantage,
            missing_eos_score=None,  # a random model ends no answer, and answers of one score would teach nothing
            samples_per_prompt=1 if row.advantage == "gae" else 2,
            max_kl=None,
            max_ratio=None,
            stop_at_approx_kl=None,
            **common,
        )
        ppo.train(ppo_config, model)


def write_data(row: Row, folder: Path) -> None:
    """Texts of many lengths, the longest beyond the limits, to which the stages cut them."""
    rng = random.Random(0)

    def text(length: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(length))

    def length(number: int, limit: int) -> int:
        return 3 * limit if number % 4 == 0 else rng.randint(limit // 4, limit)

    demonstrations = [
        {"prompt": text(length(n, row.prompt)), "completion": text(length(n, row.response))} for n in range(row.batch)
    ]
    rankings = [
        {
            "prompt": text(length(n, row.prompt)),
            "responses": [text(length(k, row.response)) for k in range(4)],
            "ranks": [1, 2, 3, 4],
        }
        for n in range(3)
    ]
    # every answer is longer than the limit, so that each batch holds as many tokens as planned
    pairs = [
        {"prompt": text(3 * row.prompt)} | {side: text(3 * row.response) for side in ("chosen", "rejected")}
        for _ in range(row.batch)
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "demonstrations.jsonl", demonstrations)
    write_jsonl(folder / "rankings.jsonl", rankings)


def seconds_of(folder: Path) -> dict[str, float]:
    """PPO's median seconds of each part, without the first iteration where there are several."""
    rows = [json.loads(line) for line in (folder / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()]
    rows = rows[1:] or rows
    return {
        part: round(statistics.median(row[f"time/{part}"] for row in rows), 3)
        for part in ("rollout_s", "score_s", "update_s")
    }


@contextmanager
def parts_marked() -> Iterator[None]:
    """PPO's parts under their names in the profile."""
    with ExitStack() as stack:
        for owner, name, label in PARTS:
            stack.enter_context(patch.object(owner, name, _marked(getattr(owner, name), label)))
        yield


def _marked(function: Any, label: str) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"part: {label}"):
            return function(*args, **kwargs)

    return run


@contextmanager
def watched(found: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Puts the peak inside the block into `found`, in bytes, and on a CPU that of each part."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield
        found |= {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return
    before = bytes_held()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        yield
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    total, curve = before, []
    for moment, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        total += size
        curve.append((moment, total))
    found |= {"before": before, "peak": max(size for _, size in curve), "parts": {}}
    for event in events:
        if event.name().startswith("part: "):
            start, end = event.start_ns(), event.start_ns() + event.duration_ns()
            inside = [size for moment, size in curve if start <= moment <= end]
            name = event.name().removeprefix("part: ")
            found["parts"][name] = max(found["parts"].get(name, 0), *inside)


def bytes_held() -> int:
    """Bytes of all tensors that are alive on the CPU, each storage once."""
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        # asked of the type, since some modules' attributes answer with a warning to be looked at
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all stages of all rows that ran: how far the plan was off, and how often it was within its bounds."""
    errors = [stage["error"] for row in rows for stage in row["stages"].values() if "error" in stage]
    if not errors:
        return {"stages": 0}
    return {
        "stages": len(errors),
        "largest": max(errors),
        "smallest": min(errors),
        "median_distance": round(statistics.median(map(abs, errors)), 4),
        "within_bounds": sum(-0.05 <= error <= 0.10 for error in errors),
        "did_not_run": [row["name"] for row in rows if "failed" in row],
    }


def plot(rows: list[dict[str, Any]], path: Path, device: str) -> None:
    """Predicted against measured peaks, with the band from 5 % under to 10 % over; and each stage's error below."""
    figure = Figure(figsize=(7.5, 8), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 2])
    unit, name = (GIB, "GiB") if device == "cuda" else (2**20, "MiB")
    colors = dict(zip(STAGES, ("tab:blue", "tab:orange", "tab:red", "tab:green"), strict=True))
    every: list[float] = []
    for stage in STAGES:
        found = [row["stages"][stage] for row in rows if "error" in row["stages"][stage]]
        measured = [one["peak"] / unit for one in found]
        predicted = [one["predicted"]["peak"] / unit for one in found]
        every += measured
        upper.scatter(measured, predicted, s=28, color=colors[stage], label=stage, zorder=3)
        lower.scatter(measured, [100 * one["error"] for one in found], s=28, color=colors[stage], zorder=3)
    if every:
        ends = [0.8 * min(every), 1.25 * max(every)]
        upper.plot(ends, ends, color="0.4", linewidth=1, label="equal")
        upper.fill_between(
            ends, [0.95 * x for x in ends], [1.1 * x for x in ends], color="0.9", label="5 % under to 10 % over"
        )
        lower.fill_between(ends, -5, 10, color="0.9")
        for axes in (upper, lower):
            axes.set_xscale("log")
            axes.set_xlim(*ends)
        upper.set_yscale("log")
        upper.set_ylim(*ends)
    lower.axhline(0, color="0.4", linewidth=1)
    upper.set_ylabel(f"predicted peak, {name}")
    lower.set_ylabel("predicted over measured, %")
    lower.set_xlabel(f"measured peak, {name}")
    upper.legend()
    upper.set_title(f"Peak memory of each stage: plan and measurement ({'GPU' if device == 'cuda' else 'CPU'})")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    main()
