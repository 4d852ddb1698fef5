"""How many threads a command starts with beside other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_rlhf.system.cores import idle_cores


@pytest.mark.parametrize(("running", "idle"), [(1, 8), (4, 5), (9, 1), (30, 1)])
def test_running_processes_but_this_one_take_a_core_each(
    running: int, idle: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    stat = tmp_path / "stat"
    stat.write_text(f"cpu  1 2 3\nprocs_running {running}\nprocs_blocked 0\n")
    assert idle_cores(stat) == idle


def test_no_more_than_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    (tmp_path / "stat").write_text("procs_running 3\n")
    assert idle_cores(tmp_path / "stat") == 2


def test_a_system_that_hides_it_is_left_alone(tmp_path: Path) -> None:
    assert idle_cores(tmp_path / "none") is None


@pytest.mark.parametrize(("setting", "threads"), [(None, "1"), ("2", "2")])
def test_a_command_takes_idle_cores_unless_told_otherwise(setting: str | None, threads: str, tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("procs_running 999\n")
    code = (
        "import pathlib, sys, os; from lora_rlhf.system import cores; from lora_rlhf.cli import main;"
        f"main.idle_cores = lambda: cores.idle_cores(pathlib.Path({str(tmp_path / 'stat')!r}));"
        "main.main(['tinyworld', 'score', '--prompt', 'x', '--response', 'y']); print(os.environ['OMP_NUM_THREADS'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if setting is None else {"OMP_NUM_THREADS": setting}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert found.stdout.split()[-1] == threads
