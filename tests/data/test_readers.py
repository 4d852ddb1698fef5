"""Each format is recognised by its columns and read into the same records; what is not recognised is named."""

import pytest

from lora_rlhf.data.readers import DEMONSTRATIONS, PROMPTS, RANKINGS, TEXTS, read_row
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text, row_of

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "No"}
SYSTEM = {"role": "system", "content": "Be kind."}
HI = Prompt.of("Hi")
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
DIALOGUE_PROMPT = Prompt((Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?")))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": "Hi", "response": "Hello"},
        {"prompt": "Hi", "response": "Hello", "completion": None},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [{"role": "system", "content": ""}, USER], "completion": "Hello"},
        {"messages": [USER, ANSWER]},
    ],
)
def test_demonstrations(row: dict) -> None:
    assert read_row(DEMONSTRATIONS, {**row}, "f:1").response == "Hello"
    assert read_row(DEMONSTRATIONS, row, "f:1").prompt.messages == HI.messages


def test_many_turns_and_a_system_message_stay_in_the_prompt() -> None:
    record = read_row(DEMONSTRATIONS, {"messages": [SYSTEM, USER, ANSWER, USER, OTHER]}, "f:1")
    assert [message.role for message in record.prompt.messages] == ["system", "user", "assistant", "user"]
    assert record.response == "No"


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"prompt": "Hi", "responses": ["a", "b"], "ranks": [1, 2]}, HI, ("a", "b")),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, HI, ("a", "b")),
        ({"prompt": "Hi", "chosen": [ANSWER], "rejected": [OTHER]}, HI, ("Hello", "No")),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, HI, ("Hello", "No")),
        # UltraFeedback's binarised form says the prompt twice
        ({"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, HI, ("Hello", "No")),
        ({"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} b"}, DIALOGUE_PROMPT, ("a", "b")),
        ({"prompt": DIALOGUE, "chosen": " a", "rejected": " b"}, DIALOGUE_PROMPT, (" a", " b")),
        ({"chosen": f"{DIALOGUE} a", "rejected": DIALOGUE}, DIALOGUE_PROMPT, ("a", "")),
        (
            {"chosen": "What is it? A cat.", "rejected": "What is it? A car."},
            Prompt.of("What is it? A"),
            ("cat.", "car."),
        ),
    ],
)
def test_rankings(row: dict, prompt: Prompt, responses: tuple[str, ...]) -> None:
    record = read_row(RANKINGS, row, "f:1")
    assert record == Ranking(Prompt(prompt.messages, record.prompt.meta), responses, (1, 2))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi"},
        {"prompt": [USER]},
        {"messages": [USER]},
        {"messages": [USER, ANSWER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"prompt": "Hi", "responses": ["only one"]},
    ],
)
def test_prompts_are_found_in_any_row(row: dict) -> None:
    assert read_row(PROMPTS, row, "f:1").messages == HI.messages


def test_other_columns_are_kept_with_the_prompt() -> None:
    row = {"prompt": "Hi", "completion": "Hello", "source": "web", "score": 3}
    prompt = read_row(DEMONSTRATIONS, row, "f.jsonl:7").prompt
    assert prompt.meta == {"source": "web", "score": 3}
    assert prompt.origin == "f.jsonl:7"
    assert read_row(RANKINGS, {"prompt": "Hi", "chosen": "a", "rejected": "b", "labeler": "Ada"}, "").labeler == "Ada"


@pytest.mark.parametrize(
    ("table", "row", "reason"),
    [
        (DEMONSTRATIONS, {"question": "a", "answer": "b"}, "found answer, question; expected prompt \\+ completion | "),
        (DEMONSTRATIONS, {}, "found none; expected"),
        (DEMONSTRATIONS, ["a"], "not an object"),
        (DEMONSTRATIONS, {"prompt": 3, "completion": "b"}, "neither text nor a list"),
        (DEMONSTRATIONS, {"prompt": [{"from": "human"}], "completion": "b"}, "without role and content"),
        (DEMONSTRATIONS, {"prompt": "a", "completion": [USER]}, "not one assistant's message"),
        (DEMONSTRATIONS, {"messages": [USER, ANSWER, USER]}, "does not end with an assistant's message"),
        (DEMONSTRATIONS, {"messages": []}, "does not end with an assistant's message"),
        (RANKINGS, {"prompt": "a", "responses": ["x"], "ranks": [1]}, "at least 2 responses"),
        (RANKINGS, {"prompt": "a", "responses": "xy", "ranks": [1, 2]}, "responses is not a list"),
        (RANKINGS, {"prompt": "a", "chosen": "x", "rejected": "x"}, "are the same"),
        (RANKINGS, {"chosen": "Yes", "rejected": "No"}, "share no prompt"),
        (RANKINGS, {"chosen": [ANSWER], "rejected": [OTHER]}, "share no prompt"),
        (RANKINGS, {"chosen": [SYSTEM, USER, ANSWER], "rejected": [USER, OTHER]}, "differ before their last"),
        (PROMPTS, {"messages": []}, "the prompt is empty"),
        (TEXTS, {"content": "x"}, "found content; expected text"),
    ],
)
def test_what_can_not_be_read_says_why(table, row, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read_row(table, row, "f:1")


@pytest.mark.parametrize(
    ("table", "record"),
    [
        (PROMPTS, Prompt((Message("system", "Be kind."), Message("user", "Hi")), meta={"id": 1})),
        (DEMONSTRATIONS, Demonstration(Prompt((Message("user", "Hi"),), meta={"id": 1}), "Hello")),
        (RANKINGS, Ranking(DIALOGUE_PROMPT, ("a", "b", "c"), (2, 1, 2), "Ada")),
        (TEXTS, Text("Once.")),
    ],
)
def test_records_survive_being_written_as_rows(table, record) -> None:
    assert read_row(table, row_of(record), "f:1") == record
