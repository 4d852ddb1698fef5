"""What could not be used, and why: nothing in this room is dropped without being counted here."""

from collections.abc import Iterator
from dataclasses import dataclass

from lora_rlhf.errors import UserError


class BadRow(UserError):
    """One row can not be used. `reason` is the same for all rows with the same fault; `detail` is this row's own."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason} ({detail})" if detail else reason)


@dataclass(frozen=True)
class Refusal:
    """One refusal: where the row stands ("file:line"), the reason shared by its group, and this row's detail."""

    origin: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        fault = f"{self.reason} ({self.detail})" if self.detail else self.reason
        return f"{self.origin}: {fault}" if self.origin else fault


class RefusedRows:
    """Refusals in the order in which they happened, and the number of prompts that had to be shortened."""

    def __init__(self) -> None:
        self.rows: list[Refusal] = []
        self.truncated_prompts = 0

    def add(self, origin: str, fault: BadRow) -> None:
        """Counts one refusal. `origin` is "file:line", or empty for a record that came from no file."""
        self.rows.append(Refusal(origin, fault.reason, fault.detail))

    def extend(self, other: "RefusedRows") -> None:
        """Adds what another step refused."""
        self.rows.extend(other.rows)
        self.truncated_prompts += other.truncated_prompts

    @property
    def count(self) -> int:
        return len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Refusal]:
        return iter(self.rows)

    def by_reason(self) -> dict[str, list[Refusal]]:
        """Refusals grouped by reason, the most frequent reason first."""
        groups: dict[str, list[Refusal]] = {}
        for row in self.rows:
            groups.setdefault(row.reason, []).append(row)
        return dict(sorted(groups.items(), key=lambda group: -len(group[1])))

    def summary(self, examples: int = 3) -> str:
        """One line per reason with its count and its first places; empty when there is nothing to say."""
        lines = []
        for reason, rows in self.by_reason().items():
            places = [f"{row.origin} {row.detail}".strip() for row in rows[:examples]]
            shown = "; ".join(place for place in places if place)
            more = ", ..." if len(rows) > examples else ""
            lines.append(f"{len(rows)} refused: {reason}" + (f" [{shown}{more}]" if shown else ""))
        if self.truncated_prompts:
            lines.append(f"{self.truncated_prompts} prompts truncated from the left")
        return "\n".join(lines)
