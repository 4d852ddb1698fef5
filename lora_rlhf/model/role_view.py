"""A role of the shared model in the form that another library's trainer takes: a model with a backbone and a head."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutput, ModelOutput

from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.shared import SharedModel


class RoleView(PreTrainedModel):
    """A role of the shared model without parameters of its own: TRL runs `base_model`, then the LM head.

    Whatever a trainer does to a model that it is given (casting adapters, adding and switching them, patching forward
    and configuration) it does to this view. A pass reads each distinct row once, however many pairs it stands in. The
    backbone runs in micro-batches of `size` rows, of which only the hidden states are kept for the backward pass: so a
    loss over a whole batch does not depend on the size.
    """

    config_class = PreTrainedConfig

    def __init__(self, model: SharedModel, role: str) -> None:
        config = deepcopy(model.causal.config)
        config._attn_implementation_internal = "eager"  # nothing here attends; the base keeps its own setting
        # the base's routers are frozen: a loss that balances them could teach nothing
        config.get_text_config().output_router_logits = False
        config.get_text_config().router_aux_loss_coef = 0.0
        super().__init__(config)
        self.generation_config = GenerationConfig()
        self._shared, self._role = [model], role  # in a list: its modules are not this view's
        self.size = 1

    @property
    def device(self) -> torch.device:
        return self._shared[0].device

    @property
    def is_gradient_checkpointing(self) -> bool:
        """TRL would turn it off around the reference's passes, which keep nothing anyway."""
        return False

    @property
    def base_model(self) -> Callable[..., BaseModelOutputWithPast]:
        """(ids, mask) (B, T), padded on the right -> the hidden states (B, T, H), in float32 or wider."""
        return self._read

    def get_output_embeddings(self) -> nn.Module:
        return self._shared[0].causal.get_output_embeddings()

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> ModelOutput:
        """What `forward` gives for these rows (B, T); inputs: `labels` (B, T), and settings."""
        tensors = {"input_ids": input_ids, "attention_mask": attention_mask}
        tensors |= {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        rows, positions = torch.unique(torch.cat([*tensors.values()], dim=1), dim=0, return_inverse=True)
        distinct = dict(zip(tensors, rows.split(input_ids.shape[1], dim=1), strict=True))
        output = super().__call__(**(inputs | distinct))
        return type(output)(
            **{name: value[positions.to(value.device)] if value.ndim else value for name, value in output.items()}
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_settings: Any) -> CausalLMOutput:
        """The logits (B, T, V). TRL 1.16 puts a head of its own in this place, which makes them in parts."""
        hidden = self._read(input_ids, attention_mask).last_hidden_state
        return CausalLMOutput(logits=lm_logits(self._shared[0].causal, hidden))

    def _read(self, input_ids: Tensor, attention_mask: Tensor, **_settings: Any) -> BaseModelOutputWithPast:
        """The hidden states. Of TRL's other arguments all say what holds here anyway: no cache, no router logits."""
        model, width = self._shared[0], input_ids.shape[1]
        ids, mask = input_ids.to(model.device), attention_mask.to(model.device).bool()
        order = mask.sum(dim=1).argsort(descending=True, stable=True)  # the longest first: what does not fit fails soon
        parts = order.split(self.size)
        hidden = []
        with model.role(self._role, training=torch.is_grad_enabled()):
            for part in parts:
                longest = int(mask[part[0]].sum())
                inputs = ids[part, :longest]
                if len(parts) > 1 and torch.is_grad_enabled():
                    states = checkpoint(self._backbone, inputs, use_reentrant=False, preserve_rng_state=False)
                else:
                    states = self._backbone(inputs)
                hidden.append(nn.functional.pad(states, (0, 0, 0, width - longest)))
        return BaseModelOutputWithPast(last_hidden_state=torch.cat(hidden)[order.argsort()])

    def _backbone(self, ids: Tensor) -> Tensor:
        # padding is on the right, where no token sees it: attention needs no mask, and runs PyTorch's causal kernel
        states: Tensor = self._shared[0].backbone(input_ids=ids, use_cache=False).last_hidden_state
        # at least float32: TRL multiplies with the LM head in the dtype of its input; 16 bits are too coarse for logits
        return states.to(torch.promote_types(states.dtype, torch.float32))
