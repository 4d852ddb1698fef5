"""Optimizers of adapters: PyTorch's AdamW, and bitsandbytes' with moments in 8 bits or in paged memory."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW, PagedAdamW8bit
from torch import Tensor, nn

from lora_rlhf.system.errors import UserError

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]


def make_optimizer(
    name: OptimizerName, parameters: list[nn.Parameter], learning_rate: float, eps: float
) -> torch.optim.Optimizer:
    """An optimizer without weight decay: an adapter of zeros is not a better model. Its moments are allocated now.

    UserError for a paged optimizer without a GPU, whose memory it would page.
    """
    if name == "adamw":
        adamw = torch.optim.AdamW(parameters, lr=learning_rate, eps=eps, weight_decay=0.0)
        for parameter in parameters:  # now, so that the first step needs no new memory
            zeros = {moment: torch.zeros_like(parameter) for moment in ("exp_avg", "exp_avg_sq")}
            adamw.state[parameter] = {"step": torch.tensor(0.0), **zeros}
        return adamw
    if name != "adamw_8bit" and parameters[0].device.type != "cuda":
        raise UserError(
            f"optimizer is {name}, but memory is paged between a GPU and its host, and this runs on "
            f"{parameters[0].device.type}; take adamw or adamw_8bit"
        )
    optimizer_class = {"adamw_8bit": AdamW8bit, "paged_adamw": PagedAdamW, "paged_adamw_8bit": PagedAdamW8bit}[name]
    optimizer: Any = optimizer_class(parameters, lr=learning_rate, eps=eps, weight_decay=0.0)
    optimizer.check_overrides()
    optimizer.initialized = True
    for index, parameter in enumerate(parameters):  # as in its first step
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
    bitsandbytes_optimizer: torch.optim.Optimizer = optimizer
    return bitsandbytes_optimizer


def copy_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's state of a parameter, copied to the CPU."""
    state = optimizer.state[parameter]
    return {name: torch.as_tensor(value).detach().to("cpu", copy=True) for name, value in state.items()}


def load_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, saved: Mapping[str, Tensor]) -> None:
    """Restores what `copy_moments` returned, bit for bit. KeyError for a missing one, RuntimeError for a wrong one."""
    state = optimizer.state[parameter]
    for name, value in state.items():
        if isinstance(value, Tensor):
            value.copy_(saved[name])
        else:  # bitsandbytes counts steps in a plain number
            state[name] = int(saved[name])
