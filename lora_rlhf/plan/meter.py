"""Counts the bytes of all tensors in memory while code runs on tensors without storage."""

import math
import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lora_rlhf.plan.work import Operation, operation_of, tensors_in

GEMM_4BIT = "bitsandbytes::gemm_4bit"
GROUPED_MM = "aten::_grouped_mm"
MOST_RESULTS = 50_000
_RESULTS: dict[Any, Callable[[Any], Tensor]] = {}  # by an operation and the shapes of its arguments


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
        kwargs = kwargs or {}
        inputs = tensors_in((args, kwargs))
        for tensor in inputs:
            self._count_storage(tensor, is_external=True)
        result = _run(function, args, kwargs, inputs)
        results = tensors_in(result)
        if operation := operation_of(function, args, inputs, results):
            self.operations.setdefault(self._phase, []).append(operation)
        for tensor in results:
            self._count_storage(tensor, is_external=False)
        self._record_bytes(_workspace_bytes(function, args))
        return result

    def _count_storage(self, tensor: Tensor, is_external: bool) -> None:
        """Adds the bytes of a new tensor's storage until it is freed; an external storage counts 0 bytes."""
        storage = tensor.untyped_storage()
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


def _run(function: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
    """The result. Tensors without storage are made as at the first time: PyTorch takes long to compute their shapes."""
    try:
        call = (function, _key(args), _key(kwargs))
        known = _RESULTS.get(call)
    except TypeError:  # an argument that has no hash
        return _compute(function, args, kwargs)
    if known is not None:
        return known(args)
    before = [_key(tensor) for tensor in inputs]
    result = _compute(function, args, kwargs)
    if before == [_key(tensor) for tensor in inputs] and (again := _find_way(args, inputs, result)):
        if len(_RESULTS) >= MOST_RESULTS:
            _RESULTS.clear()
        _RESULTS[call] = again
    return result


def _compute(function: Any, args: Any, kwargs: Any) -> Any:
    """The result. Without storage, PyTorch multiplies by the experts of a mixture in bfloat16 alone."""
    if function._schema.name == GROUPED_MM and args[0].dtype != torch.bfloat16:
        return function(*(arg.bfloat16() for arg in args[:2]), *args[2:], **kwargs).to(args[0].dtype)
    return function(*args, **kwargs)


def _find_way(args: Any, inputs: list[Tensor], result: Any) -> Callable[[Any], Tensor] | None:
    """How to make the result for arguments of the same shapes: the first of them, or a new tensor; None for others."""
    if not isinstance(result, Tensor) or not result.is_meta or not all(tensor.is_meta for tensor in inputs):
        return None
    if args and result is args[0]:
        return operator.itemgetter(0)
    shape, stride, dtype = tuple(result.shape), result.stride(), result.dtype
    storage = result.untyped_storage()
    is_whole = (
        not dtype.is_complex
        and torch.empty_strided(shape, stride, dtype=dtype, device="meta").nbytes == storage.nbytes()
    )
    if not is_whole or any(storage._cdata == tensor.untyped_storage()._cdata for tensor in inputs):
        return None
    return lambda _args: torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _key(value: Any) -> Any:
    """What the result's shape depends on in an argument. 1, 1.0 and True are unlike. TypeError for what has no hash."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.is_meta
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(one)) for name, one in value.items())
    return type(value), value


def _workspace_bytes(function: Any, args: Any) -> int:
    """Bytes that an operation allocates for itself and frees before it returns."""
    if function._schema.name == GEMM_4BIT:  # the weight in the compute dtype, and its scales, twice, in float32
        values = math.prod(args[2])
        return int(values * args[0].element_size() + 2 * 4 * -(-values // args[4]))
    return 0
