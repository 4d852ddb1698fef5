"""Demonstrations, prompts and texts as they stand on the hub, and the messages that any column may hold."""

import pytest

from lora_rlhf.data.formats import RecordKind
from lora_rlhf.data.messages import is_hh_dialogue, to_prompt, to_response
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text, make_row
from lora_rlhf.data.verdicts import to_number
from tests.support.rows import read as read_rows

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "No"}
SYSTEM = {"role": "system", "content": "Be kind."}
HI = Prompt.of("Hi")
KIND = Message("system", "Be kind.")


def read(kind: RecordKind, row: dict):
    (record,) = read_rows(kind, row)
    return record


def demonstration(row: dict) -> Demonstration:
    return read("demonstrations", row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": "Hi", "response": "Hello"},
        {"prompt": "Hi", "response": "Hello", "completion": None},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "completion": ANSWER},
        {"prompt": [{"role": "system", "content": ""}, USER], "completion": "Hello"},
        {"prompt": [{"role": "system", "content": None}, USER], "completion": "Hello"},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]}
        | {"completion": "Hello"},
        {"messages": [USER, ANSWER]},
        {"messages": (USER, ANSWER), "prompt": "Hi", "prompt_id": "1"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": "x_0"},
        {"conversations": [{"from": "user", "value": "Hi"}, {"from": "bing", "value": "Hello"}], "system": None},
        {
            "conversations": [
                {"from": "system", "value": " "},
                {"from": "human", "value": "Hi"},
                {"from": "bard", "value": "Hello"},
            ]
        },
        {"conversations": [USER, ANSWER], "system_prompt": ""},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "input": None, "output": "Hello", "text": "Below is ...", "system": "", "history": []},
        {"instruction": "", "input": "Hi", "output": "Hello", "history": None},
        {"instruction": "Hi", "context": "", "response": "Hello", "category": "open_qa"},
        {"system_prompt": "", "question": "Hi", "response": "Hello"},
    ],
)
def test_demonstrations(row: dict) -> None:
    assert demonstration(row) == Demonstration(HI, "Hello")


def test_many_turns_and_a_system_message_stay_in_the_prompt() -> None:
    record = demonstration({"messages": [SYSTEM, USER, ANSWER, USER, OTHER]})
    assert [message.role for message in record.prompt.messages] == ["system", "user", "assistant", "user"]
    assert record.response == "No"


def test_a_prompt_of_several_turns_as_text() -> None:
    assert to_prompt("\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:") == Prompt(
        (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?"))
    )
    assert to_prompt("Human: Hi\n\nAssistant: ") == HI
    # words that only look like turns
    assert not is_hh_dialogue("The Human: a study")
    assert to_prompt("Human: Hi") == Prompt.of("Human: Hi")
    assert to_prompt("Ask the\nHuman: Hi\n\nAssistant: x").messages[0].content.startswith("Ask the")


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("demonstrations", {"prompt": 3, "completion": "b"}, "^prompt is neither text nor a list"),
        (
            "demonstrations",
            {"prompt": [{"from": "human"}], "completion": "b"},
            "prompt holds a message without role and",
        ),
        ("demonstrations", {"prompt": ["Hi"], "completion": "b"}, "prompt holds a message without role and content"),
        ("demonstrations", {"prompt": [["user", "Hi"]], "completion": "b"}, "a message without role and content"),
        ("demonstrations", {"prompt": [{"role": ["user"], "content": "a"}], "completion": "b"}, "role is not one of"),
        ("demonstrations", {"prompt": [{"role": "user", "content": None}], "completion": "b"}, "content is not text"),
        (
            "demonstrations",
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": "b"},
            "the row points at an image",
        ),
        (
            "demonstrations",
            {"prompt": [{"role": "user", "content": [1]}], "completion": "b"},
            "parts that are not text",
        ),
        ("demonstrations", {"prompt": '[{"role": "user", "cont', "completion": "b"}, "written as text"),
        (
            "demonstrations",
            {"prompt": "a", "completion": "[{'role': 'assistant'}]"},
            "message without role and content",
        ),
        ("demonstrations", {"prompt": "a", "completion": [USER]}, "completion is not one assistant's message"),
        ("demonstrations", {"prompt": "a", "completion": 3}, "the completion is not text"),
        ("demonstrations", {"prompt": "a", "completion": " "}, "the response is empty"),
        ("demonstrations", {"prompt": "a\ud800", "completion": "b"}, "half a character"),
        ("demonstrations", {"messages": [USER, ANSWER, USER]}, "messages does not end with an assistant's message"),
        ("demonstrations", {"messages": []}, "does not end with an assistant's message"),
        ("demonstrations", {"messages": [ANSWER]}, "the prompt is empty"),
        ("demonstrations", {"messages": [USER, ANSWER, OTHER]}, "two of the assistant's messages follow one another"),
        ("demonstrations", {"messages": {"role": "user"}}, "messages is neither text nor a list"),
        ("demonstrations", {"conversations": [{"from": "human", "value": "Hi"}]}, "conversations does not end with an"),
        (
            "demonstrations",
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "{}"}]},
            "a tool call has no name",
        ),
        ("demonstrations", {"instruction": " ", "input": "", "output": "b"}, "the prompt is empty"),
        (
            "demonstrations",
            {"instruction": "a", "input": [1], "output": "c"},
            "the input is not text",
        ),
        (
            "demonstrations",
            {"instruction": "a", "output": ["b", "c"]},
            "output is not one assistant's message .it is a list of 2",
        ),
        ("prompts", {"messages": []}, "the prompt is empty"),
        ("prompts", {"messages": [USER, ANSWER, ANSWER]}, "does not end with a user's message"),
        ("texts", {"text": ""}, "the text is empty"),
        ("texts", {"text": ["a"]}, "the text is not text"),
    ],
)
def test_what_can_not_be_read_says_why(kind: RecordKind, row: dict, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(kind, row)


def test_an_answer_may_be_json() -> None:
    assert to_response('{"name": "Ada"}', "completion") == '{"name": "Ada"}'
    assert to_response("[1, 2]", "completion") == "[1, 2]"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[(3, 3.0), ("4.5", 4.5), (-0.5, -0.5), ("N/A", None), (True, None), (None, None), ([1], None)],
        *[(float("nan"), None), ("inf", None), (10**400, None)],
    ],
)
def test_numbers(value, number: float | None) -> None:
    assert to_number(value) == number


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("prompts", Prompt((KIND, Message("user", "Hi")))),
        ("demonstrations", Demonstration(HI, "Hello")),
        (
            "demonstrations",
            Demonstration(Prompt((Message("user", "a"), Message("assistant", "b"), Message("user", "c"))), "d"),
        ),
        ("rankings", Ranking(HI, ("a", "b", "c"), (2, 1, 2), "Ada")),
        ("texts", Text("Once.")),
    ],
)
def test_records_survive_being_written_as_rows(kind: RecordKind, record) -> None:
    assert read(kind, make_row(record)) == record
