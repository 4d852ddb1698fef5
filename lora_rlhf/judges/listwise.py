"""A judge that reads all answers to a prompt at once, and ranks them in one reply."""

import functools
import json
from collections.abc import Sequence
from typing import Any

from lora_rlhf.judges.asking import Asker
from lora_rlhf.judges.pairwise import EASY_QUESTION, RankingTask, ranks_of_points
from lora_rlhf.judges.question import ListTemplate, read_ranking, turns_text


class ListJudge:
    """Ranks all answers to a prompt by one question. `name` is "local" or "endpoint"."""

    def __init__(self, asker: Asker, questions: ListTemplate) -> None:
        self.name = asker.name
        self.asker = asker
        self._questions = questions
        self._shortened = 0

    def check_easy_question(self) -> None:
        """As that of `PairwiseJudge`."""
        prompt, good, bad = EASY_QUESTION
        key = self._key((prompt, (bad, good)))
        if self.asker.verdict(key) is None:
            question = self._questions.make_question(prompt, (bad, good))
            self.asker.ask({key: question.text}, functools.partial(read_ranking, count=2))

    def rank(self, tasks: Sequence[RankingTask]) -> list[tuple[int, ...] | None]:
        """The ranks of each task's answers; None where the reply does not rank each of them once.

        Raises UserError if the judge does not work; earlier rankings stay cached.
        """
        text_by_key_by_count: dict[int, dict[str, str]] = {}
        for task in tasks:
            if self.asker.verdict(self._key(task)) is not None:
                self.asker.counts.cached += 1
                continue
            question = self._questions.make_question(*task)
            self._shortened += question.is_shortened
            text_by_key_by_count.setdefault(len(task[1]), {})[self._key(task)] = question.text
        for count, text_by_key in text_by_key_by_count.items():
            self.asker.ask(text_by_key, functools.partial(read_ranking, count=count))
        return [_ranks(self.asker.verdict(self._key(task))) for task in tasks]

    def _key(self, task: RankingTask) -> str:
        return self.asker.key(self._questions.version, turns_text(task[0]), json.dumps(list(task[1])), "")

    def describe(self) -> dict[str, Any]:
        """The judge's entry in a report: its identity, and counts of its work so far. It has no secrets."""
        about = {"template": self._questions.version, "shortened": self._shortened}
        return {"name": self.name, **self.asker.model.identity(), **about, **self.asker.describe()}

    def close(self) -> None:
        self.asker.model.close()


def _ranks(ranking: str | None) -> tuple[int, ...] | None:
    """The ranks in a ranking as "2>1=3" that `read_ranking` let pass: (2, 1, 2)."""
    if ranking is None:
        return None
    groups = [group.split("=") for group in ranking.split(">")]
    points = {int(number): -place for place, group in enumerate(groups) for number in group}
    return ranks_of_points([points[number] for number in sorted(points)])
