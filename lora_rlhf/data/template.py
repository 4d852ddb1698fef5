"""Conversations to token ids and back, through the tokenizer's own chat template.

A prompt is rendered up to the point where the assistant speaks; a response is exactly the tokens that the assistant's
turn adds, up to and including the token that ends it. Text that looks like a control token ("</s>" typed by a user)
stays text.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Prompt
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

PROBE = "Probe7Answer"  # one word that no template contains


class Turn(NamedTuple):
    """What a template puts around the assistant's answer: `before` and `after` as text, and the token that ends it.

    `opening`: the part of `before` that is left in an answer decoded without special tokens.
    """

    before: str
    opening: str
    after: str
    end_id: int


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
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r}: {error}") from error


def leading_bos(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """[bos] if the tokenizer writes BOS before plain text by itself, else []."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that fills padded cells; EOS if there is no pad token. Masks, never this id, tell what is padding."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def stop_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids at which generation stops: the token that ends the template's assistant turn, and EOS if it differs."""
    return list(dict.fromkeys([_turn(tokenizer).end_id, tokenizer.eos_token_id]))


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The ids of plain text: nothing added, and control tokens spelled in it stay ordinary text."""
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(encoded["input_ids"])


def render_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """The ids of the conversation up to where the assistant's answer begins; BOS at most once.

    Raises BadRow (a UserError) if the template refuses the conversation, e.g. for a system message, or if it was
    applied to the text already: around its own markup it would teach a form that no later prompt has.
    """
    generation_prompt = _generation_prompt(tokenizer, ensure_template(tokenizer))
    if generation_prompt is not None and generation_prompt.is_left_in(prompt.messages[-1].content):
        detail = f"the last message holds {generation_prompt.text!r}"
        raise BadRow("the chat template seems to be applied already", detail)
    return _render(tokenizer, prompt.messages, add_generation_prompt=True)


def render_verbatim(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """`render_prompt` for text that may well quote a chat template: a judge's question about any two answers.

    Raises BadRow if the template refuses the conversation.
    """
    return _render(tokenizer, prompt.messages, add_generation_prompt=True)


def render_response(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str) -> list[int]:
    """The ids that the assistant's turn adds after `render_prompt`, ending in the only stop token among them."""
    return render_response_after(tokenizer, prompt, render_prompt(tokenizer, prompt), response)


def render_response_after(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, prompt_ids: list[int], response: str
) -> list[int]:
    """`render_response` for a caller that has `render_prompt`'s ids already (K responses of one prompt)."""
    turn = _turn(tokenizer)
    ids = _render(tokenizer, (*prompt.messages, Message("assistant", response)), add_generation_prompt=False)
    response_ids = ids[len(prompt_ids) :]
    if ids[: len(prompt_ids)] != prompt_ids or turn.end_id not in response_ids:
        # the template writes no end of turn, or the answer would melt into the prompt's last token: put the answer
        # behind the prompt as generation does
        return [*encode_text(tokenizer, turn.before + response + turn.after), turn.end_id]
    return response_ids[: response_ids.index(turn.end_id) + 1]


def decode_response(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The answer's text: what stands before the first stop token, without what the template puts around it."""
    turn, stops = _turn(tokenizer), set(stop_ids(tokenizer))
    end = next((position for position, token in enumerate(ids) if token in stops), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = text.removeprefix(turn.opening)
    return text.removesuffix(turn.after) if end < len(ids) else text


def _visible(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: tuple[Message, ...], add_generation_prompt: bool
) -> list[int]:
    ensure_template(tokenizer)
    try:
        return list(
            tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                add_generation_prompt=add_generation_prompt,
                sanitize_control_tokens=True,
                return_dict=False,  # transformers 5 returns a BatchEncoding unless told otherwise
            )
        )
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise BadRow("the tokenizer's chat template refuses the conversation", f"{error}; roles {roles}") from error


def _turn(tokenizer: "PreTrainedTokenizerBase") -> Turn:
    return _probe(tokenizer, ensure_template(tokenizer), tokenizer.eos_token_id)


@lru_cache(maxsize=8)
def _probe(tokenizer: "PreTrainedTokenizerBase", template: str, eos_id: int) -> Turn:
    """Renders one known answer to see what the template writes around it (the other arguments only key the cache)."""
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}
    asked_text = _text(tokenizer, [question], add_generation_prompt=True)
    head, probe, tail = _text(tokenizer, [question, answer]).rpartition(PROBE)
    if not probe:
        raise UserError(f"the chat template of tokenizer {tokenizer.name_or_path!r} does not write assistant messages")
    before = head.removeprefix(asked_text) if head.startswith(asked_text) else ""
    opening, added_tokens = _visible(tokenizer, before), tokenizer.added_tokens_decoder
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token == eos_id or (token in added_tokens and added_tokens[token].content.strip()):
            spelled = tokenizer.convert_ids_to_tokens(token)
            return Turn(before, opening, tail[: tail.index(spelled)], token)
    return Turn(before, opening, "", eos_id)


@lru_cache(maxsize=8)
def _generation_prompt(tokenizer: "PreTrainedTokenizerBase", template: str) -> GenerationPrompt | None:
    """Renders one question with and without it; None if it has no words (`template` only keys the cache)."""
    question = [{"role": "user", "content": "a"}]
    with_prompt, without_prompt = _text(tokenizer, question, add_generation_prompt=True), _text(tokenizer, question)
    # by tokens, for templates that end the conversation otherwise: "<|assistant|>" and "<|endoftext|>" share "<|"
    ids, ids_without = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (with_prompt, without_prompt)
    )
    pairs = enumerate(zip(ids, ids_without, strict=False))
    num_shared = next((index for index, (a, b) in pairs if a != b), len(ids_without))
    prompt_ids = ids[num_shared:]
    text = tokenizer.decode(prompt_ids, clean_up_tokenization_spaces=False).strip()
    if text not in with_prompt or not any(character.isalpha() for character in text):
        return None
    preceding = with_prompt[: with_prompt.rindex(text)]
    added_tokens = tokenizer.added_tokens_decoder
    is_control = any(token in added_tokens and added_tokens[token].content.strip() for token in prompt_ids)
    return GenerationPrompt(text, is_control, begins_line=preceding.rstrip(" \t")[-1:] in ("", "\n"))


def _text(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], add_generation_prompt: bool = False
) -> str:
    """What the template writes. UserError where it fails on so plain a conversation."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise UserError(f"the chat template of tokenizer {tokenizer.name_or_path!r} is broken: {error}") from error
