"""The seconds of a stage on a card, within a factor of 2: a roofline over the operations that its passes dispatch.

Measured are the operations of the project's own code on tensors without storage (`dryrun.py`), so that what they move
and multiply is counted and not guessed: 4-bit weights, adapters in their dtype, the LM head's chunks. What no operation
shows: where kernels are started from Python, a pass takes at least the time of starting them.
"""

from dataclasses import dataclass

from lora_rlhf.model.forward import SCORED_AT_ONCE
from lora_rlhf.model.skeleton import Counts
from lora_rlhf.plan.cards import Card
from lora_rlhf.plan.dryrun import Passes
from lora_rlhf.plan.memory import MOMENTS, Setting, role_bytes
from lora_rlhf.plan.work import TRAFFIC, Cost

UNCERTAINTY = 2.0  # the true time may be this factor shorter or longer
MERGE = 0.5 + 4 + 4 + 2  # bytes a weight: read in 4 bits, added up with the adapter in float32, written in 16


@dataclass(frozen=True)
class IterationSeconds:
    """Seconds of one PPO iteration, by part."""

    rollout: float
    scoring: float
    update: float

    @property
    def total(self) -> float:
        return self.rollout + self.scoring + self.update


@dataclass(frozen=True)
class Roofline:
    """The passes of a model on a card. `merges`: whether there is memory for merged weights in a rollout."""

    counts: Counts
    passes: Passes
    card: Card
    merges: bool = False

    def pass_cost(self, name: str, rows: int) -> Cost:
        """A pass of `Passes.work` with that many rows."""
        return self.passes.work[name].cost(rows, self.counts.layers, self.card)

    def head_cost(self, rows: int, name: str = "logprobs") -> Cost:
        """One of the heads for log-probabilities of `Passes.head_work`, for the responses of that many rows."""
        chunks = rows * self.passes.response / self.passes.chunk_tokens
        return self.passes.head_work[name].cost(1, self.card) * chunks

    def scoring_seconds(self, rows: int, head: str | None = "logprobs") -> float:
        """A pass without gradients, with such a head or none."""
        cost = self.pass_cost("scoring", rows)
        return (cost + self.head_cost(rows, head) if head else cost).eager_seconds

    def training_seconds(self, rows: int, checkpointing: bool, has_logprobs: bool = True) -> float:
        """A forward and a backward pass."""
        cost = self.pass_cost("training again" if checkpointing else "training", rows)
        return (cost + self.head_cost(rows, "logprobs, gradients") if has_logprobs else cost).eager_seconds

    def step_seconds(self, rows: int, merged: bool) -> float:
        """A token for each row in the middle of the responses: replayed as a CUDA graph where the model allows."""
        cost = self.pass_cost("merged step" if merged else "step", rows)
        cost += self.passes.head_work["drawing"].cost(rows, self.card)
        return cost.seconds if self.passes.is_static else cost.eager_seconds

    def rollout_seconds(self, rows: int) -> float:
        """Responses of full length to that many prompts."""
        steps = self.passes.response * self.step_seconds(rows, merged=False)
        if self.merges:
            weights = sum(one.out_features * one.in_features for one in self.counts.linears if one.adapted)
            merge = MERGE * weights / (self.card.bandwidth * 1e9 * TRAFFIC)
            steps = min(steps, merge + self.passes.response * self.step_seconds(rows, merged=True))
        return self.pass_cost("prefill", rows).eager_seconds + steps

    def iteration_seconds(self, setting: Setting, num_epochs: int) -> IterationSeconds:
        """A PPO iteration: sampling of full-length responses, scoring by each role, and training epochs."""
        slots = min(setting.batch, setting.generation_batch)
        rows = min(setting.micro_batch, setting.minibatch)
        num_passes, scored = setting.batch / rows, min(SCORED_AT_ONCE * setting.micro_batch, setting.batch)
        # reference and policy, the reward, and values of all but the first minibatch, which training gives
        values = setting.value_role * (1 - setting.minibatch / setting.batch)
        scoring = self.scoring_seconds(scored) + self.scoring_seconds(scored, "logprobs, entropy")
        scoring += (1 + values) * self.scoring_seconds(scored, head=None)
        update = self.training_seconds(rows, setting.checkpointing)
        if setting.value_role:
            update += self.training_seconds(rows, setting.checkpointing, has_logprobs=False)
        steps = num_epochs * setting.batch / setting.minibatch * (1 + setting.value_role)
        return IterationSeconds(
            -(-setting.batch // slots) * self.rollout_seconds(slots),
            setting.batch / scored * scoring,
            num_epochs * num_passes * update + steps * self._optimizer_seconds(setting.rank),
        )

    def step_of_data_seconds(self, setting: Setting, has_logprobs: bool) -> float:
        """One optimizer step on a minibatch, in a stage that trains on data."""
        rows = min(setting.micro_batch, setting.minibatch)
        passes = setting.minibatch / rows * self.training_seconds(rows, setting.checkpointing, has_logprobs)
        return passes + self._optimizer_seconds(setting.rank)

    def step_of_pairs_seconds(self, setting: Setting) -> float:
        """One optimizer step of `dpo`, which reads the policy's layers twice where the batch is read in parts."""
        assert self.passes.pairs is not None
        rows = min(setting.micro_batch, setting.minibatch)
        times_read = 2 if rows < setting.minibatch else 1
        layers = self.training_seconds(rows, setting.checkpointing, has_logprobs=False)
        layers += times_read * self.scoring_seconds(rows, head=None)
        heads = self.passes.pairs.work.cost(1, self.card).eager_seconds
        return setting.minibatch / rows * layers + heads + self._optimizer_seconds(setting.rank)

    def _optimizer_seconds(self, rank: int) -> float:
        """AdamW reads weights, gradients and moments, and writes weights and moments."""
        return (3 + 2 * MOMENTS) * role_bytes(self.counts, rank) / (self.card.bandwidth * 1e9 * TRAFFIC)
