"""A judge made of people: rankings that they gave, looked up by the prompt and the text of both responses."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from lora_rlhf.data.answers import Answer
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Ranking
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.judges.judge import Verdicts
from lora_rlhf.runs.folder import data_hash

log = logging.getLogger("lora_rlhf")


class HumanJudge:
    """Votes of people on pairs: an outcome is their mean, where a rank in common is half a win for each.

    A pair that nobody ranked has no outcome. Identical answers are a tie, whether somebody ranked them or not.
    """

    name = "human"

    def __init__(self, path: str, strict: bool = False) -> None:
        """path: rankings as the reward stage reads them. UserError for a file that holds none."""
        rankings, refused = read_rankings(path, strict)
        if summary := refused.summary():
            log.warning("%s:\n%s", path, summary)
        self._about = {
            "path": path,
            "sha256": data_hash(path),
            "rankings": len(rankings),
            "refused": refused.count,
            "labelers": len({ranking.labeler for ranking in rankings if ranking.labeler is not None}),
        }
        self._rankings: dict[str, list[Ranking]] = defaultdict(list)
        for ranking in rankings:
            self._rankings[ranking.prompt.key].append(ranking)
        self._counts: Counter[str] = Counter(pairs=0, identical=0, judged=0, votes=0, divided=0, failures=0)

    def compare(self, prompts: Sequence[EncodedPrompt], one: Sequence[Answer], other: Sequence[Answer]) -> Verdicts:
        """The mean vote on each pair."""
        return Verdicts(
            [
                self._outcome(prompt.prompt.key, first.text.strip(), second.text.strip())
                for prompt, first, second in zip(prompts, one, other, strict=True)
            ]
        )

    def describe(self) -> dict[str, Any]:
        """See `judge.Judge`. `failures`: pairs that nobody ranked; `divided`: pairs on which votes differ."""
        return {"name": self.name, **self._about, **self._counts}

    def close(self) -> None:
        """Nothing is held."""

    def _outcome(self, prompt: str, one: str, other: str) -> float | None:
        self._counts["pairs"] += 1
        if one == other:
            self._counts["identical"] += 1
            return 0.5
        votes = [vote for ranking in self._rankings.get(prompt, ()) if (vote := _vote(ranking, one, other)) is not None]
        if not votes:
            self._counts["failures"] += 1
            return None
        self._counts["judged"] += 1
        self._counts["votes"] += len(votes)
        self._counts["divided"] += len(set(votes)) > 1
        return sum(votes) / len(votes)


def _vote(ranking: Ranking, one: str, other: str) -> float | None:
    """1 where one response has the better rank, 0 where the other has, 0.5 for the same, None unless both are there."""
    ranks = {text.strip(): rank for text, rank in zip(ranking.responses, ranking.ranks, strict=True)}
    if one not in ranks or other not in ranks:
        return None
    return 0.5 if ranks[one] == ranks[other] else float(ranks[one] < ranks[other])
