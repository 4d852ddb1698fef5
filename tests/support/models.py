"""Tiny random models of real architectures, and adapters with a visible effect."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from lora_rlhf.model.adapted_linear import adapted_layers
from lora_rlhf.model.shared import SharedModel

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
IN_THE_FAST_SUITE = ("llama", "gemma2", "gpt2")  # those that differ most
IN_THE_LONG_SUITE = ("mistral", "qwen2", "gemma", "phi")  # what they have, others have too
EVERY_ARCHITECTURE = [
    pytest.param(
        name,
        marks=[pytest.mark.slow] * (name not in IN_THE_FAST_SUITE) + [pytest.mark.long] * (name in IN_THE_LONG_SUITE),
    )
    for name in ARCHITECTURES
]


def save_tiny_model(name: str, folder: Path) -> None:
    """Write a random model of that architecture, and its tokenizer. The same bytes each time."""
    architecture = ARCHITECTURES[name]
    config = CONFIG_MAPPING[name](**(SIZES | architecture.config))
    torch.manual_seed(sorted(ARCHITECTURES).index(name))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(architecture, folder)


def save_tokenizer(architecture: Architecture, folder: Path) -> None:
    """Write a tokenizer of 300 tokens, with that architecture's chat template and padding token."""
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
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token=architecture.pad)
    if architecture.template:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def randomize(model: SharedModel, role: str, seed: int) -> None:
    """Give an adapter a visible effect: B is zero after adding it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters_of(role):
        if ".lora_B." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def compute_as_peft(model: SharedModel) -> None:
    """From now on the adapted layers compute with PEFT's own forward, as if this project had not taken it over."""
    for layer in adapted_layers(model.peft):
        del layer.forward
