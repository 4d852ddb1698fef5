"""Work in pieces that fit into memory: when it runs out, the pieces are halved, which changes no result."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from lora_rlhf.system.errors import Stopped

log = logging.getLogger("lora_rlhf")

Result = TypeVar("Result")

# What says that memory ran out, where it is no OutOfMemoryError: cuBLAS's workspace, and allocation on the CPU.
SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")


@dataclass
class Pieces:
    """How many responses go through the model at a time in one kind of work, from a flag of that `name`.

    Halved for good when memory runs out. With 1 that does not fit, the run stops and `advice` says what to change.
    """

    name: str
    size: int
    advice: str

    def run(self, work: Callable[[int], Result], what: str) -> Result:
        """`work(size)`, with a smaller size until it fits. It must begin anew each time that it is called."""
        while True:
            try:
                return work(self.size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            # outside the except block, where the error no longer holds the tensors of the work that failed
            self._halve(what, reason)

    def _halve(self, what: str, reason: str) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.size == 1:
            raise Stopped(f"out of memory in {what} with {self.name} 1: {self.advice}\n{reason}")
        self.size //= 2
        log.warning("out of memory in %s: going on with %s %d (same results)", what, self.name, self.size)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or on the CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in SIGNS)
