"""Every family through all three stages, each on a tiny random model of its architecture in 4 bits."""

from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.stages import ppo, reward, sft
from tests.support.stages import LIMITS, Models, open_model, results, rows_of

pytestmark = pytest.mark.slow


def test_all_three_stages(architecture: str, tiny_model: Models, data: Path, tmp_path: Path) -> None:
    folder, run = tiny_model(architecture), str(tmp_path)
    model = open_model(folder)
    digest = model.base_digest()
    common = {"run": run, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 5e-3, **LIMITS}
    demonstrations, rankings = str(data / "demonstrations.jsonl"), str(data / "rankings.jsonl")
    sft.train(SFTConfig(model=str(folder), demonstrations=demonstrations, validation_fraction=0.2, **common), model)
    reward.train(RewardConfig(rankings=rankings, **common), model)
    short: dict[str, Any] = {"max_prompt_tokens": 48, "max_response_tokens": 8}
    ppo.train(
        PPOConfig(
            run=run,
            prompts=str(data / "prompts.jsonl"),
            accept_chance_reward=True,
            iterations=2,
            batch_size=8,
            minibatch_size=8,
            policy_learning_rate=1e-2,
            **short,
        ),
        model,
    )
    assert model.base_digest() == digest
    losses = [epoch["loss"] for epoch in results(run, "sft")["epochs"]]
    assert losses[1] < losses[0]
    first, second = rows_of(run, "ppo")
    assert first["rollout/kl"] == 0.0
    assert first["ppo/ratio_deviation"] < 1e-4
    assert second["rollout/kl_k3"] > 0.0
    for role, adapter in (("sft", "sft/adapter"), ("reward", "reward/adapter"), ("policy", "ppo/adapter")):
        fresh = open_model(folder)
        fresh.load_role(role, tmp_path / adapter)
