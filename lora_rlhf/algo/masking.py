"""Statistics over the counted cells of a padded tensor.

A mask is bool, has the shape of the tensor and is True for cells that count. It is applied by `torch.where`, never by
multiplication: `0 * nan` is `nan`, so a value in the padding could change the result.
"""

import torch
from torch import Tensor


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with 0 in masked cells; both of one shape.

    Use it on the *inputs* of a formula, not on the result: the gradient of a masked cell is 0 here, but an `exp` or a
    product before it would turn this into `0 * nan`.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is torch.bool (True = counts), got {mask.dtype}")
    if mask.shape != x.shape:
        raise ValueError(f"mask of shape {tuple(mask.shape)} for a tensor of shape {tuple(x.shape)}")
    return torch.where(mask, x, 0.0)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of the counted cells, a scalar; 0 if no cell counts."""
    return zero_masked(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Sum of the counted cells over `denominator`, a scalar. Raises ValueError without counted cells or denominator.

    The denominator defaults to the number of counted cells. Pass the count of the *whole minibatch* when `x` is one
    micro-batch of it: the results then add up to exactly the minibatch's mean.
    """
    return masked_sum(x, mask) / (_count_cells(mask) if denominator is None else denominator)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the counted cells (over their number), a scalar. Raises ValueError without any."""
    x = zero_masked(x, mask)
    return masked_mean((x - masked_mean(x, mask)).square(), mask)


def masked_normalize(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """The counted cells shifted and scaled to mean 0, sd 1; 0 where masked. For advantages."""
    x = zero_masked(x, mask)
    inverse_sd = (masked_var(x, mask) + eps).rsqrt()
    return zero_masked((x - masked_mean(x, mask)) * inverse_sd, mask)


def masked_rescale(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """The counted cells scaled to sd 1 without a change of their mean; 0 where masked. For rewards.

    Centring would change the goal of the policy (a constant on every token is a reward for length); scaling does not.
    The code of Ziegler et al., arXiv 1909.08593, whitens rewards this way and advantages by `masked_normalize`.
    """
    return masked_normalize(x, mask, eps) + zero_masked(masked_mean(x, mask).expand_as(x), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns), a scalar: 1 perfect, 0 no better than a constant, below 0 worse.

    NaN if all returns are equal.
    """
    variance = masked_var(returns, mask)
    return torch.where(variance > 0, 1 - masked_var(returns - values, mask) / variance, torch.nan)


def require_prefix(mask: Tensor) -> None:
    """Raises ValueError unless every row of the (B, R) mask is True up to some cell and then False (right-padded)."""
    resumes = (mask[:, 1:] & ~mask[:, :-1]).any(dim=1)
    if resumes.any():
        row = int(resumes.nonzero()[0])
        raise ValueError(f"a response mask is True and then False; row {row} turns True again: is it left-padded?")


def _count_cells(mask: Tensor) -> int:
    """The number of True cells. Raises ValueError if there is none."""
    count = int(mask.sum())
    if count == 0:
        raise ValueError("the mask has no True cell: there is nothing to average")
    return count
