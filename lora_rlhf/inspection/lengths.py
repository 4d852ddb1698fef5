"""How long prompts and responses are, in characters and in a tokenizer's tokens, and what length limits would cut."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, StepLabels, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")
Record = Prompt | Demonstration | Ranking | StepLabels | Text

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
GOLDEN_STEP = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: multiples of it, modulo 2**64, lie evenly
EXACT_BELOW = 1024  # values below are counted one by one, larger ones to a part in 512
BARS = 40  # of a histogram that is drawn
MOST_CHARACTERS = 1 << 26  # of all sampled records together: limits their memory
TEXT_BEGINNING = 4096  # characters of a long text that are tokenized; the rest is estimated from them


class Lengths:
    """A distribution of lengths, exact to 0.2 %, in memory that does not grow."""

    def __init__(self, values: Sequence[int] = ()) -> None:
        self.count = self.total = self.longest = 0
        self._buckets: Counter[int] = Counter()
        for value in values:
            self.add(value)

    def add(self, length: int) -> None:
        """Counts one length. From `EXACT_BELOW` on, its lower bits are dropped: a bucket holds a part in 512."""
        self.count += 1
        self.total += length
        if length > self.longest:
            self.longest = length
        if length >= EXACT_BELOW:
            shift = length.bit_length() - EXACT_BELOW.bit_length() + 1
            length = (length >> shift) << shift
        self._buckets[length] += 1

    def merge(self, other_lengths: "Lengths") -> None:
        """Adds the lengths of another distribution."""
        self.count += other_lengths.count
        self.total += other_lengths.total
        self.longest = max(self.longest, other_lengths.longest)
        self._buckets.update(other_lengths._buckets)

    def quantile(self, share: float) -> int:
        """The smallest length L for which at least this share of all lengths is at most L."""
        needed_count, count_so_far = math.ceil(share * self.count), 0
        for value in sorted(self._buckets):
            count_so_far += self._buckets[value]
            if count_so_far >= needed_count:
                return value
        return self.longest

    def summary(self) -> dict[str, Any]:
        """count, mean, p50 to p99, max, and `bars`: [[from, to, count], ...] on a logarithmic scale."""
        if not self.count:
            return {"count": 0}
        quantiles = {name: self.quantile(share) for name, share in QUANTILES.items()}
        mean = self.total / self.count
        return {"count": self.count, "mean": mean, **quantiles, "max": self.longest, "bars": self._histogram_bars()}

    def _histogram_bars(self) -> list[list[float]]:
        """[from, to, count] of each bar, on a logarithmic scale."""
        low, high = max(1, min(self._buckets)), self.longest + 1
        edges = [low * (high / low) ** (bar / BARS) for bar in range(BARS + 1)]
        counts = [0] * BARS
        for value, count in self._buckets.items():
            counts[min(BARS - 1, max(0, bisect_right(edges, value) - 1))] += count
        return [[edges[bar], edges[bar + 1], count] for bar, count in enumerate(counts)]


class EvenSample(Generic[Item]):
    """At most `most` items, of a total weight of at most `most_weight`, drawn evenly from a stream."""

    def __init__(self, most: int, most_weight: int = MOST_CHARACTERS) -> None:
        self.most = most
        self.most_weight = most_weight
        self.threshold = 1 << 64
        self._weight = 0
        self._items: list[tuple[int, Item, int]] = []

    def is_sampled(self, number: int) -> bool:
        """Whether the item with this number, counted from 0, belongs to the sample so far."""
        return number * GOLDEN_STEP % (1 << 64) < self.threshold

    def add(self, number: int, item: Item, weight: int) -> None:
        """Adds an item that `is_sampled`. Items with a high position leave the sample if it gets too large."""
        self._items.append((number * GOLDEN_STEP % (1 << 64), item, weight))
        self._weight += weight
        self._drop_excess()

    def merge(self, other_sample: "EvenSample[Item]") -> None:
        """Adds another sample of the same stream; no item's number may be in both."""
        self.threshold = min(self.threshold, other_sample.threshold)
        self._items = [item for item in self._items + other_sample._items if item[0] < self.threshold]
        self._weight = sum(item[2] for item in self._items)
        self._drop_excess()

    def _drop_excess(self) -> None:
        """Halves the threshold until the sample has at most `most` items and `most_weight` in all."""
        while len(self._items) > self.most or (self._weight > self.most_weight and len(self._items) > 1):
            self.threshold //= 2
            self._items = [item for item in self._items if item[0] < self.threshold]
            self._weight = sum(item[2] for item in self._items)

    @property
    def is_whole(self) -> bool:
        """Whether every item of the stream is in the sample."""
        return self.threshold == 1 << 64

    def items(self) -> list[Item]:
        return [item for _, item, _ in self._items]


@dataclass(frozen=True)
class TokenCounts:
    """The numbers of tokens of a record, with the chat template around them and before any limit.

    refused: why the template refuses the record, or None.
    """

    prompt: int | None = None
    responses: tuple[int, ...] = ()
    refused: str | None = None


def count_tokens(tokenizer: "PreTrainedTokenizerBase", record: Record) -> TokenCounts:
    """The numbers of tokens that the stages would count for this record; estimated for a long text."""
    from lora_rlhf.data.template import encode_text, render_prompt, render_response_after

    if isinstance(record, Text):
        beginning = record.text[:TEXT_BEGINNING]
        num_tokens = len(encode_text(tokenizer, beginning)) * len(record.text) / len(beginning)
        return TokenCounts(responses=(round(num_tokens),))
    prompt = record if isinstance(record, Prompt) else record.prompt
    try:
        ids = render_prompt(tokenizer, prompt)
        counts = [len(render_response_after(tokenizer, prompt, ids, response)) for response in responses_of(record)]
    except BadRow as fault:
        return TokenCounts(refused=fault.reason)
    return TokenCounts(len(ids), tuple(counts))


def responses_of(record: Record) -> tuple[str, ...]:
    """The answers of a record: none for a prompt, the text itself for a text."""
    if isinstance(record, Demonstration | StepLabels):
        return (record.response,)
    if isinstance(record, Ranking):
        return record.responses
    return (record.text,) if isinstance(record, Text) else ()


def token_figures(
    token_counts: Sequence[TokenCounts], is_whole: bool, max_prompt_tokens: int, max_response_tokens: int
) -> dict[str, Any]:
    """Lengths in tokens, and the effects of the limits.

    `exact` says whether all rows were counted. Of each limit: its value, `over` (the share of prompts or responses that
    exceed it), `num_lost` (the share of rows that are gone for it: demonstrations whose response is over, rankings with
    fewer than two responses left; prompts are truncated, not lost), and `keeps_95`, `keeps_99`: limits that would keep
    as much whole. `refused`: {reason: share of rows} that the chat template does not take.
    """
    accepted = [tokens for tokens in token_counts if tokens.refused is None]
    prompts = [tokens.prompt for tokens in accepted if tokens.prompt is not None]
    responses = [count for tokens in accepted for count in tokens.responses]
    with_responses = [tokens for tokens in accepted if tokens.responses and tokens.prompt is not None]
    num_lost = sum(_is_row_lost(tokens, max_response_tokens) for tokens in with_responses)
    limits = {}
    if prompts:
        limits["max_prompt_tokens"] = _limit_figures(prompts, max_prompt_tokens, 0.0)
    if with_responses:
        limits["max_response_tokens"] = _limit_figures(responses, max_response_tokens, num_lost / len(with_responses))
    refused = Counter(tokens.refused for tokens in token_counts if tokens.refused is not None)
    return {
        "rows": len(token_counts),
        "exact": is_whole,
        "prompt": Lengths(prompts).summary(),
        "response": Lengths(responses).summary(),
        "limits": limits,
        "refused": {reason: count / len(token_counts) for reason, count in refused.most_common()},
    }


def _limit_figures(lengths: Sequence[int], limit: int, share_lost: float) -> dict[str, Any]:
    """A limit's part of the report: shares over it and lost, and the limits that would keep 95 and 99 % whole."""
    sorted_lengths = sorted(lengths)
    share_over = 1 - bisect_right(sorted_lengths, limit) / len(sorted_lengths)
    keeps = {
        f"keeps_{percent}": sorted_lengths[math.ceil(percent / 100 * len(sorted_lengths)) - 1] for percent in (95, 99)
    }
    return {"limit": limit, "over": share_over, "lost": share_lost, **keeps}


def _is_row_lost(tokens: TokenCounts, limit: int) -> bool:
    """Whether a row has too few responses within the limit: fewer than two, or than all of one."""
    num_within = sum(count <= limit for count in tokens.responses)
    return num_within < min(2, len(tokens.responses))
