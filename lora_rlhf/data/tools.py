"""Tools in data: the functions that a model may call, and its calls, in the forms of OpenAI and ShareGPT."""

import json
from typing import Any

from lora_rlhf.data.json_values import decode_json
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import ToolCall, require_text

TOOLS_COLUMNS = ("tools", "functions", "available_tools")  # columns with the functions that a row's model may call
CALL_KEYS = ("tool_calls", "function_call")  # keys of an assistant's message with its calls


def read_calls(value: Any, name: str) -> tuple[ToolCall, ...]:
    """The calls of a list or of one object, also as JSON text: {name, arguments}, alone or as `function` of an object.

    name: of the key or column, for messages. BadRow for calls without a name, for arguments that are no object.
    """
    value = _decoded(value, f"{name} is no JSON")
    return tuple([_read_call(item) for item in (value if isinstance(value, list | tuple) else [value])])


def read_tools(value: Any, name: str) -> str:
    """The functions of a list, also as JSON text, as the JSON text of OpenAI's list. BadRow for anything else."""
    value = _decoded(value, f"{name} is no JSON")
    tools = []
    for item in value if isinstance(value, list | tuple) else [value]:
        item = _decoded(item, f"{name} is no JSON")
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise BadRow(f"{name} is not a list of functions with names", f"got {str(item)[:40]}")
        tools.append(_without_nulls(item if "function" in item else {"type": "function", "function": item}))
    return _text(tools, name) if tools else ""


def tool_names(tools: str) -> list[str]:
    """The names of the functions in `Prompt.tools`."""
    return [tool["function"]["name"] for tool in json.loads(tools)]


def _read_call(item: Any) -> ToolCall:
    function = _decoded(item.get("function", item), "a tool call is no JSON") if isinstance(item, dict) else item
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise BadRow("a tool call has no name", f"got {str(item)[:40]}")
    arguments: Any = next((function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments = _decoded(arguments.strip() or "{}", "the arguments of a tool call are no JSON")
    else:
        arguments = _without_nulls(arguments)
    if not isinstance(arguments, dict):
        raise BadRow("the arguments of a tool call are no JSON object", f"got {str(arguments)[:40]}")
    call_id = item.get("id")
    return ToolCall(name, _text(arguments, "a tool call"), call_id if isinstance(call_id, str) else "")


def _decoded(value: Any, reason: str) -> Any:
    """The value of a JSON text; any other value as it is."""
    if not isinstance(value, str):
        return value
    decoded = decode_json(value.strip())
    if isinstance(decoded, BadRow):
        raise BadRow(reason, f"{decoded}: {value[:40]!r}")
    return decoded


def _without_nulls(value: Any) -> Any:
    """The value without keys that hold null: tables fill all keys of all rows into each."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _text(value: Any, name: str) -> str:
    return require_text(json.dumps(value, ensure_ascii=False, default=str), name)
