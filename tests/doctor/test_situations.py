"""`lora-rlhf doctor` judges each situation as it should be: one table for each module."""

import math
from dataclasses import replace
from typing import Any

import pytest

from lora_rlhf.doctor import gpus, kernels, libraries, machine, network, storage
from lora_rlhf.doctor.findings import GIB, Finding
from lora_rlhf.doctor.gpus import Build, Driver, Gpu
from lora_rlhf.doctor.libraries import Library
from lora_rlhf.doctor.machine import Cores
from lora_rlhf.doctor.storage import Destination, DiskSpace
from lora_rlhf.system.kernel_trial import Trial, find_missing_code
from lora_rlhf.system.memory import Memory

# a finding, its status, a part of what it found, and of its advice and command ("" for neither)
Situation = tuple[Finding, str, str, str]


def memory(gib: float) -> Memory:
    return Memory(16 * GIB, int(gib * GIB), limited=True)


MACHINE: list[Situation] = [
    (machine.system_finding("Linux", "6.1", "3.12.1"), "ok", "Linux 6.1, Python 3.12.1", ""),
    (machine.system_finding("Darwin", "24", "3.12.1"), "note", "Darwin 24", "tested on Linux alone"),
    (machine.cores_finding(Cores(8, 0.5, "Fast")), "ok", "0.5 of 8 cores, Fast", ""),
    (machine.cores_finding(Cores(8, 8, "Fast")), "ok", "8 cores, Fast", ""),
    (machine.memory_finding(None), "note", "does not say how much", ""),
    (machine.memory_finding(memory(1.4)), "problem", "1.4 GiB of 16.0 GiB available (the limit of the", "raise the"),
    (machine.memory_finding(memory(2.9)), "note", "2.9 GiB of 16.0 GiB", "enough for the tiny world"),
    (machine.memory_finding(memory(3.1)), "ok", "3.1 GiB of 16.0 GiB", ""),
    (machine.threads_finding(8, None, 8, False), "ok", "8 threads on the CPU; OMP_NUM_THREADS is not set", ""),
    (machine.threads_finding(8, None, 2.5, False), "note", "8 threads", "export OMP_NUM_THREADS=2\n"),
    (machine.threads_finding(8, "8", 0.5, True), "note", "OMP_NUM_THREADS=8", "export OMP_NUM_THREADS=1\n"),
    (machine.threads_finding(1, "1", 8, False), "note", "1 thread on", "7 of 8 cores idle: unset OMP_NUM_THREADS\n"),
    (machine.threads_finding(1, "1", 8, True), "ok", "1 thread on", ""),
    (machine.threads_finding(4, None, 8, False), "ok", "4 threads", ""),
    (machine.threads_finding(3, "3", 8, False, 3), "note", "compute on 5 of 8 cores", "no more than 3 threads"),
    (machine.threads_finding(8, None, 8, False, 8), "ok", "8 threads", ""),
]

RUNS = Destination("disk: runs", "runs", "go elsewhere", 10, 3)
CACHE = Destination("disk: hub cache", "cache", "go elsewhere", 10, is_needed=False)


def disk(gib: float, filesystem: str = "ext4", writable: bool = True) -> DiskSpace:
    return DiskSpace("/x", int(gib * GIB), 100 * GIB, filesystem, writable)


STORAGE: list[Situation] = [
    (storage.space_finding(RUNS, disk(11)), "ok", "11.0 GiB free in runs (ext4)", ""),
    (storage.space_finding(RUNS, disk(9.9)), "note", "9.9 GiB free", "less than 10 GiB: free some, or go elsewhere\n"),
    (storage.space_finding(RUNS, disk(2.9)), "problem", "2.9 GiB free in runs", "free some, or go elsewhere\n"),
    (storage.space_finding(CACHE, disk(2.9)), "note", "2.9 GiB free in cache", "less than 10 GiB: free some, or go"),
    (
        storage.space_finding(RUNS, disk(11, "tmpfs")),
        "note",
        "(tmpfs)",
        "takes memory: go elsewhere if that is short\n",
    ),
    (storage.space_finding(RUNS, disk(11, writable=False)), "problem", "/x cannot be written to", "go elsewhere\n"),
    (storage.space_finding(CACHE, disk(11, writable=False)), "note", "/x cannot be written to", "go elsewhere\n"),
    (storage.lock_finding("runs", None), "ok", "can be locked", ""),
    (storage.lock_finding("runs", "No locks available"), "note", "(No locks available)", "start a second process"),
]

TORCH = Library("torch", "2.13.0+cu130", "", "2.13.0")
TESTED = [TORCH, *(Library(name, "1.0", "", "1.0") for name in ("transformers", "peft", "bitsandbytes", "trl"))]
UNTESTED = [replace(library, tested=None) for library in TESTED]


def judged(*needed: Library) -> Finding:
    (finding,) = libraries.library_findings(needed, "py")
    return finding


def judged_with_torch(*library: Any) -> Finding:
    return judged(TORCH, Library(*library))


TRL_MISSING = "trl is not installed\n"
LIBRARIES: list[Situation] = [
    (judged(), "note", "not installed here", ""),
    (judged_with_torch("trl", None, ">=1,<2"), "problem", TRL_MISSING, "py -m pip install 'trl>=1,<2'\n"),
    (judged_with_torch("trl", None, "", "1.16.0"), "problem", TRL_MISSING, "py -m pip install trl==1.16.0\n"),
    (
        judged_with_torch("a", "20", ">=21", "22"),
        "problem",
        "a 20 is installed, needed is >=21\n",
        "pip install a==22\n",
    ),
    (judged_with_torch("a", "23", ">=21", "22"), "note", "a 23 is installed, tested is 22\n", "pip install a==22\n"),
    (judged_with_torch("a", "20", "", "22", False), "note", "a 20 (tested: 22)\n", "py -m pip install a==22\n"),
    # how a library was built (+cu130) is no difference, and pip has no tested version
    (
        judged(*TESTED, Library("pip", "23", is_direct=False)),
        "ok",
        "5 libraries are as tested: torch 2.13.0+cu130,",
        "",
    ),
    (judged(*UNTESTED), "ok", "5 libraries are new enough: torch", ""),
]

CARD = Gpu("RTX 3060", 12 * GIB, 11 * GIB, (8, 6), True)
SHARED, OLD = replace(CARD, free=8 * GIB), replace(CARD, has_bf16=False, capability=(7, 5))
VOLTA = Gpu("V100", 16 * GIB, 15 * GIB, (7, 0), False, find_missing_code("V100", (7, 0), ["sm_75"], "13.0") or "")
CUDA, CPU_ONLY = Build("2.13.0+cu130", "CUDA 13.0"), Build("2.13.0+cpu", None)
SMI = Driver("535.104", ("RTX 3060",))
CARD_TEXT = "RTX 3060, 11.0 GiB of 12.0 GiB free, compute capability 8.6, bfloat16; driver 535.104, CUDA 13.0"
NAMES = "RTX 3060 (driver 535.104): "
REINSTALL = "py -m pip uninstall -y torch && py -m pip install torch==2.13.0\n"


def gpu(usable: list[Gpu], build: Build, smi: Driver | None, visible: str | None) -> Finding:
    (finding,) = gpus.gpu_findings(usable, build, smi, visible, "py")
    return finding


GPUS: list[Situation] = [
    (gpu([CARD], CUDA, SMI, None), "ok", CARD_TEXT, ""),
    (gpu([SHARED], CUDA, SMI, None), "note", "8.0 GiB of 12.0", "4.0 GiB are taken by the display"),
    (gpu([OLD], CUDA, None, None), "note", "7.5, no bfloat16; CUDA 13.0", "float16"),
    (gpu([VOLTA], CUDA, None, None), "problem", "capability 7.0", "no code (sm_75"),
    (gpu([], CUDA, None, None), "note", "none found", "everything runs on the CPU"),
    (gpu([], CPU_ONLY, None, None), "note", "none found", "everything runs on the CPU"),
    (gpu([], CPU_ONLY, SMI, None), "problem", NAMES, REINSTALL),
    (gpu([], CPU_ONLY, SMI, "0"), "problem", NAMES, REINSTALL),
    *(
        (gpu([], CUDA, SMI, visible), "problem", NAMES, "update the NVIDIA driver")
        for visible in (None, "0", "GPU-12ab")
    ),
    *(
        (gpu([], CUDA, SMI, visible), "note", NAMES, "unset CUDA_VISIBLE_DEVICES")
        for visible in ("", "-1", "1", "none,0")
    ),
]

TRIAL = Trial("float32", 0.155, 1e-6, 1e-6, 0.0, 3.0, kept=True, own_library=True, repacks=False)
EXACT = replace(TRIAL, forward=0.0, backward=0.0)
INACCURATE = replace(TRIAL, forward=4e-3)  # fine in 16 bits
MISSING = (None, "no kernel image")
MEASURES = ("forward", "backward", "single", "rounding")
WRONG = [Trial(**{**vars(TRIAL), measure: error}) for measure in MEASURES for error in (0.3, math.nan)]

KERNELS: list[Situation] = [
    (kernels.kernel_finding("cpu", TRIAL), "ok", "NF4 layer in float32: forward and backward agree", ""),
    (
        kernels.kernel_finding("cpu", EXACT),
        "ok",
        "are equal to those of float32; 3.0 ms for 32 tokens through 1024 x 1024\n",
        "",
    ),
    (kernels.kernel_finding("cpu", replace(TRIAL, repacks=True)), "ok", "which is switched off here", ""),
    (kernels.kernel_finding("cpu", replace(TRIAL, own_library=False)), "note", "3.0 ms for 32 tokens", "slower code"),
    (kernels.kernel_finding("cpu", replace(TRIAL, kept=False)), "problem", "weights changed", "--quantization none"),
    (kernels.kernel_finding("cuda:0", INACCURATE), "problem", "gives wrong results", "--quantization none"),
    (kernels.kernel_finding("cuda:0", replace(INACCURATE, dtype="bfloat16")), "ok", "NF4 layer in bfloat16", ""),
    (kernels.kernel_finding("cuda:0", *MISSING), "problem", "does not work: no kernel image", "-m bitsandbytes"),
    (kernels.kernel_finding("cpu", *MISSING, False), "note", "does not work: no kernel image", "-m bitsandbytes"),
    *((kernels.kernel_finding("cuda:0", trial), "problem", "gives wrong results", "install the") for trial in WRONG),
    *(
        (kernels.kernel_finding("cpu", trial, "", False), "note", "gives wrong results", "install the")
        for trial in WRONG
    ),
]

NETWORK: list[Situation] = [
    (network.hub_finding("https://h", None, None), "ok", "https://h answers", ""),
    (network.hub_finding("https://h", None, "no route"), "note", "no answer from https://h (no route)", "its proxy"),
    (network.hub_finding("https://h", "HF_HUB_OFFLINE", None), "note", "not asked", "unset HF_HUB_OFFLINE to download"),
]


@pytest.mark.parametrize(
    ("finding", "status", "found", "remedy"), [*MACHINE, *STORAGE, *LIBRARIES, *GPUS, *KERNELS, *NETWORK]
)
def test_situation(finding: Finding, status: str, found: str, remedy: str) -> None:
    assert finding.status == status
    assert found in f"{finding.found}\n"
    advice = f"{finding.advice}{finding.command}\n"
    assert remedy in advice and (bool(remedy) or advice == "\n")


def test_findings_of_several_libraries_and_gpus_have_lines_of_their_own() -> None:
    old = [Library("a", "1", ">=2"), Library("b", "1", "", "2"), Library("c", "1", "", "2", is_direct=False)]
    assert [finding.status for finding in libraries.library_findings(old, "py")] == ["problem", "note", "note"]
    findings = gpus.gpu_findings([CARD, CARD], CUDA, SMI, None, "py")
    assert [finding.check for finding in findings] == ["gpu 0", "gpu 1", "gpus"]
    assert findings[-1].status == "note" and "accelerate launch -m lora_rlhf.cli" in findings[-1].command


def test_the_limits_of_each_destination() -> None:
    limits = {
        each.check: (each.note_gib, each.least_gib) for each in storage.list_destinations("runs", "/tmp", "/cache")
    }
    assert limits == {"disk: runs": (10, 3), "disk: temporary": (3, 0), "disk: hub cache": (10, 0)}
