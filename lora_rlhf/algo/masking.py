"""Statistics over the cells of a padded tensor that count.

A mask is bool, has the shape of the tensor and is True where a cell counts. It is applied with `torch.where`, never by
multiplying: `0 * nan` is `nan`, so a multiplied mask lets whatever padding holds leak into the result.
"""

import torch
from torch import Tensor


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where the mask is True, 0 elsewhere; both of one shape.

    Sanitise the *inputs* of a formula with it, not the result: the backward pass of `where` sends 0 into a masked cell,
    but an `exp` or a product further upstream would turn that 0 into `0 * nan`.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is torch.bool (True = counts), got {mask.dtype}")
    if mask.shape != x.shape:
        raise ValueError(f"mask of shape {tuple(mask.shape)} for a tensor of shape {tuple(x.shape)}")
    return torch.where(mask, x, 0.0)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of the counted cells, a scalar; 0 when none counts."""
    return zero_masked(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Sum of the counted cells over `denominator`, a scalar. ValueError if nothing counts and no denominator is given.

    The denominator defaults to the number of counted cells. Pass the count of the *whole minibatch* when `x` is one
    micro-batch of it: the results then add up to exactly the minibatch's mean, however its tokens are shared out.
    """
    return masked_sum(x, mask) / (_count(mask) if denominator is None else denominator)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the counted cells (divided by their number), a scalar. ValueError if nothing counts."""
    x = zero_masked(x, mask)
    return masked_mean((x - masked_mean(x, mask)).square(), mask)


def masked_normalize(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """The counted cells shifted and scaled to mean 0, sd 1; 0 where masked. For advantages."""
    x = zero_masked(x, mask)
    inverse_sd = (masked_var(x, mask) + eps).rsqrt()
    return zero_masked((x - masked_mean(x, mask)) * inverse_sd, mask)


def masked_rescale(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """The counted cells scaled to sd 1 around their own mean, which is kept; 0 where masked. For rewards.

    Centring rewards would change what is worth doing (a constant added to every token pays for length); scaling does
    not. The code of Ziegler et al., arXiv 1909.08593, whitens rewards this way and advantages by `masked_normalize`.
    """
    return masked_normalize(x, mask, eps) + zero_masked(masked_mean(x, mask).expand_as(x), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns), a scalar: 1 perfect, 0 no better than a constant, below 0 worse.

    NaN when the returns do not vary, where the question has no answer.
    """
    variance = masked_var(returns, mask)
    return torch.where(variance > 0, 1 - masked_var(returns - values, mask) / variance, torch.nan)


def require_prefix(mask: Tensor) -> None:
    """ValueError unless every row of the (B, R) mask is True for a while and then False (right-padded, no holes)."""
    resumes = (mask[:, 1:] & ~mask[:, :-1]).any(dim=1)
    if resumes.any():
        row = int(resumes.nonzero()[0])
        raise ValueError(f"a response mask is True and then False; row {row} turns True again: is it left-padded?")


def _count(mask: Tensor) -> int:
    count = int(mask.sum())
    if count == 0:
        raise ValueError("the mask has no True cell: there is nothing to average")
    return count
