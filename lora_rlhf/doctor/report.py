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
from lora_rlhf.doctor.findings import Finding, as_json, line, summary, works
from lora_rlhf.system.memory import memory
from lora_rlhf.system.network import endpoint, offline

MAX_WIDTH = 120


def examine(config: DoctorConfig) -> bool:
    """Prints the findings, and returns whether everything that is needed works."""
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns)
    findings = []
    for finding in check(config.run):
        findings.append(finding)
        if not config.json:
            _print(line(finding, color, width))
    _print(as_json(findings) if config.json else f"\n{summary(findings)}")
    return works(findings)


def check(run: str) -> Iterator[Finding]:
    """All findings in the order in which they are printed; the slow ones last."""
    setting = offline()
    answer = network.ask(endpoint()) if setting is None else None
    yield machine.judge_system(platform.system(), platform.release(), platform.python_version())
    cores = machine.cores()
    yield machine.judge_cores(cores)
    yield machine.judge_memory(memory())
    yield from _storage(run)
    needed = libraries.libraries(libraries.tested_versions())
    yield from libraries.judge_libraries(needed, libraries.this_python())
    yield from _devices(cores.usable)
    yield network.judge_hub(endpoint(), setting, answer() if answer else None)


def _storage(run: str) -> Iterator[Finding]:
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:
        yield Finding("disk: temporary", "problem", str(error), "set TMPDIR to a folder that can be written to")
        return
    for destination in storage.destinations(run, temporary, _hub_cache()):
        try:
            yield storage.judge_space(destination, storage.space(destination.path))
        except OSError as error:
            yield Finding(destination.check, "problem", f"{destination.path}: {error.strerror}", destination.elsewhere)
    with contextlib.suppress(OSError):  # a folder that cannot be written to was reported above
        folder = storage.space(run).folder
        yield storage.judge_locks(folder, storage.lock_fault(folder))


def _devices(usable_cores: float) -> Iterator[Finding]:
    smi = gpus.driver()
    try:
        build = gpus.build()
    except (ImportError, OSError) as error:
        advice = "install it again, as said above or from https://pytorch.org/get-started/locally"
        yield Finding("torch", "problem", f"does not start: {_first_line(error)}", advice)
        return
    import torch

    try:
        usable = gpus.usable()
        findings = gpus.judge_gpus(usable, build, smi, gpus.visible_devices(), libraries.this_python())
    except RuntimeError as error:
        advice = "nvidia-smi shows what is at work there; a restart of the machine helps a driver that hangs"
        usable, findings = [], [Finding("gpu", "problem", f"does not answer: {_first_line(error)}", advice)]
    setting = os.environ.get("OMP_NUM_THREADS")
    yield machine.judge_threads(torch.get_num_threads(), setting, usable_cores, bool(usable))
    yield from findings
    for device in ("cpu", *(f"cuda:{index}" for index in range(len(usable)))):
        needed = device != "cpu" or not usable
        try:
            yield kernels.judge_4bit(device, kernels.try_4bit(device), needed=needed)
        except Exception as error:  # an import, a missing library, the driver: anything may be broken here
            yield kernels.judge_4bit(device, None, _first_line(error), needed)


def _hub_cache() -> str:
    """The folder of the hub library's downloads."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return os.path.expanduser("~/.cache/huggingface/hub")
    return HF_HUB_CACHE


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _print(text: str) -> None:
    # An output, or a path, that is not UTF-8 is printed with escapes.
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
