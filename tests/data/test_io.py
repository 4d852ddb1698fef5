"""A file is written whole or not at all, and opened for what it is, not for what it is called."""

import gzip
import json
from pathlib import Path

import pytest

from lora_rlhf.data.io import open_bytes, write_jsonl


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json"])
def test_written_rows_are_read_back(tmp_path: Path, name: str) -> None:
    rows = [{"text": "é\u2028line"}, {"text": 'quote " and \n newline'}]
    assert write_jsonl(tmp_path / name, iter(rows)) == 2
    with open_bytes(tmp_path / name) as stream:
        assert [json.loads(line) for line in stream.read().decode().split("\n")[:-1]] == rows
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_half_a_character_is_written_as_its_escape_and_only_its_row(tmp_path: Path) -> None:
    rows = [{"text": "é"}, {"text": "é \ud83d"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines()
    assert lines == [b'{"text": "\xc3\xa9"}', rb'{"text": "\u00e9 \ud83d"}']


@pytest.mark.parametrize("name", ["packed.jsonl", "packed.jsonl.gz"])
def test_gzip_is_told_by_the_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"one\n"))
    with open_bytes(tmp_path / name) as stream:
        assert stream.read() == b"one\n"
    (tmp_path / name).write_bytes(b"plain\n")
    with open_bytes(tmp_path / name) as stream:
        assert stream.read() == b"plain\n"


def test_gzipped_bytes_do_not_depend_on_time_or_name(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_jsonl(tmp_path / name, [{"x": 1}])
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4)  # the header's time
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == b'{"x": 1}\n'


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": object()}])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, name: str, bad: dict) -> None:
    write_jsonl(tmp_path / name, [{"old": 1}])
    before = (tmp_path / name).read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_jsonl(tmp_path / name, [{"new": 1}, bad])
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]
