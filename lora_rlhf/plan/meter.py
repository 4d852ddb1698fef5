"""Counts the bytes of all tensors in memory while code runs on tensors without storage."""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_rlhf.plan.work import Operation, operation_of

GEMM_4BIT = "bitsandbytes::gemm_4bit"
GROUPED_MM = "aten::_grouped_mm"


class Meter(TorchDispatchMode):
    """A context manager that records the bytes of the tensors that its block creates, after each operation.

    live_bytes: bytes in use now. byte_series: {phase: bytes after each operation}. operations: {phase: what each
    operation does on a GPU, views left out}. Tensors from outside the block and views have no bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.operations: dict[str, list[Operation]] = {}
        self.byte_series: dict[str, list[int]] = {}
        self._phase = ""
        self._size_by_storage: dict[int, tuple[weakref.ref[Any], int]] = {}

    @contextmanager
    def record_phase(self, name: str) -> Iterator[None]:
        """Records the operations of the block under this name in `byte_series`."""
        outer_phase, self._phase = self._phase, name
        self._record_bytes(0)
        try:
            yield
        finally:
            self._phase = outer_phase

    @property
    def peaks(self) -> dict[str, int]:
        """The largest number of bytes in each phase."""
        return {name: max(series) for name, series in self.byte_series.items()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and records the bytes after it; PyTorch calls this for every operation of the block."""
        for leaf in tree_leaves((args, kwargs)):
            self._count_storage(leaf, is_external=True)
        result = _run(function, args, kwargs or {})
        if operation := operation_of(function, args, kwargs or {}, result):
            self.operations.setdefault(self._phase, []).append(operation)
        for leaf in tree_leaves(result):
            self._count_storage(leaf, is_external=False)
        self._record_bytes(_workspace_bytes(function, args))
        return result

    def _count_storage(self, leaf: Any, is_external: bool) -> None:
        """Adds the bytes of a new tensor's storage until it is freed; an external storage counts 0 bytes."""
        if not isinstance(leaf, torch.Tensor):
            return
        storage = leaf.untyped_storage()
        key = storage._cdata
        if key in self._size_by_storage:
            return
        size = 0 if is_external else storage.nbytes()
        self._size_by_storage[key] = (weakref.ref(storage, lambda _: self._forget_storage(key)), size)
        self.live_bytes += size

    def _forget_storage(self, key: int) -> None:
        self.live_bytes -= self._size_by_storage.pop(key)[1]

    def _record_bytes(self, workspace: int) -> None:
        self.byte_series.setdefault(self._phase, []).append(self.live_bytes + workspace)


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    """The result. Without storage, PyTorch multiplies by the experts of a mixture in bfloat16 alone."""
    if function._schema.name == GROUPED_MM and args[0].dtype != torch.bfloat16:
        return function(*(arg.bfloat16() for arg in args[:2]), *args[2:], **kwargs).to(args[0].dtype)
    return function(*args, **kwargs)


def _workspace_bytes(function: Any, args: Any) -> int:
    """Bytes that an operation allocates for itself and frees before it returns."""
    if function._schema.name == GEMM_4BIT:  # the weight in the compute dtype, and its scales, twice, in float32
        values = math.prod(args[2])
        return int(values * args[0].element_size() + 2 * 4 * -(-values // args[4]))
    return 0
