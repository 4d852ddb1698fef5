"""What a whole response is worth to PPO: the reward role's score, a Python function's, or a weighted sum of both."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.model.forward import Sequences, apply_in_micro_batches, response_scores
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.system.errors import UserError

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


@dataclass(frozen=True)
class ResponseScorer:
    """Scores responses. A score is no reward yet: that is what `algo/advantages.py` makes of it, token by token."""

    model_weight: float = 1.0
    function: RewardFunction | None = None
    function_weight: float = 1.0
    clip: float | None = None
    missing_eos_score: float | None = None  # of a response that did not end, in units of the whole score

    @classmethod
    def from_config(cls, config: PPOConfig) -> "ResponseScorer":
        """As the config has it. UserError for a reward function that cannot be imported."""
        function = None if config.reward_function is None else load_function(config.reward_function)
        weight = config.reward_model_weight or config.reward_function_weight
        missing = None if config.missing_eos_score is None else config.missing_eos_score * weight
        return cls(config.reward_model_weight, function, config.reward_function_weight, config.score_clip, missing)

    def scores(
        self, model: SharedModel, sequences: Sequences, prompts: list[str], responses: list[str], batch: AutoBatch
    ) -> Tensor:
        """(B,) float32. UserError when a reward function returns something else than one number per response."""
        total = torch.zeros(len(sequences), device=model.device)
        if self.model_weight:
            with model.role("reward"):
                total = total + self.model_weight * score_in_batches(model, sequences, batch)
        if self.function is not None:
            returned = _to_scores(self.function(prompts, responses), len(responses))
            total = total + self.function_weight * returned.to(model.device)
        return total if self.clip is None else total.clamp(-self.clip, self.clip)


def score_in_batches(model: SharedModel, sequences: Sequences, batch: AutoBatch) -> Tensor:
    """The active role's scores of any number of responses, as many at a time as memory allows: (B,) float32."""
    return batch.run(
        lambda size: apply_in_micro_batches(lambda rows: response_scores(model, rows), sequences, size), "scoring"
    )


def load_function(name: str) -> RewardFunction:
    """The callable that module:function names. UserError where there is none."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"reward_function {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?"
        ) from error
    if not callable(function):
        raise UserError(f"reward_function {name!r} is a {type(function).__name__}, not a function")
    return function


def _to_scores(returned: object, count: int) -> Tensor:
    """What a reward function returned, as (count,) float32 on the CPU."""
    try:
        scores = torch.as_tensor(returned, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(returned).__name__
        raise UserError(f"the reward function returned no list of numbers, but a {kind} ({error})") from error
    if scores.shape != (count,) or not bool(scores.isfinite().all()):
        raise UserError(
            f"the reward function returned {tuple(scores.shape)} values (all finite: {bool(scores.isfinite().all())}), "
            f"expected one finite number for each of {count} responses"
        )
    return scores
