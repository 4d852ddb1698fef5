"""The sequence classifier that transformers has for an architecture: the class that loads a plain reward model."""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from lora_rlhf.model.heads import SCORE
from lora_rlhf.model.merging import Mode, Part
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.system.errors import UserError


class Classifier(NamedTuple):
    """architecture: its class. parameters: their names; those of its backbone are the causal model's too.

    norm_bias: the parameter that is added last before the head reads the hidden state; None for families whose last
    norm has no bias, such as RMSNorm.
    """

    architecture: str
    parameters: frozenset[str]
    norm_bias: str | None


def describe_classifier(config: PreTrainedConfig) -> Classifier:
    """Name, tensor names and norm bias of transformers' sequence classifier with one output; no weights.

    UserError if transformers has none for this config whose head is a linear layer without bias.
    """
    single = deepcopy(config)
    single.num_labels = 1
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(single)
            causal = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise _export_error(config, "transformers has no sequence classifier for it") from error
    head = getattr(model, SCORE, None)
    if not isinstance(head, nn.Linear) or head.bias is not None or head.out_features != 1:
        raise _export_error(
            config, f"its classifier {type(model).__name__} has no linear layer {SCORE!r} without a bias"
        )
    if model.base_model_prefix != causal.base_model_prefix:
        raise _export_error(config, f"its classifier {type(model).__name__} keeps the backbone elsewhere")
    return Classifier(type(model).__name__, frozenset(model.state_dict()), _norm_bias(model))


def _norm_bias(model: PreTrainedModel) -> str | None:
    """The bias of the only LayerNorm outside the backbone's blocks, which must then be the last one."""
    norms = [name for name, module in model.base_model.named_children() if isinstance(module, nn.LayerNorm)]
    if len(norms) != 1 or getattr(model.base_model, norms[0]).bias is None:
        return None
    return f"{model.base_model_prefix}.{norms[0]}.bias"


class PlainClassifier:
    """An exported reward model, loaded as its users load it: no code of this package computes its score."""

    def __init__(self, folder: str, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, trust_remote_code=trust_remote_code
        ).eval()

    @torch.no_grad()
    def score(self, ids: list[int]) -> float:
        """The output for one conversation, without padding."""
        return float(self.model(input_ids=torch.tensor([ids], device=self.model.device)).logits[0, 0])

    @torch.no_grad()
    def load_merged_weights(
        self, parts: list[Part], mode: Mode, dtype: torch.dtype, skipped_parameter: str | None
    ) -> None:
        """Replaces its weights by other merged ones, rounded to `dtype`, except those of `skipped_parameter`."""
        state = self.model.state_dict()
        for part in parts:
            if part.name in state and part.name != skipped_parameter and not part.joined:
                values = torch.cat([torch.atleast_1d(piece) for piece in part.pieces(mode, dtype, self.model.device)])
                state[part.name].copy_(values.view_as(state[part.name]))


@torch.no_grad()
def score_without_adapter(model: SharedModel, head: Tensor, ids: list[int]) -> float:
    """The score that the head (1, H) gives to the bare base's last hidden state, without the adapter."""
    with model.role(BASE):
        output = model.backbone(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return float(output.last_hidden_state[0, -1].float() @ head[0].to(model.device))


def _export_error(config: PreTrainedConfig, reason: str) -> UserError:
    """The UserError for a reward model that cannot become a plain model."""
    return UserError(
        f"a {config.model_type!r} reward model cannot be exported as a plain model: {reason}; use --form adapter, "
        "which loads on the base with PEFT"
    )
