"""The heads on the backbone's hidden states: the language model's own logits, and the scalar score head."""

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_rlhf.system.errors import UserError

SCORE = "score"  # the name that transformers' sequence classifiers use, so that saved reward adapters load there too


def lm_logits(causal: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The model's own logits: hidden (..., H) -> (..., V), in the compute dtype.

    Includes what some families do after the LM head: Cohere multiplies by `logit_scale`, Granite divides by
    `logits_scaling`, Gemma 2 and 3 cap the logits at `final_logit_softcapping`.
    """
    logits = causal.get_output_embeddings()(hidden)
    config = causal.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_logits(causal: PreTrainedModel) -> None:
    """UserError unless `lm_logits` of the backbone's output equals the logits that the model itself returns."""
    hidden: list[Tensor] = []
    hook = causal.base_model.register_forward_hook(lambda _module, _inputs, output: hidden.append(output[0]))
    try:
        ids = torch.arange(4, device=causal.device).unsqueeze(0)
        expected = causal(input_ids=ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    logits = lm_logits(causal, hidden[0]).float()
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise UserError(
            f"{type(causal).__name__} turns hidden states into logits in a way that is not known here (largest "
            f"difference {(logits - expected).abs().max().item():.3g}); log-probabilities would be wrong. Use another "
            "base."
        )


def attach_score(causal: PreTrainedModel) -> None:
    """Give the causal model a frozen `score` layer for PEFT to copy, once per adapter that has a head.

    Attached after the quantized load, so that it stays float32; without a bias, as in transformers' own classifiers.
    """
    width = causal.get_input_embeddings().embedding_dim
    setattr(causal, SCORE, nn.Linear(width, 1, bias=False, dtype=torch.float32, device=causal.device))
    causal.score.requires_grad_(False)


def score_of(causal: PreTrainedModel, adapter: str) -> nn.Linear | None:
    """The score head of one adapter; None when it has none."""
    # PEFT wraps the plain layer for the first adapter that has a head.
    if isinstance(causal.score, nn.Linear) or adapter not in causal.score.modules_to_save:
        return None
    return causal.score.modules_to_save[adapter]


def init_score(head: nn.Linear) -> None:
    """N(0, 1/sqrt(H+1)): scores of variance about 1 at the start (Ziegler et al. 2019, arXiv 1909.08593)."""
    nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
