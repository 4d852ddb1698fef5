"""The heads on the backbone's hidden states: the language model's own logits, and the scalar score head."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from lora_rlhf.model.architecture import text_backbone
from lora_rlhf.model.devices import computes_as_gpu
from lora_rlhf.system.errors import UserError

# Weights of the LM head in float32 at a time on a CPU, which has no 16-bit product with a float32 result.
SLICE_NUMBERS = 2**22
SCORE = "score"  # the name that transformers' sequence classifiers use, so that saved reward adapters load there too


def lm_logits(causal: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The model's own logits: hidden (..., H) -> (..., V), in float32 even if the base is in 16 bits.

    A logit of 16 to 32 in bfloat16 is a multiple of 0.125: it would cause most of the noise of a 16-bit model's
    log-probabilities. Includes the operations of some families after the LM head: Cohere multiplies by `logit_scale`,
    Granite divides by `logits_scaling`, Gemma 2 and 3 cap the logits at `final_logit_softcapping`.
    """
    head = causal.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16):
        logits: Tensor = _Float32Product.apply(hidden, head.weight)
        logits = logits if head.bias is None else logits + head.bias
    else:
        logits = head(hidden)
    config = causal.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


class _Float32Product(torch.autograd.Function):
    """hidden (..., H) times the transpose of a frozen 16-bit weight (V, H), in float32: (..., V)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.dtype = weight, hidden.dtype
        rows = hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype)
        return _float32_product(rows, weight).view(*hidden.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient.to(ctx.weight.dtype) @ ctx.weight).to(ctx.dtype), None


def _float32_product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (N, H) times the transpose of weight (V, H), in float32: (N, V)."""
    if computes_as_gpu(rows):
        return torch.mm(rows, weight.T, out_dtype=torch.float32)
    step, rows = max(1, SLICE_NUMBERS // weight.shape[1]), rows.float()
    product = rows.new_empty((rows.shape[0], weight.shape[0]))
    for start in range(0, weight.shape[0], step):
        torch.mm(rows, weight[start : start + step].float().T, out=product[:, start : start + step])
    return product


@torch.no_grad()
def check_logits(causal: PreTrainedModel) -> None:
    """UserError unless `lm_logits` of the backbone's output equals the logits that the model itself returns."""
    hidden: list[Tensor] = []
    hook = text_backbone(causal).register_forward_hook(lambda _module, _inputs, output: hidden.append(output[0]))
    try:
        ids = torch.arange(4, device=causal.device).unsqueeze(0)
        expected = causal(input_ids=ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    logits = lm_logits(causal, hidden[0]).float()
    tolerance = 1e-3 if causal.dtype == torch.float32 else 1e-2  # the model's own logits are rounded to 16 bits
    if not torch.allclose(logits, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()):
        raise UserError(
            f"{type(causal).__name__} turns hidden states into logits in a way that is not known here (largest "
            f"difference {(logits - expected).abs().max().item():.3g}); log-probabilities would be wrong. Use another "
            "base."
        )


def attach_score_head(causal: PreTrainedModel) -> None:
    """Gives the causal model a frozen `score` layer, which PEFT copies for each adapter with a head.

    It is attached after the quantized load, so that it stays float32; without a bias, as in transformers' classifiers.
    """
    width = causal.get_input_embeddings().embedding_dim
    setattr(causal, SCORE, nn.Linear(width, 1, bias=False, dtype=torch.float32, device=causal.device))
    causal.score.requires_grad_(False)


def find_score_head(causal: PreTrainedModel, adapter: str) -> nn.Linear | None:
    """The score head of an adapter; None if it has none."""
    # PEFT wraps the plain layer for the first adapter that has a head.
    if isinstance(causal.score, nn.Linear) or adapter not in causal.score.modules_to_save:
        return None
    return causal.score.modules_to_save[adapter]


def init_score_head(head: nn.Linear) -> None:
    """Draws the weights from N(0, 1/sqrt(H+1)): scores of variance about 1 (Ziegler et al. 2019, arXiv 1909.08593)."""
    nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
