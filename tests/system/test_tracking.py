"""Metrics to TensorBoard, Weights & Biases and Trackio: what arrives, also after a resume, and that no error stops."""

import json
import logging
import math
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from lora_rlhf.system.tracking import Trackers, faults

StandIn = Callable[..., Callable[[], list[Any]]]

CONFIG: dict[str, Any] = {"lr": 1e-4, "seed": 3, "packing": True, "model": "tiny", "sizes": [1, "b"], "target": None}
IDENTITY = "0123456789abcdef"

# What Accelerate calls of wandb and of trackio; every call is written to a file beside it.
STAND_IN = """
import json, pathlib
CALLS = pathlib.Path(__file__).parent.parent / "calls.jsonl"

def note(*call):
    with open(CALLS, "a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, values, step):
        if step == FAILS_AT:
            raise ConnectionError("no route\\nto the server")
        note("log", step, values)

    def finish(self):
        note("finish")

def init(**given):
    if FAILS_AT == 0:
        raise ConnectionError("no route")
    note("init", given)
    return Run()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """stand_in(name, fails_at) -> a function that gives the calls so far. It fails at that step; 0: when it begins."""
    made = []

    def make(name: str, fails_at: int | None = None) -> Callable[[], list[Any]]:
        package = tmp_path / "packages" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"FAILS_AT = {fails_at}\n{STAND_IN}")
        monkeypatch.syspath_prepend(str(package.parent))
        monkeypatch.delitem(sys.modules, name, raising=False)
        made.append(name)
        calls = package.parent / "calls.jsonl"
        return lambda: [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    yield make
    for name in made:
        sys.modules.pop(name, None)


def run(folder: Path, names: list[str], steps: range, base: float = 0.0, identity: str = IDENTITY) -> None:
    """A stage that logs base + step at each of the steps."""
    trackers = Trackers(names, folder, "x/ppo", CONFIG, identity)
    for step in steps:
        trackers.log(step, {"ppo/loss": base + step, "rollout/score": 0.5})
    trackers.close()


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tracking" / "tensorboard")).Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_a_name_that_is_unknown() -> None:
    assert faults(["tensorboard"]) == []
    assert faults(["tensorbord"]) == ["tracker 'tensorbord' is unknown; choose from tensorboard, wandb, trackio"]


def test_a_package_that_is_not_there_and_a_folder_of_logs_that_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    assert faults(["trackio", "wandb"]) == [
        "tracker 'wandb' is not installed: pip install wandb",
        "tracker 'trackio' is not installed: pip install trackio",
    ]


def test_tensorboard_shows_each_step_and_the_configuration(tmp_path: Path) -> None:
    run(tmp_path, ["tensorboard"], range(1, 5), base=10.0)
    assert scalars(tmp_path, "ppo/loss") == [(1, 11.0), (2, 12.0), (3, 13.0), (4, 14.0)]
    assert scalars(tmp_path, "rollout/score") == [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)]
    shown = read(tmp_path).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(shown).hparams
    assert values["lr"].number_value == 1e-4 and values["seed"].number_value == 3
    assert values["packing"].bool_value or values["packing"].number_value == 1
    texts = {name: values[name].string_value for name in ("model", "sizes", "target")}
    assert texts == {"model": "tiny", "sizes": '[1, "b"]', "target": "null"}


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    trackers = Trackers(["tensorboard"], tmp_path, "x", {}, IDENTITY)
    of_numpy: Any = np.float32(2.0)
    trackers.log(0, {"a": None, "b": math.nan, "c": math.inf, "d": of_numpy, "e": 3})
    trackers.close()
    assert sorted(read(tmp_path).Tags()["scalars"]) == ["d", "e"]
    assert (scalars(tmp_path, "d"), scalars(tmp_path, "e")) == ([(0, 2.0)], [(0, 3.0)])


def test_a_resumed_run_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    run(tmp_path, ["tensorboard"], range(1, 7))
    run(tmp_path, ["tensorboard"], range(4, 9), base=100.0)
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 104.0), (5, 105.0), (6, 106.0), (7, 107.0), (8, 108.0)]
    assert scalars(tmp_path, "ppo/loss") == expected
    assert [path.name for path in (tmp_path / "tracking").iterdir()] == ["tensorboard"]
    assert all(path.is_file() for path in (tmp_path / "tracking/tensorboard").iterdir()), "one run, not several"


def test_what_was_logged_is_on_disk_before_the_stage_ends(tmp_path: Path) -> None:
    trackers = Trackers(["tensorboard"], tmp_path, "x", {}, IDENTITY)
    trackers.log(1, {"a": 1.0})
    assert scalars(tmp_path, "a") == [(1, 1.0)]
    trackers.close()


def test_closed_trackers_record_nothing_more(tmp_path: Path, stand_in: StandIn) -> None:
    calls = stand_in("wandb")
    trackers = Trackers(["tensorboard", "wandb"], tmp_path, "x", {}, IDENTITY)
    trackers.close()
    trackers.close()
    trackers.log(1, {"a": 1.0})
    assert [call[0] for call in calls()] == ["init", "finish"]
    assert not (tmp_path / "tracking/tensorboard").exists()


def test_wandb_continues_the_run_of_the_same_identity(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    calls = stand_in("wandb")
    run(tmp_path / "ppo", ["wandb"], range(1, 3))
    run(tmp_path / "ppo", ["wandb"], range(2, 4))
    begun, one, two, ended, *again = calls()
    assert [one, two, ended] == [
        ["log", 1, {"ppo/loss": 1.0, "rollout/score": 0.5}],
        ["log", 2, {"ppo/loss": 2.0, "rollout/score": 0.5}],
        ["finish"],
    ]
    given = begun[1]
    assert (given["project"], given["name"], given["id"], given["resume"]) == ("lora-rlhf", "x/ppo", IDENTITY, "allow")
    assert given["config"] == CONFIG and given["allow_val_change"], "a resumed run may have changed harmless settings"
    assert given["reinit"] == "finish_previous", "an earlier stage's run, left open by an error, is not added to"
    assert Path(given["dir"]) == tmp_path / "ppo/tracking" and Path(given["dir"]).is_dir()
    assert again[0] == begun


@pytest.mark.slow
def test_wandb_alone_in_a_process_that_used_nothing_of_accelerate(tmp_path: Path, stand_in: StandIn) -> None:
    calls = stand_in("wandb")
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(tmp_path / "packages")!r})
from lora_rlhf.system.tracking import Trackers
trackers = Trackers(["wandb"], pathlib.Path({str(tmp_path)!r}), "x", {{}}, "0")
trackers.log(1, {{"a": 1.0}})
trackers.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [call[0] for call in calls()] == ["init", "log", "finish"]


def test_wandb_is_filed_under_the_project_of_the_environment(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    calls = stand_in("wandb")
    run(tmp_path, ["wandb"], range(0))
    assert calls()[0][1]["project"] == "mine"


def test_wandb_does_not_wait_for_ever_at_the_end(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("wandb")
    monkeypatch.delenv("WANDB_FINISH_TIMEOUT", raising=False)
    run(tmp_path, ["wandb"], range(0))
    assert float(os.environ["WANDB_FINISH_TIMEOUT"]) == 60
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "5")
    run(tmp_path, ["wandb"], range(0))
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "5"


def test_trackio_knows_a_run_by_a_name_with_its_identity(tmp_path: Path, stand_in: StandIn) -> None:
    calls = stand_in("trackio")
    run(tmp_path, ["trackio"], range(1, 2))
    run(tmp_path, ["trackio"], range(2, 3), identity="fedcba9876543210")
    given = [call[1] for call in calls() if call[0] == "init"]
    assert [one["name"] for one in given] == ["x/ppo 01234567", "x/ppo fedcba98"]
    assert (given[0]["project"], given[0]["resume"], given[0]["config"]) == ("lora-rlhf", "allow", CONFIG)
    assert [call[1] for call in calls() if call[0] == "log"] == [1, 2]


def test_an_error_in_the_middle_turns_off_that_tracker_alone_with_one_warning(
    tmp_path: Path, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    calls = stand_in("wandb", fails_at=2)
    with caplog.at_level(logging.WARNING, "lora_rlhf"):
        run(tmp_path, ["wandb", "tensorboard"], range(1, 5))
    assert [call[0] for call in calls()] == ["init", "log"]
    assert caplog.messages == ["wandb is off from now on (no route); metrics.jsonl has every figure"]
    assert [step for step, _ in scalars(tmp_path, "ppo/loss")] == [1, 2, 3, 4]


def test_an_error_at_the_beginning_is_a_warning_too(
    tmp_path: Path, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in("wandb", fails_at=0)
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking/tensorboard").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "lora_rlhf"):
        run(tmp_path, ["tensorboard", "wandb"], range(1, 4))
    assert [message.split(" is off")[0] for message in caplog.messages] == ["wandb", "tensorboard"]


def test_an_error_of_accelerate_itself_is_a_warning(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:  # as for some cards with an old driver
        raise NotImplementedError("Using RTX 4000 series")

    calls = stand_in("wandb")
    monkeypatch.setattr("accelerate.PartialState", refuse)
    with caplog.at_level(logging.WARNING, "lora_rlhf"):
        run(tmp_path, ["tensorboard", "wandb"], range(1, 4))
    assert [message.split(" is off")[0] for message in caplog.messages] == ["wandb", "tensorboard"]
    assert calls() == []


def test_a_full_disk_is_one_warning_and_the_stage_goes_on(tmp_path: Path) -> None:
    code = f"""
import logging, pathlib, resource
from lora_rlhf.system.tracking import Trackers
logging.basicConfig(format="%(message)s")
trackers = Trackers(["tensorboard"], pathlib.Path({str(tmp_path)!r}), "x", {{}}, "0")
trackers.log(1, {{"a": 1.0}})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, -1))
for step in range(2, 300):
    trackers.log(step, {{"a": 1.0}})
trackers.close()
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert done.stderr.count("tensorboard is off from now on") == 1
    assert 5 < len(scalars(tmp_path, "a")) < 200, "the limit was met"


def test_random_numbers_device_and_processes_stay_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)

    def state() -> tuple[Any, ...]:
        device = (torch.get_default_device(), torch.get_num_threads(), torch.distributed.is_initialized())
        return (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(), *device)

    before = state()
    run(tmp_path, ["tensorboard"], range(1, 4))
    assert state() == before


def test_without_names_nothing_is_imported_or_written(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
from lora_rlhf.system.tracking import Trackers, faults
assert faults([]) == []
faults(["tensorboard"])
trackers = Trackers([], pathlib.Path({str(tmp_path)!r}), "x", {{}}, "0")
trackers.log(1, {{"a": 1.0}})
trackers.close()
print([name for name in ("torch", "accelerate", "tensorboard", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_the_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path, ["wandb"], range(1, 4))
    (file,) = (tmp_path / "tracking/wandb").glob(f"offline-run-*/run-{IDENTITY}.wandb")
    assert b"rollout/score" in file.read_bytes()


def test_the_real_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    code = f"""
import pathlib
from lora_rlhf.system.tracking import Trackers
for steps in ((1, 2), (3,)):
    trackers = Trackers(["trackio"], pathlib.Path({str(tmp_path)!r}), "x", {{"a": [1]}}, "0123456789")
    for step in steps:
        trackers.log(step, {{"a": 1.0 + step}})
    trackers.close()
"""
    store = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store")}
    subprocess.run([sys.executable, "-c", code], capture_output=True, env=store, check=True)
    (database,) = (tmp_path / "store").glob("*.db")
    found = sqlite3.connect(database).execute("select run_name, step from metrics order by step").fetchall()
    assert found == [("x 01234567", 1), ("x 01234567", 2), ("x 01234567", 3)]
