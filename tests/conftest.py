"""Tiny random models, made once per session, and shared models built on them."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.shared import SharedModel
from tests.support.models import EVERY_ARCHITECTURE, randomize, save_tiny_model
from tests.support.planted_runs import planted, planted_report  # noqa: F401  (fixtures for every test)

HAS_GPU = torch.cuda.is_available()


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays to the end: no collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Long texts are not names of tests."""
    return f"{ascii(val[:40])[:40]}..." if isinstance(val, str | bytes) and len(val) > 100 else None


@pytest.fixture(autouse=HAS_GPU)
def hidden_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests/gpu use a GPU: all other results were computed on a CPU, and some hold to the bit."""
    if "gpu" not in request.keywords:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of processes that a test starts


@pytest.fixture(params=EVERY_ARCHITECTURE)
def architecture(request: pytest.FixtureRequest) -> str:
    """Every architecture in turn."""
    return request.param


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tiny_model(architecture) -> the folder of a random model with a tokenizer; do not write to it."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            save_tiny_model(name, folder)
        return folder

    return make


@pytest.fixture
def shared_model(tiny_model: Callable[[str], Path]) -> Callable[..., SharedModel]:
    """shared_model(architecture, quantization, dropout, dtype) -> every role there, with adapters that all differ."""

    def make(name: str = "llama", quantization: str = "nf4", dropout: float = 0.0, dtype: str = "auto") -> SharedModel:
        model = SharedModel(load_base(BaseSpec(str(tiny_model(name)), quantization, dtype), "cpu"))
        torch.manual_seed(0)
        for number, role in enumerate(("sft", "reward", "policy", "value")):
            model.add_role(role, LoraSettings(rank=4, alpha=8, dropout=dropout), head=role in ("reward", "value"))
            randomize(model, role, seed=number)
        model.alias("reference", "sft")
        return model

    return make
