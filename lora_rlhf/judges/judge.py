"""The protocol of a judge, and its verdicts on pairs of responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.model.drawing import Response


@dataclass(frozen=True)
class Verdicts:
    """One outcome for each pair: 1 the first response won, 0 the second did, 0.5 a tie, None there is no verdict.

    A mean of several people's votes may lie between these. `inconsistent`: pairs whose verdict changed with the order
    of the responses; they are ties here. `cost`: of the calls for these pairs; None without a price.
    """

    outcomes: list[float | None]
    inconsistent: int = 0
    cost: float | None = None

    @property
    def failures(self) -> int:
        """Pairs without an outcome."""
        return sum(outcome is None for outcome in self.outcomes)


class Judge(Protocol):
    """Compares responses to the same prompts. Judges that score single responses are `scores.ScoreJudge`."""

    name: str

    def compare(
        self, prompts: Sequence[EncodedPrompt], first: Sequence[Response], second: Sequence[Response]
    ) -> Verdicts:
        """Whether first[i] or second[i] answers prompts[i] better. UserError for a judge that cannot work at all."""

    def describe(self) -> dict[str, Any]:
        """The judge in a report: `name`, its identity, and counts of its work so far. Never a secret."""

    def close(self) -> None:
        """Frees memory, connections and files; `describe` works afterwards, `compare` may not."""
