"""A batch size that adapts: when memory runs out, it is halved and the work is done again, which changes no result."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from lora_rlhf.configs.common import StageConfig
from lora_rlhf.model.forward import SCORED_AT_ONCE
from lora_rlhf.model.memory import free_memory
from lora_rlhf.system.errors import Stopped

log = logging.getLogger("lora_rlhf")

Result = TypeVar("Result")

# Messages of an exhausted memory that come without an OutOfMemoryError: cuBLAS's workspace, and allocation on the CPU.
OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")


@dataclass
class AutoBatch:
    """How many responses go through the model at a time in one kind of work; `flag` names the setting it comes from.

    The size is halved for good when memory runs out. When a single response does not fit, the run stops and `advice`
    says what to change. `spare` lets go of what other work keeps in memory, and returns whether there was anything:
    then the size stays.
    """

    flag: str
    size: int
    advice: str
    spare: Callable[[], bool] = lambda: False

    @classmethod
    def for_training(cls, config: StageConfig) -> "AutoBatch":
        """For passes over given responses: training and scoring."""
        advice = "give --gradient_checkpointing, or lower --max_prompt_tokens or --max_response_tokens"
        return cls("micro_batch_size", config.micro_batch_size, advice)

    @classmethod
    def for_sampling(cls, config: StageConfig) -> "AutoBatch":
        """For generation, which needs less memory per response than training."""
        advice = "lower --max_prompt_tokens or --max_response_tokens, or take a smaller base"
        return cls("generation_batch_size", config.generation_batch_size, advice)

    def run(self, work: Callable[[int], Result], activity: str) -> Result:
        """Returns `work(size)`, with a smaller size until it fits. Each call of `work` must begin anew."""
        while True:
            try:
                return work(self.size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            # outside the except block, where the error no longer holds the tensors of the work that failed
            if self.spare():
                free_memory()
                log.warning("out of memory in %s: nothing is kept for the next rollout from now on", activity)
            else:
                self._halve(activity, reason)

    def run_scoring(self, work: Callable[[int], Result]) -> Result:
        """The same for passes without gradients, which keep nothing: they take SCORED_AT_ONCE times as many rows."""
        return self.run(lambda size: work(SCORED_AT_ONCE * size), "scoring")

    def _halve(self, activity: str, reason: str) -> None:
        """Halves the size after out of memory, with a warning. Stopped when the size is 1 already."""
        free_memory()
        if self.size == 1:
            raise Stopped(f"out of memory in {activity} with {self.flag} 1: {self.advice}\n{reason}")
        self.size //= 2
        log.warning("out of memory in %s: going on with %s %d (same results)", activity, self.flag, self.size)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or on the CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(m in str(error) for m in OUT_OF_MEMORY)
