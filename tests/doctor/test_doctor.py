"""`lora-rlhf doctor`: what is measured is true, and what is printed says it. How it is judged: `test_situations.py`."""

import errno
import fcntl
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from lora_rlhf.cli.main import main
from lora_rlhf.doctor import gpus, libraries, machine, network, report, storage
from lora_rlhf.doctor.findings import GIB, Finding, finding_lines, findings_json, summary_line
from lora_rlhf.doctor.gpus import Driver, Gpu
from lora_rlhf.system import kernel_trial
from lora_rlhf.system import network as hub
from lora_rlhf.system.memory import memory

Capture = pytest.CaptureFixture[str]


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.defpath}).stdout


def kernel_files(folder: Path, files: Mapping[str, object]) -> tuple[Path, Path]:
    """The files that the kernel would show: its folders proc and cg (control groups)."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(content))
    return folder / "proc", folder / "cg"


VERSION_1 = {
    "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/docker/f00\n",
    "cg/memory/memory.limit_in_bytes": 2 * GIB,
    "cg/memory/memory.usage_in_bytes": GIB,
    "cg/memory/memory.stat": "total_inactive_file 0",
    "cg/memory/x/memory.limit_in_bytes": GIB,  # another controller's group
    "cg/memory/x/memory.usage_in_bytes": 0,
    "memory.limit_in_bytes": GIB,  # outside
    "memory.usage_in_bytes": 0,
}
OUTER_LIMIT = {
    "proc/self/cgroup": "0::/a/b\n",
    "cg/a/b/memory.max": "max\n",
    "cg/a/b/memory.current": "5\n",
    "cg/a/memory.max": 4 * GIB,
    "cg/a/memory.current": 3 * GIB,
    "cg/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
}
IN_A = {"proc/self/cgroup": "0::/a\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n"}, (16, 8, False)),
        ({**IN_A, "cg/a/memory.max": "max\n", "cg/a/memory.current": "5\n"}, (16, 8, False)),
        ({**IN_A, "cg/a/memory.max": 32 * GIB, "cg/a/memory.current": 0}, (16, 8, False)),
        ({**IN_A, "cg/a/memory.max": 12 * GIB, "cg/a/memory.current": 0}, (12, 8, True)),
        (OUTER_LIMIT, (4, 2, True)),
        (VERSION_1, (2, 1, True)),
    ],
    ids=[
        "no group",
        "no limit",
        "limit above all",
        "others use it",
        "limit of an outer group",
        "version 1 in a container",
    ],
)
def test_memory_is_what_the_control_group_leaves(
    tmp_path: Path, files: dict[str, object], expected: tuple[int, int, bool]
) -> None:
    meminfo = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"
    available = memory(*kernel_files(tmp_path, {"proc/meminfo": meminfo, **files}))
    assert available is not None
    assert (available.total / GIB, available.available / GIB, available.limited) == expected
    assert memory(tmp_path / "none", tmp_path / "none") is None


QUOTA = {"proc/self/cgroup": "3:cpu,cpuacct:/\n", "cg/cpu/cpu.cfs_period_us": 100_000}


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({**IN_A, "cg/a/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/a/b\n", "cg/a/b/cpu.max": "max 100000\n", "cg/cpu.max": "25000 100000"}, 0.25),
        ({**QUOTA, "cg/cpu/cpu.cfs_quota_us": 75_000}, 0.75),
        ({**QUOTA, "cg/cpu/cpu.cfs_quota_us": -1}, None),
    ],
)
def test_cores_are_what_the_control_group_leaves(
    tmp_path: Path, files: dict[str, object], usable: float | None
) -> None:
    cpuinfo = "processor: 0\nmodel name\t: Fast One\nmodel name\t: Fast One\n"
    cores = machine.read_cores(*kernel_files(tmp_path, {"proc/cpuinfo": cpuinfo, **files}))
    assert (cores.usable, cores.name) == (usable or int(run("nproc")), "Fast One")


def test_a_folder_to_come_is_on_the_disk_of_the_nearest_one_and_is_not_made(tmp_path: Path) -> None:
    space = storage.read_disk_space(str(tmp_path / "a/b/c"))
    assert space.folder == str(tmp_path) and space.is_writable
    blocks, size = map(int, run("stat", "-f", "-c", "%a %S", str(tmp_path)).split())
    assert abs(space.free - blocks * size) < GIB, "other programs write too"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").write_text("")
    (tmp_path / "runs").chmod(0o755)
    assert not storage.read_disk_space(str(tmp_path / "runs")).is_writable, "a file"
    assert not storage.read_disk_space(str(tmp_path / "runs/a")).is_writable


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    (tmp_path / "a b/c").mkdir(parents=True)
    (tmp_path / "a bc").mkdir()
    escaped = str(tmp_path).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"d {escaped}/a\\040b nfs4 rw 0 0\nd / ext4 rw 0 0\nd {escaped}/a\\040b/c tmpfs rw 0 0\n"
        f"d {escaped}/a\\040b/c xfs rw 0 0\n"
    )
    kinds = {"a b": "nfs4", "a bc": "ext4", "a b/c": "xfs"}  # the later of two mounts hides the earlier
    assert {name: storage.filesystem_kind(str(tmp_path / name), mounts) for name in kinds} == kinds
    assert storage.filesystem_kind("/", tmp_path / "none") == ""
    assert storage.filesystem_kind(str(tmp_path)) == run("df", "--output=fstype", str(tmp_path)).split()[-1]


def test_locks_that_work_and_locks_that_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.lock_fault(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    assert storage.lock_fault(str(tmp_path)) == "two processes can hold the same lock"
    monkeypatch.setattr(fcntl, "flock", raising(OSError(errno.ENOLCK, "No locks available")))
    assert storage.lock_fault(str(tmp_path)) == "No locks available"


def raising(error: Exception) -> Callable[..., Any]:
    """A function that fails."""

    def fail(*arguments: Any) -> Any:
        raise error

    return fail


def test_the_libraries_here() -> None:
    here = {library.name: library for library in libraries.find_libraries(libraries.read_tested_versions())}
    assert here["torch"].is_direct and here["torch"].installed == torch.__version__
    assert here["peft"].needed == ">=0.21"
    assert not here["tokenizers"].is_direct and here["tokenizers"].tested == "0.23.3", "of transformers"
    assert here["trl"].is_direct and "pytest" not in here, "of an extra that is not asked for"
    assert libraries.find_libraries({}, "no-such-package") == []


def test_an_extra_that_is_asked_for_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, needs in (
        ("house", ("wall[strong]",)),
        ("wall", ('brick; extra == "strong"', 'straw; extra == "cheap"')),
    ):
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        rows = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0", *(f"Requires-Dist: {need}" for need in needs)]
        (tmp_path / f"{name}-1.0.dist-info/METADATA").write_text("\n".join(rows))
    monkeypatch.syspath_prepend(tmp_path)
    needed = {library.name: library.installed for library in libraries.find_libraries({}, "house")}
    assert needed == {"wall": "1.0", "brick": None}


def test_the_tested_set_is_read_as_pip_writes_it(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# a==1\nJinja2==3.1.6\nast_serialize==0.13.1\n\n")
    assert libraries.read_tested_versions(pins) == {"jinja2": "3.1.6", "ast-serialize": "0.13.1"}
    assert libraries.read_tested_versions(tmp_path / "none") == {}


def test_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.read_driver() is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '535.104, RTX 3060'\necho '535.104, RTX 3090, new'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpus.read_driver() == Driver("535.104", ("RTX 3060", "RTX 3090, new"))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, sorry'\nexit 9\n")
    assert gpus.read_driver() is None


def test_four_bits_on_this_cpu() -> None:
    trial = kernel_trial.try_4bit("cpu")
    assert trial.dtype == "float32"
    assert max(trial.forward, trial.backward, trial.single) < 1e-5
    assert 0.15 < trial.rounding < 0.16, "half of 0.304, the largest gap between the values of NF4"
    assert trial.kept and trial.milliseconds > 0


@pytest.mark.parametrize(
    ("spoil", "measure"),
    [
        (lambda x, y: y + 0.1 * y.detach() if x.shape[0] > 1 else y, "forward"),
        (lambda x, y: 0.9 * y if x.shape[0] == 1 else y, "single"),
        (lambda x, y: y.detach() + 0 * x.sum(), "backward"),
    ],
)
def test_a_kernel_that_is_wrong_is_noticed(
    spoil: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], measure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Linear4bit.forward
    monkeypatch.setattr(Linear4bit, "forward", lambda self, x: spoil(x, forward(self, x)))
    trial = kernel_trial.try_4bit("cpu")
    errors = {"forward": trial.forward, "single": trial.single, "backward": trial.backward}
    assert {name for name, error in errors.items() if error > 0.05} == {measure}


def test_weights_that_change_in_use_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Linear4bit.forward

    def repack(self: Linear4bit, x: torch.Tensor) -> torch.Tensor:
        result = forward(self, x)
        if not self.training:
            assert not self.support_avx512bf16_for_cpu
            self.weight.data = self.weight.data.flip(0)
        return result

    monkeypatch.setattr(Linear4bit, "forward", repack)
    assert not kernel_trial.try_4bit("cpu").kept


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """server(status) -> the address of a server that answers with it."""
    servers = []
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for started in servers:
        started.shutdown()
        started.server_close()


@pytest.mark.parametrize(("status", "works"), [(200, True), (401, True), (404, True), (502, False), (504, False)])
def test_a_hub_that_answers(server: Callable[[int], str], status: int, works: bool) -> None:
    fault = network.request_hub(server(status))()
    assert (fault is None) == works
    assert works or str(status) in str(fault)


def test_a_hub_that_does_not_answer(server: Callable[[int], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        assert network.request_hub(address)()
        assert time.monotonic() - started < 2
    with monkeypatch.context() as patched:
        patched.setattr(hub, "_probe_address", lambda address: time.sleep(3))  # as long as it takes to look up a name
        started = time.monotonic()
        assert network.request_hub(address)() == "no answer within 0.3 s"
        assert time.monotonic() - started < 2
    assert "refused" in str(network.request_hub(address)())
    assert network.request_hub("nonsense")() is not None
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    assert "proxy" in str(network.request_hub(server(200))())


@pytest.mark.parametrize(("value", "setting"), [(None, None), ("0", None), ("1", "HF_HUB_OFFLINE")])
def test_offline_by_the_environment(value: str | None, setting: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if value is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.offline() == setting


def test_a_finding_is_aligned_and_its_commands_stay_whole() -> None:
    command = f"python -m pip install {' '.join(['transformers==5.23.0'] * 9)}"
    finding = Finding("libraries", "problem", "word " * 30, "do this and that, " * 5, command=command)
    rows = finding_lines(finding, has_color=False, width=80).splitlines()
    assert rows[0].startswith("problem libraries       word word")
    assert all(row.startswith(" " * 24) and row[24] != " " for row in rows[1:3])
    assert rows[3] == " " * 24 + "-> do this and that, do this and that, do this and that,"
    assert rows[4] == " " * 27 + "do this and that, do this and that,"
    assert max(map(len, rows[:-1])) <= 80
    assert rows[5:] == [f"{' ' * 24}-> {command}"]
    path = finding_lines(
        Finding("x", "ok", "five words are before this a-path-with-hyphens"), has_color=False, width=60
    )
    assert path.splitlines()[1].strip() == "a-path-with-hyphens"
    assert f"/{'x' * 60}" in finding_lines(Finding("x", "ok", f"in /{'x' * 60}"), has_color=False, width=60)


def test_colour_is_on_the_status_alone() -> None:
    finding = Finding("hub", "note", "found", "advice")
    plain = finding_lines(finding, has_color=False, width=80)
    assert finding_lines(finding, has_color=True, width=80) == plain.replace("note    ", "\x1b[33mnote    \x1b[0m")
    assert "\x1b" not in plain


def test_the_last_line_counts() -> None:
    ok, note, problem = (Finding("x", status, "") for status in ("ok", "note", "problem"))
    assert summary_line([ok]) == "everything that is needed works"
    assert summary_line([ok, note]) == "everything that is needed works (1 note)"
    assert summary_line([note, problem, problem]) == "not everything that is needed works (2 problems and 1 note)"


def test_json_holds_what_json_can() -> None:
    finding = Finding("x", "problem", "f", "a", {"error": float("nan"), "names": ("a",)}, "c")
    values = {"error": None, "names": ["a"]}
    expected = {"check": "x", "status": "problem", "found": "f", "advice": "a", "values": values, "command": "c"}
    assert json.loads(findings_json([finding])) == {"ok": False, "findings": [expected]}


@pytest.fixture
def findings_are(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """findings_are(finding...): what all checks find from now on."""
    return lambda *findings: monkeypatch.setattr(report, "iterate_findings", lambda run: iter(findings))


def test_a_problem_is_exit_status_1_after_all_findings(findings_are: Callable[..., None], capsys: Capture) -> None:
    findings_are(Finding("a", "problem", "broken", "repair it"), Finding("b", "ok", "fine"))
    with pytest.raises(SystemExit) as exited:
        main(["doctor"])
    assert exited.value.code == 1
    out = capsys.readouterr().out
    assert "repair it" in out and "fine" in out and out.endswith("not everything that is needed works (1 problem)\n")
    with pytest.raises(SystemExit) as exited:
        main(["doctor", "--json"])
    assert exited.value.code == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize(
    ("terminal", "term", "no_color", "colored"),
    [(False, "xterm", "", False), (True, "xterm", "", True), (True, "dumb", "", False), (True, "xterm", "1", False)],
)
def test_notes_are_exit_status_0_in_colour_on_a_terminal(
    findings_are: Callable[..., None],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    term: str,
    no_color: str,
    colored: bool,
) -> None:
    findings_are(Finding("a", "note", "odd"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert main(["doctor"]) == 0
    assert ("\x1b" in capsys.readouterr().out) == colored


def test_an_empty_run_is_a_mistake(capsys: Capture) -> None:
    assert main(["doctor", "--run", ""]) == 2
    assert "run is empty" in capsys.readouterr().err


@pytest.mark.slow
def test_this_machine_is_examined_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "-m", "lora_rlhf.cli", "doctor", "--json", "--run", str(tmp_path / "runs")]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    output = json.loads(process.stdout)
    assert process.returncode == (0 if output["ok"] else 1)
    assert process.stderr == ""
    findings = {finding["check"]: finding for finding in output["findings"]}
    checks = {"system", "cores", "memory", "disk: runs", "locks", "libraries", "threads", "4-bit cpu", "hub"}
    assert checks <= set(findings)
    assert findings["locks"]["status"] == "ok" and findings["4-bit cpu"]["values"]["kept"] is True
    assert (findings["hub"]["values"]["offline"], findings["hub"]["values"]["fault"]) == ("HF_HUB_OFFLINE", None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Finding]]:
    """checks((module, name, function)...): the findings, by their checks, with these functions in place of others."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def check(*replaced: tuple[Any, str, Callable[..., Any]]) -> dict[str, Finding]:
        for module, name, function in replaced:
            monkeypatch.setattr(module, name, function)
        return {finding.check: finding for finding in report.iterate_findings(str(tmp_path))}

    return check


def test_a_machine_where_nothing_works_has_findings_and_raises_nothing(
    checks: Callable[..., dict[str, Finding]],
) -> None:
    broken = raising(OSError(errno.EIO, "Input/output error\nmore of it"))
    findings = checks((storage, "read_disk_space", broken), (gpus, "read_build", broken))
    problems = {name for name, finding in findings.items() if finding.status == "problem"}
    assert {"disk: runs", "disk: temporary", "disk: hub cache", "torch"} <= problems
    assert "locks" not in findings and "4-bit cpu" not in findings and findings["hub"].status == "note"


def test_a_gpu_that_hangs_and_kernels_that_fail(checks: Callable[..., dict[str, Finding]]) -> None:
    broken = raising(RuntimeError("\nCUDA error: out of memory\nCompile with ..."))
    findings = checks((gpus, "list_usable_gpus", broken), (kernel_trial, "try_4bit", broken))
    assert (findings["gpu"].status, findings["gpu"].found) == ("problem", "does not answer: CUDA error: out of memory")
    assert findings["4-bit cpu"].status == "problem" and findings["4-bit cpu"].found.startswith("does not work:")


def test_with_a_gpu_the_cpu_is_not_needed(checks: Callable[..., dict[str, Finding]]) -> None:
    card = Gpu("RTX 3060", 12 * GIB, 11 * GIB, (8, 6), True)
    broken = raising(RuntimeError("broken"))
    findings = checks((gpus, "list_usable_gpus", lambda: [card]), (kernel_trial, "try_4bit", broken))
    statuses = {name: findings[name].status for name in ("gpu 0", "4-bit cpu", "4-bit cuda:0")}
    assert statuses == {"gpu 0": "ok", "4-bit cpu": "note", "4-bit cuda:0": "problem"}


def test_it_starts_fast() -> None:
    code = (
        "import sys, lora_rlhf.doctor.report;"
        "print([name for name in ('torch', 'bitsandbytes', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"
