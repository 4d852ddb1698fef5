"""A judge as a reward: what a model that reads a response says of it, as a score between 0 and 1."""

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.refusals import pluralize
from lora_rlhf.data.schema import Prompt
from lora_rlhf.judges.choose import open_asker
from lora_rlhf.judges.pairwise import PairwiseJudge
from lora_rlhf.judges.question import read_questions, read_rating_questions
from lora_rlhf.judges.rating import RatingJudge
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

LOWEST, HIGHEST = 1, 7  # of a rating
MOST_FAILED = 0.5  # of the responses; with more failures, the judge is at fault and not the responses


class NoJudgement(Exception):
    """The judge does not work any more: its server is gone, its budget is spent, or most of its replies are useless."""


class JudgedReward:
    """Scores responses by a judge: its rating, or the share of comparisons that a response wins (a tie is half a win).

    against: "group", the prompt's other responses; "@COLUMN", a reference answer; None: nothing, it gives a rating.
    """

    label = "judge"

    def __init__(self, judge: RatingJudge | PairwiseJudge, weight: float, against: str | None, failure_score: float):
        self.weight, self._judge = weight, judge
        self._against, self._failure_score = against, failure_score

    @classmethod
    def from_config(
        cls, config: PPOConfig | SampleConfig, failure_score: float, prompts: Sequence[Prompt]
    ) -> "JudgedReward | None":
        """As the config has it, after one easy question; None without a judge.

        UserError for a judge that does not work, and for a column that the prompts lack.
        """
        kind, against = config.reward_judge, config.reward_judge_against
        if kind is None:
            return None
        columns = sorted({name for prompt in prompts for name in prompt.meta})
        if against not in (None, "group") and against[1:] not in columns:
            raise UserError(
                f"reward_judge_against is {against!r}, but the prompts have no such column; their other columns are: "
                f"{', '.join(columns) or 'none'}"
            )
        if against == "group" and workers.process_count() > 1:
            raise UserError("reward_judge_against group needs all responses in one process: start one, or give @COLUMN")
        asker = open_asker(config, kind, "reward_judge", config.run, config.device, config.trust_remote_code)
        judge: RatingJudge | PairwiseJudge
        if against is None:
            judge = RatingJudge(asker, read_rating_questions(config.judge_instructions))
        else:
            judge = PairwiseJudge(asker, read_questions(config.judge_instructions))
        if kind == "endpoint":
            judge.check_easy_question(anew=True)
        return cls(judge, config.reward_judge_weight, against, failure_score)

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], group_size: int
    ) -> tuple[list[float | None], int]:
        """(scores, how many responses failed). None for a row without the reference. All processes call it together.

        group_size: of the responses to one prompt, which follow one another. NoJudgement, in all processes, where the
        judge does not work any more; scores so far are cached.
        """
        down, scores, fault = self._judge.asker.counts.down, list[float | None](), None
        try:
            scores = self._scores(prompts, responses, group_size)
        except UserError as error:
            fault = str(error)
        failed = [score is not None and math.isnan(score) for score in scores]
        if fault is None and (missing := self._judge.asker.counts.down - down):
            fault = f"--reward_judge: the server did not answer {pluralize(missing, 'question')} at any try"
        if fault is None and sum(failed) > MOST_FAILED * len(failed):
            fault = f"--reward_judge: no usable reply on {sum(failed)} of {pluralize(len(failed), 'response')}"
        if faults := [one for one in workers.gather([fault]) if one is not None]:
            raise NoJudgement(faults[0])
        if any(failed):
            log.warning(
                "the judge failed on %d of %d responses (so far: %s)%s",
                *(sum(failed), len(failed), ", ".join(self._judge.asker.counts.faults)),
                f"; their score is {self._failure_score:g}" if math.isfinite(self._failure_score) else "",
            )
        return [self._failure_score if bad else score for bad, score in zip(failed, scores, strict=True)], sum(failed)

    def _scores(self, prompts: Sequence[Prompt], responses: Sequence[str], group_size: int) -> list[float | None]:
        """The scores; NaN where the judge failed."""
        if isinstance(self._judge, RatingJudge):
            ratings = self._judge.rate(list(zip(prompts, responses, strict=True)))
            return [math.nan if rating is None else (rating - LOWEST) / (HIGHEST - LOWEST) for rating in ratings]
        if self._against == "group":
            return self._scores_in_groups(self._judge, prompts, responses, group_size)
        assert self._against is not None
        references = [prompt.meta.get(self._against[1:]) for prompt in prompts]
        rows = [row for row, reference in enumerate(references) if reference is not None]
        pairs = [(prompts[row], responses[row], str(references[row]).strip()) for row in rows]
        scores: list[float | None] = [None] * len(responses)
        for row, outcome in zip(rows, self._judge.compare_texts(pairs).outcomes, strict=True):
            scores[row] = math.nan if outcome is None else outcome
        return scores

    def _scores_in_groups(
        self, judge: PairwiseJudge, prompts: Sequence[Prompt], responses: Sequence[str], group_size: int
    ) -> list[float | None]:
        """Of each response, the mean outcome against each other response of its group; NaN where all of them failed."""
        starts = range(0, len(responses), group_size)
        pairs = [pair for start in starts for pair in itertools.combinations(range(start, start + group_size), 2)]
        verdicts = judge.compare_texts([(prompts[one], responses[one], responses[other]) for one, other in pairs])
        outcomes: list[list[float]] = [[] for _ in responses]
        for (one, other), outcome in zip(pairs, verdicts.outcomes, strict=True):
            if outcome is not None:
                outcomes[one].append(outcome)
                outcomes[other].append(1.0 - outcome)
        return [sum(won) / len(won) if won else math.nan for won in outcomes]

    def describe(self) -> dict[str, Any]:
        """The judge's entry in a manifest: identity and counts. It has no secrets."""
        return {**self._judge.describe(), "against": self._against}

    def state_dict(self) -> dict[str, int]:
        """What was spent so far, for a checkpoint."""
        return self._judge.asker.counts.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Adds what an earlier attempt had spent."""
        self._judge.asker.counts.load_state_dict(state)

    def close(self) -> None:
        """Frees the judge's memory."""
        self._judge.close()
