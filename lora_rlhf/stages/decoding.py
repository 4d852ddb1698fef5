"""How a stage's responses are generated: by which engine, and whether with weights that the adapter was added to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.model.decode_weights import choose_merged
from lora_rlhf.model.engines import EngineChoice, pick_engine, require_static
from lora_rlhf.model.generate import Engine
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import Parent
from lora_rlhf.stages.fitting import Pieces
from lora_rlhf.stages.session import pick_fixed
from lora_rlhf.system import workers


@dataclass(frozen=True)
class Decoding:
    """What was chosen. A run that goes on keeps to it: another way rounds otherwise."""

    engine: Engine = "plain"
    merge: bool = False


PLAIN = Decoding()


def require_rollout(config: PPOConfig | SampleConfig, parent: Parent) -> None:
    """UserError, before any weights are loaded, where engine is "static" and the parent's base cannot do that."""
    if config.engine == "static":
        base = parent.manifest["base"]
        require_static(base["name"], config.trust_remote_code, config.max_prompt_tokens + config.max_response_tokens)


def choose_engine(
    config: PPOConfig | SampleConfig,
    rollout: EngineChoice,
    model: SharedModel,
    role: str,
    prompts: Sequence[EncodedPrompt],
    pieces: Pieces,
) -> Engine:
    """The engine that a role's responses come from, in every process the one that the main process picks."""

    def pick(size: int) -> Engine:
        with model.role(role):
            return pick_engine(
                rollout,
                model,
                [prompts[place].prompt_ids for place in pick_fixed(prompts, size)],
                context=config.max_prompt_tokens + config.max_response_tokens,
                max_new_tokens=config.max_response_tokens,
                temperature=config.temperature,
                batch_size=size,
            )

    return workers.from_main(lambda: pieces.run(pick, "sampling"))


def choose_merge(config: PPOConfig, model: SharedModel) -> bool:
    """Whether all processes decode with merged weights. To be asked after the largest steps have been rehearsed."""
    return all(workers.gather([choose_merged(model, config.decode_weights)]))


def asked_for(config: PPOConfig, before: dict[str, Any] | None) -> tuple[EngineChoice, bool | None]:
    """Engine and merging as the settings have them or, where these leave it open, as the run began; None: to choose."""
    rollout = config.engine if config.engine != "auto" or before is None else before["engine"]
    merge = before["merge"] if config.decode_weights == "auto" and before is not None else None
    return rollout, merge
