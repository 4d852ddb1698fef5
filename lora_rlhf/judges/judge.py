"""The protocol of a judge, and its verdicts on pairs of responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.model.drawing import Response


@dataclass(frozen=True)
class Verdicts:
    """One outcome for each pair: 1 the first response won, 0 the second won, 0.5 a tie, None without a verdict.

    The mean vote of several people may be between these. `inconsistent`: the number of pairs whose verdict changed with
    the order of the responses, which makes them ties. `cost`: of the calls for these pairs; None without a price.
    """

    outcomes: list[float | None]
    inconsistent: int = 0
    cost: float | None = None

    @property
    def failures(self) -> int:
        """The number of pairs without an outcome."""
        return sum(outcome is None for outcome in self.outcomes)


class Judge(Protocol):
    """Compares responses to the same prompts. Judges that score single responses are `scores.ScoreJudge`."""

    name: str

    def compare(
        self, prompts: Sequence[EncodedPrompt], first: Sequence[Response], second: Sequence[Response]
    ) -> Verdicts:
        """Judges whether first[i] or second[i] answers prompts[i] better. Raises UserError if it does not work."""

    def describe(self) -> dict[str, Any]:
        """The judge's entry in a report: `name`, its identity, and counts of its work so far. It has no secrets."""

    def close(self) -> None:
        """Frees memory, connections and files. `describe` works after it, `compare` may not."""
