"""Rows come from any container with the right line, in flat memory; what cannot be read is told, never raised."""

import gzip
import io
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_rlhf.data.containers import TEXT_CHUNK, file_rows, source_rows
from lora_rlhf.data.json_rows import json_documents, json_lines
from lora_rlhf.data.refusals import BadRow, Damaged
from lora_rlhf.system.errors import UserError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(VALUES, max_size=6)
LAYOUT = st.sampled_from([None, 0, 3])
WINDOWS = st.integers(1, 70)


def documents(text: str | bytes, window: int = 2**20, limit: int = 2**28) -> list[tuple[int, Any]]:
    """(line, row) of each value of a JSON document that is read through a small window."""
    data = text.encode() if isinstance(text, str) else text
    found = list(json_documents(Path("x.json"), io.BytesIO(data), window, limit))
    lines = [origin.removeprefix("x.json:").split(" row ") for origin, _ in found]
    assert [int(number) for _, number in lines] == list(range(1, len(found) + 1))
    return [(int(line), row) for (line, _), (_, row) in zip(lines, found, strict=True)]


def rows_of(path: Path, data: bytes | str) -> dict[int, Any]:
    """The rows of a file with this content, by line."""
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return {int(origin.removeprefix(f"{path}:").partition(" row ")[0]): row for origin, row in file_rows(path)}


def fault(row: Any) -> str:
    assert isinstance(row, BadRow)
    return str(row)


# ---------------------------------------------------------------------------------------------------------------------
# JSON documents, against the standard library


@pytest.mark.slow
@settings(deadline=None)
@given(rows=ROWS, indent=LAYOUT, ascii_only=st.booleans(), window=WINDOWS)
def test_a_list_is_what_the_standard_library_reads(
    rows: list, indent: int | None, ascii_only: bool, window: int
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    found = documents(text, window)
    assert [row for _, row in found] == json.loads(text)
    assert all(type(row) is type(expected) for (_, row), expected in zip(found, rows, strict=True))


@pytest.mark.slow
@settings(deadline=None)
@given(
    rows=ROWS.map(lambda rows: [{"": 0}, *rows]),
    indent=LAYOUT,
    window=WINDOWS,
    blank=st.sampled_from([" ", "\n", "\r\n\r\n"]),
)
def test_values_one_after_another(rows: list, indent: int | None, window: int, blank: str) -> None:
    text = "\ufeff" + blank + blank.join(json.dumps(row, indent=indent) for row in rows) + blank
    assert [row for _, row in documents(text, window)] == rows


@settings(deadline=None)
@given(rows=ROWS.filter(len), indent=LAYOUT, window=WINDOWS, data=st.data())
def test_a_list_cut_anywhere_gives_its_whole_elements_and_then_the_damage(
    rows: list, indent: int | None, window: int, data: st.DataObject
) -> None:
    text = json.dumps(rows, indent=indent)
    *found, (_, last) = documents(text[: data.draw(st.integers(1, len(text) - 1))], window)
    assert isinstance(last, Damaged)
    elements = [row for _, row in found]
    # a number that is cut may still be a number
    assert elements == rows[: len(elements)] or elements[:-1] == rows[: len(elements) - 1]


@settings(deadline=None)
@given(text=st.text(alphabet='[]{}",:\\/ud8eE+-.019truefalsnNI \n'), window=WINDOWS)
def test_what_is_no_json_is_damaged_and_what_is_json_is_not(text: str, window: int) -> None:
    text = "[" + text
    try:
        # as this room reads it: NaN and infinity are nothing
        expected = json.loads(text, parse_constant=lambda _: None)
    except ValueError:
        expected = None
    found = [row for _, row in documents(text, window)]
    refused = any(isinstance(row, BadRow) and not isinstance(row, Damaged) for row in found)  # a column twice, say
    broken = bool(found) and isinstance(found[-1], Damaged)
    assert broken == (expected is None) or refused
    assert broken or refused or found == expected


def test_elements_are_named_by_their_number_and_the_line_they_begin_on(tmp_path: Path) -> None:
    text = '\n[\n  {"a": [1, "]"]},\n  {\n    "b": 1\n  }, 3\n,\n\n4]\n'
    assert rows_of(tmp_path / "rows.json", text) == {3: {"a": [1, "]"]}, 4: {"b": 1}, 6: 3, 9: 4}
    for window in range(1, 40):
        assert [line for line, _ in documents(text, window)] == [3, 4, 6, 9]
    assert rows_of(tmp_path / "rows.json", "[]") == {}
    (tmp_path / "rows.json").write_text('[{"a": 1}, {"b": 2}, {"c": 3}]')
    assert [origin for origin, _ in file_rows(tmp_path / "rows.json")] == [
        f"{tmp_path}/rows.json:1 row {number}" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[{"a": 1},\n{"a": ', 2, "breaks off (Expecting value at line 2, column 7)"),
        ('[{"a": 1},\n{"a": "xyz', 2, "breaks off (Unterminated string starting at line 2, column 7)"),
        ('[{"a": 1}\n{"a": 2}]', 2, "a comma is missing in the JSON list (found '{' at line 2, column 1)"),
        ('[{"a": 1},\n', 2, "breaks off"),
        ('[{"a": 1}\n\n', 3, "the list has no end at line 3, column 1"),
        ('[{"a": 1},\n]', 2, "broken (Expecting value at line 2, column 1)"),
        ('[{"a": 1},\n{oops}, {"a": 2}, {"a": 3}]', 2, "in double quotes at line 2, column 2)"),
        ('[{"a": 1}]\n[{"a": 2}]', 2, "follows the end of the JSON list (found '[' at line 2, column 1)"),
        ('[{"a": 1},\n{"a": "' + "x" * 200 + '"}]', 2, "longer than"),
        ('[{"a": 1}, ' + " " * 50 + '{"b"; 2}]', 1, "Expecting ':' delimiter at line 1, column 66)"),
        ('[{"a": 1},\n{"b": 2,\n\n "c"; 3}]', 2, "Expecting ':' delimiter at line 4, column 5)"),
    ],
)
@pytest.mark.parametrize("window", [1, 7, 16, 1000])
def test_a_list_that_breaks_gives_what_stands_before(text: str, line: int, reason: str, window: int) -> None:
    (first, row), (place, damage) = documents(text, window, limit=100)
    assert (first, row, place) == (1, {"a": 1}, line)
    assert isinstance(damage, Damaged) and reason in fault(damage)


def test_bad_elements_are_refused_and_the_others_read() -> None:
    bad = {
        '{"a": 1, "b": {"c": "]}\\"", "c": [2]}}': "stands twice",
        '{"\\ud800": 1}': "half a character",
        "[" * 300 + "]" * 300: "nested",
        '{"a":' * 5000 + '"]"' + "}" * 5000: "nested",
        "9" * 5000: "thousands of digits",
        '{"a": [-' + "9" * 5000 + "]}": "thousands of digits",
    }
    text = "[" + ",\n".join(f'{element}, {{"good": {place}}}' for place, element in enumerate(bad)) + "]"
    for window in (64, 2**20):
        found = documents(text, window)
        assert [row for _, row in found[1::2]] == [{"good": place} for place in range(len(bad))]
        for place, (line, row) in enumerate(found[::2]):
            assert line == place + 1 and list(bad.values())[place] in fault(row)
            assert not isinstance(row, Damaged)


def test_an_element_that_is_not_utf8_is_refused_alone() -> None:
    found = documents(b'[{"a": "\xc3\xa9"}, {"a": "\xff"}, {"a": "\xc3\xa9 \\ud800"}]', window=8)
    assert found[0] == (1, {"a": "é"}) and found[2] == (1, {"a": "é \ud800"})
    assert "not UTF-8" in fault(found[1][1])


# ---------------------------------------------------------------------------------------------------------------------
# JSON lines


@pytest.mark.parametrize("packed", [False, True])
def test_broken_lines_are_named_by_their_line(tmp_path: Path, packed: bool) -> None:
    lines = [b'\xef\xbb\xbf{"a": 1}', b"", b"{oops}", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": 2}\r', b"   "]
    lines += [b'{"a": 1, "a": 2}', b'{"a": NaN, "b": [1e999, -Infinity, 0.5]}', b'{"a": ' + b"1" * 5000 + b"}"]
    lines += [
        b'{"\\uDc00": 1}',
        b'{"a": "\\ud800"}',
        b'{"a": ' * 300 + b"1" + b"}" * 300,
        b'{"a": 3} {"a": 4}',
        b'"text"',
    ]
    data = b"\n".join(lines)
    rows = rows_of(tmp_path / "rows.txt", gzip.compress(data) if packed else data)
    assert list(rows) == [1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15]
    assert (rows[1], rows[6], rows[9]) == ({"a": 1}, {"a": 2}, {"a": None, "b": [None, None, 0.5]})
    assert (rows[12], rows[15]) == ({"a": "\ud800"}, "text")
    reasons = {3: "not JSON", 4: "not UTF-8", 5: "nested", 8: "stands twice", 10: "thousands of digits"}
    assert fault(rows[3]).endswith("in double quotes at column 2)")
    for line, reason in (reasons | {11: "half a character", 13: "nested", 14: "not JSON"}).items():
        assert reason in fault(rows[line])


def test_a_text_without_end_is_named_by_the_column_where_it_starts(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.jsonl", '{"a": 1}\n{"a": "two}\n')
    assert fault(rows[2]) == "the line is not JSON (Unterminated string starting at column 7)"


def test_nesting_is_allowed_up_to_its_limit(tmp_path: Path) -> None:
    deep = ['{"a":' + "[" * depth + "]" * depth + "}" for depth in (199, 200)]
    wide = '{"a": [' + ",".join(["[]"] * 5000) + "]}"
    rows = rows_of(tmp_path / "rows.jsonl", "\n".join([*deep, wide]))
    assert not isinstance(rows[1], BadRow) and not isinstance(rows[3], BadRow)
    assert "nested" in fault(rows[2])


def test_faults_of_one_kind_have_one_reason(tmp_path: Path) -> None:
    text = '{"a": 1}\n{"a": 1, "a": 2}\n{"bb": 1, "bb": 2}\n{oops\n{"x": oops\n'
    rows = rows_of(tmp_path / "rows.jsonl", text)
    assert rows[2].reason == rows[3].reason and rows[4].reason == rows[5].reason
    assert "'bb'" in rows[3].detail


def test_lines_that_break_off_in_the_middle_of_a_packed_file(tmp_path: Path) -> None:
    data = b"".join(b'{"a": %d, "b": "%s"}\n' % (number, os.urandom(20).hex().encode()) for number in range(20_000))
    packed = gzip.compress(data)
    for broken, reason in ((packed[:-20], "break off"), (packed[: len(packed) // 2], "break off")):
        rows = rows_of(tmp_path / "rows.jsonl.gz", broken)
        *before, last = rows
        assert isinstance(rows[last], Damaged) and reason in fault(rows[last])
        assert last == len(before) + 1 and [rows[line]["a"] for line in before] == list(range(len(before)))
        assert len(before) > 8000
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    rows = rows_of(tmp_path / "rows.jsonl.gz", bytes(flipped))
    assert isinstance(list(rows.values())[-1], Damaged)
    listed = gzip.compress(b"[" + data.replace(b"\n", b",\n"))[:-20]
    *elements, damage = rows_of(tmp_path / "rows.json.gz", listed).values()
    assert len(elements) > 19_000 and isinstance(damage, Damaged)


# ---------------------------------------------------------------------------------------------------------------------
# which container it is


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("x.csv", '{"a": 1}\n{"a": 2}', {1: {"a": 1}, 2: {"a": 2}}),
        ("x.txt", '\n\n  [{"a": 1}]', {3: {"a": 1}}),
        ("x", '{\n  "a": 1\n}\n{\n  "a": 2\n}\n', {1: {"a": 1}, 4: {"a": 2}}),
        ("x.jsonl", '{"a": 1}{"a": 2}', {1: {"a": 2}}),  # both begin on the first line
        ("x", "prompt,completion\nhi,ho\n", {2: {"prompt": "hi", "completion": "ho"}}),
        ("x.data", "prompt\tcompletion\nhi\tho\n", {2: {"prompt": "hi", "completion": "ho"}}),
        ("x.csv", "mine,other\n1,2\n", {2: {"mine": "1", "other": "2"}}),
        ("x.txt", "mine,other\n1,2\n", {1: {"text": "mine,other\n1,2\n"}}),
        ("x.txt", "text\nhello\n", {1: {"text": "text\nhello\n"}}),
        ("x.txt", "\ufeffone\r\ntwo\r\n", {1: {"text": "one\ntwo\n"}}),
        ("x.txt", "[1] A footnote", {1: {"text": "[1] A footnote"}}),
        ("x", "{x} is a set", {1: {"text": "{x} is a set"}}),
        ("x.json", "[1, 2]", {1: 2}),
        ("x.txt", "", {}),
        ("x.jsonl", "\n \n", {}),
        ("x.jsonl.gz", "", {}),
    ],
)
def test_the_bytes_tell_and_the_name_breaks_ties(tmp_path: Path, name: str, data: str, expected: dict) -> None:
    assert rows_of(tmp_path / name, data) == expected
    assert rows_of(tmp_path / name, gzip.compress(data.encode())) == expected


def test_a_first_line_that_is_broken_does_not_turn_lines_into_a_document(tmp_path: Path) -> None:
    for broken in (
        '{"a": "cut',
        '{"a": 1,',
        '{"a": [',
        '{"a": oops}',
        '{"a": 1',
        "not json at all",
        '{"a": 1, "a": 2}',
    ):
        rows = rows_of(tmp_path / "rows.jsonl", broken + '\n{"a": 2}\n{"a": 3}\n')
        assert list(rows) == [1, 2, 3] and isinstance(rows[1], BadRow), broken
        assert (rows[2], rows[3]) == ({"a": 2}, {"a": 3})


def test_a_long_first_line_is_still_a_line(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows", json.dumps({"a": "x" * 200_000}) + '\n{"a": 2}\noops\n')
    assert rows[2] == {"a": 2} and "not JSON" in fault(rows[3])


@pytest.mark.parametrize(
    ("data", "way_out"),
    [
        (b"PK\x03\x04xxxx", "unzip"),
        (b"\xfd7zXZ\x00xxxx", "xz -d"),
        (b"\x28\xb5\x2f\xfdxxx", "zstd -d"),
        (b"BZh91AY&SY", "bunzip2"),
        ("hello".encode("utf-16"), "iconv"),
        (gzip.compress(gzip.compress(b"x")), "gunzip"),
        (gzip.compress(b"PAR1xxxx"), "gunzip"),
        (gzip.compress(b"rows.jsonl".ljust(257, b"\0") + b"ustar\x0000"), "tar -xf"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
    ],
    # gzip writes the time of day into its header: bytes as names would differ from worker to worker.
    ids=["zip", "xz", "zstd", "bzip2", "utf-16", "gzip twice", "parquet in gzip", "tar", "png"],
)
def test_what_is_not_read_here_names_the_way_out(tmp_path: Path, data: bytes, way_out: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"rows\.jsonl: this is .*{way_out}"):
        list(file_rows(path))


def test_a_file_that_is_not_there_or_may_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl: cannot be read: No such file"):
        list(file_rows(tmp_path / "gone.jsonl"))
    with pytest.raises(UserError, match="cannot be read"):
        list(file_rows(tmp_path))


def test_all_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "b.csv").write_text("x\n2\n")
    assert list(source_rows(str(tmp_path))) == [
        (f"{tmp_path}/a.jsonl:1", {"x": 1}),
        (f"{tmp_path}/b.csv:2", {"x": "2"}),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# plain text, and memory


def test_long_text_comes_in_whole_lines_and_none_is_lost(tmp_path: Path) -> None:
    text = "".join(f"line {number} é\n" for number in range(150_000))
    rows = rows_of(tmp_path / "book.txt", text)
    chunks = [row["text"] for row in rows.values()]
    assert "".join(chunks) == text and len(chunks) == 3
    assert all(chunk.endswith("\n") and len(chunk.encode()) <= TEXT_CHUNK for chunk in chunks)
    assert list(rows) == [1, 1 + chunks[0].count("\n"), 1 + chunks[0].count("\n") + chunks[1].count("\n")]


@pytest.mark.parametrize("unit", ["word ", "ééé", "漢字𝄞"])
def test_a_line_longer_than_a_chunk_is_cut_between_words_or_characters(tmp_path: Path, unit: str) -> None:
    text = unit * (5 * TEXT_CHUNK // 2 // len(unit.encode()))
    (tmp_path / "line.txt").write_text(text)
    chunks = [row["text"] for _, row in file_rows(tmp_path / "line.txt")]
    assert "".join(chunks) == text and len(chunks) == 3
    assert unit != "word " or all(chunk.endswith(" ") for chunk in chunks)


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "latin.txt", b"one\ntwo caf\xe9\n")
    assert list(rows) == [1] and "not UTF-8" in fault(rows[1]) and "line 2" in fault(rows[1])


@pytest.mark.slow
@pytest.mark.parametrize("container", ["list", "lines", "documents", "text", "csv"])
@pytest.mark.parametrize("packed", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, container: str, packed: bool) -> None:
    row = json.dumps({"prompt": "p" * 700, "completion": "c" * 300})
    count = 24_000
    data = {
        "list": "[" + ",\n".join([row] * count) + "]",
        "lines": "\n".join([row] * count),
        "documents": "\n".join([row.replace(", ", ",\n")] * count),
        "text": ("t" * 1000 + "\n") * count,
        "csv": "prompt,completion\n" + ("p" * 700 + "," + "c" * 300 + "\n") * count,
    }[container].encode()
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    length = len(data)
    del data
    tracemalloc.start()
    try:
        num_rows = sum(not isinstance(row, BadRow) for _, row in file_rows(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length > 24e6 and num_rows == (23 if container == "text" else count)
    assert peak < 8e6  # two windows of 1 MiB, their text, and what was decoded: a third of the file at most


def test_json_lines_stop_at_a_line_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_rlhf.data.json_rows.MAX_ELEMENT", 20)
    found = list(json_lines(Path("x"), io.BytesIO(b'{"a": 1}\n' + b"x" * 100)))
    assert found[0] == ("x:1", {"a": 1}) and isinstance(found[1][1], Damaged) and found[1][0] == "x:2"
