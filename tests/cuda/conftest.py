"""The CUDA contract: every part of the stages on a played GPU, where waits, launches and faults are seen.

No GPU is needed, and none is used: what only a real one can show is in tests/gpu.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.encode import EncodedExample, encode_prompts
from lora_rlhf.data.schema import Prompt
from lora_rlhf.model import decode_step
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.generate import Engine
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages import reward, sft
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.ppo import PPO
from lora_rlhf.stages.scorer import ResponseScorer
from lora_rlhf.stages.trainer import RoleOptimizer
from tests.support.models import randomize
from tests.support.pretended_cuda import Played, pretended
from tests.support.stages import DEMONSTRATIONS, Models, random_rankings

CONFIG = PPOConfig(
    run="unused",
    prompts="unused",
    max_response_tokens=12,
    batch_size=8,
    minibatch_size=8,
    micro_batch_size=4,
    generation_batch_size=4,
    num_epochs=1,
    warmup_iterations=0,
    max_ratio=None,
    max_kl=None,
)
LEARNING_RATE = 1e-3


@pytest.fixture
def played() -> Iterator[Played]:
    with pretended(devices=2) as played:
        decode_step._capture_stream.cache_clear()
        yield played


@pytest.fixture
def model(played: Played, tiny_model: Models, request: pytest.FixtureRequest) -> SharedModel:
    """Every role, in float32, on the second of the played GPUs: what forgets the device would be on the first.

    A Llama, or the architecture that a test asks for.
    """
    folder = tiny_model(getattr(request, "param", "llama"))
    model = SharedModel(load_base(BaseSpec(str(folder), "nf4", "float32"), "cuda:1"))
    for seed, role in enumerate(("sft", "reward", "policy", "value")):
        model.add_role(role, LoraSettings(rank=4, alpha=8), head=role in ("reward", "value"))
        randomize(model, role, seed)
    model.alias("reference", "sft")
    return model


@dataclass(frozen=True)
class Parts:
    """Each part of the stages: its name, and a function that does it once. batches: the sizes that they go by."""

    works: dict[str, Callable[[], Any]]
    batches: list[AutoBatch]

    def reset_sizes(self) -> None:
        for batch in self.batches:
            batch.size = 4


@pytest.fixture
def parts(model: SharedModel) -> Parts:
    texts = [row["prompt"] * (1 + index % 3) for index, row in enumerate(DEMONSTRATIONS[:8])]
    prompts, _ = encode_prompts(model.tokenizer, [Prompt.of(text) for text in texts], 128)
    ppo = PPO(CONFIG, model, ResponseScorer())
    responses = ppo.act(prompts, torch.Generator().manual_seed(0))
    rollout = ppo.judge(prompts, responses)
    targets = ppo.reward(rollout, 0.05)
    rows = list(range(8))

    def act(engine: Engine, merge: bool = False) -> list[list[int]]:
        ppo.sampler.engine, ppo.sampler.merge = engine, merge
        return [response.ids for response in ppo.act(prompts, torch.Generator().manual_seed(1))]

    sft_config = SFTConfig(run="unused", model="unused", demonstrations="unused", micro_batch_size=4)
    sft_batch = AutoBatch.for_training(sft_config)
    sft_optimizer = RoleOptimizer(sft_config, model, "sft", LEARNING_RATE, sft_batch)
    examples = [EncodedExample(prompt.prompt_ids, one.ids) for prompt, one in zip(prompts, responses, strict=True)]
    training = sft._Training(sft_config, model, *[None] * 5)  # type: ignore[arg-type]
    reward_config = RewardConfig(run="unused", rankings="unused", micro_batch_size=4)
    reward_batch = AutoBatch.for_training(reward_config)
    reward_optimizer = RoleOptimizer(reward_config, model, "reward", LEARNING_RATE, reward_batch)
    rankings = random_rankings(count=4, size=3, seed=0)
    works: dict[str, Callable[[], Any]] = {
        "act, plain": lambda: act("plain"),
        "act, static": lambda: act("static"),
        "act, static, merged": lambda: act("static", merge=True),
        "judge": lambda: ppo.judge(prompts, responses),
        "policy": lambda: ppo.update.policy_step(rollout, targets, rows, must_start_at_1=False),
        "value": lambda: ppo.update.value_step(rollout, targets, rows),
        "sft": lambda: sft_optimizer.step(lambda size: training._accumulate(examples, size)),
        "reward": lambda: reward.update(model, rankings, reward_optimizer, reward_config),
    }
    return Parts(works, [ppo.batch, ppo.sampler.batch, sft_batch, reward_batch])
