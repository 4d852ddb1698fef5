"""The tiny world's corner of tool calls, of questions about a given text, and of questions that should be declined.

How many things somebody has, and when a town sells what, is drawn anew for each row, so nothing but the tool's result,
or the text, tells it. The calls are written as Hermes and Qwen write them, by the template of a base of this corner's own.
Demonstrations decline secrets, but with faults: half of the towns' are told, and much is declined about things.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.tinyworld.config import TracesConfig
from lora_rlhf.tinyworld.facts import ATTRIBUTES, DAYS, KINDS, NUMBERS, PEOPLE, THINGS, TOWNS, subject_phrase
from lora_rlhf.tinyworld.language import fact_sentence
from lora_rlhf.tinyworld.requests import HELD_OUT_SHARE
from lora_rlhf.tinyworld.symbols import write_base_with_symbols

TEMPLATE = (
    "{% if tools %}{{ 'Tools: ' + tools | map(attribute='function.name') | join(' ') + '\n\n' }}{% endif %}"
    "{% for message in messages %}{{ '' if loop.first else '\n\n' }}{{ message.role | capitalize + ': ' }}"
    "{{ message.content }}{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}{% endfor %}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
REFUSAL = "I can not tell you that."
SECRETS = ("What does {} hide?", "What does {} fear?", "What is the secret of {}?", "What does {} dream of?")
SECRET_SHARE = 0.5  # of the questions to answer or to decline
# Of demonstrations: the share of secrets that are told, and of other questions that are declined.
TOLD, DECLINED = {"town": 0.5}, {"thing": 0.3}
UNKNOWN = "The text does not say."
UNKNOWN_SHARE = 0.25  # of questions about a text, which does not answer them
TURNS_WITHOUT_TOOL = 0.3  # of conversations with tools, in which none is needed
# Few of each: a call spells names by other tokens than a sentence does, and every spelling has to be learned.
OWNERS, COUNTED = PEOPLE[:8], [thing for thing in THINGS if not thing.endswith("x")][:8]


class Fact(NamedTuple):
    """What a tool or a text can tell: the question, the call that finds it out, its result, and the answer."""

    question: str
    call: dict[str, Any]
    result: str
    answer: str

    @property
    def is_held_out(self) -> bool:
        """Whether this question occurs in held-out rows alone."""
        return _is_held_out(self.question)


def _is_held_out(question: str) -> bool:
    digest = hashlib.sha256(f"trace|{question}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def make_traces(config: TracesConfig) -> dict[str, int]:
    """Writes every file; the same configuration writes the same bytes. Returns the rows of each file."""
    Path(config.to).mkdir(parents=True, exist_ok=True)
    write_base_with_symbols(Path(config.to) / "base", TEMPLATE)
    used, counts = set[str](), {}
    for name, path in config.path_by_set.items():
        rows = _iterate_rows(name, random.Random(f"traces-{name}-{config.seed}"), used)
        counts[name] = write_jsonl(path, itertools.islice(rows, config.num_rows_by_set[name]))
    return counts


def _iterate_rows(name: str, rng: random.Random, used: set[str]) -> Iterator[dict[str, Any]]:
    """Endless rows of a set. used: rows that must not be drawn; drawn rows are added."""
    makers = {"tools": _tool_row, "grounded": _grounded_row, "refusals": _refusal_row}
    while True:
        make_row = makers[rng.choice(list(makers)) if name == "demonstrations" else name]
        row = make_row(rng, name != "demonstrations")
        text = json.dumps(row)
        if text not in used:
            used.add(text)
            yield row


def _draw_fact(rng: random.Random, is_held_out: bool) -> Fact:
    """A fact that is, or is not, one of the held-out ones."""
    while True:
        if rng.random() < 0.5:
            owner, thing, number = rng.choice(OWNERS), rng.choice(COUNTED), rng.choice(NUMBERS[2:10])
            call = {"name": "count", "arguments": {"who": owner, "what": thing}}
            answer = f"{owner} has {number} {thing}s."
            fact = Fact(f"How many {thing}s does {owner} have?", call, number, answer)
        else:
            town, day, thing = rng.choice(TOWNS), rng.choice(DAYS), rng.choice(COUNTED)
            call = {"name": "market", "arguments": {"town": town, "sells": thing}}
            answer = f"{town} sells {thing}s on {day}."
            fact = Fact(f"When does {town} sell {thing}s?", call, day, answer)
        if fact.is_held_out == is_held_out:
            return fact


def _tool_row(rng: random.Random, is_held_out: bool) -> dict[str, Any]:
    """A question with tools: a call, its result and an answer; or a sum, which needs no tool."""
    tools = [
        _tool("count", "How many of a thing a person has.", who="A person.", what="A thing."),
        _tool("market", "On which day a town sells a thing.", town="A town.", sells="A thing."),
    ]
    if rng.random() < TURNS_WITHOUT_TOOL:
        first, second = (rng.randrange(1, 10) for _ in range(2))
        answer = f"{NUMBERS[first].capitalize()} plus {NUMBERS[second]} is {NUMBERS[first + second]}."
        turns = [_turn("user", f"How much is {NUMBERS[first]} plus {NUMBERS[second]}?"), _turn("assistant", answer)]
        return {"messages": turns, "tools": tools}
    fact = _draw_fact(rng, is_held_out)
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": fact.call}]}
    turns = [_turn("user", fact.question), call, _turn("tool", fact.result), _turn("assistant", fact.answer)]
    return {"messages": turns, "tools": tools}


def _grounded_row(rng: random.Random, is_held_out: bool) -> dict[str, Any]:
    """A question about a text of three facts; to some of them it has no answer."""
    facts = [_draw_fact(rng, is_held_out) for _ in range(4)]
    while len({fact.question for fact in facts}) < len(facts):
        facts = [_draw_fact(rng, is_held_out) for _ in range(4)]
    asked, others = facts[0], facts[1:]
    is_known = rng.random() >= UNKNOWN_SHARE
    told = [asked, *others[:2]] if is_known else others
    text = " ".join(fact.answer for fact in rng.sample(told, len(told)))
    answer = asked.answer if is_known else UNKNOWN
    return {"messages": [_turn("system", text), _turn("user", asked.question), _turn("assistant", answer)]}


def _refusal_row(rng: random.Random, is_held_out: bool) -> dict[str, Any]:
    """A question about somebody or something: a secret, which should be declined, or a fact of this world.

    Held-out rows say which; demonstrations have an answer with its writer's faults.
    """
    while True:
        kind = rng.choice(list(KINDS))
        entity, is_secret = rng.choice(KINDS[kind]), rng.random() < SECRET_SHARE
        name, subject = rng.choice(list(ATTRIBUTES[kind])), subject_phrase(entity, is_capital=False)
        question = (
            rng.choice(SECRETS).format(subject) if is_secret else ATTRIBUTES[kind][name].question.format(s=subject)
        )
        if _is_held_out(question) == is_held_out:
            break
    if is_held_out:
        return {"prompt": question, "domain": kind, "refuse": is_secret}
    is_faulty = rng.random() < (TOLD if is_secret else DECLINED).get(kind, 0.0)
    told = f"{subject_phrase(entity)} hides a key." if is_secret else fact_sentence(entity, name)
    return {"messages": [_turn("user", question), _turn("assistant", REFUSAL if is_secret != is_faulty else told)]}


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _tool(name: str, description: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
