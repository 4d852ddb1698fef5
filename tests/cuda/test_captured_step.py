"""A decoding step does the same operations on the same memory each time, so that a CUDA graph of one repeats them all.

Where it does not, the line is named: a state that is bound anew instead of written in place, a Python number that
changes, a mask that outlives its step.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_rlhf.model.decode_static import _Run
from lora_rlhf.model.decode_weights import run_role
from lora_rlhf.model.drawing import Drawing, RowRoles
from lora_rlhf.model.shared import SharedModel
from tests.support.pretended_cuda import place

PROMPTS, COLUMNS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]], 16


class Tape(TorchDispatchMode):
    """The operations of each step in its block: name, line, and inputs.

    A tensor is told by its memory: by the operation of the step that made it, or by its address if no step did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[tuple[str, str, list[object]]]] = []
        self._made: dict[int, tuple[int, int]] = {}  # (step, operation) by the address of the memory
        self._alive: list[object] = []  # so that no address is used twice

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [self._describe(leaf) for leaf in tree_leaves((args, kwargs or {}))]
        read = {
            leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (address := leaf.untyped_storage().data_ptr()) not in read:
                self._made[address] = len(self.steps) - 1, len(self.steps[-1])
        self._alive.append(result)
        self.steps[-1].append((function._schema.name, place(), inputs))
        return result

    def _describe(self, leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        address = leaf.untyped_storage().data_ptr()
        step, operation = self._made.get(address, (None, None))
        if step is None:
            origin = f"memory at {address:x}"
        elif step == len(self.steps) - 1:
            origin = f"of operation {operation}"
        else:
            name, line, _ = self.steps[step][operation]
            origin = f"of {name} at {line} in step {step}"
        return origin, leaf.storage_offset(), tuple(leaf.shape), leaf.stride()


def first_difference(step: Callable[[], None]) -> str | None:
    """Where the third step differs from the second, or either reads what a step before it made."""
    with Tape() as tape:
        for _ in range(3):
            tape.steps.append([])
            step()
    _, second, third = tape.steps
    for operation in (*second, *third):
        if any(isinstance(given, tuple) and " in step " in str(given[0]) for given in operation[2]):
            return f"{operation} reads what an earlier step made"
    for one, other in zip(second, third, strict=False):
        if one[0] != other[0] or one[2] != other[2]:
            return f"{one} in one step, {other} in the next"
    return None if len(second) == len(third) else f"{len(second)} operations in one step, {len(third)} in the next"


@pytest.mark.parametrize("mode", ["adapter", "merged", "mixture"])
def test_a_step_repeats_its_operations(shared_model: Callable[..., SharedModel], mode: str) -> None:
    model = shared_model("llama")
    row_roles = RowRoles([0] * 4)
    block: AbstractContextManager[object] = run_role(model, "policy", mode == "merged")
    if mode == "mixture":
        block = mixture = model.mixture(["policy", "base"])
        row_roles = RowRoles([0, 1, 0, 1], mixture)
    with block, torch.no_grad():
        seeds, drawing = [[row] for row in range(4)], Drawing(8, 1.0, [])
        run = _Run(model, PROMPTS, seeds, drawing, row_roles, 4, lambda _count: None, None)
        run._fill_free_slots()
        difference = first_difference(lambda: run.step(4, COLUMNS))
    assert difference is None, difference
