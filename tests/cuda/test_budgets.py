"""Kernels and bytes of each pass at the shapes of 1.5B and 8B models, by the file that asks for them.

The layers run on tensors without storage, so that this takes seconds. A change that adds a float32 copy of an
activation, or a kernel in each layer, is named by its line.
"""

import sys
from collections import defaultdict
from typing import Any, NamedTuple

import pytest
import torch

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.skeleton import Skeleton, build_skeleton, count_model, make_config
from lora_rlhf.plan import dryrun
from lora_rlhf.plan.meter import Meter
from lora_rlhf.plan.shapes import SHAPES

ROWS, LENGTH, RANK, SLOTS = 2, 512, 16, 64
SOURCES = ("/lora_rlhf/", "/transformers/", "/bitsandbytes/", "/peft/")
OWN = ("/lora_rlhf/plan/", "/lora_rlhf/model/devices.py", "/tests/")


class Budget(NamedTuple):
    """Of one layer: kernels, and MB that they move."""

    kernels: float
    megabytes: float


ALL, ADAPTED = "all", "lora_rlhf/model/adapted_linear.py"
# {(model, pass): of all files, and of the adapted layers' own, which multiply by weights in 16 bits but in a step}
BUDGETS = {
    ("qwen2.5-1.5b", "scoring"): {ALL: Budget(55, 594), ADAPTED: Budget(21, 318)},
    ("qwen2.5-1.5b", "training"): {ALL: Budget(151, 1477), ADAPTED: Budget(63, 710)},
    ("qwen2.5-1.5b", "step"): {ALL: Budget(36, 88), ADAPTED: Budget(14, 16.2)},
    ("qwen2.5-1.5b", "merged step"): {ALL: Budget(22, 142), ADAPTED: Budget(0, 0)},
    ("llama-3.1-8b", "scoring"): {ALL: Budget(55, 1770.5), ADAPTED: Budget(21, 876.1)},
    ("llama-3.1-8b", "training"): {ALL: Budget(151, 4092), ADAPTED: Budget(63, 1910)},
    ("llama-3.1-8b", "step"): {ALL: Budget(36, 305), ADAPTED: Budget(14, 31.8)},
    ("llama-3.1-8b", "merged step"): {ALL: Budget(22, 600.4), ADAPTED: Budget(0, 0)},
}


class PlacedMeter(Meter):
    """A meter that also knows the line of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        count = self._count()
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if self._count() > count:
            self.lines.append(_line())
        return result

    def _count(self) -> int:
        return sum(map(len, self.operations.values()))


def _line() -> str:
    """The innermost line of the project or of a library that called an operation."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        at = max(file.rfind(source) for source in SOURCES)
        if at >= 0 and not any(own in file for own in OWN):
            return f"{file[at + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "autograd:0"


def measure(skeleton: Skeleton, name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """(line, bytes moved, float32 FLOP) of each operation of a pass."""
    meters: list[PlacedMeter] = []

    def make() -> PlacedMeter:
        meters.append(PlacedMeter())
        return meters[-1]

    monkeypatch.setattr(dryrun, "Meter", make)
    if name == "scoring":
        dryrun._measure_scoring_pass(skeleton, ROWS, LENGTH)
    elif name == "training":
        dryrun._measure_training_step(skeleton, ROWS, LENGTH, checkpointing=False)
    else:
        dryrun._measure_static_step(skeleton, SLOTS, LENGTH, is_merged=name == "merged step")
    operations = [one for phase in meters[-1].operations.values() for one in phase]
    assert len(operations) == len(meters[-1].lines)
    return [
        (line, one.moved + one.weights / 2, one.float32_flops)
        for line, one in zip(meters[-1].lines, operations, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2.5-1.5b", "llama-3.1-8b"])
def test_no_layer_starts_or_moves_more_than_its_budget(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(*SHAPES[model])
    counts = count_model(config, "nf4", torch.bfloat16)
    widest = max(linear.out_features for linear in counts.linears if linear.adapted)
    lora = LoraSettings(rank=RANK)
    few, more = (build_skeleton(config, "nf4", torch.bfloat16, lora, layers) for layers in (2, 4))
    excess = []
    for name in ("scoring", "training", "step", "merged step"):
        lines: dict[str, dict[str, float]] = {kind: defaultdict(float) for kind in Budget._fields}
        for skeleton, share in ((more, 0.5), (few, -0.5)):  # a layer is half of what two more of them do
            for line, moved, float32_flops in measure(skeleton, name, monkeypatch):
                lines["kernels"][line] += share
                lines["megabytes"][line] += share * moved / 1e6
                # the adapters alone may multiply in float32, never a weight of the base
                if float32_flops > 2 * max(ROWS * LENGTH, SLOTS) * RANK * widest:
                    excess.append(f"{name}: a product of {float32_flops:.2g} FLOP in float32 at {line}")
        for file, budget in BUDGETS[model, name].items():
            for kind, allowed in budget._asdict().items():
                of_lines = {
                    line: number for line, number in lines[kind].items() if file == ALL or line.startswith(file)
                }
                if (total := sum(of_lines.values())) > allowed * 1.002:
                    largest = sorted(of_lines.items(), key=lambda item: -item[1])[:25]
                    excess.append(f"{name}: {total:.2f} {kind} a layer in {file}, not {allowed:g}: {dict(largest)}")
    assert not excess, "\n".join(excess)
