"""Calls in what a model wrote: each known form is found by a template's own writing, and read as the same calls."""

import json
from typing import Any

import pytest

from lora_rlhf.data.calls import find_call_reader, read_written_calls, same_calls, same_tools
from lora_rlhf.data.encode import Limits, encode_demonstration
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import ToolCall
from lora_rlhf.data.sources import every_turn
from tests.support.rows import read

START = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls or [] %}{% set f = call.function %}"
)
END = (
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HERMES = "{{ '<tool_call>\n' + f | tojson + '\n</tool_call>' }}"
MISTRAL = "{{ '[TOOL_CALLS] [' + f | tojson + ']' }}"
MISTRAL_ARGS = "{{ '[TOOL_CALLS]' + f.name + '[CALL_ID]' + call.id + '[ARGS]' + f.arguments | tojson }}"
LLAMA = "{{ '{\"name\": \"' + f.name + '\", \"parameters\": ' + f.arguments | tojson + '}' }}"
FORMS = {"hermes": HERMES, "mistral": MISTRAL, "mistral_args": MISTRAL_ARGS, "llama": LLAMA}
ROME = ToolCall("weather", '{"city": "Rome", "days": [1, 2]}')
ROME_AGAIN = ToolCall("weather", '{"days": [1.0, 2], "city": "Rome"}', "another")
PARIS = ToolCall("weather", '{"city": "Paris"}')
TIME = ToolCall("time", "{}")


def tokenizer_of(make_tokenizer: Any, form: str) -> Any:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = START + FORMS.get(form, form) + END
    return tokenizer


@pytest.mark.parametrize(
    ("form", "answer", "calls", "num_malformed", "text"),
    [
        ("hermes", "Wait. <tool_call>\n%s\n</tool_call>", [ROME], 0, "Wait."),
        ("hermes", "<tool_call>%s</tool_call><tool_call>%s</tool_call>", [ROME, PARIS], 0, ""),
        ("hermes", '<tool_call>%s</tool_call><tool_call>{"name": "time", ', [ROME], 1, ""),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', [], 1, ""),
        ("hermes", "<think>\nI call <tool_call>%s</tool_call>\n</think>\n\nIt is warm.", [], 0, "It is warm."),
        ("hermes", "<think>\nI call <tool_call>%s</tool_call>", [], 0, ""),
        ("hermes", "It is warm.", [], 0, "It is warm."),
        ("mistral", "[TOOL_CALLS] [%s, %s]", [ROME, PARIS], 0, ""),
        ("mistral", '[TOOL_CALLS] [{"name": "weather"', [], 1, ""),
        ("mistral_args", '[TOOL_CALLS]time[ARGS]{}[TOOL_CALLS]weather[ARGS]{"city": "Paris"}', [TIME, PARIS], 0, ""),
        ("mistral_args", '[TOOL_CALLS]time[ARGS]{"city', [], 1, ""),
        ("llama", '{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS], 0, ""),
        ("llama", '<|python_tag|>{"name": "time", "parameters": {}}', [TIME], 0, ""),
        ("llama", '{"name": "weather", "parameters": {"city": ', [], 1, ""),
        ("llama", '{"city": "Rome"}', [], 0, '{"city": "Rome"}'),
    ],
)
def test_written_calls(
    make_tokenizer: Any, form: str, answer: str, calls: list[ToolCall], num_malformed: int, text: str
) -> None:
    reader = find_call_reader(tokenizer_of(make_tokenizer, form))
    for call in (ROME, PARIS):
        value = json.dumps({"name": call.name, "arguments": json.loads(call.arguments)})
        answer = answer.replace("%s", value, 1)
    found = read_written_calls(reader, answer)
    assert same_calls(found.calls, calls) and len(found.calls) == len(calls)
    assert (found.num_malformed, found.text) == (num_malformed, text)


def test_a_form_that_no_reader_reads_is_said(make_tokenizer: Any) -> None:
    form = "{{ '<call>' + f.name + '|' + f.arguments.city + '</call>' }}"
    with pytest.raises(BadRow, match="a form that is not read here"):
        find_call_reader(
            tokenizer_of(make_tokenizer, "{{ '<call>' + f.name + '|' + f.arguments | string + '</call>' }}")
        )
    with pytest.raises(BadRow, match=r"writes no tool calls|refuses the conversation"):
        find_call_reader(tokenizer_of(make_tokenizer, form.replace("f.name", "'x'")))


def test_calls_are_equal_as_json_in_any_order() -> None:
    assert same_calls([ROME, PARIS], [PARIS, ROME_AGAIN])
    assert not same_calls([ROME], [ROME, ROME]) and not same_calls([ROME], [PARIS])
    assert not same_calls([ROME], [ROME._replace(arguments='{"city": "Rome", "days": [2, 1]}')])
    assert not same_calls([TIME._replace(arguments='{"a": 1}')], [TIME._replace(arguments='{"a": true}')])
    assert same_tools([ROME, TIME], [TIME, PARIS]) and not same_tools([ROME], [ROME, PARIS])


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
RESULT = "thirty degrees"
SHAPES: dict[str, dict[str, Any]] = {
    "openai": {
        "messages": [
            {"role": "user", "content": "Is it warm?"},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
            {"role": "tool", "content": RESULT},
            {"role": "assistant", "content": "Yes."},
        ],
        "tools": TOOLS,
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Is it warm?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": RESULT},
            {"from": "gpt", "value": "Yes."},
        ],
        "tools": json.dumps([TOOLS[0]["function"]]),
    },
    "xlam": {"query": "Is it warm?", "tools": json.dumps([TOOLS[0]["function"]]), "answers": json.dumps([CALL])},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_token_of_a_result_is_learned(make_tokenizer: Any, shape: str) -> None:
    tokenizer = tokenizer_of(make_tokenizer, "hermes")
    rows = list(every_turn(read("demonstrations", SHAPES[shape])))
    examples = [encode_demonstration(tokenizer, row, Limits(500, 200), RefusedRows(strict=True)) for row in rows]
    learned = [tokenizer.decode(example.response_ids) for example in examples if example is not None]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
    assert learned == ([call] if shape == "xlam" else [call, "Yes.<|im_end|>"])
    if shape != "xlam":
        assert RESULT in tokenizer.decode(examples[-1].prompt_ids) and RESULT not in "".join(learned)
