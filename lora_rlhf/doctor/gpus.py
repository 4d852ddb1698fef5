"""The GPUs: those that PyTorch can use, those that the driver sees, and why PyTorch cannot use all of them."""

import os
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from lora_rlhf.doctor.findings import GIB, Finding, to_gib
from lora_rlhf.system.kernel_trial import find_missing_code

SMI_SECONDS = 5.0
# Memory in use that is worth a note; the CUDA context of this very process takes up to about 0.6 GiB of it.
USED_GIB = 1.5
LAUNCH = "accelerate launch -m lora_rlhf.cli ppo ..."


@dataclass(frozen=True)
class Gpu:
    """A GPU that PyTorch sees; sizes in bytes. missing_code: why this PyTorch cannot compute on it; empty if it can."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]
    has_bf16: bool
    missing_code: str = ""


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


def read_driver() -> Driver | None:
    """The driver and GPUs as nvidia-smi prints them; None if it is not installed, or fails."""
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        process = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [row.partition(", ") for row in process.stdout.splitlines() if ", " in row]
    return Driver(rows[0][0], tuple(name for _, _, name in rows)) if process.returncode == 0 and rows else None


def read_build() -> Build:
    """PyTorch as installed. ImportError or OSError if it cannot be loaded."""
    import torch

    if torch.version.hip:
        return Build(torch.__version__, f"ROCm {torch.version.hip}")
    return Build(torch.__version__, f"CUDA {torch.version.cuda}" if torch.version.cuda else None)


def list_usable_gpus() -> list[Gpu]:
    """The GPUs that PyTorch can use, in its order. RuntimeError if one of them does not answer."""
    import torch

    gpus = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `gpu_findings` says that the driver is too old
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
            missing = find_missing_code(name, capability, torch.cuda.get_arch_list(), torch.version.cuda)
            gpus.append(Gpu(name, total, free, capability, bf16, missing or ""))
    return gpus


def gpu_findings(
    usable_gpus: Sequence[Gpu], torch_build: Build, driver: Driver | None, visible_setting: str | None, python: str
) -> list[Finding]:
    """A finding for each GPU, or why there is none.

    visible_setting: CUDA_VISIBLE_DEVICES. python: the command that starts this Python.
    """
    version = f"driver {driver.version}, " if driver else ""
    findings = [
        _finding_of_gpu(f"gpu {index}", gpu, f"{version}{torch_build.toolkit}") for index, gpu in enumerate(usable_gpus)
    ]
    if len(usable_gpus) > 1:
        advice = "only the first is used, unless training is started so that each has a process:"
        count = len(usable_gpus)
        findings.append(Finding("gpus", "note", f"{count} GPUs", advice, {"count": count}, LAUNCH))
    if usable_gpus:
        return findings
    if driver is None:
        advice = "everything runs on the CPU, fast enough for the tiny world and models of some million parameters"
        return [Finding("gpu", "note", "none found", advice)]
    names = f"{', '.join(driver.names)} (driver {driver.version})"
    values = {
        "names": driver.names,
        "driver": driver.version,
        "torch": torch_build.version,
        "toolkit": torch_build.toolkit,
    }
    if visible_setting is not None and _hides_all_gpus(visible_setting, len(driver.names)):
        advice = "unset CUDA_VISIBLE_DEVICES to use it"
        return [Finding("gpu", "note", f"{names}: hidden by CUDA_VISIBLE_DEVICES={visible_setting!r}", advice, values)]
    if torch_build.toolkit is None:
        public_version = torch_build.version.partition("+")[0]
        command = f"{python} -m pip uninstall -y torch && {python} -m pip install torch=={public_version}"
        return [
            Finding("gpu", "problem", f"{names}: PyTorch {torch_build.version} is built for CPUs", "", values, command)
        ]
    advice = "update the NVIDIA driver, or install PyTorch for an older CUDA: https://pytorch.org/get-started/locally"
    return [Finding("gpu", "problem", f"{names}: PyTorch for {torch_build.toolkit} cannot use it", advice, values)]


def visible_devices() -> str | None:
    """The setting that hides GPUs from programs; None if it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _hides_all_gpus(visible_setting: str, count: int) -> bool:
    """Whether the setting leaves no GPU: only entries before the first invalid one count."""
    first_entry = visible_setting.split(",")[0].strip()
    return not (first_entry.startswith(("GPU-", "MIG-")) or (first_entry.isdigit() and int(first_entry) < count))


def _finding_of_gpu(check: str, gpu: Gpu, versions: str) -> Finding:
    """The finding on one GPU: its memory and capability, with advice if other programs use much of its memory."""
    values = {
        "name": gpu.name,
        "total_gib": to_gib(gpu.total),
        "free_gib": to_gib(gpu.free),
        "capability": list(gpu.capability),
        "bf16": gpu.has_bf16,
    }
    bfloat16 = "bfloat16" if gpu.has_bf16 else "no bfloat16"
    major, minor = gpu.capability
    text = (
        f"{gpu.name}, {to_gib(gpu.free)} GiB of {to_gib(gpu.total)} GiB free, compute capability {major}.{minor}, "
        f"{bfloat16}; {versions}"
    )
    if gpu.missing_code:
        return Finding(check, "problem", text, gpu.missing_code, values)
    advice = []
    if gpu.total - gpu.free > USED_GIB * GIB:
        used_gib = to_gib(gpu.total - gpu.free)
        advice.append(f"{used_gib} GiB are taken by the display or other programs: nvidia-smi shows by which")
    if not gpu.has_bf16:
        advice.append("it computes in float16, which overflows sooner: --compute-dtype float32 if a loss becomes NaN")
    return Finding(check, "note" if advice else "ok", text, "; ".join(advice), values)
