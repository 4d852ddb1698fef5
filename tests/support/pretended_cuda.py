"""CUDA devices that are played on the CPU: tensors say cuda:N and hold CPU tensors, so that code for a GPU can be run.

What is played, and fails as it fails on a GPU:
- tensors of two devices in one operation, but for a CPU number without dimensions,
- waiting for the GPU: each is counted with file and line, forbidden in a capture, and in sync debug mode "error",
- CUDA graphs: a capture executes nothing (what it wrote is put back, what it made is filled with garbage), and a replay
  repeats the recorded operations on the same memory. Kernels of another device than the current one are not captured,
- torch's own `torch.cuda.graph` and `torch.cuda.stream`, over played streams and captures that can be made to fail,
- memory that runs out at the n-th allocation, or that another program holds; a GPU that fails at the n-th operation.
What is not: kernels' own numbers and seconds, fragmentation, drivers.
"""

import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from lora_rlhf.model import base
from lora_rlhf.model import devices as model_devices
from lora_rlhf.system.kernel_trial import Trial

CPU = torch.device("cpu")
GIB = 2**30
# What a GPU whose 4-bit kernels are right would say; bitsandbytes' own would read memory that is not there.
RIGHT = Trial("float32", 0.1, 0.0, 0.0, 0.0, 1.0, kept=True, own_library=True, repacks=False)
# The innermost frame of one of these is where something happens.
PLACES = ("/lora_rlhf/", "/transformers/", "/bitsandbytes/", "/peft/", "/torch/optim/", "/torch/nn/utils/")
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount"}
WAITING |= {"int8_vectorwise_quant"}  # bitsandbytes' for CUDA asks whether there are outliers
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
WITHOUT_KERNEL = {"detach", "alias", "_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "lift_fresh"}


class Played:
    """What the played GPUs did and are to do. One at a time is active: `now()`."""

    active: "Played | None" = None

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.waits: Counter[tuple[str, str]] = Counter()  # (what, file:line)
        self.launches: Counter[str] = Counter()  # operations that a GPU would run a kernel for, outside of replays
        self.graphs = self.replays = self.captures_begun = self.pools_released = 0
        self.current, self.sync_mode = 0, 0
        self.streams = [Stream(index) for index in range(devices)]  # each device's current one
        self.capture: Capture | None = None
        self.capture_failure: Exception | None = None  # raised at the end of a capture
        self.allocations = 0
        self.allocations_left: int | None = None  # until memory runs out, once
        self.operations_left: int | None = None  # until the GPU is gone, for good
        self.total, self.free = 24 * GIB, 22 * GIB
        self.name, self.capability = "Pretended GPU", (8, 9)
        self.architectures = ["sm_75", "sm_80", "sm_86", "sm_90", "compute_120"]

    def wait(self, what: str) -> None:
        """The CPU waits for the GPU."""
        where = place()
        if self.capture is not None:
            self.capture.failed = True
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what} at {where})")
        if self.sync_mode == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation ({what} at {where})")
        self.waits[what, where] += 1

    def operate(self) -> None:
        if self.operations_left is None:
            return
        self.operations_left -= 1
        if self.operations_left < 0:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nmore lines")

    def allocate(self) -> None:
        self.allocations += 1
        if self.allocations_left is None:
            return
        self.allocations_left -= 1
        if self.allocations_left < 0:
            self.allocations_left = None
            raise torch.OutOfMemoryError(f"CUDA out of memory. (played, at {place()})")


def now() -> Played:
    assert Played.active is not None, "a pretended tensor is used outside of `pretended`"
    return Played.active


def place() -> str:
    """The line of the project that is running, or that of the library if the project called none of its own."""
    frame, library = sys._getframe(1), "?"
    while frame is not None:
        file = frame.f_code.co_filename
        for part in PLACES:
            at = file.rfind(part)
            if at >= 0 and not (part == "/lora_rlhf/" and "/tests/" in file):
                line = f"{file[at + 1 :]}:{frame.f_lineno}"
                if part == "/lora_rlhf/":
                    return line
                library = line if library == "?" else library
                break
        frame = frame.f_back  # type: ignore[assignment]
    return library


class Stream:
    def __init__(self, device: Any = None, priority: int = 0) -> None:
        index = torch.device("cuda", device).index if isinstance(device, int) else None
        self.device = torch.device("cuda", now().current if index is None and Played.active else index or 0)

    def synchronize(self) -> None:
        now().wait("stream.synchronize")


@dataclasses.dataclass
class Capture:
    """The operations of a graph, and the memory that they wrote to, as it was before."""

    device: int
    tape: list[tuple[Any, Any, Any, list[Any], str]] = dataclasses.field(default_factory=list)
    before: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    failed: bool = False

    def end(self) -> None:
        for storage, content in self.before.values():
            storage.copy_(content)
        for _, _, _, results, kind in self.tape:
            for made in results if kind == "new" else ():
                if isinstance(made, Tensor) and made.numel() and made.untyped_storage().data_ptr() not in self.before:
                    made.fill_(float("nan") if made.is_floating_point() else 1)


class CUDAGraph:
    def __init__(self) -> None:
        self.capture: Capture | None = None

    def capture_begin(self, *pool: Any, **_settings: Any) -> None:
        played = now()
        played.captures_begun += 1
        played.capture = self.capture = Capture(played.streams[played.current].device.index)

    def capture_end(self) -> None:
        played = now()
        capture, played.capture = played.capture, None
        assert capture is not None
        capture.end()
        if capture.failed:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        if played.capture_failure is not None:
            raise played.capture_failure
        played.graphs += 1

    def replay(self) -> None:
        played, capture = now(), self.capture
        assert capture is not None and played.capture is None
        played.replays += 1
        played.launches["graph"] += 1
        with torch._C.DisableTorchFunction():
            for function, args, kwargs, results, kind in capture.tape:
                if kind == "view":
                    continue
                again = tree_leaves(_compute(function, args, kwargs))
                for old, new in zip(results, again, strict=True) if kind == "new" else ():
                    if isinstance(old, Tensor):
                        old.copy_(new)

    def reset(self) -> None:
        self.capture = None


class PretendedTensor(Tensor):
    """A tensor of cuda:`number`. To C++ it is a CPU tensor, so that autograd and optimizers work."""

    content: Tensor
    number: int

    @staticmethod
    def __new__(cls, inner: Tensor, number: int, requires_grad: bool = False) -> "PretendedTensor":
        inner = inner.detach()
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CPU,
            requires_grad=requires_grad,
        )
        made.content, made.number = inner, number
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendedTensor({tuple(self.shape)}, {self.dtype}, cuda:{self.number})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.number)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def tolist(self) -> Any:
        now().wait("tolist")
        return self.content.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __deepcopy__(self, memo: Any) -> "PretendedTensor":
        return PretendedTensor(self.content.clone(), self.number, self.requires_grad)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        moved = _move(func, args, kwargs or {})
        if moved is not NotImplemented:
            return moved
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _index_of(device: torch.device) -> int:
    return now().current if device.index is None else device.index


def _move(func: Any, args: Any, kwargs: Any) -> Any:
    """`.to`, `.cpu`, `.cuda`, with gradients; NotImplemented for other functions, and where no device is changed."""
    name = getattr(func, "__name__", "")
    if name not in ("to", "cpu", "cuda") or not args or not isinstance(args[0], Tensor):
        return NotImplemented
    tensor: Any = args[0]
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    if name in ("cpu", "cuda"):
        device = torch.device(name)
    for value in (*args[1:], kwargs.get("device"), kwargs.get("dtype"), kwargs.get("other")):
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, (str, torch.device)):
            device = torch.device(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            device = torch.device("cuda", value)
        elif isinstance(value, torch.dtype):
            dtype = value
    if device is None or device.type not in ("cpu", "cuda"):
        return NotImplemented
    dtype, is_pretended = dtype or tensor.dtype, isinstance(tensor, PretendedTensor)
    target = _index_of(device) if device.type == "cuda" else None
    if (tensor.number if is_pretended else None) == target:
        if dtype == tensor.dtype and not kwargs.get("copy", False):
            return tensor
        with torch._C.DisableTorchFunctionSubclass():
            return torch.ops.aten._to_copy.default(tensor, dtype=dtype)
    if not (target is not None and kwargs.get("non_blocking", False)):
        now().wait("copy to the GPU" if target is not None else "copy to the CPU")
    if target is not None:
        now().allocate()
    if tensor.requires_grad and torch.is_grad_enabled():
        return _Moved.apply(tensor, target, dtype)
    inner = tensor.content if is_pretended else tensor.detach()
    copied = inner.to(dtype, copy=True)
    return copied if target is None else PretendedTensor(copied, target)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, target: int | None, dtype: torch.dtype) -> Tensor:
        ctx.source = tensor.number if isinstance(tensor, PretendedTensor) else None
        inner = tensor.content if isinstance(tensor, PretendedTensor) else tensor.detach()
        copied = inner.to(dtype, copy=True)
        return copied if target is None else PretendedTensor(copied, target)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        inner = gradient.content if isinstance(gradient, PretendedTensor) else gradient
        return inner if ctx.source is None else PretendedTensor(inner, ctx.source), None, None


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation on tensors of which at least one is pretended."""
    played, name = now(), func._schema.name.split("::")[1]
    played.operate()
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    index = _common_device(func, name, tensors)
    if name in WAITING or (func is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
        played.wait(name)
    if name in INDEXING:
        indices = [one for one in args[1] if isinstance(one, Tensor)]
        if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
            played.wait(f"{name} by a mask")
        if any(not isinstance(one, PretendedTensor) for one in indices):
            played.wait(f"{name} by places on the CPU")
    if name == "copy_" and isinstance(args[0], PretendedTensor) != isinstance(args[1], PretendedTensor):
        played.wait("copy_ between devices")
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": CPU}
    inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    is_view = bool(getattr(func, "is_view", False)) or name in WITHOUT_KERNEL
    arguments = func._schema.arguments
    written = [argument.name for argument in arguments if argument.alias_info and argument.alias_info.is_write]
    if not is_view and not written:
        played.allocate()
    capture = played.capture if played.capture is not None and played.capture.device == index else None
    if capture is not None and written:
        by_name = dict(zip([argument.name for argument in arguments], inner_args, strict=False)) | dict(inner_kwargs)
        for tensor in tree_leaves([by_name.get(argument) for argument in written]):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                capture.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
    if not is_view and capture is None:
        played.launches[name] += 1
    result = _compute(func, inner_args, inner_kwargs)
    if capture is not None:
        kind = "view" if is_view else "write" if written else "new"
        capture.tape.append((func, inner_args, inner_kwargs, tree_leaves(result), kind))
    wrapped = tree_map(lambda leaf: PretendedTensor(leaf, index) if type(leaf) is Tensor else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    if func is torch.ops.aten.mm.dtype:  # CUDA's alone
        return args[0].to(args[2]) @ args[1].to(args[2])
    return func(*args, **kwargs)


def _common_device(func: Any, name: str, tensors: list[Tensor]) -> int:
    """RuntimeError, as PyTorch's, for tensors of several devices."""
    indices = {tensor.number for tensor in tensors if isinstance(tensor, PretendedTensor)}
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor) and tensor.dim() > 0]
    if name != "copy_" and (len(indices) > 1 or (on_cpu and name not in INDEXING and name != "lift_fresh")):
        devices = [f"cuda:{index}" for index in sorted(indices)] + ["cpu"] * bool(on_cpu)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {' and '.join(devices)}! "
            f"({func} at {place()})"
        )
    return next(tensor.number for tensor in tensors if isinstance(tensor, PretendedTensor))


def _inner(leaf: Any) -> Any:
    return leaf.content if isinstance(leaf, PretendedTensor) else leaf


class _Mode(TorchFunctionMode):
    """Makes tensors on a pretended device where a factory is asked to, and moves them there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        moved = _move(func, args, kwargs)
        if moved is not NotImplemented:
            return moved
        if func is Tensor.backward:
            with self:  # custom functions make tensors in their backward pass
                gradient, inputs = kwargs.get("gradient"), kwargs.get("inputs")
                return torch.autograd.backward(args[0], gradient, kwargs.get("retain_graph"), inputs=inputs)
        device = kwargs.get("device")
        name = getattr(func, "__name__", "")
        if device is None or name == "Generator" or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        if any(isinstance(leaf, PretendedTensor) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **{**kwargs, "device": CPU})
        if name in ("tensor", "as_tensor", "asarray"):
            now().wait(f"torch.{name} of numbers")
        now().allocate()
        now().launches[name] += name != "empty"
        requires_grad = kwargs.pop("requires_grad", False)
        made = func(*args, **{**kwargs, "device": CPU})
        return PretendedTensor(made, _index_of(torch.device(device)), requires_grad)


def move_to(module: nn.Module, index: int) -> nn.Module:
    """All that a loaded base holds, as if it had been loaded there: weights, buffers, 4-bit scales, 8-bit states."""
    done: dict[int, Tensor] = {}
    kept = list[Tensor]()  # so that no id is used twice

    def moved(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or isinstance(tensor, PretendedTensor):
            return tensor
        if id(tensor) not in done:
            kept.append(tensor)
            made: Tensor = PretendedTensor(tensor.detach(), index)
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=False)
                for name, value in vars(tensor).items():
                    setattr(made, name, moved(value))
                state = getattr(made, "quant_state", None)
                for part in (state, getattr(state, "state2", None)):
                    for name in ("absmax", "code", "offset") if part is not None else ():
                        setattr(part, name, moved(getattr(part, name)))
            done[id(tensor)] = made
        return done[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers, vars(part)):
            for name, value in list(tensors.items()):
                if isinstance(value, Tensor):
                    tensors[name] = moved(value)
        state = getattr(part, "state", None)  # of a layer in 8 bits
        for name in ("CB", "SCB") if state is not None else ():
            setattr(state, name, moved(getattr(state, name)))
        if getattr(part, "quant_state", None) is not None and hasattr(part.weight, "quant_state"):
            part.quant_state = part.weight.quant_state
    return module


@contextlib.contextmanager
def pretended(devices: int = 1, bfloat16: bool = True) -> Iterator[Played]:
    """Inside, PyTorch seems to have so many CUDA devices, and `load_base` loads onto them."""
    played = Played.__new__(Played)
    Played.active = played
    played.__init__(devices)  # type: ignore[misc]  # its streams ask for the active one
    cuda, load = torch.cuda, base._load_model

    def load_model(files: Any, spec: Any, config: Any, device: torch.device) -> Any:
        if device.type != "cuda":
            return load(files, spec, config, device)
        dtype = str(model_devices.resolve_dtype(spec.compute_dtype, device)).removeprefix("torch.")
        model = load(files, dataclasses.replace(spec, compute_dtype=dtype), config, CPU)
        for module in model.modules():
            if type(module).__name__ == "Linear8bitLt":
                del module.forward  # the CPU's
        if played.free < sum(parameter.nbytes for parameter in model.parameters()):
            raise torch.OutOfMemoryError("CUDA out of memory. (played)")
        return move_to(model, _index_of(device))

    def set_device(device: Any) -> None:
        played.current = device if isinstance(device, int) else _index_of(torch.device(device))

    def exchange(index: int) -> int:
        before, played.current = played.current, index if index >= 0 else played.current
        return before

    def current_stream(device: Any = None) -> Stream:
        return played.streams[played.current if device is None else torch.device(device).index]

    def set_stream(stream: Stream) -> None:
        played.streams[stream.device.index] = stream
        played.current = stream.device.index

    def properties(_device: Any = None) -> Any:
        clocks = {"clock_rate": 2_520_000, "memory_clock_rate": 10_501_000, "memory_bus_width": 384}  # kHz and bits
        units = dict(zip(("major", "minor"), played.capability, strict=True)) | {"multi_processor_count": 128}
        return SimpleNamespace(name=played.name, total_memory=played.total, **units, **clocks)

    def released(*_: Any) -> None:
        played.pools_released += 1

    replaced: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: played.devices,
        "current_device": lambda: played.current,
        "set_device": set_device,
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "is_bf16_supported": lambda *_, **__: bfloat16,
        "get_device_properties": properties,
        "get_device_name": lambda *_: played.name,
        "get_device_capability": lambda *_: played.capability,
        "get_arch_list": lambda: played.architectures,
        "synchronize": lambda *_: played.wait("synchronize"),
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (played.free, played.total),
        "memory_reserved": lambda *_: 1 << 30,
        "memory_allocated": lambda *_: 1 << 29,
        "max_memory_allocated": lambda *_: 1 << 29,
        "max_memory_reserved": lambda *_: 1 << 30,
        "reset_peak_memory_stats": lambda *_: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_, **__: None,
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "current_stream": current_stream,
        "set_stream": set_stream,
        "Stream": Stream,
        "CUDAGraph": CUDAGraph,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: played.capture is not None,
        "get_sync_debug_mode": lambda: played.sync_mode,
        "set_sync_debug_mode": lambda mode: setattr(
            played, "sync_mode", {"default": 0, "warn": 1, "error": 2}.get(mode, mode)
        ),
    }
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with contextlib.ExitStack() as stack:
            for name, replacement in replaced.items():
                stack.enter_context(patch.object(cuda, name, replacement))
            stack.enter_context(patch.object(cuda.graph, "default_capture_stream", None))
            for name in ("_host_emptyCache", "_cuda_endAllocateToPool"):
                stack.enter_context(patch.object(torch._C, name, lambda *_: None, create=True))
            stack.enter_context(patch.object(torch._C, "_cuda_releasePool", released, create=True))
            stack.enter_context(patch.object(base, "_load_model", load_model))
            stack.enter_context(patch.object(model_devices, "try_4bit", lambda _device: RIGHT))
            stack.enter_context(_Mode())
            yield played
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
        Played.active = None
