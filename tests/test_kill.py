"""Stages that are killed at random instants go on to bit-identical results: benchmarks/kill.py, a small part of it."""

import random
import shutil
import signal
from pathlib import Path

import pytest
from kill import World, differences, torment, unreadable

# one worker makes the world; long: tests/stages/test_resume.py lets stages die within a process
pytestmark = [pytest.mark.kill, pytest.mark.long, pytest.mark.xdist_group("kill")]
KILLS = {"sft": 3, "reward": 3, "dpo": 3, "ppo": 4, "sample": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny model, data and one finished run of each command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return World.make(tmp_path_factory.mktemp("kill") / "world", tuple(KILLS), runs=["undisturbed"])


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_command_goes_on_bit_for_bit(world: World, name: str) -> None:
    tally = torment(world, name, KILLS[name], random.Random(0))
    assert tally.faults == []
    assert tally.kills == KILLS[name]
    assert tally.identical == tally.runs > 0


@pytest.mark.parametrize(
    "share", [0.02, pytest.param(0.1, marks=pytest.mark.long), 0.4, pytest.param(0.98, marks=pytest.mark.long)]
)
def test_a_kill_between_two_file_operations_leaves_nothing_half(world: World, share: float) -> None:
    """At these shares of all operations SFT makes its folder, writes and removes checkpoints, and has its results."""
    run = world.new_run("sft", f"operation-{share}")
    process = world.start("sft", run, round(share * world.operations["sft"]))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(unreadable(run)) == []
    process = world.start("sft", run)
    process.join()
    assert process.exitcode == 0 and differences(world.undisturbed("sft"), run) == []


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "config.yaml", "metrics.jsonl", "adapter/adapter_model.safetensors"]
    + [f"checkpoints/step-*/{name}" for name in ("checkpoint.json", "state.safetensors", "sft/adapter_config.json")],
)
def test_what_is_half_is_found(world: World, tmp_path: Path, name: str) -> None:
    """So that what finds nothing above could have found it."""
    run = tmp_path / "run"
    shutil.copytree(world.undisturbed("sft"), run)
    assert list(unreadable(run)) == []
    path = min((run / "sft").glob(name))
    whole = path.read_bytes()
    path.write_bytes(b"{" + whole[: len(whole) // 2])
    assert any(path.name in found for found in unreadable(run))
