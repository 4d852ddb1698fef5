"""Sampling: the right distribution, the right stop, and nothing depends on the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.drawing import draw_tokens as _draw
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.generate import Response, generate
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.support.batches import random_lists, sequences

Make = Callable[..., SharedModel]


def sample(model: SharedModel, prompts: list[list[int]], seed: int = 0, **changes: Any) -> list[list[Response]]:
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "stop_ids": [0], "batch_size": 64}
    return generate(model, prompts, generator=torch.Generator().manual_seed(seed), **(settings | changes))


def ids(groups: list[list[Response]]) -> list[list[list[int]]]:
    return [[response.ids for response in group] for group in groups]


def greedy_alone(model: SharedModel, prompt: list[int], new: int, stops: set[int]) -> list[int]:
    """The whole forward again for each token: no cache, no padding."""
    tokens = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            tokens.append(int(model.causal(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def test_greedy_equals_the_plain_loop(shared_model: Make, architecture: str) -> None:
    """Longer than the sliding window of 16, with rows that stop at different steps and are dropped."""
    model, (prompts, _) = shared_model(architecture), random_lists()
    with model.role("policy"):
        free = [greedy_alone(model, prompt, 20, set()) for prompt in prompts]
        stops = {free[0][4], free[1][9]}
        expected = [greedy_alone(model, prompt, 20, stops) for prompt in prompts]
        groups = sample(model, prompts, max_new_tokens=20, temperature=0.0, stop_ids=sorted(stops))
    assert len(expected[0]) <= 5
    assert [group[0].ids for group in groups] == expected
    assert [group[0].finished for group in groups] == [response[-1] in stops for response in expected]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_distribution_drawn_from_is_the_one_scored(
    shared_model: Make, architecture: str, temperature: float
) -> None:
    """The log-probs of the sampled tokens at generation equal those of the training forward."""
    model, (prompts, _) = shared_model(architecture), random_lists()
    with model.role("policy"), torch.no_grad():
        groups = sample(model, prompts, temperature=temperature, stop_ids=[], batch_size=4)
        batch = sequences(prompts, [group[0].ids for group in groups])
        scored = response_logprobs(model, batch, temperature)[0]
    logprobs = torch.tensor([group[0].logprobs for group in groups])
    torch.testing.assert_close(logprobs, scored, rtol=1e-4, atol=2e-5)


def test_samples_follow_the_distribution(shared_model: Make) -> None:
    model, prompt = shared_model(), [17, 23, 42]
    with model.role("policy"), torch.no_grad():
        for temperature in (0.5, 1.0):
            logits = model.causal(torch.tensor([prompt]), use_cache=False).logits[0, -1].double()
            expected = (logits / temperature).softmax(-1)
            groups = sample(
                model, [prompt], max_new_tokens=1, num_samples=20_000, batch_size=7_000, temperature=temperature
            )
            assert len(groups[0]) == 20_000
            counts = torch.bincount(torch.tensor([r.ids[0] for r in groups[0]]), minlength=320).double()
            deviation = (counts - 20_000 * expected) / (20_000 * expected * (1 - expected)).sqrt()
            assert deviation[20_000 * expected > 20].abs().max() < 4.5
            # Pearson's statistic over all 320 tokens has mean 319 and sd near 25 (rare tokens widen it little).
            chi = ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum()
            assert 200 < chi < 500


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.5, 0.0, 0.25, 0.25, 0.0]]).log().repeat(6, 1)
    uniforms = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.76, 1 - 1e-12], dtype=torch.float64)
    assert _draw(logits, 1.0, uniforms)[0].tolist() == [0, 0, 2, 2, 3, 3]
    assert _draw(logits, 0, uniforms)[0].tolist() == [0] * 6
    sharp = torch.tensor([[0.0, 1.0]])  # p(first) = 1 / (1 + e^(1/T))
    below, above = torch.tensor([0.119], dtype=torch.float64), torch.tensor([0.1193], dtype=torch.float64)
    assert (_draw(sharp, 0.5, below)[0].item(), _draw(sharp, 0.5, above)[0].item()) == (0, 1)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    assert _draw(logits, 1.0, torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64))[0].tolist() == [1, 1]


def test_rare_tokens_are_drawn() -> None:
    """Near 1 the running sum has steps of 6e-8 in float32: rarer tokens would be skipped or doubled."""
    rare = 1e-8
    logits = torch.tensor([[1.0] + [rare] * 1000]).log()
    total = 1 + 1000 * rare
    targets = [1, 2, 3, 500, 1000]
    uniforms = torch.tensor([(1 + (token - 0.5) * rare) / total for token in targets], dtype=torch.float64)
    assert _draw(logits.double().repeat(5, 1), 1.0, uniforms)[0].tolist() == targets


def test_the_same_seed_gives_the_same_and_another_does_not(shared_model: Make) -> None:
    model, (prompts, _) = shared_model(), random_lists()
    with model.role("policy"):
        first, again, other_seed = (ids(sample(model, prompts, seed=s, num_samples=3)) for s in (1, 1, 2))
    assert first == again != other_seed
    assert all(len({tuple(response) for response in group}) > 1 for group in first)


def test_dropping_finished_rows_changes_nothing(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (prompts, _) = shared_model("mistral"), random_lists()
    settings: dict[str, Any] = {"num_samples": 8, "max_new_tokens": 24, "stop_ids": list(range(40))}
    widths: list[int] = []

    def spy(logits: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
        widths.append(len(logits))
        return _draw(logits, *how)

    monkeypatch.setattr("lora_rlhf.model.decode_plain.draw_tokens", spy)
    with model.role("policy"):
        dropping = sample(model, prompts, **settings)
        assert widths[0] == 32 and widths[-1] < 16
        monkeypatch.setattr("lora_rlhf.model.decode_plain.COMPACT_SHARE", -1.0)
        widths.clear()
        keeping = sample(model, prompts, **settings)
        assert set(widths) == {32}
    assert dropping == keeping
    for response in (response for group in dropping for response in group):
        assert response.finished == (response.ids[-1] < 40)
        assert all(token >= 40 for token in response.ids[:-1])
        assert response.finished or len(response.ids) == 24


def test_neighbours_and_batch_size_do_not_matter(shared_model: Make) -> None:
    model, (prompts, _) = shared_model("gemma2"), random_lists()
    with model.role("policy"):
        together = ids(sample(model, prompts, temperature=0.0))
        assert ids(sample(model, prompts, temperature=0.0, batch_size=1)) == together
        assert ids(sample(model, prompts, temperature=0.0, batch_size=3, num_samples=2)) == [g * 2 for g in together]
        assert ids(sample(model, prompts[::-1], temperature=0.0)) == together[::-1]


def test_each_prompt_is_read_once(shared_model: Make) -> None:
    model, (prompts, _) = shared_model(), random_lists()
    shapes: list[tuple[int, ...]] = []
    model.causal.get_input_embeddings().register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape))
    rows: list[int] = []
    model.causal.get_output_embeddings().register_forward_hook(lambda _m, _i, out: rows.append(out.numel() // 320))
    with model.role("policy"):
        sample(model, prompts, num_samples=5, max_new_tokens=2, stop_ids=[319])
    assert [tuple(shape) for shape in shapes] == [(4, 9), (20, 1)]
    assert rows == [4, 20], "logits at the last position only"


def test_pad_equal_to_eos(shared_model: Make) -> None:
    """EOS is part of the response, and prompts that hold it are read whole."""
    model = shared_model("qwen2")
    eos = model.tokenizer.eos_token_id
    prompts = [[eos, 30, eos, 31], [40, eos]]
    with model.role("policy"):
        expected = [greedy_alone(model, prompt, 6, set()) for prompt in prompts]
        groups = sample(model, prompts, temperature=0.0, max_new_tokens=6, stop_ids=[319])
        assert [group[0].ids for group in groups] == expected
        everything = sample(model, prompts, stop_ids=list(range(320)))
    assert all(len(group[0].ids) == 1 and group[0].finished for group in everything)


@pytest.mark.parametrize("training", [False, True])
def test_mode_is_left_as_found(shared_model: Make, training: bool) -> None:
    model, (prompts, _) = shared_model(dropout=0.5), random_lists()
    model.enable_gradient_checkpointing()
    with model.role("policy"):
        expected = ids(sample(model, prompts, temperature=0.0))
    with model.role("policy", training=training):
        assert ids(sample(model, prompts, temperature=0.0)) == expected, "no dropout while sampling"
        assert {module.training for module in model.causal.modules()} == {training}
        with pytest.raises(UserError):
            sample(model, [[1] * 300])
        assert {module.training for module in model.causal.modules()} == {training}


def test_roles_sample_differently(shared_model: Make) -> None:
    model, (prompts, _) = shared_model(), random_lists()
    outputs = {}
    for role in ("base", "sft", "policy", "reference"):
        with model.role(role):
            outputs[role] = ids(sample(model, prompts, temperature=0.0))
    assert outputs["sft"] == outputs["reference"] != outputs["policy"] != outputs["base"]
    with pytest.raises(RuntimeError, match="outside any role"):
        sample(model, prompts)


def test_what_cannot_be_generated_is_refused(tiny_model: Callable[[str], Path]) -> None:
    model = SharedModel(load_base(BaseSpec(str(tiny_model("llama"))), "cpu"))
    with model.role("base"):
        sample(model, [[5] * 244])
        with pytest.raises(UserError, match=r"prompt 2 of 2 has 245 tokens; with 12 new ones .* context of 256"):
            sample(model, [[5], [5] * 245])
        with pytest.raises(UserError, match="prompt 1 of 1 has no tokens"):
            sample(model, [[]])
        assert sample(model, []) == []
        for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"batch_size": 0}, {"num_samples": 0}):
            with pytest.raises(ValueError, match="at least"):
                sample(model, [[5]], **wrong)


@pytest.mark.parametrize(("top_p", "expected"), [(1.0, [50, 30, 15, 5]), (0.8, [62, 38, 0, 0]), (0.1, [100, 0, 0, 0])])
def test_top_p_draws_from_the_most_probable_tokens(top_p: float, expected: list[int]) -> None:
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(100, 4)
    numbers = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    tokens, logprobs = _draw(logits, 1.0, numbers, top_p)
    assert torch.bincount(tokens, minlength=4)[[1, 3, 0, 2]].tolist() == expected
    torch.testing.assert_close(logprobs, logits[0][tokens])
