"""Several adapters in one forward pass: each row of a batch computes with its own adapter, or with the bare base.

PEFT can do this too (`adapter_names`), but takes the rows of each adapter out of every layer's input and puts its
output back, which makes a CUDA graph impossible, and ignores the names where a model generates in other ways.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lora_rlhf.model.adapted_linear import LinearMode, adapted_layers, add_product
from lora_rlhf.system.errors import UserError

EXPERTS_PART = "experts"


@dataclass(frozen=True)
class Stack:
    """The adapters of one layer in one matrix each: A (rank, in) and scale B (out, rank), with all their ranks.

    ranks: of each adapter, 0 if it does not change the layer.
    """

    ranks: tuple[int, ...]
    down: Tensor
    up: Tensor


class Mixture(LinearMode):
    """Several roles with a copy of their adapters, to be entered with `with`; `SharedModel.mixture` makes it.

    Before every forward pass `assign` sets the role of each row. A role may be in the mixture twice.

    adapters: of each role, None for the bare base. block: runs the model in this mode, with PEFT's adapters off.
    dtype: of the copy of the adapters, in which their products are.
    """

    def __init__(
        self,
        roles: Sequence[str],
        adapters: Sequence[str | None],
        peft: PeftModel | None,
        block: Callable[["Mixture"], AbstractContextManager[None]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.roles = tuple(roles)
        self._adapters = tuple(adapters)
        self._distinct = tuple(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        self._stacks = {} if peft is None else _stack_layers(peft, self._distinct, dtype)
        # Layers whose adapters have the same ranks share a table (roles, rank), from which `assign` takes (B, rank).
        self._tables = {
            stack.ranks: self._foreign_rank_mask(stack.ranks).to(stack.down.device) for stack in self._stacks.values()
        }
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self._assigned_rows: int | None = None
        self._tokens = 0  # in all rows of this pass
        self._block = block
        self._entered: list[ExitStack] = []

    def __enter__(self) -> "Mixture":
        with ExitStack() as stack:
            stack.enter_context(self._block(self))
            stack.enter_context(torch.no_grad())
            self._entered.append(stack.pop_all())
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)

    def assign(self, indices: Tensor) -> None:
        """Sets the role of each row of the next forward pass: (B,), indices in `roles`, on the model's device."""
        if indices.dim() != 1:
            raise ValueError(f"expected the index of a role for each row, (B,), got {tuple(indices.shape)}")
        self._assigned_rows = len(indices)
        self._masks = {ranks: table[indices] for ranks, table in self._tables.items()}

    def before_pass(self, inputs: tuple[Any, ...], keyword_inputs: dict[str, Any]) -> None:
        rows, tokens = (inputs[0] if inputs else keyword_inputs["input_ids"]).shape
        if self._assigned_rows is None:
            raise RuntimeError("a forward pass of a mixture whose rows have no roles: call `assign` before each one")
        if self._assigned_rows != rows:
            raise RuntimeError(f"a forward pass of {rows} rows, but {self._assigned_rows} were assigned to roles")
        if torch.is_grad_enabled():
            raise RuntimeError("a mixture of roles is for inference alone: gradients need a block of one role")
        self._tokens = rows * tokens

    def after_pass(self) -> None:
        self._assigned_rows, self._masks = None, {}

    def on_mode_end(self) -> None:
        self.after_pass()

    def forward(self, layer: LoraLayer, inputs: Tensor) -> Tensor:
        stack = self._stacks.get(layer)
        if stack is None:
            return super().forward(layer, inputs)
        if inputs.numel() != self._tokens * inputs.shape[-1]:
            raise RuntimeError(f"a layer saw {tuple(inputs.shape)}, which are not the batch's {self._tokens} tokens")
        result: Tensor = layer.base_layer(inputs)
        # One product for all adapters wastes a little arithmetic, but needs no sorted rows, no gathers and no
        # waiting for the GPU. The results of other roles' adapters are set to 0.
        foreign_mask = self._masks[stack.ranks]
        low_rank = inputs.reshape(-1, inputs.shape[-1]).to(stack.down.dtype) @ stack.down.T
        low_rank.view(len(foreign_mask), -1, low_rank.shape[-1]).masked_fill_(foreign_mask[:, None], 0)
        add_product(result, low_rank, stack.up, 1.0)
        return result

    def _foreign_rank_mask(self, ranks: tuple[int, ...]) -> Tensor:
        """(roles, rank): True on the ranks of all adapters but the role's own."""
        owners = [adapter for adapter, rank in zip(self._distinct, ranks, strict=True) for _ in range(rank)]
        return torch.tensor([[owner != adapter for owner in owners] for adapter in self._adapters])


def _stack_layers(peft: PeftModel, adapters: Sequence[str], dtype: torch.dtype) -> dict[LoraLayer, Stack]:
    """The stacked adapters of each layer that one of them changes. UserError for layers that see no whole rows."""
    linear_layers = set(adapted_layers(peft))
    stacks: dict[LoraLayer, Stack] = {}
    for path, layer in peft.named_modules():
        stack = _stack_layer(layer, adapters, dtype) if isinstance(layer, LoraLayer) else None
        if stack is None:
            continue
        if EXPERTS_PART in path.split(".") or layer not in linear_layers:  # PEFT wraps experts as parameters too
            raise UserError(
                f"roles cannot be mixed in one batch on this base: {path} is an expert, which sees single tokens "
                "of the batch in an order of its own; run one role after the other"
            )
        stacks[layer] = stack
    return stacks


def _stack_layer(layer: LoraLayer, adapters: Sequence[str], dtype: torch.dtype) -> Stack | None:
    """A stacked copy of these adapters of a layer; None if none of them changes it."""
    present_adapters = [adapter for adapter in adapters if adapter in layer.lora_A]
    if not present_adapters:
        return None
    return Stack(
        tuple(layer.r[adapter] if adapter in present_adapters else 0 for adapter in adapters),
        torch.cat([layer.lora_A[adapter].weight.detach() for adapter in present_adapters]).to(dtype),
        torch.cat(
            [layer.lora_B[adapter].weight.detach() * layer.scaling[adapter] for adapter in present_adapters], dim=1
        ).to(dtype),
    )
