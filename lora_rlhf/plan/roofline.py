"""A simple roofline: the seconds of a stage's passes on a card of a given bandwidth and speed, within a factor of 2.

A pass takes as long as its arithmetic and its memory traffic, or as the launching of its kernels, which Python does one
by one, whichever is longer. Nothing here was fitted to a GPU; the shares below are what such code usually reaches.
"""

from dataclasses import dataclass

from lora_rlhf.model.skeleton import Counts
from lora_rlhf.plan.cards import Card
from lora_rlhf.plan.dryrun import Passes
from lora_rlhf.plan.memory import MOMENTS, Setting, adapter, base_quantized

ARITHMETIC, TRAFFIC = 0.45, 0.7  # shares of a card's FLOP/s and bandwidth that are reached
LAUNCH = 8e-6  # seconds an operation, from Python to the card
TOUCHES = 3  # times that a byte kept of an activation is moved while it is made
UNPACK = 0.5 + 2 + 2  # bytes a weight: read in 4 bits, written and read again in 16
UNCERTAINTY = 2.0  # a figure is meant from its half to its double


@dataclass(frozen=True)
class IterationSeconds:
    """Seconds of one PPO iteration, by part."""

    rollout: float
    scoring: float
    update: float

    @property
    def total(self) -> float:
        return self.rollout + self.scoring + self.update


def forward(counts: Counts, passes: Passes, card: Card, rows: int) -> float:
    """A pass over `rows` prompts and responses, with the log-probabilities of the responses."""
    tokens = rows * (passes.prompt + passes.response)
    flops = 2 * _weights(counts) * tokens + 2 * counts.hidden_size * counts.vocab_size * rows * passes.response
    activations = passes.training[False]["kept"].at(rows, counts.layers)
    traffic = UNPACK * _weights(counts) + TOUCHES * activations
    launches = passes.operations * LAUNCH
    return max(flops / (card.tflops * 1e12 * ARITHMETIC) + traffic / (card.bandwidth * 1e9 * TRAFFIC), launches)


def training(counts: Counts, passes: Passes, card: Card, rows: int, checkpointing: bool) -> float:
    """Forward and backward. The base gets no gradients, so a backward pass costs as much as a forward pass."""
    return (3 if checkpointing else 2) * forward(counts, passes, card, rows)


def decode_step(counts: Counts, passes: Passes, card: Card, rows: int) -> float:
    """One token for each row; every weight and the whole cache are read once."""
    traffic = base_quantized(counts) + 2 * counts.hidden_size * counts.vocab_size
    traffic += (
        passes.decoding["cache"].at(rows, counts.layers)
        * (passes.prompt + passes.response / 2)
        / (passes.prompt + passes.response)
    )
    flops = 2 * (_weights(counts) + counts.hidden_size * counts.vocab_size) * rows
    launches = passes.operations * LAUNCH
    return max(traffic / (card.bandwidth * 1e9 * TRAFFIC), flops / (card.tflops * 1e12 * ARITHMETIC), launches)


def iteration(counts: Counts, passes: Passes, card: Card, setting: Setting, epochs: int) -> IterationSeconds:
    """PPO's iteration: responses are sampled to full length, scored by each role, and trained on in each epoch."""
    rounds = -(-setting.batch // setting.generation_batch)
    rollout = rounds * (
        forward(counts, passes, card, min(setting.batch, setting.generation_batch))
        + passes.response * decode_step(counts, passes, card, min(setting.batch, setting.generation_batch))
    )
    rows = min(setting.micro_batch, setting.minibatch)
    num_passes = setting.batch / rows
    scoring_pass = forward(counts, passes, card, rows)
    num_scoring_roles = 3 + setting.value_role  # reward, reference, policy, value
    num_trained_roles = 1 + setting.value_role
    steps = epochs * setting.batch / setting.minibatch
    moments = steps * 4 * MOMENTS * adapter(counts, setting.rank) / (card.bandwidth * 1e9 * TRAFFIC)
    update = epochs * num_passes * training(counts, passes, card, rows, setting.checkpointing) + moments
    return IterationSeconds(rollout, num_scoring_roles * num_passes * scoring_pass, num_trained_roles * update)


def step(counts: Counts, passes: Passes, card: Card, setting: Setting) -> float:
    """One optimizer step, on a minibatch, of a stage that trains on data."""
    rows = min(setting.micro_batch, setting.minibatch)
    return setting.minibatch / rows * training(counts, passes, card, rows, setting.checkpointing)


def _weights(counts: Counts) -> float:
    """The weights that every token goes through: those of all linear layers but the LM head."""
    return float(sum(linear.out_features * linear.in_features for linear in counts.linears if linear.adapted))
