"""Responses from a seed: all roles in one pass, each as if it were alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Prompt
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.generation import generate_responses
from lora_rlhf.model.shared import SharedModel
from tests.support.evaluation import QUESTIONS


@pytest.fixture
def prompts(trained: SharedModel) -> list[EncodedPrompt]:
    return encode_prompts(trained.tokenizer, [Prompt.of(text) for text in (*QUESTIONS[:6], "Why?")], 100)[0]


def test_equal_roles_give_equal_responses_and_the_seed_decides(
    trained: SharedModel, prompts: list[EncodedPrompt], settings: Callable[..., EvaluateConfig]
) -> None:
    config = settings(Path("unused"))
    once, again, policy = generate_responses(config, trained, ["sft", "sft", "policy"], prompts, [1.0, 1.0, 1.0])
    assert once == again == generate_responses(config, trained, ["sft"], prompts, [1.0])[0]
    assert once != policy
    assert once != generate_responses(settings(Path("unused"), seed=1), trained, ["sft"], prompts, [1.0])[0]
    assert all(len(answer.ids) == 12 or answer.finished for answer in once)


def test_every_role_has_its_own_temperature(
    trained: SharedModel, prompts: list[EncodedPrompt], settings: Callable[..., EvaluateConfig]
) -> None:
    config = settings(Path("unused"))
    sft, policy, base = generate_responses(config, trained, ["sft", "policy", "base"], prompts[:6], [1.0, 0.0, 1.0])
    assert [answer.text for answer in policy] == ["aaaa"] * 6 and all(answer.finished for answer in policy)
    assert [sft] == generate_responses(config, trained, ["sft"], prompts[:6], [1.0])
    assert [base] == generate_responses(config, trained, ["base"], prompts[:6], [1.0])
