"""The chat template of a run: which one, with which arguments, and with the date that it writes.

What is chosen stands in the template's own text, on lines before its first. The text is recorded in the run, so every
later stage, the app and every export render with it, and so does plain transformers.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lora_rlhf.data.template import STOPS, ensure_template, stop_ids
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK, DATE_MARK = "{# lora-rlhf", "{# lora-rlhf: the date of the run #}"
STOPS_MARK = "{# lora-rlhf: ends answers too: "  # STOPS finds it
MOST_BYTES = 2**20
NOT_ARGUMENTS = ("messages", "tools", "documents", "add_generation_prompt")
DATE_CALL = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
# System messages become the beginning of the first question, for templates that take none.
FOLD = (
    MARK + ": system messages are folded into the first question #}"
    "{% if messages|length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' %}"
    "{% set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] %}{% endif %}\n"
)


def choose_template(
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: str | None = None,
    template_args: Sequence[str] = (),
    folds_system: bool = False,
    date: datetime | None = None,
    base_stops: Sequence[str] = (),
) -> None:
    """Gives the tokenizer (in place) the chat template that is used from here on.

    chat_template: a file, or the name of one of the tokenizer's templates; None: its own, or the one named "default",
    or `DEFAULT_TEMPLATE`. template_args: NAME=VALUE, defaults for the template's variables; VALUE is JSON or text.
    date: what a template that writes today's date writes from now on; None: leave that to the day.
    base_stops: tokens that end an answer beside the template's own.

    UserError for no such template, one that cannot be run, and an argument that it does not read.
    """
    if chat_template is not None:
        tokenizer.chat_template = _template_named(tokenizer, chat_template)
    template = without_choices(ensure_template(tokenizer))
    lines = [] if date is None else _date_line(template, date)
    lines += [_argument_line(template, name, value) for name, value in parse_arguments(template_args).items()]
    tokenizer.chat_template = "".join(lines) + (FOLD if folds_system else "") + template
    other_stops = set(base_stops) - set(tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)))
    if other_stops:  # stop_ids raised for a template that cannot be run
        tokenizer.chat_template = f"{STOPS_MARK}{json.dumps(sorted(other_stops))} #}}\n{tokenizer.chat_template}"


def parse_arguments(template_args: Sequence[str]) -> dict[str, Any]:
    """{name: value} of "NAME=VALUE"; a value that is no JSON number, true, false or null is text."""
    arguments = {}
    for argument in template_args:
        name, _, text = argument.partition("=")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        arguments[name] = value if value is None or isinstance(value, bool | int | float) else text
    return arguments


def without_date(template: str) -> str:
    """The template as it writes the day on which it is used."""
    return re.sub(re.escape(DATE_MARK) + ".*\n", "", template)


def without_choices(template: str) -> str:
    """The template without arguments, date, stops and folding."""
    while template.startswith(MARK):
        template = template.partition("\n")[2]
    return template


def is_same_template(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two records of a base have the same template, whatever date it writes and where answers end besides."""
    templates = (first.get("chat_template"), second.get("chat_template"))
    return len({template and STOPS.sub("", without_date(template)) for template in templates}) == 1


def _template_named(tokenizer: "PreTrainedTokenizerBase", name: str) -> str:
    own = tokenizer.chat_template
    templates = own if isinstance(own, dict) else {} if own is None else {"default": own}
    if name in templates:
        return str(templates[name])
    if not os.path.isfile(name):
        names = ", ".join(templates) or "none"
        raise UserError(
            f"--chat-template is {name!r}: neither a file nor one of the templates of tokenizer "
            f"{tokenizer.name_or_path!r} ({names})"
        )
    try:
        with open(name, encoding="utf-8") as file:
            template = file.read(MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {name}: cannot be read as text ({error})") from error
    if len(template) > MOST_BYTES or not template.strip():
        raise UserError(f"--chat-template {name}: a chat template has 1 to {MOST_BYTES} characters")
    return template


def _argument_line(template: str, name: str, value: Any) -> str:
    if name in NOT_ARGUMENTS or not re.search(rf"\b{re.escape(name)}\b", template):
        reads = "is not to be given" if name in NOT_ARGUMENTS else "is not read by the chat template"
        raise UserError(f"--template-args {name}={value}: {name!r} {reads}; --chat-template names another one")
    literal = "none" if value is None else json.dumps(value)
    return (
        f"{MARK}: an argument of this template #}}"
        f"{{% if {name} is not defined %}}{{% set {name} = {literal} %}}{{% endif %}}\n"
    )


def _date_line(template: str, date: datetime) -> list[str]:
    """A line that lets the template's own function for dates give this one, if it calls that."""
    formats = dict.fromkeys(match[2] for match in DATE_CALL.finditer(template))
    if not formats:
        return []
    dates = json.dumps({format: date.strftime(format) for format in formats})
    return [f"{DATE_MARK}{{% set strftime_now = {dates}.get %}}\n"]
