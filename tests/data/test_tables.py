"""Rows of CSV and Parquet as plain values: a row that does not fit is refused, the others are read."""

import csv
import gzip
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_rlhf.data.containers import file_rows
from lora_rlhf.data.refusals import BadRow, Damaged
from lora_rlhf.data.tables import MISSING, csv_header, csv_rows, parquet_rows


def table(path: Path, text: str | bytes) -> dict[int, Any]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return {int(origin.removeprefix(f"{path}:")): row for origin, row in csv_rows(path)}


def parquet(path: Path, data: pa.Table, **options: Any) -> list[Any]:
    pq.write_table(data, path, **options)
    found = list(parquet_rows(path))
    assert [origin for origin, _ in found] == [f"{path} row {number}" for number in range(1, len(found) + 1)]
    return [row for _, row in found]


# ---------------------------------------------------------------------------------------------------------------------
# CSV


def test_rows_are_named_by_the_line_they_begin_on(tmp_path: Path) -> None:
    text = '\ufeff\r\nprompt, completion \r\n"two\r\nlines","a ""quote"""\r\n\r\n,=cmd()\r\n'
    assert table(tmp_path / "x.csv", text) == {
        3: {"prompt": "two\r\nlines", "completion": 'a "quote"'},
        6: {"prompt": None, "completion": "=cmd()"},
    }


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rows = table(tmp_path / "x.csv", b'a,b\n1\n1,2,3\n"1"x,2\n\xe9,2\nok,"\xc3\xa9"\n')
    assert [rows[line].reason for line in (2, 3, 4, 5)] == [
        "the row lacks cells",
        "the row has more cells than the header",
        "the line is not CSV",
        "the row is not UTF-8 text",
    ]
    assert rows[2].detail == "1 cells, 2 columns" and rows[6] == {"a": "ok", "b": "é"}


def test_a_quote_without_end_is_damage_and_not_a_long_cell(tmp_path: Path) -> None:
    rows = table(tmp_path / "x.csv", 'a,b\n1,2\n3,"4\n5,6\n7,8\n')
    assert list(rows) == [2, 3] and isinstance(rows[3], Damaged) and "no end" in str(rows[3])


def test_columns(tmp_path: Path) -> None:
    assert table(tmp_path / "x.csv", ",a\n0,x\n1,y\n") == {2: {"a": "x"}, 3: {"a": "y"}}
    twice = table(tmp_path / "x.csv", "a,a\n1,2\n")
    assert list(twice) == [1] and isinstance(twice[1], Damaged) and "'a'" in str(twice[1])
    foreign = table(tmp_path / "x.csv", b"prompt,completion,caf\xe9\na,b,c\n")
    assert list(foreign) == [1] and isinstance(foreign[1], Damaged) and "UTF-8" in str(foreign[1])
    assert table(tmp_path / "x.csv", "") == table(tmp_path / "x.csv", "a,b\n") == {}


@pytest.mark.parametrize(
    ("line", "delimiter", "names"),
    [
        ("a,b;c,d", ",", ["a", "b;c", "d"]),
        ("a;b,c;d", ";", ["a", "b,c", "d"]),
        ("a\tb\r\n", "\t", ["a", "b"]),
        ('"a,b";c', ";", ["a,b", "c"]),
        ("text", ",", ["text"]),
    ],
)
def test_the_delimiter_is_the_one_that_gives_most_names(line: str, delimiter: str, names: list[str]) -> None:
    assert csv_header(line) == (delimiter, names)


def test_cells_of_lists_are_parsed_and_no_others(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": 'a "b"\n'}]
    path = tmp_path / "x.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["messages", "ranks", "completion"])
        writer.writerow([json.dumps(messages), "[2, 1]", "[1, 2]"])
        writer.writerow([repr(messages), "1, 2", '{"a": 1}'])
        writer.writerow(["[INST] x", "[__import__('os')]", ""])
        writer.writerow(['[{"a": 1, "a": 2}]', "", ""])
    *rows, (origin, refused) = csv_rows(path)
    assert (
        isinstance(refused, BadRow) and refused.reason == "a column stands twice in the row" and origin == f"{path}:5"
    )
    assert [row for _, row in rows] == [
        {"messages": messages, "ranks": [2, 1], "completion": "[1, 2]"},
        {"messages": messages, "ranks": "1, 2", "completion": '{"a": 1}'},
        {"messages": "[INST] x", "ranks": "[__import__('os')]", "completion": None},
    ]


def test_a_huge_cell_and_a_packed_table(tmp_path: Path) -> None:
    text = "a,b\n1," + "x" * 500_000 + "\n"
    assert len(table(tmp_path / "x.csv", gzip.compress(text.encode()))[2]["b"]) == 500_000
    cut = gzip.compress(b"a,b\n" + b"1,2\n" * 50_000)[:-20]
    *rows, damage = table(tmp_path / "x.csv.gz", cut).values()
    assert isinstance(damage, Damaged) and len(rows) > 30_000
    assert list(table(tmp_path / "x.csv.gz", cut))[-1] == len(rows) + 2


@settings(deadline=None, max_examples=50)
@given(
    cells=st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))),
    delimiter=st.sampled_from(",;\t"),
)
def test_what_the_standard_library_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, cells: list, delimiter: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *cells])
    assert [row for _, row in csv_rows(path)] == [
        {name: None if cell in MISSING else cell for name, cell in zip("ab", row, strict=True)} for row in cells
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Parquet


def test_values_are_plain(tmp_path: Path) -> None:
    when = datetime(2024, 5, 6, 7, 8, 9)
    rows = [
        {"t": "é", "n": 1, "x": 0.5, "l": [{"role": "user", "content": "hi"}], "s": {"a": [1.5]}, "when": when}
        | {"day": date(2024, 5, 6), "hour": time(7, 8), "price": Decimal("1.25"), "took": timedelta(seconds=90)}
        | {"zoned": when.replace(tzinfo=UTC), "yes": True},
        {"t": None, "n": None, "x": float("nan"), "l": [], "s": {"a": [float("inf")]}, "when": None}
        | {"day": None, "hour": None, "price": None, "took": None, "zoned": None, "yes": None},
    ]
    first, second = parquet(tmp_path / "x.parquet", pa.Table.from_pylist(rows))
    assert first == {
        **{"t": "é", "n": 1, "x": 0.5, "l": [{"role": "user", "content": "hi"}], "s": {"a": [1.5]}, "yes": True},
        **{"when": "2024-05-06T07:08:09", "day": "2024-05-06", "hour": "07:08:00", "price": 1.25, "took": 90.0},
        "zoned": "2024-05-06T07:08:09+00:00",
    }
    assert json.dumps(second)
    assert second["x"] is None and second["s"] == {"a": [None]} and second["l"] == []


def test_rows_that_are_not_text_are_refused_alone(tmp_path: Path) -> None:
    raw = pa.Table.from_pylist([{"t": "a", "image": None}, {"t": "b", "image": b"\x89PNG"}])
    good, bad = parquet(tmp_path / "x.parquet", raw)
    assert good == {"t": "a", "image": None} and isinstance(bad, BadRow) and "bytes" in str(bad)
    broken = pa.array([b"one", b"\xff", b"two"]).view(pa.string())
    one, bad, two = parquet(tmp_path / "y.parquet", pa.table({"t": broken}))
    assert (one, two) == ({"t": "one"}, {"t": "two"}) and isinstance(bad, BadRow) and "UTF-8" in str(bad)


def test_a_parquet_file_is_known_by_its_bytes_and_its_damage_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    pq.write_table(
        pa.table({"t": [f"row {number}" for number in range(5000)]}), path, compression=None, use_dictionary=False
    )
    assert [row["t"] for _, row in file_rows(path)] == [f"row {number}" for number in range(5000)]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    ((origin, row),) = file_rows(path)
    assert origin == f"{path} row 1" and isinstance(row, Damaged)
    path.write_bytes(whole[:300] + bytes(2000) + whole[2300:])
    assert isinstance(list(file_rows(path))[-1][1], Damaged)


def test_names_that_stand_twice(tmp_path: Path) -> None:
    data = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["t", "t"])
    (row,) = parquet(tmp_path / "x.parquet", data)
    assert isinstance(row, Damaged) and "'t'" in str(row)


def test_parquet_memory_does_not_grow_with_a_row_group(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    texts = [f"{number:06d}" * 150 for number in range(20_000)]
    pq.write_table(pa.table({"t": texts}), path, compression=None, use_dictionary=False, row_group_size=20_000)
    assert path.stat().st_size > 17e6
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() for _ in parquet_rows(path)) - before
    assert most < 6e6
