"""Whether PPO's first update starts from the rollout's policy, checked before the policy is updated.

Three comparisons. One micro-batch of the rollout is scored again, the same rows in the same grouping, by the pass that
the update uses: the same kernels run, so that hardly any difference is allowed. Live dropout, another adapter or a
shifted mask shows here. The sampler has other kernels and merged weights, and the first update itself groups other
rows, which in 16 bits moves single tokens far: there the mean counts, it warns, and ends the run only where it is far
beyond rounding. Later iterations with the sampler's log-probabilities compare these with the first update in this way.
"""

import torch
from tqdm import tqdm

from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.precision import FLOAT32, expected_rounding, largest_difference
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.ppo_rollout import Rollout
from lora_rlhf.stages.session import INIT
from lora_rlhf.system import workers

BROKEN = 4  # times the mean that rounding makes


def is_exact(model: SharedModel) -> bool:
    """Whether sampling and training compute the same probabilities but for the last digits of float32."""
    return expected_rounding(model) is FLOAT32


def is_start(model: SharedModel) -> bool:
    """Whether the policy is what it began as: then the KL may be exactly 0, which a sampler's rounding is not."""
    role = INIT if INIT in model.roles else "sft"
    if role not in model.roles:
        return False
    start = dict(model.named_parameters_of(role))
    return all(torch.equal(parameter, start[name]) for name, parameter in model.named_parameters_of("policy"))


def must_score(config: PPOConfig, model: SharedModel) -> bool:
    """Whether the policy's log-probabilities are to be scored in every iteration, and not only in the first one."""
    return config.old_logprobs == "scored" or (config.old_logprobs == "auto" and not is_exact(model))


@torch.no_grad()
def check_rollout(model: SharedModel, rollout: Rollout, temperature: float, reference_is_policy: bool) -> None:
    """RuntimeError unless policy, reference and sampler gave the same log-probs, before any update.

    Policy and reference give a micro-batch of the scored rollout the same again, the sampler all of it on average.
    """
    rows = workers.share_of_process(range(len(rollout.sequences)))
    assert rollout.scored_together is not None
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
    _require_rounding(model, rollout.mismatch().get("rollout/mismatch", 0.0), "the sampler used")


def _require_rounding(model: SharedModel, gap: float, who: str) -> float:
    """What rounding makes on average; RuntimeError where log-probs are `gap` nats off the rollout's, far more."""
    usual = expected_rounding(model).mean
    if gap > BROKEN * usual:
        raise RuntimeError(
            f"{who} log-probabilities {gap:.2g} nats off the rollout's on average; rounding makes about {usual:g}"
        )
    return usual


def check_start(model: SharedModel, gap: float) -> None:
    """Warns where the first update's log-probs are `gap` nats off the rollout's on average, more than by rounding.

    RuntimeError where that is so much that rounding cannot be the cause.
    """
    usual = _require_rounding(model, gap, "the first update sees")
    if gap > usual:
        tqdm.write(
            f"the first update's log-probabilities are {gap:.2g} nats off the rollout's on average, by rounding; usual "
            f"is up to {usual:g}. Clipping, approx_kl and max_ratio see this noise: a larger micro_batch_size changes "
            "it, --compute_dtype float32 at the SFT stage ends it"
        )
