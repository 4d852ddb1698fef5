"""What a whole response is worth: a weighted sum of the scores of the reward role, reward functions and a judge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_rlhf.algo.advantages import step_rewards
from lora_rlhf.configs.scoring import ScoringConfig
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.steps import find_step_ends
from lora_rlhf.model.decode_weights import run_role
from lora_rlhf.model.forward import Sequences, apply_in_micro_batches, response_scores, token_scores
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.rewards.process import RewardFunction, ScoredRow
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.judged import JudgedReward
from lora_rlhf.stages.session import PROCESS

TRIAL = "A response, to try the function."
TRIED = 16  # of the first prompts, on which reward functions are tried before the model is loaded


@dataclass(frozen=True)
class Scores:
    """Scores of b responses. total (b,) float32.

    steps, num_steps: of a process reward, its part of the total token by token (b, R), and how many steps there are
    (b,). parts: of several sources, {name: its scores (b,)}, before weights, NaN where a source does not apply.
    failures: {name of a reward function, or judge: how many responses it failed on}.
    """

    total: Tensor
    parts: dict[str, Tensor]
    failures: dict[str, float]
    steps: Tensor | None = None
    num_steps: Tensor | None = None


@dataclass(frozen=True)
class ProcessReward:
    """A process reward, of the role PROCESS: the text that ends a step, what its steps become, and its weight."""

    step_end: str
    form: str
    weight: float = 1.0

    def rewards(
        self,
        model: SharedModel,
        sequences: Sequences,
        response_ids: Sequence[list[int]],
        batch: AutoBatch,
        has_merged_weights: bool,
    ) -> tuple[Tensor, Tensor]:
        """What each step of the responses is paid, before the weight (b, R), and how many steps there are (b,)."""
        ends = torch.zeros_like(sequences.response_mask)
        for row, ids in enumerate(response_ids):
            ends[row, find_step_ends(model.tokenizer, ids, self.step_end)] = True
        with run_role(model, PROCESS, has_merged_weights):
            logits = score_tokens(model, sequences, ends, batch)
        return step_rewards(logits.sigmoid(), ends, self.form), ends.sum(dim=1)


@dataclass(frozen=True)
class ResponseScorer:
    """Scores responses. A score is no reward yet: that is what `algo/advantages.py` makes of it, token by token."""

    model_weight: float = 1.0
    functions: tuple[RewardFunction, ...] = ()
    judge: JudgedReward | None = None
    process: ProcessReward | None = None
    group_size: int = 1  # responses to a prompt, one after the other
    clip: float | None = None
    missing_eos_score: float | None = None  # of a response that did not end, in units of the whole score

    @classmethod
    def from_config(
        cls, config: PPOConfig, prompts: Sequence[Prompt], process: ProcessReward | None = None
    ) -> "ResponseScorer":
        """As the config has it, with a process reward if there is one.

        UserError for a reward function that cannot be used on some of the prompts.
        """
        functions = open_functions(config, config.reward_failure_score, prompts)
        judge = JudgedReward.from_config(config, config.reward_failure_score, prompts)
        weights = [function.weight for function in functions] + ([judge.weight] if judge else [])
        weights += [process.weight] if process else []
        weight = config.reward_model_weight or sum(map(abs, weights))
        missing = None if config.missing_eos_score is None else config.missing_eos_score * weight
        group_size = config.samples_per_prompt
        return cls(config.reward_model_weight, functions, judge, process, group_size, config.score_clip, missing)

    def scores(
        self,
        model: SharedModel,
        sequences: Sequences,
        prompts: Sequence[EncodedPrompt],
        response_ids: Sequence[list[int]],
        responses: Sequence[str],
        batch: AutoBatch,
        has_merged_weights: bool = False,
    ) -> Scores:
        """The scores of responses, each with prompt, ids and text; with merged weights of the reward role if wanted.

        NoJudgement where the judge is gone.
        """
        total = torch.zeros(len(sequences), device=model.device)
        parts: dict[str, Tensor] = {}
        failures: dict[str, float] = {}
        if self.model_weight:
            with run_role(model, "reward", has_merged_weights):
                scores = score_in_batches(model, sequences, batch)
            total = total + self.model_weight * scores
            if self.functions or self.judge or self.process:
                parts["model"] = scores
        steps = num_steps = None
        if self.process is not None:
            steps, num_steps = self.process.rewards(model, sequences, response_ids, batch, has_merged_weights)
            parts["process"] = steps.sum(dim=1)
            steps = self.process.weight * steps
            total = total + steps.sum(dim=1)
        rows = [
            ScoredRow(to_messages(encoded.prompt.messages), text, ids, encoded.prompt.meta)
            for encoded, ids, text in zip(prompts, response_ids, responses, strict=True)
        ]
        found = [(function.label, function.weight, function.score(rows)) for function in self.functions]
        if self.judge is not None:
            asked = [encoded.prompt for encoded in prompts]
            judged = self.judge.score(asked, responses, self.group_size)
            found.append((self.judge.label, self.judge.weight, judged))
        for label, weight, (values, failures[label]) in found:
            filled = [math.nan if value is None else value for value in values]
            scores = torch.tensor(filled, dtype=torch.float32, device=model.device)
            total = total + weight * torch.where(scores.isnan(), 0.0, scores)
            parts[label] = scores
        total = total if self.clip is None else total.clamp(-self.clip, self.clip)
        return Scores(total, parts, failures, steps, num_steps)

    def close(self) -> None:
        """Frees the judge's memory."""
        if self.judge is not None:
            self.judge.close()


def open_functions(
    config: ScoringConfig, failure_score: float, prompts: Sequence[Prompt]
) -> tuple[RewardFunction, ...]:
    """The config's reward functions, tried on some prompts. UserError for one that cannot be used on them."""
    functions = tuple(
        RewardFunction(choice, config.reward_timeout_s, config.reward_memory_gib, failure_score)
        for choice in config.functions
    )
    rows = [ScoredRow(to_messages(prompt.messages), TRIAL, [0], prompt.meta) for prompt in prompts]
    for function in functions:
        function.try_out(rows)
    return functions


def to_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in TRL's form."""
    return [
        {"role": message.role, "content": message.content}
        | ({"tool_calls": [call.value for call in message.tool_calls]} if message.tool_calls else {})
        for message in messages
    ]


def score_in_batches(model: SharedModel, sequences: Sequences, batch: AutoBatch) -> Tensor:
    """The active role's scores of any number of responses, as many at a time as memory allows: (B,) float32."""
    return batch.run_scoring(
        lambda size: apply_in_micro_batches(lambda rows: response_scores(model, rows), sequences, size)
    )


def score_tokens(model: SharedModel, sequences: Sequences, places: Tensor, batch: AutoBatch) -> Tensor:
    """The active role's scores at the places (B, R) of any number of responses: (B, R) float32, 0 elsewhere."""

    def score(size: int) -> Tensor:
        scores = torch.zeros(places.shape, device=model.device)
        for group in sequences.micro_batches(size):
            scores[group] = token_scores(model, sequences.index(group), places[group])
        return scores

    return batch.run_scoring(score)
