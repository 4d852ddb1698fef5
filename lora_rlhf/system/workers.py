"""Several processes that train together (`accelerate launch`): who does what share, and how results are put together.

Every process holds its own base and computes its share of a batch; gradients are summed, so that each makes the same
step. Alone, each of these functions is free of cost.
"""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

Item = TypeVar("Item")


def rank() -> int:
    """This process's number, from 0, as the launcher says."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def count() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def device(asked: str) -> str:
    """The device of this process: of several GPUs, "auto" and "cuda" take the one that the launcher gave it."""
    if count() > 1 and asked in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return asked


def share(items: Sequence[Item]) -> list[Item]:
    """The items of this process: every `count`-th from the `rank`-th on, so that sorted items are shared fairly."""
    return [items[place] for place in range(rank(), len(items), count())]


def gather(own: Sequence[Item]) -> list[Item]:
    """All processes' items in the order from which `share` took them, in every process."""
    if count() == 1:
        return list(own)
    parts = _all(list(own))
    return [parts[place % count()][place // count()] for place in range(sum(map(len, parts)))]


def gather_rows(own: "Tensor") -> "Tensor":
    """All processes' rows (b, ...) in the order from which `share` took them: (B, ...), on this process's device."""
    if count() == 1:
        return own
    import torch

    return torch.stack(gather(list(own.cpu()))).to(own.device)


def sum_all(values: dict[str, float]) -> dict[str, float]:
    """Each value summed over the processes, in rank order; a process may lack some of them."""
    if count() == 1:
        return values
    parts = _all(values)
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: sum(part.get(key, 0.0) for part in parts) for key in keys}


def any_of(flag: bool) -> bool:
    """Whether it is true in any process."""
    return flag if count() == 1 else any(_all(flag))


def sum_gradients(parameters: Iterable["nn.Parameter"]) -> None:
    """Adds up the gradients of all processes, in place. One that had nothing to compute adds zeros."""
    if count() == 1:
        return
    import torch

    trained = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    _group().all_reduce(flat)
    for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def from_main(work: Callable[[], Item]) -> Item:
    """What `work` gives in the main process, which alone runs it. Its UserError is raised in all."""
    if count() == 1:
        return work()
    answer: list[Any] = [None, None]
    if is_main():
        try:
            answer[0] = work()
        except UserError as error:
            answer[1] = str(error)
    _group().broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    found: Item = answer[0]
    return found


def leave() -> None:
    """Ends the connection, once all processes have come so far: one that left earlier would tear the others down."""
    if _group.cache_info().currsize:
        _group().barrier()
        _group().destroy_process_group()
        _group.cache_clear()


def _all(value: Item) -> list[Item]:
    found: list[Any] = [None] * count()
    _group().all_gather_object(found, value)
    return found


@functools.cache
def _group() -> Any:
    """torch.distributed, connected. Accelerate chooses the backend: NCCL between GPUs, Gloo between CPUs."""
    import torch.distributed
    from accelerate import PartialState

    # One may wait long for another, which writes an evaluation, say; what died is seen without any limit.
    PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    return torch.distributed
