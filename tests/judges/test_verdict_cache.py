"""The file of verdicts: kept by content, shared by processes, complete after a kill."""

import fcntl
import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.judges.cache import HEADER, Cache, hash_question
from lora_rlhf.system.errors import UserError

KEYS = [hash_question({"model": "m"}, "v", "prompt", "one", str(i)) for i in range(400)]


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_verdicts_come_back_from_the_file_and_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    cache = Cache(path)
    assert cache.get(KEYS[0]) is None
    verdicts: list[Any] = ["A", "B", "tie"]
    for key, verdict in zip(KEYS, verdicts, strict=False):
        cache.put(key, verdict, 'a "judge"')
    cache.put(KEYS[0], "B", "j")
    assert [Cache(path).get(key) for key in KEYS[:4]] == ["A", "B", "tie", None]
    assert rows(path)[1] == {"key": KEYS[0], "verdict": "A", "judge": 'a "judge"'}
    assert len(rows(path)) == 4


def test_every_part_of_the_content_is_in_the_key() -> None:
    parts: list[Any] = [{"model": "m"}, "v", "prompt", "one", "two"]
    changes: list[Any] = [{"model": "n"}, "w", "prompt ", "two", "one"]

    def changed(i: int) -> Any:
        return (*parts[:i], changes[i], *parts[i + 1 :])

    keys = {hash_question(*parts)} | {hash_question(*changed(i)) for i in range(5)}
    assert len(keys) == 6
    assert hash_question({"a": 1, "b": 2}, "v", "p", "x", "y") == hash_question({"b": 2, "a": 1}, "v", "p", "x", "y")
    assert hash_question({}, "v", "p", "ab", "c") != hash_question({}, "v", "p", "a", "bc")


@pytest.mark.parametrize("torn", [b'{"key": "', b"{", b'{"key": "' + b"0" * 64 + b'", "verdict": "A", "judge": "x"}'])
def test_a_row_that_a_kill_tore_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "j.jsonl"
    Cache(path).put(KEYS[0], "A", "j")
    complete = path.read_bytes()
    path.write_bytes(complete + torn)
    cache = Cache(path)
    assert cache.get(KEYS[0]) == "A" and cache.get("0" * 64) is None
    cache.put(KEYS[1], "B", "j")
    assert path.read_bytes().startswith(complete) and [row.get("verdict") for row in rows(path)] == [None, "A", "B"]


def test_a_first_line_that_a_kill_tore_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    for length in range(len(HEADER)):
        path.write_bytes(HEADER[:length])
        Cache(path).put(KEYS[0], "tie", "j")
        assert path.read_bytes().startswith(HEADER) and Cache(path).get(KEYS[0]) == "tie"


def test_of_two_verdicts_that_processes_wrote_the_first_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    first, second = Cache(path), Cache(path)
    first.put(KEYS[0], "A", "j")
    second.put(KEYS[0], "B", "j")
    assert len(rows(path)) == 3 and Cache(path).get(KEYS[0]) == "A"


def test_a_row_waits_for_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    cache = Cache(path)
    writing = threading.Thread(target=cache.put, args=(KEYS[0], "A", "j"))
    with path.open("ab") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        writing.start()
        writing.join(0.3)
        assert writing.is_alive() and path.read_bytes() == HEADER
    writing.join(30)
    assert Cache(path).get(KEYS[0]) == "A"


def test_invalid_rows_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    good = json.dumps({"key": KEYS[0], "verdict": "B", "judge": "j"})
    bad = ["[]", good.replace('"B"', '"C"'), good.replace(KEYS[0], KEYS[0][:-1]), "\x00", "[" * 10_000]
    path.write_bytes(HEADER + "\n".join([*bad, good, ""]).encode())
    assert Cache(path).get(KEYS[0]) == "B"


@pytest.mark.parametrize("content", ["prompt,answer\n", '{"prompt": "x"}\n', '{"judgements": 2}\n', "\n"])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"--judge_cache .*data.jsonl: holds something else"):
        Cache(path)
    assert path.read_text() == content


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written \\(No such file or directory\\)"):
        Cache(tmp_path / "no" / "j.jsonl")
    with pytest.raises(UserError, match="cannot be written \\(Is a directory\\)"):
        Cache(tmp_path)


def _write(path: Path, start: int) -> None:
    cache = Cache(path)
    for key in KEYS[start : start + 100]:
        cache.put(key, "A", "j" * 3000)  # more than one page: a write without a lock would be torn


def test_processes_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(path, 100 * number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cache = Cache(path)
    assert all(cache.get(key) == "A" for key in KEYS) and len(rows(path)) == 401
