"""A simple roofline: the seconds of a stage's passes on a card of a given bandwidth and speed, within a factor of 2.

The time of a pass is the longer of two times: that of its arithmetic and memory traffic, and that of launching its
kernels from Python. The shares below are usual for such code and were not fitted to a GPU.
"""

from dataclasses import dataclass

from lora_rlhf.model.skeleton import Counts
from lora_rlhf.plan.cards import Card
from lora_rlhf.plan.dryrun import Passes
from lora_rlhf.plan.memory import MOMENTS, Setting, quantized_base_bytes, role_bytes

ARITHMETIC, TRAFFIC = 0.45, 0.7  # shares of a card's FLOP/s and bandwidth that code usually reaches
LAUNCH = 8e-6  # seconds per operation, to launch its kernel from Python
TOUCHES = 3  # memory accesses for each byte of a saved activation
UNPACK = 0.5 + 2 + 2  # bytes per weight: read in 4 bits, written and read again in 16 bits
UNCERTAINTY = 2.0  # the true time may be this factor shorter or longer


@dataclass(frozen=True)
class IterationSeconds:
    """Seconds of one PPO iteration, by part."""

    rollout: float
    scoring: float
    update: float

    @property
    def total(self) -> float:
        return self.rollout + self.scoring + self.update


def forward_seconds(counts: Counts, passes: Passes, card: Card, rows: int) -> float:
    """Seconds of a forward pass over `rows` prompts and responses, with the log-probabilities of the responses."""
    tokens = rows * (passes.prompt + passes.response)
    flops = (
        2 * _num_layer_weights(counts) * tokens + 2 * counts.hidden_size * counts.vocab_size * rows * passes.response
    )
    activations = passes.training[False]["saved"].bytes_at(rows, counts.layers)
    traffic = UNPACK * _num_layer_weights(counts) + TOUCHES * activations
    launches = passes.operations * LAUNCH
    return max(flops / (card.tflops * 1e12 * ARITHMETIC) + traffic / (card.bandwidth * 1e9 * TRAFFIC), launches)


def training_pass_seconds(counts: Counts, passes: Passes, card: Card, rows: int, checkpointing: bool) -> float:
    """Seconds of a forward and a backward pass; with checkpointing, the forward pass runs twice.

    The base gets no gradients, so a backward pass takes as long as a forward pass.
    """
    return (3 if checkpointing else 2) * forward_seconds(counts, passes, card, rows)


def decode_step_seconds(counts: Counts, passes: Passes, card: Card, rows: int) -> float:
    """Seconds of drawing one token for each row, which reads every weight and the whole cache once."""
    traffic = quantized_base_bytes(counts) + 2 * counts.hidden_size * counts.vocab_size
    traffic += (
        passes.decoding["cache"].bytes_at(rows, counts.layers)
        * (passes.prompt + passes.response / 2)
        / (passes.prompt + passes.response)
    )
    flops = 2 * (_num_layer_weights(counts) + counts.hidden_size * counts.vocab_size) * rows
    launches = passes.operations * LAUNCH
    return max(traffic / (card.bandwidth * 1e9 * TRAFFIC), flops / (card.tflops * 1e12 * ARITHMETIC), launches)


def iteration_seconds(
    counts: Counts, passes: Passes, card: Card, setting: Setting, num_epochs: int
) -> IterationSeconds:
    """Seconds of a PPO iteration: sampling of full-length responses, scoring by each role, and training epochs."""
    num_generation_batches = -(-setting.batch // setting.generation_batch)
    rollout = num_generation_batches * (
        forward_seconds(counts, passes, card, min(setting.batch, setting.generation_batch))
        + passes.response * decode_step_seconds(counts, passes, card, min(setting.batch, setting.generation_batch))
    )
    rows = min(setting.micro_batch, setting.minibatch)
    num_passes = setting.batch / rows
    scoring_pass_seconds = forward_seconds(counts, passes, card, rows)
    num_scoring_roles = 3 + setting.value_role  # reward, reference, policy, value
    num_trained_roles = 1 + setting.value_role
    steps = num_epochs * setting.batch / setting.minibatch
    moments = steps * 4 * MOMENTS * role_bytes(counts, setting.rank) / (card.bandwidth * 1e9 * TRAFFIC)
    update = (
        num_epochs * num_passes * training_pass_seconds(counts, passes, card, rows, setting.checkpointing) + moments
    )
    return IterationSeconds(rollout, num_scoring_roles * num_passes * scoring_pass_seconds, num_trained_roles * update)


def optimizer_step_seconds(counts: Counts, passes: Passes, card: Card, setting: Setting) -> float:
    """Seconds of one optimizer step on a minibatch, in a stage that trains on data."""
    rows = min(setting.micro_batch, setting.minibatch)
    return setting.minibatch / rows * training_pass_seconds(counts, passes, card, rows, setting.checkpointing)


def _num_layer_weights(counts: Counts) -> float:
    """The number of weights in all linear layers except the LM head."""
    return float(sum(linear.out_features * linear.in_features for linear in counts.linears if linear.adapted))
