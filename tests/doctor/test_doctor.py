"""`lora-rlhf doctor`: what is measured is true, and each situation is judged as it should be."""

import errno
import fcntl
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from lora_rlhf.cli.main import main
from lora_rlhf.doctor import gpus, kernels, libraries, machine, network, report, storage
from lora_rlhf.doctor.findings import GIB, Finding, as_json, line, summary
from lora_rlhf.doctor.gpus import Build, Driver, Gpu
from lora_rlhf.doctor.libraries import Library
from lora_rlhf.doctor.storage import Place, Space
from lora_rlhf.system import memory as host
from lora_rlhf.system import network as hub

Capture = pytest.CaptureFixture[str]


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """Files below a folder, as the kernel would show them."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = (
    "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"  # 16 GiB, 8 available
)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n"}, (16, 8, False)),
        ({"proc/self/cgroup": "0::/a\n", "cg/a/memory.max": "max\n", "cg/a/memory.current": "5\n"}, (16, 8, False)),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "cg/a/b/memory.max": "max\n",
                "cg/a/b/memory.current": "5\n",
                "cg/a/memory.max": f"{4 * GIB}\n",
                "cg/a/memory.current": f"{3 * GIB}\n",
                "cg/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            (4, 2, True),
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/docker/f00\n",
                "cg/memory/memory.limit_in_bytes": f"{2 * GIB}",
                "cg/memory/memory.usage_in_bytes": f"{GIB}",
                "cg/memory/memory.stat": "total_inactive_file 0",
                "cg/memory/x/memory.limit_in_bytes": f"{GIB}",  # another controller's group
                "cg/memory/x/memory.usage_in_bytes": "0",
                "memory.limit_in_bytes": f"{GIB}",  # outside
                "memory.usage_in_bytes": "0",
            },
            (2, 1, True),
        ),
        ({"proc/self/cgroup": "0::/a\n", "cg/a/memory.max": f"{32 * GIB}", "cg/a/memory.current": "0"}, (16, 8, False)),
        ({"proc/self/cgroup": "0::/a\n", "cg/a/memory.max": f"{12 * GIB}", "cg/a/memory.current": "0"}, (12, 8, True)),
    ],
    ids=["none", "no limit", "limit of an outer group", "version 1 in a container", "limit above all", "others use it"],
)
def test_memory_is_what_the_control_group_leaves(
    tmp_path: Path, files: dict[str, str], expected: tuple[int, int, bool]
) -> None:
    tree(tmp_path, {"proc/meminfo": MEMINFO, **files})
    found = host.memory(tmp_path / "proc", tmp_path / "cg")
    assert found is not None
    assert (found.total / GIB, found.available / GIB, found.limited) == expected


def test_memory_that_the_system_does_not_tell(tmp_path: Path) -> None:
    assert host.memory(tmp_path, tmp_path) is None
    assert machine.judge_memory(None).status == "note"


@pytest.mark.parametrize(("gib", "status"), [(1.4, "problem"), (2.9, "note"), (3.1, "ok")])
def test_too_little_memory(gib: float, status: str) -> None:
    finding = machine.judge_memory(host.Memory(16 * GIB, int(gib * GIB), limited=True))
    assert finding.status == status and bool(finding.advice) == (status != "ok")
    assert finding.found == f"{gib} GiB of 16.0 GiB available (the limit of the control group)"


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({"proc/self/cgroup": "0::/a\n", "cg/a/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/a/b\n", "cg/a/b/cpu.max": "max 100000\n", "cg/cpu.max": "25000 100000"}, 0.25),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "cg/cpu/cpu.cfs_quota_us": "75000",
                "cg/cpu/cpu.cfs_period_us": "100000",
            },
            0.75,
        ),
    ],
)
def test_cores_are_what_the_control_group_leaves(tmp_path: Path, files: dict[str, str], usable: float) -> None:
    tree(tmp_path, {"proc/cpuinfo": "processor: 0\nmodel name\t: Fast One\nmodel name\t: Fast One\n", **files})
    found = machine.cores(tmp_path / "proc", tmp_path / "cg")
    assert (found.usable, found.name) == (usable, "Fast One")
    assert machine.judge_cores(machine.Cores(8, 0.5, "Fast One")).found == "0.5 of 8 cores, Fast One"
    assert machine.judge_cores(machine.Cores(8, 8, "Fast One")).found == "8 cores, Fast One"


def test_cores_without_a_limit_are_those_of_the_process(tmp_path: Path) -> None:
    unlimited = {"proc/self/cgroup": "3:cpu:/\n", "cg/cpu/cpu.cfs_quota_us": "-1", "cg/cpu/cpu.cfs_period_us": "100000"}
    tree(tmp_path, unlimited)
    nproc = subprocess.run(["nproc"], capture_output=True, text=True, check=True, env={}).stdout
    assert machine.cores(tmp_path / "proc", tmp_path / "cg").usable == int(nproc)


@pytest.mark.parametrize(
    ("threads", "setting", "usable", "has_gpu", "advice"),
    [
        (8, None, 8, False, ""),
        (8, None, 2.5, False, "more threads than cores to use wait for one another: export OMP_NUM_THREADS=2"),
        (8, "8", 0.5, True, "more threads than cores to use wait for one another: export OMP_NUM_THREADS=1"),
        (1, "1", 8, False, "that leaves 7 of 8 cores idle: unset OMP_NUM_THREADS"),
        (1, "1", 8, True, ""),
        (4, None, 8, False, ""),
    ],
)
def test_threads_against_cores(threads: int, setting: str | None, usable: float, has_gpu: bool, advice: str) -> None:
    finding = machine.judge_threads(threads, setting, usable, has_gpu)
    assert finding.advice == advice
    assert finding.status == ("note" if advice else "ok")


def test_another_system_is_a_note() -> None:
    assert machine.judge_system("Linux", "6.1", "3.12.1").status == "ok"
    assert machine.judge_system("Darwin", "24", "3.12.1").status == "note"


RUNS = Place("disk: runs", "runs", "go elsewhere", 10, 3)
CACHE = Place("disk: hub cache", "cache", "go elsewhere", 10, needed=False)


@pytest.mark.parametrize(
    ("place", "gib", "filesystem", "writable", "status", "advice"),
    [
        (RUNS, 11, "ext4", True, "ok", ""),
        (RUNS, 9.9, "ext4", True, "note", "less than 10 GiB: free some, or go elsewhere"),
        (RUNS, 2.9, "ext4", True, "problem", "free some, or go elsewhere"),
        (CACHE, 2.9, "ext4", True, "note", "less than 10 GiB: free some, or go elsewhere"),
        (RUNS, 11, "tmpfs", True, "note", "what is written there takes memory: go elsewhere if that is short"),
        (RUNS, 11, "ext4", False, "problem", "go elsewhere"),
        (CACHE, 11, "ext4", False, "note", "go elsewhere"),
    ],
)
def test_room_on_a_disk(place: Place, gib: float, filesystem: str, writable: bool, status: str, advice: str) -> None:
    finding = storage.judge_space(place, Space("/x", int(gib * GIB), 100 * GIB, filesystem, writable))
    assert (finding.status, finding.advice) == (status, advice)
    expected = f"{float(gib)} GiB free in {place.path} ({filesystem})" if writable else "/x cannot be written to"
    assert finding.found == expected


def test_the_limits_of_each_place() -> None:
    limits = {place.check: (place.note_gib, place.least_gib) for place in storage.places("runs", "/tmp", "/cache")}
    assert limits == {"disk: runs": (10, 3), "disk: temporary": (3, 0), "disk: hub cache": (10, 0)}


def test_a_folder_to_come_is_on_the_disk_of_the_nearest_one_and_is_not_made(tmp_path: Path) -> None:
    found = storage.space(str(tmp_path / "a/b/c"))
    assert found.folder == str(tmp_path) and found.writable
    told = subprocess.run(["stat", "-f", "-c", "%a %S", tmp_path], capture_output=True, text=True, check=True).stdout
    blocks, size = map(int, told.split())
    assert abs(found.free - blocks * size) < GIB, "other programs write too"
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    (tmp_path / "runs").chmod(0o755)
    assert not storage.space(str(tmp_path / "runs")).writable
    assert not storage.space(str(tmp_path / "runs/a")).writable


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    (tmp_path / "a b/c").mkdir(parents=True)
    (tmp_path / "a bc").mkdir()
    escaped = str(tmp_path).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"d {escaped}/a\\040b nfs4 rw 0 0\nd / ext4 rw 0 0\nd {escaped}/a\\040b/c tmpfs rw 0 0\n"
        f"d {escaped}/a\\040b/c xfs rw 0 0\n"
    )
    assert storage.filesystem(str(tmp_path / "a b"), mounts) == "nfs4"
    assert storage.filesystem(str(tmp_path / "a bc"), mounts) == "ext4"
    assert storage.filesystem(str(tmp_path / "a b/c"), mounts) == "xfs", "the later of two hides the earlier"
    assert storage.filesystem("/", tmp_path / "none") == ""
    df = subprocess.run(["df", "--output=fstype", tmp_path], capture_output=True, text=True, check=True)
    assert storage.filesystem(str(tmp_path)) == df.stdout.split()[-1]


def test_locks_that_work_and_locks_that_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.lock_fault(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    assert storage.lock_fault(str(tmp_path)) == "two processes can hold the same lock"

    def refuse(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert storage.lock_fault(str(tmp_path)) == "No locks available"
    assert storage.judge_locks("runs", None).status == "ok"
    finding = storage.judge_locks("runs", "No locks available")
    assert finding.status == "note" and "No locks available" in finding.found and "second process" in finding.advice


TORCH = Library("torch", "2.13.0+cu130", "", "2.13.0")


@pytest.mark.parametrize(
    ("library", "status", "found", "command"),
    [
        (
            Library("trl", None, ">=1.16,<1.17"),
            "problem",
            "trl is not installed",
            "py -m pip install 'trl>=1.16,<1.17'",
        ),
        (Library("trl", None, "", "1.16.0"), "problem", "trl is not installed", "py -m pip install trl==1.16.0"),
        (
            Library("peft", "0.20.0", ">=0.21", "0.21.2"),
            "problem",
            "peft 0.20.0 is installed, needed is >=0.21",
            "py -m pip install peft==0.21.2",
        ),
        (
            Library("peft", "0.22.0", ">=0.21", "0.21.2"),
            "note",
            "peft 0.22.0 is installed, tested is 0.21.2",
            "py -m pip install peft==0.21.2",
        ),
        (
            Library("tokenizers", "0.22", "", "0.23.3", direct=False),
            "note",
            "tokenizers 0.22 (tested: 0.23.3)",
            "py -m pip install tokenizers==0.23.3",
        ),
    ],
)
def test_a_library_that_is_not_the_tested_one(library: Library, status: str, found: str, command: str) -> None:
    (finding,) = libraries.judge_libraries([TORCH, library], "py")
    assert (finding.status, finding.found, finding.command) == (status, found, command)


def test_every_difference_has_its_own_line() -> None:
    old = [Library("a", "1", ">=2"), Library("b", "1", "", "2"), Library("c", "1", "", "2", direct=False)]
    assert [finding.status for finding in libraries.judge_libraries(old, "py")] == ["problem", "note", "note"]


SAME = [Library(name, "1.0", "", "1.0") for name in ("transformers", "peft", "bitsandbytes", "trl")]


def test_how_a_library_was_built_is_no_difference() -> None:
    (finding,) = libraries.judge_libraries([TORCH, *SAME, Library("pip", "23", direct=False)], "py")
    assert finding.status == "ok"
    assert finding.found.startswith("5 libraries are as tested: torch 2.13.0+cu130, transformers 1.0")


def test_without_the_tested_set_the_needs_count() -> None:
    plain = [replace(library, tested=None) for library in [TORCH, *SAME]]
    (finding,) = libraries.judge_libraries(plain, "py")
    assert (finding.status, finding.found[:29]) == ("ok", "5 libraries are new enough: t")


def test_a_package_that_is_not_installed_needs_nothing_known() -> None:
    assert libraries.libraries({}, "no-such-package") == []
    assert [finding.status for finding in libraries.judge_libraries([], "py")] == ["note"]


def test_the_libraries_here() -> None:
    found = {library.name: library for library in libraries.libraries(libraries.tested_versions())}
    assert found["torch"].direct and found["torch"].installed == torch.__version__
    assert found["peft"].needed == ">=0.21"
    assert not found["tokenizers"].direct and found["tokenizers"].tested == "0.23.3", "of transformers"
    assert "docstring-parser" in found, "of an extra that is asked for"
    assert "pytest" not in found and "trl" not in found, "of extras that are not"


def test_the_tested_set_is_read_as_pip_writes_it(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# a==1\nJinja2==3.1.6\nast_serialize==0.13.1\n\n")
    assert libraries.tested_versions(pins) == {"jinja2": "3.1.6", "ast-serialize": "0.13.1"}
    assert libraries.tested_versions(tmp_path / "none") == {}


CARD = Gpu("RTX 3060", 12 * GIB, 11 * GIB, (8, 6), True)
CUDA, PLAIN = Build("2.13.0+cu130", "CUDA 13.0"), Build("2.13.0+cpu", None)
SMI = Driver("535.104", ("RTX 3060",))


def test_a_gpu_that_works() -> None:
    (finding,) = gpus.judge_gpus([CARD], CUDA, SMI, None, "py")
    assert (finding.check, finding.status) == ("gpu 0", "ok")
    assert finding.found == (
        "RTX 3060, 11.0 GiB of 12.0 GiB free, compute capability 8.6, bfloat16; driver 535.104, CUDA 13.0"
    )


def test_a_gpu_that_is_shared_or_old() -> None:
    (finding,) = gpus.judge_gpus([replace(CARD, free=8 * GIB)], CUDA, SMI, None, "py")
    assert finding.status == "note" and finding.advice.startswith("4.0 GiB are taken by the display or other programs")
    (finding,) = gpus.judge_gpus([replace(CARD, bf16=False, capability=(7, 5))], CUDA, None, None, "py")
    assert finding.status == "note" and "float16" in finding.advice and "7.5, no bfloat16; CUDA 13.0" in finding.found


def test_several_gpus() -> None:
    findings = gpus.judge_gpus([CARD, CARD], CUDA, SMI, None, "py")
    assert [finding.check for finding in findings] == ["gpu 0", "gpu 1", "gpus"]
    assert "accelerate launch -m lora_rlhf.cli" in findings[-1].command and findings[-1].status == "note"


@pytest.mark.parametrize(
    ("built", "smi", "visible", "status", "told"),
    [
        (PLAIN, None, None, "note", "everything runs on the CPU"),
        (PLAIN, SMI, None, "problem", "py -m pip uninstall -y torch && py -m pip install torch==2.13.0\n"),
        (PLAIN, SMI, "0", "problem", "py -m pip install torch==2.13.0\n"),
        (CUDA, SMI, None, "problem", "update the NVIDIA driver"),
        (CUDA, SMI, "0", "problem", "update the NVIDIA driver"),
        (CUDA, SMI, "GPU-12ab", "problem", "update the NVIDIA driver"),
        (CUDA, SMI, "", "note", "unset CUDA_VISIBLE_DEVICES"),
        (CUDA, SMI, "-1", "note", "unset CUDA_VISIBLE_DEVICES"),
        (CUDA, SMI, "1", "note", "unset CUDA_VISIBLE_DEVICES"),
        (CUDA, SMI, "none,0", "note", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_no_gpu_can_be_used(built: Build, smi: Driver | None, visible: str | None, status: str, told: str) -> None:
    (finding,) = gpus.judge_gpus([], built, smi, visible, "py")
    assert finding.status == status and told in f"{finding.advice}{finding.command}\n"
    assert smi is None or "RTX 3060 (driver 535.104)" in finding.found


def test_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.driver() is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '535.104, RTX 3060'\necho '535.104, RTX 3090, new'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpus.driver() == Driver("535.104", ("RTX 3060", "RTX 3090, new"))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, sorry'\nexit 9\n")
    assert gpus.driver() is None


@pytest.fixture(scope="module")
def trial() -> kernels.Trial:
    """What the CPU here does."""
    return kernels.try_4bit("cpu")


def test_four_bits_on_this_cpu(trial: kernels.Trial) -> None:
    assert trial.dtype == "float32"
    assert max(trial.forward, trial.backward, trial.single) < 1e-5
    assert 0.15 < trial.rounding < 0.16, "half of 0.304, the largest gap between the values of NF4"
    assert trial.kept and trial.milliseconds > 0
    finding = kernels.judge_4bit("cpu", trial)
    assert finding.status == "ok" and "float32" in finding.found and "ms for 32 tokens" in finding.found


@pytest.mark.parametrize("name", ["forward", "backward", "single", "rounding"])
@pytest.mark.parametrize("wrong", [0.3, float("nan")])
def test_wrong_figures_are_a_problem_where_the_device_is_needed(trial: kernels.Trial, name: str, wrong: float) -> None:
    broken = replace(trial, **{name: wrong})
    finding = kernels.judge_4bit("cuda:0", broken)
    assert finding.status == "problem" and finding.found.startswith("gives wrong results")
    assert kernels.judge_4bit("cpu", broken, needed=False).status == "note"


def test_a_small_error_is_fine_for_16_bits_and_not_for_32(trial: kernels.Trial) -> None:
    small = replace(trial, forward=4e-3)
    assert kernels.judge_4bit("cuda:0", replace(small, dtype="bfloat16")).status == "ok"
    assert kernels.judge_4bit("cuda:0", small).status == "problem"


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (lambda x, y: y + 0.1 * y.detach() if x.shape[0] > 1 else y, "forward"),
        (lambda x, y: 0.9 * y if x.shape[0] == 1 else y, "single"),
        (lambda x, y: y.detach() + 0 * x.sum(), "backward"),
    ],
)
def test_a_kernel_that_is_wrong_is_noticed(
    spoil: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Linear4bit.forward
    monkeypatch.setattr(Linear4bit, "forward", lambda self, x: spoil(x, forward(self, x)))
    found = kernels.try_4bit("cpu")
    errors = {"forward": found.forward, "single": found.single, "backward": found.backward}
    assert {name for name, error in errors.items() if error > 0.05} == {place}


def test_weights_that_change_in_use_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Linear4bit.forward

    def repack(self: Linear4bit, x: torch.Tensor) -> torch.Tensor:
        result = forward(self, x)
        if not self.training:
            assert not self.support_avx512bf16_for_cpu
            self.weight.data = self.weight.data.flip(0)
        return result

    monkeypatch.setattr(Linear4bit, "forward", repack)
    finding = kernels.judge_4bit("cpu", kernels.try_4bit("cpu"))
    assert finding.status == "problem" and "changed" in finding.found


def test_what_is_told_of_the_kernels(trial: kernels.Trial) -> None:
    assert "switched off" in kernels.judge_4bit("cpu", replace(trial, repacks=True)).found
    assert "switched off" not in kernels.judge_4bit("cpu", replace(trial, repacks=False)).found
    slow = kernels.judge_4bit("cpu", replace(trial, own_library=False))
    assert slow.status == "note" and "slower" in slow.advice
    missing = kernels.judge_4bit("cuda:0", None, "no kernel image")
    assert missing.status == "problem" and missing.found == "does not work: no kernel image"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """server(status) -> the address of a server that answers with it."""
    started = []
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def make(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        made = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        started.append(made)
        return f"http://127.0.0.1:{made.server_port}"

    yield make
    for made in started:
        made.shutdown()
        made.server_close()


@pytest.mark.parametrize(("status", "works"), [(200, True), (401, True), (404, True), (502, False), (504, False)])
def test_a_hub_that_answers(server: Callable[[int], str], status: int, works: bool) -> None:
    fault = network.ask(server(status))()
    assert (fault is None) == works
    assert works or str(status) in str(fault)


def test_a_hub_that_does_not_answer(server: Callable[[int], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        assert network.ask(address)()
        assert time.monotonic() - started < 2
    with monkeypatch.context() as patched:
        patched.setattr(hub, "_probe", lambda address: time.sleep(3))  # as long as it takes to look up a name
        started = time.monotonic()
        assert network.ask(address)() == "no answer within 0.3 s"
        assert time.monotonic() - started < 2
    assert "refused" in str(network.ask(address)())
    assert network.ask("nonsense")() is not None
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    assert "proxy" in str(network.ask(server(200))())


def test_what_is_told_of_the_hub() -> None:
    assert network.judge_hub("https://h", None, None) == Finding(
        "hub", "ok", "https://h answers", values={"endpoint": "https://h", "offline": None, "fault": None}
    )
    unreachable = network.judge_hub("https://h", None, "no route")
    assert unreachable.status == "note" and unreachable.found == "no answer from https://h (no route)"
    offline = network.judge_hub("https://h", "HF_HUB_OFFLINE", None)
    assert offline.status == "note" and offline.advice == "unset HF_HUB_OFFLINE to download more"


def test_offline_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    assert hub.offline() is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert hub.offline() is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.offline() == "HF_HUB_OFFLINE"


def test_a_finding_is_aligned_and_its_commands_stay_whole() -> None:
    command = f"python -m pip install {' '.join(['transformers==5.23.0'] * 9)}"
    finding = Finding("libraries", "problem", "word " * 30, "do this and that, " * 5, command=command)
    rows = line(finding, color=False, width=80).splitlines()
    assert rows[0].startswith("problem libraries       word word")
    assert all(row.startswith(" " * 24) and row[24] != " " for row in rows[1:3])
    assert rows[3] == " " * 24 + "-> do this and that, do this and that, do this and that,"
    assert rows[4] == " " * 27 + "do this and that, do this and that,"
    assert max(map(len, rows[:-1])) <= 80
    assert rows[5:] == [f"{' ' * 24}-> {command}"]
    path = line(Finding("x", "ok", "five words are before this a-path-with-hyphens"), color=False, width=60)
    assert path.splitlines()[1].strip() == "a-path-with-hyphens"
    assert f"/{'x' * 60}" in line(Finding("x", "ok", f"in /{'x' * 60}"), color=False, width=60)


def test_colour_is_on_the_status_alone() -> None:
    finding = Finding("hub", "note", "found", "advice")
    plain = line(finding, color=False, width=80)
    assert line(finding, color=True, width=80) == plain.replace("note    ", "\x1b[33mnote    \x1b[0m")
    assert "\x1b" not in plain


def test_the_last_line_counts() -> None:
    ok, note, problem = (Finding("x", status, "") for status in ("ok", "note", "problem"))
    assert summary([ok]) == "everything that is needed works"
    assert summary([ok, note]) == "everything that is needed works (1 note)"
    assert summary([note, problem, problem]) == "not everything that is needed works (2 problems and 1 note)"


def test_json_holds_what_json_can() -> None:
    told = json.loads(as_json([Finding("x", "problem", "f", "a", {"error": float("nan"), "names": ("a",)}, "c")]))
    values = {"error": None, "names": ["a"]}
    expected = {"check": "x", "status": "problem", "found": "f", "advice": "a", "values": values, "command": "c"}
    assert told == {"ok": False, "findings": [expected]}


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """looking(finding...): what is found from now on."""
    return lambda *findings: monkeypatch.setattr(report, "look", lambda run: iter(findings))


def test_a_problem_is_exit_status_1_after_everything_was_told(looking: Callable[..., None], capsys: Capture) -> None:
    looking(Finding("a", "problem", "broken", "mend it"), Finding("b", "ok", "fine"))
    with pytest.raises(SystemExit) as exited:
        main(["doctor"])
    assert exited.value.code == 1
    out = capsys.readouterr().out
    assert "mend it" in out and "fine" in out and out.endswith("not everything that is needed works (1 problem)\n")
    with pytest.raises(SystemExit) as exited:
        main(["doctor", "--json"])
    assert exited.value.code == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_notes_are_exit_status_0(looking: Callable[..., None], capsys: Capture) -> None:
    looking(Finding("a", "note", "odd"))
    assert main(["doctor"]) == 0
    assert "\x1b" not in capsys.readouterr().out, "no colour where it is no terminal"


def test_a_terminal_has_colour_unless_it_is_not_wanted(
    looking: Callable[..., None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking(Finding("a", "note", "odd"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for term, no_color, colored in (("xterm", "", True), ("dumb", "", False), ("xterm", "1", False)):
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("NO_COLOR", no_color)
        main(["doctor"])
        assert ("\x1b" in capsys.readouterr().out) == colored


def test_an_empty_run_is_a_mistake(capsys: Capture) -> None:
    assert main(["doctor", "--run", ""]) == 2
    assert "run is empty" in capsys.readouterr().err


def test_this_machine_is_examined_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "-m", "lora_rlhf.cli", "doctor", "--json", "--run", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["ok"] else 1)
    assert done.stderr == ""
    findings = {finding["check"]: finding for finding in told["findings"]}
    assert {"system", "cores", "memory", "disk: runs", "locks", "libraries", "threads", "4-bit cpu", "hub"} <= set(
        findings
    )
    assert findings["locks"]["status"] == "ok" and findings["4-bit cpu"]["values"]["kept"] is True
    assert (findings["hub"]["values"]["offline"], findings["hub"]["values"]["fault"]) == ("HF_HUB_OFFLINE", None)
    assert list(tmp_path.iterdir()) == []


def test_everything_broken_is_told_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error\nmore of it")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module, name in ((storage, "space"), (gpus, "build")):
        monkeypatch.setattr(module, name, broken)
    found = {finding.check: finding for finding in report.look(str(tmp_path))}
    assert {found[name].status for name in ("disk: runs", "disk: temporary", "disk: hub cache", "torch")} == {"problem"}
    assert "locks" not in found and "4-bit cpu" not in found and found["hub"].status == "note"


def test_a_gpu_that_hangs_and_kernels_that_fail_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise RuntimeError("\nCUDA error: out of memory\nCompile with ...")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(gpus, "usable", broken)
    monkeypatch.setattr(kernels, "try_4bit", broken)
    found = {finding.check: finding for finding in report.look(str(tmp_path))}
    assert (found["gpu"].status, found["gpu"].found) == ("problem", "does not answer: CUDA error: out of memory")
    assert (found["4-bit cpu"].status, found["4-bit cpu"].found[:14]) == ("problem", "does not work:")


def test_with_a_gpu_the_cpu_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: str) -> kernels.Trial:
        raise RuntimeError(device)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(gpus, "usable", lambda: [CARD])
    monkeypatch.setattr(kernels, "try_4bit", fails)
    found = {finding.check: finding.status for finding in report.look(str(tmp_path))}
    assert (found["gpu 0"], found["4-bit cpu"], found["4-bit cuda:0"]) == ("ok", "note", "problem")


def test_it_starts_fast() -> None:
    code = (
        "import sys, lora_rlhf.doctor.report;"
        "print([name for name in ('torch', 'bitsandbytes', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
