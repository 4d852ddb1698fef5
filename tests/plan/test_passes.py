"""Predicted bytes against real ones: the passes of real models, counted by PyTorch's profiler."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_rlhf.configs.catalogue import DPO, PPO
from lora_rlhf.configs.stages import DPOConfig, PPOConfig
from lora_rlhf.data.encode import EncodedRanking
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.forward import Sequences, response_logprobs, response_values
from lora_rlhf.model.generate import generate_seeded
from lora_rlhf.model.memory import adapter_bytes
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.model.skeleton import make_config
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.memory import (
    Setting,
    memory_points,
    moment_bytes,
    quantized_base_bytes,
    role_bytes,
    unquantized_base_bytes,
)
from lora_rlhf.plan.meter import Meter
from lora_rlhf.plan.subject import MeasuredModel, measure_model
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.dpo import accumulate, batch_groups
from lora_rlhf.stages.trainer import RoleOptimizer
from lora_rlhf.stages.trl_loss import TRLLoss

pytestmark = pytest.mark.slow

PROMPT, RESPONSE, ROWS = 64, 32, 6
Measured = Callable[[Callable[[], object]], int]
PASSING = ("activations", "hidden states", "logits", "kv cache", "generation")
FAMILIES = ("llama", "gemma2", "gpt2")
PASSES_IN_THE_SUITE = (("policy", "gpt2", True), ("value", "llama", False))


@pytest.fixture(scope="module")
def subjects(tiny_model: Callable[[str], Path]) -> Callable[[str], MeasuredModel]:
    found: dict[str, MeasuredModel] = {}

    def subject(name: str) -> MeasuredModel:
        if name not in found:
            sizes: dict[str, Any] = {"max_prompt_tokens": PROMPT, "max_response_tokens": RESPONSE}
            sizes |= {"batch_size": ROWS, "minibatch_size": ROWS}
            found[name] = measure_model(PlanConfig(model=str(tiny_model(name)), device="cpu", lora_rank=4, **sizes))
        return found[name]

    return subject


def batch(rows: int = ROWS) -> Sequences:
    """Rows of unlike lengths, the longest as long as allowed."""
    prompt_mask = torch.ones((rows, PROMPT), dtype=torch.bool)
    prompt_mask[1:, :5] = False
    response_mask = torch.ones((rows, RESPONSE), dtype=torch.bool)
    ids = torch.full((rows, PROMPT), 7), torch.full((rows, RESPONSE), 9)
    return Sequences(ids[0], prompt_mask, ids[1], response_mask)


def planned(subject: MeasuredModel, name: str, checkpointing: bool = False) -> float:
    """The temporary memory at a memory point of PPO."""
    setting = Setting(ROWS, ROWS, checkpointing, 4, True, batch=ROWS)
    point = next(
        point
        for point in memory_points(PPO, subject.counts, subject.passes, setting, subject.device)
        if point.name == name
    )
    return sum(point.parts.get(part, 0.0) for part in PASSING)


def most(subject: MeasuredModel, names: tuple[str, ...], checkpointing: bool = False) -> float:
    return max(planned(subject, name, checkpointing) for name in names)


@pytest.mark.parametrize(
    ("role", "family", "checkpointing"),
    [
        pytest.param(*case, marks=[] if case in PASSES_IN_THE_SUITE else pytest.mark.long)
        for case in itertools.product(("policy", "value"), FAMILIES, (False, True))
    ],
)
def test_a_training_pass_takes_what_was_planned(
    role: str,
    family: str,
    checkpointing: bool,
    shared_model: Callable[..., SharedModel],
    subjects: Callable[[str], MeasuredModel],
    measured: Measured,
) -> None:
    model = shared_model(family)
    if checkpointing:
        model.enable_gradient_checkpointing()
    for _, parameter in model.named_parameters_of(role):
        parameter.grad = torch.zeros_like(parameter)
    sequences = batch()

    def step() -> None:
        with model.role(role, training=True):
            if role == "policy":
                response_logprobs(model, sequences, needs_entropy=False)[0].sum().backward()
            else:
                response_values(model, sequences).sum().backward()

    head = "log-probs" if role == "policy" else "values"
    names = tuple(f"update of {role}: {part}" for part in ("forward", head, "backward"))
    assert most(subjects(family), names, checkpointing) == pytest.approx(measured(step), rel=0.01)


@pytest.mark.parametrize("size", [2, ROWS])
def test_a_step_of_dpo_takes_what_was_planned(
    size: int,
    shared_model: Callable[..., SharedModel],
    subjects: Callable[[str], MeasuredModel],
    measured: Measured,
    tmp_path: Path,
) -> None:
    """TRL's loss on pairs that are read in parts, and at once."""
    model, config = shared_model("llama"), DPOConfig(run="unused", rankings="unused")
    model.copy_role("policy", "dpo")
    for _, parameter in model.named_parameters_of("dpo"):
        parameter.grad = torch.zeros_like(parameter)
    rankings = [EncodedRanking([5 + n] * PROMPT, [[9] * RESPONSE, [8] * RESPONSE], [1, 2]) for n in range(ROWS // 2)]
    loss = TRLLoss(config, model, tmp_path, batch_groups(config, rankings)[0][1])

    def step() -> None:
        with model.role("dpo", training=True):
            accumulate(config, model, loss, rankings, size)

    real, subject = measured(step), subjects("llama")
    points = memory_points(DPO, subject.counts, subject.passes, Setting(size, 1, False, 4, True, ROWS), subject.device)
    most_planned = max(sum(point.parts.get(part, 0.0) for part in PASSING) for point in points)
    assert 0.95 * real <= most_planned <= 1.1 * real


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_takes_what_was_planned(
    family: str, shared_model: Callable[..., SharedModel], subjects: Callable[[str], MeasuredModel], measured: Measured
) -> None:
    model, sequences = shared_model(family), batch()

    @torch.no_grad()
    def score() -> None:
        with model.role("policy"):
            response_logprobs(model, sequences)

    assert most(subjects(family), ("scoring", "scoring: log-probs")) == pytest.approx(measured(score), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_takes_at_most_what_was_planned(
    family: str, shared_model: Callable[..., SharedModel], subjects: Callable[[str], MeasuredModel], measured: Measured
) -> None:
    model = shared_model(family)
    prompts = [[7] * (PROMPT if row == 0 else PROMPT - 5) for row in range(ROWS)]

    def sample() -> None:
        with model.role("policy"):
            generate_seeded(
                model,
                prompts,
                [[row] for row in range(ROWS)],
                max_new_tokens=RESPONSE,
                temperature=1.0,
                stop_ids=[],
                batch_size=ROWS,
            )

    real = measured(sample)
    assert 0.95 * real <= most(subjects(family), ("prefill", "decoding", "drawing a token")) <= 1.1 * real


@pytest.mark.parametrize("family", FAMILIES)
def test_base_adapters_and_optimizer_are_counted_to_the_byte(
    family: str, shared_model: Callable[..., SharedModel], subjects: Callable[[str], MeasuredModel]
) -> None:
    model, counts = shared_model(family), subjects(family).counts
    config = PPOConfig(run="unused", prompts="unused")
    assert quantized_base_bytes(counts) + unquantized_base_bytes(counts) == bytes_of_base(model)
    for role in ("policy", "value"):
        assert role_bytes(counts, 4, head=role == "value") == adapter_bytes(model, role)
        trained = RoleOptimizer(config, model, role, 1e-4, AutoBatch("", 1, ""))
        moments = [tensor for name, tensor in trained.state().items() if not name.startswith(f"{role}.step.")]
        assert moment_bytes(adapter_bytes(model, role)) == sum(t.numel() * t.element_size() for t in moments)


def bytes_of_base(model: SharedModel) -> int:
    """Each storage of the base once: parameters, buffers, what belongs to a quantized weight, the frozen score head."""
    tensors = []
    for name, parameter in model.causal.named_parameters():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        tensors.append(parameter.data)
        if (state := getattr(parameter, "quant_state", None)) is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    tensors += list(model.causal.buffers())
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_many_rows_are_foretold_from_few(
    shared_model: Callable[..., SharedModel], subjects: Callable[[str], MeasuredModel], measured: Measured
) -> None:
    """The planes go through passes of 2 and 3 rows."""
    model, sequences = shared_model("llama"), batch(15)

    @torch.no_grad()
    def score() -> None:
        with model.role("policy"):
            response_logprobs(model, sequences)

    subject, setting = subjects("llama"), Setting(15, 1, False, 4, True, batch=15)
    points = memory_points(PPO, subject.counts, subject.passes, setting, subject.device)
    sizes = [sum(point.parts.get(part, 0.0) for part in PASSING) for point in points if "scoring" in point.name]
    assert max(sizes) == pytest.approx(measured(score), rel=0.01)


@pytest.mark.long
def test_a_prompt_twice_as_long_takes_more(
    subjects: Callable[[str], MeasuredModel], tiny_model: Callable[[str], Path]
) -> None:
    short = subjects("llama")
    asked = PlanConfig(model=str(tiny_model("llama")), device="cpu", lora_rank=4)
    long = measure_model(replace(asked, max_prompt_tokens=2 * PROMPT, max_response_tokens=RESPONSE))
    grown = (2 * PROMPT + RESPONSE) / (PROMPT + RESPONSE)
    assert planned(long, "scoring") > planned(short, "scoring")
    assert long.passes.decoding["cache"].bytes_at(4, 2) == pytest.approx(
        short.passes.decoding["cache"].bytes_at(4, 2) * grown, rel=0.01
    )


@pytest.mark.long
def test_drawing_from_a_large_vocabulary_takes_what_was_planned(
    tiny_model: Callable[[str], Path], tmp_path: Path, measured: Measured
) -> None:
    """Where little but the distribution of the next token is in memory."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = make_config("llama", {**sizes, "vocab_size": 20_000, "tie_word_embeddings": True, "eos_token_id": 0})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(tmp_path)
    model = SharedModel(load_base(BaseSpec(str(tmp_path)), "cpu"))
    asked = PlanConfig(model=str(tmp_path), device="cpu", max_prompt_tokens=4, max_response_tokens=4)

    def sample() -> None:
        with model.role("base"):
            prompts, seeds = [[7] * 4] * ROWS, [[row] for row in range(ROWS)]
            settings: dict[str, Any] = {"max_new_tokens": 4, "temperature": 1.0, "stop_ids": [], "batch_size": ROWS}
            generate_seeded(model, prompts, seeds, **settings)

    real, subject = measured(sample), measure_model(asked)
    assert 0.95 * real <= most(subject, ("prefill", "decoding", "drawing a token")) <= 1.1 * real


def test_the_meter_sees_what_a_quantized_layer_needs_for_itself(measured: Measured) -> None:
    layer = Linear4bit(512, 1024, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    layer.support_avx512bf16_for_cpu = False
    states = torch.randn(3, 512)
    meter = Meter()
    with torch.no_grad():
        real = measured(lambda: layer(states))
        with meter, meter.record_phase("layer"):
            layer(states)
    assert real > 4 * 512 * 1024
    # on a GPU the scales, a float32 for 64 weights, are there twice while the weight is made; here once
    assert meter.peaks["layer"] - 4 * 512 * 1024 // 64 == pytest.approx(real, rel=1e-3)


def test_the_meter_forgets_what_is_gone_and_counts_no_view_twice() -> None:
    outside = torch.zeros(1000)
    meter = Meter()
    with meter:
        with meter.record_phase("one"):
            made = outside + 1
            view = made.view(10, 100)[3:]
            outside.add_(1)
        del made, view
        with meter.record_phase("two"):
            again = outside[:100] * 2
    assert meter.peaks["one"] == 4000
    assert meter.peaks["two"] == meter.live_bytes == 400
    del again
    assert meter.live_bytes == 0
