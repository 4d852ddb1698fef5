"""Each row goes to the one format that it is in, docs/data.md tells the truth about them, and no value crashes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_rlhf.data.formats import FORMATS, KNOWN_COLUMNS, LIST_COLUMNS, RecordKind, find_format
from lora_rlhf.data.recognise import QUESTION_FORMATS, UNKNOWN, explain_unrecognised_row, recognise_formats
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text, make_row
from lora_rlhf.system.errors import UserError
from tests.support.rows import RowSource, read

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "No"}
SECTION = re.compile(r"^### (\S+)\n(.*?)```json\n(.*?)```\n\nbecomes\n\n```json\n(.*?)```", re.MULTILINE | re.DOTALL)
EXAMPLES = {
    name: (*(list(map(json.loads, block.splitlines())) for block in (rows, records)), text)
    for name, text, rows, records in SECTION.findall(DOCS.read_text())
}


def names(row: Any, kind: RecordKind | None = None) -> list[str]:
    return [format.name for format in recognise_formats(row, kind)]


# ---------------------------------------------------------------------------------------------------------------------
# the documentation


USABLE = [format for format in FORMATS if not format.unusable_reason]


def test_every_usable_format_is_documented_and_no_other() -> None:
    assert list(EXAMPLES) == [format.name for format in USABLE]


def test_the_tables_of_formats_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| \[(\S+)\]\(#(\S+)\) \| (.*) \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    assert [(name, link, columns) for name, link, columns, _ in rows] == [
        (format.name, format.name, ", ".join(f"`{column}`" for column in format.required)) for format in USABLE
    ]
    for (*_, kinds), format in zip(rows, USABLE, strict=True):
        assert kinds.split(", ") == [kind for kind in format.readers if kind != "prompts" or len(format.readers) == 1]
    for format in FORMATS:
        columns = ", ".join(f"`{column}`" for column in format.required)
        assert (f"| {format.name} | {columns} | {format.unusable_reason} |" in DOCS.read_text()) == bool(
            format.unusable_reason
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_documented_row_becomes_what_the_documentation_says(name: str) -> None:
    rows, expected, _ = EXAMPLES[name]
    for kind in (find_format(name).kinds[0], *([] if name in QUESTION_FORMATS else [None])):
        source = RowSource(tuple(rows), kind)
        assert [make_row(record) for record in source] == expected
        assert source.formats == {name: len(rows)} and not source.faults


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "text"])
def test_any_documented_row_gives_its_prompts(name: str) -> None:
    rows, expected, _ = EXAMPLES[name]
    prompts = [make_row(prompt)["prompt"] for prompt in RowSource(tuple(rows), "prompts")]
    # answers of one prompt that stand in several rows give it once each
    distinct = dict.fromkeys(json.dumps(record["prompt"]) for record in expected)
    assert list(map(json.dumps, prompts)) == [
        prompt for prompt in distinct for _ in range(len(rows) if name in REPEATED else 1)
    ]


REPEATED = ("helpsteer", "unpaired", "scored")


def test_the_documentation_names_the_first_kind() -> None:
    first = {"demonstrations": "Demonstration", "rankings": "Ranking", "steps": "Steps"}
    first |= {"prompts": "Prompt", "texts": "Text"}
    for format in USABLE:
        text = " ".join(EXAMPLES[format.name][2].split())
        assert min(first.values(), key=lambda word: text.find(word) % 10**6) == first[next(iter(format.readers))], text


# ---------------------------------------------------------------------------------------------------------------------
# recognising


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        # the more specific format wins
        ({"instruction": "a", "input": "b", "output": "c"}, "demonstrations", ["alpaca"]),
        ({"input": "b", "output": "c", "system": "d"}, None, ["input-output"]),
        ({"prompt": "a", "completion": "b", "label": True}, "demonstrations", ["prompt-completion"]),
        ({"instruction": "a", "output": "b", "prompt": "c", "text": "d"}, None, ["alpaca"]),
        ({"prompt": "a", "messages": [USER, ANSWER], "text": "c"}, None, ["messages"]),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, "rankings", ["alpaca-preference"]),
        ({"prompt": {"text": "a"}, "message_tree_id": "x"}, None, ["oasst"]),
        ({"prompt": "a", "message_tree_id": "x"}, None, ["prompt"]),
        # missing values count as missing columns
        ({"prompt": "a", "response": "b", "completion": None}, "demonstrations", ["prompt-response"]),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": None, "score_rejected": 1},
            None,
            ["preference"],
        ),
        # a kind leaves out the formats that do not have it
        ({"prompt": "a", "messages": [USER], "chosen": "b", "rejected": "c"}, "demonstrations", ["messages"]),
        ({"prompt": "a", "messages": [USER], "chosen": "b", "rejected": "c"}, "rankings", ["messages-pair"]),
        ({"message_id": "1", "message_tree_id": "1", "text": "a", "role": "prompter"}, "texts", ["tree-messages"]),
        ({"instruction": "a", "output": "b", "text": "c"}, "texts", []),
        ({"text": "c", "label": 1}, "texts", []),
        ({"text": "c", "url": "b", "language_score": 0.9, "dump": "x"}, "texts", ["text"]),
        ({"text": "a"}, "prompts", []),
        # what the columns do not settle
        (
            {"prompt": "a", "completion": "b", "response": "c"},
            "demonstrations",
            ["prompt-completion", "prompt-response"],
        ),
        ({"prompt": "a", "text": "b"}, None, []),
        ({"prompt": "a", "text": "b"}, "prompts", ["prompt"]),
        # values decide where columns are equal
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "rankings", ["hh-rlhf"]),
        ({"chosen": "b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, "rankings", ["hh-rlhf"]),
        ({"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": "b", "rejected": "c"}, "rankings", ["preference"]),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "rankings", ["preference"]),
        ({}, None, []),
        (["prompt"], None, []),
        (None, "prompts", []),
    ],
)
def test_a_row_is_recognised(row: Any, kind: RecordKind | None, expected: list[str]) -> None:
    assert names(row, kind) == expected


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        (
            {"question": "a", "reply": "b", "split": None},
            "demonstrations",
            f"{UNKNOWN} (found question, reply; empty: split; nearest is question-answer, which lacks answer; "
            "as prompts alone the rows are for lora-rlhf ppo --prompts)",
        ),
        (
            {"prompt": "a", "answer": "b"},
            "demonstrations",
            f"{UNKNOWN} (found prompt, answer; nearest is prompt-completion, which lacks completion; "
            "as prompts alone the rows are for lora-rlhf ppo --prompts)",
        ),
        (
            {"prompt": "a", "completion": None},
            "demonstrations",
            "a needed column is empty (completion)",
        ),
        (
            {"chosen": "a", "rejected": None, "prompt": "x"},
            "rankings",
            "a needed column is empty (rejected)",
        ),
        (
            {"prompt": "a", "note": None},
            "demonstrations",
            "the row holds prompts, not demonstrations; prompts are for lora-rlhf ppo --prompts (format prompt; "
            "empty: note)",
        ),
        (
            {"prompt": "a", "responses": ["b", "c"]},
            "rankings",
            "responses without ranks: add ranks to each row, 1 for the best",
        ),
        (
            {"chosen": "a b", "rejected": "a c", "id": 1},
            "demonstrations",
            "the row holds rankings, not demonstrations; rankings are for lora-rlhf reward --rankings "
            "(format preference)",
        ),
        (
            {"instruction": "a", "output": "b"},
            "rankings",
            "the row holds demonstrations, not rankings; demonstrations are for lora-rlhf sft --demonstrations "
            "(format alpaca)",
        ),
        (
            {"text": "a"},
            "prompts",
            "the row holds texts, not prompts; texts are for lora-rlhf ppo --pretraining-text (format text)",
        ),
        (
            {"prompt": "a", "chosen": "b"},
            None,
            f"{UNKNOWN} (found prompt, chosen; nearest is preference, which lacks rejected; as prompts alone the rows "
            "are for lora-rlhf ppo --prompts)",
        ),
        ({"x": 1}, None, f"{UNKNOWN} (found x)"),
        ({}, "texts", f"{UNKNOWN} (found none)"),
        ({"prompt": None}, None, f"{UNKNOWN} (found none; empty: prompt)"),
        ([1], "texts", "the row is not an object with columns (got list)"),
    ],
)
def test_what_is_not_recognised_says_what_was_found_and_what_is_nearest(
    row: Any, kind: RecordKind | None, expected: str
) -> None:
    assert recognise_formats(row, kind) == ()
    assert str(explain_unrecognised_row(row, kind)) == expected


def test_a_message_does_not_grow_with_the_row() -> None:
    fault = explain_unrecognised_row({f"{'x' * 500}{column}": 1 for column in range(1000)}, "texts")
    assert len(str(fault)) < 700
    assert "and 988 more" in str(fault)


def test_the_reason_does_not_depend_on_the_row() -> None:
    reasons = {
        explain_unrecognised_row({f"a{column}": 1}, kind).reason
        for column in range(5)
        for kind in ("texts", "rankings", None)
    }
    assert reasons == {UNKNOWN}


def test_a_format_is_found_by_name() -> None:
    assert find_format("hh-rlhf").name == "hh-rlhf"
    with pytest.raises(
        UserError, match=r"--format alpacca: there is no such format; did you mean alpaca\? known: prompt-c"
    ):
        find_format("alpacca")
    with pytest.raises(UserError, match=r"no such format; known: prompt-completion, "):
        find_format("?")


def test_a_format_that_is_named_still_has_to_fit() -> None:
    hh = find_format("hh-rlhf")
    assert hh.is_format_of(
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "x": 1}
    )
    assert not hh.is_format_of({"chosen": "a", "rejected": "b"})
    assert not hh.is_format_of({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": None})
    assert not find_format("oasst").is_format_of({"message_tree_id": "x"})


def test_the_known_columns_are_those_of_the_formats() -> None:
    assert {"prompt", "human_ref_A", "fine-grained_score"} & KNOWN_COLUMNS == {"prompt", "human_ref_A"}
    assert {"worker", "labeler", "message_tree_id", "overall_preference", "input"} < KNOWN_COLUMNS
    # a cell of these is parsed: none of them ever holds plain text
    assert LIST_COLUMNS < KNOWN_COLUMNS
    assert not LIST_COLUMNS & {"prompt", "completion", "chosen", "rejected", "response", "output", "text", "context"}


# ---------------------------------------------------------------------------------------------------------------------
# prompts


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi"},
        {"prompt": [USER]},
        {"messages": [USER]},
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "Hi"}]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        # the responses are bad; the prompt is none the worse for it
        {"prompt": "Hi", "responses": ["only one"], "ranks": []},
        {"prompt": "Hi", "completion": ""},
        {"prompt": "Hi", "response": 3},
        {"prompt": "Hi", "chosen": "same", "rejected": "same"},
        {"prompt": "Hi", "chosen": [USER], "rejected": 3},
        {"instruction": "Hi", "output": 7},
        {"question": "Hi", "chosen": "same", "rejected": "same"},
        {"history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": "?"},
        {"prompt": "Hi", "completion": "b", "label": False},
        {"prompt": "Hi", "answers": []},
    ],
)
def test_prompts_are_found_in_any_row(row: dict) -> None:
    assert read("prompts", row) == [Prompt((Message("user", "Hi"),))]


# ---------------------------------------------------------------------------------------------------------------------
# whatever the values are


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3) | st.just("\ud800")
WORDS = st.sampled_from(["a", "b", "\n\nHuman: a\n\nAssistant: b", "<extra_id_1>User\na", '[{"role": 1', "5", "N/A"])
FIELDS = st.sampled_from(
    "role content from value type text response annotations overall_score fine-grained_score answer rank post article "
    "replies deleted message_id Rating".split()
)
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "prompter"])
MESSAGES = st.fixed_dictionaries({"role": ROLES, "content": WORDS | SCALARS})
TREES = st.recursive(
    st.fixed_dictionaries({"role": ROLES, "text": WORDS | SCALARS, "rank": SCALARS}),
    lambda node: st.fixed_dictionaries({"role": ROLES, "text": WORDS, "replies": st.lists(node, max_size=3) | SCALARS}),
    max_leaves=4,
)
VALUES = st.recursive(
    SCALARS | WORDS | MESSAGES | st.lists(MESSAGES, max_size=3) | TREES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=6,
)


@pytest.mark.parametrize("format", FORMATS, ids=[format.name for format in FORMATS])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_value_makes_a_reader_fail(format, data: st.DataObject) -> None:
    """Records or refusals, nothing else, from every reader, for any JSON in the columns that it uses."""
    rows = []
    for _ in range(data.draw(st.integers(1, 3 if format.merge_rows or format.name in REPEATED else 1))):
        row = {column: data.draw(VALUES.filter(lambda value: value is not None)) for column in format.required}
        if format.name == "oasst":  # is recognised by its tree
            row["prompt"] = data.draw(TREES | st.dictionaries(FIELDS, VALUES, max_size=4))
        row |= {column: data.draw(VALUES) for column in format.optional[:5] if data.draw(st.booleans())}
        row |= {column: data.draw(VALUES) for column in SAYING if data.draw(st.integers(0, 5)) == 0}
        recognise_formats(row, None)
        rows.append(row)
    expected = {"demonstrations": Demonstration, "rankings": Ranking, "prompts": Prompt, "texts": Text}
    for kind in format.readers:
        source = RowSource(tuple(rows), kind, format=format.name)
        records = list(source)
        assert source.used + source.refused.count == source.read == len(rows)
        assert all(isinstance(record, expected[kind]) for record in records)


# columns whose names mean something beside any format
SAYING = "system history context is_safe score weight thinking tools images choices name chosen_rating status".split()
