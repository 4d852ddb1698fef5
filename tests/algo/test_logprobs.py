"""Token log-probabilities: the right token, the right width, and never more logits than asked for."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lora_rlhf.algo.logprobs import chunked_logprobs, token_logprobs
from tests.support import reference

N, H, V = 11, 3, 17


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


IDS = torch.arange(N) * 5 % V


def entropy_of(logits: Tensor) -> Tensor:
    """The entropy of each row of logits (N, V)."""
    return chunked_logprobs(logits, torch.nn.Identity(), torch.zeros(len(logits), dtype=torch.long))[1]


def test_equals_the_definition() -> None:
    logits = random(2, 4, V)
    ids = IDS[:8].view(2, 4)
    logprobs, entropy = token_logprobs(logits, ids), entropy_of(logits.view(8, V)).view(2, 4)
    for row in range(2):
        for column in range(4):
            cell = logits[row, column].tolist()
            assert logprobs[row, column].item() == pytest.approx(
                reference.logprob(cell, int(ids[row, column])), abs=1e-12
            )
            assert entropy[row, column].item() == pytest.approx(reference.entropy(cell), abs=1e-12)


def test_landmarks() -> None:
    uniform = torch.zeros(1, 8)
    assert token_logprobs(uniform, torch.tensor([3])).item() == pytest.approx(-math.log(8), rel=1e-6)
    assert entropy_of(uniform).item() == pytest.approx(math.log(8), rel=1e-6)


def test_half_precision_is_widened_before_the_softmax() -> None:
    logits = (4 * random(N, V)).detach().bfloat16()
    logprobs = token_logprobs(logits, IDS)
    assert logprobs.dtype == entropy_of(logits).dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), token_logprobs(logits.double(), IDS), rtol=0, atol=1e-5)
    assert token_logprobs(logits.double(), IDS).dtype == torch.float64
    identity = torch.nn.Identity()
    warm, _ = chunked_logprobs(logits, identity, IDS, temperature=0.7)  # the division is widened too
    torch.testing.assert_close(warm.double(), token_logprobs(logits.double() / 0.7, IDS), rtol=0, atol=1e-5)


def test_tokens_that_cannot_be_drawn_leave_entropy_and_gradients_finite() -> None:
    logits = torch.tensor([[1.0, -math.inf, 2.0], [0.0, -500.0, 500.0]], dtype=torch.float64, requires_grad=True)
    assert entropy_of(logits).tolist() == pytest.approx([reference.entropy([1.0, 2.0]), 0.0], abs=1e-12)
    token_logprobs(logits, torch.tensor([0, 2])).sum().backward()
    assert logits.grad.isfinite().all()


Head = Callable[[Tensor, Tensor], Tensor]


def linear(hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden @ weight.T


def biased_and_capped(hidden: Tensor, weight: Tensor) -> Tensor:
    """As Gemma 2 caps its logits, with a bias as Phi has."""
    return torch.tanh((hidden @ weight.T + weight[:, 0]) / 2.0) * 2.0


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_tokens", [1, 4, N, 100])
@pytest.mark.parametrize("head", [linear, biased_and_capped])
def test_chunked_equals_unchunked_in_value_and_gradient(head: Head, chunk_tokens: int, temperature: float) -> None:
    hidden, weight, upstream = random(N, H, seed=1), random(V, H, seed=2).detach(), random(N, seed=3).detach()
    logits = head(hidden, weight) / temperature
    (expected,) = torch.autograd.grad(token_logprobs(logits, IDS) @ upstream, hidden)

    logprobs, entropy = chunked_logprobs(hidden, lambda h: head(h, weight), IDS, temperature, chunk_tokens)
    torch.testing.assert_close(logprobs, token_logprobs(logits, IDS), rtol=0, atol=1e-12)
    assert entropy.tolist() == pytest.approx([reference.entropy(row) for row in logits.tolist()], abs=1e-12)
    assert logprobs.requires_grad and not entropy.requires_grad
    (gradient,) = torch.autograd.grad(logprobs @ upstream, hidden)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    with torch.no_grad():  # scoring gives the bits of training
        again, alone = chunked_logprobs(hidden, lambda h: head(h, weight), IDS, temperature, chunk_tokens)
    assert torch.equal(again, logprobs) and torch.equal(alone, entropy)


def test_chunked_gradient_is_the_numerical_one_and_rows_are_independent() -> None:
    weight = random(V, H, seed=2).detach()
    for head in (linear, biased_and_capped):
        chunked = partial(chunked_logprobs, head=partial(head, weight=weight), ids=IDS, temperature=0.8, chunk_tokens=4)
        assert torch.autograd.gradcheck(lambda h, c=chunked: c(h)[0], random(N, H))
    order = torch.arange(N).flip(0)
    hidden = random(N, H).detach()
    plain, permuted = (
        chunked_logprobs(hidden[index], lambda x: x @ weight.T, IDS[index], chunk_tokens=4)
        for index in (slice(None), order)
    )
    for left, right in zip(plain, permuted, strict=True):
        torch.testing.assert_close(left[order], right, rtol=0, atol=1e-12)


def test_chunked_works_without_gradients_and_without_tokens() -> None:
    hidden, weight = random(N, H), random(V, H, seed=2).detach()
    with torch.no_grad():
        logprobs, _ = chunked_logprobs(hidden, lambda h: h @ weight.T, IDS, chunk_tokens=4)
    assert not logprobs.requires_grad
    torch.testing.assert_close(logprobs, token_logprobs(hidden @ weight.T, IDS), rtol=0, atol=1e-12)
    for empty in chunked_logprobs(hidden[:0], lambda h: h @ weight.T, IDS[:0]):
        assert empty.shape == (0,)


def test_the_head_is_computed_once_a_chunk_and_the_entropy_where_it_is_asked_for() -> None:
    hidden, weight = random(N, H), random(V, H, seed=2).detach()
    rows: list[int] = []

    def head(states: Tensor) -> Tensor:
        rows.append(len(states))
        return states @ weight.T

    logprobs, entropy = chunked_logprobs(hidden, head, IDS, chunk_tokens=4, entropy=False)
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert rows == [0, 4, 4, 3]  # no row to see whether the head is frozen, and nothing again in the backward pass
    assert entropy.tolist() == [0.0] * N
    with_entropy, _ = chunked_logprobs(hidden, head, IDS, chunk_tokens=4)
    assert torch.equal(with_entropy, logprobs)
    assert torch.equal(torch.autograd.grad(with_entropy.sum(), hidden)[0], gradient)


def test_a_head_that_would_get_no_gradient_is_an_error() -> None:
    weight = random(V, H, seed=2)
    for hidden in (random(N, H), random(N, H).detach()):
        with pytest.raises(ValueError, match="trainable parameters"):
            chunked_logprobs(hidden, lambda h: h @ weight.T, IDS)


class WideRows(TorchDispatchMode):
    """Counts the rows of width V that are alive at once, whoever holds them: Python, autograd or a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for out in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(out, Tensor) and out.ndim == 2 and out.shape[1] == V and out.shape[0] != H:
                storage = StorageWeakRef(out.untyped_storage())
                self.alive[storage.cdata] = (storage, out.shape[0])
        self.alive = {key: (ref, rows) for key, (ref, rows) in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(rows for _, rows in self.alive.values()))
        return result


def peak_rows(num_tokens: int, chunk_tokens: int) -> int:
    hidden, weight = random(num_tokens, H), random(V, H, seed=2).detach()
    ids = torch.arange(num_tokens) % V
    with WideRows() as rows:
        logprobs, _ = chunked_logprobs(hidden, lambda h: torch.mm(h, weight.T), ids, 0.9, chunk_tokens)
        logprobs.sum().backward()
    return rows.peak


def test_peak_memory_follows_the_chunk_and_not_the_batch_in_forward_and_backward() -> None:
    chunk = 4
    assert chunk < peak_rows(40, chunk) == peak_rows(80, chunk) <= 6 * chunk
    assert peak_rows(80, 80) >= 80  # the counter does see what an unchunked call holds


def test_misuse_is_an_error() -> None:
    hidden, head = random(N, H), torch.nn.Identity()
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        chunked_logprobs(hidden, head, IDS, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1, got 0"):
        chunked_logprobs(hidden, head, IDS, chunk_tokens=0)
    with pytest.raises(ValueError, match=r"\(11, 3\) and \(10,\)"):
        chunked_logprobs(hidden, head, IDS[:-1])
