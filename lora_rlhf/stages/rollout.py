"""One PPO iteration's experience: sampled responses, their scores, and what policy, reference and value say of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_rlhf.config import PPOConfig
from lora_rlhf.data.batches import pad_left, pad_right
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.template import decode_response, pad_id, stop_ids
from lora_rlhf.errors import UserError
from lora_rlhf.model.forward import Sequences, in_micro_batches, response_logprobs, response_scores, response_values
from lora_rlhf.model.generate import GeneratedResponse, generate
from lora_rlhf.model.shared import SharedModel

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


@dataclass(frozen=True)
class Rollout:
    """B responses and everything about them that the update needs, on the model's device.

    old_logprobs, ref_logprobs, values (B, R) are 0 where masked; values are None without a value role. scores (B,) are
    in units of the demonstrations' sd, and so are values, from which the reward model's offset is taken as it is from
    scores. finished (B,) is True where the response ended by itself.
    """

    sequences: Sequences
    finished: Tensor
    scores: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor | None
    entropy: Tensor
    value_offset: float

    @property
    def mask(self) -> Tensor:
        return self.sequences.response_mask


@dataclass(frozen=True)
class Judge:
    """What a response is worth: the reward role's score, a verifiable reward's, or a weighted sum of both."""

    model_weight: float
    offset: float
    function: RewardFunction | None
    function_weight: float
    clip: float | None

    def scores(self, model: SharedModel, sequences: Sequences, texts: tuple[list[str], list[str]], size: int) -> Tensor:
        """(B,) float32. UserError when a reward function returns something else than one number per response."""
        total = torch.zeros(len(sequences), device=model.device)
        if self.model_weight:
            with model.role("reward"):
                raw = in_micro_batches(lambda part: response_scores(model, part), sequences, size)
            total = total + self.model_weight * (raw - self.offset)
        if self.function is not None:
            total = total + self.function_weight * _checked(self.function(*texts), len(texts[1])).to(model.device)
        return total if self.clip is None else total.clamp(-self.clip, self.clip)


def _checked(returned: object, count: int) -> Tensor:
    """What a reward function returned, as (count,) float32 on the CPU."""
    try:
        values = torch.as_tensor(returned, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(returned).__name__
        raise UserError(f"the reward function returned no list of numbers, but a {kind} ({error})") from error
    if values.shape != (count,) or not bool(values.isfinite().all()):
        raise UserError(
            f"the reward function returned {tuple(values.shape)} values (all finite: {bool(values.isfinite().all())}), "
            f"expected one finite number for each of {count} responses"
        )
    return values


def act(
    config: PPOConfig,
    model: SharedModel,
    prompts: list[EncodedPrompt],
    generator: torch.Generator,
    role: str = "policy",
) -> list[GeneratedResponse]:
    """Samples `samples_per_prompt` responses of each prompt, side by side."""
    with model.role(role):
        groups = generate(
            model,
            [prompt.prompt_ids for prompt in prompts],
            max_new_tokens=config.max_response_tokens,
            temperature=config.temperature,
            stop_ids=stop_ids(model.tokenizer),
            generator=generator,
            num_samples=config.samples_per_prompt,
            batch_size=config.generation_batch_size,
        )
    return [response for group in groups for response in group]


@torch.no_grad()
def collect(
    config: PPOConfig,
    model: SharedModel,
    judge: Judge,
    prompts: list[EncodedPrompt],
    responses: list[GeneratedResponse],
) -> Rollout:
    """Judges sampled responses: the score once a response, log-probs and values at every token."""
    repeated = [prompt for prompt in prompts for _ in range(config.samples_per_prompt)]
    pad = pad_id(model.tokenizer)
    sequences = Sequences(
        *pad_left([prompt.prompt_ids for prompt in repeated], pad), *pad_right([r.ids for r in responses], pad)
    ).to(model.device)
    size = config.micro_batch_size
    texts = (
        [prompt.prompt.messages[-1].content for prompt in repeated],
        [decode_response(model.tokenizer, response.ids).strip() for response in responses],
    )
    scores = judge.scores(model, sequences, texts, size)

    def logprobs(part: Sequences) -> Tensor:
        return torch.stack(response_logprobs(model, part, config.temperature), dim=-1)

    with model.role("reference"):
        reference = in_micro_batches(logprobs, sequences, size)
    with model.role("policy"):
        policy = in_micro_batches(logprobs, sequences, size)
    values = None
    if config.advantage == "gae":
        with model.role("value"):
            values = in_micro_batches(lambda part: response_values(model, part), sequences, size)
            values = torch.where(sequences.response_mask, values - judge.offset, 0.0)
    finished = torch.tensor([response.finished for response in responses], device=model.device)
    return Rollout(sequences, finished, scores, policy[..., 0], reference[..., 0], values, policy[..., 1], judge.offset)
