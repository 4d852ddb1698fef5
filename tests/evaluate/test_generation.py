"""Responses from a seed, and the KL of the policy, against whole forward passes one response at a time."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evaluation_helpers import QUESTIONS

from lora_rlhf.config import EvaluateConfig
from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Prompt
from lora_rlhf.evaluate.generation import policy_kl, respond
from lora_rlhf.model.shared import SharedModel


@pytest.fixture
def prompts(trained: SharedModel) -> list[EncodedPrompt]:
    return encode_prompts(trained.tokenizer, [Prompt.of(text) for text in (*QUESTIONS[:6], "Why?")], 100)[0]


def logprobs_alone(model: SharedModel, role: str, prompt: list[int], response: list[int]) -> list[float]:
    with model.role(role), torch.no_grad():
        logits = model.causal(torch.tensor([prompt + response]), use_cache=False).logits[0].double()
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return [rows[t, token].item() for t, token in enumerate(response)]


def test_equal_roles_give_equal_responses_and_the_seed_decides(
    trained: SharedModel, prompts: list[EncodedPrompt], settings: Callable[..., EvaluateConfig]
) -> None:
    config = settings(Path("unused"))
    once, again = (respond(config, trained, "sft", prompts, 1.0) for _ in range(2))
    assert once == again
    assert once != respond(settings(Path("unused"), seed=1), trained, "sft", prompts, 1.0)
    assert once != respond(config, trained, "policy", prompts, 1.0)
    assert all(len(answer.ids) == 12 or answer.finished for answer in once)


def test_the_policy_says_what_it_learned(
    trained: SharedModel, prompts: list[EncodedPrompt], settings: Callable[..., EvaluateConfig]
) -> None:
    answers = respond(settings(Path("unused")), trained, "policy", prompts[:6], 0.0)
    assert [answer.text for answer in answers] == ["aaaa"] * 6 and all(answer.finished for answer in answers)


@pytest.mark.parametrize("reference", ["sft", "base"])
def test_kl_equals_the_definition_one_response_at_a_time(
    trained: SharedModel, prompts: list[EncodedPrompt], settings: Callable[..., EvaluateConfig], reference: str
) -> None:
    answers = respond(settings(Path("unused")), trained, "policy", prompts, 1.0)
    found = policy_kl(trained, reference, prompts, answers, size=3)
    gaps = []
    for prompt, answer in zip(prompts, answers, strict=True):
        policy = logprobs_alone(trained, "policy", prompt.prompt_ids, answer.ids)
        ref = logprobs_alone(trained, reference, prompt.prompt_ids, answer.ids)
        gaps.append([p - r for p, r in zip(policy, ref, strict=True)])
    assert found.per_response == pytest.approx([sum(row) for row in gaps], rel=1e-4, abs=1e-3)
    terms = [math.exp(-gap) - 1 + gap for row in gaps for gap in row]
    assert found.k3_per_token == pytest.approx(statistics.fmean(terms), rel=1e-4)
    assert statistics.fmean(found.per_response) > 5, "the policy is far from its reference"
