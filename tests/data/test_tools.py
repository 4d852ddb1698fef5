"""Tools, calls and thoughts of rows: every form of them becomes the same record, and none is dropped in silence."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lora_rlhf.data.encode import EncodedPrompt, Limits, encode_demonstration, encode_prompt
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Demonstration, Message, Prompt, ToolCall, make_row
from lora_rlhf.data.sources import every_turn
from lora_rlhf.data.spool import make_prompt_spool
from tests.support.rows import RowSource, read
from tests.support.thinking import give_thoughts

ARGUMENTS = {"city": "Rome", "days": [1, 2]}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Rain?", "parameters": PARAMETERS},
}
ASKED = {"role": "user", "content": "Is it warm in Rome?"}
CALLS: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "30 degrees"}
ANSWER = {"role": "assistant", "content": "Yes."}
READ_CALL = ToolCall("weather", json.dumps(ARGUMENTS), "c1")
PROMPT = (
    Message("user", "Is it warm in Rome?"),
    Message("assistant", "", tool_calls=(READ_CALL,)),
    Message("tool", "30 degrees", call_id="c1"),
)


def without_ids(demonstration: Demonstration) -> Demonstration:
    messages = tuple(
        replace(message, call_id="", tool_calls=tuple(call._replace(id="") for call in message.tool_calls))
        for message in demonstration.prompt.messages
    )
    return replace(demonstration, prompt=replace(demonstration.prompt, messages=messages))


def test_openai_messages() -> None:
    row = {"messages": [{"role": "developer", "content": "Be brief."}, ASKED, CALLS, RESULT, ANSWER], "tools": [TOOL]}
    expected = Demonstration(Prompt((Message("system", "Be brief."), *PROMPT), tools=json.dumps([TOOL])), "Yes.")
    assert read("demonstrations", row) == [expected]
    assert read("demonstrations", make_row(expected)) == [expected]  # what is written is read as the same
    (prompt,) = read("prompts", {"messages": row["messages"][:-1], "tools": json.dumps([TOOL])})
    assert prompt == expected.prompt
    calls = read("demonstrations", {"messages": row["messages"][:3], "tools": [TOOL]})
    assert calls == [Demonstration(Prompt(expected.prompt.messages[:2], tools=expected.prompt.tools), "", (READ_CALL,))]
    assert read("demonstrations", make_row(calls[0])) == calls


FUNCTION = {"name": "weather", "arguments": ARGUMENTS}


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [
                {"from": "human", "value": ASKED["content"]},
                {"from": "function_call", "value": json.dumps(FUNCTION)},
                {"from": "observation", "value": "30 degrees"},
                {"from": "gpt", "value": "Yes."},
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
        {
            "messages": [
                ASKED,
                {"role": "assistant", "content": "", "function_call": {**FUNCTION, "arguments": json.dumps(ARGUMENTS)}},
                {"role": "function", "content": "30 degrees"},
                ANSWER,
            ],
            "functions": [TOOL["function"]],
        },
        {
            "messages": [
                ASKED,
                {"role": "assistant", "content": [], "tool_calls": [FUNCTION]},
                {"role": "tool", "content": [{"type": "text", "text": "30 degrees"}]},
                ANSWER,
            ],
            "tools": json.dumps([TOOL]),
        },
        {
            "prompt": [ASKED, {"role": "tool_call", "content": FUNCTION}, {"role": "tool", "content": "30 degrees"}],
            "completion": [ANSWER],
            "tools": [{**TOOL, "function": {**TOOL["function"], "strict": None}}],  # as a table fills it
        },
    ],
)
def test_other_forms_of_the_same(row: dict[str, Any]) -> None:
    expected = Demonstration(Prompt(PROMPT, tools=json.dumps([TOOL])), "Yes.")
    (record,) = read("demonstrations", row)
    assert without_ids(record) == without_ids(expected)


def test_results_that_are_no_text_are_written_as_json() -> None:
    values: list[Any] = [{"degrees": 30}, [30, "°"], None, 30]
    for value, text in zip(values, ['{"degrees": 30}', '[30, "°"]', "", "30"], strict=True):
        (record,) = read("demonstrations", {"messages": [ASKED, CALLS, {**RESULT, "content": value}, ANSWER]})
        assert record.prompt.messages[-1].content == text


def test_tools_that_the_system_message_holds_are_not_written_twice() -> None:
    system = {"role": "system", "content": f"You may call <tools>{json.dumps([TOOL])}</tools>"}
    (record,) = read("demonstrations", {"messages": [system, ASKED, ANSWER], "tools": [TOOL]})
    assert record.prompt.tools == ""
    (record,) = read(
        "demonstrations", {"messages": [{**system, "content": "Be kind."}, ASKED, ANSWER], "tools": [TOOL]}
    )
    assert record.prompt.tools == json.dumps([TOOL])


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([{"function": {"name": "weather", "arguments": "city=Rome"}}], "the arguments of a tool call are no JSON"),
        ([{"function": {"name": "weather", "arguments": '{"city": '}}], "the arguments of a tool call are no JSON"),
        ([{"function": {"name": "weather", "arguments": "[1]"}}], "the arguments of a tool call are no JSON object"),
        ([{"function": {"name": "weather", "arguments": 3}}], "the arguments of a tool call are no JSON object"),
        ([{"function": {"name": "weather", "arguments": "[" * 500 + "]" * 500}}], "are no JSON"),
        ([{"function": {"name": "", "arguments": {}}}], "a tool call has no name"),
        ([{"function": "weather"}], "a tool call is no JSON"),
        (["weather"], "a tool call has no name"),
        ("weather(Rome)", "tool_calls is no JSON"),
    ],
)
def test_calls_that_cannot_be_read_refuse_the_row(calls: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read("demonstrations", {"messages": [ASKED, {**CALLS, "tool_calls": calls}]})


@pytest.mark.parametrize(
    "tools", ["weather", '["weather"]', [{"function": {"description": "?"}}], [{"name": 3}], [[TOOL]], "[{"]
)
def test_tools_that_cannot_be_read_refuse_the_row(tools: Any) -> None:
    with pytest.raises(BadRow, match=r"tools is (no JSON|not a list of functions with names)"):
        read("demonstrations", {"messages": [ASKED, ANSWER], "tools": tools})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": [ASKED, CALLS], "rejected": [ASKED, ANSWER]}, "a ranked answer calls a tool"),
        ({"prompt": "Hi", "chosen": [ANSWER], "rejected": [CALLS]}, "a ranked answer calls a tool"),
        ({"prompt": "Hi", "responses": [[CALLS], "No."], "ranks": [1, 2]}, "a ranked answer calls a tool"),
        ({"messages": [ASKED, CALLS], "rejected_response": "No."}, "a ranked answer calls a tool"),
        (
            {"prompt": "Hi", "chosen": "a", "rejected": "b", "tools": [TOOL], "functions": [{"name": "f"}]},
            "two columns",
        ),
    ],
)
def test_what_rankings_do_not_take(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read("rankings", row)


def test_rankings_behind_results_of_tools() -> None:
    before = [ASKED, CALLS, RESULT]
    row = {"chosen": [*before, ANSWER], "rejected": [*before, {**ANSWER, "content": "No."}], "tools": [TOOL]}
    (ranking,) = read("rankings", row)
    assert (ranking.prompt.messages, ranking.prompt.tools) == (PROMPT, json.dumps([TOOL]))
    assert ranking.responses == ("Yes.", "No.")
    assert read("rankings", make_row(ranking)) == [ranking]


def test_graded_answers_with_calls() -> None:
    row = {"messages": [ASKED, CALLS], "tools": [TOOL], "label": True}
    (record,) = read("demonstrations", row)
    assert record.tool_calls == (READ_CALL,) and record.prompt.tools == json.dumps([TOOL])
    source = RowSource((row, {**row, "messages": [ASKED, ANSWER], "label": False}), "rankings")
    assert list(source) == [] and {fault.reason for fault in source.faults} == {
        "a ranked answer calls a tool, and rankings are of texts"
    }


def test_every_turn_learns_calls_and_no_result() -> None:
    (record,) = read("demonstrations", {"messages": [ASKED, CALLS, RESULT, ANSWER, ASKED, ANSWER], "tools": [TOOL]})
    learned = [(each.prompt.messages[-1].role, each.response, each.tool_calls) for each in every_turn([record])]
    assert learned == [("user", "", (READ_CALL,)), ("tool", "Yes.", ()), ("user", "Yes.", ())]
    assert {each.prompt.tools for each in every_turn([record])} == {json.dumps([TOOL])}


THOUGHT = {"prompt": [ASKED], "completion": "<think>\nRome is south.\n</think>\n\nYes."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, {**ANSWER, "reasoning_content": "Rome is south."}]},
        {"messages": [ASKED, {**ANSWER, "thinking": "\nRome is south.\n", "reasoning_content": None}]},
        {"messages": [ASKED, {**ANSWER, "content": THOUGHT["completion"], "reasoning_content": "Rome is south."}]},
        {"conversations": [{"from": "human", "value": ASKED["content"]}, {**ANSWER, "reasoning": "Rome is south."}]},
        {"prompt": ASKED["content"], "completion": "Yes.", "reasoning": "Rome is south."},
        {"question": ASKED["content"], "solution": "Yes.", "thinking_trajectories": ["Rome is south."]},
        {"question": ASKED["content"], "answer": "Yes.", "deepseek_reasoning": "Rome is south."},
    ],
)
def test_thoughts_beside_an_answer(row: dict[str, Any]) -> None:
    assert read("demonstrations", row) == read("demonstrations", THOUGHT)


def test_thoughts_that_are_refused() -> None:
    with pytest.raises(BadRow, match="the answer has two thoughts"):
        read("demonstrations", {**THOUGHT, "reasoning": "Rome is north."})
    with pytest.raises(BadRow, match="the row holds a thought in a place"):
        read("rankings", {"prompt": "Hi", "chosen": "a", "rejected": "b", "reasoning": "a is first."})
    (record,) = read("demonstrations", {"messages": [ASKED, {**CALLS, "reasoning_content": "Ask."}]})
    assert (record.response, record.tool_calls) == ("<think>\nAsk.\n</think>\n\n", (READ_CALL,))


def test_prompts_with_tools_come_back_from_disk() -> None:
    spool = make_prompt_spool()
    prompt = Prompt(PROMPT, {"id": 1}, "here:1", json.dumps([TOOL]))
    spool.append(EncodedPrompt([1], prompt))
    assert spool[0].prompt == prompt and spool[0].prompt.origin == "here:1"


LIMITS = Limits(64, 64)


def test_the_question_before_calls_is_cut_and_results_stay_whole(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    give_thoughts(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    refused = RefusedRows()
    question = Message("user", "the horse eats hay and grass " * 12)
    earlier = (Message("user", "Hello."), Message("assistant", "Hi."))
    prompt = Prompt((*earlier, question, *PROMPT[1:]))
    ids = encode_prompt(tokenizer, prompt, 120, refused)
    assert ids is not None
    text = tokenizer.decode(ids)
    assert len(ids) <= 120 and refused.truncated_prompts == 1 and not refused.count
    assert text.startswith("<|im_start|>user") and "Hello" not in text and "30 degrees" in text
    assert text.count("<tool_call>") == text.count("</tool_call>") == 1 and "grass" in text
    assert encode_prompt(tokenizer, prompt, 40, refused) is None  # results leave no room
    with_tools = Demonstration(Prompt(PROMPT, tools=json.dumps([TOOL])), "Yes.")
    assert encode_demonstration(tokenizer, with_tools, LIMITS, refused) is None
    assert "the chat template takes no tools" in refused.summary()


def test_a_template_without_calls_refuses_them(make_tokenizer) -> None:
    refused = RefusedRows()
    tokenizer = make_tokenizer("chatml")
    assert encode_demonstration(tokenizer, Demonstration(Prompt(PROMPT), "Yes."), LIMITS, refused) is None
    assert "the chat template writes no tool calls" in refused.summary()
