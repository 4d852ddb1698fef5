"""Run folders made by hand around a tiny model whose policy has learned to say "aaaa"."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.encode import Limits, encode_demonstration
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Demonstration, Prompt
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.generation import padded_sequences
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, StageFolder, find_stage
from tests.support.evaluation import OFFSET, QUESTIONS


@pytest.fixture(scope="session")
def trained(tiny_model: Callable[[str], Path]) -> SharedModel:
    """base, sft (a random adapter), reward (with a head) and policy (sft, then trained to answer aaaa)."""
    model = SharedModel(load_base(BaseSpec(str(tiny_model("llama")), "none"), "cpu"))
    torch.manual_seed(0)
    for role, head in (("sft", False), ("reward", True)):
        model.add_role(role, LoraSettings(rank=4, alpha=8), head=head)
        for name, parameter in model.named_parameters_of(role):
            if ".lora_B." in name:
                parameter.data.normal_(std=0.05)
    model.copy_role("sft", "policy")
    demonstrations = [Demonstration(Prompt.of(question), "aaaa") for question in QUESTIONS[:8]]
    encoded = [encode_demonstration(model.tokenizer, row, Limits(100, 50), RefusedRows()) for row in demonstrations]
    examples = [example for example in encoded if example is not None]
    answers = [Response(example.response_ids, True) for example in examples]
    batch = padded_sequences(model, examples, answers)  # type: ignore[arg-type]  # both have prompt_ids
    optimizer = torch.optim.AdamW([p for _, p in model.named_parameters_of("policy")], lr=2e-2)
    for _ in range(25):
        with model.role("policy", training=True):
            loss = -response_logprobs(model, batch)[0].sum() / batch.response_mask.sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1, "the policy has learned its answer, or these tests show nothing"
    return model


@pytest.fixture
def make_run(tmp_path: Path, trained: SharedModel) -> Callable[..., Path]:
    """make_run(name, policy=role whose adapter is saved as the policy's, or None) -> a run of finished stages."""

    def make(
        name: str = "run", policy: str | None = "policy", reward: bool = True, reference: Any = "sft", sft: str = ""
    ) -> Path:
        run, base = tmp_path / name, describe_base(trained)
        if not sft:
            folder = StageFolder(SFTConfig(run=str(run), model="m", demonstrations="d.jsonl"), "sft")
            folder.begin(base, {}, {})
            trained.save_role("sft", folder.path / ADAPTER)
            folder.finish({})
        parents = {"sft": find_stage(sft or run / "sft", "sft")}
        if reward:
            folder = StageFolder(RewardConfig(run=str(run), rankings="r.jsonl"), "reward")
            folder.begin(base, parents, {})
            trained.save_role("reward", folder.path / ADAPTER)
            accuracy = {"rate": 0.71, "low": 0.66, "high": 0.76, "n": 300}
            folder.finish({"offset": OFFSET, "accuracy": accuracy, "ece": 0.04, "label_agreement": 0.73})
            parents["reward"] = find_stage(run / "reward", "reward")
        if policy:
            folder = StageFolder(PPOConfig(run=str(run), prompts="p.jsonl", reference=reference, kl_target=2.0), "ppo")
            folder.begin(base, parents, {})
            for step in range(1, 6):
                metrics = {"rollout/score": 0.1 * step, "rollout/kl": 0.5 * step, "ppo/policy_loss": float("nan")}
                folder.log(step, metrics)
            trained.save_role(policy, folder.path / ADAPTER)
            folder.finish({})
        return run

    return make


@pytest.fixture
def write_prompts(tmp_path: Path) -> Callable[..., str]:
    """write_prompts(name, texts, **columns) -> the path of a file of prompts; each column holds one value a prompt."""

    def write(name: str, texts: list[str], **columns: list[Any]) -> str:
        rows = [{"prompt": text, **{key: values[i] for key, values in columns.items()}} for i, text in enumerate(texts)]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def settings(write_prompts: Callable[..., str]) -> Callable[..., EvaluateConfig]:
    """settings(run, **changes) -> a small evaluation of that run."""

    def make(folder: Path, **changes: Any) -> EvaluateConfig:
        values: dict[str, Any] = {
            "run": str(folder),
            "prompts": write_prompts("prompts.jsonl", QUESTIONS),
            "device": "cpu",
            "micro_batch_size": 5,
            "generation_batch_size": 16,
            "max_prompt_tokens": 100,
            "max_response_tokens": 12,
        }
        return EvaluateConfig(**(values | changes))

    return make
