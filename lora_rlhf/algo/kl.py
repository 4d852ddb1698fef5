"""The distance of the policy from the reference (KL), and its coefficient in the reward.

The estimators follow Schulman, "Approximating KL Divergence" (2020). With tokens drawn from the policy and
`r = ref / policy`, both `k1 = -log r` and `k3 = (r - 1) - log r` have mean KL(policy || reference). k1 may be negative
on a sample and goes into the reward (InstructGPT, arXiv 2203.02155, section 3.5); k3 is never negative, varies
less near 0, and is reported.
"""

import math
from dataclasses import dataclass

from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log policy - log reference at each sampled token, in nats, of any shape; summed over a response, its KL."""
    return logprobs - ref_logprobs


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(r - 1) - log r with r = reference / policy at each sampled token, in nats, >= 0; of any shape."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.expm1() - log_ratio


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n, in nats: the most that the best of n samples can be from the model that they come from.

    Stiennon et al., arXiv 2009.01325, appendix G.3; where scores tie it is less (Beirami et al., arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


@dataclass
class FixedKL:
    """A constant KL coefficient (InstructGPT: 0.02)."""

    coef: float

    def update(self, kl: float, num_episodes: int) -> None:
        """Does nothing: the coefficient is constant."""

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]


@dataclass
class AdaptiveKL:
    """A KL coefficient that steers the KL of a response towards `target` nats (Ziegler et al., arXiv 1909.08593, 2.2).

    An update changes it by at most the share `0.2 * num_episodes / horizon`: a horizon of 10,000 episodes and batches
    of 512 give 1.024 %, so a short run needs a shorter horizon.
    """

    coef: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        if self.target <= 0 or self.horizon <= 0:
            raise ValueError(f"target and horizon must be above 0, got {self.target} and {self.horizon}")

    def update(self, kl: float, num_episodes: int) -> None:
        """Raises the coefficient if the mean KL per response, in nats, was above the target; lowers it if below."""
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL is {kl}: the rollout is broken and must not steer the coefficient")
        if num_episodes > self.horizon:
            raise ValueError(f"the horizon ({self.horizon}) must hold at least one batch of episodes ({num_episodes})")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * num_episodes / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]
