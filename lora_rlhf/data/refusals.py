"""Rows that could not be used, with reasons: this room counts here every row that it drops."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_rlhf.system.errors import UserError

EXAMPLES = 20  # of each reason; a limit, so that memory does not grow with the file
MOST_REASONS = 200  # bounds the memory, even if a reason held details of its row by mistake
OTHER = "other reasons"
LISTED_NAMES = 12  # column names in a message, each cut to
LISTED_CHARACTERS = 40


def pluralize(number: int, noun: str) -> str:
    """A number and its noun: "1 row", "2 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def none_of_phrase(number: int, noun: str) -> str:
    """Returns "none of its 2 rows" or "not even its only row", to be followed by "can be used" or the like."""
    return f"not even its only {noun}" if number == 1 else f"none of its {pluralize(number, noun)}"


def listed_names(names: Sequence[Any]) -> str:
    """Names of columns or keys for a message, with commas; "none" for none. Control characters are escaped."""
    listed = [repr(str(name)[:LISTED_CHARACTERS])[1:-1] for name in names[:LISTED_NAMES]]
    more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return ", ".join(listed) + more if listed else "none"


class BadRow(UserError):
    """One row cannot be used.

    reason: the same for all rows with the same fault. detail: of this row. columns: the value of --columns with which
    the row could be read, such as "prompt=question".
    """

    def __init__(self, reason: str, detail: str = "", columns: str = ""):
        self.reason = reason
        self.detail = detail
        self.columns = columns
        super().__init__(f"{reason} ({detail})" if detail else reason)

    def with_advice(self, has_flags: bool) -> "BadRow":
        """The same fault with advice in its detail: --columns if the command has this flag, else another way."""
        if not self.columns:
            return self
        advice = f"try --columns {self.columns}" if has_flags else "rename or remove columns, as docs/data.md shows"
        return BadRow(self.reason, "; ".join(filter(None, (self.detail, advice))))


class Damaged(BadRow):
    """The rest of a file cannot be read. It is yielded instead of the next row."""


@dataclass(frozen=True)
class Refusal:
    """One refused row: where it is ("file:line"), the reason that it shares with others, and its own detail."""

    origin: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        fault = f"{self.reason} ({self.detail})" if self.detail else self.reason
        return f"{self.origin}: {fault}" if self.origin else fault


@dataclass
class Reason:
    """How many rows were refused for one reason, and the first of them."""

    count: int = 0
    examples: list[Refusal] = field(default_factory=list)

    def detail_and_origins(self, count: int) -> tuple[str, list[str]]:
        """(" (detail)", origins) if the first `count` examples share a detail, else ("", origins with details)."""
        examples = self.examples[:count]
        if len({row.detail for row in examples}) == 1:
            return f" ({examples[0].detail})" if examples[0].detail else "", [row.origin for row in examples]
        return "", [f"{row.origin} ({row.detail})" if row.detail else row.origin for row in examples]


class RefusedRows:
    """Counts refused rows by reason, truncated prompts and cut responses. Memory does not grow with the rows.

    strict: raise UserError at the first refused row. most: raise it at the first one after so many.
    """

    def __init__(self, strict: bool = False, most: int | None = None) -> None:
        self.strict, self.most = strict, most
        self.reasons: dict[str, Reason] = {}
        self.truncated_prompts = 0
        self.cut_responses = 0

    def add(self, origin: str, fault: BadRow) -> None:
        """Counts one refused row. `origin` is "file:line", or empty for a record that was not read from a file."""
        refusal = Refusal(origin, fault.reason, fault.detail)
        if self.strict:
            raise UserError(f"{refusal}; without --strict it is left out and counted")
        self._add(fault.reason, 1, [refusal])
        if self.most is not None and self.count > self.most:
            raise UserError(f"{refusal}; nor can {self.most:,} rows before it be used, so that no more are read")

    def extend(self, other: "RefusedRows") -> None:
        """Adds all counts of another step."""
        for reason, group in other.reasons.items():
            self._add(reason, group.count, group.examples)
        self.truncated_prompts += other.truncated_prompts
        self.cut_responses += other.cut_responses

    def _add(self, reason: str, count: int, examples: list[Refusal]) -> None:
        name = reason if reason in self.reasons or len(self.reasons) < MOST_REASONS else OTHER
        group = self.reasons.setdefault(name, Reason())
        group.count += count
        group.examples += examples[: EXAMPLES - len(group.examples)]

    @property
    def count(self) -> int:
        """The number of refused rows."""
        return sum(group.count for group in self.reasons.values())

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Refusal]:
        """The examples of all reasons."""
        return (refusal for group in self.reasons.values() for refusal in group.examples)

    def reasons_by_count(self) -> dict[str, Reason]:
        """The reasons with their counts, the most frequent first."""
        return dict(sorted(self.reasons.items(), key=lambda item: -item[1].count))

    def summary(self, examples: int = 3) -> str:
        """One line per reason with its count and its first `examples` origins; empty if no row was refused or cut."""
        lines = []
        for reason, group in self.reasons_by_count().items():
            detail, origins = group.detail_and_origins(examples)
            locations = "; ".join(filter(None, origins))
            more = ", ..." if group.count > examples else ""
            lines.append(f"{group.count:,} refused: {reason}{detail}" + (f" [{locations}{more}]" if locations else ""))
        if self.truncated_prompts:
            lines.append(f"{pluralize(self.truncated_prompts, 'prompt')} truncated from the left")
        if self.cut_responses:
            lines.append(f"{pluralize(self.cut_responses, 'response')} cut at the limit")
        return "\n".join(lines)
