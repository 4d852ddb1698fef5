"""Rollout speed of both engines and of transformers' `generate`, in alternation, beside what the memory bus allows.

    python benchmarks/rollout.py --to benchmarks/results/rollout_llama-4x256.json               # two CPU cores
    python benchmarks/rollout.py --shape tinyworld --to benchmarks/results/rollout_tinyworld.json
    python benchmarks/rollout.py --shape qwen2.5-1.5b --to benchmarks/results/rollout_1.5b.json   # a GPU
    python benchmarks/rollout.py --shape llama-3-8b --to benchmarks/results/rollout_8b.json

Weights are random but for the tiny world's: no response of theirs ends before the token limit. Every ratio is the
median over rounds, in each of which everything ran once.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from provenance import provenance
from shapes import SHAPES
from shapes import make_model as make_random
from transformers import PreTrainedConfig

from lora_rlhf.data.template import stop_ids
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.generate import Engine, generate_seeded
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.disk import write_json
from lora_rlhf.tinyworld import datasets
from lora_rlhf.tinyworld.config import TinyworldConfig

ENGINES: tuple[Engine, ...] = ("plain", "static")
PEER = "transformers generate"
PEER_BATCH = 32
COPIED = 2**28  # bytes that are copied to measure the memory's bandwidth


@dataclass(frozen=True)
class Case:
    """A model, and what it is asked for: `config` None is the tiny world's base with its prompts and stop token."""

    config: PreTrainedConfig | None
    responses: int
    batch_size: int
    prompt_tokens: int
    new_tokens: int


CASES = {
    "llama-4x256": Case(SHAPES["llama-4x256"], 32, 32, 32, 48),
    "tinyworld": Case(None, 416, 416, 128, 64),
    "qwen2.5-1.5b": Case(SHAPES["qwen2.5-1.5b"], 64, 64, 256, 256),
    "llama-3-8b": Case(SHAPES["llama-3-8b"], 64, 64, 256, 256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=CASES, default="llama-4x256")
    parser.add_argument("--batch-size", type=int, help="slots, or rows of a batch; the shape's own unless given")
    parser.add_argument("--responses", type=int, help="responses in a rollout; the shape's own unless given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/rollout.json"))
    args = parser.parse_args()
    case = CASES[args.shape]
    size, responses = args.batch_size or case.batch_size, args.responses or case.responses
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(case, Path(scratch), args.quantization, args.device)
        prompts = make_prompts(case, model, responses, Path(scratch))
    found = measure(model, prompts, case, size, args.rounds)
    command = f"python benchmarks/rollout.py --shape {args.shape} --batch-size {size} --responses {responses}"
    hardware = {"hardware": torch.cuda.get_device_name(0)} if model.device.type == "cuda" else {}
    settings = {
        **{"shape": args.shape, "quantization": args.quantization, "batch_size": size, "responses": responses},
        **{"new_tokens": case.new_tokens, "rounds": args.rounds, "torch": torch.__version__},
        **{"torch_threads": torch.get_num_threads(), "prompt_tokens": round(statistics.mean(map(len, prompts)), 1)},
    }
    args.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.to, {**provenance(command), **hardware, **settings, **found})
    print(json.dumps(found, indent=2))


def make_model(case: Case, folder: Path, quantization: str, device: str) -> SharedModel:
    """The base, with a `policy` adapter of rank 16 that changes something."""
    if case.config is not None:
        make_random(case.config, folder)
    name = "tinyworld" if case.config is None else str(folder)
    model = SharedModel(load_base(BaseSpec(name, quantization), device))
    model.add_role("policy", LoraSettings(rank=16, alpha=32))
    for parameter_name, parameter in model.named_parameters_of("policy"):
        if ".lora_B." in parameter_name:
            torch.nn.init.normal_(parameter.data, std=1e-3)
    return model


def make_prompts(case: Case, model: SharedModel, count: int, folder: Path) -> list[list[int]]:
    """Random ids of one length, or the tiny world's prompts."""
    if case.config is not None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, 2000, (count, case.prompt_tokens), generator=generator)
        return [row.tolist() for row in ids]
    numbers = {"num_demonstrations": 1, "num_ranking_prompts": 1, "num_evaluation_prompts": 1}
    datasets.make(TinyworldConfig(to=str(folder / "data"), num_ppo_prompts=count, **numbers))
    lines = (folder / "data" / "ppo_prompts.jsonl").read_text().splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    tokenizer = model.tokenizer
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in texts
    ]


def measure(model: SharedModel, prompts: list[list[int]], case: Case, size: int, rounds: int) -> dict[str, object]:
    """Tokens/s of all, after a round that warms up; the limit is of a full batch in the middle of its responses."""
    stops = stop_ids(model.tokenizer) if case.config is None else []
    runs: dict[str, Callable[[], int]] = {
        engine: partial(_ours, model, prompts, case, size, stops, engine) for engine in ENGINES
    }
    runs[PEER] = lambda: _peer(model, prompts, case, stops)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = {}
    with model.role("policy"), torch.no_grad():
        for number in range(rounds + 1):
            for name, run in runs.items():
                _reset_peak(model)
                started = time.monotonic()
                tokens = run()
                _synchronize(model)
                if number:
                    speeds[name].append(tokens / (time.monotonic() - started))
                    peaks[name] = _peak_gib(model)
    ratios = {
        f"static against {other}": statistics.median(
            a / b for a, b in zip(speeds["static"], speeds[other], strict=True)
        )
        for other in ("plain", PEER)
    }
    limit = bandwidth_limit(model, min(size, len(prompts)), statistics.mean(map(len, prompts)) + case.new_tokens / 2)
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    return {
        "tokens_per_s": {name: round(value, 1) for name, value in medians.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "all_tokens_per_s": {name: [round(value, 1) for value in found] for name, found in speeds.items()},
        **({"peak_gpu_gib": peaks} if model.device.type == "cuda" else {}),
        "bandwidth_limit": limit,
        "share_of_limit": {name: round(value / limit["tokens_per_s"], 3) for name, value in medians.items()},
    }


def _ours(model: SharedModel, prompts: list[list[int]], case: Case, size: int, stops: list[int], engine: Engine) -> int:
    groups = generate_seeded(
        model,
        prompts,
        [[place] for place in range(len(prompts))],
        max_new_tokens=case.new_tokens,
        temperature=1.0,
        stop_ids=stops,
        batch_size=size,
        engine=engine,
    )
    return sum(len(response.ids) for group in groups for response in group)


def _peer(model: SharedModel, prompts: list[list[int]], case: Case, stops: list[int]) -> int:
    """transformers' `generate` over the same model, prompt by prompt in their order, 32 at a time."""
    pad, count = model.tokenizer.pad_token_id, 0
    for first in range(0, len(prompts), PEER_BATCH):
        batch = prompts[first : first + PEER_BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(one)) + one for one in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in batch], device=model.device)
        given = {"eos_token_id": stops} if stops else {"eos_token_id": None}
        answers = model.causal.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=case.new_tokens, pad_token_id=pad, **given,
        )[:, width:]  # fmt: skip
        for row in answers.tolist():
            ends = [place for place, token in enumerate(row) if token in stops]
            count += ends[0] + 1 if ends else len(row)
    return count


def bandwidth_limit(model: SharedModel, rows: int, context: float) -> dict[str, float]:
    """B x bandwidth / (bytes of the weights + B x context x bytes of a token's keys and values), in tokens/s."""
    tensors = {tensor.data_ptr(): tensor for tensor in _read_each_step(model)}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    element = torch.finfo(model.causal.dtype).bits // 8
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * size * element
    bandwidth = _bandwidth(model.device)
    return {
        "bandwidth_gb_per_s": round(bandwidth / 1e9, 1),
        "weight_gb": round(weights / 1e9, 4),
        "kv_bytes_per_token": cached,
        "context": context,
        "tokens_per_s": round(rows * bandwidth / (weights + rows * context * cached), 1),
    }


def _read_each_step(model: SharedModel) -> list[torch.Tensor]:
    """All weights with the state of their quantization, but for an input embedding that is not the output's too."""
    inner, outer = model.causal.get_input_embeddings().weight, model.causal.get_output_embeddings().weight
    found: list[torch.Tensor] = []
    for name, parameter in model.causal.named_parameters():
        if (".lora_" in name and ".policy." not in name) or parameter is inner is not outer:
            continue
        found.append(parameter)
        state = getattr(parameter, "quant_state", None)
        found += [state.absmax] if state is not None else []
    return found


def _bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy inside the device's memory reads and writes: the best of 20."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(20):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * COPIED / best


def _synchronize(model: SharedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _reset_peak(model: SharedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_gib(model: SharedModel) -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 3) if model.device.type == "cuda" else 0.0


if __name__ == "__main__":
    main()
