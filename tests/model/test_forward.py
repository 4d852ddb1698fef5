"""Log-probs, values and scores against one unpadded sequence at a time through the model's own forward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_rlhf.model.forward import (
    Sequences,
    apply_in_micro_batches,
    position_ids,
    response_logprobs,
    response_scores,
    response_values,
    text_logprobs,
)
from lora_rlhf.model.shared import SharedModel
from tests.support.batches import random_batch, random_lists, sequences

Make = Callable[..., SharedModel]
NEAR: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}


def assert_rows(actual: Tensor, expected: list[Tensor]) -> None:
    """Each row holds its expected values, then zeros."""
    for row, values in zip(actual, expected, strict=True):
        torch.testing.assert_close(row[: len(values)], values, **NEAR)
        assert torch.equal(row[len(values) :], torch.zeros(len(row) - len(values)))


def alone(model: SharedModel, temperature: float = 1.0) -> tuple[list[Tensor], ...]:
    """Expected log-probs, entropies, values and scores, from the model's own unpadded logits and hidden states."""
    logprobs, entropies, values, scores = [], [], [], []
    for prompt, response in zip(*random_lists(), strict=True):
        out = model.causal(torch.tensor([prompt + response]), output_hidden_states=True, use_cache=False)
        distribution = (out.logits[0].double() / temperature).softmax(-1)[len(prompt) - 1 : -1]
        logprobs.append(torch.stack([p[token].log() for p, token in zip(distribution, response, strict=True)]).float())
        entropies.append(-(distribution * distribution.log()).sum(-1).float())
        if model.active_role in ("reward", "value"):
            head_outputs = out.hidden_states[-1][0] @ model.head.weight[0]
            values.append(head_outputs[len(prompt) - 1 : -1])
            scores.append(head_outputs[-1])
    return logprobs, entropies, values, scores


@torch.no_grad()
def test_every_architecture_agrees_with_its_own_forward(shared_model: Make, architecture: str) -> None:
    model, batch = shared_model(architecture), random_batch()
    for role in ("policy", "base", "reference"):
        with model.role(role):
            logprobs, entropies, _, _ = alone(model)
            actual, entropy = response_logprobs(model, batch)
        assert_rows(actual, logprobs)
        assert_rows(entropy, entropies)
    with model.role("value"):
        assert_rows(response_values(model, batch), alone(model)[2])
    with model.role("reward"):
        torch.testing.assert_close(response_scores(model, batch), torch.stack(alone(model)[3]), **NEAR)


def test_every_architecture_takes_a_step(shared_model: Make, architecture: str) -> None:
    model, batch = shared_model(architecture), random_batch()
    before = model.base_digest()
    losses = {
        "sft": lambda: response_logprobs(model, batch)[0].sum(),
        "policy": lambda: response_logprobs(model, batch)[0].sum(),
        "value": lambda: response_values(model, batch).sum(),
        "reward": lambda: response_scores(model, batch).sum(),
    }
    for role, loss in losses.items():
        parameters = [parameter for _, parameter in model.named_parameters_of(role)]
        state = model.adapter_state(role)
        optimizer = torch.optim.SGD(parameters, lr=1e-4)
        with model.role(role, training=True):
            old = loss()
            old.backward()
            model.check_gradients(role)
            optimizer.step()
        with model.role(role), torch.no_grad():
            assert loss() < old
        assert any(not torch.equal(state[name], tensor) for name, tensor in model.adapter_state(role).items())
    assert model.base_digest() == before


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_no_grad_and_grad_forwards_are_bit_equal(shared_model: Make, architecture: str, quantization: str) -> None:
    """Ratio 1 and KL 0 at step 0 of PPO."""
    model, batch = shared_model(architecture, quantization), random_batch()
    model.copy_role("sft", "policy2")
    with torch.no_grad():
        with model.role("reference"):
            reference = response_logprobs(model, batch)
        with model.role("policy2"):
            old = response_logprobs(model, batch)
        with model.role("value"):
            old_values = response_values(model, batch)
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        with model.role("policy2", training=True):
            new = response_logprobs(model, batch)
        with model.role("value", training=True):
            new_values = response_values(model, batch)
        assert new[0].requires_grad and not new[1].requires_grad
        assert torch.equal(new[0], old[0]) and torch.equal(new[1], old[1])
        assert torch.equal(new_values, old_values)
    assert torch.equal(old[0], reference[0])


def test_adapter_dropout_works_in_training_only(shared_model: Make) -> None:
    model, batch = shared_model(dropout=0.5), random_batch()
    with torch.no_grad():
        with model.role("policy"):
            first, second = (response_logprobs(model, batch)[0] for _ in range(2))
        with model.role("policy", training=True):
            dropped = response_logprobs(model, batch)[0]
    assert torch.equal(first, second)
    assert not torch.allclose(dropped, first)


@torch.no_grad()
@pytest.mark.parametrize("extra", [(0, 0), (5, 0), (0, 4), (3, 6)])
def test_padding_changes_nothing(shared_model: Make, extra: tuple[int, int]) -> None:
    """Neither its width nor what stands in it: pad may be EOS, a real token, or a sentinel."""
    model, lists = shared_model("mistral"), random_lists()
    with model.role("reward"):
        plain = random_batch()
        expected = response_logprobs(model, plain)[0], response_values(model, plain), response_scores(model, plain)
        for pad in (0, 7, -100):
            batch = sequences(*lists, pad, *extra)
            logprobs, values = response_logprobs(model, batch)[0], response_values(model, batch)
            assert logprobs.shape == values.shape == batch.response_ids.shape
            width = plain.response_ids.shape[1]
            assert torch.equal(logprobs[:, :width], expected[0]) and not logprobs[:, width:].any()
            assert torch.equal(values[:, :width], expected[1]) and not values[:, width:].any()
            assert torch.equal(response_scores(model, batch), expected[2])


@torch.no_grad()
def test_an_eos_that_equals_pad_is_scored(shared_model: Make) -> None:
    """The response's EOS is inside its mask, whatever the padding is."""
    model = shared_model("qwen2")
    eos = model.tokenizer.eos_token_id
    assert eos == model.tokenizer.pad_token_id
    prompts, responses = random_lists()
    ended = [[*response, eos] for response in responses]
    with model.role("reward"):
        batch = sequences(prompts, ended, pad=eos)
        scores, logprobs = response_scores(model, batch), response_logprobs(model, batch)[0]
        for row, (prompt, response) in enumerate(zip(prompts, ended, strict=True)):
            out = model.causal(torch.tensor([prompt + response]), output_hidden_states=True, use_cache=False)
            expected = out.hidden_states[-1][0, -1] @ model.head.weight[0]
            torch.testing.assert_close(scores[row], expected, **NEAR)
            torch.testing.assert_close(logprobs[row, len(response) - 1], out.logits[0, -2].log_softmax(-1)[eos], **NEAR)


@torch.no_grad()
def test_temperature_divides_the_logits(shared_model: Make) -> None:
    model = shared_model()
    with model.role("policy"):
        for temperature in (0.5, 2.0):
            logprobs, entropies, _, _ = alone(model, temperature)
            actual, entropy = response_logprobs(model, random_batch(), temperature)
            assert_rows(actual, logprobs)
            assert_rows(entropy, entropies)


def test_chunks_change_neither_values_nor_gradients(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, results = shared_model(), []
    for chunk in (2**25, 3 * 320):
        monkeypatch.setattr("lora_rlhf.model.forward.CHUNK_LOGITS", chunk)
        with model.role("policy", training=True):
            logprobs = response_logprobs(model, random_batch())[0]
            logprobs.sum().backward()
        results.append([logprobs.detach(), *(p.grad.clone() for _, p in model.named_parameters_of("policy"))])
        for _, parameter in model.named_parameters_of("policy"):
            parameter.grad = None
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_wide_logits_are_never_made(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_rlhf.model.forward.CHUNK_LOGITS", 4 * 320)
    model, rows = shared_model(), []
    model.causal.get_output_embeddings().register_forward_hook(lambda _m, _i, out: rows.append(out.numel() // 320))
    with model.role("policy"), torch.no_grad():
        response_logprobs(model, random_batch())
    assert max(rows) <= 4
    assert sum(rows) == 6 + 3 + 8 + 1


@torch.no_grad()
def test_text_logprobs(shared_model: Make, architecture: str) -> None:
    model = shared_model(architecture)
    prompts, responses = random_lists()
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    padded = sequences([[0]] * 4, texts)
    with model.role("policy"):
        actual = text_logprobs(model, padded.response_ids, padded.response_mask)
        expected = []
        for text in texts:
            logits = model.causal(torch.tensor([text]), use_cache=False).logits[0, :-1]
            expected.append(logits.log_softmax(-1).gather(-1, torch.tensor(text[1:])[:, None])[:, 0])
    assert actual.shape == (4, max(map(len, texts)) - 1)
    assert_rows(actual, expected)


@torch.no_grad()
def test_rows_do_not_see_each_other(shared_model: Make) -> None:
    model, batch = shared_model("gemma2"), random_batch()
    order = torch.tensor([2, 0, 3, 1])
    with model.role("policy"):
        whole = response_logprobs(model, batch)[0]
        torch.testing.assert_close(response_logprobs(model, batch.index(order))[0], whole[order], **NEAR)
        for row in range(4):
            torch.testing.assert_close(response_logprobs(model, batch.index([row]))[0][0], whole[row], **NEAR)


def test_sequences() -> None:
    batch = random_batch()
    assert len(batch) == 4
    assert len(batch.index(slice(1, 3))) == 2
    part = batch.index([1, 3]).trim()
    assert part.prompt_ids.shape == (2, 9) and part.response_ids.shape == (2, 3)
    part = batch.index([2]).trim()
    assert part.prompt_ids.tolist() == [random_lists()[0][2]] and part.response_ids.tolist() == [random_lists()[1][2]]
    with pytest.raises(ValueError, match="expected"):
        Sequences(batch.prompt_ids, batch.prompt_mask[:, 1:], batch.response_ids, batch.response_mask)


def test_what_cannot_be_scored_is_refused(shared_model: Make) -> None:
    model = shared_model()
    with model.role("reward"):
        with pytest.raises(ValueError, match="empty, or not padded on the left"):
            response_scores(model, sequences([[5, 6], []], [[7], [8]]))
        with pytest.raises(ValueError, match="without a token"):
            response_scores(model, sequences([[5, 6], [7]], [[7], []]))


def test_positions_count_real_tokens() -> None:
    mask = torch.tensor([[False, False, True, True, True], [True, True, True, False, False]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


def test_micro_batches_hold_every_row_once_longest_first_and_come_back_in_order() -> None:
    lengths = [3, 9, 1, 9, 5]
    response_mask = torch.arange(9) < torch.tensor(lengths).unsqueeze(1)
    prompts = torch.ones((5, 2), dtype=torch.long)
    batch = Sequences(prompts, prompts.bool(), torch.ones((5, 9), dtype=torch.long), response_mask)
    assert batch.micro_batches(2) == [[1, 3], [4, 0], [2]]
    sums = apply_in_micro_batches(lambda part: part.response_mask.sum(dim=1), batch, 2)
    assert sums.tolist() == lengths


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma2"])
def test_left_padding_and_batching_change_no_logprob(shared_model: Make, name: str) -> None:
    model, (prompts, responses) = shared_model(name), random_lists()
    with model.role("policy"):
        for extra_left in (0, 11):
            together, _ = response_logprobs(model, sequences(prompts, responses, extra_left=extra_left))
            for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
                logits = model.causal(torch.tensor([prompt + response]), use_cache=False).logits[
                    0, len(prompt) - 1 : -1
                ]
                alone = logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
                torch.testing.assert_close(together[row, : len(response)], alone, rtol=0, atol=1e-5)
