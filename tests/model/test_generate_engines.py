"""Which engine generates: decided by the config where it can be, by what is computed, and by the clock."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from lora_rlhf.model import engines
from lora_rlhf.model.decode_step import Step
from lora_rlhf.model.engines import (
    EngineChoice,
    find_static_fault,
    measure_tokens_per_second,
    pick_engine,
    require_static_engine,
)
from lora_rlhf.model.generate import Engine
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

Make = Callable[..., SharedModel]
PROMPTS = [[7, 8, 9], [10, 11], [12]]


def pick(model: SharedModel, choice: EngineChoice = "auto", context: int = 32) -> Engine:
    with model.role("policy"):
        return pick_engine(
            choice, model, PROMPTS, context=context, max_new_tokens=8, temperature=1.0, batch_size=len(PROMPTS)
        )


def clock(monkeypatch: pytest.MonkeyPatch, **speeds: float) -> list[str]:
    """Replaces the measurement; returns what it was asked for."""
    timed: list[str] = []

    def speed(_model: SharedModel, engine: Engine, *_: Any) -> float:
        timed.append(engine)
        return speeds[engine]

    monkeypatch.setattr(engines, "measure_tokens_per_second", speed)
    return timed


CASES = [
    ("llama", {}, None),
    ("qwen3", {}, None),
    ("opt", {}, None),
    ("gpt2", {}, None),
    ("mistral", {"sliding_window": 4096}, None),
    ("mistral", {"sliding_window": 511}, "see 511 tokens back, fewer than the 512"),
    ("mistral", {"sliding_window": 512}, None),
    ("gemma3_text", {"sliding_window": 128}, "see 128 tokens back"),
    ("gpt_oss", {}, "see 128 tokens back"),
    ("qwen3_next", {}, "not all of its layers are attention"),
    ("jamba", {}, "not all of its layers are attention"),
    ("falcon", {"alibi": True}, "ALiBi"),
]


@pytest.mark.parametrize(("name", "settings", "fault"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_the_config_says_who_cannot(name: str, settings: dict[str, object], fault: str | None) -> None:
    message = find_static_fault(CONFIG_MAPPING[name](**settings), 512)
    assert (message is None) if fault is None else (message is not None and fault in message)


def test_static_is_refused_before_any_weights_are_there(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    config = json.loads((tiny_model("mistral") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    require_static_engine(str(tmp_path), False, 16)
    with pytest.raises(UserError, match=r"engine is 'static', but .* see 16 tokens back, fewer than the 17 of prompt"):
        require_static_engine(str(tmp_path), False, 17)


@pytest.mark.parametrize(("plain", "static", "expected"), [(90.0, 100.0, "static"), (100.0, 90.0, "plain")])
def test_auto_takes_the_faster_and_says_so(
    shared_model: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    plain: float,
    static: float,
    expected: str,
) -> None:
    model = shared_model()
    caplog.set_level(logging.DEBUG, "lora_rlhf")
    timed = clock(monkeypatch, plain=plain, static=static)
    assert pick(model) == "static" and timed == []  # a CPU's clock decides nothing
    caplog.clear()
    monkeypatch.setattr(engines, "_find_disagreement", lambda _model: None)
    monkeypatch.setattr(SharedModel, "device", property(lambda _model: torch.device("cuda")))
    assert pick(model) == expected
    assert timed == ["plain", "static"]
    assert [record.getMessage() for record in caplog.records if "engine" in record.getMessage()] == [
        f"engine: {expected}, of plain {plain:.0f} and static {static:.0f} tokens/s in a first try"
    ]


def test_what_is_asked_for_is_not_measured(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = clock(monkeypatch)
    model = shared_model()
    assert (pick(model, "plain"), pick(model, "static")) == ("plain", "static")
    assert timed == []


def test_a_window_too_short_is_plain_without_measuring(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "lora_rlhf")
    clock(monkeypatch, plain=1.0, static=2.0)
    model = shared_model("mistral")
    assert pick(model, context=16) == "static"
    caplog.clear()
    assert pick(model, context=17) == "plain"
    assert "plain, since its layers see 16 tokens back" in caplog.text
    with pytest.raises(UserError, match="see 16 tokens back"):
        pick(model, "static", context=17)


def test_a_model_that_computes_something_else_is_found_out(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its config looks well, but it does not heed the mask."""
    caplog.set_level(logging.DEBUG, "lora_rlhf")
    clock(monkeypatch, plain=1.0, static=2.0)
    monkeypatch.setattr(
        Step,
        "_attention_mask",
        lambda _step, position, columns: torch.ones(len(position), 1, 1, columns, dtype=torch.bool),
    )
    model = shared_model()
    assert pick(model) == "plain"
    assert "something else from a static cache: a log-probability is off by " in caplog.text
    with pytest.raises(UserError, match="something else from a static cache"):
        pick(model, "static")


@pytest.mark.parametrize("engine", ["plain", "static"])
def test_speed_is_that_of_the_steps_in_the_middle(
    shared_model: Make, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    """A clock on which reading the prompts takes 100 seconds and each step of 6 responses 2: 3 tokens/s."""
    model, now = shared_model(), [0.0]

    def forward(_module: object, _args: object, given: dict[str, Any]) -> None:
        now[0] += 100.0 if given["input_ids"].shape[1] > 1 else 2.0

    model.backbone.register_forward_pre_hook(forward, with_kwargs=True)
    monkeypatch.setattr(engines.time, "monotonic", lambda: now[0])
    with model.role("policy"):
        assert measure_tokens_per_second(model, engine, PROMPTS, 8, 1.0, 6) == pytest.approx(3.0)
