"""Full disks, failing disks, jumping clocks, deleted folders, signals: one clear line, and the same command goes on."""

import builtins
import contextlib
import errno
import io
import itertools
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xxhash
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from lora_rlhf.cli.main import main
from lora_rlhf.model import adapters
from lora_rlhf.stages import reward, sampler
from lora_rlhf.stages.trainer import Trainer
from lora_rlhf.system import disk, plain_files
from tests.support.stages import DEMONSTRATIONS, RANKINGS, manifest, rows_of, write_rows

pytestmark = pytest.mark.slow

YEAR = 365 * 24 * 3600
SOON = 20.0  # seconds that a busy machine may take for what is a matter of one or two
LIMITS = "--max_prompt_tokens 48 --max_response_tokens 16 --save_every 1 --device cpu"
COMMANDS = {
    "sft": f"sft --run {{run}} --model {{root}}/model --demonstrations {{root}}/demonstrations.jsonl --batch_size 3 "
    f"--epochs 1 --lora_rank 2 --lora_dropout 0.1 --learning_rate 5e-3 --validation_fraction 0 {LIMITS}",
    "reward": f"reward --run {{run}} --sft {{root}}/parents/sft --rankings {{root}}/rankings.jsonl --batch_size 3 "
    f"--epochs 1 {LIMITS}",
    "ppo": f"ppo --run {{run}} --sft {{root}}/parents/sft --prompts {{root}}/prompts.jsonl --iterations 3 "
    f"--batch_size 4 --minibatch_size 2 --num_epochs 1 --warmup_iterations 0 --max_kl null --engine static "
    f"--reward_model_weight 0 --reward_function tests.support.waiting_reward:judge {LIMITS}",
    "sample": "sample --run {root}/parents --prompts {root}/prompts.jsonl --to {run}/candidates.jsonl "
    "--min_responses 2 --max_responses 3 --generation_batch_size 8 --max_prompt_tokens 48 --max_response_tokens 6 "
    "--engine plain --device cpu",
}
VARYING = ("seconds", "time/", "memory/", "peak_")  # how the keys begin of what no two runs share


@dataclass
class Result:
    """How a command ended and what it said."""

    status: int
    said: str


@dataclass
class Place:
    """The data and parents that all tests read, and the run of one test."""

    root: Path
    run: Path
    capture: pytest.CaptureFixture[str]

    def words(self, stage: str, *more: str) -> list[str]:
        return [*COMMANDS[stage].format(root=self.root, run=self.run).split(), *more]

    def command(self, stage: str, *more: str) -> Result:
        """Runs it in this process."""
        self.capture.readouterr()
        status = main(self.words(stage, *more))
        captured = self.capture.readouterr()
        return Result(status, captured.out + captured.err)

    def undisturbed(self, stage: str) -> dict[str, Any]:
        """What the stage leaves where nothing happens; computed once."""
        run = self.root / "undisturbed"
        if not (run / stage).exists():
            assert Place(self.root, run, self.capture).command(stage).status == 0
        return contents(run / stage)

    def goes_on(self, stage: str, resumed: bool = True) -> None:
        """The same command, now that the fault is gone, leaves what an undisturbed run leaves."""
        assert self.command(stage).status == 0
        assert_same(contents(self.run / stage), self.undisturbed(stage))
        assert bool(manifest(self.run, stage).get("resumed")) == resumed
        assert not list(self.run.rglob(".*.tmp*"))


@pytest.fixture(scope="session")
def root(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and a finished SFT stage in `parents`; do not write to it."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "model").symlink_to(tiny_model("llama"))
    write_rows(folder / "demonstrations.jsonl", DEMONSTRATIONS[:9])
    write_rows(folder / "rankings.jsonl", RANKINGS[:9])
    write_rows(folder / "prompts.jsonl", ({"prompt": row["prompt"]} for row in DEMONSTRATIONS[:9]))
    assert main(COMMANDS["sft"].format(root=folder, run=folder / "parents").split()) == 0
    return folder


@pytest.fixture
def place(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Place]:
    logger, level = logging.getLogger("lora_rlhf"), logging.getLogger("lora_rlhf").level
    yield Place(root, tmp_path / "run", capsys)
    logger.setLevel(level)


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(VARYING)}


def contents(folder: Path) -> dict[str, Any]:
    """Everything that a finished stage leaves, its checkpoints included, but for times, memory, names and dates."""
    found: dict[str, Any] = {
        f"{path.relative_to(folder)}:{name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }
    made = manifest(folder.parent, folder.name)
    found["metrics"] = [plain(row) for row in rows_of(folder.parent, folder.name)]
    if (folder / "samples.jsonl").exists():
        found["samples"] = rows_of(folder.parent, folder.name, "samples.jsonl")
    return found | {"status": made["status"], "results": plain(made["results"])}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit. Of checkpoints those that both still have: a run that was stopped has one more in place of one."""
    both = one.keys() & other.keys()
    assert all(name.startswith("checkpoints/") for name in one.keys() ^ other.keys())
    for name in sorted(both):
        value = one[name]
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


def require_whole(run: Path) -> None:
    """Every file that has its final name is what was written; only one that grows may end in a cut line."""
    for path in (path for path in sorted(run.rglob("*")) if path.is_file()):
        if any(part.endswith(".tmp") for part in path.parts):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict), path
        elif path.suffix == ".safetensors":
            assert load_file(path), path
        elif path.suffix == ".jsonl":
            *lines, _cut = path.read_text().split("\n")
            assert all(isinstance(json.loads(line), dict) for line in lines), path
    for folder in run.rglob("step-*"):
        record = json.loads(json.loads((folder / "checkpoint.json").read_text())["record"])
        for name, expected in record["files"].items():
            assert xxhash.xxh3_128((folder / name).read_bytes()).hexdigest() == expected, folder / name


def require_clear(result: Result, status: int, *parts: str) -> str:
    """One line says what is wrong and of which file; returns it."""
    assert result.status == status, result.said
    assert "Traceback" not in result.said
    (line,) = [line for line in result.said.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line, (part, line)
    return line


@dataclass
class Disk:
    """Counts the writes beneath a folder, and lets them fail from number `full_at` on: a full disk stays full.

    As the kernel has it, the first write that does not fit is cut short, and says so by its count alone.
    """

    root: Path
    full_at: int | None = None
    number: int = errno.ENOSPC
    sites: list[str] = field(default_factory=list)

    def fails(self, what: str, path: Any) -> bool:
        """Notes a write; whether it is to fail."""
        if not Path(os.fsdecode(path)).is_relative_to(self.root):
            return False
        name = re.sub(r"\.[0-9a-f]{8}\.tmp|\d{4,}", "", str(Path(os.fsdecode(path)).relative_to(self.root)))
        self.sites.append(f"{what} {name}")
        return self.full_at is not None and len(self.sites) > self.full_at

    def error(self, *names: Any) -> OSError:
        return OSError(self.number, os.strerror(self.number), *names)


@contextlib.contextmanager
def writes_through(faulty: Disk) -> Iterator[Disk]:
    """Inside the block all writes go through `faulty`."""
    plain_open = builtins.open

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            if not faulty.fails("write", self.name):
                return super().write(data)
            if len(faulty.sites) == (faulty.full_at or 0) + 1 and len(data) > 1:
                return super().write(bytes(data)[: len(data) // 2])
            raise faulty.error()

    def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        writes = set(mode) & set("wax+") and isinstance(file, str | os.PathLike)
        if not writes or not Path(os.fsdecode(file)).is_relative_to(faulty.root):
            return plain_open(file, mode, buffering, *args, **kwargs)
        if not os.path.exists(file) and faulty.fails("create", file):
            raise faulty.error(str(file))
        raw = File(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    def opened_plainly(file: Any, mode: str = "r", **kwargs: Any) -> Any:
        if not set(mode) & set("wax+") or not Path(os.fsdecode(file)).is_relative_to(faulty.root):
            return io.FileIO(file, mode, **kwargs)
        if not os.path.exists(file) and faulty.fails("create", file):
            raise faulty.error(str(file))
        return File(file, mode, **kwargs)

    def checked(function: Callable[..., Any], what: str, named: bool = True) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
            if faulty.fails(what, args[0] if what in ("replace", "rename") else where):
                raise faulty.error(*([str(path)] if named else []))
            return function(path, *args, **kwargs)

        return call

    def saved(tensors: Any, path: Any, metadata: Any = None) -> None:
        if faulty.fails("save", path):
            Path(path).write_bytes(b"half of it")
            raise SafetensorError(f"I/O error: {os.strerror(faulty.number)} (os error {faulty.number})")
        save_file(tensors, path, metadata=metadata)

    save_file = adapters.save_file
    with pytest.MonkeyPatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        patch.setattr(plain_files, "io", SimpleNamespace(FileIO=opened_plainly))
        for name in ("replace", "rename", "mkdir"):
            patch.setattr(os, name, checked(getattr(os, name), name))
        patch.setattr(os, "fsync", checked(os.fsync, "fsync", named=False))
        patch.setattr(adapters, "save_file", saved)
        yield faulty


def last_of_each(sites: list[str], *parts: str) -> dict[str, int]:
    """The number of the last write of each kind whose name has one of these parts: when there is most to lose."""
    return {site: number for number, site in enumerate(sites) if any(part in site for part in parts)}


# What the kernel is asked for, by kind and by name; a number or a temporary ending in a name is left out.
WRITES = {
    "sft": ("write run/sft/metrics.jsonl", "save run/sft/checkpoints/.step-/state", "replace run/sft/manifest"),
    "ppo": ("fsync run/ppo/samples.jsonl", "rename run/ppo/checkpoints/step-", "save run/ppo/.value_adapter"),
    "reward": (
        *(
            "mkdir run/.reward",
            "create run/.reward/.config.yaml",
            "write run/.reward/.config.yaml",
            "rename run/reward",
        ),
        *("fsync run/.reward/.config.yaml", "replace run/.reward/config.yaml", "create run/reward/metrics.jsonl"),
        *("mkdir run/reward/checkpoints/.step-", "fsync run/.reward", "fsync run/reward/checkpoints"),
        *("write run/reward/metrics.jsonl", "fsync run/reward/metrics.jsonl", "/.reward/adapter_model.safetensors"),
        *("write run/reward/checkpoints/.step-/.reward/adapter_config", "save run/reward/checkpoints/.step-/state"),
        *("write run/reward/checkpoints/.step-/.checkpoint.json", "fsync run/reward/checkpoints/.step-/checkpoint"),
        *("rename run/reward/checkpoints/step-", "rename run/reward/adapter", "write run/reward/.manifest.json"),
    ),
}


@pytest.mark.parametrize(
    "stage", ["sft", *(pytest.param(stage, marks=pytest.mark.long) for stage in ("reward", "ppo"))]
)
def test_a_disk_that_is_full_at_any_write_costs_nothing_that_was_saved(place: Place, stage: str) -> None:
    folder = place.run.parent
    with writes_through(Disk(folder)) as counting:
        assert place.command(stage).status == 0
    assert_same(contents(place.run / stage), place.undisturbed(stage))
    found = last_of_each(counting.sites, *WRITES[stage])
    for part in WRITES[stage]:
        assert any(part in site for site in found), part
    for site, number in found.items():
        shutil.rmtree(place.run)
        with writes_through(Disk(folder, full_at=number)) as full:
            result = place.command(stage)
        assert full.sites[number] == site
        made = (place.run / stage).exists()
        line = require_clear(result, 1 if made else 2, "No space left on device", str(place.run / stage))
        assert ".tmp" not in line and ("while writing" if made else "cannot be made") in line, (site, line)
        if site.startswith(f"write run/{stage}/metrics"):
            assert "metrics.jsonl" in line
        require_whole(place.run)
        saved = sum(done == f"rename run/{stage}/checkpoints/step-" for done in full.sites[:number])
        assert len(list(place.run.rglob("step-*"))) == min(saved, 2) or saved == 0, site
        place.goes_on(stage, resumed=saved > 0)


def stopped_at(place: Place, stage: str, step: int, what: Callable[[], None]) -> Result:
    """Runs a command; does something before the boundary after a step."""
    boundary = Trainer.save_or_stop

    def watching(self: Trainer, done: int, *args: Any, **kwargs: Any) -> None:
        if done == step:
            what()
        boundary(self, done, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_or_stop", watching)
        return place.command(stage)


def interrupted(place: Place, stage: str = "reward", step: int = 2) -> None:
    assert stopped_at(place, stage, step, lambda: os.kill(os.getpid(), signal.SIGTERM)).status == 143


def test_a_disk_that_is_full_when_a_run_goes_on_costs_nothing(place: Place) -> None:
    interrupted(place)
    for full_at in (0, 1, 4):
        with writes_through(Disk(place.run.parent, full_at)):
            require_clear(place.command("reward"), 1, "No space left on device", str(place.run))
        require_whole(place.run)
        assert len(list(place.run.rglob("step-*"))) == 2
    place.goes_on("reward")


def test_a_run_folder_that_cannot_be_made_is_said(place: Place) -> None:
    for number in (errno.ENOSPC, errno.EROFS, errno.EACCES):
        with writes_through(Disk(place.run.parent, 0, number)):
            require_clear(place.command("reward"), 2, f"{place.run}/reward: cannot be made", os.strerror(number))
    place.goes_on("reward", resumed=False)


def test_a_row_that_does_not_fit_is_an_error_not_half_a_row(tmp_path: Path) -> None:
    """The kernel writes what fits and says how much that was; a limit on the size of files is a full disk to it."""
    path, limits = tmp_path / "rows.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("x" * (1 << 16))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((1 << 16) + 4, limits[1]))
        with pytest.raises(OSError, match=r"File too large, while writing: '.*rows\.jsonl'"):
            disk.append_row(path, {"step": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_for_temporary_files_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        require_clear(place.command("reward"), 1, "No space left on device", "TMPDIR")
    place.goes_on("reward", resumed=False)


def test_a_checkpoint_that_cannot_be_read_is_passed_over(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(place)
    record = place.run / "reward" / "checkpoints" / "step-00000002" / "checkpoint.json"
    record.unlink()
    record.symlink_to("/proc/self/mem")
    with caplog.at_level("INFO", "lora_rlhf"):
        place.goes_on("reward")
    assert re.search(r"step-00000002 is damaged \(.*is a symbolic link", caplog.text)
    assert "step-00000001" in caplog.text.partition("going on from")[2]


def test_a_data_file_that_cannot_be_read_is_named(place: Place, tmp_path: Path) -> None:
    rankings = tmp_path / "rankings.jsonl"
    rankings.symlink_to("/proc/self/mem")
    result = place.command("reward", "--rankings", str(rankings))
    assert result.status in (1, 2)
    require_clear(result, result.status, str(rankings), "Input/output error")
    assert not place.run.exists()


def test_a_clock_that_jumps_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    now, now_ns, jumps = time.time, time.time_ns, itertools.cycle([-YEAR, YEAR, 0])
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + next(jumps))
        patch.setattr(time, "time_ns", lambda: now_ns() + next(jumps) * 10**9)
        interrupted(place, "ppo", 1)
        place.goes_on("ppo")
    assert 0 <= manifest(place.run, "ppo")["seconds"] < YEAR / 2
    times = [value for row in rows_of(place.run, "ppo") for key, value in row.items() if key.startswith("time/")]
    assert times and all(0 <= value < YEAR / 2 for value in times)


def test_runs_have_different_names_when_the_clock_stands_still(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    names = []
    for _ in range(2):
        assert place.command("reward", "--overwrite").status == 0
        names.append(manifest(place.run, "reward")["id"])
    assert names[0] != names[1]


def test_a_run_that_is_a_file_is_said(place: Place) -> None:
    place.run.write_text("mine")
    require_clear(place.command("reward"), 2, f"{place.run}/reward: cannot be made", "File exists")
    assert place.run.read_text() == "mine"
    place.run.unlink()
    place.goes_on("reward", resumed=False)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("what", ["run", "stage"])
def test_a_folder_that_is_deleted_under_a_run_ends_it(place: Place, what: str, step: int) -> None:
    """It is not made anew without what stood in it."""
    gone = place.run if what == "run" else place.run / "reward"
    result = stopped_at(place, "reward", step, lambda: shutil.rmtree(gone))
    require_clear(result, 1, "No such file or directory", str(place.run / "reward"))
    assert not (place.run / "reward" / "manifest.json").exists()
    place.goes_on("reward", resumed=False)


def test_a_lock_that_cannot_be_written_is_said(place: Place) -> None:
    interrupted(place)
    lock = place.run / ".reward.lock"
    lock.unlink()
    lock.mkdir()
    require_clear(place.command("reward"), 1, str(lock), "Is a directory")
    lock.rmdir()
    place.goes_on("reward")


def run_command(words: list[str], said: Path, waits: Path | None, most_bytes: int | None) -> None:
    """What a process of its own does: one command, its words into a file."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if waits is not None:
        os.environ["WAITS"] = str(waits)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.exit(main(words))


@dataclass
class Child:
    """A command in a real process of its own."""

    process: ForkServerProcess
    said: Path
    gate: Path

    def wait_for(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 3 * SOON
        while not condition():
            assert self.process.is_alive() and time.monotonic() < until, self.said.read_text()
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)

    def end(self) -> Result:
        self.process.join(SOON)
        assert self.process.exitcode is not None, f"still running after {SOON} s: {self.said.read_text()}"
        return Result(self.process.exitcode, self.said.read_text())


@pytest.fixture
def start(place: Place) -> Iterator[Callable[..., Child]]:
    """start(stage) -> the command in a process; start(stage, wait=True) -> in the middle of PPO's second iteration."""
    context = multiprocessing.get_context("forkserver")  # imports once what all of them need
    context.set_forkserver_preload(["lora_rlhf.cli.main", "lora_rlhf.stages.ppo", "peft", "tests.test_faults"])
    children = []

    def make(stage: str, wait: bool = False, most_bytes: int | None = None) -> Child:
        said, held = place.run.parent / "said.txt", place.run.parent / "gate"
        arguments = (place.words(stage), said, held if wait else None, most_bytes)
        if wait:
            held.touch()
        child = Child(context.Process(target=run_command, args=arguments), said, held)
        children.append(child)
        child.process.start()
        if wait:
            child.wait_for(held.with_suffix(".reached").exists)
        return child

    yield make
    for child in children:
        if child.process.is_alive():
            child.process.kill()
        child.process.join()


def test_a_limit_on_the_size_of_files_is_a_full_disk(place: Place, start: Callable[..., Child]) -> None:
    result = start("reward", most_bytes=1 << 14).end()
    require_clear(result, 1, "File too large", f"{place.run}/reward/checkpoints/step-00000001")
    require_whole(place.run)
    place.goes_on("reward", resumed=False)


def test_a_second_process_is_kept_out_and_sigterm_ends_the_first_after_it_saved(
    place: Place, start: Callable[..., Child]
) -> None:
    first = start("ppo", wait=True)
    began = time.monotonic()
    line = require_clear(place.command("ppo"), 2, "another process is at work there", f"process {first.process.pid}")
    assert str(place.run) in line and time.monotonic() - began < SOON / 4
    first.signal(signal.SIGTERM)
    first.wait_for(lambda: "finishing this iteration and saving" in first.said.read_text())
    first.gate.unlink()
    result = first.end()
    assert result.status == 143 and "everything is saved. Give the same command again" in result.said
    assert "Traceback" not in result.said
    require_whole(place.run)
    assert {path.name for path in place.run.rglob("step-*")} == {"step-00000001", "step-00000002"}
    place.goes_on("ppo")


def test_a_second_ctrl_c_ends_a_run_at_once(place: Place, start: Callable[..., Child]) -> None:
    child = start("ppo", wait=True)
    child.signal(signal.SIGINT)
    child.wait_for(lambda: "Ctrl-C again stops at once" in child.said.read_text())
    child.signal(signal.SIGINT)
    result = child.end()  # the step never ends: the gate is closed
    assert result.status == 130 and "\ninterrupted" in result.said and "Traceback" not in result.said
    require_whole(place.run)
    assert [path.name for path in place.run.rglob("step-*")] == ["step-00000001"]
    place.goes_on("ppo")


def test_ctrl_c_while_the_model_is_loaded_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(reward, "open_parent_base", pressed)
        result = place.command("reward")
    assert result.status == 130 and "interrupted" in result.said and "Traceback" not in result.said
    assert not place.run.exists()
    place.goes_on("reward", resumed=False)


@pytest.mark.parametrize("fault", ["SIGTERM", "two Ctrl-C", "full disk"])
def test_what_was_sampled_is_kept(place: Place, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    to, calls, generate = place.run / "candidates.jsonl", [], sampler.generate_seeded
    assert place.command("sample").status == 0
    expected = to.read_bytes()
    to.unlink()

    def third(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            for number in {"SIGTERM": [signal.SIGTERM], "two Ctrl-C": [signal.SIGINT] * 2}.get(fault, []):
                os.kill(os.getpid(), number)
        return generate(*args, **kwargs)

    with monkeypatch.context() as patch, writes_through(Disk(place.run, 4 if fault == "full disk" else None)):
        patch.setattr(sampler, "generate_seeded", third)
        result = place.command("sample")
    assert result.status == {"SIGTERM": 143, "two Ctrl-C": 130}.get(fault, 1) and "Traceback" not in result.said
    partial = place.run / ".candidates.jsonl.partial"
    if fault == "full disk":
        require_clear(result, 1, "No space left on device", str(partial))
    assert not to.exists()
    kept = partial.read_bytes().count(b"\n") - 1  # the first line says of what
    assert kept == {"SIGTERM": 3, "two Ctrl-C": 2}.get(fault, kept) and kept >= 1
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "generate_seeded", third) if fault != "SIGTERM" else None
        fault = "none"
        assert place.command("sample").status == 0
    assert to.read_bytes() == expected and not partial.exists()
    assert not calls or len(calls) == 9 - kept
