"""How long prompts and responses are, in characters and in a tokenizer's tokens, and what length limits would cut."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")
Record = Prompt | Demonstration | Ranking | Text

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
SPREAD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: multiples of it, modulo 2**64, lie evenly
EXACT = 1024  # values below are counted one by one, larger ones to a part in 512
BARS = 40  # of a histogram that is drawn
MOST_CHARACTERS = 1 << 26  # of sampled records: what memory they may take
TEXT_BEGINNING = 4096  # characters of a long text that are tokenized; the rest is estimated from them


class Lengths:
    """A distribution of lengths, exact to 0.2 %, in memory that does not grow."""

    def __init__(self, values: Sequence[int] = ()) -> None:
        self.count = self.total = self.longest = 0
        self._buckets: Counter[int] = Counter()
        for value in values:
            self.add(value)

    def add(self, value: int) -> None:
        self.count += 1
        self.total += value
        if value > self.longest:
            self.longest = value
        if value >= EXACT:
            shift = value.bit_length() - EXACT.bit_length() + 1
            value = (value >> shift) << shift
        self._buckets[value] += 1

    def merge(self, other: "Lengths") -> None:
        """Adds what another distribution counted."""
        self.count += other.count
        self.total += other.total
        self.longest = max(self.longest, other.longest)
        self._buckets.update(other._buckets)

    def quantile(self, share: float) -> int:
        """The smallest length that at least this share of all does not exceed."""
        needed, reached = math.ceil(share * self.count), 0
        for value in sorted(self._buckets):
            reached += self._buckets[value]
            if reached >= needed:
                return value
        return self.longest

    def summary(self) -> dict[str, Any]:
        """count, mean, p50 to p99, max, and `bars`: [[from, to, count], ...] on a logarithmic scale."""
        if not self.count:
            return {"count": 0}
        quantiles = {name: self.quantile(share) for name, share in QUANTILES.items()}
        mean = self.total / self.count
        return {"count": self.count, "mean": mean, **quantiles, "max": self.longest, "bars": self._bars()}

    def _bars(self) -> list[list[float]]:
        low, high = max(1, min(self._buckets)), self.longest + 1
        edges = [low * (high / low) ** (bar / BARS) for bar in range(BARS + 1)]
        counts = [0] * BARS
        for value, count in self._buckets.items():
            counts[min(BARS - 1, max(0, bisect_right(edges, value) - 1))] += count
        return [[edges[bar], edges[bar + 1], count] for bar, count in enumerate(counts)]


class EvenSample(Generic[Item]):
    """At most `most` items, of at most `most_weight` in all, of a stream of unknown length, drawn evenly from it."""

    def __init__(self, most: int, most_weight: int = MOST_CHARACTERS) -> None:
        self.most = most
        self.most_weight = most_weight
        self.threshold = 1 << 64
        self._weight = 0
        self._items: list[tuple[int, Item, int]] = []

    def wants(self, number: int) -> bool:
        """Whether the item with this number, counted from 0, belongs to the sample so far."""
        return number * SPREAD % (1 << 64) < self.threshold

    def add(self, number: int, item: Item, weight: int) -> None:
        """Takes an item that is wanted; others, drawn by their number, may have to go for it."""
        self._items.append((number * SPREAD % (1 << 64), item, weight))
        self._weight += weight
        self._thin()

    def merge(self, other: "EvenSample[Item]") -> None:
        """Adds another sample of the same stream; no item's number may be in both."""
        self.threshold = min(self.threshold, other.threshold)
        self._items = [kept for kept in self._items + other._items if kept[0] < self.threshold]
        self._weight = sum(kept[2] for kept in self._items)
        self._thin()

    def _thin(self) -> None:
        while len(self._items) > self.most or (self._weight > self.most_weight and len(self._items) > 1):
            self.threshold //= 2
            self._items = [kept for kept in self._items if kept[0] < self.threshold]
            self._weight = sum(kept[2] for kept in self._items)

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out."""
        return self.threshold == 1 << 64

    def items(self) -> list[Item]:
        return [item for _, item, _ in self._items]


@dataclass(frozen=True)
class Tokens:
    """A record's tokens with the chat template around them, before any limit; or why the template refuses it."""

    prompt: int | None = None
    responses: tuple[int, ...] = ()
    refused: str | None = None


def count_tokens(tokenizer: "PreTrainedTokenizerBase", record: Record) -> Tokens:
    """What the stages would count for this record. Of a long text only the beginning is tokenized."""
    from lora_rlhf.data.template import encode_text, render_prompt, render_response_after

    if isinstance(record, Text):
        beginning = record.text[:TEXT_BEGINNING]
        num_tokens = len(encode_text(tokenizer, beginning)) * len(record.text) / len(beginning)
        return Tokens(responses=(round(num_tokens),))
    prompt = record if isinstance(record, Prompt) else record.prompt
    try:
        ids = render_prompt(tokenizer, prompt)
        counts = [len(render_response_after(tokenizer, prompt, ids, response)) for response in responses_of(record)]
    except BadRow as fault:
        return Tokens(refused=fault.reason)
    return Tokens(len(ids), tuple(counts))


def responses_of(record: Record) -> tuple[str, ...]:
    """The answers of a record: none for a prompt, the text itself for a text."""
    if isinstance(record, Demonstration):
        return (record.response,)
    if isinstance(record, Ranking):
        return record.responses
    return (record.text,) if isinstance(record, Text) else ()


def token_figures(
    counted: Sequence[Tokens], is_whole: bool, max_prompt_tokens: int, max_response_tokens: int
) -> dict[str, Any]:
    """Lengths in tokens, and what the limits do.

    `exact` says whether all rows were counted. Of each limit: its value, `over` (the share of prompts or responses that
    exceed it), `lost` (the share of rows that are gone for it: demonstrations whose response is over, rankings with
    fewer than two responses left; prompts are truncated, not lost), and `keeps_95`, `keeps_99`: limits that would keep
    as much whole. `refused`: {reason: share of rows} that the chat template does not take.
    """
    fitting = [tokens for tokens in counted if tokens.refused is None]
    prompts = [tokens.prompt for tokens in fitting if tokens.prompt is not None]
    responses = [count for tokens in fitting for count in tokens.responses]
    answered = [tokens for tokens in fitting if tokens.responses and tokens.prompt is not None]
    lost = sum(_is_lost(tokens, max_response_tokens) for tokens in answered)
    limits = {}
    if prompts:
        limits["max_prompt_tokens"] = _limit(prompts, max_prompt_tokens, 0.0)
    if answered:
        limits["max_response_tokens"] = _limit(responses, max_response_tokens, lost / len(answered))
    refused = Counter(tokens.refused for tokens in counted if tokens.refused is not None)
    return {
        "rows": len(counted),
        "exact": is_whole,
        "prompt": Lengths(prompts).summary(),
        "response": Lengths(responses).summary(),
        "limits": limits,
        "refused": {reason: count / len(counted) for reason, count in refused.most_common()},
    }


def _limit(lengths: Sequence[int], limit: int, lost: float) -> dict[str, Any]:
    ordered = sorted(lengths)
    over = 1 - bisect_right(ordered, limit) / len(ordered)
    keeps = {f"keeps_{percent}": ordered[math.ceil(percent / 100 * len(ordered)) - 1] for percent in (95, 99)}
    return {"limit": limit, "over": over, "lost": lost, **keeps}


def _is_lost(tokens: Tokens, limit: int) -> bool:
    kept = sum(count <= limit for count in tokens.responses)
    return kept < min(2, len(tokens.responses))
