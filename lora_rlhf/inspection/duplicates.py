"""Prompts that come again: the same, begun alike, continued, or in another file too. In memory that does not grow."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lora_rlhf.data.duplicates import BEGINNING
from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.schema import Message, Prompt, fraction_between, normalized, split_position

Hashes = NDArray[np.uint64]

MOST = 2_000_000  # different hashes that a tally keeps: 24 MB
WAITING = 1 << 19  # hashes that are added at a time: sorting them into the table is then a small part of the work
SALT = 12  # low bits that tell apart prompts that begin alike: two of them are taken for one once in 4096 times
SALT_MASK = (1 << SALT) - 1
FACTOR = 0x9E3779B97F4A7C15  # an odd number with mixed bits: the order of what is hashed counts


class Tally:
    """How often each 64-bit hash came.

    With more than `most` different ones it keeps those below a threshold: a sample that every tally draws alike, so
    that two can still be compared. Each count then stands for `scale` times as many.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._threshold = 1 << 64
        self._new = array("Q")
        self._values: Hashes = np.empty(0, np.uint64)
        self._counts: Hashes = np.empty(0, np.uint64)

    def add(self, value: int) -> None:
        if value < self._threshold:
            self._new.append(value)
            if len(self._new) >= WAITING:
                self._settle()

    def merge(self, other: "Tally") -> None:
        """Adds what another tally counted."""
        self._settle()
        other._settle()
        threshold = min(self._threshold, other._threshold)
        tables = self.below(threshold), other.below(threshold)
        self._threshold = threshold
        self._combine(*(np.concatenate(columns) for columns in zip(*tables, strict=True)))

    @property
    def threshold(self) -> int:
        """Hashes below it are kept; 2**64 as long as that is all."""
        self._settle()
        return self._threshold

    @property
    def scale(self) -> float:
        """How many hashes one that is kept stands for."""
        return 2**64 / self.threshold

    def table(self) -> tuple[Hashes, Hashes]:
        """(hashes in order, how often each came)."""
        self._settle()
        return self._values, self._counts

    def below(self, threshold: int) -> tuple[Hashes, Hashes]:
        """The part of the table that another tally with this threshold would have kept."""
        values, counts = self.table()
        end = len(values) if threshold == 1 << 64 else int(np.searchsorted(values, np.uint64(threshold)))
        return values[:end], counts[:end]

    def _settle(self) -> None:
        if not self._new:
            return
        new, times = np.unique(np.frombuffer(self._new, np.uint64), return_counts=True)
        self._new = array("Q")
        self._combine(np.concatenate([self._values, new]), np.concatenate([self._counts, times.astype(np.uint64)]))

    def _combine(self, values: Hashes, counts: Hashes) -> None:
        if not len(values):
            return
        order = np.argsort(values, kind="stable")  # a merge: both parts are sorted
        values, counts = values[order], counts[order]
        first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        self._values, self._counts = values[first], np.add.reduceat(counts, first)
        while len(self._values) > self.most:
            self._threshold //= 2
            self._values, self._counts = self.below(self._threshold)


class Prints:
    """What is remembered of a file's rows: hashes of prompts, of whole rows, of how prompts begin, and their split."""

    def __init__(self, most: int = MOST) -> None:
        self.rows = self.train_rows = self.validation_rows = 0
        self.nearest, self.farthest = 1.0, 0.0  # of `split_position`
        self.keys, self.whole, self.starts = Tally(most), Tally(most), Tally(most)
        self.beginnings, self.validation_beginnings = Tally(most), Tally(most)

    def add(self, prompt: Prompt, hashes: Sequence[int] = (), fraction: float | None = None) -> int:
        """Remembers a row; `hashes` are of what it holds beside its prompt, in order.

        fraction: the share that the row's stage keeps aside; None: it is on neither side. Returns the hash of the
        prompt, which stands for `prompt.key`.
        """
        spoken = [normalized((message,)) for message in prompt.messages]
        key_text = " ".join(spoken)
        key = fingerprint(key_text)
        begins = _beginning(prompt.messages, spoken) if len(spoken) > 1 else key_text[:BEGINNING]
        beginning = (fingerprint(begins) & ~SALT_MASK) | (key & SALT_MASK) if len(begins) == BEGINNING else None
        self.rows += 1
        self.keys.add(key)
        if beginning is not None:
            self.beginnings.add(beginning)
        self.whole.add(_row_hash(key, hashes))
        if len(spoken) > 1:
            for start in _starts(prompt.messages, spoken):
                self.starts.add(start)
        if fraction is not None:
            position = split_position(key_text if len(spoken) == 1 else _opening(prompt.messages, spoken))
            self.nearest, self.farthest = min(self.nearest, position), max(self.farthest, position)
            is_held_out = position < fraction
            self.validation_rows += is_held_out
            self.train_rows += not is_held_out
            if is_held_out and beginning is not None:
                self.validation_beginnings.add(beginning)
        return key

    def merge(self, other: "Prints") -> None:
        """Adds what another part of the file left."""
        self.rows += other.rows
        self.train_rows += other.train_rows
        self.validation_rows += other.validation_rows
        self.nearest, self.farthest = min(self.nearest, other.nearest), max(self.farthest, other.farthest)
        for name in ("keys", "whole", "starts", "beginnings", "validation_beginnings"):
            getattr(self, name).merge(getattr(other, name))

    def add_text(self, text: int) -> None:
        """Remembers a text without a prompt, by its hash."""
        self.rows += 1
        self.whole.add(text)

    @property
    def num_distinct(self) -> int:
        """Different prompts."""
        return round(len(self.keys.table()[0]) * self.keys.scale)

    def duplicates(self) -> dict[str, Any]:
        """Rows that say nothing new.

        rows; repeated_rows: copies of an earlier row in all that training sees; repeated_prompts: rows whose prompt an
        earlier row had; begin_alike: rows whose prompt shares its first 128 characters (system messages aside) with a
        different prompt; continued: rows whose prompt is the beginning of another row's conversation; estimated:
        whether there were too many rows to count them all.
        """
        values, times = self.beginnings.table()
        groups, sizes, rows = _groups(values, times)
        alike = int(rows[sizes > 1].sum()) if len(groups) else 0
        threshold = min(self.keys.threshold, self.starts.threshold)
        near_keys, near_counts = self.keys.below(threshold)
        continued = near_counts[np.isin(near_keys, self.starts.below(threshold)[0], assume_unique=True)]
        return {
            "rows": self.rows,
            "repeated_rows": _repeats(self.whole),
            "repeated_prompts": _repeats(self.keys),
            "distinct_prompts": self.num_distinct,
            "begin_alike": round(alike * self.beginnings.scale),
            "continued": round(int(continued.sum()) * 2**64 / threshold),
            "estimated": any(tally.scale > 1 for tally in (self.keys, self.whole, self.starts, self.beginnings)),
        }

    def split(self) -> dict[str, Any]:
        """Rows of either side, the validation rows whose prompt begins like a different one in training, and `enough`.

        enough: the smallest fraction that leaves rows on both sides, in hundredths; None where none does.
        """
        values, times = self.validation_beginnings.table()
        groups, _, inside = _groups(values, times)
        threshold = min(self.beginnings.threshold, self.validation_beginnings.threshold)
        everywhere, _, total = _groups(*self.beginnings.below(threshold))
        groups, inside = groups[groups < threshold], inside[groups < threshold]
        both = total[np.searchsorted(everywhere, groups)] > inside  # the same prompt is on one side only
        near = round(int(inside[both].sum()) * 2**64 / threshold)
        return {
            "train": self.train_rows,
            "validation": self.validation_rows,
            "begin_alike": near,
            "enough": fraction_between(self.nearest, self.farthest),
        }


def shared(prints: Prints, other: Prints) -> dict[str, int]:
    """Prompts of `prints`, each counted once, that stand in `other` too (exact) or nearly.

    near: others that begin like a prompt there, or that continue one or are continued by one, whichever are more: most
    of one group are in the other too.
    """
    tallies = (prints.keys, prints.starts, other.keys, other.starts)
    threshold = min(tally.threshold for tally in tallies)
    keys, starts, other_keys, other_starts = (tally.below(threshold)[0] for tally in tallies)
    exact = np.intersect1d(keys, other_keys, assume_unique=True)
    continued = np.setdiff1d(np.intersect1d(keys, other_starts, assume_unique=True), other_keys, assume_unique=True)
    continues = np.setdiff1d(np.intersect1d(starts, other_keys, assume_unique=True), keys, assume_unique=True)
    conversations = round((len(continued) + len(continues)) * 2**64 / threshold)
    return {
        "exact": round(len(exact) * 2**64 / threshold),
        "near": max(conversations, _alike(prints.beginnings, other.beginnings)),
    }


def _alike(beginnings: Tally, other: Tally) -> int:
    """Prompts of one tally that begin like a prompt of the other without being in it."""
    threshold = min(beginnings.threshold, other.threshold)
    values, other_values = beginnings.below(threshold)[0], other.below(threshold)[0]
    salt = np.uint64(SALT)
    begins_alike = np.isin(values >> salt, np.unique(other_values >> salt))
    alike = begins_alike & ~np.isin(values, other_values, assume_unique=True)
    return round(int(alike.sum()) * 2**64 / threshold)


def _groups(values: Hashes, times: Hashes) -> tuple[Hashes, Hashes, Hashes]:
    """Of hashes that are salted with the prompt: (beginnings in order, different prompts of each, rows of each)."""
    if not len(values):
        return values, values, values
    begins = values & ~np.uint64(SALT_MASK)
    first = np.flatnonzero(np.concatenate([[True], begins[1:] != begins[:-1]]))
    sizes = np.diff(np.append(first, len(begins))).astype(np.uint64)
    return begins[first], sizes, np.add.reduceat(times, first)


def _repeats(tally: Tally) -> int:
    values, counts = tally.table()
    return round((int(counts.sum()) - len(values)) * tally.scale)


def _row_hash(key: int, hashes: Sequence[int]) -> int:
    for value in hashes:
        key = (key * FACTOR + value) % (1 << 64)
    return key


def _opening(messages: Sequence[Message], spoken: Sequence[str]) -> str:
    """`Prompt.opening`, from messages that are normalized already."""
    first = next(i for i, message in enumerate(messages) if message.role == "user")
    return " ".join(spoken[: first + 1])


def _beginning(messages: Sequence[Message], spoken: Sequence[str]) -> str:
    """`data.duplicates.beginning`, from messages that are normalized already."""
    parts = (text for message, text in zip(messages, spoken, strict=True) if message.role != "system")
    return " ".join(parts)[:BEGINNING]


def _starts(messages: Sequence[Message], spoken: Sequence[str]) -> Iterator[int]:
    """`data.duplicates.starts`, from messages that are normalized already and in one pass over them."""
    digest = xxhash.xxh3_64()
    for i, (message, text) in enumerate(zip(messages[:-1], spoken, strict=False)):
        digest.update((" " * (i > 0) + text).encode())
        if message.role == "user":
            yield digest.intdigest()
