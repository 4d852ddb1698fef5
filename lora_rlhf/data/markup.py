"""What a chat template writes around an assistant's answer and its thought, found by rendering known answers."""

import json
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateSyntaxError

from lora_rlhf.data.template_bounds import OutOfBounds, bound_templates
from lora_rlhf.data.thoughts import CLOSE, OPEN
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER, THOUGHT = "Probe7Question", "Probe7Answer", "Probe7Thought"  # words that no template contains
TOOL, ARGUMENTS = "Probe7Tool", {"probe7name": "Probe7Value"}
PROPERTIES = {"probe7name": {"type": "string", "description": "A name."}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["probe7name"]}
SCHEMA = {"type": "function", "function": {"name": TOOL, "description": "A tool.", "parameters": PARAMETERS}}
# the end of a thought that the prompt opens, if the template writes no thoughts (DeepSeek-R1)
DEFAULT_THOUGHT_END = f"\n{CLOSE}\n\n"
# Added tokens with these names belong to answers, even if the template itself does not write them.
ANSWER_TOKEN_NAME = re.compile(r"think|tool.?call|python_tag", re.IGNORECASE)
# Marks around control tokens that are text: transformers' tokenizers read them with `sanitize_control_tokens`.
MARK_START, MARK_END = "\U000f0000", "\U000f0001"
CONTROL_TOKEN_FORM = re.compile(r"<[|｜].*[|｜]>")  # noqa: RUF001  (DeepSeek's bars)

Form = Literal["text", "parts"]


@dataclass(frozen=True)
class Markup:
    """What a template writes around an answer. Texts are as the template writes them.

    prompt_tail, answer_head: a generation prompt and the turn of an answer without a thought are equal at first; then
    the prompt ends with `prompt_tail`, and the turn has `answer_head` before the answer. `prompt_tail` is mostly "".
    has_empty_thought: `answer_head` ends with an empty thought, which the template writes and the model need not write.
    head_behind_prompt: the text between the whole generation prompt and such an answer.
    decoded_head: the part of it that stays in a decoded answer.
    tail: the text after an answer.
    text_before_end: the part of it before the token `end_id`, which ends the answer.
    call_end_id: the token that ends a turn with a tool call; mostly `end_id`.
    call_arguments: the form in which the template reads the arguments of a call; None if it writes no calls.
    takes_tools: the template writes the functions that may be called.
    thought_head: between the generation prompt and a thought; "" if the prompt opens the thought, None if the template
    writes no thoughts or if the generation prompt has closed the thought.
    thought_tail: between the thought and the answer.
    writes_thoughts: the template itself writes a message's thought.
    opens_thought: the generation prompt ends within a thought.
    closes_thought: before an answer there is always a closed thought, so an answer cannot have a thought.
    form: whether a message's content is text, or a list of parts (templates of models that also see images).
    """

    prompt_tail: str
    answer_head: str
    has_empty_thought: bool
    head_behind_prompt: str
    decoded_head: str
    tail: str
    text_before_end: str
    end_id: int
    thought_head: str | None
    thought_tail: str
    writes_thoughts: bool
    opens_thought: bool
    closes_thought: bool
    call_end_id: int
    call_arguments: Literal["object", "text"] | None
    takes_tools: bool
    form: Form
    control: re.Pattern[str]  # tokens that stay text where a user, a tool or the system spells them
    control_in_answers: re.Pattern[str]  # the same in an assistant's message, whose own control tokens are not text
    hidden_ids: frozenset[int]  # special tokens that are left out of an answer's text

    @property
    def knows_thoughts(self) -> bool:
        """Whether the template treats thoughts differently from other text."""
        return self.writes_thoughts or self.opens_thought or self.closes_thought


class HarmfulTemplate(UserError):
    """A chat template that does more than chat templates need to do: it is rendered no second time."""


def render_chat(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], **options: Any) -> str:
    """The text that the template writes. UserError, in one line, if it fails on these messages.

    HarmfulTemplate if it takes too much time or memory (see `template_bounds`).
    """
    bound_templates()
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # a template is a program and may raise anything
        kind = HarmfulTemplate if isinstance(error, OutOfBounds) else UserError
        fault = " ".join(str(error).split()) or type(error).__name__
        line = _line_of_template(error)
        place = f"the chat template of tokenizer {tokenizer.name_or_path!r}" + (f", line {line}," if line else "")
        raise kind(f"{place} is broken: {fault}") from error


def _line_of_template(error: BaseException) -> int | None:
    """The line of a template in which it failed; Jinja gives its frames the template's lines."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == "<template>"]
    return lines[-1] if lines else None


def to_content(form: Form, text: str) -> str | list[dict[str, str]]:
    """A message's content in the form that the template reads."""
    return text if form == "text" else [{"type": "text", "text": text}]


@lru_cache(maxsize=8)
def find_markup(tokenizer: "PreTrainedTokenizerBase", template: str, eos_id: int) -> Markup:
    """The markup of the tokenizer's template (`template` and `eos_id` only key the cache).

    UserError for a template that fails on a question and an answer, or does not write an assistant's message.
    """
    content_form = _find_form(tokenizer)
    question = {"role": "user", "content": to_content(content_form, QUESTION)}
    answer = {"role": "assistant", "content": to_content(content_form, ANSWER)}
    prompt = render_chat(tokenizer, [question], add_generation_prompt=True)
    head, _, tail = render_chat(tokenizer, [question, answer]).rpartition(ANSWER)
    text_with_thought = _render_or_empty(tokenizer, [question, answer | {"reasoning_content": THOUGHT}])
    call_arguments, text_with_call = _find_call_form(tokenizer, question, content_form)

    thought_start, thought_end = text_with_thought.find(THOUGHT), text_with_thought.rfind(ANSWER)
    writes_thoughts = 0 <= thought_start < thought_end
    thought_tail = text_with_thought[thought_start + len(THOUGHT) : thought_end] if writes_thoughts else ""
    before_thought = text_with_thought[:thought_start] if writes_thoughts else ""
    opens_thought = before_thought == prompt if writes_thoughts else prompt.rstrip().endswith(OPEN)
    num_shared = num_equal_at_start(prompt, head)
    answer_head = head[num_shared:]
    has_empty_thought = (thought_tail.strip() if writes_thoughts else CLOSE) in answer_head
    turns = [text[num_shared:] for text in (head + ANSWER + tail, text_with_thought, text_with_call)]
    if not has_empty_thought and not head.startswith(prompt):
        num_shared, answer_head = len(prompt), ""  # an answer follows the whole prompt, as in generation
    text_before_end, end_id = _find_end(tokenizer, tail, eos_id)
    control_tokens = list_control_tokens(tokenizer, template)
    answer_tokens, hidden_ids = _find_answer_tokens(tokenizer, control_tokens, prompt, turns, end_id)
    if not writes_thoughts and opens_thought:
        thought_tail = DEFAULT_THOUGHT_END
    closes_open_thought = opens_thought and (num_shared < len(prompt) or not has_empty_thought)
    head_behind_prompt = thought_tail if closes_open_thought else answer_head
    return Markup(
        prompt_tail=prompt[num_shared:],
        answer_head=answer_head,
        has_empty_thought=has_empty_thought,
        head_behind_prompt=head_behind_prompt,
        decoded_head=_decode_visible(tokenizer, head_behind_prompt, hidden_ids),
        tail=tail,
        text_before_end=text_before_end,
        end_id=end_id,
        thought_head=_find_thought_head(before_thought, prompt, writes_thoughts, opens_thought),
        thought_tail=thought_tail,
        writes_thoughts=writes_thoughts,
        opens_thought=opens_thought,
        call_end_id=_find_call_end_id(tokenizer, text_with_call, end_id),
        call_arguments=call_arguments,
        takes_tools=TOOL in _render_or_empty(tokenizer, [question], tools=[SCHEMA]),
        closes_thought=(not before_thought.startswith(prompt))
        if writes_thoughts
        else has_empty_thought and not opens_thought,
        form=content_form,
        control=pattern_of_texts(control_tokens),
        control_in_answers=pattern_of_texts(control_tokens - answer_tokens),
        hidden_ids=hidden_ids,
    )


def _find_thought_head(before_thought: str, prompt: str, writes_thoughts: bool, opens_thought: bool) -> str | None:
    """`Markup.thought_head` of a template."""
    if opens_thought:
        return ""
    return before_thought[len(prompt) :] if writes_thoughts and before_thought.startswith(prompt) else None


def _decode_visible(tokenizer: "PreTrainedTokenizerBase", text: str, hidden: frozenset[int]) -> str:
    """The text as it is in a decoded answer: without special tokens that are hidden."""
    ids = [token for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token not in hidden]
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _find_call_form(
    tokenizer: "PreTrainedTokenizerBase", question: dict[str, Any], form: Form
) -> tuple[Literal["object", "text"] | None, str]:
    """(form of a call's arguments in the template, a conversation with a call); (None, "") if it writes no calls."""
    forms: tuple[tuple[Literal["object", "text"], Any], ...] = (("object", ARGUMENTS), ("text", json.dumps(ARGUMENTS)))
    for arguments_form, arguments in forms:
        call = {"id": "call00001", "type": "function", "function": {"name": TOOL, "arguments": arguments}}
        answer = {"role": "assistant", "content": to_content(form, ""), "tool_calls": [call]}
        text = _render_or_empty(tokenizer, [question, answer])
        if TOOL in text and "{'probe7name'" not in text:  # not as Python prints a dictionary
            return arguments_form, text
    return None, ""


def _find_call_end_id(tokenizer: "PreTrainedTokenizerBase", with_call: str, end_id: int) -> int:
    """The token that ends a turn with a call: that of other answers, or a control token at its end."""
    text = with_call.rpartition(str(ARGUMENTS["probe7name"]))[2].rstrip()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    is_ended = ids and end_id not in ids and ids[-1] in added and not ANSWER_TOKEN_NAME.search(added[ids[-1]].content)
    return int(ids[-1]) if is_ended else end_id


def _find_form(tokenizer: "PreTrainedTokenizerBase") -> Form:
    """The form of a message's content that the template reads. UserError if it writes assistant messages in no form."""
    fault: UserError | None = None
    for form in ("text", "parts"):
        turns = [
            {"role": "user", "content": to_content(form, QUESTION)},
            {"role": "assistant", "content": to_content(form, ANSWER)},
        ]
        try:
            if ANSWER in render_chat(tokenizer, turns):
                return form
        except HarmfulTemplate:
            raise
        except UserError as error:
            fault = fault or error
    name = tokenizer.name_or_path
    raise fault or UserError(f"the chat template of tokenizer {name!r} does not write assistant messages")


def _render_or_empty(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], **options: Any) -> str:
    """The text that the template writes; "" if it refuses the messages."""
    try:
        return render_chat(tokenizer, messages, **options)
    except HarmfulTemplate:
        raise
    except UserError:
        return ""


def _find_end(tokenizer: "PreTrainedTokenizerBase", tail: str, eos_id: int) -> tuple[str, int]:
    """(the text between an answer and the token that ends it, this token).

    The token is the first control token after the answer, or EOS if EOS follows it at once (Cohere's <|END_RESPONSE|>).
    """
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    is_control = [token == eos_id or (token in added and bool(added[token].content.strip())) for token in ids]
    if True not in is_control:
        return "", eos_id
    first = is_control.index(True)
    last = next((index for index in range(first, len(ids)) if not is_control[index]), len(ids))
    end_id = eos_id if eos_id in ids[first:last] else ids[first]
    return tail[: tail.index(tokenizer.convert_ids_to_tokens(end_id))], end_id


def list_control_tokens(tokenizer: "PreTrainedTokenizerBase", template: str) -> set[str]:
    """The tokens that stay text if a user spells them.

    They are the special ones, those that the template names, and those that look like control tokens or belong to
    answers by their names.
    """
    declared_tokens = set(tokenizer.chat_control_tokens or ())
    return {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content.strip()
        and (
            token.special
            or token.content in declared_tokens
            or token.content in template
            or CONTROL_TOKEN_FORM.fullmatch(token.content)
            or ANSWER_TOKEN_NAME.search(token.content)
        )
    }


def _find_answer_tokens(
    tokenizer: "PreTrainedTokenizerBase", control_tokens: set[str], prompt: str, turns: list[str], end_id: int
) -> tuple[set[str], frozenset[int]]:
    """(the control tokens that an assistant's text may hold, the ids of special tokens that are in no answer).

    The first are the tokens that the template writes in an assistant's turn, for a thought or a call, and those with a
    name of ANSWER_TOKEN_NAME.
    """
    added = tokenizer.added_tokens_decoder
    end_tokens = {added[end_id].content} if end_id in added else set()
    end_tokens |= {str(token) for token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) if token}
    written_tokens = {content for content in control_tokens if any(content in turn for turn in turns)}
    named_tokens = {content for content in control_tokens if ANSWER_TOKEN_NAME.search(content)} - end_tokens
    # the token that ends a turn with a call
    end_tokens |= {content for content in written_tokens - named_tokens if turns[-1].rstrip().endswith(content)}
    text_around = prompt.rpartition(QUESTION)[2]  # the end of a user's turn and the beginning of an answer
    written_tokens -= end_tokens
    answer_tokens = {content for content in written_tokens if content not in text_around} | named_tokens
    hidden_ids = frozenset(
        id for id, token in added.items() if token.special and token.content not in written_tokens | named_tokens
    )
    return answer_tokens, hidden_ids


@lru_cache(maxsize=8)
def control_token_patterns(
    tokenizer: "PreTrainedTokenizerBase", template: str
) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of all control tokens, and of the tokens among them that are not special.

    `split_special_tokens` splits only special ones.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = list_control_tokens(tokenizer, template)
    return pattern_of_texts(tokens), pattern_of_texts(tokens - special)


def mark_control_tokens(text: str, control_tokens: re.Pattern[str]) -> str:
    """The text with marks around these control tokens. Marks that are in the text already are removed."""
    return control_tokens.sub(f"{MARK_START}\\g<0>{MARK_END}", text.replace(MARK_START, "").replace(MARK_END, ""))


def num_equal_at_start(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The number of items at the beginnings of two sequences that are equal."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def pattern_of_texts(contents: set[str]) -> re.Pattern[str]:
    """A pattern that matches any of these texts, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(contents, key=len, reverse=True))) or "(?!)")
