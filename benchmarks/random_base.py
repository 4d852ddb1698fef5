"""A base with random weights, quantized tensor by tensor where it will stay: never the whole in 16 bits, nor on a disk.

A 32B model in 16 bits is 65 GB, more than many a disk has free. Here each weight is drawn on the device, quantized and
dropped, so that a card needs the 4-bit model and one weight beside it.
"""

from pathlib import Path

import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

import lora_rlhf
from lora_rlhf.model.base import Base, BaseSpec

TINYWORLD = Path(lora_rlhf.__file__).parent / "tinyworld" / "base"
SCALE = 0.02  # of the weights: responses of a random model that are neither one token nor huge logits


def random_base(config: PreTrainedConfig, folder: Path, dtype: torch.dtype, device: torch.device) -> Base:
    """Of this shape, in NF4, with the tiny world's tokenizer, whose ids are a part of the vocabulary.

    Config and tokenizer are written to the folder, which names the base: the stages look there for its settings.
    """
    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), settings)
    torch.manual_seed(0)
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) not in made:
                made[id(parameter)] = _drawn(module, key, parameter, dtype, device)
            if parameter is not None:
                module._parameters[key] = made[id(parameter)]
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.to(device)
    model.tie_weights()
    model.is_loaded_in_4bit = True  # what PEFT chooses its layers by
    model.requires_grad_(False).eval()
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Base(model, tokenizer, BaseSpec(str(folder)), "random", device)


def _drawn(
    module: nn.Module, key: str, parameter: nn.Parameter, dtype: torch.dtype, device: torch.device
) -> nn.Parameter:
    values = torch.randn(parameter.shape, dtype=dtype, device=device) * SCALE
    if isinstance(module, Linear4bit) and key == "weight":
        weight = Params4bit(values, requires_grad=False, quant_type="nf4", compress_statistics=True)
        return weight.to(device)
    return nn.Parameter(values + (1 if values.ndim == 1 and key == "weight" else 0), requires_grad=False)
