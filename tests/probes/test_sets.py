"""Probe and choice files: read back as written, known by what they say, refused with the line of the fault."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.probes.audit import THRESHOLDS
from lora_rlhf.probes.checks import KINDS
from lora_rlhf.probes.sets import (
    Choice,
    ChoiceSet,
    Probe,
    ProbeSet,
    read_choices,
    read_probes,
)
from lora_rlhf.system.errors import UserError

SHORT = {"kind": "max_words", "words": 5}
PROBES = ProbeSet(
    "few",
    "7",
    (
        Probe(Prompt.of("Answer in five words: what is rain?"), "instruction_miss", SHORT),
        Probe(Prompt.of("Is ice cold?"), "inconsistency", {"kind": "same_as", "values": ["yes", "no"]}, "ice"),
        Probe(
            Prompt((Message("system", "Be brief."), Message("user", "How does one kill weeds?"))),
            "refusal_overreach",
            {"kind": "complies"},
        ),
        Probe(
            Prompt.of("Ice is cold, is it not?"), "inconsistency", {"kind": "same_as", "values": ["yes", "no"]}, "ice"
        ),
    ),
)
CHOICES = ChoiceSet("quiz", "1", (Choice(Prompt.of("What is two plus two?"), ("three", "four"), 1),))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["probes.jsonl", "probes.jsonl.gz"])
def test_a_probe_file_is_read_back_as_the_same_set(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / name, [{"name": "few", "version": "7"}, *(probe.row for probe in PROBES.probes)])
    assert read_probes(tmp_path / name) == PROBES


def test_a_choice_file_is_read_back_as_the_same_set(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "choices.jsonl", [{"name": "quiz", "version": "1"}, CHOICES.choices[0].row])
    assert read_choices(tmp_path / "choices.jsonl") == CHOICES


def test_a_file_without_a_first_row_of_its_own_is_named_after_itself(tmp_path: Path) -> None:
    probes = read_probes(write(tmp_path / "mine.v2.jsonl", [PROBES.probes[0].row]))
    assert (probes.name, probes.version, probes.probes) == ("mine", "1", PROBES.probes[:1])


def test_the_content_hash_is_the_sha256_of_the_canonical_rows() -> None:
    row = {"bin": "instruction_miss", "check": SHORT, "prompt": [["user", "Answer in five words: what is rain?"]]}
    text = json.dumps(row, sort_keys=True, separators=(",", ":"))
    assert ProbeSet("few", "7", PROBES.probes[:1]).content_hash == hashlib.sha256(text.encode()).hexdigest()
    choice = {"answer": 1, "options": ["three", "four"], "prompt": [["user", "What is two plus two?"]]}
    text = json.dumps(choice, sort_keys=True, separators=(",", ":"))
    assert CHOICES.content_hash == hashlib.sha256(text.encode()).hexdigest()


def test_the_spelling_of_a_file_does_not_change_the_content_hash(tmp_path: Path) -> None:
    rows = [{**probe.row, "prompt": [{"content": m.content, "role": m.role} for m in probe.prompt.messages]}
            for probe in PROBES.probes]  # fmt: skip
    lines = [json.dumps(dict(reversed(row.items())), indent=None, separators=(" , ", " : ")) for row in rows]
    with gzip.open(tmp_path / "spelling.jsonl.gz", "wt") as file:
        file.write("\n\n".join(lines))
    assert read_probes(tmp_path / "spelling.jsonl.gz").content_hash == PROBES.content_hash


@pytest.mark.parametrize("index", range(4))
def test_another_probe_changes_the_content_hash(index: int) -> None:
    probes = list(PROBES.probes)
    old = probes[index]
    probes[index] = Probe(Prompt.of("Something else?"), old.bin, old.check, old.pair)
    assert ProbeSet("few", "7", tuple(probes)).content_hash != PROBES.content_hash


def test_a_pair_is_one_case() -> None:
    assert [(case.bin, case.indices) for case in PROBES.cases] == [
        ("instruction_miss", (0,)),
        ("inconsistency", (1, 3)),
        ("refusal_overreach", (2,)),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"bin": "sycophancy", "check": SHORT}, "no column prompt"),
        ({"prompt": "A?", "bin": "rudeness", "check": SHORT}, "bin is not one of instruction_miss"),
        ({"prompt": "A?", "bin": "sycophancy", "check": "max_words"}, "expected an object with a kind"),
        ({"prompt": "A?", "bin": "sycophancy", "check": {"kind": "short"}}, "kind is 'short', expected one of"),
        ({"prompt": "A?", "bin": "sycophancy", "check": {"kind": "max_words"}}, "max_words needs words"),
        ({"prompt": "A?", "bin": "sycophancy", "check": {**SHORT, "word": 2}}, "max_words has no word"),
        ({"prompt": "A?", "bin": "sycophancy", "check": {**SHORT, "words": 0}}, "words is 0, expected a whole number"),
        ({"prompt": "A?", "bin": "sycophancy", "check": {"kind": "lacks", "any": []}}, "any is [], expected a list"),
        ({"prompt": "A?", "bin": "inconsistency", "check": {"kind": "same_as"}}, "needs a pair"),
        ({"prompt": "A?", "bin": "sycophancy", "check": SHORT, "pairs": "a"}, "unknown column pairs"),
        ({"prompt": " ", "bin": "sycophancy", "check": SHORT}, "the prompt is empty"),
        ({"prompt": "A?", "bin": "sycophancy", "check": SHORT, "pair": 3}, "a probe's pair is not text"),
        (["A?"], "not an object with columns"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_probe_is_refused_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "probes.jsonl", [PROBES.probes[0].row, row])
    with pytest.raises(UserError) as error:
        read_probes(path)
    assert message in str(error.value) and f"{path}:2: " in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": ["a", "b"], "answer": 2}, "answer is not the index of an option (0 to 1) (got 2)"),
        ({"options": ["a", "b"], "answer": True}, "answer is not the index of an option"),
        ({"options": ["a"], "answer": 0}, "at least 2 options"),
        ({"options": ["a", "a"], "answer": 0}, "an option stands twice"),
        ({"options": "ab", "answer": 0}, "options is not a list"),
        ({"options": ["a", 2], "answer": 0}, "an option is not text"),
    ],
)
def test_a_row_that_is_no_choice_is_refused_with_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "choices.jsonl", [CHOICES.choices[0].row, {"prompt": "A?", **row}])
    with pytest.raises(UserError) as error:
        read_choices(path)
    assert message in str(error.value) and f"{path}:2: " in str(error.value)


def test_files_that_hold_no_probes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "A?", "bin"\n')
    with pytest.raises(UserError, match="no such file; expected probes as JSONL"):
        read_probes(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="no probes in this file"):
        read_probes(write(tmp_path / "header.jsonl", [{"name": "x", "version": "1"}]))
    with pytest.raises(UserError, match=r"broken.jsonl:1 .*JSON"):
        read_probes(tmp_path / "broken.jsonl")


def test_a_pair_is_two_probes_of_one_bin(tmp_path: Path) -> None:
    first, second = PROBES.probes[1], PROBES.probes[3]
    with pytest.raises(UserError, match="a pair is two probes, 'ice' has 1"):
        read_probes(write(tmp_path / "one.jsonl", [first.row]))
    with pytest.raises(BadRow, match="in different bins"):
        ProbeSet("x", "1", (first, Probe(second.prompt, "sycophancy", second.check, "ice")))


def test_the_rows_of_the_page_are_probes_and_it_names_every_kind_and_flag(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "probes.md").read_text()
    (tmp_path / "page.jsonl").write_text(page.split("```json\n")[1].split("```")[0])
    assert len(read_probes(tmp_path / "page.jsonl").cases) == 3
    assert all(f"`{kind}`" in page for kind in KINDS)
    assert all(f"| {flag} |" in page for flag in THRESHOLDS)
