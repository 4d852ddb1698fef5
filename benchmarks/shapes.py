"""Real architectures with random weights, and prompts of an exact length: what speed and memory are measured on.

Neither depends on the values of the weights. These models cannot end a response: the logits of their stop tokens are
far below all others, so that every response has the full length and everybody generates the same number of tokens.
The tokenizer is the tiny world's; its ids are a small part of a vocabulary, whose full width is computed all the same.
"""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
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
SCALE = 0.02  # of the weights
MOST_FILE_BYTES = 2**31
LOUD = 0.5  # what channel 0 holds at every position
SILENT = -20.0  # what a stop token makes of it: its logit


def make_model(config: PreTrainedConfig, folder: Path) -> None:
    """Random weights of that shape and a tokenizer: a folder that `from_pretrained` reads.

    Tensor by tensor, each drawn on the GPU where there is one: an 8B model takes a file at a time in memory, 16 GB on
    the disk, and nothing on a card.
    """
    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    silent = sorted({*stop_ids(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id})
    embeddings = model.get_input_embeddings().weight
    torch.manual_seed(0)
    files: list[dict[str, Tensor]] = [{}]
    weight_map: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if sum(map(_bytes, files[-1].values())) + _bytes(parameter) > MOST_FILE_BYTES:
            save_file(files[-1], folder / f"model-{len(files)}.safetensors", metadata={"format": "pt"})
            files.append({})
            files[-2].clear()
        values = _draw(name, parameter.shape)
        if parameter is embeddings:
            values[:, 0] = LOUD  # channel 0 is the same positive number at every position,
        if parameter is model.get_output_embeddings().weight:
            values[silent, 0] = SILENT  # and speaks against these tokens
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            values[0] = 0  # nothing else writes to the channel; 4 bits keep a zero exactly
        files[-1][name], weight_map[name] = values, len(files)
    save_file(files[-1], folder / f"model-{len(files)}.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: f"model-{number}.safetensors" for name, number in weight_map.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _draw(name: str, shape: torch.Size) -> Tensor:
    """Normal values for a matrix, as transformers draws them; 1 for a norm's weight, 0 for a bias."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (torch.randn(shape, dtype=torch.bfloat16, device=device) * SCALE).cpu()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


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
