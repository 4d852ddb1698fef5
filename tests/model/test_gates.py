"""Gated MLPs and rotary positions with their own backward passes: transformers' results, with less kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.models.gptj import modeling_gptj
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from lora_rlhf.model import gates, rotations
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.shared import SharedModel
from tests.support.batches import random_batch

Make = Callable[..., SharedModel]


def gradients(model: SharedModel) -> tuple[Tensor, dict[str, Tensor], int]:
    """Log-probabilities, gradients of the policy, and bytes that were kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with model.role("policy", training=True):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logprobs, _ = response_logprobs(model, random_batch())
        logprobs.sum().backward()
    found = {}
    for name, parameter in model.named_parameters_of("policy"):
        assert parameter.grad is not None
        found[name], parameter.grad = parameter.grad, None
    return logprobs.detach(), found, sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_mlp_is_computed_again(shared_model: Make, monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    model = shared_model("llama", "nf4", dtype="float32")
    if checkpointing:
        model.enable_gradient_checkpointing()
    logprobs, expected, kept = gradients(model)
    monkeypatch.setattr(gates, "computes_as_gpu", lambda _inputs: True)
    logprobs_again, found, kept_again = gradients(model)
    assert torch.equal(logprobs, logprobs_again)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert checkpointing or kept_again < 0.9 * kept


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2**-6)])
def test_a_rotation_is_transformers_s(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    queries, keys = draw(2, 4, 5, 8).requires_grad_(), draw(2, 2, 5, 8).requires_grad_()
    cos, sin, upstream = draw(2, 5, 8), draw(2, 5, 8), (draw(2, 4, 5, 8), draw(2, 2, 5, 8))
    expected, rotated = (function(queries, keys, cos, sin) for function in (apply_rotary_pos_emb, rotations.rotate))
    for one, other in zip(rotated, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    for one, other in zip(
        torch.autograd.grad(rotated, (queries, keys), upstream),
        torch.autograd.grad(expected, (queries, keys), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=4 * tolerance)


def test_only_attention_that_rotates_as_llama_is_replaced() -> None:
    for kind in (LlamaAttention, Qwen3Attention):
        own = rotations._own_forward(kind.forward)
        assert own is not None and own.__globals__[rotations.ROTATION] is rotations.rotate
        assert kind.forward.__globals__[rotations.ROTATION] is not rotations.rotate
    assert rotations._own_forward(modeling_gptj.GPTJAttention.forward) is None
