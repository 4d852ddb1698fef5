"""`lora-rlhf doctor`: makes all checks in turn, prints each finding as soon as it is there, and sums up."""

import contextlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator

from lora_rlhf.doctor import gpus, kernels, libraries, machine, network, storage
from lora_rlhf.doctor.config import DoctorConfig
from lora_rlhf.doctor.findings import Finding, finding_lines, findings_json, has_no_problem, summary_line
from lora_rlhf.system import kernel_trial
from lora_rlhf.system.cores import idle_cores
from lora_rlhf.system.errors import first_line
from lora_rlhf.system.memory import memory
from lora_rlhf.system.network import endpoint, offline
from lora_rlhf.system.shown_text import print_painted

MAX_WIDTH = 120


def examine(config: DoctorConfig) -> bool:
    """Prints the findings, and returns whether everything that is needed works."""
    has_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns)
    findings = []
    for finding in iterate_findings(config.run):
        findings.append(finding)
        if not config.json:
            print_painted(finding_lines(finding, has_color, width))
    print_painted(findings_json(findings) if config.json else f"\n{summary_line(findings)}")
    return has_no_problem(findings)


def iterate_findings(run: str) -> Iterator[Finding]:
    """All findings in the order in which they are printed; the slow ones last."""
    offline_setting = offline()
    wait_for_answer = network.request_hub(endpoint()) if offline_setting is None else None
    yield machine.system_finding(platform.system(), platform.release(), platform.python_version())
    cores = machine.read_cores()
    yield machine.cores_finding(cores)
    yield machine.memory_finding(memory())
    yield from _storage_findings(run)
    needed_libraries = libraries.find_libraries(libraries.read_tested_versions())
    yield from libraries.library_findings(needed_libraries, libraries.python_command())
    yield from _device_findings(cores.usable)
    yield network.hub_finding(endpoint(), offline_setting, wait_for_answer() if wait_for_answer else None)


def _storage_findings(run: str) -> Iterator[Finding]:
    """The findings on disks and locks."""
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:
        yield Finding("disk: temporary", "problem", str(error), "set TMPDIR to a folder that can be written to")
        return
    for destination in storage.list_destinations(run, temporary, _hub_cache_path()):
        try:
            yield storage.space_finding(destination, storage.read_disk_space(destination.path))
        except OSError as error:
            yield Finding(
                destination.check, "problem", f"{destination.path}: {error.strerror}", destination.other_disk_advice
            )
    with contextlib.suppress(OSError):  # a folder that cannot be written to was reported above
        folder = storage.read_disk_space(run).folder
        yield storage.lock_finding(folder, storage.lock_fault(folder))


def _device_findings(usable_cores: float) -> Iterator[Finding]:
    """The findings on PyTorch, threads, GPUs and 4-bit layers."""
    driver = gpus.read_driver()
    try:
        torch_build = gpus.read_build()
    except (ImportError, OSError) as error:
        advice = "install it again, as said above or from https://pytorch.org/get-started/locally"
        yield Finding("torch", "problem", f"does not start: {first_line(error)}", advice)
        return
    import torch

    try:
        usable_gpus = gpus.list_usable_gpus()
        findings = gpus.gpu_findings(
            usable_gpus, torch_build, driver, gpus.visible_devices(), libraries.python_command()
        )
    except RuntimeError as error:
        advice = "nvidia-smi shows what is at work there; a restart of the machine helps a driver that hangs"
        usable_gpus, findings = [], [Finding("gpu", "problem", f"does not answer: {first_line(error)}", advice)]
    setting = os.environ.get("OMP_NUM_THREADS")
    yield machine.threads_finding(torch.get_num_threads(), setting, usable_cores, bool(usable_gpus), idle_cores())
    yield from findings
    for device in ("cpu", *(f"cuda:{index}" for index in range(len(usable_gpus)))):
        is_needed = device != "cpu" or not usable_gpus
        try:
            yield kernels.kernel_finding(device, kernel_trial.try_4bit(device), is_needed=is_needed)
        except Exception as error:  # an import, a missing library, the driver: anything may be broken here
            yield kernels.kernel_finding(device, None, first_line(error), is_needed)
    if usable_gpus:
        yield kernels.fused_finding(libraries.installed_version("liger-kernel"), libraries.python_command())


def _hub_cache_path() -> str:
    """The folder of the hub library's downloads."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return os.path.expanduser("~/.cache/huggingface/hub")
    return HF_HUB_CACHE
