"""promote and rollback: where the pointer leads, what is refused, and what a kill or a second process leaves."""

import json
import os
import random
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.cli.main import main
from lora_rlhf.release import pointer as moves
from lora_rlhf.release.config import PromoteConfig, RollbackConfig
from lora_rlhf.release.history import History
from lora_rlhf.release.pointer import promote, rollback
from lora_rlhf.runs.folder import adapter_hash
from lora_rlhf.runs.resume import Lock
from lora_rlhf.system.errors import UserError
from tests.support.releases import make_report, write_report

KILLS = 12


def make_export(folder: Path, identity: str = "ppo-id", adapter: str = "a" * 64) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    source = {"run": "first", "stage": "ppo", "id": identity, "adapter_sha256": adapter}
    (folder / "export.json").write_text(
        json.dumps({"format": 1, "source": source, "files": {"model.safetensors": "0"}})
    )
    return folder


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three exports a, b and c, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        make_export(Path("exports") / name, f"id-{name}")
    return Path("exports")


def put(name: str) -> int:
    return main(["promote", f"exports/{name}", "--to", "current", "--without_gate", "trying"])


def history() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(Path("current.history.json").read_text())["entries"]
    return entries


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says when it refuses; pointer and history are as before."""
    files = [Path("current"), Path("current.history.json")]
    before = [os.readlink(files[0]) if files[0].is_symlink() else None, files[1].exists() and files[1].read_bytes()]
    assert main(list(arguments)) == 2
    assert before == [
        os.readlink(files[0]) if files[0].is_symlink() else None,
        files[1].exists() and files[1].read_bytes(),
    ]
    return capsys.readouterr().err


def test_the_pointer_leads_where_it_was_promoted_to(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert put("a") == 0 and os.readlink("current") == "exports/a"
    assert (Path("current") / "model.safetensors").read_bytes() == b"weights"
    assert put("b") == 0 and os.readlink("current") == "exports/b"
    assert "current leads to exports/b now; before, to exports/a" in capsys.readouterr().out
    assert [(row["action"], row["to"], row["state"]) for row in history()] == [
        ("promote", "exports/a", "done"),
        ("promote", "exports/b", "done"),
    ]
    assert [(row["without_gate"], row["stage_id"]) for row in history()] == [("trying", "id-a"), ("trying", "id-b")]


def test_rollback_goes_back_one_by_one(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        assert put(name) == 0
    for name in "ba":
        assert main(["rollback", "--to", "current", "--reason", "users complain"]) == 0
        assert os.readlink("current") == f"exports/{name}"
    assert history()[-1]["reason"] == "users complain"
    assert "nothing was in use before that" in told(capsys, "rollback", "--to", "current")
    assert put("c") == 0 and main(["rollback", "--to", "current"]) == 0
    assert os.readlink("current") == "exports/a"


def test_a_pointer_in_another_folder_leads_there_by_a_relative_path(exports: Path) -> None:
    Path("served").mkdir()
    assert main(["promote", "exports/a", "--to", "served/current", "--without_gate", "trying"]) == 0
    assert os.readlink("served/current") == "../exports/a"
    assert str(Path.cwd()) not in Path("served/current.history.json").read_text()


def test_a_gate_that_this_policy_passed_lets_it_through(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "--candidate", "first", "--signed_off_by", "Ada"]) == 0
    record = next((run / "gate").iterdir())
    make_export(Path("good"), adapter=adapter_hash(run / "ppo"))
    make_export(Path("other"), "other-id", adapter_hash(run / "ppo"))
    make_export(Path("stale"))
    assert "good/gate: no record" in told(capsys, "promote", "good", "--to", "current", "--gate", "good")
    assert main(["promote", "good", "--to", "current", "--gate", "first"]) == 0
    assert history()[0]["gate"]["record"] == record.name and "signed off by Ada" in history()[0]["gate"]["summary"]
    assert "is about the stage ppo-id" in told(capsys, "promote", "other", "--to", "current", "--gate", str(record))
    assert "another adapter" in told(capsys, "promote", "stale", "--to", "current", "--gate", str(record))
    record.write_text(record.read_text().replace("Ada", "Bob"))
    assert "was changed after" in told(capsys, "promote", "stale", "--to", "current", "--gate", str(record))


def test_a_gate_that_failed_lets_nothing_through(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report(run)
    report["audit"]["flags"]["length_inflation"]["raised"] = True
    write_report(run, report)
    with pytest.raises(SystemExit):
        main(["gate", "--candidate", "first"])
    record = next((run / "gate").iterdir())
    make_export(Path("export"), adapter=adapter_hash(run / "ppo"))
    assert "did not pass (fail on" in told(capsys, "promote", "export", "--to", "current", "--gate", str(record))
    time.sleep(0.01)
    write_report(run, make_report(run))
    assert main(["gate", "--candidate", "first"]) == 0
    assert main(["promote", "export", "--to", "current", "--gate", "first"]) == 0, "the newest record counts"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exports/a", "--to", "current"], "no gate: give --gate RECORD"),
        (["exports/a", "--to", "current", "--without_gate", " "], "say why in a few words"),
        (["exports/a", "--to", "current", "--without_gate", "x", "--gate", "y"], "give one of them"),
        (["exports/a", "--to", "current", "--gate", "none.json"], "none.json cannot be used: not there"),
        (["exports/none", "--to", "current", "--without_gate", "x"], "not a folder"),
        (["exports", "--to", "current", "--without_gate", "x"], "holds no finished export"),
        (["exports/a", "--to", "none/current", "--without_gate", "x"], "the folder none is not there"),
        (["exports/a", "--to", "exports/b", "--without_gate", "x"], "is not a symbolic link"),
    ],
)
def test_what_cannot_be_promoted_is_refused(
    exports: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in told(capsys, "promote", *arguments)


def test_an_export_that_lost_a_file_is_refused(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (exports / "a" / "model.safetensors").unlink()
    said = told(capsys, "promote", "exports/a", "--to", "current", "--without_gate", "x")
    assert "'model.safetensors' is not there any more" in said


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"source": {"id": "../.."}, "files": {}}', '{"source": {"id": "x"'])
def test_a_manifest_of_something_else_is_refused(
    exports: Path, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (exports / "a" / "export.json").write_text(manifest)
    assert "export.json" in told(capsys, "promote", "exports/a", "--to", "current", "--without_gate", "x")


def test_the_same_export_is_not_promoted_twice(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert put("a") == 0
    arguments = ["--to", "current", "--without_gate", "x"]
    assert "leads to exports/a already" in told(capsys, "promote", "exports/a", *arguments)
    assert "leads to exports/a already" in told(capsys, "promote", "current", *arguments)


def test_rollback_refuses_what_is_gone_or_was_replaced(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such pointer" in told(capsys, "rollback", "--to", "current")
    assert put("a") == 0 and put("b") == 0
    manifest = (exports / "a" / "export.json").read_text()
    (exports / "a" / "export.json").write_text(manifest.replace("id-a", "id-x"))
    assert "another export is there" in told(capsys, "rollback", "--to", "current")
    (exports / "a" / "export.json").unlink()
    assert "holds no finished export" in told(capsys, "rollback", "--to", "current")


def test_a_pointer_that_was_moved_by_hand_is_noted_and_can_be_gone_back_to(exports: Path) -> None:
    os.symlink("exports/c", "current")
    assert put("a") == 0
    Path("current").unlink()
    os.symlink("exports/b", "current")
    assert put("c") == 0
    assert [(row["action"], row["to"]) for row in history()] == [
        *(("found", "exports/c"), ("promote", "exports/a"), ("found", "exports/b"), ("promote", "exports/c")),
    ]
    for name in "bac":
        assert main(["rollback", "--to", "current"]) == 0
        assert os.readlink("current") == f"exports/{name}"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"format": 2, "entries": []}',
        '{"format": 1, "entries": [1]}',
        '{"format": 1, "entries": [{"action": "promote", "to": "a", "state": "gone", "time": "now"}]}',
        '{"format": 1, "entries": [{"action": "rollback", "to": "a", "state": "done", "time": "now"}]}',
    ],
)
def test_a_history_that_is_none_is_refused(exports: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert put("a") == 0
    Path("current.history.json").write_text(text)
    for arguments in (["promote", "exports/b", "--without_gate", "x"], ["rollback"]):
        assert "current.history.json" in told(capsys, *arguments, "--to", "current")


def test_a_second_process_is_told_to_wait(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert put("a") == 0
    lock = Lock(Path(".current.lock"))
    lock.acquire()
    said = told(capsys, "promote", "exports/b", "--to", "current", "--without_gate", "x")
    assert f"process {os.getpid()}" in said and "wait for it, then give the command again" in said
    lock.release()
    assert put("b") == 0


def test_many_at_once_leave_one_history(exports: Path) -> None:
    """Two threads with a lock each, as two processes have: every promotion is in the history, and they alternate."""
    made: list[str] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(20):
            name = draw.choice("abc")
            try:
                promote(PromoteConfig(folder=f"exports/{name}", to="current", without_gate="trying"))
                made.append(name)
            except UserError:  # the other one is at it, or it leads there already
                time.sleep(0.002)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = history()
    assert len(entries) == len(made) > 2 and sorted(row["to"][-1] for row in entries) == sorted(made)
    assert {row["state"] for row in entries} == {"done"} and entries[-1]["to"] == os.readlink("current")
    assert all(one["to"] != other["to"] for one, other in pairwise(entries))


@pytest.mark.kill
def test_a_kill_at_any_instant_leaves_the_old_or_the_new_pointer(exports: Path) -> None:
    """Real processes that promote and roll back without end, killed with SIGKILL at random instants."""
    draw, seen = random.Random(0), set()
    put("a")
    for _ in range(KILLS):
        begun, begins = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(begins, b"!")
                _move_for_ever(draw.random())
            finally:
                os._exit(1)
        os.read(begun, 1)
        os.close(begun)
        os.close(begins)
        time.sleep(draw.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raw = history()  # whole, whenever the kill came
        seen.add(raw[-1]["state"])
        target = os.readlink("current")
        assert (Path("current") / "export.json").is_file()
        read = History.read(Path("current"))
        assert read.targets_in_use[-1] == target and all(row["action"] != "found" for row in read.entries)
        assert {row["state"] for row in read.entries} <= {"done", "stopped"}
    assert seen >= {"moving", "done"}  # else no kill came in the middle of a move
    assert put("c") in (0, 2) and os.readlink("current") == "exports/c"
    assert list(Path(".").glob(".current.*.tmp")) == []


def _move_for_ever(seed: float) -> None:
    draw = random.Random(seed)
    while True:
        try:
            if draw.random() < 0.3:
                rollback(RollbackConfig(to="current"))
            else:
                promote(PromoteConfig(folder=f"exports/{draw.choice('abc')}", to="current", without_gate="trying"))
        except UserError:
            continue


@pytest.mark.parametrize("after", ["write", "symlink", "sync"])
def test_a_failure_between_two_steps_is_told_from_the_pointer(
    exports: Path, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails right after the intention is written, the new link is made, or the pointer is moved."""
    put("a")

    def failing(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> None:
            function(*arguments, **named)
            raise OSError(28, "No space left on device")

        return call

    with monkeypatch.context() as patch:
        if after == "write":
            patch.setattr(moves.History, "write", failing(moves.History.write))
        else:
            place = moves.os if after == "symlink" else moves
            patch.setattr(place, after, failing(getattr(place, after)))
        assert put("b") == 1
    leads = "exports/b" if after == "sync" else "exports/a"
    assert os.readlink("current") == leads
    read = History.read(Path("current"))
    assert read.targets_in_use[-1] == leads and read.entries[-1]["state"] == ("done" if after == "sync" else "stopped")
    assert put("c") == 0 and main(["rollback", "--to", "current"]) == 0
    assert os.readlink("current") == leads


def test_no_reader_ever_finds_no_pointer(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old pointer stands until the very call that puts the new one in its place."""
    put("a")
    seen: list[str] = []
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        if Path(target).name == "current":
            seen.append(os.readlink("current"))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    assert put("b") == 0 and main(["rollback", "--to", "current"]) == 0
    assert seen == ["exports/a", "exports/b"]
