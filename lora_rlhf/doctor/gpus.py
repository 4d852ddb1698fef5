"""The GPUs: those that PyTorch can use, those that the driver sees, and why PyTorch cannot use all of them."""

import os
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from lora_rlhf.doctor.findings import GIB, Finding, gib

SMI_SECONDS = 5.0
# Memory in use that is worth a note; the CUDA context of this very process takes up to about 0.6 GiB of it.
USED_GIB = 1.5
LAUNCH = "accelerate launch -m lora_rlhf.cli ppo ..."


@dataclass(frozen=True)
class Gpu:
    """A GPU that PyTorch can use; sizes in bytes."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]
    bf16: bool


@dataclass(frozen=True)
class Build:
    """PyTorch as installed: `toolkit` is what its GPU code was built for, such as CUDA 13.0; None without GPU code."""

    version: str
    toolkit: str | None


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says: the driver's version and the names of all GPUs of the machine."""

    version: str
    names: tuple[str, ...]


def driver() -> Driver | None:
    """What nvidia-smi says; None where it is not installed, or fails."""
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        process = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [row.partition(", ") for row in process.stdout.splitlines() if ", " in row]
    return Driver(rows[0][0], tuple(name for _, _, name in rows)) if process.returncode == 0 and rows else None


def build() -> Build:
    """PyTorch as installed. ImportError or OSError where it cannot be loaded."""
    import torch

    if torch.version.hip:
        return Build(torch.__version__, f"ROCm {torch.version.hip}")
    return Build(torch.__version__, f"CUDA {torch.version.cuda}" if torch.version.cuda else None)


def usable() -> list[Gpu]:
    """The GPUs that PyTorch can use, in its order. RuntimeError where one of them does not answer."""
    import torch

    gpus = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `judge_gpus` says that the driver is too old
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            gpus.append(Gpu(torch.cuda.get_device_name(), total, free, torch.cuda.get_device_capability(), bf16))
    return gpus


def judge_gpus(
    usable_gpus: Sequence[Gpu], build: Build, smi: Driver | None, visible: str | None, python: str
) -> list[Finding]:
    """Each GPU, or why there is none. `visible` is CUDA_VISIBLE_DEVICES, `python` how to start this Python."""
    version = f"driver {smi.version}, " if smi else ""
    findings = [_judge_gpu(f"gpu {index}", gpu, f"{version}{build.toolkit}") for index, gpu in enumerate(usable_gpus)]
    if len(usable_gpus) > 1:
        advice = "only the first is used, unless training is started so that each has a process:"
        count = len(usable_gpus)
        findings.append(Finding("gpus", "note", f"{count} GPUs", advice, {"count": count}, LAUNCH))
    if usable_gpus:
        return findings
    if smi is None:
        advice = "everything runs on the CPU, fast enough for the tiny world and models of some million parameters"
        return [Finding("gpu", "note", "none found", advice)]
    names = f"{', '.join(smi.names)} (driver {smi.version})"
    values = {"names": smi.names, "driver": smi.version, "torch": build.version, "toolkit": build.toolkit}
    if visible is not None and _hides(visible, len(smi.names)):
        advice = "unset CUDA_VISIBLE_DEVICES to use it"
        return [Finding("gpu", "note", f"{names}: hidden by CUDA_VISIBLE_DEVICES={visible!r}", advice, values)]
    if build.toolkit is None:
        public = build.version.partition("+")[0]
        command = f"{python} -m pip uninstall -y torch && {python} -m pip install torch=={public}"
        return [Finding("gpu", "problem", f"{names}: PyTorch {build.version} is built for CPUs", "", values, command)]
    advice = "update the NVIDIA driver, or install PyTorch for an older CUDA: https://pytorch.org/get-started/locally"
    return [Finding("gpu", "problem", f"{names}: PyTorch for {build.toolkit} cannot use it", advice, values)]


def visible_devices() -> str | None:
    """The setting that hides GPUs from programs; None if it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _hides(visible: str, count: int) -> bool:
    """Whether the setting leaves no GPU: it counts up to the first entry that names none."""
    first = visible.split(",")[0].strip()
    return not (first.startswith(("GPU-", "MIG-")) or (first.isdigit() and int(first) < count))


def _judge_gpu(check: str, gpu: Gpu, versions: str) -> Finding:
    values = {
        "name": gpu.name,
        "total_gib": gib(gpu.total),
        "free_gib": gib(gpu.free),
        "capability": list(gpu.capability),
        "bf16": gpu.bf16,
    }
    bfloat16 = "bfloat16" if gpu.bf16 else "no bfloat16"
    major, minor = gpu.capability
    text = (
        f"{gpu.name}, {gib(gpu.free)} GiB of {gib(gpu.total)} GiB free, compute capability {major}.{minor}, "
        f"{bfloat16}; {versions}"
    )
    advice = []
    if gpu.total - gpu.free > USED_GIB * GIB:
        used = gib(gpu.total - gpu.free)
        advice.append(f"{used} GiB are taken by the display or other programs: nvidia-smi shows by which")
    if not gpu.bf16:
        advice.append("it computes in float16, which overflows sooner: --compute-dtype float32 if a loss becomes NaN")
    return Finding(check, "note" if advice else "ok", text, "; ".join(advice), values)
