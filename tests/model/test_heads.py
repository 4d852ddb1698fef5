"""The LM head's logits in every family, and the score head's start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM, PreTrainedModel

from lora_rlhf.model import heads
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.heads import check_logits, init_score_head, lm_logits
from lora_rlhf.system.errors import UserError

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.5,
}
IDS = torch.tensor([[3, 7, 11, 2], [9, 4, 1, 30]])


def assert_own_logits(causal: PreTrainedModel) -> None:
    with torch.no_grad():
        expected = causal(IDS, use_cache=False).logits
        assert torch.equal(lm_logits(causal, causal.base_model(IDS, use_cache=False).last_hidden_state), expected)
    check_logits(causal)


def test_logits_are_the_models_own(tiny_model: Callable[[str], Path], architecture: str) -> None:
    assert_own_logits(load_base(BaseSpec(str(tiny_model(architecture))), "cpu").model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_of_16_bits_are_in_float32(
    tiny_model: Callable[[str], Path], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The products of the 16-bit numbers themselves, and as gradient the head's transpose."""
    monkeypatch.setattr(heads, "SLICE_NUMBERS", 64 * 100)  # three full slices of the vocabulary, and a rest
    causal = load_base(BaseSpec(str(tiny_model("llama")), "none", dtype), "cpu").model
    weight = causal.get_output_embeddings().weight
    hidden = torch.randn((2, 3, 64), generator=torch.Generator().manual_seed(0)).to(weight.dtype).requires_grad_()
    logits = lm_logits(causal, hidden)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), hidden.double() @ weight.double().T, rtol=1e-5, atol=1e-5)
    gradient = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    logits.backward(gradient)
    expected = gradient.double() @ weight.double()
    torch.testing.assert_close(hidden.grad.double(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
    check_logits(causal)


def test_scaled_heads() -> None:
    torch.manual_seed(0)
    assert_own_logits(CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)).eval())
    assert_own_logits(GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)).eval())


def test_gemma2_logits_are_capped(tiny_model: Callable[[str], Path]) -> None:
    causal = load_base(BaseSpec(str(tiny_model("gemma2"))), "cpu").model
    with torch.no_grad():
        hidden = causal.base_model(IDS, use_cache=False).last_hidden_state
        capped, raw = lm_logits(causal, hidden), causal.lm_head(hidden)
    assert capped.abs().max() < 3.0 < raw.abs().max()


def test_a_head_that_is_not_understood_is_refused() -> None:
    class Unknown(CohereForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.1
            return output

    torch.manual_seed(0)
    with pytest.raises(UserError, match="Unknown turns hidden states into logits"):
        check_logits(Unknown(CohereConfig(**SMALL)).eval())


def test_scores_start_with_the_spread_of_ziegler() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(9_999, 1, bias=False)
    init_score_head(head)
    assert abs(head.weight.std().item() * 100 - 1) < 0.03  # 1 / sqrt(H + 1) = 0.01; sd of the estimate 0.7 %
    assert abs(head.weight.mean().item()) < 4e-4
