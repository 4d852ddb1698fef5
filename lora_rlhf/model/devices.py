"""The device of a base: which one a name means, and whether it can be used at all. All is asked before a base loads."""

import functools
import logging
import os
import re
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import _disable_current_modes

from lora_rlhf.system.errors import UserError, first_line
from lora_rlhf.system.kernel_trial import find_missing_code, try_4bit

log = logging.getLogger("lora_rlhf")

GIB = 2**30
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")
# Where one of these exists, the machine has a GPU and its driver: NVIDIA's, the same on WSL2, AMD's.
GPU_DEVICE_FILES = ("/dev/nvidia0", "/usr/lib/wsl/lib/nvidia-smi", "/dev/kfd")
HIDING_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
OTHERS_GIB = 1.5  # in use before a base loads that is worth a warning: CUDA's context takes up to 0.6 of it


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one, and a GPU always has its number.

    UserError for a name that is no device, for other GPUs than CUDA's, and for one that PyTorch does not see.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise UserError(f"device is {device!r}, expected auto, cpu, cuda or cuda:N (other GPUs lack operations)")
    resolved_device = torch.device(device)
    if resolved_device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device is {device!r}, but PyTorch sees no CUDA GPU here; use --device cpu")
    if resolved_device.type == "cuda" and (resolved_device.index or 0) >= torch.cuda.device_count():
        names = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise UserError(f"device is {device!r}, but PyTorch sees only {names} here")
    if resolved_device.type == "cuda" and resolved_device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return resolved_device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype in which a base computes on that device, by one of COMPUTE_DTYPES."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def begin_on(device: torch.device, is_4_bit: bool) -> None:
    """Makes a GPU the current device: streams, memory figures and random numbers are those of the current one.

    UserError for one that does not answer, that PyTorch has no code for, or whose 4-bit layers fail or are wrong; a
    warning for one whose memory others hold.
    """
    try:
        torch.cuda.set_device(device)
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        raise UserError(
            f"{device} does not answer ({first_line(error)}): nvidia-smi shows what is at work there, and --device cpu "
            "does without it"
        ) from error
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if fault := find_missing_code(name, capability, torch.cuda.get_arch_list(), torch.version.cuda):
        raise UserError(f"{device}: {fault}, or take --device cpu")
    if (held := total - free - torch.cuda.memory_reserved(device)) > OTHERS_GIB * GIB:
        log.warning(
            "other programs hold %.1f of the %.1f GiB of %s: nvidia-smi shows which", held / GIB, total / GIB, device
        )
    if is_4_bit:
        _require_working_kernels(str(device))


def no_room_text(device: torch.device) -> str:
    """Why a base does not fit, and what to do."""
    free, total = torch.cuda.mem_get_info(device)
    return (
        f"{free / GIB:.1f} of {total / GIB:.1f} GiB of {device} are free: nvidia-smi shows which programs hold the "
        "rest, and `lora-rlhf plan --model NAME` what a run needs"
    )


@functools.cache
def _require_working_kernels(device: str) -> None:
    """UserError where 4-bit layers of this GPU fail or give wrong results, as some wheels do for some cards."""
    way_out = "`lora-rlhf doctor` says more, and --quantization none does without them"
    try:
        trial = try_4bit(device)
    except Exception as error:
        raise UserError(f"4-bit layers do not work on {device} ({first_line(error)}); {way_out}") from error
    if not trial.is_correct:
        error_text = f"an error of {trial.largest_error:.2g} of the largest value in {trial.dtype}"
        raise UserError(f"4-bit layers give wrong results on {device} ({error_text}); {way_out}")


def unused_gpu() -> str:
    """What says that the machine has a GPU that PyTorch does not see, and that nobody hid; empty if nothing does."""
    if any(os.environ.get(name) in ("", "-1") for name in HIDING_VARIABLES):
        return ""
    device_file = next((path for path in GPU_DEVICE_FILES if Path(path).exists()), "")
    return f"there is a GPU ({device_file}) that PyTorch does not see" if device_file else ""


class PlannedMode(TorchFunctionMode):
    """Inside, new tensors have no storage. They stand for tensors on a GPU (on_gpu) or on a CPU.

    PyTorch leaves it for a backward pass, which makes tensors like others.
    """

    _entered: "PlannedMode | None" = None

    def __init__(self, on_gpu: bool) -> None:
        super().__init__()
        self.on_gpu = on_gpu
        self._outer: list[PlannedMode | None] = []

    def __enter__(self) -> Self:
        self._outer.append(PlannedMode._entered)
        PlannedMode._entered = self
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        PlannedMode._entered = self._outer.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function of PyTorch, which calls this for each one inside the mode."""
        kwargs = kwargs or {}
        if function in _device_constructors() and kwargs.get("device") is None:
            kwargs = kwargs | {"device": "meta"}
        if function is functional.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        return function(*args, **kwargs)

    @classmethod
    def is_on_gpu(cls) -> bool:
        """Whether the mode that is entered stands for a GPU."""
        return cls._entered is not None and cls._entered.on_gpu


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Tensor:
    """Attention by the kernel that a CPU takes, which PyTorch does not choose by tensors without storage."""
    tensors, kind = (query, key, value, attn_mask), (dropout_p, is_causal)
    with _disable_current_modes():
        like = [
            one if one is None else torch.empty_strided(one.shape, one.stride(), dtype=one.dtype) for one in tensors
        ]
        chosen = torch._fused_sdp_choice(*like, *kind, **settings)  # type: ignore[call-arg, arg-type]
    if chosen != SDPBackend.FLASH_ATTENTION.value:
        return functional.scaled_dot_product_attention(*tensors, *kind, **settings)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, torch.zeros((), dtype=query.dtype, device="meta"), float("-inf"))
    attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, *kind, attn_mask=attn_mask, scale=settings.get("scale")
    )[0]
    return attended


def computes_as_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is on a GPU, or stands for one there in a plan."""
    return PlannedMode.is_on_gpu() if tensor.is_meta else tensor.device.type == "cuda"


def is_device_failure(error: RuntimeError) -> bool:
    """Whether a GPU or its driver failed in the middle of work: no later operation on it can succeed.

    An assertion of a kernel is a mistake of the code, and memory that runs out is handled elsewhere.
    """
    if isinstance(error, torch.OutOfMemoryError) or "device-side assert" in str(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA driver error" in str(error)
