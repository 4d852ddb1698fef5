"""Conversations to token ids and back, through the tokenizer's own chat template.

A prompt is rendered up to the point where the assistant speaks; a response is exactly the tokens that the assistant's
turn adds, up to and including the token that ends it. Text that looks like a control token ("</s>" typed by a user)
stays text. In an assistant's message the tokens of its own format (<think>, <tool_call>) are control tokens.
"""

import copy
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_rlhf.data.markup import (
    QUESTION,
    HarmfulTemplate,
    Markup,
    control_token_patterns,
    find_markup,
    mark_control_tokens,
    num_equal_at_start,
    render_chat,
    to_content,
)
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Prompt, ToolCall
from lora_rlhf.data.thoughts import OPEN, join_thought, split_thought
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For tokenizers without a chat template. Plain words only, so that no token has to be added or trained:
#
#     [system text]\n\nUser: question\n\nAssistant: answer<eos>\n\nUser: ...\n\nAssistant:
#
# Earlier answers keep their EOS: the history is then the very tokens that were sampled. The space before the answer
# belongs to the response, because byte-level tokenizers have " word" as one token.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


DIFFERENT_ANSWER = "the chat template writes this answer in another way than others"
TEMPLATE_ADVICE = "--chat-template names another one"
STOPS = re.compile(r"\{# lora-rlhf: ends answers too: (.*?) #\}\n")  # of the base, see `chosen_template`
FOLD = "--system fold writes system messages into the first question"


class GenerationPrompt(NamedTuple):
    """The generation prompt: the text that a template writes last, before the answer, stripped of white space.

    `is_control`: it holds a control token, so no ordinary text contains it. `begins_line`: it begins a line.
    """

    text: str
    is_control: bool
    begins_line: bool

    def is_in_message(self, message: str) -> bool:
        """Whether a message contains the generation prompt: the template was applied to its text already."""
        if self.is_control and self.text in message:
            return True
        message = message.rstrip()
        if not message.endswith(self.text):
            return False
        preceding = message[: -len(self.text)]
        if self.begins_line:
            return preceding.rstrip(" \t")[-1:] in ("", "\n")
        return not preceding[-1:].isalnum()


def ensure_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The tokenizer's chat template; a tokenizer without one gets `DEFAULT_TEMPLATE` (in place) first.

    The default begins with BOS if the tokenizer writes BOS before plain text. Raises UserError if the tokenizer has no
    EOS, or several templates and none with the name "default".
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has no EOS token, so no response could ever end; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = ("{{ bos_token }}" if bos_before_text(tokenizer) else "") + DEFAULT_TEMPLATE
    try:
        tokenizer.chat_template = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r}: {error}; choose one with --chat-template") from error
    return str(tokenizer.chat_template)


def bos_before_text(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """[bos] if the tokenizer writes BOS before plain text by itself, else []."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id in padded cells: the pad token, else EOS. Only a mask, never this id, tells what is padding."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def copy_with_pad(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A copy that names `pad_id` as its pad token, for libraries that would change the tokenizer to have one."""
    copied = copy.deepcopy(tokenizer)
    copied.pad_token_id = pad_id(tokenizer)
    return copied


def stop_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids at which generation stops.

    They are those that end the template's assistant turn (first that of a text), EOS, and those of the base.
    """
    markup = _markup_of(tokenizer)
    listed = STOPS.search(ensure_template(tokenizer))
    base_ids = tokenizer.convert_tokens_to_ids(json.loads(listed[1])) if listed else []
    return list(dict.fromkeys([markup.end_id, markup.call_end_id, tokenizer.eos_token_id, *base_ids]))


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The ids of plain text: no token is added, and control tokens that are spelled in it stay text."""
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    control, not_special = control_token_patterns(tokenizer, template)
    if not_special.search(text):
        return _encode_marked(tokenizer, mark_control_tokens(text, control))
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(encoded["input_ids"])


def render_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """The ids of the conversation up to the beginning of the assistant's answer; BOS at most once.

    Raises BadRow (a UserError) if the template refuses the conversation or leaves a message out (a system message, for
    example), or if it was applied to the text already: applied twice, it would teach a form that no later prompt has.
    """
    generation_prompt = _find_generation_prompt(tokenizer, ensure_template(tokenizer))
    if generation_prompt is not None and generation_prompt.is_in_message(prompt.messages[-1].content):
        detail = f"the last message holds {generation_prompt.text!r}"
        raise BadRow("the chat template seems to be applied already", detail)
    return render_verbatim(tokenizer, prompt)


def render_verbatim(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """`render_prompt` for text that may contain a chat template's markup: a judge's question about two answers.

    Raises BadRow if the template refuses the conversation.
    """
    return _encode_marked(tokenizer, _render_conversation(tokenizer, prompt))


def render_response(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str) -> list[int]:
    """The ids that the assistant's turn adds after `render_prompt`, ending with the only stop token among them.

    A thought in the response is written as the template writes thoughts; if the prompt ends within a thought, the
    response closes it. BadRow for a thought without an end, and for a thought if the generation prompt has closed it
    already.
    """
    return render_response_after(tokenizer, prompt, render_prompt(tokenizer, prompt), response)


def render_response_after(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    prompt_ids: list[int],
    response: str,
    tool_calls: tuple[ToolCall, ...] = (),
) -> list[int]:
    """`render_response` for a caller that has `render_prompt`'s ids already (K responses of one prompt)."""
    markup = _markup_of(tokenizer)
    thought, answer = _split_response(markup, response)
    rendered = _render_conversation(tokenizer, prompt, Message("assistant", response, tool_calls=tool_calls))
    ids = _encode_marked(tokenizer, rendered)
    response_ids = ids[len(prompt_ids) :]
    end_id = markup.call_end_id if tool_calls else markup.end_id
    if ids[: len(prompt_ids)] == prompt_ids and end_id in response_ids:
        return response_ids[: response_ids.index(end_id) + 1]
    # the template writes no end of turn, or not this prompt before an answer, or the tokenizer joins the answer with
    # the prompt's last token: put the answer behind the prompt, as generation does
    rendered_prompt = _render_conversation(tokenizer, prompt)
    if rendered.startswith(rendered_prompt):
        return _ended(tokenizer, rendered.removeprefix(rendered_prompt), bool(tool_calls))
    if tool_calls:
        rendered_context = rendered_prompt.removesuffix(markup.prompt_tail) + markup.answer_head
        if not markup.has_empty_thought or not rendered.startswith(rendered_context):
            raise BadRow(DIFFERENT_ANSWER, f"its prompt ends in {rendered_prompt[-60:]!r}")
        return _ended(tokenizer, markup.head_behind_prompt + rendered.removeprefix(rendered_context), True)
    answer = mark_control_tokens(answer, markup.control_in_answers)
    thought = mark_control_tokens(thought, markup.control_in_answers)
    head = f"{markup.thought_head}{thought}{markup.thought_tail}" if thought else markup.head_behind_prompt
    return [*_encode_marked(tokenizer, head + answer + markup.text_before_end), markup.end_id]


def render_demonstration(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    prompt_ids: list[int],
    response: str,
    tool_calls: tuple[ToolCall, ...] = (),
) -> tuple[list[int], list[int]]:
    """(the ids before a demonstration's answer, the ids to learn). `prompt_ids`: those of `render_prompt`.

    The first are the prompt's ids. If a template writes an empty thought before an answer without one, they contain it
    too, as in the template's own rendering: the model does not learn to skip its thoughts.
    """
    markup = _markup_of(tokenizer)
    thought, answer = _split_response(markup, response)
    if thought or (not markup.has_empty_thought and (tool_calls or not markup.opens_thought)):
        return prompt_ids, render_response_after(tokenizer, prompt, prompt_ids, response, tool_calls)
    if not markup.has_empty_thought:  # the prompt opens a thought, and the template never writes its end
        text = mark_control_tokens(answer, markup.control_in_answers) + markup.text_before_end
        context_ids = [*prompt_ids, *_encode_marked(tokenizer, markup.thought_tail)]
        return context_ids, [*_encode_marked(tokenizer, text), markup.end_id]
    rendered_context = _render_conversation(tokenizer, prompt).removesuffix(markup.prompt_tail) + markup.answer_head
    rendered = _render_conversation(tokenizer, prompt, Message("assistant", response, tool_calls=tool_calls))
    if not rendered.startswith(rendered_context):
        raise BadRow(DIFFERENT_ANSWER, f"expected {rendered_context[-60:]!r}")
    ids, context_ids = _encode_marked(tokenizer, rendered), _encode_marked(tokenizer, rendered_context)
    response_ids = ids[len(context_ids) :]
    end_id = markup.call_end_id if tool_calls else markup.end_id
    if ids[: len(context_ids)] != context_ids or end_id not in response_ids:
        return context_ids, _ended(tokenizer, rendered.removeprefix(rendered_context), bool(tool_calls))
    return context_ids, response_ids[: response_ids.index(end_id) + 1]


def _ended(tokenizer: "PreTrainedTokenizerBase", text: str, has_calls: bool) -> list[int]:
    """The ids of an answer as the template wrote it behind its prompt, with the token that ends it."""
    markup = _markup_of(tokenizer)
    if not has_calls:
        return [*_encode_marked(tokenizer, text.removesuffix(markup.tail) + markup.text_before_end), markup.end_id]
    end = tokenizer.convert_ids_to_tokens(markup.call_end_id)
    return [*_encode_marked(tokenizer, text.rpartition(end)[0] if end in text else text), markup.call_end_id]


def decode_response(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The answer's text: up to the first stop token, without the text that the template writes around it.

    A thought comes first, between <think> and </think>, even if the prompt opens it.
    """
    markup, stops = _markup_of(tokenizer), set(stop_ids(tokenizer))
    end = next((position for position, token in enumerate(ids) if token in stops), len(ids))
    visible = [token for token in ids[:end] if token not in markup.hidden_ids]
    text = tokenizer.decode(visible, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if end == len(ids):
        return _strip_markup_of_open_answer(markup, text)
    return _strip_markup(markup, text).removesuffix(markup.text_before_end)


def _strip_markup(markup: Markup, text: str) -> str:
    """An assistant's text without the template's markup, with its thought in the form of `thoughts`."""
    if markup.decoded_head and text.startswith(markup.decoded_head):
        return text.removeprefix(markup.decoded_head)
    if markup.thought_head is None or not text.startswith(markup.thought_head):
        return text
    thought, tail, answer = text.removeprefix(markup.thought_head).partition(markup.thought_tail)
    return join_thought(thought, answer) if tail else f"{OPEN}\n{thought}"


def _strip_markup_of_open_answer(markup: Markup, text: str) -> str:
    """`_strip_markup` for an incomplete answer: markup that has only begun is left out, so the text only grows."""
    heads = (markup.decoded_head, markup.thought_head or "")
    if not text or any(head.startswith(text) for head in heads):
        return ""
    head, tail = markup.thought_head, markup.thought_tail
    if head is None or not text.startswith(head) or tail in text:
        text = _strip_markup(markup, text)
        return text.removesuffix(markup.text_before_end) if markup.text_before_end.strip() else text
    tail_start = next((tail[:length] for length in range(len(tail) - 1, 0, -1) if text.endswith(tail[:length])), "")
    return f"{OPEN}\n{text.removeprefix(head).removesuffix(tail_start)}"


def _split_response(markup: Markup, response: str) -> tuple[str, str]:
    """(thought, answer) of a response; ("", response) if the template has no thoughts. BadRow as `render_response`."""
    if not markup.knows_thoughts:
        return "", response
    thought, answer = split_thought(response)
    if thought and markup.closes_thought:
        raise BadRow(
            "the chat template leaves no room for the answer's thought",
            "it closes one before every answer; for many models --template-args enable_thinking=true changes that",
        )
    return thought, answer


def _render_conversation(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, answer: Message | None = None) -> str:
    """The text that the template writes, with marks around control tokens that are text. BadRow if it refuses."""
    markup = _markup_of(tokenizer)
    if prompt.tools and not markup.takes_tools:
        raise BadRow("the chat template takes no tools", f"{TEMPLATE_ADVICE}; tools {prompt.tools[:60]}")
    messages = prompt.messages if answer is None else (*prompt.messages, answer)
    turns = [_make_turn(markup, message) for message in messages]
    tools = _marked(json.loads(prompt.tools), markup.control) if prompt.tools else None
    try:
        text = render_chat(tokenizer, turns, tools=tools, add_generation_prompt=answer is None)
    except HarmfulTemplate:
        raise
    except UserError as error:
        roles = [message.role for message in messages]
        detail = f"{error.__cause__ or error}; roles {', '.join(roles)}" + (f"; {FOLD}" if "system" in roles else "")
        raise BadRow("the tokenizer's chat template refuses the conversation", detail) from error
    for message, turn in zip(messages, turns, strict=True):
        if (message.role != "assistant" or message.tool_calls) and not _is_written(turn["content"], text):
            detail = f"of the role {message.role}" + (f"; {FOLD}" if message.role == "system" else "")
            detail = "the text beside a tool call" if message.tool_calls else detail
            raise BadRow("the tokenizer's chat template leaves a message out", detail)
    return text


def _is_written(content: str | list[dict[str, str]], text: str) -> bool:
    """Whether a template wrote a message's content, as it is or as JSON."""
    content = content if isinstance(content, str) else content[0]["text"]
    return content.strip() in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


def _marked(value: Any, control: re.Pattern[str]) -> Any:
    """A JSON value with `mark` applied to its texts."""
    if isinstance(value, dict):
        return {mark_control_tokens(key, control): _marked(item, control) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked(item, control) for item in value]
    return mark_control_tokens(value, control) if isinstance(value, str) else value


def _make_turn(markup: Markup, message: Message) -> dict[str, Any]:
    """A message as the template reads it."""
    if message.role != "assistant":
        content = mark_control_tokens(message.content, markup.control)
        result: dict[str, Any] = {"role": message.role, "content": to_content(markup.form, content)}
        return result | {key: text for key, text in (("name", message.name), ("tool_call_id", message.call_id)) if text}
    thought, answer = "", message.content
    if markup.writes_thoughts:
        try:
            thought, answer = split_thought(message.content)
        except BadRow:  # an earlier answer that was stopped within its thought
            thought, answer = "", message.content
    turn: dict[str, Any] = {"role": message.role}
    turn["content"] = to_content(markup.form, mark_control_tokens(answer, markup.control_in_answers))
    if thought:
        turn["reasoning_content"] = mark_control_tokens(thought, markup.control_in_answers)
    if message.tool_calls:
        turn["tool_calls"] = [_call(markup, call) for call in message.tool_calls]
    return turn


def _call(markup: Markup, call: ToolCall) -> dict[str, Any]:
    """A call as the template takes it. BadRow if it writes none."""
    if markup.call_arguments is None:
        raise BadRow("the chat template writes no tool calls", f"{TEMPLATE_ADVICE}; call of {call.name}")
    arguments = _marked(json.loads(call.arguments), markup.control_in_answers)
    if markup.call_arguments == "text":
        arguments = json.dumps(arguments, ensure_ascii=False)
    value = call.value
    value["function"]["arguments"] = arguments
    return value


def _encode_marked(tokenizer: "PreTrainedTokenizerBase", marked: str) -> list[int]:
    """The ids of a text; control tokens within marks are text."""
    return list(tokenizer(marked, add_special_tokens=False, sanitize_control_tokens=True, verbose=False)["input_ids"])


def _markup_of(tokenizer: "PreTrainedTokenizerBase") -> Markup:
    """The markup of the tokenizer's template."""
    return find_markup(tokenizer, ensure_template(tokenizer), tokenizer.eos_token_id)


@lru_cache(maxsize=8)
def _find_generation_prompt(tokenizer: "PreTrainedTokenizerBase", template: str) -> GenerationPrompt | None:
    """The generation prompt of the template; None if it has no letters (`template` only keys the cache)."""
    question = [{"role": "user", "content": to_content(_markup_of(tokenizer).form, QUESTION)}]
    with_prompt = render_chat(tokenizer, question, add_generation_prompt=True)
    without_prompt = render_chat(tokenizer, question)
    # compare tokens, not characters: "<|assistant|>" and "<|endoftext|>" share "<|"
    ids, ids_without = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (with_prompt, without_prompt)
    )
    num_shared = num_equal_at_start(ids, ids_without)
    prompt_ids = ids[num_shared:]
    text = tokenizer.decode(prompt_ids, clean_up_tokenization_spaces=False).strip()
    if text not in with_prompt or not any(character.isalpha() for character in text):
        return None
    preceding = with_prompt[: with_prompt.rindex(text)]
    added_tokens = tokenizer.added_tokens_decoder
    is_control = any(token in added_tokens and added_tokens[token].content.strip() for token in prompt_ids)
    return GenerationPrompt(text, is_control, begins_line=preceding.rstrip(" \t")[-1:] in ("", "\n"))
