"""Log-probabilities of given tokens, and entropies, from logits or directly from hidden states.

Results are in float32 or float64: a policy ratio is the exponential of a small difference, for which the three digits
of bfloat16 are too few.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log softmax(logits)[ids]: logits (..., V), ids (...) -> (...), float32 (float64 for float64 logits)."""
    return _gather_ids(_log_softmax(logits), ids)


def chunked_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    ids: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = 256,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs(head(hidden) / temperature, ids)` and the entropy, without the (N, V) logits in memory.

    hidden (N, H), ids (N,) -> logprobs (N,), entropy (N,), which is 0 with `entropy=False`; no gradient flows through
    the entropy. The result is exact. At a vocabulary of 152k the logits of 1,000 tokens take 0.6 GB, and log-softmax
    and its gradient as much each. Here only `chunk_tokens` rows exist at a time, also in the backward pass: if hidden
    requires a gradient, d logprob / d hidden is computed by chunks in the forward pass and stored in hidden's size; the
    backward pass multiplies it by the incoming gradient. `head` (H -> V) must be frozen and treat each row alone.
    Raises ValueError if it has trainable parameters.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if hidden.ndim != 2 or ids.shape != hidden.shape[:1]:
        raise ValueError(f"expected hidden (N, H) and ids (N,), got {tuple(hidden.shape)} and {tuple(ids.shape)}")
    if torch.is_grad_enabled() and head(hidden[:0].detach()).requires_grad:
        raise ValueError("the head has trainable parameters, which would get no gradient")
    settings = (temperature, chunk_tokens, entropy)
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        logprobs, entropies, _ = _compute_in_chunks(hidden.detach(), head, ids, *settings, gradient=False)
        return logprobs, entropies
    result: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(hidden, head, ids, settings)
    return result


class _ChunkedLogprobs(torch.autograd.Function):
    """`chunked_logprobs` with a gradient: the forward pass computes it up to a factor for each row."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Callable[[Tensor], Tensor], ids: Tensor, settings: tuple[float, int, bool]
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, gradient = _compute_in_chunks(hidden, head, ids, *settings, gradient=True)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _entropy: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * factor.unsqueeze(1)).to(gradient.dtype), None, None, None


def _compute_in_chunks(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    ids: Tensor,
    temperature: float,
    chunk_tokens: int,
    entropy: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log-probabilities (N,), entropies (N,) and, with `gradient`, d logprob / d hidden (N, H)."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logprobs = torch.empty(ids.shape, dtype=dtype, device=ids.device)
    entropies = torch.zeros_like(logprobs)
    gradients = torch.empty_like(hidden) if gradient else hidden
    for start in range(0, len(ids), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        states = hidden[rows].detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            logits = head(states)
        log_probs = _log_softmax(logits.detach(), temperature)  # (chunk, V), the largest tensor here
        logprobs[rows] = _gather_ids(log_probs, ids[rows])
        if not (entropy or gradient):
            continue
        probs = log_probs.exp() if entropy else log_probs.exp_()
        if entropy:
            entropies[rows] = _entropy_in_place(log_probs, probs)
        del log_probs
        if gradient:
            # that of -temperature * logprob: the sign and the temperature are taken off the smaller gradient of hidden
            logit_gradients = probs.scatter_add_(1, ids[rows].unsqueeze(1), torch.full_like(probs[:, :1], -1))
            (state_gradients,) = torch.autograd.grad(logits, states, logit_gradients.to(logits.dtype))
            gradients[rows] = state_gradients.div_(-temperature)
    return logprobs, entropies, gradients


def _log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()  # before dividing: bfloat16 would round again
    return (wide if temperature == 1 else wide / temperature).log_softmax(dim=-1)


def _gather_ids(log_probs: Tensor, ids: Tensor) -> Tensor:
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _entropy_in_place(log_probs: Tensor, probs: Tensor) -> Tensor:
    # The clamp makes p log p = 0 at p = 0, where 0 * -inf would be nan; nobody needs these log_probs after it.
    return -torch.linalg.vecdot(probs, log_probs.clamp_(min=torch.finfo(log_probs.dtype).min))
