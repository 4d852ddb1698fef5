"""Chat templates that mean harm end in a line, soon and with little memory; all others write what they always wrote."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from lora_rlhf.data.markup import SCHEMA, HarmfulTemplate, render_chat
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import render_prompt
from lora_rlhf.data.template_bounds import BoundedEnvironment, bound_templates
from lora_rlhf.system.errors import UserError

BIG = "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = "
NEST = "{% set ns = namespace(x=['a']) %}{% for i in range(50) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
LINES = "{% set ns = namespace(x='a\n') %}{% for i in range(18) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
HARM = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops with a condition": "{% for i in range(99999) if range(99999)|list|length < 0 %}{% endfor %}",
    "a loop that calls itself": "{% for i in range(9999) recursive %}{% if loop.depth < 9 %}{{ loop(range(9999)) }}"
    "{% endif %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "text in a loop": "{% for i in range(99999) %}" + "text " * 9999 + "{% endfor %}",
    "product": "{{ 'a' * 2000000000 }}",
    "product of lists": "{{ [1] * 2000000000 }}",
    "product by a name": "{% set n = 2000000000 %}{% set x = n * 'a' %}",
    "power": "{{ 10 ** 9999999999 }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "sums": BIG + "ns.x + ns.x %}{% endfor %}",
    "concatenations": BIG + "ns.x ~ ns.x %}{% endfor %}",
    "lists that double": "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}",
    "blocks": "{% set ns = namespace(x='a') %}{% for i in range(50) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "lists in lists, written": NEST + "{{ ns.x }}",
    "lists in lists, as JSON": NEST + "{{ ns.x|tojson }}",
    "lists in lists, joined": NEST + "{{ ns.x|join }}",
    "lists in lists, compared": NEST + "{% set m = ns.x %}" + NEST + "{{ ns.x == m }}",
    "lists in lists, tested": NEST + "{% set m = ns.x %}" + NEST + "{{ ns.x is eq(m) }}",
    "a namespace, written": NEST + "{{ ns }}",
    "tuples as keys": NEST.replace("[ns.x, ns.x]", "(ns.x, ns.x)").replace("['a']", "('a',)") + "{{ {ns.x: 1} }}",
    "tuples looked up": NEST.replace("[ns.x, ns.x]", "(ns.x, ns.x)").replace("['a']", "('a',)") + "{{ {}[ns.x] }}",
    "a deep tuple": "{% set ns = namespace(x=()) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}{% endfor %}"
    "{{ {}.get(ns.x) }}",
    "join": "{{ range(99999)|join('a' * 99999) }}",
    "join of text": "{{ ('a' * 99999).join('b' * 99999) }}",
    "percent": "{{ '%2000000000d' % 1 }}",
    "percent with digits of others": "{{ '%\u0662\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660d' % 1 }}",
    "percent with a star": "{{ '%*d' % (2000000000, 1) }}",
    "percent with names": "{{ ('%(a)s' * 9999) % {'a': 'a' * 99999} }}",
    "format": "{{ '{:2000000000}'.format(1) }}",
    "format with a width": "{{ '{:{w}}'.format(1, w=2000000000) }}",
    "format that repeats": "{{ ('{0}' * 9999).format('a' * 99999) }}",
    "format_map": "{{ '{a:2000000000}'.format_map({'a': 1}) }}",
    "the filter format": "{{ '%2000000000d'|format(1) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "the filter replace": "{{ ('a' * 99999)|replace('a', 'b' * 99999) }}",
    "replace of nothing": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "indent": LINES + "{{ ns.x|indent(99999) }}",
    "JSON with an indent": "{{ range(9999)|list|tojson(indent=999999) }}",
    "center": "{{ 'a'|center(2000000000) }}",
    "the method center": "{{ 'a'.center(2000000000) }}",
    "ljust": "{{ 'a'.ljust(2000000000) }}",
    "zfill": "{{ 'a'.zfill(2000000000) }}",
    "tabs": "{{ '\\t'.expandtabs(2000000000) }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "bytes": "{{ (1).to_bytes(2000000000) }}",
    "pprint": "{{ range(99999)|list|pprint }}",
    "slices": "{% set x = 'a' * 9999999 %}{% for i in range(9999) %}{% set y = x[1:] %}{% endfor %}",
    "slices of a list": "{{ range(9)|slice(2000000000)|list }}",
    "batches": "{{ range(9)|batch(2000000000, 1)|list }}",
    "words": "{{ lipsum(n=2000000000) }}",
    "letters": "{{ ('\u4e00' * 9999999)|list|length }}",
    "pieces": "{{ ('\u4e00\u4e01' * 9999999).split('\u4e00')|length }}",
    "a filter over a list": "{{ range(99999)|map('center', 99999)|list|length }}",
    "dates": "{{ strftime_now('%c' * 9999999) }}",
    "markup": "{{ (('<!--' * 999999)|safe).striptags() }}",
    "inheritance": "{% block a %}{{ self.a() }}{% endblock %}",
    "a long template": "{# " + "a" * 2**20 + " #}",
    "many parts": "{{ -1}}" * 18700,
    "behind a word": "{% for m in messages if m.content != 'Probe7Question' %}{{ 'a' * 2000000000 }}{% endfor %}",
}
CHILD = """
import json, resource, sys, time
from transformers import PreTrainedTokenizerFast
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import render_prompt
from lora_rlhf.system.errors import UserError

resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30,) * 2)
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
render_prompt(tokenizer, Prompt.of("a"))
for name, template in json.load(open(sys.argv[2])).items():
    tokenizer.chat_template = template
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        render_prompt(tokenizer, Prompt.of("a"))
        message = "rendered"
    except UserError as error:
        message = str(error)
    seconds = time.process_time() - started
    print(json.dumps([name, message, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory]), flush=True)
"""
MESSAGES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi."}],
    [{"role": role, "content": f" {role} says\n"} for role in ("system", "user", "assistant", "user")],
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "a12345678",
         "function": {"name": "weather", "arguments": {"city": "Rome", "days": 3}}}]},
        {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "a12345678"},
        {"role": "assistant", "reasoning_content": "Sun.", "content": "It is sunny."},
    ],
    [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}],
]  # fmt: skip


@pytest.fixture(scope="module")
def plain_transformers() -> Any:
    """transformers' module for chat templates, a second time and without bounds."""
    spec = importlib.util.spec_from_file_location("transformers.utils.second", chat_template_utils.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rendered(module: Any, template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    try:
        texts, _ = module.render_jinja_template([messages], chat_template=template, **options)
        return str(texts[0])
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
def test_templates_of_models_write_what_plain_transformers_write(plain_transformers: Any) -> None:
    trl = pytest.importorskip("trl")
    bound_templates()
    paths = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    compared = 0
    for path in paths:
        for messages in MESSAGES:
            for options in ({}, {"add_generation_prompt": True, "tools": [SCHEMA], "enable_thinking": False}):
                given = {"bos_token": "<s>", "eos_token": "</s>", **options}
                template = path.read_text(encoding="utf-8")
                expected = rendered(plain_transformers, template, messages, **given)
                assert rendered(chat_template_utils, template, messages, **given) == expected, (path.name, messages)
                compared += not expected.startswith(("TemplateError", "UndefinedError", "TypeError"))
    assert compared > 5 * len(paths)


FEATURES = [
    "{% for m in messages recursive %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{{ m.role }}{% endfor %}",
    "{% for a, b in {'x': 1, 'y': [2, 3]}.items() if b %}{{ a ~ b ~ loop.revindex }}{% else %}none{% endfor %}",
    "{% macro f(x, y=2) %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}{{ f(1) }}{% call f(3) %}in{% endcall %}",
    "{{ messages|map(attribute='role')|list|tojson }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ 'a-b'.split('-')[::-1]|join('+') }}{{ '%s %05.1f' % ('x', 2) }}{{ '{:>4}'.format('x') }}{{ 3 * 4 ** 2 % 5 }}",
    "{{ messages[1:] }}{{ messages[-1]['content'][:3] }}{{ {'a': none} }}{{ undefined_name }}{{ [1, 'a'] + [2] * 2 }}",
    "{{ [3, 1, 2]|sort|first }}{{ ['b', 'a']|unique|join }}{{ {'b': 1}|dictsort }}{{ 'x'|indent(2, true) }}",
    "{% filter upper %}abc{{ 1 }}{% endfilter %}{% set x %}text{% endset %}{{ x|length }}{{ cycler('a').next() }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ 1 < 2 < 3 }}{{ 'a' in ['a'] and not 'b' in 'c' }}",
    "{{ missing.attribute }}", "{{ 1 / 0 }}", "{{ nothing() }}", "{{ raise_exception('no') }}", "{{ ''.__class__ }}",
    "{{ messages.append(1) }}", "{{ 'x'|nofilter }}",
    "{% set ns = namespace(a=1) %}{% set ns.b = ns.a + 1 %}{{ ns.b }}",
]  # fmt: skip


@pytest.mark.parametrize("template", FEATURES)
def test_all_that_templates_are_written_with_stays(plain_transformers: Any, template: str) -> None:
    bound_templates()
    expected = rendered(plain_transformers, template, MESSAGES[1])
    assert rendered(chat_template_utils, template, MESSAGES[1]) == expected


@pytest.mark.slow
def test_harm_ends_in_a_line(make_tokenizer, tmp_path: Path) -> None:
    """Each within the 2 s that a render has and a bit, and with less memory than 500 MB."""
    make_tokenizer("chatml").save_pretrained(tmp_path)
    (tmp_path / "harm.json").write_text(json.dumps(HARM))
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(tmp_path / "harm.json")]
    result = subprocess.run(command, capture_output=True, text=True)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == list(HARM), result.stderr[-2000:]
    for name, message, seconds, kibibytes in rows:
        assert "the chat template of tokenizer" in message and "is broken: " in message, (name, message)
        assert "\n" not in message and len(message) < 300
        assert seconds < 4 and kibibytes < 500 * 1024, (name, seconds, kibibytes)


def test_a_harmful_template_is_rendered_once_and_its_line_is_named(make_tokenizer, monkeypatch) -> None:
    tokenizer, renders = make_tokenizer("chatml"), []
    tokenizer.chat_template = "{# first #}\n{# second #}\n{{ 'a' * 2000000000 }}"

    def product(self: Any, *args: Any) -> Any:
        renders.append(args)
        return original(self, *args)

    original = BoundedEnvironment.call_binop
    monkeypatch.setattr(BoundedEnvironment, "call_binop", product)
    with pytest.raises(
        HarmfulTemplate, match=r"line 3, is broken: it makes a value of more than 16,777,216 characters"
    ):
        render_prompt(tokenizer, Prompt.of("a"))
    assert len(renders) == 1


def test_harm_that_waits_for_a_row_ends_the_command(make_tokenizer) -> None:
    """It is no refused row: each of many rows would take seconds."""
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template += HARM["behind a word"]
    with pytest.raises(UserError) as error:
        render_prompt(tokenizer, Prompt.of("a"))
    assert type(error.value) is HarmfulTemplate
    assert render_chat(tokenizer, [{"role": "user", "content": "Probe7Question"}])
