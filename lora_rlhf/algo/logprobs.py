"""Log-probabilities of given tokens, and entropies, from logits or straight from hidden states.

Always in float32 or better: bfloat16 keeps three digits, and a policy ratio is the exponential of a small difference.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log softmax(logits)[ids]: logits (..., V), ids (...) -> (...), float32 (float64 for float64 logits)."""
    return _select(_log_softmax(logits), ids)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats: (..., V) -> (...). A logit of -inf is a token that cannot be drawn."""
    return _entropy(_log_softmax(logits))


def chunked_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    ids: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = 256,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs(head(hidden) / temperature, ids)` and the entropy, without ever holding the (N, V) logits.

    hidden (N, H), ids (N,) -> logprobs (N,), entropy (N,); no gradient flows through the entropy. The result is exact.
    At a vocabulary of 152k the logits of 1,000 tokens take 0.6 GB, and log-softmax and its gradient as much each. Here
    `chunk_tokens` rows exist at a time, in the backward pass too: each chunk is checkpointed, so that its logits are
    dropped after the forward and computed again when its gradient is due. `head` (H -> V) must be deterministic.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if hidden.ndim != 2 or ids.shape != hidden.shape[:1]:
        raise ValueError(f"expected hidden (N, H) and ids (N,), got {tuple(hidden.shape)} and {tuple(ids.shape)}")

    def one_chunk(hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = _log_softmax(head(hidden), temperature)  # (chunk, V), the only wide tensors
        return _select(log_probs, ids), _entropy(log_probs.detach())

    pairs = zip(hidden.split(chunk_tokens), ids.split(chunk_tokens), strict=True)
    chunks = [checkpoint(one_chunk, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
    logprobs, entropies = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()  # before dividing: bfloat16 would round again
    return (wide / temperature).log_softmax(dim=-1)


def _select(log_probs: Tensor, ids: Tensor) -> Tensor:
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _entropy(log_probs: Tensor) -> Tensor:
    # The clamp makes p log p = 0 at p = 0, where 0 * -inf would be nan.
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(dim=-1)
