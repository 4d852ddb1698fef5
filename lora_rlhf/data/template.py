"""Conversations to token ids and back, through the tokenizer's own chat template.

A prompt is rendered up to the point where the assistant speaks; a response is exactly the tokens that the assistant's
turn adds, up to and including the token that ends it. Text that looks like a control token ("</s>" typed by a user)
stays text. In an assistant's message the tokens of its own format (<think>, <tool_call>) are control tokens.
"""

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_rlhf.data.markup import QUESTION, Markup, chat_text, content_of, find_markup, mark, num_common, text_patterns
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


OTHERWISE = "the chat template writes this answer in another way than others"
OTHER_TEMPLATE = "--chat-template names another one"
FOLD = "--system fold writes system messages into the first question"


class GenerationPrompt(NamedTuple):
    """The generation prompt: what a template writes last, before the answer. `text` has no white space at its ends.

    `is_control`: it holds a control token, so no ordinary text contains it. `begins_line`: it begins a line.
    """

    text: str
    is_control: bool
    begins_line: bool

    def is_left_in(self, message: str) -> bool:
        """Whether the template was applied to a message's text already: its generation prompt stands there."""
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
    """The tokenizer's chat template; a tokenizer without one is given `DEFAULT_TEMPLATE` (in place) first.

    The default begins with BOS if the tokenizer would write it before plain text. Raises UserError if the tokenizer
    has no EOS, or several templates and none named "default".
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has no EOS token, so no response could ever end; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = ("{{ bos_token }}" if leading_bos(tokenizer) else "") + DEFAULT_TEMPLATE
    try:
        tokenizer.chat_template = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r}: {error}; choose one with --chat-template") from error
    return str(tokenizer.chat_template)


def leading_bos(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """[bos] if the tokenizer writes BOS before plain text by itself, else []."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that fills padded cells; EOS if there is no pad token. Masks, never this id, tell what is padding."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def stop_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids at which generation stops: those that end the template's assistant turn, the first of a text, and EOS."""
    markup = _markup(tokenizer)
    return list(dict.fromkeys([markup.end_id, markup.call_end_id, tokenizer.eos_token_id]))


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The ids of plain text: nothing added, and control tokens spelled in it stay ordinary text."""
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    control, not_special = text_patterns(tokenizer, template)
    if not_special.search(text):
        return _ids(tokenizer, mark(text, control))
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(encoded["input_ids"])


def render_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """The ids of the conversation up to where the assistant's answer begins; BOS at most once.

    Raises BadRow (a UserError) if the template refuses the conversation or leaves a message out, e.g. a system
    message, or if it was applied to the text already: around its own markup it would teach a form that no later prompt
    has.
    """
    generation_prompt = _generation_prompt(tokenizer, ensure_template(tokenizer))
    if generation_prompt is not None and generation_prompt.is_left_in(prompt.messages[-1].content):
        detail = f"the last message holds {generation_prompt.text!r}"
        raise BadRow("the chat template seems to be applied already", detail)
    return render_verbatim(tokenizer, prompt)


def render_verbatim(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """`render_prompt` for text that may well quote a chat template: a judge's question about any two answers.

    Raises BadRow if the template refuses the conversation.
    """
    return _ids(tokenizer, _conversation(tokenizer, prompt))


def render_response(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str) -> list[int]:
    """The ids that the assistant's turn adds after `render_prompt`, ending in the only stop token among them.

    A thought in the response is written as the template writes thoughts; where the prompt ends within one, the response
    closes it. BadRow for a thought without an end, and for one that the generation prompt leaves no room for.
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
    markup = _markup(tokenizer)
    thought, answer = _thought_and_answer(markup, response)
    whole = _conversation(tokenizer, prompt, Message("assistant", response, tool_calls=tool_calls))
    ids = _ids(tokenizer, whole)
    response_ids = ids[len(prompt_ids) :]
    end_id = markup.call_end_id if tool_calls else markup.end_id
    if ids[: len(prompt_ids)] == prompt_ids and end_id in response_ids:
        return response_ids[: response_ids.index(end_id) + 1]
    # the template writes no end of turn, or none of these prompts before an answer, or the answer would melt into the
    # prompt's last token: put the answer behind the prompt as generation does
    start = _conversation(tokenizer, prompt)
    if whole.startswith(start):
        return _ended(tokenizer, whole.removeprefix(start), bool(tool_calls))
    if tool_calls:
        raise BadRow(OTHERWISE, f"its prompt ends in {start[-60:]!r}")
    answer = mark(answer, markup.control_in_answers)
    thought = mark(thought, markup.control_in_answers)
    head = f"{markup.thought_head}{thought}{markup.thought_tail}" if thought else markup.head_behind_prompt
    return [*_ids(tokenizer, head + answer + markup.after), markup.end_id]


def render_demonstration(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    prompt_ids: list[int],
    response: str,
    tool_calls: tuple[ToolCall, ...] = (),
) -> tuple[list[int], list[int]]:
    """(the ids before a demonstration's answer, the ids to be learned), of a prompt with `render_prompt`'s ids.

    The first are the prompt's. Where a template writes an empty thought before an answer without one, they hold that
    too, as it stands in the template's own rendering: the model does not learn to skip its thoughts.
    """
    markup = _markup(tokenizer)
    thought, answer = _thought_and_answer(markup, response)
    if thought or (not markup.has_empty_thought and (tool_calls or not markup.opens_thought)):
        return prompt_ids, render_response_after(tokenizer, prompt, prompt_ids, response, tool_calls)
    if not markup.has_empty_thought:  # the template never writes how the thought ends that its prompt opens
        text = mark(answer, markup.control_in_answers) + markup.after
        context_ids = [*prompt_ids, *_ids(tokenizer, markup.thought_tail)]
        return context_ids, [*_ids(tokenizer, text), markup.end_id]
    context = _conversation(tokenizer, prompt).removesuffix(markup.prompt_tail) + markup.answer_head
    whole = _conversation(tokenizer, prompt, Message("assistant", response, tool_calls=tool_calls))
    if not whole.startswith(context):
        raise BadRow(OTHERWISE, f"expected {context[-60:]!r}")
    ids, context_ids = _ids(tokenizer, whole), _ids(tokenizer, context)
    response_ids = ids[len(context_ids) :]
    end_id = markup.call_end_id if tool_calls else markup.end_id
    if ids[: len(context_ids)] != context_ids or end_id not in response_ids:
        return context_ids, _ended(tokenizer, whole.removeprefix(context), bool(tool_calls))
    return context_ids, response_ids[: response_ids.index(end_id) + 1]


def _ended(tokenizer: "PreTrainedTokenizerBase", text: str, has_calls: bool) -> list[int]:
    """The ids of an answer as the template wrote it behind its prompt, with the token that ends it."""
    markup = _markup(tokenizer)
    if not has_calls:
        return [*_ids(tokenizer, text.removesuffix(markup.tail) + markup.after), markup.end_id]
    end = tokenizer.convert_ids_to_tokens(markup.call_end_id)
    return [*_ids(tokenizer, text.rpartition(end)[0] if end in text else text), markup.call_end_id]


def decode_response(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The answer's text: what stands before the first stop token, without what the template puts around it.

    A thought stands before it between <think> and </think>, also one that the prompt opens.
    """
    markup, stops = _markup(tokenizer), set(stop_ids(tokenizer))
    end = next((position for position, token in enumerate(ids) if token in stops), len(ids))
    visible = [token for token in ids[:end] if token not in markup.hidden_ids]
    text = tokenizer.decode(visible, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if end == len(ids):
        return _open_text(markup, text)
    return _text_of(markup, text).removesuffix(markup.after)


def _text_of(markup: Markup, text: str) -> str:
    """What an assistant wrote, without the template's markup, and its thought as rows have thoughts."""
    if markup.opening and text.startswith(markup.opening):
        return text.removeprefix(markup.opening)
    if markup.thought_head is None or not text.startswith(markup.thought_head):
        return text
    thought, tail, answer = text.removeprefix(markup.thought_head).partition(markup.thought_tail)
    return join_thought(thought, answer) if tail else f"{OPEN}\n{thought}"


def _open_text(markup: Markup, text: str) -> str:
    """`_text_of` for an answer that goes on: of markup that has only begun nothing is told, so text only grows."""
    heads = (markup.opening, markup.thought_head or "")
    if not text or any(head.startswith(text) for head in heads):
        return ""
    head, tail = markup.thought_head, markup.thought_tail
    if head is None or not text.startswith(head) or tail in text:
        text = _text_of(markup, text)
        return text.removesuffix(markup.after) if markup.after.strip() else text
    begun = next((tail[:length] for length in range(len(tail) - 1, 0, -1) if text.endswith(tail[:length])), "")
    return f"{OPEN}\n{text.removeprefix(head).removesuffix(begun)}"


def _thought_and_answer(markup: Markup, response: str) -> tuple[str, str]:
    """The response's thought and the rest; ("", response) where the template knows no thoughts. BadRow: see callers."""
    if not markup.knows_thoughts:
        return "", response
    thought, answer = split_thought(response)
    if thought and markup.closes_thought:
        raise BadRow(
            "the chat template leaves no room for the answer's thought",
            "it closes one before every answer; for many models --template-args enable_thinking=true changes that",
        )
    return thought, answer


def _conversation(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, answer: Message | None = None) -> str:
    """What the template writes, up to the answer or with it, with marks around control tokens that are text.

    BadRow where the template refuses, leaves a message out, or knows no tools and the conversation has some.
    """
    markup = _markup(tokenizer)
    if prompt.tools and not markup.takes_tools:
        raise BadRow("the chat template takes no tools", f"{OTHER_TEMPLATE}; tools {prompt.tools[:60]}")
    messages = prompt.messages if answer is None else (*prompt.messages, answer)
    turns = [_turn(markup, message) for message in messages]
    tools = _marked(json.loads(prompt.tools), markup.control) if prompt.tools else None
    try:
        text = str(
            tokenizer.apply_chat_template(turns, tools=tools, add_generation_prompt=answer is None, tokenize=False)
        )
    except Exception as error:  # a template is a program of somebody else's
        roles = [message.role for message in messages]
        detail = f"{error}; roles {', '.join(roles)}" + (f"; {FOLD}" if "system" in roles else "")
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
        return {mark(key, control): _marked(item, control) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked(item, control) for item in value]
    return mark(value, control) if isinstance(value, str) else value


def _turn(markup: Markup, message: Message) -> dict[str, Any]:
    """A message as the template takes it. BadRow for calls if it writes none."""
    if message.role != "assistant":
        content = mark(message.content, markup.control)
        result: dict[str, Any] = {"role": message.role, "content": content_of(markup.form, content)}
        return result | {key: text for key, text in (("name", message.name), ("tool_call_id", message.call_id)) if text}
    thought, answer = "", message.content
    if markup.writes_thoughts:
        try:
            thought, answer = split_thought(message.content)
        except BadRow:  # of an earlier answer, which somebody stopped within its thought
            thought, answer = "", message.content
    turn: dict[str, Any] = {"role": message.role}
    turn["content"] = content_of(markup.form, mark(answer, markup.control_in_answers))
    if thought:
        turn["reasoning_content"] = mark(thought, markup.control_in_answers)
    if message.tool_calls:
        turn["tool_calls"] = [_call(markup, call) for call in message.tool_calls]
    return turn


def _call(markup: Markup, call: ToolCall) -> dict[str, Any]:
    """A call as the template takes it. BadRow if it writes none."""
    if markup.call_arguments is None:
        raise BadRow("the chat template writes no tool calls", f"{OTHER_TEMPLATE}; call of {call.name}")
    arguments = _marked(json.loads(call.arguments), markup.control_in_answers)
    if markup.call_arguments == "text":
        arguments = json.dumps(arguments, ensure_ascii=False)
    value = call.value
    value["function"]["arguments"] = arguments
    return value


def _ids(tokenizer: "PreTrainedTokenizerBase", marked: str) -> list[int]:
    """The ids of a text in which control tokens count, but for those in marks."""
    return list(tokenizer(marked, add_special_tokens=False, sanitize_control_tokens=True, verbose=False)["input_ids"])


def _markup(tokenizer: "PreTrainedTokenizerBase") -> Markup:
    return find_markup(tokenizer, ensure_template(tokenizer), tokenizer.eos_token_id)


@lru_cache(maxsize=8)
def _generation_prompt(tokenizer: "PreTrainedTokenizerBase", template: str) -> GenerationPrompt | None:
    """Renders one question with and without it; None if it has no words (`template` only keys the cache)."""
    question = [{"role": "user", "content": content_of(_markup(tokenizer).form, QUESTION)}]
    with_prompt = chat_text(tokenizer, question, add_generation_prompt=True)
    without_prompt = chat_text(tokenizer, question)
    # by tokens, for templates that end the conversation otherwise: "<|assistant|>" and "<|endoftext|>" share "<|"
    ids, ids_without = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (with_prompt, without_prompt)
    )
    num_shared = num_common(ids, ids_without)
    prompt_ids = ids[num_shared:]
    text = tokenizer.decode(prompt_ids, clean_up_tokenization_spaces=False).strip()
    if text not in with_prompt or not any(character.isalpha() for character in text):
        return None
    preceding = with_prompt[: with_prompt.rindex(text)]
    added_tokens = tokenizer.added_tokens_decoder
    is_control = any(token in added_tokens and added_tokens[token].content.strip() for token in prompt_ids)
    return GenerationPrompt(text, is_control, begins_line=preceding.rstrip(" \t")[-1:] in ("", "\n"))
