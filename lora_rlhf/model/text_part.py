"""The text model inside a model of images or sound, as a plain text model of its own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lora_rlhf.model.architecture import build_on_meta, is_wrapper, text_backbone
from lora_rlhf.model.merging import Part
from lora_rlhf.system.errors import UserError


def text_settings(folder: str) -> dict[str, Any]:
    """The text model's configuration, from the folder of the whole model."""
    whole = AutoConfig.from_pretrained(folder, local_files_only=True)
    is_tied = "lm_head.weight" in build_on_meta(whole, torch.float32).all_tied_weights_keys  # the whole model says so
    text = whole.get_text_config()
    settings: dict[str, Any] = text.to_dict()
    return settings | {"architectures": [type(_text_model(text)).__name__], "tie_word_embeddings": is_tied}


def text_parts(config: PreTrainedConfig, parts: Sequence[Part]) -> list[Part]:
    """The parts that the text model consists of, under the names that they have there.

    UserError for a configuration that is of no wrapper, or whose text model transformers has no class for.
    """
    if not is_wrapper(config):
        raise UserError(f"text_only: a {config.model_type!r} model is a text model as it is; leave the flag out")
    text = _text_model(config.get_text_config())
    renamed = dict(zip(_roots(build_on_meta(config, torch.float32)), _roots(text), strict=True))
    needed, chosen = set(text.state_dict()), []
    for part in parts:
        root = next((root for root in renamed if part.name.startswith(root)), None)
        if root is None:
            continue
        name = renamed[root] + part.name.removeprefix(root)
        # single experts keep the names that they have in the file, below the root
        in_file = part.stored.name if part.joined else part.name
        if name not in needed or not in_file.startswith(root):
            raise UserError(f"text_only: {type(text).__name__} has no {name}; export the whole model")
        chosen.append(replace(part, name=name, saved_as=renamed[root] + in_file.removeprefix(root)))
    return chosen


def _text_model(config: PreTrainedConfig) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise UserError(
            f"text_only: transformers has no text model of type {config.model_type!r}; export the whole model"
        ) from error
    return model


def _roots(causal: PreTrainedModel) -> tuple[str, str]:
    """How the names of the parameters of the text model and of its LM head begin."""
    paths = {id(module): path for path, module in causal.named_modules()}
    return f"{paths[id(text_backbone(causal))]}.", f"{paths[id(causal.get_output_embeddings())]}."
