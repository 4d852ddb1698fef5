"""An export that is killed leaves no folder that looks complete, and the next one starts clean."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.exporting.manifest import read_export_manifest
from lora_rlhf.exporting.verify import _require_files
from lora_rlhf.system.disk import TEMPORARY

pytestmark = [
    pytest.mark.kill,
    pytest.mark.long,
    pytest.mark.xdist_group("export kill"),
]  # one worker makes the undisturbed export
KILLS = 15
SEEN = ("scratch", "model.safetensors", "config.json", "README.md", "export.json")  # in the folder that is being made
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["lora_rlhf.exporting.export", "peft"])


def make(folder: str, run: str) -> None:
    os.chdir(folder)
    settings: dict[str, Any] = {"parity_prompts": 2, "parity_tokens": 4, "min_agreement": 0.0, "device": "cpu"}
    export(ExportConfig(folder=run, role="sft", to="out", max_shard_size="1MB", **settings))


def start(folder: Path, run: Path) -> BaseProcess:
    process = FORKS.Process(target=make, args=(str(folder), str(run)))
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def is_whole(folder: Path) -> bool:
    """Whether an export is there; it must then be all there."""
    if not folder.exists():
        return False
    _require_files(folder, read_export_manifest(folder)["files"])
    return True


@pytest.fixture
def undisturbed(tiny_run: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, float]:
    """A run, what its export is when nobody kills it, and how long that takes."""
    run, folder = tiny_run("llama"), tmp_path / "calm"
    folder.mkdir()
    first = FORKS.Process(target=os.getcwd)  # waits for the server to import everything
    first.start()
    first.join()
    started = time.monotonic()
    process = start(folder, run)
    process.join()
    assert process.exitcode == 0 and is_whole(folder / "out")
    return run, folder / "out", time.monotonic() - started


def test_a_killed_export_is_whole_or_absent(undisturbed: tuple[Path, Path, float], tmp_path: Path) -> None:
    run, calm, seconds = undisturbed
    folder = tmp_path / "killed"
    folder.mkdir()
    rng = random.Random(0)
    died = 0
    for number in range(KILLS + len(SEEN)):
        process = start(folder, run)
        if number < KILLS:
            process.join(rng.random() * seconds)
        else:
            while process.is_alive() and not list(folder.glob(f".out.*{TEMPORARY}/{SEEN[number - KILLS]}")):
                time.sleep(0.001)
        kill(process)
        died += process.exitcode == -signal.SIGKILL
        if is_whole(folder / "out"):
            (folder / "out").rename(tmp_path / f"whole-{number}")
    assert died >= KILLS / 2  # else hardly anything was killed
    process = start(folder, run)
    process.join()
    assert process.exitcode == 0
    assert [path.name for path in folder.iterdir()] == ["out"]
    for name, digest in read_export_manifest(calm)["files"].items():
        assert read_export_manifest(folder / "out")["files"][name] == digest, name


def test_what_is_half_is_found(undisturbed: tuple[Path, Path, float]) -> None:
    """So that what finds nothing above could have found it."""
    _, calm, _ = undisturbed
    assert is_whole(calm)
    path = calm / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(Exception, match=r"model\.safetensors has sha256"):
        is_whole(calm)
    path.unlink()
    with pytest.raises(Exception, match=r"model\.safetensors is missing"):
        is_whole(calm)
    path.write_bytes(content)
    (calm / "more.txt").write_text("")
    with pytest.raises(Exception, match=r"more\.txt is not listed"):
        is_whole(calm)
    (calm / "export.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(Exception, match="'files' is missing"):
        is_whole(calm)
    (calm / "export.json").unlink()
    with pytest.raises(Exception, match=r"export\.json cannot be used: not there"):
        is_whole(calm)
