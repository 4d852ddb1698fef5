"""A config.json that strangers wrote: refused where it would fetch code, or claims more than its files hold."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_rlhf.model.tensor_files import read_index
from lora_rlhf.system.untrusted import quote

# The names that transformers' model types have for the number of layers.
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "decoder_layers")
WIDTH_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "n_embd", "d_model", "ffn_dim")
VALUES_PER_BYTE = 2  # of 4-bit weights


def find_code_fault(settings: dict[str, Any]) -> str | None:
    """Why a config would have transformers fetch code: a kernel is named as a repository of the hub."""
    for section in _sections(settings):
        for key, value in section.items():
            if "_implementation" in key and "/" in str(value):
                return f"config.json: {quote(key)} is {quote(value)}, which would run code from there; remove that line"
    return None


def find_size_fault(settings: dict[str, Any], weights: Sequence[Path]) -> str | None:
    """Why the weights cannot be those of the config: more layers than tensors, or larger sides than any has room for.

    Only headers are read. Without it, memory for what the config claims is taken for minutes.
    """
    tensors = read_index(weights).values()
    num_values = sum(tensor.num_bytes for tensor in tensors) * VALUES_PER_BYTE
    for section in _sections(settings):
        for keys, most, held in (
            (LAYER_KEYS, len(tensors), f"{len(tensors)} tensors"),
            (WIDTH_KEYS, num_values, f"{num_values:,} numbers at most"),
        ):
            for key in keys:
                if isinstance(value := section.get(key), int) and value > most:
                    return f"config.json: {key} is {value:,}, and its weights hold {held}"
    return None


def _sections(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config, and the configs of text models and towers in it."""
    yield settings
    for value in settings.values():
        if isinstance(value, dict):
            yield from _sections(value)
