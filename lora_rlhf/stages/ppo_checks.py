"""Whether PPO's first update starts from the rollout's policy, checked before anything is applied.

Two comparisons. One micro-batch of the rollout is scored again, the same rows in the same grouping, by the pass that
the update uses: the same kernels run, so that hardly any difference is allowed. Live dropout, another adapter or a
shifted mask shows here. The first update itself groups other rows, which in 16 bits moves single tokens far: there the
mean counts, it warns, and ends the run only where it is far beyond rounding.
"""

from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.precision import expected_rounding, largest_difference
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system import workers

if TYPE_CHECKING:
    from lora_rlhf.stages.ppo import Rollout

BROKEN = 4  # times the mean that rounding makes


@torch.no_grad()
def check_rollout(model: SharedModel, rollout: "Rollout", temperature: float, reference_is_policy: bool) -> None:
    """RuntimeError unless policy and reference give a micro-batch the log-probs of the rollout, before any update."""
    rows = workers.share_of_process(range(len(rollout.sequences)))
    rows = [rows[index] for index in rollout.sequences.index(rows).micro_batches(rollout.scored_together)[0]]
    sequences, limit = rollout.sequences.index(rows), expected_rounding(model).same_rows
    with model.role("policy", training=True):  # live dropout would show
        logprobs = response_logprobs(model, sequences, temperature, needs_entropy=False)[0]
    gap = max(workers.gather([largest_difference(logprobs, rollout.old_logprobs[rows])]))
    if gap > limit:
        raise RuntimeError(
            f"the update computes log-probabilities {gap:.2g} nats off the rollout's on the same rows, before anything "
            "was learned: live dropout, another adapter, or a mask in another place"
        )
    drift = max(workers.gather([largest_difference(logprobs, rollout.ref_logprobs[rows])]))
    if reference_is_policy and drift > limit:
        raise RuntimeError(f"policy and reference differ by {drift:.2g} nats before the first update")


def check_first_update(model: SharedModel, gap: float) -> None:
    """Warns where the first update's log-probs are `gap` nats off the rollout's on average, more than by rounding.

    RuntimeError where that is so much that rounding cannot be the cause.
    """
    usual = expected_rounding(model).mean
    if gap > BROKEN * usual:
        raise RuntimeError(
            f"the first update sees log-probabilities {gap:.2g} nats off the rollout's on average; rounding makes "
            f"about {usual:g}"
        )
    if gap > usual:
        tqdm.write(
            f"the first update's log-probabilities are {gap:.2g} nats off the rollout's on average, by rounding; usual "
            f"is up to {usual:g}. Clipping, approx_kl and max_ratio see this noise: a larger micro_batch_size changes "
            "it, --compute_dtype float32 at the SFT stage ends it"
        )
