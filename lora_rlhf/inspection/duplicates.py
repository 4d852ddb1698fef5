"""Counts prompts that are equal, begin alike, continue one another, or are in two files. In memory of fixed size."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lora_rlhf.data.duplicates import BEGINNING_CHARACTERS
from lora_rlhf.data.labels import fingerprint
from lora_rlhf.data.schema import Message, Prompt, fraction_between, normalize_messages, split_position

Hashes = NDArray[np.uint64]

MOST_HASHES = 2_000_000  # different hashes that a tally keeps: 24 MB
PENDING_HASHES = 1 << 19  # added to the table together: sorting them into it is then a small part of the work
SALT_BITS = 12  # low bits that tell apart prompts that begin alike: two of them are taken for one once in 4096 times
SALT_MASK = (1 << SALT_BITS) - 1
FACTOR = 0x9E3779B97F4A7C15  # an odd number with mixed bits: the order of what is hashed counts


class Tally:
    """Counts how often each 64-bit hash was added.

    With more than `most` different hashes it keeps only those below a threshold, and each count then stands for `scale`
    as many. Every tally keeps the same hashes below a threshold, so that two such samples can be compared.
    """

    def __init__(self, most: int = MOST_HASHES) -> None:
        self.most = most
        self._threshold = 1 << 64
        self._pending = array("Q")
        self._values: Hashes = np.empty(0, np.uint64)
        self._counts: Hashes = np.empty(0, np.uint64)

    def add(self, value: int) -> None:
        """Counts one hash. Hashes wait in a list, since sorting them into the table is cheap for many at once."""
        if value < self._threshold:
            self._pending.append(value)
            if len(self._pending) >= PENDING_HASHES:
                self._add_pending()

    def merge(self, other_tally: "Tally") -> None:
        """Adds the hashes of another tally."""
        self._add_pending()
        other_tally._add_pending()
        threshold = min(self._threshold, other_tally._threshold)
        tables = self.below(threshold), other_tally.below(threshold)
        self._threshold = threshold
        self._replace_table(*(np.concatenate(columns) for columns in zip(*tables, strict=True)))

    @property
    def threshold(self) -> int:
        """The tally has only hashes below this number. It is 2**64 (above every hash) until the tally is full."""
        self._add_pending()
        return self._threshold

    @property
    def scale(self) -> float:
        """The estimated number of all hashes for each one in the tally: 1 until it is full."""
        return 2**64 / self.threshold

    def table(self) -> tuple[Hashes, Hashes]:
        """Returns (sorted hashes, the number of occurrences of each)."""
        self._add_pending()
        return self._values, self._counts

    def below(self, threshold: int) -> tuple[Hashes, Hashes]:
        """The part of the table with hashes below this threshold of another tally."""
        values, counts = self.table()
        end = len(values) if threshold == 1 << 64 else int(np.searchsorted(values, np.uint64(threshold)))
        return values[:end], counts[:end]

    def _add_pending(self) -> None:
        """Adds the pending hashes to the table."""
        if not self._pending:
            return
        new_values, new_counts = np.unique(np.frombuffer(self._pending, np.uint64), return_counts=True)
        self._pending = array("Q")
        self._replace_table(
            np.concatenate([self._values, new_values]), np.concatenate([self._counts, new_counts.astype(np.uint64)])
        )

    def _replace_table(self, values: Hashes, counts: Hashes) -> None:
        """Replaces the table by these hashes and counts, adding up equal hashes and halving the threshold if needed."""
        if not len(values):
            return
        order = np.argsort(values, kind="stable")  # a merge: both parts are sorted
        values, counts = values[order], counts[order]
        first_of_each = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        self._values, self._counts = values[first_of_each], np.add.reduceat(counts, first_of_each)
        while len(self._values) > self.most:
            self._threshold //= 2
            self._values, self._counts = self.below(self._threshold)


class Prints:
    """Hashes of a file's rows (prompts, whole rows, beginnings of prompts), and the sides of the split they are on."""

    def __init__(self, most: int = MOST_HASHES) -> None:
        self.rows = self.train_rows = self.validation_rows = 0
        self.lowest_position, self.highest_position = 1.0, 0.0  # smallest and largest `split_position`
        self.keys, self.whole, self.starts = Tally(most), Tally(most), Tally(most)
        self.beginnings, self.validation_beginnings = Tally(most), Tally(most)

    def add(self, prompt: Prompt, hashes: Sequence[int] = (), fraction: float | None = None) -> int:
        """Adds a row; `hashes` are of the parts of the row beside its prompt, in order.

        fraction: the share of prompts that the row's stage holds out; None: the row is on neither side. Returns the
        hash of the prompt's normalized text, equal for prompts of one `prompt.key`.
        """
        texts = [normalize_messages((message,)) for message in prompt.messages]
        key_text = " ".join(texts)
        key = fingerprint(key_text)
        beginning_text = _beginning_text(prompt.messages, texts) if len(texts) > 1 else key_text[:BEGINNING_CHARACTERS]
        beginning_hash = (
            (fingerprint(beginning_text) & ~SALT_MASK) | (key & SALT_MASK)
            if len(beginning_text) == BEGINNING_CHARACTERS
            else None
        )
        self.rows += 1
        self.keys.add(key)
        if beginning_hash is not None:
            self.beginnings.add(beginning_hash)
        self.whole.add(_hash_row(key, hashes))
        if len(texts) > 1:
            for start in _start_hashes(prompt.messages, texts):
                self.starts.add(start)
        if fraction is not None:
            position = split_position(key_text if len(texts) == 1 else _opening_text(prompt.messages, texts))
            self.lowest_position, self.highest_position = (
                min(self.lowest_position, position),
                max(self.highest_position, position),
            )
            is_held_out = position < fraction
            self.validation_rows += is_held_out
            self.train_rows += not is_held_out
            if is_held_out and beginning_hash is not None:
                self.validation_beginnings.add(beginning_hash)
        return key

    def merge(self, other_prints: "Prints") -> None:
        """Adds the hashes of another part of the file."""
        self.rows += other_prints.rows
        self.train_rows += other_prints.train_rows
        self.validation_rows += other_prints.validation_rows
        self.lowest_position, self.highest_position = (
            min(self.lowest_position, other_prints.lowest_position),
            max(self.highest_position, other_prints.highest_position),
        )
        for name in ("keys", "whole", "starts", "beginnings", "validation_beginnings"):
            getattr(self, name).merge(getattr(other_prints, name))

    def add_text(self, text_hash: int) -> None:
        """Adds a text without a prompt, by its hash."""
        self.rows += 1
        self.whole.add(text_hash)

    @property
    def num_distinct(self) -> int:
        """How many different prompts there are."""
        return round(len(self.keys.table()[0]) * self.keys.scale)

    def duplicate_counts(self) -> dict[str, Any]:
        """How many rows add nothing new.

        rows; repeated_rows: copies of an earlier row in all that training sees; repeated_prompts: rows with the prompt
        of an earlier row; begin_alike: rows whose prompt shares its first 128 characters (system messages aside) with a
        different prompt; continued: rows whose prompt is the beginning of another row's conversation; estimated:
        whether the rows were too many to count them all.
        """
        hashes, times = self.beginnings.table()
        groups, num_prompts, num_rows = _group_by_beginning(hashes, times)
        num_alike = int(num_rows[num_prompts > 1].sum()) if len(groups) else 0
        threshold = min(self.keys.threshold, self.starts.threshold)
        near_keys, near_counts = self.keys.below(threshold)
        continued = near_counts[np.isin(near_keys, self.starts.below(threshold)[0], assume_unique=True)]
        return {
            "rows": self.rows,
            "repeated_rows": _count_repeats(self.whole),
            "repeated_prompts": _count_repeats(self.keys),
            "distinct_prompts": self.num_distinct,
            "begin_alike": round(num_alike * self.beginnings.scale),
            "continued": round(int(continued.sum()) * 2**64 / threshold),
            "estimated": any(tally.scale > 1 for tally in (self.keys, self.whole, self.starts, self.beginnings)),
        }

    def split_counts(self) -> dict[str, Any]:
        """Rows of both sides of the split, and how alike the sides are.

        begin_alike: validation rows whose prompt begins like a different training prompt; enough: the smallest fraction
        that leaves rows on both sides, in hundredths, or None if there is none.
        """
        hashes, times = self.validation_beginnings.table()
        groups, _, rows_inside = _group_by_beginning(hashes, times)
        threshold = min(self.beginnings.threshold, self.validation_beginnings.threshold)
        all_groups, _, all_rows = _group_by_beginning(*self.beginnings.below(threshold))
        groups, rows_inside = groups[groups < threshold], rows_inside[groups < threshold]
        # equal prompts are on one side, so a row on the other side has a different prompt
        is_on_both_sides = all_rows[np.searchsorted(all_groups, groups)] > rows_inside
        num_near = round(int(rows_inside[is_on_both_sides].sum()) * 2**64 / threshold)
        return {
            "train": self.train_rows,
            "validation": self.validation_rows,
            "begin_alike": num_near,
            "enough": fraction_between(self.lowest_position, self.highest_position),
        }


def shared_prompts(prints: Prints, other_prints: Prints) -> dict[str, int]:
    """Counts the different prompts of `prints` that are in `other_prints` too, exactly or nearly.

    near: prompts that are not in the other file, but begin like a prompt of it, or continue one, or are continued by
    one. It is the larger of the two counts, since most prompts of one count are in the other too.
    """
    tallies = (prints.keys, prints.starts, other_prints.keys, other_prints.starts)
    threshold = min(tally.threshold for tally in tallies)
    keys, starts, other_keys, other_starts = (tally.below(threshold)[0] for tally in tallies)
    exact = np.intersect1d(keys, other_keys, assume_unique=True)
    continued = np.setdiff1d(np.intersect1d(keys, other_starts, assume_unique=True), other_keys, assume_unique=True)
    continuing = np.setdiff1d(np.intersect1d(starts, other_keys, assume_unique=True), keys, assume_unique=True)
    num_conversations = round((len(continued) + len(continuing)) * 2**64 / threshold)
    return {
        "exact": round(len(exact) * 2**64 / threshold),
        "near": max(num_conversations, _count_beginning_alike(prints.beginnings, other_prints.beginnings)),
    }


def _count_beginning_alike(beginnings: Tally, other_beginnings: Tally) -> int:
    """How many prompts of one tally begin like a prompt of the other tally without being in it."""
    threshold = min(beginnings.threshold, other_beginnings.threshold)
    hashes, other_hashes = beginnings.below(threshold)[0], other_beginnings.below(threshold)[0]
    salt_bits = np.uint64(SALT_BITS)
    begins_alike = np.isin(hashes >> salt_bits, np.unique(other_hashes >> salt_bits))
    only_begins_alike = begins_alike & ~np.isin(hashes, other_hashes, assume_unique=True)
    return round(int(only_begins_alike.sum()) * 2**64 / threshold)


def _group_by_beginning(hashes: Hashes, counts: Hashes) -> tuple[Hashes, Hashes, Hashes]:
    """Groups hashes that are salted with the prompt, as (beginnings in order, prompts of each, rows of each)."""
    if not len(hashes):
        return hashes, hashes, hashes
    beginnings = hashes & ~np.uint64(SALT_MASK)
    first_of_each = np.flatnonzero(np.concatenate([[True], beginnings[1:] != beginnings[:-1]]))
    num_prompts = np.diff(np.append(first_of_each, len(beginnings))).astype(np.uint64)
    return beginnings[first_of_each], num_prompts, np.add.reduceat(counts, first_of_each)


def _count_repeats(tally: Tally) -> int:
    """How many additions to the tally repeated an earlier one."""
    values, counts = tally.table()
    return round((int(counts.sum()) - len(values)) * tally.scale)


def _hash_row(key: int, hashes: Sequence[int]) -> int:
    for value in hashes:
        key = (key * FACTOR + value) % (1 << 64)
    return key


def _opening_text(messages: Sequence[Message], texts: Sequence[str]) -> str:
    """`Prompt.opening`, from texts that are normalized already."""
    first_user = next(i for i, message in enumerate(messages) if message.role == "user")
    return " ".join(texts[: first_user + 1])


def _beginning_text(messages: Sequence[Message], texts: Sequence[str]) -> str:
    """`data.duplicates.normalized_beginning`, from texts that are normalized already."""
    parts = (text for message, text in zip(messages, texts, strict=True) if message.role != "system")
    return " ".join(parts)[:BEGINNING_CHARACTERS]


def _start_hashes(messages: Sequence[Message], texts: Sequence[str]) -> Iterator[int]:
    """Hashes of `data.duplicates.earlier_prompt_keys`, from texts that are normalized already, in one pass."""
    digest = xxhash.xxh3_64()
    for i, (message, text) in enumerate(zip(messages[:-1], texts, strict=False)):
        digest.update((" " * (i > 0) + text).encode())
        if message.role == "user":
            yield digest.intdigest()
