"""Records to token ids within length limits. Prompts are truncated from the left; responses are refused or cut."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from lora_rlhf.data.markup import num_equal_at_start
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, StepLabels, Turns, Vote
from lora_rlhf.data.steps import find_step_ends, join_steps
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
    """The most tokens of a prompt and of a response (with its stop token), and the treatment of longer responses.

    "refuse" leaves them out. "cut" keeps their beginning, without a stop token: a model must not learn to stop there.
    """

    max_prompt_tokens: int
    max_response_tokens: int
    long_responses: Literal["refuse", "cut"] = "refuse"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, and its record (for `meta` and for display)."""

    prompt_ids: list[int]
    prompt: Prompt


@dataclass(frozen=True)
class EncodedExample:
    """A demonstration's ids; `response_ids` end with the stop token, unless the response was cut.

    context_ids: the ids before the response. They are the prompt, and the empty thought that some templates write
    before an answer (`render_demonstration`), which is read but not learned.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    context_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.context_ids:
            object.__setattr__(self, "context_ids", self.prompt_ids)


@dataclass(frozen=True)
class EncodedRanking:
    """K >= 2 responses' ids; `ranks[i]` belongs to `response_ids[i]`, 1 = best. A vote has one: rank 1 good, 2 bad.

    Each ends in the stop token, unless it was cut. Two that differ only after the cut are both kept.
    """

    prompt_ids: list[int]
    response_ids: list[list[int]]
    ranks: list[int]


@dataclass(frozen=True)
class EncodedSteps:
    """An answer's ids, the index of the token that ends each step, and the step's label; None: not judged."""

    prompt_ids: list[int]
    response_ids: list[int]
    ends: list[int]
    labels: list[bool | None]

    @property
    def judged(self) -> dict[int, bool]:
        """{index of the token: label} of the steps that have a label."""
        return {end: label for end, label in zip(self.ends, self.labels, strict=True) if label is not None}


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, max_prompt_tokens: int, refused: RefusedRows
) -> list[int] | None:
    """The prompt's ids, at most `max_prompt_tokens`; None if it was refused (counted in `refused`).

    A prompt that is too long loses its oldest turns first (system messages stay), then the beginning of its last
    message; the template around it stays complete. `refused.truncated_prompts` counts these.
    """
    try:
        ids = render_prompt(tokenizer, prompt)
        limited_ids = _limit_prompt(tokenizer, prompt, ids, max_prompt_tokens)
    except BadRow as fault:
        refused.add(prompt.origin, fault)
        return None
    refused.truncated_prompts += limited_ids is not ids  # a new list was truncated
    return limited_ids


def _limit_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, ids: list[int], max_tokens: int) -> list[int]:
    """The same list of ids if it is short enough, else a new list: the ids of the truncated prompt."""
    return ids if len(ids) <= max_tokens else _truncate_prompt(tokenizer, prompt, max_tokens)


def _truncate_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, max_tokens: int) -> list[int]:
    """The ids of the prompt without its oldest turns, then without the beginning of its last message.

    BadRow if the template and the system message alone are too long.
    """
    system = tuple(message for message in prompt.messages if message.role == "system")
    turns = [message for message in prompt.messages if message.role != "system"]
    if (fitting_ids := _find_longest_end(tokenizer, prompt, system, turns, max_tokens)) is not None:
        return fitting_ids
    last = max([0, *(position for position, message in enumerate(turns) if message.role == "user")])
    question, results = turns[last], turns[last + 1 :]  # calls and their results stay whole
    content = encode_text(tokenizer, question.content)
    ids = render_prompt(tokenizer, replace(prompt, messages=(*system, question, *results)))
    # a cut can change how the rest is tokenized, so it is repeated; each removes at least one token
    while len(ids) > max_tokens and len(content) > len(ids) - max_tokens:
        content = content[len(ids) - max_tokens :]
        text = tokenizer.decode(content, clean_up_tokenization_spaces=False).lstrip("\ufffd")  # a part of a character
        if not text.strip():
            break
        ids = render_prompt(tokenizer, replace(prompt, messages=(*system, Message("user", text), *results)))
    if len(ids) > max_tokens:
        detail = f"limit {max_tokens}; raise max_prompt_tokens"
        raise BadRow("the template and system message leave no room for the prompt", detail)
    return ids


def _find_longest_end(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, system: Turns, turns: list[Message], max_tokens: int
) -> list[int] | None:
    """The ids of the longest end of the conversation that begins with a user's message and fits; None if none does.

    Tries ends from the last message on, twice as many questions each time, then bisects: a long conversation is not
    rendered once per turn. More turns never take fewer tokens.
    """
    question_indices = [position for position, message in enumerate(turns) if message.role == "user"][1:]
    rendered: dict[int, list[int]] = {}

    def fits(index: int) -> bool:
        rendered[index] = render_prompt(
            tokenizer, replace(prompt, messages=(*system, *turns[question_indices[index] :]))
        )
        return len(rendered[index]) <= max_tokens

    first_fitting, count = len(question_indices), 1  # the longest end that is known to fit
    while count <= len(question_indices) and fits(len(question_indices) - count):
        first_fitting, count = len(question_indices) - count, 2 * count
    lowest = max(0, len(question_indices) - count + 1)
    while lowest < first_fitting:
        middle = (lowest + first_fitting) // 2
        lowest, first_fitting = (lowest, middle) if fits(middle) else (middle + 1, first_fitting)
    return rendered.get(first_fitting)


def _limit_response(response_ids: list[int], max_tokens: int, limits: Limits, refused: RefusedRows) -> list[int]:
    """The response, cut after `max_tokens` if `limits` allow that. BadRow if they do not."""
    if len(response_ids) <= max_tokens:
        return response_ids
    if limits.long_responses == "cut" and max_tokens > 0:
        refused.cut_responses += 1
        return response_ids[:max_tokens]
    reason = f"the response has more than max_response_tokens={limits.max_response_tokens} tokens"
    raise BadRow(reason, f"has {len(response_ids) + limits.max_response_tokens - max_tokens}")


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
        limited_ids = _limit_prompt(tokenizer, prompt, ids, limits.max_prompt_tokens)
        if learns_empty_thoughts:
            response_ids = render_response_after(
                tokenizer, prompt, ids, demonstration.response, demonstration.tool_calls
            )
        else:
            context_ids, response_ids = render_demonstration(
                tokenizer, prompt, ids, demonstration.response, demonstration.tool_calls
            )
        # the template may write the prompt's end differently before an answer
        num_shared = num_equal_at_start(ids, context_ids)
        empty_thought_ids = context_ids[num_shared:]
        max_tokens = limits.max_response_tokens - len(empty_thought_ids)
        response_ids = _limit_response(response_ids, max_tokens, limits, refused)
    except BadRow as fault:
        refused.add(prompt.origin, fault)
        return None
    refused.truncated_prompts += limited_ids is not ids  # a new list was truncated
    if not empty_thought_ids:
        return EncodedExample(limited_ids, response_ids)
    return EncodedExample(
        limited_ids, response_ids, [*limited_ids[: len(limited_ids) - (len(ids) - num_shared)], *empty_thought_ids]
    )


def encode_ranking(
    tokenizer: "PreTrainedTokenizerBase", ranking: Ranking, limits: Limits, refused: RefusedRows
) -> EncodedRanking | None:
    """The ranking's ids. A response over the limit is refused alone; with fewer than 2 left the ranking is refused.

    A response that did not end has no stop token: nobody said that it ends there. Over the limit it is cut once more.
    """
    encoded = _encode_responses(
        tokenizer, ranking.prompt, ranking.responses, ranking.ranks, limits, refused, ranking.ended
    )
    if encoded is not None and len(encoded.ranks) < 2:
        fault = BadRow("fewer than 2 responses of the ranking are left", f"{len(encoded.ranks)} left")
        refused.add(ranking.prompt.origin, fault)
        return None
    return encoded


def encode_steps(
    tokenizer: "PreTrainedTokenizerBase", row: StepLabels, step_end: str, limits: Limits, refused: RefusedRows
) -> EncodedSteps | None:
    """The ids of an answer whose steps are labelled; None if it was refused. A cut answer keeps its whole steps."""
    prompt = row.prompt
    try:
        response = join_steps(row.steps, step_end, row.has_ended)
        encoded = _encode_responses(tokenizer, prompt, (response,), (1,), limits, refused, (row.has_ended,))
        if encoded is None or not encoded.ranks:
            return None
        (ids,), labels = encoded.response_ids, list(row.labels)
        ends = find_step_ends(tokenizer, ids, step_end)
        if len(ids) == limits.max_response_tokens and ids[-1] not in stop_ids(tokenizer):  # cut, within a step
            labels = [*labels[: len(ends) - 1], None]
        if len(ends) != len(labels):
            raise BadRow(
                "the steps do not come back from the answer's tokens", f"{len(labels)} steps became {len(ends)}"
            )
        if all(label is None for label in labels):
            raise BadRow("no step with a label is within max_response_tokens", f"limit {limits.max_response_tokens}")
    except BadRow as fault:
        refused.add(prompt.origin, fault)
        return None
    return EncodedSteps(encoded.prompt_ids, ids, ends, labels)


def encode_vote(
    tokenizer: "PreTrainedTokenizerBase", vote: Vote, limits: Limits, refused: RefusedRows
) -> EncodedRanking | None:
    """The vote's ids, with rank 1 for a good answer and 2 for a bad one; None if it was refused."""
    rank = 1 if vote.is_good else 2
    encoded = _encode_responses(tokenizer, vote.prompt, (vote.response,), (rank,), limits, refused)
    return encoded if encoded is not None and encoded.ranks else None


def _encode_responses(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    responses: Sequence[str],
    ranks: Sequence[int],
    limits: Limits,
    refused: RefusedRows,
    ended: Sequence[bool] = (),
) -> EncodedRanking | None:
    """The prompt's ids and those of the responses within the limit; None if the prompt is refused.

    ended: as in `Ranking`.
    """
    try:
        ids = render_prompt(tokenizer, prompt)
        limited_ids = _limit_prompt(tokenizer, prompt, ids, limits.max_prompt_tokens)
    except BadRow as fault:
        refused.add(prompt.origin, fault)
        return None
    encoded = EncodedRanking(limited_ids, [], [])
    for response, rank, has_ended in zip(responses, ranks, ended or (True,) * len(ranks), strict=True):
        try:
            rendered = render_response_after(tokenizer, prompt, ids, response)
            if not has_ended:
                rendered = rendered[:-1]  # the stop token is the last one, and the only one
            own_limits = limits if has_ended else replace(limits, long_responses="cut")
            encoded.response_ids.append(_limit_response(rendered, limits.max_response_tokens, own_limits, refused))
            encoded.ranks.append(rank)
        except BadRow as fault:
            refused.add(prompt.origin, fault)
    refused.truncated_prompts += limited_ids is not ids  # a new list was truncated
    return encoded


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompts: Iterable[Prompt], max_prompt_tokens: int
) -> tuple[list[EncodedPrompt], RefusedRows]:
    """All prompts' ids in order, and the refused rows. Raises UserError if no prompt is left."""
    stop_ids(tokenizer)  # raises for an unusable tokenizer, so that not every row is refused because of it
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
