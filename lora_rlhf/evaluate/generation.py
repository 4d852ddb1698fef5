"""What is compared: responses of one role to held-out prompts, and how far the policy's are from the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lora_rlhf.algo.kl import k1, k3
from lora_rlhf.algo.masking import masked_mean
from lora_rlhf.config import EvaluateConfig
from lora_rlhf.data.batches import pad_left, pad_right
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.template import decode_response, pad_id, stop_ids
from lora_rlhf.model.forward import Sequences, in_micro_batches, response_logprobs
from lora_rlhf.model.generate import generate
from lora_rlhf.model.shared import SharedModel


@dataclass(frozen=True)
class Answer:
    """One response: its ids with the stop token where it `finished`, and its text without."""

    ids: list[int]
    text: str
    finished: bool


class PolicyKL(NamedTuple):
    """`per_response`: k1 summed over each response, in nats. `k3_per_token`: mean over all tokens, in nats."""

    per_response: list[float]
    k3_per_token: float


def respond(
    config: EvaluateConfig, model: SharedModel, role: str, prompts: Sequence[EncodedPrompt], temperature: float
) -> list[Answer]:
    """One response of `role` to each prompt, from the configured seed: equal roles give equal responses."""
    with model.role(role):
        groups = generate(
            model,
            [prompt.prompt_ids for prompt in prompts],
            max_new_tokens=config.max_response_tokens,
            temperature=temperature,
            stop_ids=stop_ids(model.tokenizer),
            generator=torch.Generator().manual_seed(config.seed),
            batch_size=config.generation_batch_size,
        )
    return [Answer(r.ids, decode_response(model.tokenizer, r.ids).strip(), r.finished) for (r,) in groups]


@torch.no_grad()
def policy_kl(
    model: SharedModel, reference: str, prompts: Sequence[EncodedPrompt], answers: Sequence[Answer], size: int
) -> PolicyKL:
    """KL of the policy from the `reference` role over the policy's own responses, sampled at temperature 1."""
    batch = sequences_of(model, prompts, answers)
    logprobs = []
    for role in ("policy", reference):
        with model.role(role):
            logprobs.append(
                in_micro_batches(lambda part: response_logprobs(model, part, entropy=False)[0], batch, size)
            )
    return PolicyKL(k1(*logprobs).sum(dim=1).tolist(), masked_mean(k3(*logprobs), batch.response_mask).item())


def sequences_of(model: SharedModel, prompts: Sequence[EncodedPrompt], answers: Sequence[Answer]) -> Sequences:
    """Prompts and responses as padded tensors on the model's device."""
    pad = pad_id(model.tokenizer)
    left = pad_left([prompt.prompt_ids for prompt in prompts], pad)
    return Sequences(*left, *pad_right([answer.ids for answer in answers], pad)).to(model.device)
