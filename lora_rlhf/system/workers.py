"""Several processes that train together (`accelerate launch`): who does which share, and how results are joined.

Every process holds its own base and computes its share of a batch; gradients are summed, so that each takes the same
step. In a single process these functions cost nothing.
"""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

Item = TypeVar("Item")


def rank() -> int:
    """This process's number, from 0, as the launcher says."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def process_count() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def device_of_process(name: str) -> str:
    """The device of this process: of several GPUs, "auto" and "cuda" take the one that the launcher gave it."""
    if process_count() > 1 and name in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


def share_of_process(items: Sequence[Item]) -> list[Item]:
    """The items of this process: every `count`-th from the `rank`-th on, so that sorted items are shared fairly."""
    return [items[index] for index in range(rank(), len(items), process_count())]


def gather(items: Sequence[Item]) -> list[Item]:
    """All processes' items in the order from which `share` took them, in every process."""
    if process_count() == 1:
        return list(items)
    parts = _all_gather_objects(list(items))
    return [parts[index % process_count()][index // process_count()] for index in range(sum(map(len, parts)))]


def gather_rows(rows: "Tensor") -> "Tensor":
    """All processes' rows (b, ...) in the order from which `share` took them: (B, ...), on this process's device."""
    if process_count() == 1:
        return rows
    import torch

    return torch.stack(gather(list(rows.cpu()))).to(rows.device)


def sum_all(values: dict[str, float]) -> dict[str, float]:
    """Each value summed over the processes, in rank order; a process may lack some of them."""
    if process_count() == 1:
        return values
    parts = _all_gather_objects(values)
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: sum(part.get(key, 0.0) for part in parts) for key in keys}


def any_of(flag: bool) -> bool:
    """Whether it is true in any process."""
    return flag if process_count() == 1 else any(_all_gather_objects(flag))


def sum_gradients(parameters: Iterable["nn.Parameter"]) -> None:
    """Adds up the gradients of all processes, in place. A process without a gradient adds zeros."""
    if process_count() == 1:
        return
    import torch

    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    _process_group().all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def from_main(work: Callable[[], Item]) -> Item:
    """Runs `work` in the main process only, and returns its result in all. Its UserError is raised in all."""
    if process_count() == 1:
        return work()
    result_and_error: list[Any] = [None, None]
    if is_main():
        try:
            result_and_error[0] = work()
        except UserError as error:
            result_and_error[1] = str(error)
    _process_group().broadcast_object_list(result_and_error)
    result, error_message = result_and_error
    if error_message is not None:
        raise UserError(error_message)
    return cast(Item, result)


def disconnect() -> None:
    """Ends the connection once all processes are here: one that left earlier would make the others fail."""
    if _process_group.cache_info().currsize:
        _process_group().barrier()
        _process_group().destroy_process_group()
        _process_group.cache_clear()


def _all_gather_objects(value: Item) -> list[Item]:
    values: list[Any] = [None] * process_count()
    _process_group().all_gather_object(values, value)
    return values


@functools.cache
def _process_group() -> Any:
    """torch.distributed, connected. Accelerate chooses the backend: NCCL between GPUs, Gloo between CPUs."""
    import torch.distributed
    from accelerate import PartialState

    # A process may wait long for another one, which evaluates, for example; one that died is noticed at once.
    PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    return torch.distributed
