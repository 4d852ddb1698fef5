"""Generation by several roles at once: each says what it says alone; streams come and go as they like."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.generate import Response, generate_mixed, generate_seeded, stream_mixed
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.support.batches import random_lists
from tests.support.models import randomize

Make = Callable[..., SharedModel]
ROLES = ("base", "sft", "policy", "reference", "wide")
SETTINGS: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "stop_ids": list(range(40))}
PROMPTS = [prompt[:7] for prompt in random_lists()[0]]  # with 8 new tokens they fit the sliding windows of 16


@pytest.fixture
def several(shared_model: Make) -> Make:
    """With a role of another rank and scale."""

    def make(*args: str) -> SharedModel:
        model = shared_model(*args)
        model.add_role("wide", LoraSettings(rank=8, alpha=4))
        randomize(model, "wide", seed=10)
        return model

    return make


def requests(samples: int = 1) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Every prompt to every role, with the same seeds for all roles."""
    pairs = [(role, index) for index in range(len(PROMPTS)) for role in ROLES]
    seeds = [[100 * index + sample for sample in range(samples)] for _, index in pairs]
    return [role for role, _ in pairs], [PROMPTS[index] for _, index in pairs], seeds


def each_alone(
    model: SharedModel, roles: list[str], prompts: list[list[int]], seeds: list[list[int]], **settings: Any
) -> list[list[Response]]:
    by_row: dict[int, list[Response]] = {}
    for role in ROLES:
        rows = [index for index, name in enumerate(roles) if name == role]
        with model.role(role):
            groups = generate_seeded(model, [prompts[i] for i in rows], [seeds[i] for i in rows], **settings)
        by_row |= dict(zip(rows, groups, strict=True))
    return [by_row[index] for index in range(len(roles))]


@pytest.mark.parametrize("engine", ["plain", "static"])
def test_each_role_says_what_it_says_alone(several: Make, architecture: str, engine: str) -> None:
    model = several(architecture)
    digest = model.base_digest()
    settings = {**SETTINGS, "batch_size": 7, "engine": engine}
    groups = generate_mixed(model, *requests(samples=2), **settings)
    assert groups == each_alone(model, *requests(samples=2), **settings)
    assert {len(group) for group in groups} == {2}
    assert {r.finished for group in groups for r in group} == {True, False}
    assert len({tuple(group[0].ids) for group in groups[:5]}) == 4, "all roles but the alias part"
    assert groups[1] == groups[3]
    assert model.base_digest() == digest


@pytest.mark.parametrize("engine", ["plain", "static"])
def test_without_quantization_and_in_training_too(several: Make, engine: Any) -> None:
    model = several("gpt2", "none")
    model.enable_gradient_checkpointing()
    settings = {**SETTINGS, "batch_size": 6, "engine": engine}
    with model.role("policy", training=True):
        groups = generate_mixed(model, *requests(), **settings)
        assert {module.training for module in model.causal.modules()} == {True}
    assert groups == each_alone(model, *requests(), **settings)


def test_in_8_bits_it_runs(several: Make) -> None:
    model = several("llama", "int8")
    groups = generate_mixed(model, *requests(), **SETTINGS, batch_size=64)
    assert len(groups) == len(PROMPTS) * len(ROLES) and all(group[0].ids for group in groups)


@pytest.mark.parametrize("engine", ["plain", "static"])
def test_a_prompt_is_read_once_for_each_role(several: Make, engine: Any) -> None:
    model, shapes = several(), []
    model.causal.get_input_embeddings().register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape))
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    seeds = [[index, index + 50, index + 70] for index in range(len(prompts))]
    settings = {**SETTINGS, "stop_ids": [], "batch_size": 64}
    generate_mixed(model, ["sft", "policy"] * 4, prompts, seeds, **settings, engine=engine)
    assert [tuple(shape) for shape in shapes] == [(8, 7)] + [(24, 1)] * 7


def test_what_cannot_be_generated_is_refused(several: Make) -> None:
    model = several()
    settings = {**SETTINGS, "batch_size": 4}
    assert generate_mixed(model, [], [], [], **settings) == []
    assert list(stream_mixed(model, [], [], [], **SETTINGS)) == []
    for function in (generate_mixed, stream_mixed):
        arguments = settings if function is generate_mixed else SETTINGS
        seeds: Any = [[0]] if function is generate_mixed else [0]
        with pytest.raises(ValueError, match="no role 'nobody'"):
            function(model, ["nobody"], [[5]], seeds, **arguments)
        with pytest.raises(ValueError, match="2 roles for 1 prompts"):
            function(model, ["sft", "base"], [[5]], seeds, **arguments)
        with pytest.raises(ValueError, match="seeds of 1 prompts for 2 prompts"):
            function(model, ["sft", "base"], [[5], [6]], seeds, **arguments)
        with pytest.raises(UserError, match="context of 256"):
            function(model, ["sft"], [[5] * 249], seeds, **arguments)
    assert model.active_role is None


# Streams


def columns(model: SharedModel, prompt: int = 0, **changes: Any) -> Iterator[list[int | None]]:
    """One prompt to every role."""
    settings = SETTINGS | changes
    return stream_mixed(model, ROLES, [PROMPTS[prompt]] * len(ROLES), [7] * len(ROLES), **settings)


def expected_columns(model: SharedModel, prompt: int = 0) -> list[list[int]]:
    seeds = [[7]] * len(ROLES)
    groups = each_alone(model, list(ROLES), [PROMPTS[prompt]] * len(ROLES), seeds, **SETTINGS, batch_size=1)
    return [group[0].ids for group in groups]


def joined(steps: list[list[int | None]]) -> list[list[int]]:
    """Each row's tokens; nothing comes after a None."""
    rows = [[step[row] for step in steps] for row in range(len(ROLES))]
    for row in rows:
        ended = row.index(None) if None in row else len(row)
        assert set(row[ended:]) <= {None}
    return [[token for token in row if token is not None] for row in rows]


def idle(model: SharedModel) -> bool:
    """Whether no block is active: any forward pass is outside all roles."""
    assert torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="outside any role"):
        model.causal(torch.tensor([[5]]), use_cache=False)
    return True


def test_a_stream_says_what_each_role_says_alone(several: Make, architecture: str) -> None:
    model = several(architecture)
    steps = []
    for step in columns(model):
        assert idle(model)
        steps.append(step)
    assert joined(steps) == expected_columns(model)
    assert len(steps) == max(map(len, joined(steps)))


def test_streams_interleave_with_each_other_and_with_roles(several: Make) -> None:
    model = several()
    expected = [expected_columns(model, prompt) for prompt in (0, 1)]
    streams = columns(model, 0), columns(model, 1)
    drawn: tuple[list[Any], list[Any]] = ([], [])
    for _ in range(SETTINGS["max_new_tokens"]):
        for stream, steps in zip(streams, drawn, strict=True):
            steps += [step for step in [next(stream, None)] if step is not None]
            with model.role("value", training=True):
                model.causal(torch.tensor([[5]]), use_cache=False).logits.sum().backward()
    assert [next(stream, None) for stream in streams] == [None, None]
    assert [joined(steps) for steps in drawn] == expected


def test_a_stream_stops_when_it_is_told_to(several: Make) -> None:
    model = several()
    steps: list[Any] = []
    whole = list(columns(model, stop_ids=[]))
    for step in columns(model, stop_ids=[], stop=lambda: len(steps) == 3):
        steps.append(step)
    assert len(whole) == 8 and steps == whole[:3]
    assert list(columns(model, stop=lambda: True)) == []
    assert idle(model)


def test_a_closed_stream_leaves_the_model_idle(several: Make) -> None:
    model = several()
    stream: Any = columns(model, stop_ids=[])
    next(stream)
    stream.close()
    assert list(stream) == []
    assert idle(model)
    next(columns(model))  # dropped
    assert idle(model)


def test_a_step_that_fails_leaves_the_model_idle(several: Make) -> None:
    model = several()
    with model.role("policy"), torch.no_grad():
        before = model.causal(torch.tensor([[5, 6]]), use_cache=False).logits
    stream = columns(model, stop_ids=[])
    next(stream)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.backbone.layers[1].register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        next(stream)
    hook.remove()
    assert idle(model)
    assert list(stream) == []
    with model.role("policy"), torch.no_grad():
        assert torch.equal(model.causal(torch.tensor([[5, 6]]), use_cache=False).logits, before)


def test_a_stream_goes_on_with_the_roles_that_it_began_with(several: Make) -> None:
    model = several()
    expected = expected_columns(model)
    stream = columns(model)
    steps = [next(stream)]
    randomize(model, "policy", seed=99)
    model.add_role("later", LoraSettings(rank=2))
    assert joined([*steps, *stream]) == expected
    assert expected_columns(model) != expected


def test_finished_columns_cost_nothing(several: Make) -> None:
    model, rows = several(), []

    def count(_module: torch.nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        rows.append(len(inputs[0]))

    model.causal.get_input_embeddings().register_forward_hook(count)
    steps = list(columns(model, stop_ids=list(range(120))))
    lengths = sorted(map(len, joined(steps)))
    assert lengths[0] < lengths[-1] and len(steps) > 2
    assert rows == [sum(length > step for length in lengths) for step in range(len(steps))]
