import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.inspection.check import check_data
from lora_rlhf.inspection.config import CheckConfig
from lora_rlhf.inspection.text import printable_text, report_text, shortened


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    rankings: list[dict[str, Any]] = [
        {"prompt": f"Task {n}", "responses": ["aa", "b", "c"], "ranks": [1, 2, 2]} for n in range(1100)
    ]
    rankings += [{"prompt": f"Task {n}", "responses": ["aa", "b"], "ranks": [2, 1], "id": n} for n in range(100)]
    demonstrations = [{"prompt": f"Task {n}", "completion": "x" * n} for n in range(1, 60)]
    names = (
        write(tmp_path / "rankings.jsonl", [*rankings, "not json", "neither"]),
        write(tmp_path / "demonstrations.jsonl", demonstrations),
    )
    held_out = write(tmp_path / "held_out.jsonl", [{"prompt": "Task 7"}, {"prompt": "New"}])
    return check_data(CheckConfig(files=names, held_out=(held_out,)))


def lines_of(report: dict[str, Any]) -> list[str]:
    return [" ".join(line.split()) for line in report_text(report).splitlines()]


def test_figures_stand_in_the_text(report: dict[str, Any]) -> None:
    lines = lines_of(report)
    assert "rows 1,202 read, 1,200 used, 2 refused" in lines
    assert "refused 2: the line is not JSON" in lines
    assert "line 1201; line 1202 (Expecting value at column 1)" in lines
    assert "prompts 1,100 different; single turn" in lines
    assert "rankings 1,200 of 2 to 3 responses: 2,300 pairs, 1,100 ties; the longer response wins" in " ".join(lines)
    assert "repeated rankings agree on 0.0 % of 100 pairs" in " ".join(lines)
    assert "repeated rows that repeat a prompt: 100" in lines
    assert "not used columns id" in lines
    assert "response characters 1 2 2 2 2" in lines
    assert "rankings.jsonl holds 1 of 2 held-out prompts of held_out.jsonl" in lines
    assert "demonstrations.jsonl holds 59 prompts of rankings.jsonl" in lines


def test_no_line_is_too_wide_and_no_figure_is_torn(report: dict[str, Any]) -> None:
    name = report["files"][0]["file"]
    report["advice"] += [{"file": name, "text": "x" * length + " in 12.3 % of rows"} for length in range(70, 96)]
    own = [line for line in report_text(report).splitlines() if "/" not in line]
    assert max(map(len, own)) <= 100
    assert not any(re.match(r"\s*%", line) for line in own)


def test_nothing_to_mend(report: dict[str, Any]) -> None:
    assert "Nothing to mend." not in report_text(report)
    assert "Nothing to mend." in report_text(report | {"advice": []})


def test_names_that_are_the_same_keep_their_folders(report: dict[str, Any]) -> None:
    twin = copy.deepcopy(report["files"][0])
    twin["file"] = "elsewhere/rankings.jsonl"
    report["advice"] = [{"file": twin["file"], "text": "look"}, {"file": report["files"][1]["file"], "text": "here"}]
    lines = lines_of(report | {"files": [*report["files"], twin]})
    assert lines[lines.index("To mend") + 1] == "elsewhere/rankings.jsonl"
    assert "demonstrations.jsonl" in lines


def test_estimates_are_marked(report: dict[str, Any]) -> None:
    report["files"][0]["duplicates"]["estimated"] = True
    lines = lines_of(report)
    assert "prompts about 1,100 different; single turn" in lines
    assert "repeated rows that repeat a prompt: about 100" in lines


def test_tokens_stand_beside_their_limits(report: dict[str, Any]) -> None:
    figures = {"count": 5, "p50": 4, "p90": 8, "p95": 9, "p99": 9, "max": 1234}
    limit = {"limit": 256, "over": 0.333, "lost": 0.0, "keeps_95": 9, "keeps_99": 9}
    report["files"][1]["tokens"] = {
        "rows": 5000,
        "exact": False,
        "prompt": figures,
        "response": {"count": 0},
        "limits": {"max_prompt_tokens": limit},
    }
    lines = lines_of(report)
    assert "prompt tokens 4 8 9 9 1,234 33.3 % > 256" in lines
    assert "tokens and limits: estimated from 5,000 rows, evenly drawn" in lines
    assert not any("--model" in line for line in lines)


def test_file_with_an_error(report: dict[str, Any]) -> None:
    gone = {"file": "gone.jsonl", "error": "first\nsecond\x1b"}
    lines = lines_of({"files": [gone], "held_out": [], "leakage": [], "overlap": [], "advice": [], "ok": False})
    assert "Nothing to mend." not in lines
    place = lines.index("gone.jsonl")
    assert lines[place + 1 : place + 3] == ["error first", r"second\x1b"]


def test_rows_of_a_list_are_named_by_line_and_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}]')
    lines = lines_of(check_data(CheckConfig(files=(str(path),))))
    assert lines[lines.index("refused 1: the response is empty") + 1] == "line 1, row 2"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain, é 漢字 ✓", "plain, é 漢字 ✓"),
        ("a\x1b[31m\r\n\tb", r"a\x1b[31m\r\n\tb"),
        ("a\u202eb\u200b\x9b", r"a\u202eb\u200b\x9b"),
        ("half \ud83d", r"half \ud83d"),
    ],
)
def test_printable(value: str, shown: str) -> None:
    assert printable_text(value) == shown


def test_short_counts_escapes() -> None:
    assert shortened("x" * 64) == "x" * 64
    assert shortened("x" * 65) == "x" * 61 + "..."
    assert len(shortened("\x1b" * 10**6)) == 64
