"""Records to token ids within length limits. Prompts are truncated from the left; responses are refused or cut."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from lora_rlhf.data.markup import num_common
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Turns
from lora_rlhf.data.template import (
    encode_text,
    render_demonstration,
    render_prompt,
    render_response_after,
    stop_ids,
)
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Limits:
    """The most tokens of a prompt and of a response (with its stop token), and what is done with longer responses.

    "refuse" leaves them out. "cut" keeps their beginning, without a stop token: a model must not learn to stop there.
    """

    max_prompt_tokens: int
    max_response_tokens: int
    long_responses: Literal["refuse", "cut"] = "refuse"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, and the record that they were made from (for `meta` and for display)."""

    prompt_ids: list[int]
    prompt: Prompt


@dataclass(frozen=True)
class EncodedExample:
    """A demonstration's ids; `response_ids` end in the stop token, unless the response was cut.

    context_ids: what the response stands behind. It is the prompt, and the empty thought that some templates write
    before an answer (`render_demonstration`): that is read, and not learned.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    context_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.context_ids:
            object.__setattr__(self, "context_ids", self.prompt_ids)


@dataclass(frozen=True)
class EncodedRanking:
    """K >= 2 responses' ids; `ranks[i]` belongs to `response_ids[i]`, 1 = best.

    Each ends in the stop token, unless it was cut. Two that differ only after the cut are both kept.
    """

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
    if (longest := _longest_end(tokenizer, prompt, system, turns, limit)) is not None:
        return longest
    last = max([0, *(position for position, message in enumerate(turns) if message.role == "user")])
    question, results = turns[last], turns[last + 1 :]  # calls and their results stay whole
    content = encode_text(tokenizer, question.content)
    ids = render_prompt(tokenizer, replace(prompt, messages=(*system, question, *results)))
    # cutting can change how the rest is tokenized, so a cut may have to be repeated; each removes at least one token
    while len(ids) > limit and len(content) > len(ids) - limit:
        content = content[len(ids) - limit :]
        text = tokenizer.decode(content, clean_up_tokenization_spaces=False).lstrip("\ufffd")  # a halved character
        if not text.strip():
            break
        ids = render_prompt(tokenizer, replace(prompt, messages=(*system, Message("user", text), *results)))
    if len(ids) > limit:
        detail = f"limit {limit}; raise max_prompt_tokens"
        raise BadRow("the template and system message leave no room for the prompt", detail)
    return ids


def _longest_end(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, system: Turns, turns: list[Message], limit: int
) -> list[int] | None:
    """The ids of the longest end of the conversation that begins with a user's message and fits; None if none does.

    Ends are tried from the last message on, twice as many questions each time, then by halves: a long conversation is
    not rendered once per turn. More turns never take fewer tokens.
    """
    starts = [position for position, message in enumerate(turns) if message.role == "user"][1:]
    rendered: dict[int, list[int]] = {}

    def fits(index: int) -> bool:
        rendered[index] = render_prompt(tokenizer, replace(prompt, messages=(*system, *turns[starts[index] :])))
        return len(rendered[index]) <= limit

    high, count = len(starts), 1  # `high` is the longest end that is known to fit
    while count <= len(starts) and fits(len(starts) - count):
        high, count = len(starts) - count, 2 * count
    low = max(0, len(starts) - count + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return rendered.get(high)


def _within_limit(response_ids: list[int], limit: int, limits: Limits, refused: RefusedRows) -> list[int]:
    """The response, cut at `limit` where `limits` want that. BadRow where they do not."""
    if len(response_ids) <= limit:
        return response_ids
    if limits.long_responses == "cut" and limit > 0:
        refused.cut_responses += 1
        return response_ids[:limit]
    reason = f"the response has more than max_response_tokens={limits.max_response_tokens} tokens"
    raise BadRow(reason, f"has {len(response_ids) + limits.max_response_tokens - limit}")


def encode_demonstration(
    tokenizer: "PreTrainedTokenizerBase",
    demonstration: Demonstration,
    limits: Limits,
    refused: RefusedRows,
    learns_empty_thoughts: bool = False,
) -> EncodedExample | None:
    """The demonstration's ids; None if it was refused (counted in `refused`, as are truncated prompts and cuts).

    learns_empty_thoughts: the empty thought that a template writes before an answer is a part of the response.
    """
    prompt = demonstration.prompt
    context_ids: list[int] = []
    try:
        ids = render_prompt(tokenizer, prompt)
        limited = _limited(tokenizer, prompt, ids, limits.max_prompt_tokens)
        if learns_empty_thoughts:
            response_ids = render_response_after(
                tokenizer, prompt, ids, demonstration.response, demonstration.tool_calls
            )
        else:
            context_ids, response_ids = render_demonstration(
                tokenizer, prompt, ids, demonstration.response, demonstration.tool_calls
            )
        num_kept = num_common(ids, context_ids)  # the end of the prompt may be written otherwise
        supplied = context_ids[num_kept:]
        room = limits.max_response_tokens - len(supplied)
        response_ids = _within_limit(response_ids, room, limits, refused)
    except BadRow as fault:
        refused.add(prompt.origin, fault)
        return None
    refused.truncated_prompts += limited is not ids
    if not supplied:
        return EncodedExample(limited, response_ids)
    return EncodedExample(limited, response_ids, [*limited[: len(limited) - (len(ids) - num_kept)], *supplied])


def encode_ranking(
    tokenizer: "PreTrainedTokenizerBase", ranking: Ranking, limits: Limits, refused: RefusedRows
) -> EncodedRanking | None:
    """The ranking's ids. A response over the limit is refused alone; the ranking goes when fewer than 2 are left."""
    prompt = ranking.prompt
    try:
        ids = render_prompt(tokenizer, prompt)
        limited = _limited(tokenizer, prompt, ids, limits.max_prompt_tokens)
    except BadRow as fault:
        refused.add(prompt.origin, fault)
        return None
    response_ids: list[list[int]] = []
    ranks: list[int] = []
    for response, rank in zip(ranking.responses, ranking.ranks, strict=True):
        try:
            rendered = render_response_after(tokenizer, prompt, ids, response)
            response_ids.append(_within_limit(rendered, limits.max_response_tokens, limits, refused))
            ranks.append(rank)
        except BadRow as fault:
            refused.add(prompt.origin, fault)
    if len(ranks) < 2:
        refused.add(prompt.origin, BadRow("fewer than 2 responses of the ranking are left", f"{len(ranks)} left"))
        return None
    refused.truncated_prompts += limited is not ids
    return EncodedRanking(limited, response_ids, ranks)


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompts: Iterable[Prompt], max_prompt_tokens: int
) -> tuple[list[EncodedPrompt], RefusedRows]:
    """All prompts' ids in order, and what was refused. Raises UserError if nothing is left."""
    stop_ids(tokenizer)  # raises for a tokenizer that cannot work at all, before every row is refused for it
    refused, count = RefusedRows(), 0
    encoded: list[EncodedPrompt] = []
    for prompt in prompts:
        count += 1
        ids = encode_prompt(tokenizer, prompt, max_prompt_tokens, refused)
        if ids is not None:
            encoded.append(EncodedPrompt(ids, prompt))
    if count and not encoded:
        raise UserError(f"no row of {count} fits this tokenizer and these limits:\n{refused.summary()}")
    return encoded, refused
