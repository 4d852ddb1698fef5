"""Which chat template a run has, with which arguments, and which date it writes."""

from datetime import datetime
from pathlib import Path

import pytest

from lora_rlhf.data.chosen_template import (
    choose_template,
    is_same_template,
    parse_arguments,
    without_choices,
    without_date,
)
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import render_prompt, render_response, stop_ids
from lora_rlhf.system.errors import UserError
from tests.data.conftest import CHATML, INST
from tests.support.thinking import QWEN, give_thoughts

PROMPT = Prompt(
    (Message("system", "Be brief."), Message("user", "Hi."), Message("assistant", "Yes?"), Message("user", "Go!"))
)
MESSAGES = [{"role": message.role, "content": message.content} for message in PROMPT.messages]
DATED = "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(\"%d %b\") }}|" + CHATML
DAY, NEXT_DAY = datetime(2026, 7, 1, 23, 59), datetime(2026, 7, 2)


@pytest.fixture
def qwen(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    give_thoughts(tokenizer)
    return tokenizer


def test_values_are_json_or_text() -> None:
    arguments = ["a=true", "b=false", "c=null", "d=2", "e=0.5", "f=low", "g=", 'h="x=y"', "i=[1]", "j=1 Jan"]
    expected = {"a": True, "b": False, "c": None, "d": 2, "e": 0.5, "f": "low", "g": "", "h": '"x=y"', "i": "[1]"}
    assert parse_arguments(arguments) == {**expected, "j": "1 Jan"}


@pytest.mark.parametrize("value", ["true", "false"])
def test_arguments_are_defaults_of_the_template(qwen, value: str) -> None:
    expected = {
        given: qwen.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False, enable_thinking=given)
        for given in (True, False)
    }
    assert expected[True] != expected[False]
    choose_template(qwen, template_args=[f"enable_thinking={value}"])
    assert render_prompt(qwen, PROMPT) == expected[value == "true"]
    for given in (True, False):  # in plain transformers they can still be given
        ids = qwen.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False, enable_thinking=given)
        assert ids == expected[given]
    choose_template(qwen)  # of another run in the same process
    assert qwen.chat_template == QWEN


def test_text_with_quotes_is_an_argument_like_any_other(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{{ note }}|" + CHATML
    text = 'it\'s {{ 1 }} "two"\n\\n ü'
    choose_template(tokenizer, template_args=[f"note={text}"])
    assert tokenizer.decode(render_prompt(tokenizer, PROMPT)).startswith(text + "|")


@pytest.mark.parametrize("argument", ["enable_thinkin=false", "messages=x", "tools=y", "add_generation_prompt=true"])
def test_arguments_that_a_template_does_not_take(qwen, argument: str) -> None:
    with pytest.raises(UserError, match=rf"--template-args {argument.partition('=')[0]}"):
        choose_template(qwen, template_args=[argument])


def test_a_file_or_a_name(make_tokenizer, tmp_path: Path) -> None:
    tokenizer = make_tokenizer("plain")
    tokenizer.chat_template = {"default": CHATML, "tool_use": "T" + CHATML}
    choose_template(tokenizer, "tool_use")
    assert tokenizer.chat_template == "T" + CHATML
    (tmp_path / "own.jinja").write_text("Ü" + CHATML, encoding="utf-8")
    choose_template(tokenizer, str(tmp_path / "own.jinja"))
    assert tokenizer.decode(render_prompt(tokenizer, PROMPT)).startswith("Ü<|im_start|>system\nBe brief.")
    tokenizer.chat_template = {"default": CHATML, "tool_use": "T" + CHATML}
    choose_template(tokenizer)
    assert tokenizer.chat_template == CHATML  # one text, which a manifest can hold


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"neither a file nor one of the templates of tokenizer .* \(default\)"),
        (b"", "has 1 to"),
        (b"\xff\xfe", "cannot be read as text"),
        (b"{% if %}", "is broken"),
        (b"{{ messages[0]['content'] }}", "does not write assistant messages"),
    ],
)
def test_files_that_are_no_template(make_tokenizer, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "own.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        choose_template(make_tokenizer("chatml"), str(path))


def test_several_templates_without_a_default_ask_for_one(make_tokenizer) -> None:
    tokenizer = make_tokenizer("plain")
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(UserError, match="choose one with --chat-template"):
        choose_template(tokenizer)
    choose_template(tokenizer, "rag")
    assert render_prompt(tokenizer, PROMPT)


def test_system_messages_are_folded_into_the_first_question(make_tokenizer) -> None:
    tokenizer = make_tokenizer("inst_bos")
    with pytest.raises(BadRow, match=r"refuses the conversation .*--system fold"):
        render_prompt(tokenizer, PROMPT)
    choose_template(tokenizer, folds_system=True)
    folded = Prompt((Message("user", "Be brief.\n\nHi."), *PROMPT.messages[2:]))
    plain = make_tokenizer("inst_bos")
    assert render_prompt(tokenizer, PROMPT) == render_prompt(tokenizer, folded) == render_prompt(plain, folded)
    assert render_response(tokenizer, PROMPT, "No.") == render_response(plain, folded, "No.")
    assert without_choices(tokenizer.chat_template) == INST


def test_ends_of_the_base_are_kept_in_the_template(qwen) -> None:
    prompt_ids, stops = render_prompt(qwen, PROMPT), stop_ids(qwen)
    choose_template(qwen, base_stops=["<|im_end|>", "</tool_call>", "<s>"])
    assert stop_ids(qwen) == [*stops, *qwen.convert_tokens_to_ids(["</tool_call>", "<s>"])]
    assert render_prompt(qwen, PROMPT) == prompt_ids and without_choices(qwen.chat_template) == QWEN
    assert is_same_template({"chat_template": qwen.chat_template}, {"chat_template": QWEN})
    choose_template(qwen, base_stops=["<|im_end|>"])
    assert qwen.chat_template == QWEN


def test_the_date_of_the_run_is_kept(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = DATED
    choose_template(tokenizer, template_args=(), date=DAY)
    assert tokenizer.decode(render_prompt(tokenizer, PROMPT)).startswith("2026-07-01 01 Jul|")
    assert without_date(tokenizer.chat_template) == DATED
    day = {"chat_template": tokenizer.chat_template}
    choose_template(tokenizer, date=NEXT_DAY)
    assert tokenizer.decode(render_prompt(tokenizer, PROMPT)).startswith("2026-07-02 02 Jul|")
    assert is_same_template(day, {"chat_template": tokenizer.chat_template})
    assert not is_same_template(day, {"chat_template": CHATML})
    assert is_same_template({"chat_template": None}, {})
    tokenizer.chat_template = CHATML
    choose_template(tokenizer, date=DAY)
    assert tokenizer.chat_template == CHATML  # it writes none
