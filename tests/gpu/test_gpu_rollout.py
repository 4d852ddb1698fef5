"""The static engine on a GPU: steps replayed as CUDA graphs draw what the forward pass says, and faster."""

from typing import Any

import pytest
import torch

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.decode_step import GraphCapture, Replay
from lora_rlhf.model.engines import measure_tokens_per_second, pick_engine
from lora_rlhf.model.generate import Response, generate, generate_mixed, generate_seeded
from lora_rlhf.model.shared import SharedModel

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

NEW = 40
# In float32 only the order of summation differs; in 16 bits a pass over a prompt and a step run different kernels.
NATS = {("none", "float32"): 1e-3, ("nf4", "bfloat16"): 0.5}


def make(quantization: str, dtype: str) -> SharedModel:
    model = SharedModel(load_base(BaseSpec("tinyworld", quantization, dtype), "cuda"))
    for seed, role in enumerate(("sft", "policy")):
        model.add_role(role, LoraSettings(rank=8, alpha=16))
        change(model, role, seed)
    return model


def change(model: SharedModel, role: str, seed: int) -> None:
    """Other weights in the same place, as an optimizer's step leaves them."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters_of(role):
        if ".lora_B." in name:
            parameter.data.normal_(std=0.05)


def prompts_of(model: SharedModel, count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (count,), generator=generator).tolist()
    return [torch.randint(5, model.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]


def greedy(model: SharedModel, prompts: list[list[int]], **changes: Any) -> list[Response]:
    settings: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 0.0, "stop_ids": list(range(100))} | changes
    groups = generate(
        model, prompts, generator=torch.Generator().manual_seed(0), batch_size=16, engine="static", **settings
    )
    return [group[0] for group in groups]


def gap(model: SharedModel, prompt: list[int], answer: list[int]) -> float:
    """How far a token is, at most, from the most probable one in a forward pass over the whole text, in nats."""
    ids = torch.tensor([prompt + answer], device="cuda")
    with torch.no_grad():
        logits = model.causal(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(answer, device="cuda")[:, None])
    return float((logits.amax(dim=1, keepdim=True) - chosen).max())


@pytest.mark.parametrize(
    ("quantization", "dtype"), [("none", "float32"), pytest.param("nf4", "bfloat16", marks=pytest.mark.long)]
)
def test_replayed_steps_draw_what_the_forward_pass_says(
    quantization: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In slots that are refilled, in every role, and after an adapter's weights have changed in place."""
    captures, replays = 0, 0
    capture = GraphCapture.__call__

    def watched(self: GraphCapture, run: Replay) -> Replay:
        nonlocal captures, replays
        captures += 1
        replay = capture(self, run)
        replays += 1
        return replay

    monkeypatch.setattr(GraphCapture, "__call__", watched)
    model = make(quantization, dtype)
    prompts = prompts_of(model, 40)
    seen = []
    for role, seed in (("policy", 1), ("sft", 1), ("policy", 2)):
        change(model, "policy", seed)
        with model.role(role):
            answers = greedy(model, prompts)
            gaps = [gap(model, prompt, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]
        assert max(gaps) < NATS[quantization, dtype]
        seen.append([answer.ids for answer in answers])
    assert seen[0] != seen[1] != seen[2] != seen[0]
    assert 0 < captures == replays, "no step ran eagerly for want of a graph"


def test_sampling_from_replayed_steps_equals_the_plain_engine_s() -> None:
    """In float32, but for the rare response whose random number lies on the border of two tokens."""
    model = make("none", "float32")
    prompts = prompts_of(model, 40)
    with model.role("policy"):
        one, other = (
            generate(
                model,
                prompts,
                max_new_tokens=NEW,
                temperature=1.0,
                stop_ids=list(range(100)),
                generator=torch.Generator().manual_seed(0),
                num_samples=4,
                batch_size=16,
                engine=engine,
            )
            for engine in ("plain", "static")
        )
    same = sum(a == b for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
    assert same >= 155  # of 160


@pytest.mark.long
def test_mixed_roles_from_replayed_steps_say_what_each_says_alone() -> None:
    """In float32, as above: slots are refilled by other roles while the graphs stay."""
    model = make("none", "float32")
    prompts = prompts_of(model, 48)
    roles = [("base", "sft", "policy")[place % 3] for place in range(len(prompts))]
    seeds = [[place, place + 100] for place in range(len(prompts))]
    settings: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 1.0, "stop_ids": list(range(100))}
    mixed = generate_mixed(model, roles, prompts, seeds, batch_size=16, engine="static", **settings)
    alone = {}
    for role in set(roles):
        with model.role(role):
            alone[role] = generate_seeded(model, prompts, seeds, batch_size=16, **settings)
    same = [alone[role][place] == mixed[place] for place, role in enumerate(roles)]
    assert sum(same) >= 46  # of 48
    assert alone["sft"] != alone["policy"] != alone["base"]


@pytest.mark.long
def test_memory_is_given_back_and_the_replayed_step_is_faster() -> None:
    model = make("nf4", "bfloat16")
    prompts = prompts_of(model, 16)
    with model.role("policy"):
        greedy(model, prompts)
        before = torch.cuda.memory_allocated()
        greedy(model, prompts)
        assert torch.cuda.memory_allocated() <= before + 2**20
        settings: dict[str, Any] = {"context": 128, "max_new_tokens": NEW, "temperature": 1.0, "batch_size": 16}
        assert pick_engine("static", model, prompts, **settings) == "static"
        plain, static = (
            measure_tokens_per_second(model, engine, prompts, NEW, 1.0, 16) for engine in ("plain", "static")
        )
    assert static > 1.5 * plain
