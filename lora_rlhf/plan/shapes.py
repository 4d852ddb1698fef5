"""The shapes of popular models as numbers, so that `plan` needs no network for them."""

from collections.abc import Mapping
from typing import Any


def _model_shape(
    family: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, **settings: Any
) -> Any:
    """Returns (model type, settings of its config), both with the names of transformers."""
    return family, {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        "max_position_embeddings": 32_768,
        **settings,
    }


TIED = {"tie_word_embeddings": True}
GEMMA = {**TIED, "head_dim": 256, "max_position_embeddings": 8192}

# hidden size, MLP's inner size, layers, attention heads, heads of keys and values, vocabulary
SHAPES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5-0.5b": _model_shape("qwen2", 896, 4864, 24, 14, 2, 151_936, **TIED),
    "qwen2.5-1.5b": _model_shape("qwen2", 1536, 8960, 28, 12, 2, 151_936, **TIED),
    "qwen2.5-3b": _model_shape("qwen2", 2048, 11_008, 36, 16, 2, 151_936, **TIED),
    "qwen2.5-7b": _model_shape("qwen2", 3584, 18_944, 28, 28, 4, 152_064),
    "qwen2.5-14b": _model_shape("qwen2", 5120, 13_824, 48, 40, 8, 152_064),
    "qwen2.5-32b": _model_shape("qwen2", 5120, 27_648, 64, 40, 8, 152_064),
    "qwen3-0.6b": _model_shape("qwen3", 1024, 3072, 28, 16, 8, 151_936, head_dim=128, **TIED),
    "qwen3-1.7b": _model_shape("qwen3", 2048, 6144, 28, 16, 8, 151_936, head_dim=128, **TIED),
    "qwen3-4b": _model_shape("qwen3", 2560, 9728, 36, 32, 8, 151_936, head_dim=128, **TIED),
    "qwen3-8b": _model_shape("qwen3", 4096, 12_288, 36, 32, 8, 151_936, head_dim=128),
    "qwen3-14b": _model_shape("qwen3", 5120, 17_408, 40, 40, 8, 151_936, head_dim=128),
    "qwen3-32b": _model_shape("qwen3", 5120, 25_600, 64, 64, 8, 151_936, head_dim=128),
    "llama-3.2-1b": _model_shape("llama", 2048, 8192, 16, 32, 8, 128_256, head_dim=64, **TIED),
    "llama-3.2-3b": _model_shape("llama", 3072, 8192, 28, 24, 8, 128_256, head_dim=128, **TIED),
    "llama-3.1-8b": _model_shape("llama", 4096, 14_336, 32, 32, 8, 128_256),
    "mistral-7b": _model_shape("mistral", 4096, 14_336, 32, 32, 8, 32_768, sliding_window=None),
    "gemma-2-2b": _model_shape("gemma2", 2304, 9216, 26, 8, 4, 256_000, **GEMMA),
    "gemma-2-9b": _model_shape("gemma2", 3584, 14_336, 42, 16, 8, 256_000, **GEMMA),
}


def find_shape_name(name: str) -> str | None:
    """The key in SHAPES of a model name or hub name, in any case and with or without "-instruct"; None without one."""
    key = name.rsplit("/", maxsplit=1)[-1].lower()
    for tuning in ("-instruct", "-base", "-it", "-v0.3", "-pt"):
        key = key.removesuffix(tuning)
    return key if key in SHAPES else None
