"""The service that samples a role's responses: picks the engine, halves the batch on out of memory, uses seeds."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch

from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.template import stop_ids
from lora_rlhf.model.decode_step import Kept
from lora_rlhf.model.decode_weights import choose_merged_weights, fits_beside_largest_step, run_role
from lora_rlhf.model.engines import (
    TIMED_TOKENS,
    EngineChoice,
    measure_tokens_per_second,
    pick_engine,
    require_static_engine,
    usual_engine,
)
from lora_rlhf.model.generate import Engine, Response, generate_seeded
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import Parent
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.session import fixed_prompt_indices
from lora_rlhf.system import workers

log = logging.getLogger("lora_rlhf")

Responses = list[list[Response]]  # of each prompt, one response for each of its seeds


class Sampler:
    """Samples one role's responses. A response depends on its prompt and its seed alone, up to rounding.

    `engine` and `merge` (decode with base and adapter added up in a copy) choose the way; another way rounds otherwise,
    so a run that goes on keeps to the way that it began with.
    """

    def __init__(self, config: StageConfig, model: SharedModel, role: str, temperature: float = 1.0) -> None:
        self._model, self._role, self._temperature = model, role, temperature
        self._max_new_tokens, self._context = (
            config.max_response_tokens,
            config.max_prompt_tokens + config.max_response_tokens,
        )
        self.batch = AutoBatch.for_sampling(config)
        self.engine: Engine = usual_engine(model, self._context)
        self.merge = False
        # what stays on a GPU between two calls of `sample`; None where nothing may
        self._kept: Kept | None = Kept() if model.device.type == "cuda" else None
        self._is_kept_checked = False

    def sample(self, prompt_ids: list[list[int]], seeds: list[list[int]], activity: str = "sampling") -> Responses:
        """Samples, in this process, a response to each prompt for each of its seeds, in order.

        On a GPU slots, captured steps and merged weights stay for the next call where there is room beside the largest
        step so far.
        """
        stop = stop_ids(self._model.tokenizer)
        must_check = self._kept is not None and not self._is_kept_checked
        free_before = _free_bytes_of_gpu(self._model.device) if must_check else 0
        responses = self.batch.run(lambda size: self._generate(prompt_ids, seeds, stop, size, self._kept), activity)
        if must_check:
            self._is_kept_checked = True
            size = free_before - _free_bytes_of_gpu(self._model.device)
            if not fits_beside_largest_step(self._model.device, size):
                self.release()
        return responses

    def release(self) -> bool:
        """Lets go of what stays between two calls, for good; returns whether there was anything."""
        kept, self._kept = self._kept, None
        return kept is not None and kept.release()

    def sample_shared(self, prompt_ids: list[list[int]], seeds: list[list[int]]) -> Responses:
        """The same over all processes: each samples for its share of the prompts, and all get the whole list."""
        rows = workers.share_of_process(range(len(prompt_ids)))
        return workers.gather(self.sample([prompt_ids[row] for row in rows], [seeds[row] for row in rows]))

    def rehearse(self, longest: list[int]) -> None:
        """Samples once at the largest size, with the longest prompt and responses as long as allowed.

        Stopped where even one response does not fit into memory.
        """
        self.batch.run(lambda size: self._generate([longest] * size, [[0]] * size, [], size, None), "sampling")

    def choose_engine(self, choice: EngineChoice, prompts: Sequence[EncodedPrompt]) -> None:
        """Chooses the engine; "auto" times both on some of the prompts. All processes take the main one's pick."""

        def pick(size: int) -> Engine:
            with self._model.role(self._role):
                return pick_engine(
                    choice,
                    self._model,
                    [prompts[index].prompt_ids for index in fixed_prompt_indices(prompts, size)],
                    context=self._context,
                    max_new_tokens=self._max_new_tokens,
                    temperature=self._temperature,
                    batch_size=size,
                )

        self.engine = workers.from_main(lambda: self.batch.run(pick, "sampling"))

    def choose_weights(self, choice: Literal["auto", "merged", "adapter"], prompts: Sequence[EncodedPrompt]) -> None:
        """Chooses whether to decode with merged weights. Call it after the largest steps were rehearsed.

        "auto" takes them where they fit, on a GPU only if they are faster: for few responses at a time they are not,
        since a GPU reads 4 bits of a weight sooner than 16. All processes take the main one's pick.
        """
        self.merge = all(workers.gather([choose_merged_weights(self._model, choice)]))
        if self.merge and choice == "auto" and self._model.device.type == "cuda":
            self.merge = workers.from_main(lambda: self._is_faster_merged(prompts))

    def _is_faster_merged(self, prompts: Sequence[EncodedPrompt]) -> bool:
        """Times decoding with the adapter and with merged weights on some of the prompts; logs which is faster."""
        size, tokens = self.batch.size, min(TIMED_TOKENS, self._max_new_tokens)
        ids = [prompts[index].prompt_ids for index in fixed_prompt_indices(prompts, size)]
        speeds = []
        for merged in (False, True):
            with run_role(self._model, self._role, merged):
                settings = ids, tokens, self._temperature, size
                speeds.append(measure_tokens_per_second(self._model, self.engine, *settings))
        log.debug("decoding: %.0f tokens/s with the adapter, %.0f with merged weights", *speeds)
        return speeds[1] > speeds[0]

    def state_dict(self) -> dict[str, Any]:
        """The chosen engine and weights, for a checkpoint."""
        return {"engine": self.engine, "merge": self.merge}

    def _generate(
        self, prompt_ids: list[list[int]], seeds: list[list[int]], stop: list[int], size: int, kept: Kept | None
    ) -> Responses:
        with run_role(self._model, self._role, self.merge, kept):
            return generate_seeded(
                self._model,
                prompt_ids,
                seeds,
                max_new_tokens=self._max_new_tokens,
                temperature=self._temperature,
                stop_ids=stop,
                batch_size=size,
                engine=self.engine,
                kept=kept,
            )


def _free_bytes_of_gpu(device: torch.device) -> int:
    """Memory of a GPU that nobody holds, not even PyTorch for reuse."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def require_engine(config: PPOConfig | SampleConfig, parent: Parent) -> None:
    """UserError, before any weights are loaded, where the static engine is asked for and the base cannot run it."""
    if config.engine == "static":
        base = parent.manifest["base"]
        require_static_engine(
            base["name"], config.trust_remote_code, config.max_prompt_tokens + config.max_response_tokens
        )
