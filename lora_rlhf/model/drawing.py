"""Common to both generation engines: a response, the role that gives it, and the drawing of its tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_rlhf.model.mixed import Mixture


@dataclass(frozen=True)
class Response:
    """One sampled response. `ids` ends with the stop token if `finished`; else the token limit cut it.

    `text` is the decoded ids without the stop token; empty if they were not decoded.
    """

    ids: list[int]
    finished: bool
    text: str = ""


@dataclass(frozen=True)
class Drawing:
    """The settings of sampling: up to `max_new_tokens` from softmax(logits / temperature), or to one of `stop_ids`."""

    max_new_tokens: int
    temperature: float
    stop_ids: list[int]


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


def draw_tokens(logits: Tensor, temperature: float, numbers: Tensor) -> Tensor:
    """One token a row: inverts the cumulative distribution at a uniform number. logits (n, V), numbers (n,) -> (n,).

    It needs one random number a row instead of one for each token of the vocabulary. The sum is in float64: over
    100,000 tokens float32 would lose the rare ones. Temperature 0 takes the most probable token.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits / temperature).softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # right=True steps over tokens of probability 0, whose cumulative value is that of the token before.
    target = numbers.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
