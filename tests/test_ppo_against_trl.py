"""benchmarks/ppo_against_trl.py: our half runs at a tiny size, models never stop, medians and ratios are right."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import half
import ppo_ours
import pytest
import torch
from ppo_against_trl import WORKLOADS, compare, prepare
from shapes import make_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import render_prompt, stop_ids
from lora_rlhf.system.errors import Stopped

pytestmark = pytest.mark.slow

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
WORKLOAD = replace(WORKLOADS["llama-4x256"], batch_size=4, micro_batch_size=2, prompt_tokens=20, response_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both halves start from."""
    folder = tmp_path_factory.mktemp("against")
    shape = LlamaConfig(**TINY, num_key_value_heads=2, vocab_size=1024, max_position_embeddings=128)
    prepare(folder, shape, WORKLOAD)
    return folder


def test_our_half_measures_every_iteration_and_generates_the_tokens_it_was_asked_for(folder: Path) -> None:
    settings = Namespace(
        folder=str(folder), iterations=3, batch_size=4, micro_batch_size=2, prompt_tokens=20, response_tokens=6,
        threads=1, gradient_checkpointing=False, rollout_batch_size=4,
    )  # fmt: skip
    measured = ppo_ours.measure(settings)
    assert measured["tokens_per_iteration"] == 24
    assert len(measured["seconds"]) == len(measured["parts"]) == len(measured["processor_seconds"]) == 3
    for seconds, parts in zip(measured["seconds"], measured["parts"], strict=True):
        assert all(part > 0 for part in parts.values())
        assert sum(parts[name] for name in ppo_ours.PARTS) <= seconds
        assert all(f"processor_{name}" in parts for name in ppo_ours.PARTS)
    assert measured["peak_resident_mib"] >= measured["resident_before_mib"] > 0


def test_a_half_that_generated_other_tokens_than_asked_for_has_no_result() -> None:
    clock = half.Clock()
    clock.start()
    clock.rollout(0.1, 23)
    clock.tick()
    with pytest.raises(SystemExit, match="24 tokens"):
        half.finish(clock, 0.0, Namespace(batch_size=4, response_tokens=6, iterations=1))


def test_the_models_cannot_end_a_response(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    stops = stop_ids(tokenizer)
    with torch.no_grad():
        logits = model(torch.randint(2, 800, (8, 40), generator=torch.Generator().manual_seed(0))).logits
    shares = logits.softmax(dim=-1)[..., stops]
    assert float(shares.max()) < 1e-6  # 1 of 1024 if they were as likely as others


@pytest.mark.parametrize("tokens", [20, 64])
def test_prompts_differ_and_have_the_length_asked_for(folder: Path, tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompts = make_prompts(tokenizer, tokens, 30)
    assert len(set(prompts)) == 30
    assert {len(render_prompt(tokenizer, Prompt((Message("user", one),)))) for one in prompts} == {tokens}


def test_the_comparison_leaves_out_first_and_last_iterations_and_takes_medians() -> None:
    def run(seconds: list[float], peak: float) -> dict[str, Any]:
        parts = [{"rollout_s": one / 2, "score_s": one / 4, "update_s": one / 4} for one in seconds]
        same = {"processor_seconds": seconds, "tokens_per_iteration": 24, "rollout_batch_size": 4}
        same |= {"peak_gpu_allocated_mib": peak}
        return {"seconds": seconds, "parts": parts, "peak_resident_mib": peak, **same}

    trl = [run([90, 6, 8, 7, 80], 400), run([90, 9, 10, 11, 80], 500)]
    ours = [run([90, 2, 4, 3, 80], 200), run([90, 5, 5, 20, 80], 250)]
    found = compare({"trl": trl, "ours": ours}, WORKLOAD)
    assert (found["trl"]["seconds"], found["ours"]["seconds"]) == (8.5, 4.5)
    assert found["trl"]["seconds_range"] == [6, 11]
    faster = found["times_as_fast_by_seconds"]
    assert faster["of_medians"] == pytest.approx(8.5 / 4.5, abs=1e-3)
    assert faster["of_each_pair"] == pytest.approx([7 / 3, 10 / 5], abs=1e-3)
    assert found["share_of_peak_memory"]["share"] == 0.5
    assert found["reached"] == {"faster": True, "memory": True}
    assert compare({"trl": ours, "ours": trl}, WORKLOAD)["reached"] == {"faster": False, "memory": False}
    lost: list[dict[str, Any]] = [{"does_not_fit": "CUDA out of memory"}, {"failed": "gone"}]
    assert compare({"trl": lost, "ours": ours}, WORKLOAD) == {"ours": found["ours"]}
    assert compare({"trl": [*lost, *trl], "ours": ours}, WORKLOAD) == found


def test_memory_that_does_not_suffice_is_a_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "half --folder f --iterations 3 --batch-size 4 --micro-batch-size 2 --prompt-tokens 20 --response-tokens 6"
    monkeypatch.setattr("sys.argv", [*words.split(), "--threads", "1", "--rollout-batch-size", "4"])

    def fails(error: Exception) -> Any:
        def measure(_args: Namespace) -> dict[str, Any]:
            raise error

        return measure

    half.run(fails(torch.OutOfMemoryError("CUDA out of memory.\nmore")), "a half")
    assert json.loads(capsys.readouterr().out) == {"does_not_fit": "CUDA out of memory.", "rollout_batch_size": 4}
    with pytest.raises(Stopped):
        half.run(fails(Stopped("the KL is too large")), "a half")
