"""Several adapters in one forward pass: each row of a batch computes with its own, or with the bare base.

PEFT can do this too (`adapter_names`), but takes the rows of each adapter out of every layer's input and puts its
output back, which makes a CUDA graph impossible, and ignores the names where a model generates in other ways.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lora_rlhf.model.lora_linear import Stack, add_stack, stacked
from lora_rlhf.system.errors import UserError

EXPERTS = "experts"


class Mixture:
    """Some roles with a copy of their adapters, to be entered with `with`: made by `SharedModel.mixture`.

    Before every forward pass `assign` says which role each row has. The same role may be there twice.

    own: each role's adapter, None for the bare base. block: what lets the model run as this mixture, by `take_over` at
    its beginning and `give_back` at its end or where another block begins inside.
    """

    def __init__(
        self,
        roles: Sequence[str],
        own: Sequence[str | None],
        peft: PeftModel | None,
        block: Callable[["Mixture"], AbstractContextManager[None]],
    ) -> None:
        self.roles = tuple(roles)
        self._own = tuple(own)
        self._adapters = tuple(dict.fromkeys(adapter for adapter in own if adapter is not None))
        self._layers = {} if peft is None else _stacks(peft, self._adapters)
        # For each choice of ranks that a layer makes: others (roles, rank), from which `assign` takes others (B, rank).
        self._tables = {stack.ranks: self._others(stack.ranks).to(stack.down.device) for stack in self._layers.values()}
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self._rows: int | None = None  # that were assigned
        self._tokens = 0  # in all of these rows
        self._undo: list[Callable[[], None]] = []
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

    def assign(self, places: Tensor) -> None:
        """Which role each row of the next forward pass has: (B,), places in `roles`, on the model's device."""
        if places.dim() != 1:
            raise ValueError(f"expected the place of a role for each row, (B,), got {tuple(places.shape)}")
        self._rows = len(places)
        self._masks = {ranks: table[places] for ranks, table in self._tables.items()}

    def take_over(self, backbone: nn.Module) -> None:
        """From now on the adapted layers compute so. All other adapters must be off."""
        before = backbone.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        after = backbone.register_forward_hook(self._after_forward)
        self._undo += [before.remove, after.remove]
        for layer, stack in self._layers.items():
            self._undo.append(functools.partial(_put_forward, layer, layer.__dict__.get("forward")))
            _put_forward(layer, functools.partial(self._forward, layer, stack))

    def give_back(self) -> None:
        """The layers compute again as they did before."""
        self._rows, self._masks = None, {}
        while self._undo:
            self._undo.pop()()

    def _before_forward(self, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows, tokens = (inputs[0] if inputs else named["input_ids"]).shape
        if self._rows is None:
            raise RuntimeError("a forward pass of a mixture whose rows have no roles: call `assign` before each one")
        if self._rows != rows:
            raise RuntimeError(f"a forward pass of {rows} rows, but {self._rows} were assigned to roles")
        if torch.is_grad_enabled():
            raise RuntimeError("a mixture of roles is for inference alone: gradients need a block of one role")
        self._tokens = rows * tokens

    def _after_forward(self, _module: nn.Module, _inputs: object, _output: object) -> None:
        self._rows, self._masks = None, {}

    def _forward(self, layer: LoraLayer, stack: Stack, inputs: Tensor, *args: Any, **named: Any) -> Tensor:
        if inputs.numel() != self._tokens * inputs.shape[-1]:
            raise RuntimeError(f"a layer saw {tuple(inputs.shape)}, which are not the batch's {self._tokens} tokens")
        result: Tensor = layer.base_layer(inputs, *args, **named)
        return add_stack(result, inputs, stack, self._masks[stack.ranks])

    def _others(self, ranks: tuple[int, ...]) -> Tensor:
        """(roles, rank): True on the ranks that are not of the role's own adapter."""
        owner = [adapter for adapter, rank in zip(self._adapters, ranks, strict=True) for _ in range(rank)]
        return torch.tensor([[adapter != own for adapter in owner] for own in self._own])


def _put_forward(layer: nn.Module, forward: Callable[..., Tensor] | None) -> None:
    """Let a layer compute so; None is its class's own way."""
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward


def _stacks(peft: PeftModel, adapters: Sequence[str]) -> dict[LoraLayer, Stack]:
    """The adapters side by side on each layer that one of them changes. UserError for layers without whole rows."""
    found: dict[LoraLayer, Stack] = {}
    for path, layer in peft.named_modules():
        stack = stacked(layer, adapters) if isinstance(layer, LoraLayer) else None
        if stack is not None and EXPERTS in path.split("."):
            raise UserError(
                f"roles cannot be mixed in one batch on this base: {path} is an expert, which sees single tokens "
                "of the batch in an order of its own; run one role after the other"
            )
        if stack is not None:
            found[layer] = stack
    return found
