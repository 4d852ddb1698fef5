"""Before PPO begins: its largest steps, of which no trace remains, so that what cannot fit fails at once."""

import torch

from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.model.forward import Sequences
from lora_rlhf.model.generate import Engine, GeneratedResponse, generate_seeded
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.fitting import Pieces
from lora_rlhf.stages.rollout import Rollout
from lora_rlhf.stages.update import Learner, Targets
from lora_rlhf.system import workers


def rehearse(
    config: PPOConfig,
    model: SharedModel,
    learner: Learner,
    longest: EncodedPrompt,
    sampled: Pieces,
    pieces: Pieces,
    engine: Engine,
) -> None:
    """Samples and learns once with the longest prompt and responses as long as allowed, in pieces as large as allowed.

    The pieces are halved where memory runs out, as later; Stopped where even one response does not fit.
    """

    def sample(size: int) -> list[list[GeneratedResponse]]:
        with model.role("policy"):
            return generate_seeded(
                model,
                [longest.prompt_ids] * size,
                [[0]] * size,
                max_new_tokens=config.max_response_tokens,
                temperature=config.temperature,
                stop_ids=[],
                batch_size=size,
                engine=engine,
            )

    sampled.run(sample, "sampling")
    rows = min(pieces.size, config.minibatch_size) * workers.count()
    rollout = _longest_rollout(config, model, longest, rows)
    zeros = torch.zeros_like(rollout.old_logprobs)
    learner.rehearse(rollout, Targets(zeros, None if rollout.values is None else zeros))


def _longest_rollout(config: PPOConfig, model: SharedModel, longest: EncodedPrompt, rows: int) -> Rollout:
    prompts = torch.tensor([longest.prompt_ids] * rows, device=model.device)
    responses = prompts[:, -1:].expand(rows, config.max_response_tokens).contiguous()
    masks = (torch.ones_like(ids, dtype=torch.bool) for ids in (prompts, responses))
    sequences = Sequences(prompts, next(masks), responses, next(masks))
    zeros = torch.zeros(responses.shape, device=model.device)
    values = zeros if config.advantage == "gae" else None
    finished = torch.ones(rows, dtype=torch.bool, device=model.device)
    return Rollout(sequences, finished, zeros[:, 0], zeros, zeros, values, zeros, 0.0)
