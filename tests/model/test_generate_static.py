"""The static engine: the same responses as from the plain one, from slots that are refilled and never reallocated."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from lora_rlhf.model import decode_static
from lora_rlhf.model.decode_step import Replay, Slots, Step
from lora_rlhf.model.drawing import Drawing, RowRoles
from lora_rlhf.model.forward import response_logprobs
from lora_rlhf.model.generate import Engine, Response, generate, generate_mixed, generate_seeded
from lora_rlhf.model.kv_cache import SlotCache
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.support.batches import sequences

Make = Callable[..., SharedModel]
NEW = 8
SEED = 3
LENGTHS = (3, 8, 1, 5, 7, 2, 6, 4, 8, 1, 3)  # with NEW tokens they fit the sliding windows of 16


def prompts_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, 300, (length,), generator=generator).tolist() for length in lengths]


def sample(
    model: SharedModel, prompts: list[list[int]], engine: Engine = "static", **changes: Any
) -> list[list[Response]]:
    settings: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 1.0, "stop_ids": list(range(40)), "batch_size": 4}
    generator = torch.Generator().manual_seed(SEED)
    return generate(model, prompts, generator=generator, engine=engine, **(settings | changes))


def greedy_alone(model: SharedModel, prompt: list[int], stops: list[int]) -> list[int]:
    """The whole forward again for each token: no cache, no padding."""
    tokens = list(prompt)
    for _ in range(NEW):
        with torch.no_grad():
            tokens.append(int(model.causal(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def require_same(
    model: SharedModel,
    prompts: list[list[int]],
    actual: list[list[Response]],
    expected: list[list[Response]],
    temperature: float = 1.0,
) -> None:
    """The same responses; where one differs, its random number lay on the border of two tokens, within rounding."""
    num_samples = len(actual[0])
    seeds = torch.randint(2**62, (len(prompts), num_samples), generator=torch.Generator().manual_seed(SEED))
    differences = 0
    for prompt, group, expected_group, group_seeds in zip(prompts, actual, expected, seeds.tolist(), strict=True):
        for a, b, seed in zip(group, expected_group, group_seeds, strict=True):
            if a == b:
                continue
            step = next(step for step, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y)
            with torch.no_grad():
                logits = model.causal(torch.tensor([prompt + a.ids[:step]]), use_cache=False).logits[0, -1].double()
            border = (logits / temperature).softmax(-1).cumsum(-1)[min(a.ids[step], b.ids[step])]
            generator = torch.Generator().manual_seed(seed)
            number = torch.rand(step + 1, generator=generator, dtype=torch.float64)[-1]
            assert abs(float(border - number)) < 1e-5
            differences += 1
    assert differences <= 1


class FakeCapture:
    """In place of CUDA graphs: a replay runs the step again.

    All else is as on a GPU: every step has all slots, and only every few steps the engine looks which have finished.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, run: Replay) -> Replay:
        self.count += 1
        return run


@pytest.fixture(params=["eager", "replayed"])
def capture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCapture | None:
    """Steps that run eagerly (None), and steps that are captured and replayed."""
    fake = FakeCapture() if request.param == "replayed" else None
    monkeypatch.setattr(decode_static, "make_capture", lambda _model: fake)
    return fake


@pytest.mark.slow
def test_greedy_equals_the_plain_loop(shared_model: Make, architecture: str) -> None:
    """Rows that stop at different steps, and slots that are taken by shorter prompts than they held before."""
    model, prompts = shared_model(architecture), prompts_of()
    with model.role("policy"):
        free = [greedy_alone(model, prompt, []) for prompt in prompts]
        stops = [free[0][0], free[1][3], free[4][5]]
        expected = [greedy_alone(model, prompt, stops) for prompt in prompts]
        groups = sample(model, prompts, temperature=0.0, stop_ids=stops, batch_size=3)
    assert {len(response) for response in expected} >= {1, NEW}
    assert [group[0].ids for group in groups] == expected
    assert [group[0].finished for group in groups] == [response[-1] in stops for response in expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_samples_equal_the_plain_engine_s(shared_model: Make, name: str) -> None:
    model, prompts = shared_model(name), prompts_of()
    with model.role("policy"):
        for changes in ({}, {"batch_size": 64}, {"num_samples": 3, "batch_size": 5}, {"temperature": 0.7}):
            expected = sample(model, prompts, engine="plain", **changes)
            require_same(model, prompts, sample(model, prompts, **changes), expected, changes.get("temperature", 1.0))


@pytest.mark.slow
def test_slots_and_neighbours_do_not_matter(shared_model: Make, capture: FakeCapture | None) -> None:
    model, prompts = shared_model("qwen2"), prompts_of()
    with model.role("policy"):
        expected = sample(model, prompts, engine="plain", num_samples=3)
        for size in (1, 7, 100):
            require_same(model, prompts, sample(model, prompts, num_samples=3, batch_size=size), expected)
        everything = sample(model, prompts, stop_ids=list(range(320)), num_samples=2)
        single = sample(model, prompts, max_new_tokens=1, stop_ids=[])
    assert all(len(response.ids) == 1 and response.finished for group in everything for response in group)
    assert [[(len(r.ids), r.finished) for r in group] for group in single] == [[(1, False)]] * len(prompts)


@pytest.mark.slow
def test_slots_carry_their_role(shared_model: Make, capture: FakeCapture | None) -> None:
    """Through refills and moves; the same seeds for every role, so that a wrong role shows."""
    model, prompts = shared_model("mistral"), prompts_of()
    roles = [("base", "policy", "sft")[index % 3] for index in range(len(prompts))]
    seeds = [[index, index + 100] for index in range(len(prompts))]
    settings: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 1.0, "stop_ids": list(range(40)), "batch_size": 5}
    groups = generate_mixed(model, roles, prompts, seeds, **settings, engine="static")
    for role in set(roles):
        with model.role(role):
            alone = generate_seeded(model, prompts, seeds, **settings)
        assert [group for group, name in zip(groups, roles, strict=True) if name == role] == [
            group for group, name in zip(alone, roles, strict=True) if name == role
        ]
    assert groups != alone


def test_the_distribution_drawn_from_is_the_one_scored(shared_model: Make, architecture: str) -> None:
    """The log-probs of the sampled tokens at generation equal those of the training forward, in refilled slots too."""
    model, prompts, temperature = shared_model(architecture), prompts_of(), 0.7
    with model.role("policy"), torch.no_grad():
        groups = sample(model, prompts, temperature=temperature, stop_ids=[])
        scored = response_logprobs(model, sequences(prompts, [group[0].ids for group in groups]), temperature)[0]
    logprobs = torch.tensor([group[0].logprobs for group in groups])
    assert logprobs.shape == (len(prompts), NEW)
    torch.testing.assert_close(logprobs, scored, rtol=1e-4, atol=2e-5)


def test_each_prompt_is_read_once_and_slots_are_refilled(shared_model: Make) -> None:
    model, prompts = shared_model(), prompts_of()
    shapes: list[torch.Size] = []
    model.causal.get_input_embeddings().register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape))
    with model.role("policy"):
        groups = sample(model, prompts, num_samples=20, batch_size=8, stop_ids=list(range(60)))
    tokens = sum(len(response.ids) for group in groups for response in group)
    reads = [shape for shape in shapes if shape[1] > 1]
    steps = [int(shape[0]) for shape in shapes if shape[1] == 1]
    single = sum(len(prompt) == 1 for prompt in prompts)
    assert sum(rows for rows, _ in reads) == len(prompts) - single
    assert max(steps) <= 8
    # every token but each response's first comes from a step of its row; a prompt of one token is read like a step
    assert sum(steps) <= tokens - len(prompts) * 20 + single
    with model.role("policy"):
        shapes.clear()
        sample(model, prompts, batch_size=64)
    assert shapes[0] == (len(prompts), max(LENGTHS)), "prompts that start together are read together"
    assert sum(steps) >= 0.8 * 8 * len(steps), "few slots are idle: a quarter is refilled at once"


def test_the_cache_is_written_in_place_and_read_as_far_as_needed(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch, capture: FakeCapture | None
) -> None:
    model, prompts = shared_model(), prompts_of((40, 9, 3, 2, 5))
    addresses: set[int] = set()
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(decode_static, "COLUMN_UNIT", 16)
    monkeypatch.setattr(decode_static, "GRAPH_COLUMN_UNIT", 16)

    def spy(_module: object, _args: object, named: dict[str, Any]) -> None:
        cache = named["past_key_values"]
        if isinstance(cache, SlotCache):
            addresses.add(cache.layers[0].keys.data_ptr())
            assert cache.view.columns > int(named["position_ids"].max())
            sizes.append((cache.view.rows, cache.view.columns))

    model.backbone.register_forward_pre_hook(spy, with_kwargs=True)
    with model.role("policy"):
        groups = sample(model, prompts, batch_size=2, max_new_tokens=20, stop_ids=[])
    assert all(len(response.ids) == 20 for group in groups for response in group)
    assert len(addresses) == 1
    if capture is None:
        assert {columns for _, columns in sizes} == {16, 32, 48, 64}
    else:
        assert set(sizes) == {(2, 64)} and capture.count == 1


def test_a_step_that_cannot_be_captured_runs_eagerly(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It warns once, and never tries again. Without enough memory the error goes to the caller."""
    model, prompts = shared_model(), prompts_of()
    errors: list[Exception] = []

    def fail_with(error: Exception) -> None:
        def capture(_run: Replay) -> Replay:
            errors.append(error)
            raise error

        monkeypatch.setattr(decode_static, "make_capture", lambda _model: None if model.capture_fault else capture)

    fail_with(RuntimeError("operation not permitted when stream is capturing\nmore lines"))
    with model.role("policy"):
        require_same(model, prompts, sample(model, prompts), sample(model, prompts, engine="plain"))
        sample(model, prompts)
    assert len(errors) == 1, "the second call does not try"
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 1
    assert "LlamaForCausalLM: its decoding step cannot be captured" in messages[0] and "capturing)" in messages[0]

    model.capture_fault = None
    fail_with(torch.OutOfMemoryError("CUDA out of memory"))
    with model.role("policy"), pytest.raises(torch.OutOfMemoryError):
        sample(model, prompts)


def test_a_slot_that_holds_nothing_stays_where_it_is(shared_model: Make) -> None:
    """On a GPU it computes on for as long as others run, and must not leave the cache."""
    model = shared_model()
    slots = Slots(2, 2, 16, NEW, model.device)
    step = Step(model, slots, Drawing(NEW, 1.0, []), RowRoles([0, 0]))
    with model.role("policy"), torch.no_grad():
        read = DynamicCache(config=model.config)
        model.backbone(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=read, use_cache=True)
        both = torch.tensor([0, 1])
        slots.cache.copy_prompts(read, torch.tensor([0, 0]), both)
        numbers = torch.rand(2, NEW, dtype=torch.float64)
        roles, more = torch.tensor([0, 0]), torch.tensor([True, False])
        slots.start(both, roles, torch.tensor([8, 8]), torch.tensor([3, 3]), numbers, more, torch.zeros(2))
        for _ in range(4):
            step(2, 16)
    assert (slots.position.tolist(), slots.count.tolist()) == ([7, 3], [5, 1])
    assert slots.running.tolist() == [True, False]


@pytest.mark.parametrize("training", [False, True])
def test_mode_is_left_as_found(shared_model: Make, training: bool) -> None:
    model, prompts = shared_model(dropout=0.5), prompts_of()
    model.enable_gradient_checkpointing()
    with model.role("policy"):
        expected = sample(model, prompts, engine="plain", temperature=0.0)
    with model.role("policy", training=training):
        assert sample(model, prompts, temperature=0.0) == expected
        assert {module.training for module in model.causal.modules()} == {training}


def test_what_cannot_be_generated_is_refused(shared_model: Make) -> None:
    model = shared_model()
    with model.role("policy"):
        assert sample(model, []) == []
        assert len(sample(model, [[5] * 248], stop_ids=[])[0][0].ids) == NEW
        with pytest.raises(UserError, match="context of 256"):
            sample(model, [[5] * 249])
    with pytest.raises(RuntimeError, match="outside any role"):
        sample(model, [[5]])


def test_tokens_are_counted_as_they_are_drawn(shared_model: Make, capture: FakeCapture | None) -> None:
    model, prompts = shared_model(), prompts_of()
    counts: list[int] = []
    with model.role("policy"):
        decode_static.generate_static(
            model,
            prompts,
            [[0]] * len(prompts),
            Drawing(NEW, 1.0, []),
            RowRoles([0] * len(prompts)),
            len(prompts),
            counts.append,
        )
    looks = math.ceil((NEW - 1) / decode_static.STEPS_PER_LOOK)
    steps = NEW - 1 if capture is None else looks * decode_static.STEPS_PER_LOOK
    assert sum(counts) == len(prompts) * (1 + steps)
