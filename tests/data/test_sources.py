"""Whole files: every usable record, every refusal with its place, and an error where nothing is usable."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.readers import RANKINGS, read_row
from lora_rlhf.data.sources import numbered_rows, read_demonstrations, read_prompts, read_rankings, read_texts
from lora_rlhf.errors import UserError

GOOD = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize("packed", [False, True])
def test_bad_rows_are_refused_with_file_and_line(tmp_path: Path, packed: bool) -> None:
    text = (GOOD + '{"prompt": "a"}\n\n' + "not json\n" + GOOD + '{"prompt": "", "completion": "b"}\n').encode()
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(text) if packed else text)
    records, refused = read_demonstrations(path)
    assert [record.prompt.origin for record in records] == [f"{path}:1", f"{path}:5"]
    assert [row.origin for row in refused] == [f"{path}:2", f"{path}:4", f"{path}:6"]
    assert refused.count == 3
    assert "found prompt; expected prompt + completion" in refused.summary()
    with pytest.raises(UserError, match=rf"{path.name}:2: columns not recognised"):
        read_demonstrations(path, strict=True)


def test_a_ranking_with_one_response_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    write_jsonl(
        path,
        [
            {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]},
            {"prompt": "p", "responses": ["a"], "ranks": [1]},
        ],
    )
    records, refused = read_rankings(path)
    assert (len(records), refused.count) == (1, 1)
    assert str(next(iter(refused))) == f"{path}:2: a ranking needs at least 2 responses (got 1)"
    with pytest.raises(UserError, match=r"rankings\.jsonl:2: a ranking needs at least 2 responses"):
        read_rankings(path, strict=True)


@pytest.mark.parametrize("text", ["", "\n  \n", "[]"])
def test_an_empty_file_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.json"
    path.write_text(text)
    for read in (read_demonstrations, read_rankings, read_prompts, read_texts):
        with pytest.raises(UserError, match=r"empty\.json: no rows; the file is empty"):
            read(path)


def test_a_file_without_a_usable_row_is_an_error_with_the_first_reasons(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.jsonl"
    write_jsonl(path, [{"instruction": "a", "output": "b"}] * 5)
    with pytest.raises(UserError) as caught:
        read_demonstrations(path)
    message = str(caught.value)
    assert "none of its 5 rows can be used" in message
    assert "found instruction, output; expected prompt + completion | prompt + response | messages" in message
    assert f"{path}:1; {path}:2; {path}:3, ..." in message


def test_texts_come_from_rows_or_from_a_text_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "One."}, {"text": " "}, {"text": "Two."}])
    records, refused = read_texts(tmp_path / "texts.jsonl")
    assert ([record.text for record in records], refused.count) == (["One.", "Two."], 1)
    (tmp_path / "book.txt").write_text("First.\n\nSecond.\n")
    assert [record.text for record in read_texts(tmp_path / "book.txt")[0]] == ["First.\n\nSecond.\n"]
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(UserError, match=r"blank\.txt: the file is empty"):
        read_texts(tmp_path / "blank.txt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "no such file"),
        ("folder/missing.jsonl.gz", "no such file"),
        ("rows.csv", "expected .jsonl"),
        ("book.txt", "for texts only"),
        ("./not/a/hub/name", "expected .jsonl"),
    ],
)
def test_a_wrong_name_is_an_error(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_demonstrations(name)
    with pytest.raises(UserError, match="no such file"):
        read_texts("missing.txt")


def test_rows_of_a_dataset_are_named_by_number() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]
    dataset = Dataset.from_list([{"chosen": turns, "rejected": [turns[0], {"role": "assistant", "content": "b"}]}])
    ((origin, row),) = numbered_rows(dataset, "owner/name:train")
    record = read_row(RANKINGS, row, origin)
    assert origin == record.prompt.origin == "owner/name:train row 1"
    assert record.responses == ("a", "b")


def test_a_hub_name_that_can_not_be_loaded_is_an_error() -> None:
    code = "from lora_rlhf.data.sources import read_prompts\nread_prompts('nobody-at-all/no-such-set:test')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    last = done.stderr.strip().split("UserError: ")[-1]
    assert last.startswith("nobody-at-all/no-such-set: neither a file here nor a hub dataset with split 'test'")
