"""Several roles in one batch against one role after the other: what the browser app and the evaluation ask for.

    python benchmarks/mixed_roles.py --to benchmarks/results/mixed_roles_llama-4x256.json
    python benchmarks/mixed_roles.py --shape tinyworld --to benchmarks/results/mixed_roles_tinyworld.json
    python benchmarks/mixed_roles.py --shape qwen2.5-1.5b --device cuda --to benchmarks/results/mixed_roles_1.5b.json

All ways generate the same: each ratio is the median over rounds in which all ran, in turns as to who is first. Where
there are many prompts, merged weights are tried too, which only one role at a time can have. Beside it, how many of the
responses are the same, token by token, and how soon all columns of a stream have a first token. Weights are random but
for the tiny world's: no response of theirs ends before the token limit.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from rollout import CASES, Case, make_prompts
from shapes import make_model

from lora_rlhf.data.template import stop_ids
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.decode_weights import use_merged_weights
from lora_rlhf.model.generate import Engine, Response, generate_mixed, generate_seeded, stream_mixed
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.disk import write_json

ADAPTED = ("sft", "policy", "dpo", "rloo", "second")
ROLES = ("base", *ADAPTED)
STRENGTH = 0.02  # sd of B: enough that roles part

MIXED, ALONE, MERGED = "mixed", "one after the other", "one after the other, merged weights"

Groups = list[list[Response]]


@dataclass(frozen=True)
class Asked:
    """So many prompts to so many roles."""

    prompts: int
    roles: int
    engine: Engine = "plain"

    def __str__(self) -> str:
        return f"{self.prompts} prompt{'s' * (self.prompts > 1)} x {self.roles} roles, {self.engine}"


ASKED = (Asked(1, 3), Asked(1, 6), Asked(32, 3), Asked(32, 3, "static"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=CASES, default="llama-4x256")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/mixed_roles.json"))
    args = parser.parse_args()
    case = CASES[args.shape]
    with tempfile.TemporaryDirectory() as scratch:
        model = shared_model(case, Path(scratch), args.quantization, args.device)
        prompts = make_prompts(case, model, max(asked.prompts for asked in ASKED), Path(scratch))
    stops = stop_ids(model.tokenizer) if case.config is None else []
    found = {str(asked): measure(model, prompts, case, asked, stops, args.rounds) for asked in ASKED}
    command = f"python benchmarks/mixed_roles.py --shape {args.shape} --rounds {args.rounds} --device {args.device}"
    hardware = {"hardware": torch.cuda.get_device_name(0)} if model.device.type == "cuda" else {}
    settings = {
        **{"shape": args.shape, "quantization": args.quantization, "rank": 16, "new_tokens": case.new_tokens},
        **{"rounds": args.rounds, "torch": torch.__version__, "torch_threads": torch.get_num_threads()},
        **{"prompt_tokens": round(statistics.mean(map(len, prompts)), 1)},
    }
    args.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.to, {**provenance(command), **hardware, **settings, "measured": found})
    print(json.dumps(found, indent=2))


def shared_model(case: Case, folder: Path, quantization: str, device: str) -> SharedModel:
    """The base, and five adapters of rank 16 on every linear layer, all different."""
    if case.config is not None:
        make_model(case.config, folder)
    name = "tinyworld" if case.config is None else str(folder)
    model = SharedModel(load_base(BaseSpec(name, quantization), device))
    torch.manual_seed(0)
    for role in ADAPTED:
        model.add_role(role, LoraSettings(rank=16, alpha=32))
        for parameter_name, parameter in model.named_parameters_of(role):
            if ".lora_B." in parameter_name:
                torch.nn.init.normal_(parameter.data, std=STRENGTH)
    return model


def measure(
    model: SharedModel, prompts: list[list[int]], case: Case, asked: Asked, stops: list[int], rounds: int
) -> dict[str, object]:
    """Tokens/s of all ways after a round that warms up, and their ratios."""
    chosen, roles = prompts[: asked.prompts], ROLES[: asked.roles]
    settings: dict[str, Any] = {"max_new_tokens": case.new_tokens, "temperature": 1.0, "stop_ids": stops}
    seeds = list(range(len(chosen)))

    def mixed() -> Groups:
        return generate_mixed(
            model,
            [role for role in roles for _ in chosen],
            chosen * len(roles),
            [[seed] for seed in seeds] * len(roles),
            batch_size=len(chosen) * len(roles),
            engine=asked.engine,
            **settings,
        )

    def alone(decoding: Callable[[SharedModel], AbstractContextManager[None]]) -> Groups:
        groups: Groups = []
        for role in roles:
            with model.role(role), decoding(model):
                own = [[seed] for seed in seeds]
                groups += generate_seeded(model, chosen, own, batch_size=len(chosen), engine=asked.engine, **settings)
        return groups

    runs = {MIXED: mixed, ALONE: lambda: alone(lambda _model: nullcontext())}
    if asked.prompts > 1:
        runs[MERGED] = lambda: alone(use_merged_weights)
    speeds, same = alternate(model, runs, rounds)
    pairs = {name: zip(speeds[MIXED], values, strict=True) for name, values in speeds.items() if name != MIXED}
    ratios = {name: [a / b for a, b in both] for name, both in pairs.items()}
    found = {
        "mixed_against": {name: round(statistics.median(values), 2) for name, values in ratios.items()},
        "ratios": {name: [round(ratio, 2) for ratio in values] for name, values in ratios.items()},
        "tokens_per_s": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
        "same_responses": f"{same} of {len(chosen) * len(roles)}",
    }
    if asked.prompts == 1:
        first = [first_tokens(model, roles, chosen[0], settings) for _ in range(rounds)]
        found["first_tokens_s"] = round(statistics.median(first), 4)
    return found


def alternate(
    model: SharedModel, runs: dict[str, Callable[[], Groups]], rounds: int
) -> tuple[dict[str, list[float]], int]:
    """Tokens/s of each, round by round, and how many responses of the last round are the same mixed and alone."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    answers: dict[str, Groups] = {}
    for number in range(rounds + 1):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            answers[name] = runs[name]()
            _synchronize(model)
            if number:
                tokens = sum(len(response.ids) for group in answers[name] for response in group)
                speeds[name].append(tokens / (time.perf_counter() - started))
    return speeds, sum(a == b for a, b in zip(answers[MIXED], answers[ALONE], strict=True))


def first_tokens(model: SharedModel, roles: tuple[str, ...], prompt: list[int], settings: dict[str, Any]) -> float:
    """Seconds from asking for a stream until each column has a token."""
    started = time.perf_counter()
    stream = stream_mixed(model, roles, [prompt] * len(roles), [0] * len(roles), **settings)
    next(stream)
    return time.perf_counter() - started


def _synchronize(model: SharedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
