"""`lora-rlhf doctor`: looks at everything in turn, prints each finding as soon as it is there, and sums up."""

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
from lora_rlhf.system import memory as host
from lora_rlhf.system.network import endpoint, offline

WIDEST = 120


def examine(config: DoctorConfig) -> bool:
    """Prints the findings; whether everything that is needed works."""
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    findings = []
    for finding in look(config.run):
        findings.append(finding)
        if not config.json:
            _print(line(finding, color, width))
    _print(as_json(findings) if config.json else f"\n{summary(findings)}")
    return works(findings)


def look(run: str) -> Iterator[Finding]:
    """Every finding, in the order in which they are shown; the slow ones last."""
    setting = offline()
    answer = network.ask(endpoint()) if setting is None else None
    yield machine.judge_system(platform.system(), platform.release(), platform.python_version())
    cores = machine.cores()
    yield machine.judge_cores(cores)
    yield machine.judge_memory(host.memory())
    yield from _storage(run)
    found = libraries.libraries(libraries.tested_versions())
    yield from libraries.judge_libraries(found, libraries.this_python())
    yield from _devices(cores.usable)
    yield network.judge_hub(endpoint(), setting, answer() if answer else None)


def _storage(run: str) -> Iterator[Finding]:
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:
        yield Finding("disk: temporary", "problem", str(error), "set TMPDIR to a folder that can be written to")
        return
    for place in storage.places(run, temporary, _hub_cache()):
        try:
            yield storage.judge_space(place, storage.space(place.path))
        except OSError as error:
            yield Finding(place.check, "problem", f"{place.path}: {error.strerror}", place.elsewhere)
    with contextlib.suppress(OSError):  # that nothing can be written there was said above
        folder = storage.space(run).folder
        yield storage.judge_locks(folder, storage.lock_fault(folder))


def _devices(usable_cores: float) -> Iterator[Finding]:
    smi = gpus.driver()
    try:
        built = gpus.build()
    except (ImportError, OSError) as error:
        advice = "install it again, as told above or from https://pytorch.org/get-started/locally"
        yield Finding("torch", "problem", f"does not start: {_first_line(error)}", advice)
        return
    import torch

    try:
        found = gpus.usable()
        judged = gpus.judge_gpus(found, built, smi, gpus.visible_devices(), libraries.this_python())
    except RuntimeError as error:
        advice = "nvidia-smi shows what is at work there; a restart of the machine helps a driver that hangs"
        found, judged = [], [Finding("gpu", "problem", f"does not answer: {_first_line(error)}", advice)]
    setting = os.environ.get("OMP_NUM_THREADS")
    yield machine.judge_threads(torch.get_num_threads(), setting, usable_cores, bool(found))
    yield from judged
    for device in ("cpu", *(f"cuda:{index}" for index in range(len(found)))):
        needed = device != "cpu" or not found
        try:
            yield kernels.judge_4bit(device, kernels.try_4bit(device), needed=needed)
        except Exception as error:  # an import, a missing library, the driver: anything may be broken here
            yield kernels.judge_4bit(device, None, _first_line(error), needed)


def _hub_cache() -> str:
    """Where the hub's library keeps what it downloads."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return os.path.expanduser("~/.cache/huggingface/hub")
    return HF_HUB_CACHE


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _print(text: str) -> None:
    # an output that is not UTF-8, or a path that is not, shows what it can
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
