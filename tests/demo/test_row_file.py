"""Rows that several processes add at once, one of which is killed: none is lost and none is half there."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from lora_rlhf_demo.rows import RowFile

from lora_rlhf.runs.folder import read_metrics
from lora_rlhf.system.errors import UserError

SPAWN = multiprocessing.get_context("spawn")


def add_rows(path: str, who: str, count: int) -> None:
    """Adds rows, and notes each in a file of its own once `add` has returned."""
    with open(f"{path}.{who}", "w") as done:
        for number in range(count):
            RowFile(Path(path)).add({"who": who, "number": number, "text": "ü\n" * 300})
            done.write(f"{number}\n")
            done.flush()


def test_two_processes_add_at_the_same_time_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    processes = [SPAWN.Process(target=add_rows, args=(str(path), who, 150)) for who in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    rows = RowFile(path).rows()
    for who in "ab":
        assert [row["number"] for row in rows if row["who"] == who] == list(range(150))
    assert len(path.read_bytes().splitlines()) == 300


def test_a_kill_while_saving_loses_no_saved_row_and_leaves_no_half_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    killed = SPAWN.Process(target=add_rows, args=(str(path), "killed", 100_000))
    killed.start()
    while not path.exists() or path.stat().st_size < 50_000:
        time.sleep(0.01)
    other = SPAWN.Process(target=add_rows, args=(str(path), "other", 100))
    other.start()
    time.sleep(0.3)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(60)
    other.join(60)
    rows = RowFile(path).rows()
    saved = (tmp_path / "rows.jsonl.killed").read_text().split()
    numbers = [row["number"] for row in rows if row["who"] == "killed"]
    assert numbers == list(range(len(numbers))) and len(saved) <= len(numbers) <= len(saved) + 1
    assert [row["number"] for row in rows if row["who"] == "other"] == list(range(100))
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_half_a_row_is_taken_off_before_the_next_is_added(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    file.add({"number": 0})
    with open(file.path, "a") as half:
        half.write('{"number": 1, "te')
    assert file.rows() == [{"number": 0}]
    file.add({"number": 2})
    assert file.rows() == [{"number": 0}, {"number": 2}]
    assert file.path.read_bytes().count(b"\n") == 2


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    file.add({"number": 0})
    before = file.path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.add({"number": 1})
    assert file.path.read_bytes() == before


def test_the_last_row_that_is_mine_is_taken_back(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    assert file.remove_last(lambda row: True) is None
    for number, who in enumerate("abab"):
        file.add({"who": who, "number": number})
    assert file.remove_last(lambda row: row["who"] == "a") == {"who": "a", "number": 2}
    assert [row["number"] for row in file.rows()] == [0, 1, 3]
    assert file.remove_last(lambda row: row["who"] == "c") is None


def test_what_is_no_row_is_passed_over(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    assert file.rows() == []
    file.path.write_bytes(b'{"a": 1}\n\xff\xfe\n[1]\nnot json\n{"a": 2}\n')
    assert file.rows() == [{"a": 1}, {"a": 2}]


def test_rows_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    file.path.write_bytes(b"\n" * 500_001)
    for call in (file.rows, lambda: file.add({"a": 1}), lambda: file.remove_last(lambda row: True)):
        with pytest.raises(UserError, match=r"rows.jsonl cannot be used: 500,001 rows, more than the 500,000"):
            call()
    with pytest.raises(UserError, match=r"rows.jsonl cannot be used: 500,001 rows"):
        read_metrics(file.path)
