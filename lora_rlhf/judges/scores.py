"""Judges that score each response alone: an exact gold score that training never saw, or the run's reward model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lora_rlhf.data.batches import response_batch
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import pad_id
from lora_rlhf.judges.judge import Verdicts
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.forward import Sequences, apply_in_micro_batches, response_scores
from lora_rlhf.model.shared import SharedModel

SAME_SCORE = 1e-9  # scores with a smaller gap are equal: it comes from the order of a sum

Gold = Callable[[str, str], float]
Scorer = Callable[[list[EncodedPrompt], list[Response]], list[float]]


class ScoreJudge:
    """Scores responses, higher is better. `name` is "gold" or "reward".

    Equal responses to a prompt are scored once, also if different systems wrote them: scores vary with the batch in
    their last digits, which would turn a tie into a win.
    """

    def __init__(self, name: str, scorer: Scorer, facts: dict[str, Any] | None = None) -> None:
        self.name = name
        self._scorer = scorer
        self._facts = facts or {}
        self._score_by_key: dict[tuple[str, tuple[int, ...], str], float] = {}

    def scores(self, prompts: Sequence[EncodedPrompt], answers: Sequence[Response]) -> list[float]:
        """One score for each prompt and its answer. Raises ValueError for a score that is not finite."""
        keys = [
            (prompt.prompt.key, tuple(answer.ids), answer.text) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        new_indices = list({key: i for i, key in enumerate(keys) if key not in self._score_by_key}.values())
        if new_indices:
            scores = self._scorer([prompts[i] for i in new_indices], [answers[i] for i in new_indices])
            for i, score in zip(new_indices, scores, strict=True):
                if not math.isfinite(score):
                    raise ValueError(f"the {self.name} score of {answers[i].text!r} is {score}: it cannot be compared")
                self._score_by_key[keys[i]] = score
        return [self._score_by_key[key] for key in keys]

    def compare(
        self, prompts: Sequence[EncodedPrompt], first: Sequence[Response], second: Sequence[Response]
    ) -> Verdicts:
        """Returns verdicts by the higher score."""
        return Verdicts([*compare_scores(self.scores(prompts, first), self.scores(prompts, second))])

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **self._facts, "scored": len(self._score_by_key)}

    def close(self) -> None:
        """Does nothing: there is nothing to free."""


def gold_judge(gold: Gold) -> ScoreJudge:
    """A judge by an exact score of (prompt, response). gold: raises KeyError for an unknown prompt."""

    def score(prompts: list[EncodedPrompt], answers: list[Response]) -> list[float]:
        pairs = zip(prompts, answers, strict=True)
        return [float(gold(prompt_text(prompt.prompt), answer.text)) for prompt, answer in pairs]

    return ScoreJudge("gold", score)


def reward_judge(model: SharedModel, micro_batch_size: int, stage: str) -> ScoreJudge:
    """A judge by the score that PPO maximized.

    model: has the role "reward". stage: the id of the reward stage, for the report.
    """

    @torch.no_grad()
    def score(prompts: list[EncodedPrompt], answers: list[Response]) -> list[float]:
        """One score of the reward model for each answer."""
        batch = Sequences(
            *response_batch([p.prompt_ids for p in prompts], [a.ids for a in answers], pad_id(model.tokenizer))
        ).to(model.device)
        with model.role("reward"):
            scores: list[float] = apply_in_micro_batches(
                lambda part: response_scores(model, part), batch, micro_batch_size
            ).tolist()
        return scores

    return ScoreJudge("reward", score, {"stage": stage, "offset": model.score_offset("reward")})


def compare_scores(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Outcomes: 1 if the first score is higher, 0 if the second is, 0.5 if they are equal."""
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    return [0.5 if abs(gap) <= SAME_SCORE else float(gap > 0) for gap in gaps]


def prompt_text(prompt: Prompt) -> str:
    """The part of a prompt that a gold score reads: the user's last message."""
    return prompt.messages[-1].content


def first_unknown_prompt(gold: Gold, prompts: Sequence[Prompt]) -> Prompt | None:
    """The first prompt for which the gold score raises KeyError; None if there is none."""
    for prompt in prompts:
        try:
            gold(prompt_text(prompt), "")
        except KeyError:
            return prompt
    return None
