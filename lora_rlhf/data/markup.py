"""What a chat template writes around an assistant's answer and its thought, found by rendering known answers."""

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from lora_rlhf.data.thoughts import CLOSE, OPEN
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER, THOUGHT = "Probe7Question", "Probe7Answer", "Probe7Thought"  # words that no template contains
TOOL, ARGUMENTS = "Probe7Tool", {"probe7name": "Probe7Value"}
PROPERTIES = {"probe7name": {"type": "string", "description": "A name."}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["probe7name"]}
SCHEMA = {"type": "function", "function": {"name": TOOL, "description": "A tool.", "parameters": PARAMETERS}}
SECONDS = 20  # a template that needs longer for one question never ends
CLOSING = f"\n{CLOSE}\n\n"  # how a thought ends where the prompt opens it and the template writes none (DeepSeek-R1)
# Added tokens of these names belong to answers, also where the template leaves it to the data to write them.
OF_ANSWERS = re.compile(r"think|tool.?call|python_tag", re.IGNORECASE)
# Marks around what is text, as transformers' tokenizers know them when called with `sanitize_control_tokens`.
START, END = "\U000f0000", "\U000f0001"
LIKE_CONTROL = re.compile(r"<[|｜].*[|｜]>")  # noqa: RUF001  (DeepSeek's bars)

Form = Literal["text", "parts"]


@dataclass(frozen=True)
class Markup:
    """What a template writes around an answer. Texts are as the template writes them.

    prompt_tail, answer_head: from where on a generation prompt and the turn of an answer without a thought differ: the
    prompt ends in `prompt_tail`, the answer stands behind `answer_head`. Mostly the first is "".
    has_empty_thought: `answer_head` ends in an empty thought, which the template writes and the model need not.
    head_behind_prompt: what stands between the whole generation prompt and such an answer; `opening` is what is left of
    it in a decoded answer.
    tail, after: behind an answer, all of it and up to the token `end_id` that ends it.
    thought_head: between the generation prompt and a thought; "" where the prompt opens it, None where the template
    writes no thoughts, or where the generation prompt has closed the thought.
    thought_tail: between the thought and the answer.
    writes_thoughts: the template itself writes a message's thought.
    opens_thought: the generation prompt ends within a thought.
    call_end_id: the token that ends a turn that calls a tool; mostly `end_id`.
    call_end_id: the token that ends a turn that calls a tool; mostly `end_id`.
    call_arguments: how the template takes the arguments of a call; None where it writes no calls.
    takes_tools: it writes the functions that may be called.
    closes_thought: an answer always stands behind a closed thought, so that it can have none itself.
    form: whether a message's content is text, or a list of parts (templates of models that also see images).
    """

    prompt_tail: str
    answer_head: str
    has_empty_thought: bool
    head_behind_prompt: str
    opening: str
    tail: str
    after: str
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
        """Whether thoughts are more than text here."""
        return self.writes_thoughts or self.opens_thought or self.closes_thought


def chat_text(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], **options: Any) -> str:
    """What the template writes. UserError where it fails on so plain a conversation, or does not come to an end."""
    try:
        with _time_limit():
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # a template is a program of somebody else's
        name = tokenizer.name_or_path
        raise UserError(
            f"the chat template of tokenizer {name!r} is broken: {error or type(error).__name__}"
        ) from error


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Raises TimeoutError in the main thread, where signals arrive; elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"it writes no end within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def content_of(form: Form, text: str) -> str | list[dict[str, str]]:
    """A message's content as the template wants it."""
    return text if form == "text" else [{"type": "text", "text": text}]


@lru_cache(maxsize=8)
def find_markup(tokenizer: "PreTrainedTokenizerBase", template: str, eos_id: int) -> Markup:
    """The markup of the tokenizer's template (`template` and `eos_id` only key the cache).

    UserError for a template that fails on a question and an answer, or does not write an assistant's message.
    """
    form = _form(tokenizer)
    question = {"role": "user", "content": content_of(form, QUESTION)}
    answer = {"role": "assistant", "content": content_of(form, ANSWER)}
    prompt = chat_text(tokenizer, [question], add_generation_prompt=True)
    head, _, tail = chat_text(tokenizer, [question, answer]).rpartition(ANSWER)
    with_thought = _or_empty(tokenizer, [question, answer | {"reasoning_content": THOUGHT}])
    call_arguments, with_call = _call_form(tokenizer, question, form)

    thought_start, thought_end = with_thought.find(THOUGHT), with_thought.rfind(ANSWER)
    writes_thoughts = 0 <= thought_start < thought_end
    thought_tail = with_thought[thought_start + len(THOUGHT) : thought_end] if writes_thoughts else ""
    before_thought = with_thought[:thought_start] if writes_thoughts else ""
    opens = before_thought == prompt if writes_thoughts else prompt.rstrip().endswith(OPEN)
    num_shared = num_common(prompt, head)
    answer_head = head[num_shared:]
    has_empty_thought = (thought_tail.strip() if writes_thoughts else CLOSE) in answer_head
    turns = [text[num_shared:] for text in (head + ANSWER + tail, with_thought, with_call)]
    if not has_empty_thought and not head.startswith(prompt):
        num_shared, answer_head = len(prompt), ""  # its answers stand where generation puts them: behind the prompt
    after, end_id = _end(tokenizer, tail, eos_id)
    control = control_tokens(tokenizer, template)
    of_answers, hidden = _of_answers(tokenizer, control, prompt, turns, end_id)
    if not writes_thoughts and opens:
        thought_tail = CLOSING
    closes_open_thought = opens and (num_shared < len(prompt) or not has_empty_thought)
    head_behind_prompt = thought_tail if closes_open_thought else answer_head
    return Markup(
        prompt_tail=prompt[num_shared:],
        answer_head=answer_head,
        has_empty_thought=has_empty_thought,
        head_behind_prompt=head_behind_prompt,
        opening=_visible(tokenizer, head_behind_prompt, hidden),
        tail=tail,
        after=after,
        end_id=end_id,
        thought_head=_thought_head(before_thought, prompt, writes_thoughts, opens),
        thought_tail=thought_tail,
        writes_thoughts=writes_thoughts,
        opens_thought=opens,
        call_end_id=_call_end(tokenizer, with_call, end_id),
        call_arguments=call_arguments,
        takes_tools=TOOL in _or_empty(tokenizer, [question], tools=[SCHEMA]),
        closes_thought=(not before_thought.startswith(prompt)) if writes_thoughts else has_empty_thought and not opens,
        form=form,
        control=any_of(control),
        control_in_answers=any_of(control - of_answers),
        hidden_ids=hidden,
    )


def _thought_head(before_thought: str, prompt: str, writes_thoughts: bool, opens: bool) -> str | None:
    if opens:
        return ""
    return before_thought[len(prompt) :] if writes_thoughts and before_thought.startswith(prompt) else None


def _visible(tokenizer: "PreTrainedTokenizerBase", text: str, hidden: frozenset[int]) -> str:
    """The text as it is left in a decoded answer."""
    ids = [token for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token not in hidden]
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _call_form(
    tokenizer: "PreTrainedTokenizerBase", question: dict[str, Any], form: Form
) -> tuple[Literal["object", "text"] | None, str]:
    """(how the template takes a call's arguments, the conversation with a call); (None, "") if it writes no calls."""
    forms: tuple[tuple[Literal["object", "text"], Any], ...] = (("object", ARGUMENTS), ("text", json.dumps(ARGUMENTS)))
    for arguments_form, arguments in forms:
        call = {"id": "call00001", "type": "function", "function": {"name": TOOL, "arguments": arguments}}
        answer = {"role": "assistant", "content": content_of(form, ""), "tool_calls": [call]}
        text = _or_empty(tokenizer, [question, answer])
        if TOOL in text and "{'probe7name'" not in text:  # not as Python prints a dictionary
            return arguments_form, text
    return None, ""


def _call_end(tokenizer: "PreTrainedTokenizerBase", with_call: str, end_id: int) -> int:
    """The token that ends a turn that calls a tool: that of other answers, or a control token that stands last."""
    text = with_call.rpartition(str(ARGUMENTS["probe7name"]))[2].rstrip()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    is_ended = ids and end_id not in ids and ids[-1] in added and not OF_ANSWERS.search(added[ids[-1]].content)
    return int(ids[-1]) if is_ended else end_id


def _form(tokenizer: "PreTrainedTokenizerBase") -> Form:
    """How the template takes a message's content. UserError if it writes an assistant's message in no form."""
    fault: UserError | None = None
    for form in ("text", "parts"):
        turns = [
            {"role": "user", "content": content_of(form, QUESTION)},
            {"role": "assistant", "content": content_of(form, ANSWER)},
        ]
        try:
            if ANSWER in chat_text(tokenizer, turns):
                return form
        except UserError as error:
            fault = fault or error
    name = tokenizer.name_or_path
    raise fault or UserError(f"the chat template of tokenizer {name!r} does not write assistant messages")


def _or_empty(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], **options: Any) -> str:
    """What the template writes; "" where it refuses."""
    try:
        return chat_text(tokenizer, messages, **options)
    except UserError:
        return ""


def _end(tokenizer: "PreTrainedTokenizerBase", tail: str, eos_id: int) -> tuple[str, int]:
    """(what stands between an answer and the token that ends it, that token).

    The first control token behind the answer ends it, or EOS where that follows at once (Cohere's <|END_RESPONSE|>).
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


def control_tokens(tokenizer: "PreTrainedTokenizerBase", template: str) -> set[str]:
    """The tokens that stay text where a user spells them.

    They are the special ones, those that the template names, and those that look like control tokens or belong to
    answers by their names.
    """
    listed = set(tokenizer.chat_control_tokens or ())
    return {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content.strip()
        and (
            token.special
            or token.content in listed
            or token.content in template
            or LIKE_CONTROL.fullmatch(token.content)
            or OF_ANSWERS.search(token.content)
        )
    }


def _of_answers(
    tokenizer: "PreTrainedTokenizerBase", control: set[str], prompt: str, turns: list[str], end_id: int
) -> tuple[set[str], frozenset[int]]:
    """(the control tokens that an assistant's text may hold, the ids of special ones that no answer is made of).

    The first are those that the template writes in its turn, for a thought or a call, and those named so.
    """
    added = tokenizer.added_tokens_decoder
    ends = {added[end_id].content} if end_id in added else set()
    ends |= {str(token) for token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) if token}
    written = {content for content in control if any(content in turn for turn in turns)}
    named = {content for content in control if OF_ANSWERS.search(content)} - ends
    ends |= {content for content in written - named if turns[-1].rstrip().endswith(content)}  # ends a turn with a call
    around = prompt.rpartition(QUESTION)[2]  # what ends a user's turn and begins an answer
    written -= ends
    of_answers = {content for content in written if content not in around} | named
    hidden = frozenset(id for id, token in added.items() if token.special and token.content not in written | named)
    return of_answers, hidden


@lru_cache(maxsize=8)
def text_patterns(tokenizer: "PreTrainedTokenizerBase", template: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of all control tokens, and of those that are not special, so that `split_special_tokens` keeps them."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    control = control_tokens(tokenizer, template)
    return any_of(control), any_of(control - special)


def mark(text: str, control: re.Pattern[str]) -> str:
    """The text with marks around these control tokens, and without those that somebody put there."""
    return control.sub(f"{START}\\g<0>{END}", text.replace(START, "").replace(END, ""))


def num_common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences have in common at their beginnings."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def any_of(contents: set[str]) -> re.Pattern[str]:
    """A pattern for any of these texts, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(contents, key=len, reverse=True))) or "(?!)")
