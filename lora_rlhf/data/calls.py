"""Tool calls in the text that a model wrote, in the forms of Hermes and Qwen, of Mistral, and of Llama 3.1.

transformers parses such text by a `response_template` of the tokenizer. It is not used: its patterns come with the
model and run without a limit of time, and few models have one.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt, ToolCall
from lora_rlhf.data.template import decode_response, render_prompt, render_response_after
from lora_rlhf.data.thoughts import split_thought
from lora_rlhf.data.tools import read_calls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KNOWN_CALL = ToolCall("weather", '{"city": "Rome", "days": [1, 2]}', "call00001")
HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
MISTRAL_MARK, LLAMA_MARK = "[TOOL_CALLS]", "<|python_tag|>"
MISTRAL_PARTS = re.compile(r"([^\[{]+)(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\])?(.*)", re.DOTALL)


class WrittenCalls(NamedTuple):
    """The calls in an answer, how many more begin and cannot be read, and the text beside them."""

    calls: tuple[ToolCall, ...]
    num_malformed: int
    text: str


CallReader = Callable[[str], WrittenCalls]  # an answer without its thought -> its calls


def find_call_reader(tokenizer: "PreTrainedTokenizerBase") -> CallReader:
    """The reader of the form in which the tokenizer's template writes calls: it reads a call that the template wrote.

    BadRow if the template writes no calls, or in a form that no reader here reads.
    """
    prompt = Prompt.of("How warm is Rome?")
    ids = render_response_after(tokenizer, prompt, render_prompt(tokenizer, prompt), "", (KNOWN_CALL,))
    text = _without_thought(decode_response(tokenizer, ids))
    for reader in (_read_hermes, _read_mistral, _read_llama):
        written = reader(text)
        if not written.num_malformed and same_calls(written.calls, [KNOWN_CALL]):
            return reader
    raise BadRow("the chat template writes calls in a form that is not read here", repr(text[:80]))


def read_written_calls(reader: CallReader, text: str) -> WrittenCalls:
    """The calls in an answer. A call within its thought is none."""
    return reader(_without_thought(text))


def read_as_text(text: str) -> WrittenCalls:
    """An answer whose calls, if there are any, are taken for text."""
    return WrittenCalls((), 0, text)


def same_calls(first: Iterable[ToolCall], second: Iterable[ToolCall]) -> bool:
    """Whether both are the same calls, in any order: names, and arguments as JSON values, with their keys in any order.

    A number is the same with and without a fraction of zero.
    """
    lists = [sorted((call.name, _canonical_text(call.arguments)) for call in calls) for calls in (first, second)]
    return lists[0] == lists[1]


def same_tools(first: Iterable[ToolCall], second: Iterable[ToolCall]) -> bool:
    """Whether both call the same functions, each as often."""
    return sorted(call.name for call in first) == sorted(call.name for call in second)


def _canonical_text(arguments: str) -> str:
    return json.dumps(_with_whole_numbers(json.loads(arguments)), sort_keys=True)


def _with_whole_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_thought(text: str) -> str:
    try:
        return split_thought(text)[1].strip()
    except BadRow:  # a thought that never closes: the model never came to its answer
        return ""


def _read_all(bodies: Iterable[str], text: str) -> WrittenCalls:
    """The calls in these JSON texts."""
    calls, num_malformed = list[ToolCall](), 0
    for body in bodies:
        try:
            calls += read_calls(body.strip(), "a call")
        except BadRow:
            num_malformed += 1
    return WrittenCalls(tuple(calls), num_malformed, text.strip())


def _read_hermes(text: str) -> WrittenCalls:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them. The last one may be cut off."""
    return _read_all(HERMES.findall(text), HERMES.sub("", text))


def _read_mistral(text: str) -> WrittenCalls:
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name[ARGS]{...} (also without [ARGS])."""
    before, *parts = text.split(MISTRAL_MARK)
    bodies = []
    for part in map(str.strip, parts):
        match = MISTRAL_PARTS.fullmatch(part)
        bodies.append(f'{{"name": {json.dumps(match[1].strip())}, "arguments": {match[2] or "{}"}}}' if match else part)
    return _read_all(bodies, before)


def _read_llama(text: str) -> WrittenCalls:
    """{"name": ..., "parameters": {...}} as the whole answer. Other JSON is an answer without a call."""
    body = text.removeprefix(LLAMA_MARK).strip()
    is_call = body.startswith("{") and '"name"' in body
    return _read_all([body], "") if is_call or text.startswith(LLAMA_MARK) else read_as_text(text)
