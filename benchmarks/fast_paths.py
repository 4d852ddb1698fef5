"""What each fast path of the model room gains: whole pieces of work with all of them, and with all but one.

    python benchmarks/fast_paths.py --threads 1                                   # ten minutes of a CPU
    python benchmarks/fast_paths.py --device cuda --shapes qwen2.5-1.5b --to benchmarks/results/fast_paths_gpu.json

The fast paths are the autograd function of an adapted layer (off: PEFT's own forward), the dequantised copy of the
base (off: 4-bit weights are read out at each use), merged weights for decoding (off: base and adapter are added in each
layer), the static engine (off: the plain one), and mixtures of roles (off: one role after the other).

The work is one step of SFT, one iteration of PPO (sampling, scoring, update), its sampling alone, and answers of three
roles to the same prompts, as an evaluation asks for. In each round every variant runs once, in turns as to the order. A
gain is the median over rounds of the seconds without the path, divided by the seconds with all paths: 1.05 is 5 %. The
result has wall seconds and CPU seconds; other work on the machine disturbs CPU seconds less.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from provenance import provenance
from rollout import CASES, Case, make_prompts
from shapes import make_model

from lora_rlhf.algo.losses import lm_loss, policy_loss, value_loss
from lora_rlhf.data.batches import pad_left, pad_right, sft_batch
from lora_rlhf.data.encode import EncodedExample
from lora_rlhf.data.template import pad_id, stop_ids
from lora_rlhf.model.adapted_linear import LinearMode, run_peft_forward
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.decode_weights import use_merged_weights
from lora_rlhf.model.dense import keep_dense_copies
from lora_rlhf.model.forward import (
    Sequences,
    apply_in_micro_batches,
    counted_logprobs,
    response_logprobs,
    response_scores,
    response_values,
)
from lora_rlhf.model.generate import Engine, Response, generate_mixed, generate_seeded
from lora_rlhf.model.optimizers import make_optimizer
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.disk import write_json

ANSWERING = ("base", "sft", "policy")  # the roles of an evaluation
STRENGTH = 0.02  # standard deviation of B: enough that roles give different answers


@dataclass(frozen=True)
class Paths:
    """Which fast paths are on."""

    autograd: bool = True
    dense: bool = True
    merged: bool = True
    static: bool = True
    mixture: bool = True


ALL = Paths()


@dataclass(frozen=True)
class Sizes:
    """How much work: responses of a PPO iteration, rows of an SFT step, prompts of an evaluation, rows at a time."""

    responses: int
    demonstrations: int
    evaluated: int
    micro_batch: int


SIZES = {
    "llama-4x256": Sizes(16, 16, 16, 8),
    "tinyworld": Sizes(48, 32, 32, 48),
    "qwen2.5-1.5b": Sizes(64, 16, 32, 8),
    "llama-3-8b": Sizes(64, 16, 32, 4),
}


class Work:
    """A model with its roles and optimizers, and the pieces of work that are timed."""

    def __init__(self, case: Case, sizes: Sizes, scratch: Path, device: str) -> None:
        self.case, self.sizes = case, sizes
        self.model = make_roles(case, scratch, device)
        self.prompts = make_prompts(case, self.model, sizes.responses, scratch)
        self.stops = stop_ids(self.model.tokenizer) if case.config is None else []
        self.optimizers = {
            role: make_optimizer("adamw", [p for _, p in self.model.named_parameters_of(role)], 0.0, 1e-5)
            for role in ("sft", "policy", "value")
        }  # a learning rate of 0: every round does the same work

    def sft_step(self, paths: Paths) -> None:
        """Forward, backward and optimizer step on a batch of demonstrations."""
        generator = torch.Generator().manual_seed(1)
        model, length = self.model, self.case.new_tokens // 2
        rows = [
            EncodedExample(prompt, torch.randint(5, 800, (length,), generator=generator).tolist())
            for prompt in self.prompts[: self.sizes.demonstrations]
        ]
        with self.learning("sft"):
            for start in range(0, len(rows), self.sizes.micro_batch):
                batch = sft_batch(rows[start : start + self.sizes.micro_batch], pad_id(model.tokenizer))
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                labels = batch.pop("labels")
                logprobs = counted_logprobs(model, labels, labels >= 0, **batch)
                lm_loss(logprobs, torch.ones_like(logprobs, dtype=torch.bool), length * len(rows)).backward()

    def ppo_iteration(self, paths: Paths) -> None:
        """Sampling, scoring by four roles, and one epoch of policy and value."""
        sequences = self.sequences_of(self.sample(paths))
        self.update(sequences, *self.score(sequences))

    def ppo_rollout(self, paths: Paths) -> None:
        """The sampling of a PPO iteration alone."""
        self.sample(paths)

    def evaluation(self, paths: Paths) -> None:
        """One answer of each role to each prompt, by the plain engine, as `lora-rlhf evaluate` asks for."""
        prompts = self.prompts[: self.sizes.evaluated]
        engine: Engine = "plain"
        seeds = [[number] for number in range(len(prompts))]
        if paths.mixture:
            roles = [role for role in ANSWERING for _ in prompts]
            generate_mixed(
                self.model, roles, prompts * 3, seeds * 3, **self.drawing, batch_size=len(roles), engine=engine
            )
            return
        for role in ANSWERING:
            with self.model.role(role), use_merged_weights(self.model) if paths.merged else nullcontext():
                generate_seeded(self.model, prompts, seeds, **self.drawing, batch_size=len(prompts), engine=engine)

    @property
    def drawing(self) -> dict[str, Any]:
        return {"max_new_tokens": self.case.new_tokens, "temperature": 1.0, "stop_ids": self.stops}

    def sample(self, paths: Paths) -> list[Response]:
        with self.model.role("policy"), use_merged_weights(self.model) if paths.merged else nullcontext():
            groups = generate_seeded(
                self.model,
                self.prompts,
                [[number] for number in range(len(self.prompts))],
                **self.drawing,
                batch_size=len(self.prompts),
                engine="static" if paths.static else "plain",
            )
        return [group[0] for group in groups]

    def sequences_of(self, responses: list[Response]) -> Sequences:
        pad = pad_id(self.model.tokenizer)
        padded = Sequences(*pad_left(self.prompts, pad), *pad_right([response.ids for response in responses], pad))
        return padded.to(self.model.device)

    @torch.no_grad()
    def score(self, sequences: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
        """The policy's log-probabilities and the values, after the scores and the reference's log-probabilities."""
        model, size = self.model, self.sizes.micro_batch
        with model.role("reward"):
            apply_in_micro_batches(lambda part: response_scores(model, part), sequences, size)
        with model.role("sft"):
            apply_in_micro_batches(lambda part: response_logprobs(model, part, needs_entropy=False)[0], sequences, size)
        with model.role("policy"):
            logprobs = apply_in_micro_batches(lambda part: response_logprobs(model, part)[0], sequences, size)
        with model.role("value"):
            return logprobs, apply_in_micro_batches(lambda part: response_values(model, part), sequences, size)

    def update(self, sequences: Sequences, old: torch.Tensor, values: torch.Tensor) -> None:
        model, mask = self.model, sequences.response_mask
        num_tokens = int(mask.sum())
        goals = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2)).to(mask.device)
        with self.learning("policy"):
            for rows in sequences.micro_batches(self.sizes.micro_batch):
                new, _ = response_logprobs(model, sequences.index(rows))
                policy_loss(new, old[rows], goals[rows], mask[rows], 0.2, num_tokens).loss.backward()
        with self.learning("value"):
            for rows in sequences.micro_batches(self.sizes.micro_batch):
                new = response_values(model, sequences.index(rows))
                value_loss(new, values[rows], goals[rows], mask[rows], 0.2, num_tokens).loss.backward()

    @contextmanager
    def learning(self, role: str) -> Iterator[None]:
        """A step of the role's optimizer on the gradients of the block."""
        self.optimizers[role].zero_grad()
        with self.model.role(role, training=True):
            yield
        self.optimizers[role].step()


# What is timed, and the paths that take part in it. An evaluation without mixtures has two forms, since only one role
# at a time can have merged weights.
WITHOUT = {name.name: replace(ALL, **{name.name: False}) for name in fields(Paths)}
WORK: dict[str, tuple[Callable[[Work, Paths], None], dict[str, Paths]]] = {
    "SFT step": (Work.sft_step, {name: WITHOUT[name] for name in ("autograd", "dense")}),
    "PPO iteration": (
        Work.ppo_iteration,
        {name: WITHOUT[name] for name in ("autograd", "dense", "merged", "static")},
    ),
    "PPO rollout": (Work.ppo_rollout, {name: WITHOUT[name] for name in ("dense", "merged", "static")}),
    "evaluation, 3 roles": (
        Work.evaluation,
        {
            "dense": WITHOUT["dense"],
            "mixture (roles in turn, merged)": WITHOUT["mixture"],
            "mixture (roles in turn, adapters)": replace(ALL, mixture=False, merged=False),
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SIZES, default=["llama-4x256", "tinyworld"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/fast_paths.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    measured: dict[str, dict[str, object]] = {}
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            work = Work(CASES[shape], SIZES[shape], Path(scratch), args.device)
        measured[shape] = {name: measure(work, *what, args.rounds) for name, what in WORK.items()}
    result = {
        **provenance(" ".join(["python", "benchmarks/fast_paths.py", *sys.argv[1:]])),
        **({"hardware": torch.cuda.get_device_name(0)} if args.device == "cuda" else {}),
        "torch": torch.__version__,
        "threads": args.threads,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "rounds": args.rounds,
        "sizes": {shape: vars(SIZES[shape]) for shape in args.shapes},
        "measured": measured,
    }
    write_json(args.to, result)
    print(json.dumps(result, indent=2))


def make_roles(case: Case, folder: Path, device: str) -> SharedModel:
    """The base in NF4 with adapters of rank 16 on every linear layer; reward and value have a head."""
    if case.config is not None:
        make_model(case.config, folder)
    model = SharedModel(load_base(BaseSpec("tinyworld" if case.config is None else str(folder)), device))
    torch.manual_seed(0)
    for role in ("sft", "policy", "reward", "value"):
        model.add_role(role, LoraSettings(rank=16, alpha=32), head=role in ("reward", "value"))
        for name, parameter in model.named_parameters_of(role):
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter.data, std=STRENGTH)
    return model


def measure(
    work: Work, function: Callable[[Work, Paths], None], variants: dict[str, Paths], rounds: int
) -> dict[str, object]:
    """Seconds with all paths and without each, after a round that warms up, and what each path gains."""
    runs = {"all": ALL, **variants}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            with switched(work.model, runs[name]):
                started, cpu_started = time.perf_counter(), time.process_time()
                function(work, runs[name])
                if work.model.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - started, time.process_time() - cpu_started
            if number:
                wall[name].append(seconds[0])
                processor[name].append(seconds[1])
    return {
        "seconds": {name: round(statistics.median(values), 4) for name, values in wall.items()},
        "cpu_seconds": {name: round(statistics.median(values), 4) for name, values in processor.items()},
        "gain": {name: gain(wall, name) for name in variants},
        "cpu_gain": {name: gain(processor, name) for name in variants},
    }


def gain(seconds: dict[str, list[float]], name: str) -> dict[str, float]:
    """Seconds without a path by seconds with all, round by round: the median, and where the middle half lies."""
    ratios = [without / everything for without, everything in zip(seconds[name], seconds["all"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": round(median, 3), "low": round(low, 3), "high": round(high, 3)}


@contextmanager
def switched(model: SharedModel, paths: Paths) -> Iterator[None]:
    """The paths that are a property of the model rather than of a call."""
    with ExitStack() as stack:
        keep_dense_copies(model.causal, "always" if paths.dense else "never")
        if not paths.autograd:
            stack.enter_context(
                patch.object(LinearMode, "forward", lambda _mode, layer, inputs: run_peft_forward(layer, inputs))
            )
        yield


if __name__ == "__main__":
    main()
