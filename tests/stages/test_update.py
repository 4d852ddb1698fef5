"""PPO's targets against plain arithmetic, and its gradients against losses written out for the whole batch."""

import dataclasses
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.encode import encode_prompts
from lora_rlhf.data.schema import Prompt, Text
from lora_rlhf.data.stream import TextStream
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.ppo import PPO
from lora_rlhf.stages.ppo_rollout import Rollout, Targets
from lora_rlhf.stages.scorer import ResponseScorer
from tests.support import reference
from tests.support.stages import DEMONSTRATIONS, gradients, same

Make = Callable[..., SharedModel]
CONFIG = PPOConfig(
    run="unused",
    prompts="unused",
    max_response_tokens=6,
    samples_per_prompt=2,
    batch_size=8,
    minibatch_size=8,
    num_epochs=1,
    max_grad_norm=1e9,  # never clipped: what is compared are gradients
    missing_eos_score=None,
    stop_at_approx_kl=None,
    ptx_batch_size=3,
    ptx_coef=27.8,
)
OFFSET = 0.25


@pytest.fixture
def model(shared_model: Make) -> SharedModel:
    model = shared_model()
    for role in ("reward", "value"):
        model.set_score_offset(role, OFFSET)
    return model


def ppo_of(model: SharedModel, config: PPOConfig, text: TextStream | None = None) -> PPO:
    return PPO(config, model, ResponseScorer(missing_eos_score=config.missing_eos_score), text)


def rollout_of(model: SharedModel, config: PPOConfig = CONFIG) -> Rollout:
    """Eight responses of unlike lengths, policy and reference already apart."""
    prompts, _ = encode_prompts(model.tokenizer, [Prompt.of(row["prompt"]) for row in DEMONSTRATIONS[:4]], 64)
    ppo = ppo_of(model, config)
    responses = ppo.act(prompts, torch.Generator().manual_seed(0))
    uneven = [
        Response(response.ids[: 2 + index % 5], index % 2 == 0, logprobs=response.logprobs[: 2 + index % 5])
        for index, response in enumerate(responses)
    ]
    return ppo.judge(prompts, uneven)


def rows(values: Tensor | None, mask: Tensor) -> list[list[float]]:
    assert values is not None
    return [row[counts].double().tolist() for row, counts in zip(values, mask, strict=True)]


# Targets


@pytest.mark.parametrize("missing_eos_score", [None, -3.0])
def test_gae_targets(model: SharedModel, missing_eos_score: float | None) -> None:
    config = dataclasses.replace(CONFIG, gamma=0.9, lam=0.8, missing_eos_score=missing_eos_score)
    batch = rollout_of(model, config)
    assert batch.finished.tolist() == [True, False] * 4
    goal = ppo_of(model, config).reward(batch, kl_coef=0.3)
    advantages, returns = [], []
    parts = zip(*(rows(x, batch.mask) for x in (batch.old_logprobs, batch.ref_logprobs, batch.values)), strict=True)
    for (old, ref, values), score, ended in zip(parts, batch.raw_scores.tolist(), batch.finished.tolist(), strict=True):
        kl = [o - r for o, r in zip(old, ref, strict=True)]
        worth = score if ended or missing_eos_score is None else missing_eos_score
        estimate = reference.gae(reference.token_rewards(worth, kl, 0.3), values, 0.9, 0.8)
        advantages.append(estimate[0])
        returns.append(estimate[1])
    flat = list(itertools.chain(*advantages))
    mean, sd = statistics.fmean(flat), statistics.pstdev(flat)
    for found, expected in zip(rows(goal.advantages, batch.mask), advantages, strict=True):
        assert found == pytest.approx([(a - mean) / sd for a in expected], abs=1e-4)
    for found, expected in zip(rows(goal.returns, batch.mask), returns, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    assert goal.advantages[~batch.mask].abs().sum() == 0


def test_whitened_rewards_keep_their_mean_and_have_sd_1(model: SharedModel) -> None:
    config = dataclasses.replace(CONFIG, gamma=1.0, lam=1.0, whiten_rewards=True)
    batch = rollout_of(model)
    goal = ppo_of(model, config).reward(batch, kl_coef=0.3)
    parts = zip(*(rows(x, batch.mask) for x in (batch.old_logprobs, batch.ref_logprobs)), strict=True)
    rewards = [
        reference.token_rewards(score, [o - r for o, r in zip(old, ref, strict=True)], 0.3)
        for (old, ref), score in zip(parts, batch.scores.tolist(), strict=True)
    ]
    flat = list(itertools.chain(*rewards))
    mean, sd = statistics.fmean(flat), statistics.pstdev(flat)
    for found, row in zip(rows(goal.returns, batch.mask), rewards, strict=True):
        scaled = [(reward - mean) / sd + mean for reward in row]
        assert found == pytest.approx([sum(scaled[start:]) for start in range(len(row))], abs=1e-4)


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "dr_grpo", "reinforce"])
def test_critic_free_targets(model: SharedModel, advantage: Any) -> None:
    config = dataclasses.replace(CONFIG, advantage=advantage, samples_per_prompt=4)
    batch = rollout_of(model)
    goal = ppo_of(model, config).reward(batch, kl_coef=0.3)
    drift = [sum(o - r for o, r in zip(*pair, strict=True)) for pair in kl_pairs(batch)]
    assert max(map(abs, drift)) > 0.1
    worth = [score - 0.3 * kl for score, kl in zip(batch.scores.tolist(), drift, strict=True)]
    formulas: dict[str, Callable[[list[float]], list[float]]] = {
        "rloo": reference.rloo,
        "grpo": lambda group: reference.grpo(group, 1e-4),
        "dr_grpo": reference.dr_grpo,
    }
    expected = (
        reference.reinforce([worth], 0.9)[0]
        if advantage == "reinforce"
        else [*formulas[advantage](worth[:4]), *formulas[advantage](worth[4:])]
    )
    for found, one in zip(rows(goal.advantages, batch.mask), expected, strict=True):
        assert found == pytest.approx([one] * len(found), abs=1e-4)
    assert goal.returns is None


def kl_pairs(batch: Rollout) -> list[tuple[list[float], list[float]]]:
    return list(zip(rows(batch.old_logprobs, batch.mask), rows(batch.ref_logprobs, batch.mask), strict=True))


def test_with_the_kl_as_a_loss_the_rewards_have_no_penalty(model: SharedModel) -> None:
    batch = rollout_of(model)
    for config in (CONFIG, dataclasses.replace(CONFIG, advantage="dr_grpo", samples_per_prompt=4)):
        targets = ppo_of(model, dataclasses.replace(config, kl_in="loss")).reward(batch, kl_coef=0.3)
        free = ppo_of(model, config).reward(batch, kl_coef=0.0)
        assert torch.equal(targets.advantages, free.advantages)
        assert not torch.equal(targets.advantages, ppo_of(model, config).reward(batch, kl_coef=0.3).advantages)


def test_what_is_not_learned_from_is_left_out_and_counted(model: SharedModel) -> None:
    """Of two groups of four, the first has no spread; of the second, every other response did not end."""
    batch = rollout_of(model)
    batch = dataclasses.replace(batch, scores=torch.tensor([2.0] * 4 + [1.0, 2.0, 3.0, 4.0]))
    changes: dict[str, Any] = {"skip_equal_groups": True, "mask_overlong": True, "minibatch_size": 4}
    config = dataclasses.replace(CONFIG, advantage="dr_grpo", samples_per_prompt=4, num_epochs=2, **changes)
    ppo = ppo_of(model, config)
    targets = ppo.reward(batch, kl_coef=0.0)
    left = [row for row in range(4, 8) if bool(batch.finished[row])]
    assert 0 < len(left) < 4 and targets.learned.nonzero().flatten().tolist() == left
    advantages = [-1.5, -0.5, 0.5, 1.5]  # the scores of all four count
    for row in range(8):
        expected = advantages[row - 4] if row in left else 0.0
        assert targets.advantages[row][batch.mask[row]].unique().tolist() == pytest.approx([expected])
    assert sorted(itertools.chain(*ppo.draw_minibatches(8, targets.learned))) == sorted(left * 2)
    metrics, _ = learn_from(ppo, batch, targets)
    overlong = float((~batch.finished).sum())
    assert (metrics["ppo/skipped_groups"], metrics["ppo/masked_overlong"]) == (1.0, overlong)
    assert metrics["ppo/updates"] == 2.0
    nothing = dataclasses.replace(batch, scores=torch.zeros(8))
    metrics, _ = learn_from(ppo, nothing, ppo.reward(nothing, kl_coef=0.0))
    assert (metrics["ppo/skipped_groups"], metrics["ppo/updates"]) == (2.0, 0.0)
    masked = ppo_of(model, dataclasses.replace(CONFIG, mask_overlong=True))
    targets = masked.reward(dataclasses.replace(batch, finished=torch.zeros(8, dtype=torch.bool)), 0.1)
    assert not targets.has_advantages and not targets.learned.any()


def test_normalised_advantages_have_mean_0_over_what_is_learned_from(model: SharedModel) -> None:
    batch = rollout_of(model)
    targets = ppo_of(model, dataclasses.replace(CONFIG, mask_overlong=True)).reward(batch, kl_coef=0.1)
    learned = [value for row in range(8) if batch.finished[row] for value in rows(targets.advantages, batch.mask)[row]]
    assert statistics.fmean(learned) == pytest.approx(0.0, abs=1e-5)
    assert statistics.pstdev(learned) == pytest.approx(1.0, abs=1e-4)
    assert not targets.advantages[~batch.finished].any()


# Gradients


def random_goal(batch: Rollout) -> Targets:
    generator = torch.Generator().manual_seed(1)
    advantages, returns = torch.randn((2, *batch.mask.shape), generator=generator)
    return Targets(torch.where(batch.mask, advantages, 0.0), torch.where(batch.mask, returns, 0.0))


def learn_from(ppo: PPO, batch: Rollout, targets: Targets) -> tuple[dict[str, float], bool]:
    return ppo.update.learn(batch, targets, ppo.draw_minibatches(len(batch.sequences), targets.learned))


def learn(
    model: SharedModel, batch: Rollout, text: TextStream | None = None, **changes: Any
) -> tuple[dict[str, float], dict[str, dict[str, Tensor]]]:
    """One update; metrics, and the gradients that it used. The adapters are put back."""
    config = dataclasses.replace(CONFIG, **changes)
    before = {role: model.adapter_state(role) for role in ("policy", "value")}
    ppo = ppo_of(model, config, text)
    metrics, _ = learn_from(ppo, batch, random_goal(batch))
    found = {role: gradients(model, role) for role in ppo.optimizers}
    for role, state in before.items():
        assert same(state, model.adapter_state(role)) == (role not in ppo.optimizers)
        model.load_adapter_state(role, state)
    return metrics, found


def clear(model: SharedModel, role: str) -> None:
    for _, parameter in model.named_parameters_of(role):
        parameter.grad = None


def plain_passes(model: SharedModel, batch: Rollout) -> list[tuple[Tensor, Tensor, Tensor, slice]]:
    """(logits, hidden, response ids, where in the batch's rows) of each sequence, unpadded, with a graph."""
    passes = []
    for row in range(len(batch.sequences)):
        s = batch.sequences
        prompt, response = s.prompt_ids[row][s.prompt_mask[row]], s.response_ids[row][s.response_mask[row]]
        ids = torch.cat([prompt, response]).unsqueeze(0)
        out = model.causal(input_ids=ids, use_cache=False, output_hidden_states=True)
        before = slice(len(prompt) - 1, -1)
        passes.append((out.logits[0][before], out.hidden_states[-1][0][before], response, slice(0, len(response))))
    return passes


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Within that share of the largest entry of all."""
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    assert scale > 0
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance * scale, msg=name)


def test_at_ratio_1_the_policys_gradient_is_minus_the_mean_advantage(model: SharedModel) -> None:
    batch = rollout_of(model)
    goal, count = random_goal(batch), int(batch.mask.sum())
    metrics, found = learn(model, batch)
    assert metrics["ppo/ratio_deviation"] < 1e-5
    assert metrics["ppo/clip_fraction"] == 0.0
    assert metrics["ppo/approx_kl"] == pytest.approx(0.0, abs=1e-8)
    assert metrics["ppo/policy_loss"] == pytest.approx(-float(goal.advantages.sum()) / count, abs=1e-5)
    clear(model, "policy")
    with model.role("policy", training=True):
        total = torch.zeros(())
        for row, (logits, _, ids, where) in enumerate(plain_passes(model, batch)):
            logprobs = -functional.cross_entropy(logits, ids, reduction="none")
            total = total - (goal.advantages[row, where] * logprobs).sum() / count
        total.backward()
    assert_close(found["policy"], gradients(model, "policy"), 1e-4)


@pytest.mark.parametrize("level", ["token", "sequence", "constant"])
def test_the_gradient_at_a_level_with_the_kl_as_a_loss(model: SharedModel, level: Any) -> None:
    """Of each token's -advantage * ratio + coef * k3, in means as the level says, in micro-batches of two."""
    batch = rollout_of(model)
    goal = random_goal(batch)
    metrics, found = learn(model, batch, loss_level=level, kl_in="loss", kl_coef=0.7, micro_batch_size=2)
    assert metrics["ppo/kl_loss"] > 0.01
    clear(model, "policy")
    with model.role("policy", training=True):
        losses, distances = [], []
        for row, (logits, _, ids, where) in enumerate(plain_passes(model, batch)):
            logprobs = -functional.cross_entropy(logits, ids, reduction="none")
            log_ratio = batch.ref_logprobs[row, where] - logprobs
            losses.append(-goal.advantages[row, where] * (logprobs - logprobs.detach()).exp())
            distances.append(log_ratio.exp() - 1 - log_ratio)
        reduce = {
            "token": lambda parts: torch.cat(parts).mean(),
            "sequence": lambda parts: torch.stack([part.mean() for part in parts]).mean(),
            "constant": lambda parts: torch.cat(parts).sum() / (8 * CONFIG.max_response_tokens),
        }[level]
        (reduce(losses) + 0.7 * reduce(distances)).backward()
    assert metrics["ppo/kl_loss"] == pytest.approx(float(reduce(distances).detach()), rel=1e-4)
    assert_close(found["policy"], gradients(model, "policy"), 1e-4)


def test_tokens_that_the_sampler_found_less_likely_weigh_more_up_to_the_cap(model: SharedModel) -> None:
    """With a base in 16 bits, which this one is made to be: the advantages times min(p / q, cap)."""
    batch, ppo = rollout_of(model), ppo_of(model, dataclasses.replace(CONFIG, mismatch_cap=1.5))
    goal, rows = random_goal(batch), list(range(len(batch.sequences)))
    ratios = torch.tensor([0.5, 1.2, 3.0])[torch.arange(batch.mask.numel()) % 3].view(batch.mask.shape)
    weights = torch.where(ratios > 2, 1.5, ratios)
    weighted = dataclasses.replace(goal, advantages=goal.advantages * weights)
    batch = dataclasses.replace(batch, sampled_logprobs=batch.old_logprobs - ratios.log())
    found: list[dict[str, Tensor]] = []
    for must_weigh, targets in ((False, weighted), (True, goal), (False, goal)):
        ppo.update.must_weigh = must_weigh
        clear(model, "policy")
        with model.role("policy", training=True):
            ppo.update.accumulate_policy_gradient(batch, targets, rows, None, 8)
        found.append({name: gradient.clone() for name, gradient in gradients(model, "policy").items()})
    assert_close(found[1], found[0], 1e-5)
    with pytest.raises(AssertionError):
        assert_close(found[1], found[2], 1e-2)


def test_the_values_gradient_is_that_of_half_the_squared_error(model: SharedModel) -> None:
    batch = rollout_of(model)
    goal, count = random_goal(batch), int(batch.mask.sum())
    metrics, found = learn(model, batch)
    clear(model, "value")
    with model.role("value", training=True):
        total = torch.zeros(())
        for row, (_, hidden, _, where) in enumerate(plain_passes(model, batch)):
            errors = model.head(hidden).squeeze(-1) - OFFSET - goal.returns[row, where]
            total = total + 0.5 * errors.square().sum() / count
        total.backward()
    assert metrics["ppo/value_loss"] == pytest.approx(float(total.detach()), rel=1e-4)
    assert metrics["ppo/value_clip_fraction"] == 0.0
    assert_close(found["value"], gradients(model, "value"), 1e-4)


def test_micro_batches_add_up_to_the_minibatch(model: SharedModel) -> None:
    batch, text = rollout_of(model), some_text(model)
    (metrics, whole), (parts_metrics, parts) = (
        learn(model, batch, some_text(model), micro_batch_size=size) for size in (8, 2)
    )
    assert len({tuple(next(text).tolist()) for _ in range(8)}) > 3
    for role in ("policy", "value"):
        assert_close(parts[role], whole[role], 1e-6)
    assert parts_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def some_text(model: SharedModel) -> TextStream:
    texts = [Text(f"{row['prompt']} {row['completion']}" * 3) for row in DEMONSTRATIONS]
    return TextStream(lambda: texts, model.tokenizer, 16, seed=3)


def test_the_pretraining_term_adds_its_coefficient_times_its_gradient(model: SharedModel) -> None:
    """PPO-ptx: gradient = PPO's + 27.8 * that of the mean of -log p over all predicted tokens of the blocks."""
    batch, upcoming = rollout_of(model), some_text(model)
    blocks = torch.stack([next(upcoming) for _ in range(3)])
    _, without = learn(model, batch)
    metrics, found = learn(model, batch, some_text(model), micro_batch_size=2)
    clear(model, "policy")
    with model.role("policy", training=True):
        logits = model.causal(input_ids=blocks, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), blocks[:, 1:].flatten())
        loss.backward()
    assert metrics["ppo/ptx_loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    language = gradients(model, "policy")
    expected = {name: without["policy"][name] + 27.8 * gradient for name, gradient in language.items()}
    assert_close(found["policy"], expected, 1e-5)
    assert_close(found["value"], without["value"], 1e-6)


def test_a_policy_beyond_the_clip_is_held_back(model: SharedModel) -> None:
    """Old log-probabilities far below today's, and every advantage positive: no token earns anything by rising on."""
    batch = rollout_of(model)
    moved = dataclasses.replace(batch, old_logprobs=torch.where(batch.mask, batch.old_logprobs - 1.0, 0.0))
    ones = torch.where(batch.mask, 1.0, 0.0)
    metrics, _ = learn_from(ppo_of(model, CONFIG), moved, Targets(ones, ones))
    assert metrics["ppo/clip_fraction"] == 1.0
    assert metrics["ppo/policy_loss"] == pytest.approx(-1.2)
    assert metrics["ppo/grad_norm"] == 0.0
    assert metrics["ppo/approx_kl"] == pytest.approx(2.718281828 - 1 - 1, rel=1e-4)  # k3 with old / new = 1 / e


# Steps


def test_gradients_are_clipped_to_the_norm(model: SharedModel) -> None:
    batch = rollout_of(model)
    metrics, found = learn(model, batch, max_grad_norm=1e-3)
    for role, key in (("policy", "ppo/grad_norm"), ("value", "ppo/value_grad_norm")):
        norm = torch.cat([gradient.flatten() for gradient in found[role].values()]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-3)
        assert metrics[key] > 1e-2


@pytest.mark.parametrize(("limit", "updates"), [(None, 8), (1e9, 8), (1e-9, 2)])
def test_an_iteration_ends_early_when_the_policy_has_moved_too_far(
    model: SharedModel, limit: float | None, updates: int
) -> None:
    """At the first update nothing has moved; the second sees what the first has done, and is the last."""
    config = dataclasses.replace(
        CONFIG, num_epochs=2, minibatch_size=2, micro_batch_size=2, stop_at_approx_kl=limit, policy_learning_rate=1e-2
    )
    batch = rollout_of(model)
    metrics, too_far = learn_from(ppo_of(model, config), batch, random_goal(batch))
    assert not too_far
    assert metrics["ppo/updates"] == updates


def test_every_response_is_in_one_minibatch_of_an_epoch(model: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, num_epochs=3, minibatch_size=4)
    ppo, batch, found = ppo_of(model, config), rollout_of(model), []
    accumulate = ppo.update.accumulate_policy_gradient

    def watched(rollout: Rollout, targets: Targets, rows: list[int], *rest: Any) -> Any:
        found.append(rows)
        return accumulate(rollout, targets, rows, *rest)

    monkeypatch.setattr(ppo.update, "accumulate_policy_gradient", watched)
    learn_from(ppo, batch, random_goal(batch))
    assert [len(rows) for rows in found] == [4] * 6
    for epoch in range(3):
        assert sorted(found[2 * epoch] + found[2 * epoch + 1]) == list(range(8))
    assert found[:2] != found[2:4]


def test_policy_and_value_learn_at_their_own_rates(model: SharedModel) -> None:
    config = dataclasses.replace(CONFIG, policy_learning_rate=3e-3, value_learning_rate=5e-4)
    ppo = ppo_of(model, config)
    for optimizer in ppo.optimizers.values():
        optimizer.set_learning_rate(0.1)
    batch, before = (
        rollout_of(model),
        {role: model.adapter_state(role) for role in ("policy", "value", "reward", "sft")},
    )
    learn_from(ppo, batch, random_goal(batch))
    moved = {
        role: max(float((state[name] - value).abs().max()) for name, value in model.adapter_state(role).items())
        for role, state in before.items()
    }
    # Adam's first step moves an entry by its learning rate at most, and the largest by nearly that
    assert moved["policy"] == pytest.approx(3e-4, rel=0.01)
    assert moved["value"] == pytest.approx(5e-5, rel=0.01)
    assert moved["reward"] == moved["sft"] == 0.0


def test_a_critic_free_learner_trains_the_policy_alone(model: SharedModel) -> None:
    config = dataclasses.replace(CONFIG, advantage="grpo")
    batch, before = rollout_of(model, config), model.adapter_state("value")
    ppo = ppo_of(model, config)
    assert list(ppo.optimizers) == ["policy"]
    metrics, _ = learn_from(ppo, batch, ppo.reward(batch, 0.1))
    assert not any("value" in key or "variance" in key for key in metrics)
    assert same(before, model.adapter_state("value"))
