"""Before the first update: rounding does not stop a run, a broken set-up does, in 32, 16 and 8 bits."""

import dataclasses
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Prompt
from lora_rlhf.model.adapted_linear import adapted_layers
from lora_rlhf.model.precision import expected_rounding
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages import ppo as ppo_page
from lora_rlhf.stages import ppo_checks, ppo_update
from lora_rlhf.stages.ppo import PPO
from lora_rlhf.stages.scorer import ResponseScorer
from tests.support.stages import DEMONSTRATIONS

Make = Callable[..., SharedModel]
PRECISIONS = [("nf4", "float32"), ("nf4", "bfloat16"), ("none", "float16"), ("int8", "float32"), ("int8", "bfloat16")]
CONFIG = PPOConfig(
    run="unused",
    prompts="unused",
    max_response_tokens=24,
    batch_size=16,
    minibatch_size=8,
    micro_batch_size=4,
    warmup_iterations=0,
)


@pytest.fixture(params=PRECISIONS, ids=" ".join)
def model(shared_model: Make, request: pytest.FixtureRequest) -> SharedModel:
    """A policy that is still a copy of the reference."""
    quantization, dtype = request.param
    model = shared_model("llama", quantization, dtype=dtype)
    model.load_adapter_state("policy", model.adapter_state("sft"))
    return model


def begin(model: SharedModel, **changes: Any) -> tuple[PPO, list[EncodedPrompt]]:
    """PPO before its first iteration, and prompts of mixed lengths for it."""
    texts = [row["prompt"] * (1 + index % 4) for index, row in enumerate(DEMONSTRATIONS[:16])]
    prompts, _ = encode_prompts(model.tokenizer, [Prompt.of(text) for text in texts], 128)
    return PPO(dataclasses.replace(CONFIG, **changes), model, ResponseScorer()), prompts


def test_rounding_does_not_stop_a_run(model: SharedModel, capsys: pytest.CaptureFixture[str]) -> None:
    ppo, prompts = begin(model)
    metrics = ppo.iterate(prompts)
    assert metrics["rollout/kl"] == 0.0
    assert metrics["ppo/updates"] == 4.0
    gap, deviation = metrics["ppo/ratio_gap"], metrics["ppo/ratio_deviation"]
    assert gap <= min(deviation, expected_rounding(model).mean)
    assert "off the rollout's" not in capsys.readouterr().out


def test_noise_of_another_grouping_does_not_stop_a_run(model: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU in bfloat16: sd 0.05, single tokens by 1.5 nats. Less in float16 and float32."""
    usual = expected_rounding(model).mean
    add_noise(monkeypatch, usual)
    ppo, prompts = begin(model)
    metrics = ppo.iterate(prompts)
    assert metrics["ppo/updates"] > 0
    assert metrics["ppo/ratio_deviation"] > 20 * usual
    assert metrics["rollout/kl"] == 0.0


def test_in_float32_the_noise_of_16_bits_stops_it(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model("llama", "nf4", dtype="float32")
    model.load_adapter_state("policy", model.adapter_state("sft"))
    add_noise(monkeypatch, 0.01)
    ppo, prompts = begin(model)
    with pytest.raises(RuntimeError, match=r"(first update sees|sampler used) log-probabilities 0\.\d+ nats off"):
        ppo.iterate(prompts)


def test_more_noise_than_usual_is_named(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shared_model("llama", "nf4", dtype="bfloat16")
    model.load_adapter_state("policy", model.adapter_state("sft"))
    add_noise(monkeypatch, 0.1)
    ppo, prompts = begin(model)
    ppo.iterate(prompts)
    assert "nats off the rollout's on average, by rounding; usual is up to 0.05" in capsys.readouterr().out


def add_noise(monkeypatch: pytest.MonkeyPatch, sd: float) -> None:
    """The same noise for the same rows in the same group; one token of each group is moved by 30 sd."""
    compute = ppo_page.response_logprobs

    def noisy(model: SharedModel, batch: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        logprobs, entropy = compute(model, batch, *args, **kwargs)
        ids = torch.cat([batch.trim().prompt_ids, batch.trim().response_ids], dim=1)
        generator = torch.Generator().manual_seed(zlib.crc32(str(ids.tolist()).encode()))
        noise = torch.randn(logprobs.shape, generator=generator) * sd
        tokens = batch.response_mask.nonzero()
        noise[tuple(tokens[torch.randint(len(tokens), (1,), generator=generator)].T)] = 30 * sd
        return logprobs + torch.where(batch.response_mask, noise, 0.0), entropy

    for module in (ppo_page, ppo_update, ppo_checks):
        monkeypatch.setattr(module, "response_logprobs", noisy)


def test_scoring_by_another_adapter_stops_the_run(model: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    enter = SharedModel.role

    def wrong(self: SharedModel, role: str, training: bool = False) -> AbstractContextManager[SharedModel]:
        return enter(self, "base" if role == "policy" and not training else role, training)

    monkeypatch.setattr(SharedModel, "role", wrong)
    ppo, prompts = begin(model)
    with pytest.raises(RuntimeError, match="nats off the rollout's on the same rows"):
        ppo.iterate(prompts)


def test_another_reference_stops_the_run(model: SharedModel) -> None:
    model.alias("reference", "base")
    ppo, prompts = begin(model)
    with pytest.raises(RuntimeError, match="policy and reference differ by"):
        ppo.iterate(prompts)


def test_live_dropout_stops_the_run(model: SharedModel) -> None:
    assert model.peft is not None
    for layer in adapted_layers(model.peft):
        layer.lora_dropout["policy"] = nn.Dropout(0.1)
    ppo, prompts = begin(model)
    before = model.adapter_state("policy")
    with pytest.raises(RuntimeError, match="on the same rows, before anything was learned: live dropout"):
        ppo.iterate(prompts)
    assert all(torch.equal(value, before[name]) for name, value in model.adapter_state("policy").items())


@pytest.mark.parametrize("in_the_update", [False, True])
def test_a_shifted_mask_stops_the_run(model: SharedModel, monkeypatch: pytest.MonkeyPatch, in_the_update: bool) -> None:
    compute = ppo_page.response_logprobs

    def shifted(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        logprobs, entropy = compute(*args, **kwargs)
        return (logprobs.roll(1, dims=1) if torch.is_grad_enabled() == in_the_update else logprobs), entropy

    for module in (ppo_page, ppo_update):
        monkeypatch.setattr(module, "response_logprobs", shifted)
    ppo, prompts = begin(model)
    before = model.adapter_state("policy")
    with pytest.raises(RuntimeError, match="on average; rounding makes" if in_the_update else "on the same rows"):
        ppo.iterate(prompts)
    assert all(torch.equal(value, before[name]) for name, value in model.adapter_state("policy").items())


def test_a_sampler_of_another_policy_stops_the_run(model: SharedModel) -> None:
    ppo, prompts = begin(model)
    ppo.sampler._role = "base"
    with pytest.raises(RuntimeError, match=r"the sampler used log-probabilities .* nats off the rollout's on average"):
        ppo.iterate(prompts)


def test_later_iterations_take_the_samplers_log_probabilities_and_compare_them(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model("llama", "nf4", dtype="float32")
    model.load_adapter_state("policy", model.adapter_state("sft"))
    ppo, prompts = begin(model)
    scored: list[str | None] = []
    compute = ppo_page.response_logprobs

    def watched(model: SharedModel, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        scored.extend([] if torch.is_grad_enabled() else [model.active_role])
        return compute(model, *args, **kwargs)

    monkeypatch.setattr(ppo_page, "response_logprobs", watched)
    for expected in ({"reference", "policy"}, {"reference"}):
        scored.clear()
        metrics = ppo.iterate(prompts)
        assert set(scored) == expected
        assert 0 < metrics["rollout/mismatch"] < 1e-5 and abs(metrics["rollout/mismatch_kl"]) < 1e-9
        assert metrics["rollout/entropy"] > 1
        ppo.done += 1
    ppo.sampler._role = "sft"  # as a merged copy that was not renewed would sample
    with pytest.raises(RuntimeError, match="the first update sees log-probabilities"):
        ppo.iterate(prompts)


def test_the_surprise_of_the_tokens_estimates_the_entropy(shared_model: Make) -> None:
    model = shared_model("llama", "nf4", dtype="float32")
    start = model.adapter_state("sft")
    found = {}
    for old_logprobs in ("sampled", "scored"):  # the same responses, each before anything was learned
        model.load_adapter_state("policy", start)
        ppo, prompts = begin(model, old_logprobs=old_logprobs, minibatch_size=16)
        found[old_logprobs] = ppo.iterate(prompts)["ppo/entropy"]
    assert found["sampled"] == pytest.approx(found["scored"], rel=0.1) and found["sampled"] != found["scored"] > 1


@pytest.mark.parametrize("minibatch_size", [16, 8])
def test_values_of_the_first_minibatch_come_from_its_training_pass(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch, minibatch_size: int
) -> None:
    """They are those of a scoring pass, which is saved."""
    model = shared_model("llama", "nf4", dtype="float32")
    model.load_adapter_state("policy", model.adapter_state("sft"))
    begun = {role: model.adapter_state(role) for role in ("policy", "value")}
    compute, scored = ppo_page.response_values, [0]

    def watched(model: SharedModel, batch: Any) -> Tensor:
        scored[-1] += 0 if torch.is_grad_enabled() else len(batch)
        return compute(model, batch)

    monkeypatch.setattr(ppo_page, "response_values", watched)
    found: list[dict[str, Tensor]] = []
    for old_logprobs in ("scored", "auto"):
        for role, state in begun.items():
            model.load_adapter_state(role, state)
        ppo, prompts = begin(model, minibatch_size=minibatch_size, old_logprobs=old_logprobs)
        scored.append(0)
        ppo.iterate(prompts)
        found.append(model.adapter_state("value"))
    assert scored[1:] == [16, 16 - minibatch_size]
    for name, value in found[0].items():
        assert not torch.equal(value, begun["value"][name])
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-5)
