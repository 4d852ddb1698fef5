"""An architecture without its weights: its class, the text model inside it, and whether it can be trained here.

A wrapper is a model of text and images or sound: a text model, the LM head, and towers beside them. Only the text model
is trained and run here.
"""

import inspect

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.base import HfQuantizer

# Why some architectures cannot be trained here, by transformers' name of them.
REFUSAL_REASONS = {
    "longcat_flash": "its routers read a weight that quantization packs",
    "minimax": "it decodes from a cache of its own kind",
    "modernbert-decoder": "its LM head is more than one layer",
    "phimoe": "its router draws experts at random in training, so that a response has no one probability",
    "recurrent_gemma": "it keeps its recurrent state in the model itself, where rows of a batch cannot be dropped",
}


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Whether a configuration has a text model and towers that transformers loads together."""
    return config.get_text_config() is not config and type(config) in AutoModelForImageTextToText._model_mapping


def find_auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]:
    """The class of transformers that loads a whole checkpoint of this configuration."""
    return AutoModelForImageTextToText if is_wrapper(config) else AutoModelForCausalLM


def build_on_meta(config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without storage for its tensors. ValueError and other errors of transformers if it cannot be built."""
    with torch.device("meta"):
        model: PreTrainedModel = find_auto_class(config).from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model


def unquantized_layers(causal: PreTrainedModel) -> list[str]:
    """The layers that transformers does not quantize.

    It leaves out the layer of the last parameter, and looks for it before it ties the LM head; in this model it is
    tied.
    """
    names = HfQuantizer.get_modules_to_not_convert(causal, None, causal._keep_in_fp32_modules)
    last = list(causal.named_parameters())[-1][0].removesuffix(".weight")
    last_untied = list(causal.named_parameters(remove_duplicate=False))[-1][0].removesuffix(".weight")
    return [name for name in names if name != last or last == last_untied]


def text_backbone(causal: PreTrainedModel) -> nn.Module:
    """The text model below the LM head: ids to hidden states."""
    decoder = causal.get_decoder()
    if isinstance(decoder, PreTrainedModel) and decoder.get_output_embeddings() is not None:
        decoder = decoder.model  # Llama 4 gives its whole text model, with the LM head
    return decoder if isinstance(decoder, PreTrainedModel) else causal.base_model


def find_training_fault(causal: PreTrainedModel) -> str | None:
    """Why a model of this architecture cannot be trained here, to be put after its name; None if it can."""
    if reason := REFUSAL_REASONS.get(causal.config.model_type):
        return f"cannot be trained here: {reason}"
    if "position_ids" not in inspect.signature(text_backbone(causal).forward).parameters:
        return (
            "takes no position_ids, so left-padded prompts cannot be represented; choose a model with rotary or "
            "learned positions"
        )
    return None
