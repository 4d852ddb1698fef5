"""Attention and fused kernels by choice: what cannot be used is refused, and what computes otherwise too."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from lora_rlhf.model import kernels
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.kernels import use_kernels
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.support.batches import random_batch
from tests.support.pretended_cuda import pretended
from tests.support.stages import Models

Make = Callable[..., SharedModel]


def test_eager_attention_computes_the_same(shared_model: Make) -> None:
    model = shared_model()
    with model.role("policy"), torch.no_grad():
        expected = response_logprobs(model, random_batch())[0]
        assert model.config._attn_implementation == "sdpa"
    use_kernels(model, "eager")
    assert model.config._attn_implementation == "eager"
    with model.role("policy"), torch.no_grad():
        torch.testing.assert_close(response_logprobs(model, random_batch())[0], expected, rtol=0, atol=1e-5)


def test_attention_that_is_not_there_is_refused(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model()
    with pytest.raises(UserError, match="flash_attention_2: the library flash_attn is not installed; take --attn_imp"):
        use_kernels(model, "flash_attention_2")
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _name: object())
    with pytest.raises(UserError, match="it needs a GPU and a base in 16 bits"):
        use_kernels(model, "flash_attention_2")
    assert model.config._attn_implementation == "sdpa"


def test_liger_is_refused_where_it_is_not_installed_or_there_is_no_gpu(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"liger-kernel is not installed: pip install liger-kernel\. Take --fused_kernels"
    ):
        use_kernels(shared_model(), fused="liger")
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _name: object())
    with pytest.raises(UserError, match="run on a GPU alone, and the base is on the CPU"):
        use_kernels(shared_model(), fused="liger")


class PlayedLiger(ModuleType):
    """A liger_kernel whose norm is PyTorch's, times `factor`."""

    MODEL_TYPE_TO_APPLY_LIGER_FN = ("llama",)
    factor = 1.0

    def _apply_liger_kernel_to_instance(self, model: Any, **parts: bool) -> None:
        assert parts["rms_norm"] and not parts["fused_linear_cross_entropy"]
        for layer in model.model.layers:
            norm = layer.input_layernorm
            norm.forward = lambda states, norm=norm: (
                functional.rms_norm(states, states.shape[-1:], norm.weight, norm.variance_epsilon) * self.factor
            )


@pytest.fixture
def played_liger(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedLiger]:
    module = PlayedLiger("liger_kernel.transformers.monkey_patch")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
        kernels,
        "importlib",
        SimpleNamespace(
            import_module=lambda name: sys.modules[name], util=SimpleNamespace(find_spec=lambda _name: object())
        ),
    )
    with pretended():
        yield module


def load(folder: Any) -> SharedModel:
    return SharedModel(load_base(BaseSpec(str(folder), "none", "float32"), "cuda"))


def test_liger_is_compared_with_pytorch(played_liger: PlayedLiger, tiny_model: Models) -> None:
    model = load(tiny_model("llama"))
    use_kernels(model, fused="liger")
    assert model.has_fused_kernels
    use_kernels(model, fused="liger")  # is there already
    played_liger.factor = 1.01
    with pytest.raises(UserError, match=r"a log-probability is 0\.\d+ nats off what PyTorch computes"):
        use_kernels(load(tiny_model("llama")), fused="liger")
    with pytest.raises(UserError, match="Liger-Kernel has none for the family gpt2"):
        use_kernels(load(tiny_model("gpt2")), fused="liger")
