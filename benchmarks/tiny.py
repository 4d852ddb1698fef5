"""A tiny random model and a few rows of data of every kind, on which a stage takes seconds: what benchmarks run on."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_rlhf.data.io import write_jsonl

DATA = "data"  # the folder's usual name
WORDS = "night boat note bread river baker question students sailors ships".split()
ASKED = {"Say the": "The", "Is it the": "No, the", "Count the": "One"}
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_model(folder: Path) -> None:
    """Two Llama layers of width 64 with random weights, and a tokenizer of 300 tokens."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    # large weights: logits that are far from uniform
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2)).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{asks} {word}" for asks in ASKED for word in WORDS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def make_data(folder: Path) -> None:
    """demonstrations, rankings, prompts and text, each a .jsonl of 30 rows."""
    folder.mkdir(parents=True)
    pairs = [(f"{asks} {word}?", f"{answers} {word}.") for asks, answers in ASKED.items() for word in WORDS]
    write_jsonl(folder / "demonstrations.jsonl", [{"prompt": asked, "completion": answer} for asked, answer in pairs])
    write_jsonl(folder / "prompts.jsonl", [{"prompt": asked} for asked, _ in pairs])
    write_jsonl(folder / "text.jsonl", [{"text": f"The {answer} " * 6} for _, answer in pairs])
    rankings = [
        {"prompt": asked, "responses": ["What?", answer, "Say thank you", f"{answer} brave!"], "ranks": [3, 1, 3, 2]}
        for asked, answer in pairs
    ]
    write_jsonl(folder / "rankings.jsonl", rankings)
