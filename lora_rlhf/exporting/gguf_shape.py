"""What a GGUF file says of a model's layers: told from its config.json, or refused before anything is written."""

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


# llama.cpp turns neighbours in a head for "llama", and halves for the others, as transformers does for all.
FAMILIES = {
    "llama": Family("llama", is_paired=True),
    "mistral": Family("llama", is_paired=True),
    "qwen2": Family("qwen2", is_paired=False),
    "qwen3": Family("qwen3", is_paired=False),
}
WAY_OUT = "export without --form gguf"


@dataclass(frozen=True)
class Rope:
    """Rotary positions. `factors`: what each pair's frequency is divided by (head_dim / 2 of them), or none."""

    base: float
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Shape:
    """The figures that llama.cpp reads. `context` is the most tokens for which it computes what transformers does."""

    family: Family
    blocks: int
    context: int
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
    """UserError for an architecture whose layout in GGUF is not known here."""
    if model_type not in FAMILIES:
        raise UserError(
            f"GGUF cannot be written of a {quote(model_type)} model; it can of {', '.join(FAMILIES)}: {WAY_OUT}, and "
            "convert that folder with llama.cpp's own script"
        )
    return FAMILIES[model_type]


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that a config.json describes. UserError for an architecture, or a setting, that GGUF does not know."""
    family = require_family(config.get("model_type"))
    try:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        head_dim = int(config.get("head_dim") or width // heads)
        _require_plain(config)
        context = int(config["max_position_embeddings"])
        return Shape(
            family,
            blocks=int(config["num_hidden_layers"]),
            context=min(context, _window(config) or context),
            width=width,
            feed_forward=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            norm_eps=float(config["rms_norm_eps"]),
            vocab_size=int(config["vocab_size"]),
            is_tied=bool(config.get("tie_word_embeddings")),
            rope=_rope(config, family, head_dim),
        )
    except KeyError as error:
        raise UserError(f"config.json: {quote(error.args[0])} is missing, which GGUF asks for; {WAY_OUT}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"config.json: a value that GGUF asks for is not a number ({error}); {WAY_OUT}") from error


def _require_plain(config: dict[str, Any]) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"config.json: hidden_act is {quote(config['hidden_act'])}, and llama.cpp has silu; {WAY_OUT}")


def _window(config: dict[str, Any]) -> int | None:
    """How many tokens back a layer sees, where that is fewer than all. llama.cpp has no window in these families."""
    if config["model_type"].startswith("qwen") and not config.get("use_sliding_window"):
        return None
    window = config.get("sliding_window")
    return None if window is None else int(window)


def _rope(config: dict[str, Any], family: Family, head_dim: int) -> Rope:
    """From either spelling: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before it."""
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    base = float(given.get("rope_theta") or config["rope_theta"])
    kind = given.get("rope_type") or given.get("type") or "default"
    if float(given.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"config.json: only a part of each head is rotated, which GGUF does not know here; {WAY_OUT}")
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope(base, "linear", float(given["factor"]))
    if kind == "yarn" and not any(given.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim")):
        original = int(given.get("original_max_position_embeddings") or config["max_position_embeddings"])
        fast, slow = float(given.get("beta_fast") or 32.0), float(given.get("beta_slow") or 1.0)
        return Rope(base, "yarn", float(given["factor"]), original, fast, slow)
    if kind == "llama3" and family.name == "llama":
        return Rope(base, factors=_llama3_factors(given, base, head_dim))
    raise UserError(
        f"config.json: positions of kind {quote(kind)} cannot be written to GGUF for this architecture as they are "
        f"configured; {WAY_OUT}"
    )


def _llama3_factors(given: dict[str, Any], base: float, head_dim: int) -> tuple[float, ...]:
    """Llama 3.1's frequencies: short waves as they are, long ones stretched by `factor`, between them a mixture."""
    stretch, original = float(given["factor"]), float(given["original_max_position_embeddings"])
    low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
    factors = []
    for pair in range(head_dim // 2):
        wave = 2 * math.pi * base ** (2 * pair / head_dim)
        if wave < original / high:
            factors.append(1.0)
        elif wave > original / low:
            factors.append(stretch)
        else:
            smooth = (original / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / stretch + smooth))
    return tuple(factors)
