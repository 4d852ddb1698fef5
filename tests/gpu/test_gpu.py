"""What only a GPU can show: the stages in 16 bits on its kernels, with the base left alone and KL 0 at the start."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.memory import peak_gpu_gib
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages import ppo, reward, sft

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

ANSWERS = ["The fox is brown.", "It is brown.", "Brown.", "I do not know."]


@pytest.mark.long  # on a played GPU; its parts are played in tests/cuda
def test_three_stages_on_the_gpu(tmp_path: Path, gpu: bool) -> None:
    """On a played GPU, which computes on the CPU, with fewer rows in an iteration."""
    size = 32 if gpu else 8
    prompts = [f"What color is the fox of house {number}?" for number in range(32)]
    demonstrations, rankings = tmp_path / "demonstrations.jsonl", tmp_path / "rankings.jsonl"
    write_jsonl(demonstrations, [{"prompt": prompt, "completion": ANSWERS[0]} for prompt in prompts])
    write_jsonl(rankings, [{"prompt": prompt, "responses": ANSWERS, "ranks": [1, 2, 3, 4]} for prompt in prompts])
    common: dict[str, Any] = {
        "run": str(tmp_path / "run"),
        "device": "cuda",
        "max_prompt_tokens": 96,
        "max_response_tokens": 32,
    }

    model = SharedModel(load_base(BaseSpec("tinyworld"), "cuda"))
    assert next(model.causal.parameters()).device.type == "cuda"
    before = model.base_digest()
    sft.train(SFTConfig(model="tinyworld", demonstrations=str(demonstrations), batch_size=8, **common), model)
    reward.train(RewardConfig(rankings=str(rankings), **common), model)
    ppo.train(
        PPOConfig(
            accept_chance_reward=True,
            prompts=str(demonstrations),
            iterations=3,
            batch_size=size,
            minibatch_size=size,
            **common,
        ),
        model,
    )

    assert model.base_digest() == before
    assert peak_gpu_gib() > 0
    first = json.loads((tmp_path / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    # a pass without gradients and one with them run different 4-bit kernels: equal up to 16-bit rounding
    assert abs(first["rollout/kl"]) < 0.25
    assert first["ppo/ratio_deviation"] < 0.25
