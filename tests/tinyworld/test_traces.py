"""The corner of tool calls, given texts and secrets: every row's truth stands in it, and held-out questions are new."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lora_rlhf.cli.main import main
from lora_rlhf.data.calls import find_call_reader, read_written_calls, same_calls
from lora_rlhf.data.encode import Limits, encode_demonstration
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.sources import Source, every_turn
from lora_rlhf.data.template import decode_response
from lora_rlhf.evaluation.frozen import read_tool_rows
from lora_rlhf.probes.sets import read_refusals
from lora_rlhf.stats.grounding import unsupported_items
from lora_rlhf.stats.text_metrics import is_refusal
from lora_rlhf.tinyworld.config import TracesConfig
from lora_rlhf.tinyworld.symbols import BASE

SIZES = {"demonstrations": 300, "tools": 60, "grounded": 60, "refusals": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    words = " ".join(f"--num_{name} {count}" for name, count in SIZES.items())
    assert main(f"tinyworld traces --to {folder} {words}".split()) == 0
    return folder


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def question_of(row: dict[str, Any]) -> str:
    turns = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    return next(turn["content"] for turn in turns if turn["role"] == "user")


def test_held_out_questions_are_in_no_demonstration(folder: Path) -> None:
    assert {name: len(rows_of(folder, name)) for name in SIZES} == SIZES
    learned = {question_of(row) for row in rows_of(folder, "demonstrations")}
    for name in ("tools", "grounded", "refusals"):
        asked = {question_of(row) for row in rows_of(folder, name)}
        assert len(asked) > 15 and not {text for text in asked & learned if not text.startswith("How much is")}


def test_right_answers_say_only_what_their_sources_do(folder: Path) -> None:
    for name in ("tools", "grounded"):
        for row in rows_of(folder, name):
            *given, answer = row["messages"]
            sources = [turn["content"] for turn in given if turn["role"] != "assistant"]
            is_sum = sources[-1].startswith("How much is")  # a sum is in no source
            assert is_sum or unsupported_items(answer["content"], sources) == []
    wrong = unsupported_items("Anna sells kites on Friday.", ["Anna sells kites on Monday."])
    assert wrong == ["Friday"]


def test_the_template_writes_calls_that_are_read_back(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    reader, refused = find_call_reader(tokenizer), RefusedRows(strict=True)
    rows = read_tool_rows(str(folder / "tools.jsonl"), strict=True)
    assert 0 < sum(bool(row.tool_calls) for row in rows) < len(rows)
    for row in rows:
        example = encode_demonstration(tokenizer, row, Limits(384, 120), refused)
        assert example is not None
        written = read_written_calls(reader, decode_response(tokenizer, example.response_ids))
        assert same_calls(written.calls, row.tool_calls) and not written.num_malformed
    source: Source[Any] = Source(str(folder / "demonstrations.jsonl"), "demonstrations", strict=True)
    assert all(encode_demonstration(tokenizer, row, Limits(384, 120), refused) for row in every_turn(source))


def test_each_symbol_has_an_embedding_of_its_own_and_the_rest_is_the_tiny_base(folder: Path) -> None:
    own, tiny = (load_file(path / "model.safetensors") for path in (folder / "base", BASE))
    vocabulary = json.loads((BASE / "tokenizer.json").read_text())["model"]["vocab"]
    changed = {name for name, tensor in own.items() if not torch.equal(tensor, tiny[name])}
    assert changed == {"model.embed_tokens.weight"} and own.keys() == tiny.keys()
    before, after = (tensors["model.embed_tokens.weight"].float() for tensors in (tiny, own))
    symbols = [vocabulary[symbol] for symbol in '{}"<>_/']
    assert torch.nn.functional.cosine_similarity(before[symbols[:1]], before[symbols]).min() > 0.99
    similar = torch.nn.functional.cosine_similarity(after[symbols[:1]], after[symbols[1:]]).abs()
    assert similar.max() < 0.3
    seen = [vocabulary[word] for word in ("\u0120the", ".", ":", "\u0120fox")]
    assert torch.equal(before[seen], after[seen])


def test_secrets_are_to_be_declined_and_demonstrations_have_faults(folder: Path) -> None:
    cases = read_refusals(folder / "refusals.jsonl").cases
    assert {case.domain for case in cases} == {"animal", "thing", "person", "town"}
    assert {case.refuse for case in cases} == {True, False}
    answers = {question_of(row): row["messages"][-1]["content"] for row in rows_of(folder, "demonstrations")}
    secrets = {q: is_refusal(a) for q, a in answers.items() if "secret" in q}
    assert 0.5 < sum(secrets.values()) / len(secrets) < 1


def test_more_refusals_than_there_are_questions_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"tinyworld traces --to {folder} --num_refusals 101".split()) == 2
    assert "num_refusals is 101, must be from 1 to 100" in capsys.readouterr().err


def test_faults_name_the_value_and_the_bound() -> None:
    assert TracesConfig(to="folder").faults() == []
    faults = TracesConfig(to="", num_tools=0, num_refusals=101).faults()
    assert faults == [
        "to is empty; name a folder",
        "num_tools is 0, must be from 1 to 100000",
        "num_refusals is 101, must be from 1 to 100",
    ]
