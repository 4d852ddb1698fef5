"""How a reward function is named in a flag: NAME, NAME=WEIGHT or NAME(argument=value, ...)=WEIGHT."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_rlhf.system.errors import UserError

FORM = re.compile(
    r"(?P<name>[A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?)(?P<call>\(.*\))?(?:=(?P<weight>[-+.\deE]+))?", re.DOTALL
)


@dataclass(frozen=True)
class FunctionChoice:
    """A reward function by its name: module:function, a built-in one's, or one of trl.rewards'.

    arguments: JSON values for its parameters; "@column" stands for the row's column of that name. label: its name in
    the metrics, which no other function of the run has.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    label: str = ""


def read_choices(texts: Sequence[str]) -> list[FunctionChoice]:
    """The functions of `--reward-functions`. UserError for a text of another form."""
    choices: list[FunctionChoice] = []
    for text in texts:
        choice = _read_choice(text)
        short = choice.name.rpartition(":")[2]
        count = sum(earlier.name.rpartition(":")[2] == short for earlier in choices)
        label = f"{short}_{count + 1}" if count else short
        choices.append(FunctionChoice(choice.name, choice.arguments, choice.weight, label))
    return choices


def _read_choice(text: str) -> FunctionChoice:
    match = FORM.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        call = ast.parse(f"f{match['call'] or '()'}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        return FunctionChoice(match["name"], arguments, float(match["weight"] or 1))
    except (ValueError, SyntaxError):
        raise UserError(
            f"reward function {text!r} is not of the form NAME, NAME=WEIGHT or 'NAME(argument=value)=WEIGHT', where "
            "NAME is module:function or the name of a built-in function"
        ) from None
