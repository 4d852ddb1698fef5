"""Whether a model separates the documents in one row: without that, packing is wrong."""

import torch
from torch import Tensor

from lora_rlhf.model.precision import expected_rounding
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.system.errors import UserError

PROBE_LENGTHS = (13, 7, 24, 2)  # of the probe's documents: all different, and none a multiple of a kernel's block


@torch.no_grad()
def measure_packing_leak(model: SharedModel) -> float:
    """The largest difference, in nats, that packing makes to the log-probability of any token of a document.

    The base reads four short documents of random ids one by one, and then packed into one row, in which only the
    positions, which begin at 0 with each document, separate them. Infinite if a log-probability is not a number.
    """
    generator = torch.Generator().manual_seed(0)
    rows = model.config.vocab_size
    documents = [torch.randint(rows, (length,), generator=generator).to(model.device) for length in PROBE_LENGTHS]
    positions = [torch.arange(length, device=model.device) for length in PROBE_LENGTHS]
    with model.role(BASE):
        separate = [_packed_logits(model, *document) for document in zip(documents, positions, strict=True)]
        packed = _packed_logits(model, torch.cat(documents), torch.cat(positions)).split(PROBE_LENGTHS)
    differences = [
        (_next_token_logprobs(packed_logits, ids) - _next_token_logprobs(separate_logits, ids)).abs().max()
        for packed_logits, separate_logits, ids in zip(packed, separate, documents, strict=True)
    ]
    return float(torch.stack(differences).nan_to_num(nan=torch.inf).max())


def require_no_leak(model: SharedModel) -> None:
    """UserError if a packed document would see the document before it."""
    leak, tolerance = measure_packing_leak(model), expected_rounding(model).few_tokens
    if leak > tolerance:
        raise UserError(
            f"base model {model.base.spec.name!r}: {type(model.causal).__name__} does not keep packed documents apart: "
            f"packing changes a log-probability by {leak:.2g}, more than {tolerance:g}; train without packing"
        )


def _packed_logits(model: SharedModel, ids: Tensor, positions: Tensor) -> Tensor:
    """(T,) ids and positions -> (T, V) float32. One row without a mask and a cache, as a trainer packs it."""
    return model.causal(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0].float()


def _next_token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """(T, V) logits and (T,) ids -> the log-probability of each token but the first, (T-1,)."""
    return logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
