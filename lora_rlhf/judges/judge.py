"""What a judge is, and what it says of pairs of responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lora_rlhf.data.answers import Answer
from lora_rlhf.data.encode import EncodedPrompt


@dataclass(frozen=True)
class Verdicts:
    """One outcome a pair: 1 the first response won, 0 the second did, 0.5 a tie, None the judge said nothing usable.

    Between them lie the means of several people's votes. `inconsistent`: pairs on which the judge changed its mind
    with the order of the responses, which are ties here. `cost`: what the calls for these pairs cost; None: no price.
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

    def compare(self, prompts: Sequence[EncodedPrompt], one: Sequence[Answer], other: Sequence[Answer]) -> Verdicts:
        """Whether one[i] or other[i] answers prompts[i] better. UserError for a judge that cannot work at all."""

    def describe(self) -> dict[str, Any]:
        """What a report says of the judge: `name`, who it is, and what it did so far. Never a secret."""

    def close(self) -> None:
        """Gives back memory, connections and files; `describe` works afterwards, `compare` need not."""
