"""Counts the bytes of all tensors that exist at a time, while code runs on tensors without storage."""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GEMM_4BIT = "bitsandbytes::gemm_4bit"


class Meter(TorchDispatchMode):
    """Inside the block: the bytes of the tensors that were created there, after each operation of each phase.

    live: bytes that are in use now. operations: how many ran, views left out. trails: {phase: bytes after each
    operation}. Tensors from outside count nothing, whatever is done to them, and a view is no new tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.operations = 0
        self.trails: dict[str, list[int]] = {}
        self._phase = ""
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names the trail of the operations inside the block."""
        before, self._phase = self._phase, name
        self._note(0)
        try:
            yield
        finally:
            self._phase = before

    @property
    def peaks(self) -> dict[str, int]:
        """The largest number of bytes in each phase."""
        return {name: max(trail) for name, trail in self.trails.items()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            self._register(leaf, outside=True)
        result = function(*args, **(kwargs or {}))
        self.operations += not getattr(function, "is_view", False)
        for leaf in tree_leaves(result):
            self._register(leaf, outside=False)
        self._note(_workspace(function, args))
        return result

    def _register(self, leaf: Any, outside: bool) -> None:
        if not isinstance(leaf, torch.Tensor):
            return
        storage = leaf.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = 0 if outside else storage.nbytes()
        self._alive[key] = (weakref.ref(storage, lambda _: self._free(key)), size)
        self.live += size

    def _free(self, key: int) -> None:
        self.live -= self._alive.pop(key)[1]

    def _note(self, workspace: int) -> None:
        self.trails.setdefault(self._phase, []).append(self.live + workspace)


def _workspace(function: Any, args: Any) -> int:
    """Bytes that an operation allocates for itself and frees before it returns."""
    if function._schema.name == GEMM_4BIT:  # the weight in the compute dtype, and its scales twice in float32
        values = math.prod(args[2])
        return int(values * args[0].element_size() + 2 * 4 * -(-values // args[4]))
    return 0
