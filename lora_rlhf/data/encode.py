"""Records to token ids within length limits: prompts are truncated from the left, responses are never cut."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking
from lora_rlhf.data.template import encode_text, render_prompt, render_response_after, stop_ids
from lora_rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = TypeVar("Record")
Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, and the record that they were made from (for `meta` and for display)."""

    prompt_ids: list[int]
    prompt: Prompt


@dataclass(frozen=True)
class EncodedExample:
    """A demonstration's ids; `response_ids` end in the stop token."""

    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True)
class EncodedRanking:
    """K >= 2 responses' ids, each ending in the stop token; `ranks[i]` belongs to `response_ids[i]`, 1 = best."""

    prompt_ids: list[int]
    response_ids: list[list[int]]
    ranks: list[int]


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, max_prompt_tokens: int, refused: RefusedRows
) -> list[int] | None:
    """The prompt's ids, at most `max_prompt_tokens`; None if it was refused (counted in `refused`).

    A prompt that is too long loses its oldest turns first (system messages stay), then the beginning of its last
    message; the template around it stays whole. `refused.truncated_prompts` counts these.
    """
    try:
        ids = render_prompt(tokenizer, prompt)
        limited = _limited(tokenizer, prompt, ids, max_prompt_tokens)
    except BadRow as fault:
        refused.add(prompt.origin, fault)
        return None
    refused.truncated_prompts += limited is not ids
    return limited


def _limited(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, ids: list[int], limit: int) -> list[int]:
    return ids if len(ids) <= limit else _truncated(tokenizer, prompt, limit)


def _truncated(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, limit: int) -> list[int]:
    system = tuple(message for message in prompt.messages if message.role == "system")
    turns = [message for message in prompt.messages if message.role != "system"]
    starts = [position for position, message in enumerate(turns) if message.role == "user"]
    for start in starts[1:]:
        ids = render_prompt(tokenizer, replace(prompt, messages=(*system, *turns[start:])))
        if len(ids) <= limit:
            return ids
    content = encode_text(tokenizer, turns[-1].content)
    ids = render_prompt(tokenizer, replace(prompt, messages=(*system, turns[-1])))
    # cutting can change how the rest is tokenized, so a cut may have to be repeated; each removes at least one token
    while len(ids) > limit and len(content) > len(ids) - limit:
        content = content[len(ids) - limit :]
        text = tokenizer.decode(content, clean_up_tokenization_spaces=False).lstrip("\ufffd")  # a halved character
        if not text.strip():
            break
        ids = render_prompt(tokenizer, replace(prompt, messages=(*system, Message("user", text))))
    if len(ids) > limit:
        detail = f"limit {limit}; raise max_prompt_tokens"
        raise BadRow("the template and system message leave no room for the prompt", detail)
    return ids


def _encode_response(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, prompt_ids: list[int], response: str, max_response_tokens: int
) -> list[int]:
    ids = render_response_after(tokenizer, prompt, prompt_ids, response)
    if len(ids) > max_response_tokens:
        raise BadRow(f"the response has more than max_response_tokens={max_response_tokens} tokens", f"has {len(ids)}")
    return ids


def encode_demonstration(
    tokenizer: "PreTrainedTokenizerBase",
    demonstration: Demonstration,
    max_prompt_tokens: int,
    max_response_tokens: int,
    refused: RefusedRows,
) -> EncodedExample | None:
    """The demonstration's ids; None, counted in `refused`, if its response is over the limit (it is never cut)."""
    prompt = demonstration.prompt
    try:
        ids = render_prompt(tokenizer, prompt)
        limited = _limited(tokenizer, prompt, ids, max_prompt_tokens)
        response_ids = _encode_response(tokenizer, prompt, ids, demonstration.response, max_response_tokens)
    except BadRow as fault:
        refused.add(prompt.origin, fault)
        return None
    refused.truncated_prompts += limited is not ids
    return EncodedExample(limited, response_ids)


def encode_ranking(
    tokenizer: "PreTrainedTokenizerBase",
    ranking: Ranking,
    max_prompt_tokens: int,
    max_response_tokens: int,
    refused: RefusedRows,
) -> EncodedRanking | None:
    """The ranking's ids. A response over the limit is refused alone; the ranking goes when fewer than 2 are left."""
    prompt = ranking.prompt
    try:
        ids = render_prompt(tokenizer, prompt)
        limited = _limited(tokenizer, prompt, ids, max_prompt_tokens)
    except BadRow as fault:
        refused.add(prompt.origin, fault)
        return None
    kept: list[tuple[list[int], int]] = []
    for response, rank in zip(ranking.responses, ranking.ranks, strict=True):
        try:
            kept.append((_encode_response(tokenizer, prompt, ids, response, max_response_tokens), rank))
        except BadRow as fault:
            refused.add(prompt.origin, fault)
    if len(kept) < 2:
        refused.add(prompt.origin, BadRow("fewer than 2 responses of the ranking are left", f"{len(kept)} left"))
        return None
    refused.truncated_prompts += limited is not ids
    return EncodedRanking(limited, [response_ids for response_ids, _ in kept], [rank for _, rank in kept])


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt], max_prompt_tokens: int
) -> tuple[list[EncodedPrompt], RefusedRows]:
    """All prompts' ids in order, and what was refused. Raises UserError if nothing is left."""

    def encode(prompt: Prompt, refused: RefusedRows) -> EncodedPrompt | None:
        ids = encode_prompt(tokenizer, prompt, max_prompt_tokens, refused)
        return None if ids is None else EncodedPrompt(ids, prompt)

    return _encode_all(tokenizer, prompts, encode)


def encode_demonstrations(
    tokenizer: "PreTrainedTokenizerBase",
    demonstrations: Sequence[Demonstration],
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> tuple[list[EncodedExample], RefusedRows]:
    """All demonstrations' ids in order, and what was refused. Raises UserError if nothing is left."""

    def encode(record: Demonstration, refused: RefusedRows) -> EncodedExample | None:
        return encode_demonstration(tokenizer, record, max_prompt_tokens, max_response_tokens, refused)

    return _encode_all(tokenizer, demonstrations, encode)


def _encode_all(
    tokenizer: "PreTrainedTokenizerBase",
    records: Sequence[Record],
    encode: Callable[[Record, RefusedRows], Encoded | None],
) -> tuple[list[Encoded], RefusedRows]:
    stop_ids(tokenizer)  # a tokenizer that can not work at all is one error, not a refusal of every row
    refused = RefusedRows()
    encoded = [item for record in records if (item := encode(record, refused)) is not None]
    if records and not encoded:
        raise UserError(f"none of the {len(records)} rows fits this tokenizer and these limits:\n{refused.summary()}")
    return encoded, refused
