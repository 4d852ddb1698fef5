"""The process in which one reward function runs: it reads requests, calls the function, and writes what it returned.

Requests and answers are lines of JSON. `process.py` starts this process, and ends it when it takes too long.
"""

import importlib
import inspect
import json
import os
import resource
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lora_rlhf.rewards.builtin import BUILT_IN
from lora_rlhf.system.errors import UserError

# What TRL gives its reward functions beside the row's columns.
GIVEN = ("prompts", "completions", "completion_ids")
MOST_MESSAGE = 300  # characters of an error

Request = Mapping[str, Any]  # GIVEN, and columns: {name: a value for each row}
Function = Callable[[Request], Any]


def main() -> None:
    """Answers requests until there are no more. What the function prints goes to standard error."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    start = json.loads(requests.readline())
    if start["memory"] is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (start["memory"], start["memory"]))

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        function, needed = load_function(start["name"], start["arguments"])
    except UserError as error:
        return answer({"error": str(error)})
    answer({"needs": needed})
    for line in requests:
        request = json.loads(line)
        try:
            answer({"scores": to_scores(function(request), len(request["completions"]))})
        except BaseException as error:  # SystemExit too: the function must not end the process by itself
            answer({"error": f"{type(error).__name__}: {error}"[:MOST_MESSAGE]})


def _end_with_parent(parent: int) -> None:
    """Ends this process when the one that started it has died."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def load_function(name: str, arguments: Mapping[str, Any]) -> tuple[Function, list[str]]:
    """(the function of a request, the columns that it needs). UserError for what cannot be called so.

    A function with the parameters (prompts, completions) alone, whatever they are called, gets texts: the last user's
    message and the answer. Any other function gets what TRL's trainers give, by the names of its parameters.
    """
    function = _find(name)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise UserError(f"reward function {name!r} is async; give one that returns its scores")
    try:
        parameters = inspect.signature(function).parameters
    except ValueError as error:
        raise UserError(f"reward function {name!r} has no signature to call it by ({error})") from None
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_all and (unknown := [argument for argument in arguments if argument not in parameters]):
        raise UserError(f"reward function {name!r} has no parameter {unknown[0]!r}; it has {', '.join(parameters)}")
    sources = {key: value[1:] for key, value in arguments.items() if isinstance(value, str) and value[:1] == "@"}
    fixed = {key: value for key, value in arguments.items() if key not in sources}
    free = [parameter for key, parameter in parameters.items() if key not in arguments]
    named = [parameter for parameter in free if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)]
    required = [parameter.name for parameter in named if parameter.default is parameter.empty]
    if name in BUILT_IN:
        _, *names = [parameter.name for parameter in named]
        sources |= {key: key for key in names}
        needed = [source for key, source in sources.items() if key in arguments or key in required]
        return lambda request: _call_by_row(function, request, fixed, sources, {*required, *arguments}), needed
    is_of_texts = len(required) == 2 and required[0] not in GIVEN[1:] and not takes_all and not sources
    if is_of_texts or (not named and not takes_all):
        return lambda request: _call_with_texts(function, request, fixed), []
    names = [parameter.name for parameter in named]
    needed = [*(key for key in required if key not in GIVEN), *sources.values()]

    def call(request: Request) -> Any:
        columns = request["columns"]
        values = {**columns, **{key: request[key] for key in GIVEN}}
        values = values if takes_all else {key: values[key] for key in names if key in values}
        return function(**values, **{key: columns[source] for key, source in sources.items()}, **fixed)

    return call, needed


def _find(name: str) -> Callable[..., Any]:
    """The callable of that name. UserError without one."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, _, attribute = name.rpartition(":")
    try:
        function = getattr(importlib.import_module(module or "trl.rewards"), attribute)
    except Exception as error:  # a module may raise anything while it is imported
        fault = f"{type(error).__name__}: {error}"
        if not module:
            raise UserError(
                f"no reward function is called {name!r}: built in are {', '.join(BUILT_IN)}; trl.rewards has none "
                f"either ({fault}); one of your own is module:function"
            ) from None
        raise UserError(
            f"reward function {name!r} cannot be imported ({fault}); is its folder on PYTHONPATH?"
        ) from None
    if not callable(function):
        raise UserError(f"reward function {name!r} is a {type(function).__name__}, not a function")
    return function


def _call_with_texts(function: Callable[..., Any], request: Request, fixed: Mapping[str, Any]) -> Any:
    prompts = [messages[-1]["content"] for messages in request["prompts"]]
    return function(prompts, [messages[-1]["content"] for messages in request["completions"]], **fixed)


def _call_by_row(
    function: Callable[..., Any],
    request: Request,
    fixed: Mapping[str, Any],
    sources: Mapping[str, str],
    required: set[str],
) -> list[float | None]:
    """The scores of a built-in function; None for a row without a column that it needs."""
    scores: list[float | None] = []
    for index, (message,) in enumerate(request["completions"]):
        cells = {key: request["columns"].get(source) for key, source in sources.items()}
        values = {key: cell[index] for key, cell in cells.items() if cell is not None and cell[index] is not None}
        is_missing = any(key in required and key not in values for key in sources)
        scores.append(None if is_missing else function(message["content"], **values, **fixed))
    return scores


def to_scores(returned: Any, count: int) -> list[float | None]:
    """What a function returned, as a number or None for each of `count` responses. ValueError for anything else."""
    values = returned if isinstance(returned, list | tuple) else None
    if values is None and not isinstance(returned, str | int | float | dict) and hasattr(returned, "tolist"):
        values = returned.tolist()  # an array or a tensor
    if not isinstance(values, list | tuple):
        raise ValueError(f"it returned a {type(returned).__name__}, not a list of numbers")
    if len(values) != count:
        raise ValueError(f"it returned {len(values)} scores for {count} responses")
    for value in values:
        if isinstance(value, str | list | tuple | dict):
            raise ValueError(f"it returned a {type(value).__name__} where a number is expected")
    return [None if value is None else float(value) for value in values]
