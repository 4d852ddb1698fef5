"""Numbers that are none, and policies that run away, stop a run before they are learned from; what was good stays."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.stages import ppo, ppo_update, reward, scorer, sft
from lora_rlhf.stages.ppo import PPO
from lora_rlhf.stages.ppo_rollout import Rollout
from lora_rlhf.system.errors import Stopped
from tests.support.stages import LIMITS, Models, manifest, rows_of

TRAIN: dict[str, Callable[[Any], Any]] = {"sft": sft.train, "reward": reward.train, "ppo": ppo.train}
Make = Callable[..., Any]


@pytest.fixture
def config(tiny_model: Models, data: Path, parents: Path, tmp_path: Path) -> Make:
    """config(stage, **changes) -> settings of a short stage that saves after every step."""

    def make(stage: str, **changes: Any) -> Any:
        usual: dict[str, Any] = {"run": str(tmp_path / "run"), "save_every": 1, "batch_size": 8, **LIMITS}
        if stage == "sft":
            sources: dict[str, Any] = {
                "model": str(tiny_model("llama")),
                "demonstrations": str(data / "demonstrations.jsonl"),
            }
            return SFTConfig(**(usual | sources | {"epochs": 1, "validation_fraction": 0.0} | changes))
        usual |= {"sft": str(parents / "sft")}
        if stage == "reward":
            return RewardConfig(**(usual | {"rankings": str(data / "rankings.jsonl")} | changes))
        sources = {"reward": str(parents / "reward"), "prompts": str(data / "prompts.jsonl"), "iterations": 4}
        sizes = {"minibatch_size": 4, "num_epochs": 2, "max_response_tokens": 6, "warmup_iterations": 0}
        return PPOConfig(accept_chance_reward=True, **(usual | sources | sizes | changes))

    return make


def poisoned(function: Callable[..., Any], after: int, value: float, training: bool) -> Callable[..., Any]:
    """What `function` gives, times a value that is no number once it was called `after` times.

    Of its calls those count that are made in training, or those that are not.
    """
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if torch.is_grad_enabled() != training:
            return result
        calls.append(1)
        if len(calls) <= after:
            return result
        return (result[0] * value, *result[1:]) if isinstance(result, tuple) else result * value

    return wrapped


# (stage, module, function, calls that are good, what the message names); the rehearsal is the first call of an update,
# and the first iteration has its fixed prompts judged too
PLACES = [
    ("sft", sft, "counted_logprobs", 3, "step 3: loss is not finite"),
    ("reward", reward, "response_scores", 9, "step 3: loss is not finite"),
    ("ppo", scorer, "response_scores", 3, "iteration 3: score is not finite"),
    ("ppo", ppo, "response_values", 2, "iteration 3: value is not finite"),
    ("ppo", ppo_update, "response_logprobs", 9, "iteration 3: ppo/"),
    ("ppo", ppo_update, "response_values", 9, "iteration 3: ppo/"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "module", "name", "after", "message"), PLACES, ids=[f"{place[0]}: {place[2]}" for place in PLACES]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_learned_from(
    config: Make,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    module: Any,
    name: str,
    after: int,
    message: str,
    value: float,
) -> None:
    settings = config(stage)
    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        training = stage != "ppo" or message.endswith("ppo/")
        patch.setattr(module, name, poisoned(getattr(module, name), after, value, training))
        TRAIN[stage](settings)
    assert message in str(caught.value) and "is not finite; it was not applied" in str(caught.value)
    assert caught.value.status == 1
    assert "the last checkpoint is of" in str(caught.value) and "_rate" in str(caught.value)
    folder = Path(settings.run) / stage
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["step"] == 3 and failure["not_finite"] in str(caught.value)
    assert failure["batch"] and all(row["prompt"] for row in failure["batch"])
    assert manifest(settings.run, stage)["status"] == "running"
    role = {"ppo": "policy"}.get(stage, stage)
    saved = read_adapter(folder / "checkpoints" / "step-00000002" / role)[1]
    assert all(bool(value.isfinite().all()) for value in saved.values())
    TRAIN[stage](settings)  # the cause gone, it goes on
    assert manifest(settings.run, stage)["status"] == "finished"


def test_a_gradient_that_is_not_finite_is_not_applied(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss may have an infinite gradient."""
    compute, calls = sft.counted_logprobs, []

    def steep(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        result = compute(*args, **kwargs)
        if len(calls) == 4 and torch.is_grad_enabled():
            result.register_hook(lambda gradient: gradient * float("inf"))
        return result

    monkeypatch.setattr(sft, "counted_logprobs", steep)
    with pytest.raises(Stopped, match="step 3: gradient is not finite; it was not applied"):
        sft.train(config("sft"))


@pytest.mark.slow
def test_a_kl_above_the_ceiling_is_not_learned_from_and_ends_the_run(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of six iterations is fine, so that the three in a row are the third to the fifth."""
    settings, kls = config("ppo", max_kl=100.0, iterations=6), iter([100.5, 99.5, 101.0, 102.0, 103.0])

    metrics_of, iterate = Rollout.metrics, PPO.iterate

    def far(self: PPO, prompts: list[EncodedPrompt]) -> dict[str, float]:
        kl = next(kls)
        with monkeypatch.context() as patch:
            patch.setattr(Rollout, "metrics", lambda rollout: {**metrics_of(rollout), "rollout/kl": kl})
            return iterate(self, prompts)

    monkeypatch.setattr(PPO, "iterate", far)
    message = r"iteration 5: the KL, 103 nats .* above max_kl 100\.0; .*iteration 3 in a row: likely causes"
    with pytest.raises(Stopped, match=message):
        ppo.train(settings)
    assert [row["ppo/updates"] for row in rows_of(settings.run, "ppo")] == [0.0, 4.0, 0.0, 0.0]
    states = {
        step: read_adapter(Path(settings.run) / "ppo" / "checkpoints" / f"step-{step:08d}" / "policy")[1]
        for step in (3, 4)
    }
    assert all(torch.equal(value, states[4][name]) for name, value in states[3].items())


@pytest.mark.slow
def test_a_ratio_above_the_ceiling_ends_the_iteration(config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """The first minibatch of an iteration has a ratio of 1; those after it see what it did."""
    settings = config("ppo", max_ratio=1.0 + 1e-6, policy_learning_rate=0.05, stop_at_approx_kl=None, max_kl=None)
    with pytest.raises(Stopped, match=r"probability ratio of a minibatch has a mean above max_ratio 1\.000001"):
        ppo.train(dataclasses.replace(settings, iterations=12))
    assert "it is not learned from" in capsys.readouterr().out
    updates = [row["ppo/updates"] for row in rows_of(settings.run, "ppo")]
    assert min(updates) < 4 and all(count >= 1 for count in updates)


@pytest.mark.slow
def test_ceilings_can_be_taken_away(config: Make) -> None:
    settings = config("ppo", reference="base", max_kl=None, max_ratio=None, stop_at_approx_kl=None)
    ppo.train(settings)
    assert all(row["ppo/updates"] == 4 for row in rows_of(settings.run, "ppo"))
