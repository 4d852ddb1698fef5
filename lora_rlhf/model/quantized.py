"""Bases that are stored quantized: which of them load as they are, and what to give instead of the others."""

import re
from typing import Any

from transformers import PreTrainedConfig

# What bitsandbytes writes for a base that is quantized as one is quantized here while it loads.
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
# transformers can read these out to 16 bits while it loads them, by this configuration.
READABLE = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
SUFFIX = re.compile(r"[-_.](gptq|awq|fp8|nvfp4|mxfp4|w\da\d+|int[48]|(unsloth-)?bnb-4bit|\d-?bit)\b.*$", re.IGNORECASE)


def find_stored_settings(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The quantization of a stored base, as its config.json says; None for a base in 16 or 32 bits."""
    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None)
        if settings is not None:
            return dict(settings) if isinstance(settings, dict) else dict(settings.to_dict())
    return None


def find_stored_fault(name: str, settings: dict[str, Any], quantization: str) -> str | None:
    """Why a base with this stored quantization cannot be used, with advice; None if both are NF4."""
    method = str(settings.get("quant_method", "bitsandbytes"))
    if method == "bitsandbytes":
        if quantization == "nf4" and all(settings.get(key) == value for key, value in NF4.items()):
            return None
        bits = "8 bits" if settings.get("load_in_8bit") else f"4 bits ({settings.get('bnb_4bit_quant_type')})"
        quantization_text = f", and quantization is {quantization}" if quantization != "nf4" else ""
        return (
            f"is stored by bitsandbytes in {bits}{quantization_text}; only nf4 with double quantization loads as it is "
            f"stored. {_original_advice(name)}"
        )
    if config_class := READABLE.get(method):
        return (
            f'is stored in {method}. Write it in 16 bits once: python -c "import transformers as t; '
            f"t.AutoModelForCausalLM.from_pretrained('{name}', quantization_config=t.{config_class}(dequantize=True), "
            f"dtype='bfloat16').save_pretrained('models/base'); "
            f"t.AutoTokenizer.from_pretrained('{name}').save_pretrained('models/base')\", and give models/base"
        )
    return f"is stored quantized already ({method}). {_original_advice(name)}"


def _original_advice(name: str) -> str:
    """Advice to give the original model, with a guess of its name."""
    original = SUFFIX.sub("", name)
    guess = f", probably {original}," if original != name and original else ""
    return f"Give the original 16-bit model{guess} which is quantized while it loads"
