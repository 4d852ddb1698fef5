"""Judges that read both answers. Each pair gives two questions, one in each order of the answers."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Prompt
from lora_rlhf.judges.asking import Asker
from lora_rlhf.judges.judge import Verdicts
from lora_rlhf.judges.question import QuestionTemplate, read_verdict, turns_text
from lora_rlhf.model.drawing import Response

# (prompt, good answer, bad answer)
EASY_QUESTION = (Prompt.of("How many days has a week?"), "A week has seven days.", "Bananas are yellow.")
POINTS: dict[str, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass
class _Counts:
    """Counts of pairs so far. first_won, second_won: pairs whose answer A, or B, won in both orders."""

    pairs: int = 0
    identical: int = 0
    shortened: int = 0
    failed_pairs: int = 0
    inconsistent: int = 0
    first_won: int = 0
    second_won: int = 0


RankingTask = tuple[Prompt, Sequence[str]]  # a prompt, and its answers
KeyPair = tuple[str, str]  # of a pair's two questions: with the first response as answer A, and as answer B


class PairwiseJudge:
    """A judge that reads both answers. `name` is "local" or "endpoint".

    A response wins a pair if it wins in both orders. A verdict that changes with the order is a tie, and is counted as
    inconsistent. Identical answers are a tie without a question.
    """

    def __init__(self, asker: Asker, questions: QuestionTemplate) -> None:
        self.name = asker.name
        self.asker = asker
        self._questions = questions
        self._counts = _Counts()

    def check_easy_question(self, anew: bool = False) -> None:
        """Asks one question with an obvious answer, unless it is cached (or anew). Raises UserError without a verdict.

        This shows before any long work whether the judge works.
        """
        question = self._questions.make_question(*EASY_QUESTION)
        key = self._question_key(*EASY_QUESTION)
        if anew or self.asker.verdict(key) is None:
            self.asker.ask({key: question.text}, read_verdict)

    def compare(
        self, prompts: Sequence[EncodedPrompt], first: Sequence[Response], second: Sequence[Response]
    ) -> Verdicts:
        """The verdict on each pair. Raises UserError if the judge does not work; earlier verdicts stay cached."""
        pairs = zip(prompts, first, second, strict=True)
        return self.compare_texts([(prompt.prompt, a.text.strip(), b.text.strip()) for prompt, a, b in pairs])

    def compare_texts(self, pairs: Sequence[tuple[Prompt, str, str]]) -> Verdicts:
        """The same of (prompt, first answer, second answer)."""
        before = self.asker.counts.tokens_in, self.asker.counts.tokens_out
        text_by_key: dict[str, str] = {}
        key_pairs = [self._prepare_pair(prompt, a, b, text_by_key) for prompt, a, b in pairs]
        self.asker.ask(text_by_key, read_verdict)
        inconsistent_before = self._counts.inconsistent
        outcomes = [self._pair_outcome(keys) for keys in key_pairs]
        after = self.asker.counts.tokens_in, self.asker.counts.tokens_out
        cost = self.asker.model.price(after[0] - before[0], after[1] - before[1])
        return Verdicts(outcomes, self._counts.inconsistent - inconsistent_before, cost)

    def rank(self, tasks: Sequence[RankingTask]) -> list[tuple[int, ...] | None]:
        """The ranks of each task's answers by the pairs that they win, a tie half; None where a pair has no outcome."""
        pairs = [(prompt, a, b) for prompt, answers in tasks for a, b in itertools.combinations(answers, 2)]
        outcomes = iter(self.compare_texts(pairs).outcomes)
        rankings: list[tuple[int, ...] | None] = []
        for _, answers in tasks:
            won, is_whole = [0.0] * len(answers), True
            for one, other in itertools.combinations(range(len(answers)), 2):
                outcome = next(outcomes)
                is_whole &= outcome is not None
                won[one] += outcome or 0.0
                won[other] += 1.0 - (outcome or 0.0)
            rankings.append(ranks_of_points(won) if is_whole else None)
        return rankings

    def describe(self) -> dict[str, Any]:
        """See `judge.Judge`. `inconsistent`: pairs whose verdict changed with the order of the answers."""
        counts = self._counts
        num_judged = counts.pairs - counts.identical - counts.failed_pairs
        return {
            "name": self.name,
            **self.asker.model.identity(),
            "template": self._questions.version,
            "pairs": counts.pairs,
            "identical": counts.identical,
            "shortened": counts.shortened,
            "failures": counts.failed_pairs,
            "inconsistent": counts.inconsistent,
            "inconsistent_share": counts.inconsistent / num_judged if num_judged else None,
            "inconsistent_for_first": counts.first_won,
            "inconsistent_for_second": counts.second_won,
            **self.asker.describe(),
        }

    def close(self) -> None:
        self.asker.model.close()

    def _prepare_pair(self, prompt: Prompt, first: str, second: str, text_by_key: dict[str, str]) -> KeyPair | None:
        """The keys of a pair's questions, or None for identical answers. Adds uncached questions to `text_by_key`."""
        self._counts.pairs += 1
        if first == second:
            self._counts.identical += 1
            return None
        keys, is_shortened = [], False
        for a, b in ((first, second), (second, first)):
            question = self._questions.make_question(prompt, a, b)
            is_shortened = question.is_shortened
            key = self._question_key(prompt, a, b)
            if self.asker.verdict(key) is not None:
                self.asker.counts.cached += 1
            else:
                text_by_key[key] = question.text
            keys.append(key)
        self._counts.shortened += is_shortened
        return keys[0], keys[1]

    def _question_key(self, prompt: Prompt, first: str, second: str) -> str:
        return self.asker.key(self._questions.version, turns_text(prompt), first, second)

    def _pair_outcome(self, keys: KeyPair | None) -> float | None:
        """A pair's outcome from the verdicts of its two questions, which is also counted; None if one is missing."""
        if keys is None:
            return 0.5
        forward, swapped = (self.asker.verdict(key) for key in keys)
        if forward is None or swapped is None:
            self._counts.failed_pairs += 1
            return None
        outcome = POINTS[forward]
        if outcome == 1.0 - POINTS[swapped]:
            return outcome
        self._counts.inconsistent += 1
        self._counts.first_won += (forward, swapped) == ("A", "A")
        self._counts.second_won += (forward, swapped) == ("B", "B")
        return 0.5


def ranks_of_points(points: Sequence[float]) -> tuple[int, ...]:
    """Ranks from 1 for the most points; equal points share a rank, and no rank is left out."""
    order = sorted(set(points), reverse=True)
    return tuple([order.index(value) + 1 for value in points])
