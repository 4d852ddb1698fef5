"""Judges that score one response at a time: an exact gold score that training never saw, or the run's reward model."""

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
from lora_rlhf.model.forward import Sequences, in_micro_batches, response_scores
from lora_rlhf.model.shared import SharedModel

SAME_SCORE = 1e-9  # sums in another order differ by less than this, different scores by far more

Gold = Callable[[str, str], float]
Scorer = Callable[[list[EncodedPrompt], list[Response]], list[float]]


class ScoreJudge:
    """Scores responses, higher is better. `name` is "gold" or "reward".

    The same response to the same prompt is scored once and keeps its score, whichever system wrote it: a last digit
    that varies with the batch would turn a tie into a win.
    """

    def __init__(self, name: str, scorer: Scorer, about: dict[str, Any] | None = None) -> None:
        self.name = name
        self._scorer = scorer
        self._about = about or {}
        self._known: dict[tuple[str, tuple[int, ...], str], float] = {}

    def scores(self, prompts: Sequence[EncodedPrompt], answers: Sequence[Response]) -> list[float]:
        """One score for each prompt and its answer. ValueError for a score that is not a finite number."""
        keys = [(p.prompt.key, tuple(a.ids), a.text) for p, a in zip(prompts, answers, strict=True)]
        new = list({key: i for i, key in enumerate(keys) if key not in self._known}.values())
        if new:
            scores = self._scorer([prompts[i] for i in new], [answers[i] for i in new])
            for i, score in zip(new, scores, strict=True):
                if not math.isfinite(score):
                    raise ValueError(f"the {self.name} score of {answers[i].text!r} is {score}: it cannot be compared")
                self._known[keys[i]] = score
        return [self._known[key] for key in keys]

    def compare(
        self, prompts: Sequence[EncodedPrompt], first: Sequence[Response], second: Sequence[Response]
    ) -> Verdicts:
        """The higher score wins."""
        return Verdicts([*outcomes(self.scores(prompts, first), self.scores(prompts, second))])

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **self._about, "scored": len(self._known)}

    def close(self) -> None:
        """Nothing to free."""


def gold_judge(gold: Gold) -> ScoreJudge:
    """An exact score of (prompt, response), which raises KeyError for an unknown prompt."""

    def score(prompts: list[EncodedPrompt], answers: list[Response]) -> list[float]:
        pairs = zip(prompts, answers, strict=True)
        return [float(gold(prompt_text(prompt.prompt), answer.text)) for prompt, answer in pairs]

    return ScoreJudge("gold", score)


def reward_judge(model: SharedModel, micro_batch_size: int, stage: str) -> ScoreJudge:
    """The score that PPO was given.

    model: has the role "reward". stage: the id of the reward stage, for the report.
    """

    @torch.no_grad()
    def score(prompts: list[EncodedPrompt], answers: list[Response]) -> list[float]:
        batch = Sequences(
            *response_batch([p.prompt_ids for p in prompts], [a.ids for a in answers], pad_id(model.tokenizer))
        ).to(model.device)
        with model.role("reward"):
            scores: list[float] = in_micro_batches(
                lambda part: response_scores(model, part), batch, micro_batch_size
            ).tolist()
        return scores

    return ScoreJudge("reward", score, {"stage": stage, "offset": model.score_offset("reward")})


def outcomes(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """For each prompt: 1 where the first score is higher, 0 where the second is, 0.5 where they are the same."""
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    return [0.5 if abs(gap) <= SAME_SCORE else float(gap > 0) for gap in gaps]


def prompt_text(prompt: Prompt) -> str:
    """The part of a prompt that a gold score reads: the user's last message."""
    return prompt.messages[-1].content


def first_unknown(gold: Gold, prompts: Sequence[Prompt]) -> Prompt | None:
    """The first prompt that the gold score does not apply to, for which it raises KeyError; None if there is none."""
    for prompt in prompts:
        try:
            gold(prompt_text(prompt), "")
        except KeyError:
            return prompt
    return None
