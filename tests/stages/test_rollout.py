"""What a rollout says of its responses, against one unpadded sequence at a time through plain transformers."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_rlhf.configs.reward_functions import read_choices
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import stop_ids
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.forward import apply_in_micro_batches
from lora_rlhf.model.generate import Response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.rewards.process import RewardFunction, ScoredRow
from lora_rlhf.stages.ppo import PPO
from lora_rlhf.stages.ppo_rollout import Rollout
from lora_rlhf.stages.scorer import ResponseScorer
from tests.support.stages import DEMONSTRATIONS, Models, open_model

Make = Callable[..., SharedModel]
CONFIG = PPOConfig(
    run="unused", prompts="unused", max_response_tokens=6, samples_per_prompt=2, temperature=0.7, micro_batch_size=3
)
OFFSET = 0.3


@pytest.fixture
def model(shared_model: Make) -> SharedModel:
    """Every role with an adapter of its own, the policy not yet different from the SFT model."""
    made = shared_model()
    made.load_adapter_state("policy", made.adapter_state("sft"))
    for role in ("reward", "value"):
        made.set_score_offset(role, OFFSET)
    return made


def prompts(model: SharedModel, count: int = 4) -> list[EncodedPrompt]:
    texts = [row["prompt"] * (1 + number % 2) for number, row in enumerate(DEMONSTRATIONS[:count])]
    return encode_prompts(model.tokenizer, [Prompt.of(text) for text in texts], 64)[0]


def responses(model: SharedModel, config: PPOConfig = CONFIG, seed: int = 0) -> list[Response]:
    return PPO(config, model, ResponseScorer()).act(prompts(model), torch.Generator().manual_seed(seed))


def judge(model: SharedModel, given: list[Response], config: PPOConfig = CONFIG, **scorer: Any) -> Rollout:
    return PPO(config, model, ResponseScorer(**scorer)).judge(prompts(model), given)


def some_that_end(model: SharedModel) -> list[Response]:
    """Sampled responses, every third of which is made to end early."""
    eos = model.tokenizer.eos_token_id
    sampled = responses(model)
    return [Response([*r.ids[: 1 + i % 4], eos], True) if i % 3 == 0 else r for i, r in enumerate(sampled)]


def plain(model: SharedModel, role: str, batch: Rollout) -> Iterator[tuple[Tensor, Tensor, list[int], int]]:
    """(logits, last hidden states, response ids, prompt length) of each sequence, unpadded."""
    with torch.no_grad(), model.role(role):
        for row in range(len(batch.sequences)):
            s = batch.sequences
            prompt = s.prompt_ids[row][s.prompt_mask[row]]
            response = s.response_ids[row][s.response_mask[row]]
            ids = torch.cat([prompt, response]).unsqueeze(0)
            out = model.causal(input_ids=ids, use_cache=False, output_hidden_states=True)
            yield out.logits[0], out.hidden_states[-1][0], response.tolist(), len(prompt)


def test_responses_stand_side_by_side_and_say_whether_they_ended(model: SharedModel) -> None:
    found = responses(model)
    assert len(found) == 4 * 2
    stops = stop_ids(model.tokenizer)
    for response in found:
        assert 1 <= len(response.ids) <= 6
        assert response.finished == (response.ids[-1] in stops)
        assert not set(response.ids[:-1]) & set(stops)
        assert response.finished or len(response.ids) == 6
    assert found == responses(model)
    assert found != responses(model, seed=1)
    # in the prompts' order: greedily, each prompt's two responses are the same and those of the prompts are not
    greedy = [r.ids for r in responses(model, dataclasses.replace(CONFIG, temperature=1e-9))]
    assert greedy[::2] == greedy[1::2]
    assert len({tuple(ids) for ids in greedy}) > 1


def test_log_probabilities_values_and_scores(model: SharedModel) -> None:
    batch = judge(model, some_that_end(model))
    assert batch.finished.tolist() == [i % 3 == 0 or r.finished for i, r in enumerate(responses(model))]
    assert batch.mask.sum(dim=1).tolist() == [len(r.ids) for r in some_that_end(model)]
    for name, role in (("old_logprobs", "policy"), ("ref_logprobs", "reference")):
        for row, (logits, _, ids, start) in enumerate(plain(model, role, batch)):
            logprobs = (logits / CONFIG.temperature).log_softmax(-1)
            expected = [float(logprobs[start - 1 + t, token]) for t, token in enumerate(ids)]
            assert getattr(batch, name)[row, : len(ids)].tolist() == pytest.approx(expected, abs=1e-4)
            assert getattr(batch, name)[row, len(ids) :].abs().sum() == 0
            if role == "policy":
                p = logprobs[start - 1 : -1].exp()
                assert batch.entropy[row, : len(ids)].tolist() == pytest.approx(
                    (-(p * p.log()).sum(-1)).tolist(), abs=1e-4
                )
    assert batch.values is not None
    head = model.causal.score.modules_to_save
    for row, (_, hidden, ids, start) in enumerate(plain(model, "value", batch)):
        expected = (head["value"](hidden[start - 1 : -1]).squeeze(-1) - OFFSET).tolist()
        assert batch.values[row, : len(ids)].tolist() == pytest.approx(expected, abs=1e-4)
        assert batch.values[row, len(ids) :].abs().sum() == 0
    for row, (_, hidden, _, _) in enumerate(plain(model, "reward", batch)):
        assert float(batch.raw_scores[row]) == pytest.approx(float(head["reward"](hidden[-1])) - OFFSET, abs=1e-4)


def test_before_the_first_update_policy_and_reference_agree_exactly(model: SharedModel) -> None:
    batch = judge(model, responses(model))
    assert torch.equal(batch.old_logprobs, batch.ref_logprobs)
    model.alias("reference", "base")
    other = judge(model, responses(model))
    assert torch.equal(other.old_logprobs, batch.old_logprobs)
    assert (other.ref_logprobs - batch.ref_logprobs).abs().max() > 0.01


def test_micro_batches_change_nothing(model: SharedModel) -> None:
    one, other = (
        judge(model, some_that_end(model), config)
        for config in (dataclasses.replace(CONFIG, micro_batch_size=size) for size in (1, 100))
    )
    for name in ("raw_scores", "old_logprobs", "ref_logprobs", "values", "entropy"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-4)


def test_rows_come_back_in_their_order(model: SharedModel) -> None:
    sequences = judge(model, some_that_end(model)).sequences
    for size in (1, 3, 8):
        first = apply_in_micro_batches(lambda part: part.response_ids[:, 0], sequences, size)
        assert first.tolist() == sequences.response_ids[:, 0].tolist()


def test_a_critic_free_rollout_has_no_values(tiny_model: Models) -> None:
    model = open_model(tiny_model("llama"))
    for role in ("sft", "reward", "policy"):
        model.add_role(role, LoraSettings(rank=2), head=role == "reward")
    model.alias("reference", "sft")
    config = dataclasses.replace(CONFIG, advantage="rloo")
    assert judge(model, responses(model, config), config).values is None


# What a response is worth


def functions(*names: str) -> tuple[RewardFunction, ...]:
    return tuple(RewardFunction(choice, 60.0, 4.0, failure_score=0.0) for choice in read_choices(names))


def test_rewards_can_be_weighed_and_clipped(model: SharedModel) -> None:
    def scores(**changes: Any) -> Tensor:
        return judge(model, responses(model), **changes).raw_scores

    by_model = scores()
    by_function = scores(model_weight=0.0, functions=functions("tests.support.rewards:ascii_share"))
    assert by_function.unique().numel() > 2
    torch.testing.assert_close(
        scores(model_weight=0.5, functions=functions("tests.support.rewards:ascii_share=-2")),
        0.5 * by_model - 2.0 * by_function,
    )
    limit = float(by_model.abs().median())
    clipped = scores(clip=limit)
    inside = by_model.abs() <= limit
    assert torch.equal(clipped[inside], by_model[inside])
    assert torch.equal(clipped[~inside], by_model[~inside].sign() * limit)


def test_a_function_is_given_each_response_with_its_prompt(model: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    eos = model.tokenizer.eos_token_id
    texts = [f"The {word}" for word in "a b c d e f g h".split()]
    given = [Response([*model.tokenizer(text)["input_ids"], eos], True) for text in texts]
    (function,) = functions("tests.support.rewards:nothing")
    seen: list[ScoredRow] = []
    monkeypatch.setattr(function, "score", lambda rows: (seen.extend(rows), ([0.0] * len(rows), 0))[1])
    judge(model, given, functions=(function,))
    asked = [prompt.prompt.messages[-1].content for prompt in prompts(model)]
    assert [row.prompt for row in seen] == [[{"role": "user", "content": text}] for text in asked for _ in range(2)]
    assert [row.completion for row in seen] == texts
    assert [row.completion_ids for row in seen] == [response.ids for response in given]
