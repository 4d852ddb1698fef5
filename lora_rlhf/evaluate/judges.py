"""Who decides which response is better: an exact gold score that training never saw, or the run's own reward model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from lora_rlhf.config import EvaluateConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Prompt
from lora_rlhf.errors import UserError
from lora_rlhf.evaluate.generation import Answer, sequences_of
from lora_rlhf.evaluate.lineage import RunStages
from lora_rlhf.model.forward import in_micro_batches, response_scores
from lora_rlhf.model.shared import SharedModel

GOLD, REWARD = "gold", "reward_score"

Gold = Callable[[str, str], float]
Scorer = Callable[[list[EncodedPrompt], list[Answer]], list[float]]


@dataclass
class Judge:
    """Scores responses, higher is better. `name` is "gold" or "reward_score".

    The same response to the same prompt is scored once and keeps its score, whoever wrote it: a score that varied with
    its batch in the last digit would make a win of a tie.
    """

    name: str
    scorer: Scorer
    _known: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)

    def __call__(self, prompts: Sequence[EncodedPrompt], answers: Sequence[Answer]) -> list[float]:
        """One score for each prompt and its answer. ValueError for a score that is not a finite number."""
        keys = [(prompt.prompt.key, tuple(answer.ids)) for prompt, answer in zip(prompts, answers, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            scores = self.scorer([prompts[i] for i in new], [answers[i] for i in new])
            for i, score in zip(new, scores, strict=True):
                if not math.isfinite(score):
                    raise ValueError(f"the {self.name} of {answers[i].text!r} is {score}: it cannot be compared")
                self._known[keys[i]] = score
        return [self._known[key] for key in keys]


def choose_judge(config: EvaluateConfig, stages: RunStages, gold: Gold | None, prompts: Sequence[Prompt]) -> str:
    """The name of the judge, before anything is loaded. UserError when the one asked for cannot judge these prompts."""
    unknown = None if gold is None else _first_unknown(gold, prompts)
    gold_applies = gold is not None and unknown is None
    if config.judge == "gold" and not gold_applies:
        why = "there is none here" if unknown is None else f"it does not know the prompt {prompt_text(unknown)!r}"
        raise UserError(f"--judge gold: {why}; use --judge reward, or the tiny world's prompts")
    if gold_applies and config.judge != "reward":
        return GOLD
    if stages.reward is None:
        raise UserError(
            f"{config.run}: no reward stage there to judge by, and no gold score for these prompts; "
            f"run `lora-rlhf reward --run {config.run}` first"
        )
    return REWARD


def make_judge(name: str, config: EvaluateConfig, stages: RunStages, gold: Gold | None, model: SharedModel) -> Judge:
    """The judge that `choose_judge` named."""
    if name == GOLD:
        assert gold is not None
        return Judge(GOLD, _gold_scorer(gold))
    assert stages.reward is not None
    offset = float(stages.reward.manifest["results"]["offset"])
    return Judge(REWARD, _reward_scorer(model, offset, config.micro_batch_size))


def prompt_text(prompt: Prompt) -> str:
    """What a gold score is given of a prompt: the user's last message."""
    return prompt.messages[-1].content


def _gold_scorer(gold: Gold) -> Scorer:
    def score(prompts: list[EncodedPrompt], answers: list[Answer]) -> list[float]:
        pairs = zip(prompts, answers, strict=True)
        return [float(gold(prompt_text(prompt.prompt), answer.text)) for prompt, answer in pairs]

    return score


def _reward_scorer(model: SharedModel, offset: float, micro_batch_size: int) -> Scorer:
    """The score that PPO was given: the head's output less the offset that centres the demonstrations."""

    @torch.no_grad()
    def score(prompts: list[EncodedPrompt], answers: list[Answer]) -> list[float]:
        batch = sequences_of(model, prompts, answers)
        with model.role("reward"):
            raw = in_micro_batches(lambda part: response_scores(model, part), batch, micro_batch_size)
        return (raw - offset).tolist()

    return score


def _first_unknown(gold: Gold, prompts: Sequence[Prompt]) -> Prompt | None:
    """The first prompt for which the gold score raises KeyError, its way of saying that it does not apply."""
    for prompt in prompts:
        try:
            gold(prompt_text(prompt), "")
        except KeyError:
            return prompt
    return None
