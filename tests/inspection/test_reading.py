"""A large file read by several processes gives what one process gives."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.inspection import reading
from lora_rlhf.inspection.check import check_data
from lora_rlhf.inspection.config import CheckConfig

WORDS = [f"word{number}" for number in range(60)]


def rows(count: int) -> list[str]:
    """Rankings, dialogues, bad rows, blank lines, repeated prompts, several labelers of a prompt."""
    rng = random.Random(4)
    made: list[Any] = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(3, 60)))
        answers = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(rng.randint(2, 5))]
        row: dict[str, Any] = {"prompt": text, "responses": answers, "labeler": f"at {number // 100}", "extra": number}
        row["ranks"] = [rng.randint(1, 3) for _ in answers]
        made.append(row)
        if number % 7 == 0:
            made.append({**row, "labeler": rng.choice("abc"), "ranks": row["ranks"][::-1]})
        if number % 11 == 0:
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answers[0]}]
            asked = [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "And?"}]
            made.append({"prompt": asked, "chosen": "yes", "rejected": text})
        if number % 50 == 0:
            made += [{"prompt": ""}, "", [1]]
    return ["" if row == "" else json.dumps(row) for row in made] + ["{broken"]


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small files are divided for two processes; the number of parts that were read together, once per file."""
    used: list[int] = []
    read_parts = reading._read_parts

    def watched(pool: Any, parts: Any, examine: Any) -> Any:
        found = read_parts(pool, parts, examine)
        used.append(0 if found is None else len(parts))
        return found

    monkeypatch.setattr(reading, "LARGE_FILE_BYTES", 1)
    monkeypatch.setattr(reading, "_count_processes", lambda: 2)
    monkeypatch.setattr(reading, "_read_parts", watched)
    return used


def report_of(path: Path, **settings: Any) -> dict[str, Any]:
    return check_data(CheckConfig(files=(str(path),), held_out=(str(path),), **settings))


@pytest.mark.slow
def test_parts_give_the_report_of_the_whole(
    tmp_path: Path, in_parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + "\n".join(rows(600)))
    together = report_of(path)
    monkeypatch.setattr(reading, "LARGE_FILE_BYTES", 2**40)
    alone = report_of(path)
    assert in_parts == [8, 8]
    assert alone["files"][0]["refused"][0]["examples"][2]["place"].startswith(f"{path}:")
    assert alone["files"][0]["rankings"]["agreement"] is not None
    assert alone["files"][0]["rankings"]["labelers"] > 6
    assert 0 < alone["files"][0]["turns"]["with_system"] < 1
    assert together == alone


@pytest.mark.slow
def test_a_sample_of_parts_is_as_even_as_that_of_the_whole(tmp_path: Path, in_parts: list[int]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows(2000)))
    signs = report_of(path, token_rows=200)["files"][0]["signs"]
    assert in_parts == [8, 8]
    assert 50 <= signs["rows"] <= 200 and not signs["exact"]


def test_rows_that_belong_together_are_read_by_one_process(tmp_path: Path, in_parts: list[int]) -> None:
    path = tmp_path / "rows.jsonl"
    rated = dict.fromkeys(("correctness", "coherence", "complexity", "verbosity"), 1)
    made = [
        {"prompt": f"p{number // 2}", "response": f"r{number}", "helpfulness": number % 2, **rated}
        for number in range(200)
    ]
    path.write_text("\n".join(map(json.dumps, made)))
    report = report_of(path)
    assert in_parts == [0, 0, 8]  # as it looks, as demonstrations, and held out, where each row is a prompt
    assert report["files"][0]["rows"] == {"read": 200, "used": 200, "refused": 0, "breaks": 0}
    assert [stage["used"] for stage in report["files"][0]["stages"]] == [100, 200]
    assert [stage["records"] for stage in report["files"][0]["stages"]] == [100, 100]
    assert report["files"][0]["rankings"]["count"] == 100


def test_what_a_later_part_holds_is_known_to_the_stages(tmp_path: Path, in_parts: list[int]) -> None:
    path = tmp_path / "rows.jsonl"
    plain = [{"prompt": f"p{number}", "completion": "yes"} for number in range(100)]
    # with one reply each: no ranking, and a demonstration
    reply = {"text": "yes", "role": "assistant"}
    trees = [
        {"message_tree_id": f"t{number}", "prompt": {"text": f"t{number}", "role": "prompter", "replies": [reply]}}
        for number in range(100)
    ]
    path.write_text("\n".join(map(json.dumps, [*plain, *trees])))
    file = report_of(path)["files"][0]
    assert in_parts == [8, 8, 8, 8]
    assert file["rows"]["used"] == 100
    sft, reward = file["stages"]
    assert (sft["used"], sft["refused"]) == (200, 0)
    assert (reward["used"], reward["refused"]) == (0, 200)


def test_a_process_that_dies_does_not_lose_the_file(
    tmp_path: Path, in_parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows(50)))
    expected = report_of(path)
    import os

    parent = os.getpid()
    part_rows = reading.part_rows

    def dying(part: Any) -> Any:
        if os.getpid() != parent and part.lines_before > 30:
            os._exit(9)
        return part_rows(part)

    monkeypatch.setattr(reading, "part_rows", dying)
    assert report_of(path) == expected
    assert in_parts == [8, 8, 0, 0]
