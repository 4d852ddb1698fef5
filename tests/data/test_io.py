"""Rows come with the right line from plain and gzipped files; a file is written whole or not at all."""

import gzip
import json
from pathlib import Path

import pytest

from lora_rlhf.data.io import file_rows, file_text, write_jsonl
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.errors import UserError


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json"])
def test_written_rows_are_read_back(tmp_path: Path, name: str) -> None:
    rows = [{"text": "é\u2028line"}, {"text": 'quote " and \n newline'}]
    assert write_jsonl(tmp_path / name, iter(rows)) == 2
    assert list(file_rows(tmp_path / name)) == [(f"{tmp_path / name}:{i}", row) for i, row in enumerate(rows, 1)]
    assert [path.name for path in tmp_path.iterdir()] == [name]


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


@pytest.mark.parametrize("packed", [False, True])
def test_broken_lines_are_named_by_their_line(tmp_path: Path, packed: bool) -> None:
    lines = [b'\xef\xbb\xbf{"a": 1}', b"", b"{oops}", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": 2}\r', b"   "]
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    data = b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if packed else data)
    rows = {int(origin.rsplit(":", 1)[1]): row for origin, row in file_rows(path)}
    assert list(rows) == [1, 3, 4, 5, 6]
    assert (rows[1], rows[6]) == ({"a": 1}, {"a": 2})
    for line, reason in ((3, "not JSON"), (4, "not UTF-8"), (5, "nested|not JSON")):
        with pytest.raises(BadRow, match=reason):
            raise rows[line]


def test_elements_of_a_json_list_are_named_by_the_line_they_begin_on(tmp_path: Path) -> None:
    rows = [{"a": [1, "]"]}, {"b": {"c": 2}}, 3]
    path = tmp_path / "rows.json"
    path.write_text("\n" + json.dumps(rows, indent=2))
    text = path.read_text().split("\n")
    found = list(file_rows(path))
    assert [row for _, row in found] == rows
    lines = [int(origin.rsplit(":", 1)[1]) for origin, _ in found]
    assert lines == [3, text.index('    "b": {'), len(text) - 1]
    path.write_text("[]")
    assert list(file_rows(path)) == []


@pytest.mark.parametrize(
    ("text", "line"), [('[{"a": 1},\n{"a": ', 2), ('[{"a": 1}\n{"a": 2}]', 2), ('[{"a": 1},\n', 2)]
)
def test_a_json_list_that_breaks_off_is_an_error_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"rows\.json:{line}: "):
        list(file_rows(path))


def test_a_file_that_is_not_what_it_says_is_an_error(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"a": 1}\n' * 10_000)[:-20])
    fake = tmp_path / "fake.jsonl.gz"
    fake.write_bytes(b'{"a": 1}\n')
    for path in (cut, fake):
        with pytest.raises(UserError, match=f"{path.name}: can not be read"):
            list(file_rows(path))
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"one\ntwo caf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt:2: not UTF-8"):
        file_text(latin)
