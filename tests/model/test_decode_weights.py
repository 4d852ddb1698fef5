"""Decoding with merged weights: the adapter's distribution to rounding, the same samples, the base untouched."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lora_rlhf.model import decode_weights
from lora_rlhf.model.adapted_linear import layers_with_weight_matrix
from lora_rlhf.model.decode_weights import choose_merged_weights, use_merged_weights
from lora_rlhf.model.dense import keep_dense_copies
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.generate import generate
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.support.batches import random_batch, random_lists
from tests.support.models import randomize

Make = Callable[..., SharedModel]
UNMERGED = [("gpt2", "none"), ("llama", "int8")]  # Conv1D, 8 bits


def logprobs(model: SharedModel) -> torch.Tensor:
    with torch.no_grad():
        return response_logprobs(model, random_batch())[0]


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_log_probabilities_are_the_adapter_s_within_1e_5(
    shared_model: Make, architecture: str, quantization: str
) -> None:
    model = shared_model(architecture, quantization)
    digest = model.base_digest()
    for role in ("policy", "sft", "base"):
        with model.role(role):
            expected = logprobs(model)
            with use_merged_weights(model):
                with_merged = logprobs(model)
            assert torch.equal(logprobs(model), expected)
        torch.testing.assert_close(with_merged, expected, rtol=0, atol=1e-5)
    assert model.base_digest() == digest


def test_each_layer_is_one_product_and_sees_the_adapter_s_latest_state(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model()
    keep_dense_copies(model.causal, "always")
    with model.role("policy"):
        with use_merged_weights(model):
            before = logprobs(model)
        randomize(model, "policy", seed=77)
        expected = logprobs(model)
        assert (expected - before).abs().max() > 1e-2
        with use_merged_weights(model):
            calls: list[str] = []
            for layer in layers_with_weight_matrix(model.peft):
                for name, part in layer.named_modules():
                    if isinstance(part, nn.Linear):
                        monkeypatch.setattr(part, "forward", lambda *_, name=name: calls.append(name))
            torch.testing.assert_close(logprobs(model), expected, rtol=0, atol=1e-5)
            assert calls == []  # neither base nor A nor B were asked


def test_samples_are_the_adapter_s(shared_model: Make) -> None:
    model, (prompts, _) = shared_model(), random_lists()

    def sample() -> list[list[int]]:
        groups = generate(
            model, prompts, max_new_tokens=12, temperature=1.0, stop_ids=[0], batch_size=3, num_samples=3,
            generator=torch.Generator().manual_seed(5),
        )  # fmt: skip
        return [response.ids for group in groups for response in group]

    with model.role("policy"):
        expected = sample()
        with use_merged_weights(model):
            assert sample() == expected
    with model.role("sft"):
        assert sample() != expected


def test_an_error_leaves_the_model_as_it_was(shared_model: Make) -> None:
    model = shared_model()
    with model.role("policy"):
        expected = logprobs(model)
        with pytest.raises(ZeroDivisionError), use_merged_weights(model):
            raise ZeroDivisionError
        assert torch.equal(logprobs(model), expected)


def test_a_gradient_is_an_error(shared_model: Make) -> None:
    model = shared_model()
    with model.role("policy"), use_merged_weights(model), pytest.raises(RuntimeError, match="for decoding alone"):
        response_logprobs(model, random_batch())


def test_a_role_inside_computes_with_its_own_adapter(shared_model: Make) -> None:
    """Its bits are those of the adapter, not of merged weights; afterwards the merged weights are back."""
    model = shared_model()
    with model.role("sft"):
        expected = logprobs(model)
    with model.role("policy"), use_merged_weights(model):
        merged_policy = logprobs(model)
        with model.role("sft"):
            assert torch.equal(logprobs(model), expected)
        with model.role("policy", training=True):
            response_logprobs(model, random_batch())[0].sum().backward()
        assert torch.equal(logprobs(model), merged_policy)
    model.check_gradients("policy")


def test_a_mixture_of_roles_has_no_merged_weights(shared_model: Make) -> None:
    model, places, roles = shared_model(), torch.tensor([0, 1]), ("sft", "base")
    ids = torch.tensor([[7, 8, 9]]).expand(2, -1)
    with model.mixture(roles) as mixture:
        mixture.assign(places)
        expected = model.causal(ids, use_cache=False).logits
        with pytest.raises(RuntimeError, match="those of one role"), use_merged_weights(model):
            pass
    with model.role("policy"), use_merged_weights(model):
        merged_policy = logprobs(model)
        with mixture:
            mixture.assign(places)
            assert torch.equal(model.causal(ids, use_cache=False).logits, expected)
        assert torch.equal(logprobs(model), merged_policy), "and they come back"


@pytest.mark.parametrize(("free", "fits"), [(4.01, True), (3.99, False)])
def test_auto_takes_a_quarter_of_free_memory_at_most(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: float, fits: bool
) -> None:
    model = shared_model()
    size = sum(4 * layer.in_features * layer.out_features for layer in layers_with_weight_matrix(model.peft))
    monkeypatch.setattr(decode_weights, "free_bytes", lambda _device: int(free * size))
    with caplog.at_level(logging.DEBUG, "lora_rlhf"):
        assert choose_merged_weights(model) is fits
    assert ("merged weights" if fits else "the adapter") in caplog.text
    assert choose_merged_weights(model, "merged") and not choose_merged_weights(model, "adapter")


@pytest.mark.parametrize(("name", "quantization"), UNMERGED)
def test_layers_that_cannot_be_added_up_are_decoded_apart(shared_model: Make, name: str, quantization: str) -> None:
    model = shared_model(name, quantization)
    assert not choose_merged_weights(model) and not choose_merged_weights(model, "adapter")
    with pytest.raises(UserError, match=r"decode_weights is merged, but .* take --decode_weights adapter"):
        choose_merged_weights(model, "merged")
