"""Spools: lists on disk that give back exactly what was put in, whatever the order of reads and writes."""

import gc
import os
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.data.encode import EncodedExample, EncodedPrompt, EncodedRanking
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.spool import Spool, make_example_spool, make_prompt_spool, make_ranking_spool


def plain(folder: Path | None = None) -> Spool[Any]:
    return Spool(lambda item: item, lambda row: row, folder)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process can not grow beyond 400,000 bytes: a disk that fills up, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_spool_is_a_sequence() -> None:
    spool = plain()
    assert len(spool) == 0 and not spool and list(spool) == []
    items = [[], [1], "zwei", {"drei": None}, [1.5, "vier\nfünf"], ""]
    spool.extend(iter(items[:4]))
    for item in items[4:]:
        spool.append(item)
    assert len(spool) == 6
    assert list(spool) == items
    assert [spool[place] for place in (5, 0, 3, -1, -6)] == ["", [], {"drei": None}, "", []]
    assert "zwei" in spool and "drei" not in spool
    assert list(reversed(spool)) == items[::-1]


@pytest.mark.parametrize("index", [2, -3, 10**20])
def test_an_index_outside_is_an_error(index: int) -> None:
    spool = plain()
    spool.extend(["a", "b"])
    with pytest.raises(IndexError, match="of a spool of 2"):
        spool[index]


@pytest.mark.parametrize("index", [slice(0, 1), "0", 0.0, None])
def test_an_index_that_is_no_number_is_an_error(index: Any) -> None:
    spool = plain()
    spool.append("a")
    with pytest.raises(TypeError):
        spool[index]


def test_reads_and_writes_in_any_order() -> None:
    spool = plain()
    items = [f"{number}" * (number % 700) for number in range(3000)]  # longer than what is kept back before writing
    for place, item in enumerate(items):
        spool.append(item)
        if place % 97 == 0:
            assert spool[-1] == item
            assert spool[place // 2] == items[place // 2]
    assert list(spool) == items


def test_what_was_read_is_not_what_is_stored() -> None:
    spool = plain()
    spool.append([1, 2])
    spool[0].append(3)
    assert spool[0] == [1, 2]


def test_examples_come_back() -> None:
    examples = [EncodedExample([0, 1, 2**31 - 1], [7]), EncodedExample([5], list(range(4000))), EncodedExample([], [])]
    spool = make_example_spool()
    spool.extend(examples)
    assert list(spool) == examples


def test_rankings_come_back() -> None:
    rankings = [EncodedRanking([1, 2], [[3], [4, 5], [6]], [2, 1, 2]), EncodedRanking([9], [[8], []], [1, 2])]
    spool = make_ranking_spool()
    spool.extend(rankings)
    assert list(spool) == rankings


def test_prompts_come_back_with_all_that_they_hold() -> None:
    turns = (
        Message("system", "Be brief.\x00\x1b[31m"),
        Message("user", "Größe? 日本語 🐈 \u2028 \\ \" 'x'\r\n"),
        Message("assistant", ""),
        Message("user", "</s>\tund"),
    )
    meta = {"a": None, "b": [True, 1, 1.0, 0.1, -0.0, 1e300], "c": {"d": "\ud800 half", "ä": 2**70}, "": []}
    prompts = [
        EncodedPrompt([1, 2, 3], Prompt(turns, meta, "data/train ü.jsonl:17")),
        EncodedPrompt([], Prompt.of("x")),
    ]
    spool = make_prompt_spool()
    spool.extend(prompts)
    assert list(spool) == prompts
    first = spool[0].prompt
    assert first.origin == "data/train ü.jsonl:17"  # equality of prompts does not look at it
    assert spool[1].prompt.origin == ""
    assert repr(first.meta) == repr(meta)  # 1, 1.0 and True are equal too
    assert isinstance(first.messages, tuple)


def test_the_file_has_no_name_and_is_closed_with_the_spool(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before = open_files()
    spool = plain(tmp_path)
    spool.append("x" * 300_000)
    assert spool[0][:1] == "x"
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before + 1
    del spool
    gc.collect()
    assert open_files() == before


def test_a_full_disk_names_the_folder_and_the_way_out(tmp_path: Path, small_files: None) -> None:
    spool = plain(tmp_path)
    with pytest.raises(OSError, match="TMPDIR") as raised:
        for _ in range(10):
            spool.append("y" * 100_000)
    assert str(tmp_path) in str(raised.value) and "File too large" in str(raised.value)
    assert 4 <= len(spool) < 10


def test_what_was_written_before_the_disk_was_full_is_whole(tmp_path: Path, small_files: None) -> None:
    spool = plain(tmp_path)
    items = [str(number) * 90_000 for number in range(6)]  # the last ones are written only in part at first
    with pytest.raises(OSError, match="TMPDIR"):
        spool.extend(items)
    held = len(spool)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(spool) == items[:held]


def test_temporary_files_go_where_tmpdir_says(tmp_path: Path) -> None:
    program = (
        "import os; from lora_rlhf.data.spool import make_example_spool; spool = make_example_spool();"
        "print([os.readlink(f'/proc/self/fd/{fd}') for fd in range(3, 40) if os.path.islink(f'/proc/self/fd/{fd}')])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert str(tmp_path) in answer.stdout, answer.stderr


def test_processes_that_share_a_spool_read_alike() -> None:
    spool = plain()
    items = [str(number) * 50 for number in range(200)]
    spool.extend(items)  # nothing of it is in the file yet
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if list(spool) == items else 1)
            finally:
                os._exit(2)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    spool.append("more")
    assert list(spool) == [*items, "more"]


@pytest.mark.slow
def test_memory_is_a_few_bytes_an_item() -> None:
    spool = make_example_spool()
    example = EncodedExample(list(range(1000, 1060)), list(range(2000, 2060)))
    tracemalloc.start()
    for _ in range(4000):
        spool.append(example)
    assert spool[-1] == example  # writes what was kept back
    per_item = tracemalloc.get_traced_memory()[0] / 4000
    tracemalloc.stop()
    assert 8 <= per_item < 20  # a line of the file has 600 bytes
