"""Real architectures with random weights, and prompts of an exact length: what speed and memory are measured on.

Neither depends on the values of the weights. These models cannot end a response: the logits of their stop tokens are
far below all others, so that every response has the full length and everybody generates the same number of tokens.
The tokenizer is the tiny world's; its ids are a small part of a vocabulary, whose full width is computed all the same.
"""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

import lora_rlhf
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import encode_text, render_prompt, stop_ids

TINYWORLD = Path(lora_rlhf.__file__).parent / "tinyworld" / "base"
WORDS = "owl mill river brown black bread honey Anna Tom kite drum bell night boat baker".split()

SHAPES: dict[str, PreTrainedConfig] = {
    "llama-4x256": LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=2048, tie_word_embeddings=False, max_position_embeddings=4096,
    ),
    "qwen2.5-1.5b": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151_936, tie_word_embeddings=True, max_position_embeddings=4096,
    ),
    "llama-3-8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128_256, tie_word_embeddings=False, max_position_embeddings=4096,
    ),
}  # fmt: skip
LOUD = 0.5  # what channel 0 holds at every position
SILENT = -20.0  # what a stop token makes of it: its logit


def make_model(config: PreTrainedConfig, folder: Path) -> None:
    """Random weights of that shape and a tokenizer: a folder that `from_pretrained` reads."""
    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    _silence(model, {*stop_ids(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _silence(model: Any, tokens: set[int]) -> None:
    """Makes these tokens impossible: channel 0 is the same positive number everywhere, and speaks against them."""
    model.get_input_embeddings().weight[:, 0] = LOUD
    for layer in model.model.layers:  # nothing else writes to the channel; 4 bits keep a zero exactly
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    for token in tokens:
        model.get_output_embeddings().weight[token, 0] = SILENT


def make_prompts(tokenizer: PreTrainedTokenizerBase, tokens: int, count: int, seed: int = 0) -> list[str]:
    """`count` different prompts of random words that are `tokens` long in the tokenizer's chat template."""
    rng = random.Random(seed)
    words = [word for word in WORDS if len(encode_text(tokenizer, f" {word}")) == 1]
    around = tokens - len(render_prompt(tokenizer, _prompt(words[0])))
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        text = " ".join([words[0], *(rng.choice(words) for _ in range(around))])
        if len(render_prompt(tokenizer, _prompt(text))) != tokens:
            raise ValueError(f"{text!r} has not {tokens} tokens")
        prompts[text] = None
    return list(prompts)


def _prompt(text: str) -> Prompt:
    return Prompt((Message("user", text),))
