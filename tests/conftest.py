"""Tiny random models of real architectures, made once per session, and shared models built on them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from planted_runs import planted, planted_report  # noqa: F401  (fixtures for every test)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.shared import LoraSettings, SharedModel

SENTENCES = [
    "The lighthouse keeper counts the ships that pass in the night.",
    "A teacher asks a question, and the students answer it one by one.",
    "Write a short note to the baker and say thank you for the bread.",
    "The river is wide; the boat is small, but the sailors are brave!",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large enough for logits that are far from uniform
}


@dataclass(frozen=True)
class Architecture:
    """How one family is made tiny: its own settings, whether it brings a chat template, and its padding token."""

    config: dict[str, object]
    template: bool = False
    pad: str | None = None


ARCHITECTURES = {
    "llama": Architecture({"num_key_value_heads": 2, "tie_word_embeddings": True}, template=True, pad="<|pad|>"),
    "mistral": Architecture({"num_key_value_heads": 2, "sliding_window": 16}),
    "qwen2": Architecture({"num_key_value_heads": 2}, template=True, pad="<|end|>"),
    "qwen3": Architecture({"num_key_value_heads": 2, "head_dim": 16}, template=True, pad="<|pad|>"),
    "gemma": Architecture({"num_key_value_heads": 1, "head_dim": 16}, pad="<|pad|>"),
    "gemma2": Architecture(
        {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16, "final_logit_softcapping": 3.0}, template=True
    ),
    "phi": Architecture({"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1}, pad="<|end|>"),
    "gpt2": Architecture({"n_inner": 128, "attn_pdrop": 0.1}),  # learned positions, Conv1D layers
    "gpt_neox": Architecture({"hidden_dropout": 0.1}),
}


@pytest.fixture(params=ARCHITECTURES)
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
            made = ARCHITECTURES[name]
            config = CONFIG_MAPPING[name](**(SIZES | made.config))
            torch.manual_seed(sorted(ARCHITECTURES).index(name))
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            _tokenizer(made).save_pretrained(folder)
        return folder

    return make


def _tokenizer(made: Architecture) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token=made.pad)
    if made.template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture
def shared_model(tiny_model: Callable[[str], Path]) -> Callable[..., SharedModel]:
    """shared_model(architecture, quantization, dropout) -> every role there, with adapters that all differ."""

    def make(name: str = "llama", quantization: str = "nf4", dropout: float = 0.0) -> SharedModel:
        model = SharedModel(load_base(BaseSpec(str(tiny_model(name)), quantization), "cpu"))
        torch.manual_seed(0)
        for number, role in enumerate(("sft", "reward", "policy", "value")):
            model.add_role(role, LoraSettings(rank=4, alpha=8, dropout=dropout), head=role in ("reward", "value"))
            randomize(model, role, seed=number)
        model.alias("reference", "sft")
        return model

    return make


def randomize(model: SharedModel, role: str, seed: int) -> None:
    """Give an adapter a visible effect: B is zero after adding it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters_of(role):
        if ".lora_B." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
