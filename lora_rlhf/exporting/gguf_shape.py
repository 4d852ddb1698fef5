"""The figures of a model's layers for a GGUF file, from its config.json; refused before any file is written."""

import math
from dataclasses import dataclass
from typing import Any

from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import quote


@dataclass(frozen=True)
class Family:
    """An architecture: its name in GGUF, and whether its query and key rows are stored in pairs (2i, 2i + 1)."""

    name: str
    is_paired: bool


# llama.cpp rotates neighbouring rows of a head for "llama", and the two halves for the others, as transformers does.
FAMILIES = {
    "llama": Family("llama", is_paired=True),
    "mistral": Family("llama", is_paired=True),
    "qwen2": Family("qwen2", is_paired=False),
    "qwen3": Family("qwen3", is_paired=False),
}
USUAL_ROPE_BASE = 10000.0  # transformers' default for all of these families
WAY_OUT = "export without --form gguf"


@dataclass(frozen=True)
class Rope:
    """Rotary positions. `factors`: divisors of the frequencies, one for each pair (head_dim / 2), or none."""

    base: float
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class GgufShape:
    """The figures that llama.cpp reads. Up to `max_context_tokens` it computes the same as transformers."""

    family: Family
    blocks: int
    max_context_tokens: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    vocab_size: int
    is_tied: bool
    rope: Rope


def require_family(model_type: Any) -> Family:
    """The family of an architecture. Raises UserError if its layout in GGUF is not known here."""
    if model_type not in FAMILIES:
        raise UserError(
            f"GGUF cannot be written of a {quote(model_type)} model; it can of {', '.join(FAMILIES)}: {WAY_OUT}, and "
            "convert that folder with llama.cpp's own script"
        )
    return FAMILIES[model_type]


def gguf_shape(config: dict[str, Any]) -> GgufShape:
    """The shape that a config.json describes. Raises UserError for an architecture or a setting that GGUF lacks."""
    family = require_family(config.get("model_type"))
    try:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        head_dim = int(config.get("head_dim") or width // heads)
        _require_silu(config)
        context = int(config["max_position_embeddings"])
        return GgufShape(
            family,
            blocks=int(config["num_hidden_layers"]),
            max_context_tokens=min(context, _window_tokens(config) or context),
            width=width,
            feed_forward=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            norm_eps=float(config["rms_norm_eps"]),
            vocab_size=int(config["vocab_size"]),
            is_tied=bool(config.get("tie_word_embeddings")),
            rope=_rope_settings(config, family, head_dim),
        )
    except KeyError as error:
        raise UserError(f"config.json: {quote(error.args[0])} is missing, which GGUF asks for; {WAY_OUT}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"config.json: a value that GGUF asks for is not a number ({error}); {WAY_OUT}") from error


def _require_silu(config: dict[str, Any]) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"config.json: hidden_act is {quote(config['hidden_act'])}, and llama.cpp has silu; {WAY_OUT}")


def _window_tokens(config: dict[str, Any]) -> int | None:
    """How many tokens back a layer sees; None if it sees all. llama.cpp has no window in these families."""
    if config["model_type"].startswith("qwen") and not config.get("use_sliding_window"):
        return None
    window = config.get("sliding_window")
    return None if window is None else int(window)


def _rope_settings(config: dict[str, Any], family: Family, head_dim: int) -> Rope:
    """Reads both spellings: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before it)."""
    rope_config = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    base = float(rope_config.get("rope_theta") or config.get("rope_theta", USUAL_ROPE_BASE))  # Llama 2 does not say it
    rope_type = rope_config.get("rope_type") or rope_config.get("type") or "default"
    if float(rope_config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"config.json: only a part of each head is rotated, which GGUF does not know here; {WAY_OUT}")
    if rope_type == "default":
        return Rope(base)
    if rope_type == "linear":
        return Rope(base, "linear", float(rope_config["factor"]))
    if rope_type == "yarn" and not any(
        rope_config.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim")
    ):
        original_context = int(rope_config.get("original_max_position_embeddings") or config["max_position_embeddings"])
        beta_fast, beta_slow = float(rope_config.get("beta_fast") or 32.0), float(rope_config.get("beta_slow") or 1.0)
        return Rope(base, "yarn", float(rope_config["factor"]), original_context, beta_fast, beta_slow)
    if rope_type == "llama3" and family.name == "llama":
        return Rope(base, factors=_llama3_factors(rope_config, base, head_dim))
    raise UserError(
        f"config.json: positions of kind {quote(rope_type)} cannot be written to GGUF for this architecture as they "
        f"are configured; {WAY_OUT}"
    )


def _llama3_factors(rope_config: dict[str, Any], base: float, head_dim: int) -> tuple[float, ...]:
    """Llama 3.1's divisors: 1 for short waves, `factor` for long ones, a mixture between them."""
    long_factor, original_context = float(rope_config["factor"]), float(rope_config["original_max_position_embeddings"])
    low_freq_factor, high_freq_factor = float(rope_config["low_freq_factor"]), float(rope_config["high_freq_factor"])
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * base ** (2 * pair / head_dim)
        if wavelength < original_context / high_freq_factor:
            factors.append(1.0)
        elif wavelength > original_context / low_freq_factor:
            factors.append(long_factor)
        else:
            weight = (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
            factors.append(1 / ((1 - weight) / long_factor + weight))
    return tuple(factors)
