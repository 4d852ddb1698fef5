"""Counting copies of the base, and bytes."""

import gc
from collections.abc import Callable

import pytest
import torch

from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.memory import adapter_bytes, count_quantized_storages, peak_gpu_gib, peak_rss_gib
from lora_rlhf.model.shared import SharedModel
from tests.support.batches import random_batch

pytestmark = pytest.mark.slow

Make = Callable[..., SharedModel]


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("int8", marks=pytest.mark.long)])
def test_every_role_shares_one_base(shared_model: Make, quantization: str) -> None:
    gc.collect()
    before = count_quantized_storages()
    model = shared_model(quantization=quantization)
    model.copy_role("sft", "policy2")
    for role in model.roles:
        with model.role(role), torch.no_grad():
            response_logprobs(model, random_batch())
    assert count_quantized_storages() - before == 2 * 7  # layers x linear layers in each
    second = shared_model(quantization=quantization)
    assert count_quantized_storages() - before == 2 * 2 * 7
    del model, second
    gc.collect()
    assert count_quantized_storages() == before


def test_adapter_bytes(shared_model: Make) -> None:
    model = shared_model()
    attention = (64 + 64) + 2 * (64 + 32) + (64 + 64)  # q, k and v (two of four heads), o: inputs + outputs
    lora = 2 * 4 * (attention + 3 * (64 + 128))  # layers x rank x (attention + mlp)
    assert adapter_bytes(model, "policy") == 4 * lora
    assert adapter_bytes(model, "value") == 4 * (lora + 64)


def test_peaks() -> None:
    before = peak_rss_gib()
    ballast = torch.ones(60 * 2**20)  # 240 MiB
    assert 0.05 < before < 100
    assert peak_rss_gib() >= before
    assert ballast[0] == 1
    assert torch.cuda.is_available() or peak_gpu_gib() == 0
