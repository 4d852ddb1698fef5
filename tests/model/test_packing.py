"""Packed documents do not see each other, in log-probabilities and in gradients, and a model where they do is found."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from lora_rlhf.data.batches import IGNORED_LABEL, packed_sft_batch, sft_batch
from lora_rlhf.data.encode import EncodedExample
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.packing import measure_packing_leak, require_no_leak
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.support.batches import random_lists

Make = Callable[..., SharedModel]
EXAMPLES = [EncodedExample(prompt, response) for prompt, response in zip(*random_lists(), strict=True)]


@pytest.fixture(scope="session")
def leaking(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """A tiny LFM2: its attention keeps documents apart, its convolutions reach into the one before."""
    folder = tmp_path_factory.mktemp("leaking")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    config = CONFIG_MAPPING["lfm2"](vocab_size=320, initializer_range=0.2, **sizes, **layers)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("role", ["base", "policy"])
def test_packed_documents_have_the_logits_that_they_have_alone(shared_model: Make, name: str, role: str) -> None:
    model = shared_model(name, "none")
    with model.role(role):
        packed = model.causal(**_inputs(packed_sft_batch(EXAMPLES)), use_cache=False).logits[0]
        alone = [
            model.causal(torch.tensor([example.prompt_ids + example.response_ids]), use_cache=False).logits[0]
            for example in EXAMPLES
        ]
    torch.testing.assert_close(packed.log_softmax(-1), torch.cat(alone).log_softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_packed_and_padded_batches_have_one_gradient(shared_model: Make, name: str) -> None:
    model, gradients = shared_model(name, "none"), []
    for batch in (sft_batch(EXAMPLES, 1), packed_sft_batch(EXAMPLES)):
        with model.role("sft", training=True):
            logits = model.causal(**_inputs(batch), use_cache=False).logits
            loss = _summed(logits, batch["labels"])
            loss.backward()
        gradients.append([loss.detach(), *(p.grad for _, p in model.named_parameters_of("sft"))])
        for _, parameter in model.named_parameters_of("sft"):
            parameter.grad = None
    largest = max(float(gradient.abs().max()) for gradient in gradients[0][1:])
    assert largest > 1
    for padded, packed in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5 * largest)


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each label from the position before it."""
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )


def test_no_supported_architecture_leaks(shared_model: Make, architecture: str) -> None:
    model = shared_model(architecture)
    assert measure_packing_leak(model) < 1e-4
    require_no_leak(model)
    assert model.active_role is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_that_leaks_is_found(leaking: Path, dtype: str) -> None:
    model = SharedModel(load_base(BaseSpec(str(leaking), "none", dtype), "cpu"))
    assert measure_packing_leak(model) > 2
    with pytest.raises(UserError, match=r"leaking.*Lfm2ForCausalLM does not keep.*changes a log-probability by \d"):
        require_no_leak(model)


@pytest.mark.parametrize(("quantization", "dtype"), [("nf4", "bfloat16"), ("nf4", "float16"), ("int8", "bfloat16")])
def test_rounding_is_no_leak(tiny_model: Callable[[str], Path], quantization: str, dtype: str) -> None:
    model = SharedModel(load_base(BaseSpec(str(tiny_model("llama")), quantization, dtype), "cpu"))
    assert measure_packing_leak(model) > 1e-3  # more than float32 may have
    require_no_leak(model)


def test_the_leak_is_the_largest_difference_of_a_tokens_log_probability(shared_model: Make) -> None:
    """Against the definition, with a leak made by hand: one token's logits are raised where a row is long."""
    model = shared_model("llama", "none")
    ids = torch.randint(320, (13,), generator=torch.Generator().manual_seed(0))  # the probe's first document

    def raise_last(_module: object, _inputs: object, logits: Tensor) -> Tensor:
        if logits.shape[1] > 24:  # packed: the longest document has 24 tokens
            logits = logits.clone()
            logits[0, 11, ids[12]] += 0.25
        return logits

    with model.role("base"), torch.no_grad():
        before = model.causal(ids[None], use_cache=False).logits[0, 11].double()
    raised = before.clone()
    raised[ids[12]] += 0.25
    expected = raised.log_softmax(-1)[ids[12]] - before.log_softmax(-1)[ids[12]]
    model.causal.get_output_embeddings().register_forward_hook(raise_last)
    assert measure_packing_leak(model) == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(UserError, match="does not keep packed documents apart"):
        require_no_leak(model)


def test_nan_is_a_leak(shared_model: Make) -> None:
    model = shared_model("llama", "none")
    model.causal.get_output_embeddings().register_forward_hook(lambda _m, _i, logits: logits * torch.nan)
    assert measure_packing_leak(model) == float("inf")
