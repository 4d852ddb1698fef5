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
    """The operations of its block: name, line, and inputs, each tensor by the operation that made it or its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, str, list[object]]] = []
        self._origins: dict[int, str] = {}  # by the address of the memory
        self._alive: list[object] = []  # so that no address is used twice

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [self._describe(leaf) for leaf in tree_leaves((args, kwargs or {}))]
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._origins.setdefault(leaf.untyped_storage().data_ptr(), f"of operation {len(self.operations)}")
        self._alive.append(result)
        self.operations.append((function._schema.name, place(), inputs))
        return result

    def _describe(self, leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        address = leaf.untyped_storage().data_ptr()
        origin = self._origins.setdefault(address, f"at {address:x}")
        return origin, leaf.storage_offset(), tuple(leaf.shape), leaf.stride()


def first_difference(step: Callable[[], None]) -> str | None:
    """Where the second step differs from the first."""
    tapes = [Tape(), Tape()]
    for tape in tapes:
        with tape:
            step()
    first, second = (tape.operations for tape in tapes)
    for one, other in zip(first, second, strict=False):
        if one[0] != other[0] or one[2] != other[2]:
            return f"{one} in one step, {other} in the next"
    return None if len(first) == len(second) else f"{len(first)} operations in one step, {len(second)} in the next"


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
        run.step(4, COLUMNS)
        difference = first_difference(lambda: run.step(4, COLUMNS))
    assert difference is None, difference
