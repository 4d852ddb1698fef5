"""A process reward: its loss, what it pays in PPO and where, and the best of n by its steps."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from lora_rlhf.cli.main import main
from lora_rlhf.configs.stages import PPOConfig, RewardConfig
from lora_rlhf.data.encode import EncodedPrompt, EncodedSteps
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import render_prompt
from lora_rlhf.model.forward import token_scores
from lora_rlhf.model.generate import Response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages import ppo, reward, reward_steps
from lora_rlhf.stages.reward_report import chance_fault, reliability_table
from lora_rlhf.stages.scorer import ProcessReward, ResponseScorer
from lora_rlhf.stages.session import PROCESS
from lora_rlhf.stats.steps import step_report
from lora_rlhf.system.errors import UserError
from tests.support.stages import DEMONSTRATIONS, LIMITS, gradients, manifest, results, rows_of, write_rows

Make = Callable[..., SharedModel]
ROWS = [
    EncodedSteps([5, 6, 7], [8, 9, 10, 11, 0], [1, 3, 4], [True, None, False]),
    EncodedSteps([5], [12, 0], [1], [True]),
    EncodedSteps([5, 9], [13, 14, 15], [0, 2], [False, False]),
]


def test_the_gradient_is_that_of_each_step_alone_however_small_the_micro_batches(shared_model: Make) -> None:
    model = shared_model()
    with model.role("reward", training=True):
        losses = []
        for row in ROWS:
            out = model.causal(
                input_ids=torch.tensor([row.prompt_ids + row.response_ids]), use_cache=False, output_hidden_states=True
            )
            for end, label in row.judged.items():
                logit = model.head(out.hidden_states[-1][0, len(row.prompt_ids) + end]).squeeze()
                losses.append(functional.binary_cross_entropy_with_logits(logit, torch.tensor(float(label))))
        assert len(losses) == 5
        torch.stack(losses).mean().backward()
    expected = gradients(model, "reward")
    for size in (1, 3):
        for _, parameter in model.named_parameters_of("reward"):
            parameter.grad = None
        with model.role("reward", training=True):
            totals = reward_steps.accumulate(model, ROWS, size)
        assert totals["loss"] == pytest.approx(sum(map(float, losses)) / 5, rel=1e-4) and totals["steps"] == 5
        for name, gradient in gradients(model, "reward").items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=1e-3, atol=1e-4 * expected[name].abs().max().item()
            )


def test_the_report_counts_steps_and_tells_chance() -> None:
    report = step_report([{0: True, 2: False}, {0: True}, {}, {1: True, 7: False}], [[0.9, 0.8], [0.6], [], [0.3, 0.2]])
    assert report["held_out_steps"] == 5 and report["majority"] == 3 / 5
    assert report["step_accuracy"]["rate"] == 3 / 5  # wrong are 0.8 of a bad one, and 0.3 of a good one
    assert report["ece"] == pytest.approx((abs(1 - 0.9) + 2 * abs(0.5 - 0.8) + abs(1 - 0.6) + abs(0 - 0.7)) / 5)
    steps = [(row["step"], row["rate"], row["n"]) for row in report["accuracy_by_step"]]
    assert steps == [(1, 1.0, 2), (2, 0.0, 1), (3, 0.0, 1), (5, 1.0, 1)]
    assert "always the commoner label would get 0.600" in str(chance_fault(report))
    assert reliability_table(report).splitlines()[-1].split() == ["step", "5", "1.000", "1"]
    assert step_report([{}], [[]]) == {"held_out_steps": 0}


# With the stages


@pytest.fixture(scope="module")
def process(parents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a process reward on the shared SFT stage: a step is good if it ends in "!"."""
    run = tmp_path_factory.mktemp("process")
    rows = [
        {"prompt": row["prompt"], "completions": ["The boat!", "The bread."], "labels": [True, False]}
        for row in DEMONSTRATIONS
    ]
    reward.train(
        RewardConfig(
            run=str(run),
            sft=str(parents / "sft"),
            steps=write_rows(run / "steps.jsonl", rows),
            learning_rate=5e-3,
            epochs=4,
            batch_size=8,
            **LIMITS,
        )
    )
    return run


@pytest.mark.slow
def test_the_stage_learns_and_records_its_rule(process: Path) -> None:
    found = manifest(process, "reward")
    assert found["data"]["steps"]["path"].endswith("steps.jsonl")
    assert found["results"]["step_end"] == "\n" and found["results"]["step_accuracy"]["rate"] > 0.9
    assert found["results"]["labelled_steps"] + found["results"]["held_out_steps"] == 2 * len(DEMONSTRATIONS)


def usual(trained: Path, parents: Path, data: Path, to: Path, **changes: Any) -> PPOConfig:
    values: dict[str, Any] = {"run": str(to), "prompts": str(data / "prompts.jsonl"), "sft": str(parents / "sft")}
    values |= {"reward": str(trained / "reward"), "iterations": 1, "batch_size": 8, "minibatch_size": 8}
    return PPOConfig(**(values | LIMITS | {"accept_chance_reward": True, "warmup_iterations": 0} | changes))


@pytest.mark.slow
@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_ppo_runs_on_a_process_reward_alone(
    process: Path, parents: Path, data: Path, tmp_path: Path, advantage: Any
) -> None:
    config = usual(process, parents, data, tmp_path / "run", advantage=advantage, samples_per_prompt=2)
    ppo.train(config)
    (row,) = rows_of(config.run, "ppo")
    assert row["rollout/steps"] >= 1 and set(manifest(config.run, "ppo")["parents"]) == {"sft", PROCESS}
    assert "process" in results(config.run, "ppo")["adapter_bytes"]


@pytest.mark.slow
def test_a_reward_model_of_rankings_is_no_process_reward(
    process: Path, parents: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="was trained on rankings"):
        ppo.train(usual(process, parents, data, tmp_path, reward=None, process=str(parents / "reward")))
    with pytest.raises(UserError, match="is a process reward already"):
        ppo.train(usual(process, parents, data, tmp_path, process=str(process / "reward")))


@pytest.mark.slow
def test_the_best_of_n_is_chosen_by_the_steps(process: Path, parents: Path, data: Path, tmp_path: Path) -> None:
    words = f"sample --run {parents} --reward {process / 'reward'} --prompts {data / 'prompts.jsonl'} --best_of 2"
    words += f" --to {tmp_path / 'best.jsonl'} --score_steps_by minimum --max_prompt_tokens 48 --device cpu"
    assert main([*words.split(), "--max_response_tokens", "24", "--engine", "plain"]) == 0
    report = json.loads((tmp_path / "best.report.json").read_text())
    assert report["score_steps_by"] == "minimum" and 0 <= report["mean_score"]["after"] <= 1
    assert report["mean_score"]["after"] >= report["mean_score"]["before"]


@pytest.mark.parametrize("form", ["product", "minimum", "last"])
def test_each_step_is_paid_where_it_ends_and_the_rest_at_the_end(shared_model: Make, form: Any) -> None:
    model = shared_model()
    model.copy_role("reward", PROCESS, head="copy")
    config = PPOConfig(run="r", prompts="p", batch_size=2, minibatch_size=2, kl_coef=0.0, score_clip=0.9, **LIMITS)
    scorer = ResponseScorer(process=ProcessReward(".", form, 0.5), clip=0.9, missing_eos_score=-1.0)
    prompt = Prompt.of("Hi")
    encoded = EncodedPrompt(render_prompt(model.tokenizer, prompt), prompt)
    text = model.tokenizer("One. Two.", add_special_tokens=False)["input_ids"]
    (point,) = model.tokenizer(".", add_special_tokens=False)["input_ids"]
    eos = model.tokenizer.eos_token_id
    responses = [Response([*text, eos], True), Response(text, False)]
    agent = ppo.PPO(config, model, scorer)
    rollout = agent.judge([encoded, encoded], responses, needs_values=False)
    rewards = agent._token_rewards(rollout, 0.0)
    first, last = text.index(point), len(text)
    with torch.no_grad(), model.role(PROCESS):
        scores = token_scores(model, rollout.sequences, rollout.mask)[0].sigmoid().double()
    one, two = float(scores[first]), float(scores[last])
    total = {"product": one * two, "minimum": min(one, two), "last": two}[form]
    paid = 0.0 if form == "last" else one
    outcome = float(rollout.raw_scores[0]) - 0.5 * total  # of the reward model, less what was clipped
    assert rollout.num_steps is not None and rollout.num_steps.tolist() == [2, 2]
    expected = [0.0] * (len(text) + 1)
    expected[first] += 0.5 * paid
    expected[last] += 0.5 * (total - paid) + outcome
    assert rewards[0].tolist() == pytest.approx(expected, abs=1e-5)
    # without an end, the fixed score is all there is
    assert rewards[1].tolist() == pytest.approx([*[0.0] * (len(text) - 1), -1.0, 0.0], abs=1e-6)
    advantages = agent.reward(dataclasses.replace(rollout, values=torch.zeros_like(rewards)), 0.0).advantages
    assert bool(advantages.isfinite().all()) and not math.isclose(float(advantages[0].sum()), 0.0)


def test_a_stage_needs_one_kind_of_data_and_its_settings() -> None:
    assert "either --rankings FILE, or --steps FILE" in " ".join(RewardConfig(run="r").faults())
    faults = RewardConfig(run="r", steps="s", loss="listwise", agreement="a", step_end="").faults()
    assert [fault.split()[0] for fault in faults] == ["loss", "agreement", "step_end"]
