"""A judge that looks up the rankings of people by the prompt and the text of both responses."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Ranking
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.judges.judge import Verdicts
from lora_rlhf.model.drawing import Response
from lora_rlhf.runs.folder import data_hash

log = logging.getLogger("lora_rlhf")


class HumanJudge:
    """The outcome of a pair is the mean vote of people; equal ranks are half a win for each response.

    A pair without a ranking has no outcome. Identical answers are a tie, with or without a ranking.
    """

    name = "human"

    def __init__(self, path: str, strict: bool = False) -> None:
        """path: rankings as the reward stage reads them. Raises UserError for a file without rankings."""
        rankings, refused_rows = read_rankings(path, strict)
        if summary := refused_rows.summary():
            log.warning("%s:\n%s", path, summary)
        self._facts = {
            "path": path,
            "sha256": data_hash(path),
            "rankings": len(rankings),
            "refused": refused_rows.count,
            "labelers": len({ranking.labeler for ranking in rankings if ranking.labeler is not None}),
        }
        self._rankings: dict[str, list[Ranking]] = defaultdict(list)
        for ranking in rankings:
            self._rankings[ranking.prompt.key].append(ranking)
        self._counts: Counter[str] = Counter(pairs=0, identical=0, judged=0, votes=0, divided=0, failures=0)

    def compare(
        self, prompts: Sequence[EncodedPrompt], first: Sequence[Response], second: Sequence[Response]
    ) -> Verdicts:
        """Returns the mean vote on each pair."""
        return Verdicts(
            [
                self._mean_vote(prompt.prompt.key, a.text.strip(), b.text.strip())
                for prompt, a, b in zip(prompts, first, second, strict=True)
            ]
        )

    def describe(self) -> dict[str, Any]:
        """See `judge.Judge`. `failures`: pairs without a ranking; `divided`: pairs on which votes differ."""
        return {"name": self.name, **self._facts, **self._counts}

    def close(self) -> None:
        """Does nothing: there is nothing to free."""

    def _mean_vote(self, prompt_key: str, first: str, second: str) -> float | None:
        """The mean vote on a pair, which is also counted; None without a ranking."""
        self._counts["pairs"] += 1
        if first == second:
            self._counts["identical"] += 1
            return 0.5
        all_votes = (_ranking_vote(ranking, first, second) for ranking in self._rankings.get(prompt_key, ()))
        votes = [vote for vote in all_votes if vote is not None]
        if not votes:
            self._counts["failures"] += 1
            return None
        self._counts["judged"] += 1
        self._counts["votes"] += len(votes)
        self._counts["divided"] += len(set(votes)) > 1
        return sum(votes) / len(votes)


def _ranking_vote(ranking: Ranking, first: str, second: str) -> float | None:
    """1 if the first response has the better rank, 0 if the second has, 0.5 for equal ranks.

    None if the ranking lacks one of the two.
    """
    ranks = {text.strip(): rank for text, rank in zip(ranking.responses, ranking.ranks, strict=True)}
    if first not in ranks or second not in ranks:
        return None
    return 0.5 if ranks[first] == ranks[second] else float(ranks[first] < ranks[second])
