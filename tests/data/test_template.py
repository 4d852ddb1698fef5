"""Prompts and responses meet at the right token, in every kind of tokenizer, and text comes back as it was."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import mark_control_tokens

from lora_rlhf.data import markup, template
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import (
    bos_before_text,
    decode_response,
    encode_text,
    ensure_template,
    pad_id,
    render_prompt,
    render_response,
    render_response_after,
    stop_ids,
)
from lora_rlhf.system.errors import UserError
from tests.data.conftest import CHATML
from tests.support.thinking import QWEN, give_thoughts

SHORT = Prompt.of("What does a horse eat?")
LONG = Prompt((Message("user", "Count."), Message("assistant", "one two"), Message("user", "Go on!")))
SYSTEM = Prompt((Message("system", "You are a farmer."), Message("user", "Where do penguins live?")))
ANSWERS = [
    "A horse eats hay.",
    "x",
    "  indented\n    code",
    "\nstarts with a newline",
    "ends with spaces  ",
    "ünïcödé 你好 🐴",
    "Assistant: User: \n\nAssistant:",
    "typed </s> and <|im_end|> and <s> as text",
    "</s>",
    "",
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["one turn", "three turns"])
def test_the_response_is_the_answer_and_one_stop_token(
    make_tokenizer, variant: str, prompt: Prompt, answer: str
) -> None:
    tokenizer = make_tokenizer(variant)
    ids = render_response(tokenizer, prompt, answer)
    assert ids[-1] == stop_ids(tokenizer)[0]
    assert [token for token in ids if token in stop_ids(tokenizer)] == ids[-1:]
    assert decode_response(tokenizer, ids) == answer


@pytest.mark.parametrize("variant_name", ["plain", "chatml", "chatml_other_eos", "inst_bos", "plain_bos", "thinking"])
@pytest.mark.parametrize("prompt", [SHORT, LONG, SYSTEM], ids=["one turn", "three turns", "system"])
def test_prompt_and_response_are_the_whole_conversation(make_tokenizer, variant_name: str, prompt: Prompt) -> None:
    tokenizer = make_tokenizer(variant_name)
    if variant_name == "inst_bos" and prompt is SYSTEM:
        with pytest.raises(BadRow, match=r"refuses the conversation \(System role not supported; roles system, user"):
            render_prompt(tokenizer, prompt)
        return
    ids = render_prompt(tokenizer, prompt) + render_response(tokenizer, prompt, "In the cold south.")
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
    ensure_template(tokenizer)
    text = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": "In the cold south."}], tokenize=False
    )
    whole = tokenizer(text.removesuffix("\n"), add_special_tokens=False)[
        "input_ids"
    ]  # ChatML ends a turn with a newline
    assert ids == whole


def test_default_template_reads_as_documented(make_tokenizer) -> None:
    tokenizer = make_tokenizer("plain")
    prompt = Prompt((Message("system", "Be kind."), *LONG.messages))
    ids = render_prompt(tokenizer, prompt)
    expected = "Be kind.\n\nUser: Count.\n\nAssistant: one two</s>\n\nUser: Go on!\n\nAssistant:"
    assert tokenizer.decode(ids) == expected
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(render_response(tokenizer, prompt, "three")) == " three</s>"


@pytest.mark.parametrize(
    ("variant_name", "count"), [("plain", 0), ("plain_bos", 1), ("inst_bos", 1), ("bos_unused", 0)]
)
def test_bos_is_written_once_where_the_tokenizer_writes_it(make_tokenizer, variant_name: str, count: int) -> None:
    tokenizer = make_tokenizer(variant_name)
    bos = tokenizer.convert_tokens_to_ids("<s>")
    ids = render_prompt(tokenizer, LONG)
    assert ids.count(bos) == count
    assert ids[:1].count(bos) == count
    assert bos not in render_response(tokenizer, LONG, "three")
    assert bos_before_text(tokenizer) == ([bos] if variant_name in ("plain_bos", "inst_bos") else [])


def test_control_tokens_typed_by_a_user_stay_text(make_tokenizer, variant: str) -> None:
    tokenizer = make_tokenizer(variant)
    clean = render_prompt(tokenizer, Prompt.of("Say it now."))
    typed = render_prompt(tokenizer, Prompt.of("Say </s><|im_end|><|im_start|><s> now."))
    special = set(tokenizer.added_tokens_decoder)
    assert [token for token in typed if token in special] == [token for token in clean if token in special]
    assert "</s><|im_end|><|im_start|><s>" in tokenizer.decode(typed)
    assert not special & set(encode_text(tokenizer, "a </s> b <|im_end|>"))


def test_stop_ids_are_the_turns_end_and_eos(make_tokenizer) -> None:
    def spelled(variant: str) -> list[str]:
        tokenizer = make_tokenizer(variant)
        return tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))

    assert spelled("plain") == ["</s>"]
    assert spelled("chatml") == ["<|im_end|>"]
    assert spelled("chatml_other_eos") == ["<|im_end|>", "</s>"]
    assert spelled("no_end") == ["</s>"]


def test_decoding_stops_at_the_first_stop_token_and_needs_none(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml_other_eos")
    hello = encode_text(tokenizer, "Hello there")
    end, eos = stop_ids(tokenizer)
    assert decode_response(tokenizer, hello) == "Hello there"
    assert decode_response(tokenizer, [*hello, eos, *hello]) == "Hello there"
    assert decode_response(tokenizer, [*hello, end, eos, eos]) == "Hello there"
    assert decode_response(tokenizer, []) == decode_response(tokenizer, [end]) == ""


@pytest.mark.parametrize("variant_name", ["melting", "no_end"])
def test_an_answer_that_would_melt_into_the_prompt_keeps_the_prompts_tokens(make_tokenizer, variant_name) -> None:
    tokenizer = make_tokenizer(variant_name)
    prompt_ids = render_prompt(tokenizer, SHORT)
    text = tokenizer.decode(prompt_ids)
    assert text.endswith("assistant: ")
    joined = tokenizer(text + "hay", add_special_tokens=False)["input_ids"]
    assert joined[: len(prompt_ids)] != prompt_ids
    ids = render_response(tokenizer, SHORT, "hay")
    assert tokenizer.decode(prompt_ids + ids) == text + "hay</s>"


def test_pad_falls_back_to_eos(make_tokenizer) -> None:
    for variant, token in (("plain", "<pad>"), ("pad_is_eos", "</s>"), ("no_pad", "</s>"), ("melting", "<s>")):
        tokenizer = make_tokenizer(variant)
        assert pad_id(tokenizer) == tokenizer.convert_tokens_to_ids(token)


def test_a_tokenizer_without_eos_is_an_error(make_tokenizer) -> None:
    tokenizer = make_tokenizer("no_eos")
    for call in (
        ensure_template,
        stop_ids,
        lambda t: render_prompt(t, SHORT),
        lambda t: render_response(t, SHORT, "a"),
    ):
        with pytest.raises(UserError, match="has no EOS token"):
            call(tokenizer)


def test_own_template_is_kept_and_a_default_is_set_once(make_tokenizer) -> None:
    own, none = make_tokenizer("chatml"), make_tokenizer("plain")
    before = own.chat_template
    assert ensure_template(own) == before == own.chat_template
    assert ensure_template(none) == template.DEFAULT_TEMPLATE == none.chat_template
    assert ensure_template(none) == template.DEFAULT_TEMPLATE


def test_unusable_templates_are_errors(make_tokenizer) -> None:
    tokenizer = make_tokenizer("plain")
    for broken, message in (
        ({"tool_use": "x", "rag": "y"}, "no default"),
        ("{{ messages[0]['content'] }}", "does not write assistant messages"),
        ("{{ raise_exception('never') }}", "is broken: never"),
    ):
        tokenizer.chat_template = broken
        with pytest.raises(UserError, match=message):
            stop_ids(tokenizer)


def test_what_transformers_returns_by_default_is_not_a_list(make_tokenizer) -> None:
    """The reason for return_dict=False: without it a caller gets an encoding, whose length is its number of keys."""
    tokenizer = make_tokenizer("chatml")
    messages = [{"role": "user", "content": "Hi"}]
    encoding = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert not isinstance(encoding, list)
    ids = render_prompt(tokenizer, Prompt.of("Hi"))
    assert type(ids) is list
    assert all(type(token) is int for token in ids)
    assert ids == encoding["input_ids"]


APPLIED = "the chat template seems to be applied already"


def test_a_prompt_that_the_template_was_applied_to_is_refused(make_tokenizer, variant: str) -> None:
    tokenizer = make_tokenizer(variant)
    ensure_template(tokenizer)
    turns = [{"role": message.role, "content": message.content} for message in LONG.messages]
    for messages in (turns, turns[-1:]):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if variant == "inst_bos":  # no generation prompt: nothing to know it by
            assert render_prompt(tokenizer, Prompt.of(text))
            continue
        for left in (text, text.strip(), text + "  \n"):
            with pytest.raises(BadRow) as caught:
                render_prompt(tokenizer, Prompt((*LONG.messages[:2], Message("user", left))))
            assert caught.value.reason == APPLIED


ORDINARY = [
    "Begin each line with Assistant:",
    "Who is the assistant: you or me?",
    "My assistant:",
    "User: Hi.\n\nAssistant: Hello.\n\nUser: Who is your assistant",
    "assistant",
    "What does <|im_start|> do, and what <|im_end|>?",
    "<|im_start|>user",
    ":",
    "<s>Hello",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_not_refused(make_tokenizer, variant: str, text: str) -> None:
    tokenizer = make_tokenizer(variant)
    history = (Message("user", "Hi"), Message("assistant", "User: Hi\n\nAssistant:"))
    assert text in tokenizer.decode(render_prompt(tokenizer, Prompt((*history, Message("user", text)))))


@pytest.mark.parametrize(
    ("generation_prompt", "refused", "kept"),
    [
        (" A:", ["Why? A:", "A:", "Why?\nA: "], ["USA:", "A: why?", "Why? a:"]),
        ("\n### Response:\n", ["Why?\n### Response:", "### Response:\n\n"], ["Write ### Response:"]),
        (
            "<|im_start|>model",
            ["Hi<|im_start|>model\nHello<|im_end|>"],
            ["<|im_start|>", "model", "<|im_start|> model"],
        ),
        (" >", [], ["Why? >", ">"]),
        ("\n", [], ["Why?\n"]),
        ("", [], ["Why?"]),
    ],
)
def test_what_the_template_writes_for_the_answer_decides(
    make_tokenizer, generation_prompt: str, refused: list[str], kept: list[str]
) -> None:
    tokenizer = make_tokenizer("plain")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '"
        + generation_prompt.replace("\n", "\\n")
        + "' }}{% endif %}"
    )
    for text in refused:
        with pytest.raises(BadRow, match=APPLIED):
            render_prompt(tokenizer, Prompt.of(text))
    for text in kept:
        assert tokenizer.decode(render_prompt(tokenizer, Prompt.of(text))) == text + generation_prompt


@pytest.mark.parametrize("variant_name", ["plain_bos", "inst_bos"])
def test_bos_spelled_by_the_data_does_not_double_it(make_tokenizer, variant_name: str) -> None:
    tokenizer = make_tokenizer(variant_name)
    bos = tokenizer.bos_token_id
    for prompt in (Prompt.of("<s>Hello"), Prompt((*LONG.messages[:2], Message("user", "<s> Hello")))):
        ids = render_prompt(tokenizer, prompt)
        assert (ids[0], ids.count(bos)) == (bos, 1)
        assert tokenizer.decode(ids).count("<s>") == 2  # one of them is text
    assert bos not in encode_text(tokenizer, "<s>Hello")


def test_a_template_that_ends_otherwise_without_a_generation_prompt(make_tokenizer) -> None:
    tokenizer = make_tokenizer("closing")
    ids = render_prompt(tokenizer, SHORT) + render_response(tokenizer, SHORT, "Hay.")
    expected = "<|im_start|>user\nWhat does a horse eat?<|im_end|>\n<|im_start|>assistant\nHay.<|im_end|>"
    assert tokenizer.decode(ids) == expected


PIECES = [
    "cat",
    " cat",
    "\n",
    "\n\n",
    " ",
    "</s>",
    "<|im_end|>",
    "<|im_start|>",
    "<s>",
    "User:",
    "Assistant:",
    "🐴",
    "é",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8).map("".join)
ASKED = TEXT.map(lambda text: text + "?")  # never blank, and never ends as a template does


@settings(max_examples=25, deadline=None)
@given(
    history=st.lists(st.tuples(ASKED, TEXT), max_size=2),
    question=ASKED,
    answer=TEXT,
    system=st.none() | ASKED,
)
def test_any_conversation_is_its_pieces(
    make_tokenizer, variant: str, history: list[tuple[str, str]], question: str, answer: str, system: str | None
) -> None:
    tokenizer = make_tokenizer(variant)
    ensure_template(tokenizer)
    before = [Message("system", system)] if system and variant != "inst_bos" else []
    for asked, answered in history:
        before += [Message("user", asked), Message("assistant", answered)]
    prompt = Prompt((*before, Message("user", question)))
    prompt_ids, response_ids = render_prompt(tokenizer, prompt), render_response(tokenizer, prompt, answer)

    stops = stop_ids(tokenizer)
    assert [token for token in response_ids if token in stops] == [response_ids[-1]] == stops[:1]
    assert decode_response(tokenizer, response_ids) == answer
    if tokenizer.bos_token_id is not None:
        assert Counter(prompt_ids)[tokenizer.bos_token_id] <= 1

    messages = [{"role": m.role, "content": m.content} for m in (*prompt.messages, Message("assistant", answer))]
    whole = tokenizer.apply_chat_template(messages, sanitize_control_tokens=True, return_dict=False)
    pieces = prompt_ids + response_ids
    if whole[: len(prompt_ids)] == prompt_ids and stops[0] in whole[len(prompt_ids) :]:
        assert pieces == whole[: len(pieces)]
    else:  # the answer would melt into the prompt's last token, or the template ends no turn
        assert tokenizer.decode(whole).startswith(tokenizer.decode(pieces[:-1]))


def test_marks_are_those_that_transformers_knows() -> None:
    pattern = re.compile("<think>")
    assert markup.mark_control_tokens("a <think> b", pattern) == mark_control_tokens("a <think> b", pattern)
    forged = f"{markup.MARK_START}x{markup.MARK_END}"
    assert markup.mark_control_tokens(forged, pattern) == mark_control_tokens(forged, pattern) == "x"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{% import 'os' as os %}", "is broken"),
        ("{% include 'x' %}", "is broken"),
        ("{{ messages[0].__class__ }}", "is broken|does not write"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "is broken: maximum recursion"),
        ("{% for m in messages %}{{ 1 / 0 }}{% endfor %}", "is broken: division by zero"),
        ("{% if %}", "is broken"),
    ],
)
def test_templates_that_cannot_be_run(make_tokenizer, broken: str, message: str) -> None:
    tokenizer = make_tokenizer("plain")
    tokenizer.chat_template = broken
    with pytest.raises(UserError, match=message):
        render_prompt(tokenizer, SHORT)


def test_a_template_that_leaves_a_message_out(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = template_without_system = CHATML.replace(
        "in messages", "in messages if m.role != 'system'"
    )
    assert "system" in template_without_system
    assert render_prompt(tokenizer, SHORT)
    with pytest.raises(BadRow, match=r"leaves a message out \(of the role system; --system fold"):
        render_prompt(tokenizer, SYSTEM)


@pytest.fixture
def qwen(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    give_thoughts(tokenizer)
    return tokenizer


def test_tags_of_an_answer_are_tokens_and_those_of_a_user_are_text(qwen) -> None:
    tags = set(qwen.convert_tokens_to_ids(["<think>", "</think>", "<tool_call>", "</tool_call>"]))
    prompt = Prompt.of("Write <think> and </think> and <tool_call>.")
    assert not tags & set(render_prompt(qwen, prompt))
    assert not tags & set(encode_text(qwen, "a <think> b</think> <tool_call>"))
    answer = "<think>\nHm.\n</think>\n\n<tool_call>\n{}\n</tool_call>"
    ids = render_response(qwen, prompt, answer)
    assert [id for id in ids if id in tags] == qwen.convert_tokens_to_ids(
        ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    )
    assert qwen.decode(ids) == answer + "<|im_end|>"
    # also where the answer is put behind the prompt by itself
    melting = render_response_after(qwen, prompt, [*render_prompt(qwen, prompt)[:-1], 0], answer)
    assert melting == ids
    history = Prompt((*prompt.messages, Message("assistant", answer), *SHORT.messages))
    assert [id for id in render_prompt(qwen, history) if id in tags] == qwen.convert_tokens_to_ids(
        ["<tool_call>", "</tool_call>"]  # this template leaves earlier thoughts out
    )


def test_an_answer_somebody_stopped_within_its_thought_may_stand_in_the_history(qwen) -> None:
    stopped = "<think>\nLet me"
    with pytest.raises(BadRow, match="never closed"):
        render_response(qwen, SHORT, stopped)
    history = Prompt((*SHORT.messages, Message("assistant", stopped), *SHORT.messages))
    assert stopped in qwen.decode(render_prompt(qwen, history))


def test_a_prompt_that_has_closed_the_thought_takes_none(qwen) -> None:
    qwen.chat_template = "{% set enable_thinking = false %}" + QWEN
    assert qwen.decode(render_prompt(qwen, SHORT)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert qwen.decode(render_response(qwen, SHORT, "Hay.")) == "Hay.<|im_end|>"
    with pytest.raises(BadRow, match="leaves no room for the answer's thought"):
        render_response(qwen, SHORT, "<think>\nHm.\n</think>\n\nHay.")
