"""How much memory is in use: by the process, on the GPU, by adapters; and how many quantized bases are alive."""

import gc
import resource
import sys
from pathlib import Path

import torch
from bitsandbytes.nn import Int8Params, Params4bit

from lora_rlhf.model.shared import SharedModel

GIB = 2**30


def peak_rss_gib() -> float:
    """The largest resident size of this process so far, in GiB."""
    status = Path("/proc/self/status")
    # rather than ru_maxrss, which on Linux begins with the parent's peak
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB  # bytes there, KiB elsewhere


def peak_gpu_gib() -> float:
    """The most memory that PyTorch has allocated on the current GPU so far, in GiB; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0


def free_memory() -> None:
    """Frees what nothing refers to any more. A model is in reference cycles, so that only a collection frees it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def count_quantized_storages() -> int:
    """The number of distinct quantized weights in this process. One base has one per quantized layer."""
    weights = (tensor for tensor in gc.get_objects() if isinstance(tensor, Params4bit | Int8Params))
    return len({weight.untyped_storage().data_ptr() for weight in weights})


def adapter_bytes(model: SharedModel, role: str) -> int:
    """Bytes of a role's parameters: its adapter, and its head if it has one."""
    return sum(parameter.numel() * parameter.element_size() for _, parameter in model.named_parameters_of(role))
