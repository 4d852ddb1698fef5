"""Common to both generation engines: a response, the role that gives it, and the drawing of its tokens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_rlhf.model.mixed import Mixture


@dataclass(frozen=True)
class Response:
    """One sampled response. `ids` ends with the stop token if `finished`; else the token limit cut it.

    `text` is the decoded ids without the stop token; empty if they were not decoded. `logprobs`: of each id, in nats,
    as the engine computed them. Rounding depends on the engine, so that they do not count in a comparison.
    """

    ids: list[int]
    finished: bool
    text: str = ""
    logprobs: list[float] = field(default_factory=list, compare=False, repr=False)


@dataclass(frozen=True)
class Drawing:
    """The settings of sampling: up to `max_new_tokens` from softmax(logits / temperature), or to one of `stop_ids`.

    top_p: see `draw_tokens`.
    """

    max_new_tokens: int
    temperature: float
    stop_ids: list[int]
    top_p: float = 1.0


@dataclass(frozen=True)
class RowRoles:
    """The role that answers each prompt, as its index in the roles of the active mixture.

    Without a mixture a single role is active and answers all prompts.
    """

    indices: list[int]
    mixture: Mixture | None = None

    def assign(self, indices: Tensor) -> None:
        """Call it before each forward pass, with the index of each row's role: (B,)."""
        if self.mixture is not None:
            self.mixture.assign(indices)


def draw_uniforms(seed: int, count: int) -> Tensor:
    """The random numbers of one response, one a token: (count,) float64, on the CPU."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_tokens(logits: Tensor, temperature: float, numbers: Tensor, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability: logits (n, V), numbers (n,) in [0, 1) -> (n,), (n,) float32.

    Inverts the cumulative distribution at the row's number, which needs one random number a row instead of one for each
    token of the vocabulary. The sum is in float64: over 100,000 tokens float32 would lose the rare ones. Temperature 0
    takes the most probable token, with a log-probability of 0. top_p below 1 draws from the fewest most probable tokens
    that have this probability together (Holtzman et al. 2020, arXiv 1904.09751, section 4); the log-probability is that
    among all tokens.
    """
    if temperature == 0:
        return logits.argmax(dim=-1), logits.new_zeros(len(logits), dtype=torch.float32)
    probs = (logits if temperature == 1 else logits / temperature).softmax(dim=-1)
    kept = probs if top_p >= 1 else _most_probable(probs, top_p)
    cumulative = kept.cumsum(dim=-1, dtype=torch.float64)
    # right=True steps over tokens of probability 0, whose cumulative value is that of the token before.
    target = numbers.unsqueeze(1) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[1] - 1)
    return token.squeeze(1), probs.gather(1, token).squeeze(1).log()


def _most_probable(probs: Tensor, top_p: float) -> Tensor:
    """The probabilities (n, V) of the fewest most probable tokens that have `top_p` together; 0 for the others."""
    ordered, order = probs.sort(dim=-1, descending=True)
    probability_before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered
    return torch.zeros_like(probs).scatter_(1, order, torch.where(probability_before < top_p, ordered, 0.0))
