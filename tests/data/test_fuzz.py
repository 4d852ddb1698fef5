"""Tens of thousands of broken rows in every container: all are counted, none crashes, and what is used is sound."""

import copy
import csv
import gzip
import io
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_rlhf.data.formats import RecordKind
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, Text, make_row
from lora_rlhf.data.sources import Source
from lora_rlhf.inspection.check import check_data
from lora_rlhf.inspection.config import CheckConfig
from lora_rlhf.inspection.text import report_text as report_text
from lora_rlhf.system.errors import UserError
from tests.support.rows import RowSource

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
EXAMPLE = re.compile(r"^### \S+\n.*?```json\n(.*?)```\n\nbecomes", re.MULTILINE | re.DOTALL)
SEEDS: list[list[dict[str, Any]]] = [
    list(map(json.loads, rows.splitlines())) for rows in EXAMPLE.findall(DOCS.read_text())
]
COLUMNS = sorted({(name, json.dumps(value)) for rows in SEEDS for row in rows for name, value in row.items()})
KINDS: tuple[RecordKind | None, ...] = (None, "demonstrations", "rankings", "prompts", "texts")
NATIVE = {Demonstration: "prompt-completion", Ranking: "ranking", Prompt: "prompt", Text: "text"}
KIND_OF: dict[type, RecordKind] = {
    Demonstration: "demonstrations",
    Ranking: "rankings",
    Prompt: "prompts",
    Text: "texts",
}
ROWS = 300  # of a file
MOST_REASONS = 340  # of all formats and kinds; more would be texts that hold something of the row

# Values as they stand in a JSON text. What is long or deep is drawn rarely.
ODD = [
    *("null", "true", "false", "0", "1", "-1", "2.5", "1e999", "-1e999", "NaN", "-Infinity", "1" + "0" * 400),
    *('""', '" "', '"x"', '"5"', '"nan"', '"N/A"', '"1_0"', '"\\u0000"', '"\\u001b[31m"', '"a\\r\\nb\\u2028"'),
    *('"\\ud800"', '"a\\udc00b"', '["\\ud800"]', '{"role": "user", "content": "\\ud800"}', '"\\ud83d\\ude00 é 漢"'),
    *("[]", "{}", "[[]]", "[null]", '[""]', '{"": null}', "[1, 2]", "[2, 1, 1]", '["a", "b", "c"]', "[0.5, true]"),
    *('{"role": "user"}', '[{"role": "user", "content": "x"}]', '[{"role": "robot", "content": "x"}]'),
    *('[{"from": "gpt", "value": ""}]', '[{"role": "user", "content": [{"type": "image"}]}]', '[["a", "b"], ["c"]]'),
    *('{"text": "x", "role": "prompter", "replies": [{}]}', '"<extra_id_1>User\\n"', "\"=cmd|' /C calc'!A0\""),
]
LONG = ['"' + "long " * 20_000 + '"', "9" * 5000, "[" * 300 + "]" * 300, '{"a":' * 3000 + "1" + "}" * 3000]
NAMES = ["", "prompt ", "\ud800", "a\x1b[2Jb", "é", "x" * 1000, "__class__", "labeler", "meta"]
CELLS = [
    *("", " ", "=cmd|' /C calc'!A0", "+1+1", "-2", "@SUM(A1)", 'a "quoted" word', "two\nlines", "a\r\nb", "a\rb", ","),
    *("\t", ";", "'", '"', '""', "[1, 2]", "{1, 2}", "[{'a': 'it', 'b': None}]", "[b'x', 1e999]", "{1: 2}"),
    *('[{"a": 1, "a": 2}]', "[" * 300 + "]" * 300, "[" * 150 + "1+2" + "]" * 150, "null", "NaN"),
    *("[{'role': 'user', 'content': 'x'}]", "Human: a\n\nAssistant: b", "Human: a"),
    *("9" * 5000, "x" * 100_000, "\x1b[31m", "\u2028", "é", '{"post": "a", "title": "\\ud800"}', "\udce9"),
]
PLACEHOLDER = re.compile(r'"@(\d+)@"')


# ---------------------------------------------------------------------------------------------------------------------
# broken rows


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) within a value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def broken(rng: random.Random, seed: dict[str, Any]) -> str:
    """A JSON text of the row with one to three faults."""
    row = copy.deepcopy(seed)
    raw: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(row))
        fault = rng.randrange(8)
        if fault == 0 and found:
            container, key = rng.choice(found)
            del container[key]
        elif fault == 1:
            row[rng.choice(NAMES)] = rng.choice((None, 1, "x", ["x"], {"a": "\ud800"}))
        elif fault == 2:
            name, value = rng.choice(COLUMNS)
            row[name] = json.loads(value)
        elif found:
            container, key = rng.choice(found if fault < 6 else [(row, name) for name in row] or found)
            container[key] = f"@{len(raw)}@"
            raw.append(rng.choice(ODD if rng.random() < 0.98 else LONG))
    text = PLACEHOLDER.sub(lambda found: raw[int(found[1])], json.dumps(row, ensure_ascii=rng.random() < 0.5))
    if row and rng.random() < 0.02:
        text = f"{{{json.dumps(rng.choice(list(row)))}: 1, {text[1:]}"  # a name twice
    return text


def broken_line(rng: random.Random, seed: dict[str, Any]) -> bytes:
    """A line that may be no JSON at all."""
    line = broken(rng, seed).encode("utf-8", "surrogatepass")
    fault, cut = rng.randrange(40), rng.randrange(1, len(line) + 1)
    if fault == 0:
        return line[:cut] or b"{"
    if fault == 1:
        return line[:cut] + rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf")) + line[cut:]
    if fault == 2:
        return line[:cut] + bytes([rng.choice((1, 8, 9, 11, 13, 27, 127))]) + line[cut:]
    if fault == 3:
        return line + rng.choice((b",", line, b"}", b"\r", b" \t", b"\x85", b"// note"))
    return rng.choice((b"null", b"1", b'"x"', b"[]", b"oops", b"\\", b"=1+1")) if fault == 4 else line


def rows_in_turn(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Rows of the documentation; those of one example stand together."""
    while count > 0:
        rows = rng.choice(SEEDS)[:count]
        yield from rows
        count -= len(rows)


def json_file(rng: random.Random, path: Path) -> int:
    """Rows in a list or one after another, each a JSON text or nearly one; returns their number."""
    rows = [broken(rng, row) for row in rows_in_turn(rng, ROWS)]
    if rng.random() < 0.7:
        data = rng.choice(("[{}]", "\ufeff[\n{}\n]\n")).format(",\n".join(rows))
    else:  # over several lines, so that the lines are no rows
        data = json.dumps(rng.choice(SEEDS)[0], indent=1) + " ".join(rows[1:])
    raw = data.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(raw, 1) if rng.random() < 0.2 else raw)
    return len(rows)


def jsonl_file(rng: random.Random, path: Path) -> int:
    """Returns the number of lines that are not blank. The first is JSON: it tells what the file is."""
    lines = [broken(rng, rng.choice(SEEDS)[0]).encode("utf-8", "surrogatepass")]
    lines += [broken_line(rng, row) for row in rows_in_turn(rng, ROWS - 1)]
    raw = rng.choice((b"", b"\xef\xbb\xbf")) + rng.choice((b"\n", b"\r\n", b"\n\n")).join(lines)
    path.write_bytes(gzip.compress(raw, 1) if rng.random() < 0.2 else raw)
    return sum(bool(line.strip()) for line in lines)


def csv_file(rng: random.Random, path: Path) -> int:
    """One format's columns, and cells that are anything; returns the number of rows."""
    seed = rng.choice(SEEDS)[0]
    names = [*seed, *rng.sample(["note", "", "info", "label"], rng.randrange(3))]
    names = list(dict.fromkeys(names))
    written = io.StringIO(rng.choice(("", "\ufeff")))
    written.seek(0, io.SEEK_END)
    quoting: Any = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    # the library leaves line breaks of another kind than its own unquoted in cells
    ending = "\r\n" if quoting == csv.QUOTE_MINIMAL else rng.choice(("\n", "\r\n", "\r"))
    delimiter = rng.choice(",;\t") if len(names) > 1 else ","
    writer = csv.writer(written, delimiter=delimiter, quoting=quoting, lineterminator=ending)
    writer.writerow(names)
    for _ in range(ROWS):
        cells = [value if isinstance(value := seed.get(name, ""), str) else json.dumps(value) for name in names]
        for _ in range(rng.randrange(3)):
            cells[rng.randrange(len(cells))] = rng.choice(CELLS if rng.random() < 0.9 else CELLS[:6])
        if rng.random() < 0.03:
            cells = rng.choice((cells[:-1] or ["a", "b"], [*cells, "more"]))
        writer.writerow(cells if any(cells) else ["x"] * len(cells))
    path.write_bytes(written.getvalue().encode("utf-8", "surrogateescape"))
    return ROWS


WHEN = datetime(2024, 5, 6, 7, 8, 9)
COLUMN_TYPES: list[Callable[[list[Any], random.Random], pa.Array]] = [
    lambda values, rng: pa.array([None] * len(values)),
    lambda values, rng: pa.array([b"\xff\x00"] * len(values)),
    lambda values, rng: pa.array([rng.choice((b"a", b"\xff")) for _ in values]).view(pa.string()),
    lambda values, rng: pa.array([rng.choice((WHEN, None)) for _ in values], pa.timestamp("us", "Europe/Berlin")),
    lambda values, rng: pa.array([rng.choice((1, -(2**60))) for _ in values], pa.timestamp("ms")),
    lambda values, rng: pa.array([rng.choice((1, 2**62)) for _ in values]).cast(pa.timestamp("ns")),
    lambda values, rng: pa.array([rng.choice((timedelta(days=1), None)) for _ in values]),
    lambda values, rng: pa.array([rng.choice((1, 2**30)) for _ in values], pa.date32()),
    lambda values, rng: pa.array([b"0123456789abcdef"] * len(values), pa.uuid()),
    lambda values, rng: pa.array([rng.choice((Decimal("1.5"), None)) for _ in values]),
    lambda values, rng: pa.array([rng.choice((1.0, float("nan"), float("inf"), None)) for _ in values]),
    lambda values, rng: pa.array([{"role": "user", "content": None, "n": {"x": [WHEN]}}] * len(values)),
    lambda values, rng: pa.array([[{"role": "user", "content": "x"}, None]] * len(values)),
    lambda values, rng: pa.array([[("k", 1)]] * len(values), pa.map_(pa.string(), pa.int64())),
    lambda values, rng: pa.array([rng.choice(("x", "y")) for _ in values]).dictionary_encode(),
    lambda values, rng: pa.array([rng.choice(("x", None, "\x1b", "a" * 1000)) for _ in values], pa.large_string()),
]


def parquet_file(rng: random.Random, path: Path) -> int:
    """One format's columns, one or two of them of an odd type; returns the number of rows."""
    rows = (rng.choice(SEEDS) * ROWS)[:ROWS]
    table = pa.Table.from_pylist(rows)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice([*table.column_names, "note"])
        column = rng.choice(COLUMN_TYPES)([None] * len(rows), rng)
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, column)
    pq.write_table(table, path)
    return len(rows)


# ---------------------------------------------------------------------------------------------------------------------
# what must be true of whatever comes out


def check_records(records: list[Any], path: Path) -> None:
    """They hold text that can be written, and are the same after they were written and read again."""
    for cls, format in NATIVE.items():
        some: list[Any] = [record for record in records if type(record) is cls]
        for record in some:
            prompt = record if isinstance(record, Prompt) else getattr(record, "prompt", None)
            texts = [message.content for message in prompt.messages] if prompt else [record.text]
            texts += [record.response] if cls is Demonstration else record.responses if cls is Ranking else []
            "".join(texts).encode("utf-8")
        if some:
            assert write_jsonl(path, map(make_row, some)) == len(some)
            assert list(Source(str(path), KIND_OF[cls], format, strict=True)) == some


def lines_of(path: Path) -> int:
    """The lines of a text file, as far as it can be unpacked, and the one where it breaks."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        unpacking = zlib.decompressobj(wbits=31)
        parts: list[bytes] = []
        with suppress(zlib.error):
            parts.extend(unpacking.decompress(data[place : place + 1]) for place in range(len(data)))
        data = b"".join(parts)
    return len(re.split(rb"\r\n|\r|\n", data))


def check_file(
    path: Path, kind: RecordKind | None, num_rows: int | None, reasons: set[str], format: str | None = None
) -> bool:
    """Reads a file and checks all that is promised; False for one that asks for --format. num_rows None: unknown."""
    source: Source = Source(str(path), kind, format, tolerant=True, has_flags=True)
    try:
        records = list(source)
    except UserError as error:
        if num_rows is None and "this is a binary file" in str(error):
            return False  # a space that became a NUL
        assert format is None and "say which one with --format" in str(error), error
        # it is asked at the first row that can be read at all, and any of the answers is taken
        assert source.read == source.refused.count + 1
        for name in re.findall(r"^  --format (\S+)", str(error), re.MULTILINE):
            check_file(path, kind, num_rows, reasons, name)
        return False
    assert source.used + source.refused.count == source.read and source.records == len(records)
    assert num_rows is None or source.read == num_rows
    num_lines = source.read if path.read_bytes()[:4] == b"PAR1" else lines_of(path)
    for refusal in source.refused:
        place = re.fullmatch(r"(.*?)(?::| row )(\d+)(?: row \d+)?", refusal.origin)
        assert place and place[1] == str(path) and refusal.reason
        assert 1 <= int(place[2]) <= num_lines
    reasons.update(source.refused.reasons)
    check_records(records, path.with_name("again.jsonl"))
    return True


FILES: dict[str, tuple[int, Callable[[random.Random, Path], int]]] = {
    "rows.jsonl": (36, jsonl_file),
    "rows.json": (12, json_file),
    "rows.csv": (9, csv_file),
    "rows.parquet": (12, parquet_file),
}


def test_enough_rows_are_broken() -> None:
    assert ROWS * sum(count for count, _ in FILES.values()) > 20_000 and len(SEEDS) > 20


@pytest.mark.parametrize(
    "name", [name if name == "rows.jsonl" else pytest.param(name, marks=pytest.mark.long) for name in FILES]
)
def test_broken_rows_are_counted_and_never_crash(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    reasons: set[str] = set()
    count, write = FILES[name]
    num_settled = 0
    for _ in range(count):
        num_rows = write(rng, tmp_path / name)
        num_settled += sum([check_file(tmp_path / name, kind, num_rows, reasons) for kind in KINDS])
    assert num_settled > 0.9 * count * len(KINDS)
    assert 8 < len(reasons) < MOST_REASONS


def test_a_raw_nul_is_a_binary_file_or_a_bad_row(tmp_path: Path) -> None:
    """At the beginning it says what the file is; further on it is a fault of its row."""
    rows = [json.dumps({"prompt": "a" * 300, "completion": "b"}).encode() for _ in range(ROWS)]
    for place in (0, ROWS - 1):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join([*rows[:place], rows[place].replace(b"aa", b"a\0", 1), *rows[place + 1 :]]))
        source: Source = Source(str(path), "demonstrations", tolerant=True)
        if place == 0:
            with pytest.raises(UserError, match=r"rows\.jsonl: this is a binary file"):
                list(source)
        else:
            assert len(list(source)) == ROWS - 1
            assert [(refusal.origin, refusal.reason) for refusal in source.refused] == [
                (f"{path}:{ROWS}", "the line is not JSON")
            ]


def test_files_that_break_off_are_counted_and_never_crash(tmp_path: Path) -> None:
    rng = random.Random(0)
    reasons: set[str] = set()
    path = tmp_path / "rows"
    for name, (_, write) in FILES.items():
        write(rng, path)
        whole = path.read_bytes()
        whole = gzip.compress(whole) if name == "rows.jsonl" and whole[:2] != b"\x1f\x8b" else whole
        whole = gzip.decompress(whole) if name == "rows.json" and whole[:2] == b"\x1f\x8b" else whole
        for _ in range(25):
            place = rng.randrange(8, len(whole))
            flipped = bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :]
            path.write_bytes(whole[:place] + (flipped if rng.random() < 0.5 else b""))
            check_file(path, rng.choice(KINDS), None, reasons)
    assert {"the gzip data break off", "the JSON text breaks off"} < reasons


def test_the_report_on_broken_files_is_printable(tmp_path: Path) -> None:
    rng = random.Random(1)
    files = []
    for name, (_, write) in FILES.items():
        files.append(str(tmp_path / name))
        write(rng, tmp_path / name)
    for kind in ("auto", "rankings", "prompts"):
        report = check_data(CheckConfig(files=tuple(files), held_out=(files[0],), kind=kind))
        json.dumps(report, allow_nan=False)
        assert all(file["error"] or file["rows"]["read"] >= ROWS for file in report["files"])
        assert {c for c in report_text(report) if not c.isprintable()} <= {"\n"}


# ---------------------------------------------------------------------------------------------------------------------
# rows that say the same in other columns


ANSWERED = (
    "prompt completion",
    "question answer",
    "instruction output",
    "query response",
    "Input Output",
    "user assistant",
)
VERDICTS: dict[str, list[tuple[Any, bool | None]]] = {
    "label": [(True, True), (1.0, True), ("good", True), (0, False), (-1, False), ("bad", False), (None, None)],
    "isSafe": [(True, True), ("yes", True), (False, False), ("no", False), (None, None)],
    "toxic": [(False, True), (0, True), (True, False), ("1", False)],
    "rating": [("good", True), ("Great", True), ("poor", False), ("so so", None)],
}
CASES: list[Callable[[str], str]] = [
    str,
    str.upper,
    str.title,
    lambda name: f" {name}",
    lambda name: name.replace("_", "-"),
]


def said_elsewhere(rng: random.Random, number: int) -> tuple[dict[str, Any], list[str], bool | None]:
    """(a row, the texts of its conversation, whether its answer is good): parts stand in columns or in messages."""
    marks = {part: f"{part} {number}" for part in ("system", "earlier", "answered", "asked", "context", "answer")}
    used = ["asked", "answer", *rng.sample(["system", "context"], rng.randrange(3))]
    used += ["earlier", "answered"] if rng.random() < 0.4 else []
    verdict: Any = None
    is_good: bool | None = True
    row: dict[str, Any] = {}
    if rng.random() < 0.5:
        question, answer = rng.choice(ANSWERED).split()
        row = {question: marks["asked"], answer: marks["answer"]}
        if "earlier" in used:
            row["chat_history"] = [[marks["earlier"], marks["answered"]]]
        last = row
    else:
        turns = [("user", "earlier"), ("assistant", "answered")] if "earlier" in used else []
        talk = [
            {"role": role, "content": marks[part]}
            for role, part in [*turns, ("user", "asked"), ("assistant", "answer")]
        ]
        if "earlier" in used and rng.random() < 0.5:
            row["History"], talk = talk[:2], talk[2:]
        row[rng.choice(["messages", "Conversations", "conversation"])] = talk
        if "system" in used and rng.random() < 0.5:
            talk.insert(0, {"role": "system", "content": marks["system"]})
            row["seen"] = "x"
        last = rng.choice([row, talk[-1]])
    if "system" in used and "seen" not in row:
        row[rng.choice(["system", "System_Prompt", "sys_prompt"])] = marks["system"]
    if "context" in used:
        row[rng.choice(["context", "passage", "background"])] = marks["context"]
    if rng.random() < 0.6:
        name = rng.choice(list(VERDICTS))
        verdict, is_good = rng.choice(VERDICTS[name])
        if last is not row and verdict is None:
            is_good = True  # an empty key of a message says nothing
        last[name] = verdict
    row = {rng.choice(CASES)(name) if rng.random() < 0.3 else name: value for name, value in row.items()}
    return row, [marks[part] for part in used], is_good


def test_what_a_row_says_is_read_wherever_it_stands_or_the_row_is_refused() -> None:
    rng = random.Random(5)
    drawn = [said_elsewhere(rng, number) for number in range(4000)]
    for kind in ("demonstrations", "prompts"):
        source = RowSource(tuple(row for row, _, _ in drawn), kind)
        records = {record.prompt.origin if kind == "demonstrations" else record.origin: record for record in source}
        assert source.used + source.refused.count == source.read == len(drawn)
        for number, (row, texts, is_good) in enumerate(drawn, start=1):
            record = records.get(f"rows:{number}")
            if kind == "demonstrations":
                assert is_good or record is None, row
            if record is not None:
                prompt = record.prompt if kind == "demonstrations" else record
                said = " ".join(message.content for message in prompt.messages)
                said += f" {record.response}" if kind == "demonstrations" else " ".join(texts[1:2])
                assert all(text in said for text in texts), row
        assert len(records) > (0.6 if kind == "demonstrations" else 0.9) * len(drawn)
