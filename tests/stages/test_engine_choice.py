"""The stages that generate for long: each keeps to the engine that it began with, and refuses one it cannot have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.model import engines
from lora_rlhf.stages import ppo, ppo_setup, sample, sampler
from lora_rlhf.stages.interrupt import Request
from lora_rlhf.system import workers
from lora_rlhf.system.errors import Stopped, UserError
from tests.support.stages import LIMITS

Run = Callable[..., None]


@pytest.fixture
def run(data: Path, parents: Path, tmp_path: Path) -> Run:
    """run(stage, **changes): the stage, in small."""

    def go(stage: str, **changes: Any) -> None:
        common = {"prompts": str(data / "prompts.jsonl"), **LIMITS, "max_response_tokens": 6, **changes}
        if stage == "sample":
            common |= {"to": str(tmp_path / "to.jsonl"), "min_responses": 2, "max_responses": 3, "overwrite": True}
            sample.sample(SampleConfig(run=str(parents), generation_batch_size=7, **common))
            return
        common |= {"run": str(tmp_path / "run"), "sft": str(parents / "sft"), "reward": str(parents / "reward")}
        ppo.train(PPOConfig(accept_chance_reward=True, iterations=2, batch_size=8, minibatch_size=8, **common))

    return go


def spy_on(monkeypatch: pytest.MonkeyPatch, stage: str, picked: str) -> tuple[list[str], list[str], list[Any]]:
    """What is asked of the choice, which is `picked` where it is free, and the engines and sizes that then generate."""
    asked: list[str] = []
    used: list[str] = []
    counts: list[Any] = []

    def pick(rollout: str, *_: Any, **__: Any) -> str:
        asked.append(rollout)
        return picked if rollout == "auto" else rollout

    monkeypatch.setattr(sampler, "pick_engine", pick)
    generate = engines.generate_seeded

    def watched(*args: Any, **kwargs: Any) -> Any:
        used.append(kwargs["engine"])
        counts.append(len(args[1]))
        return generate(*args, **kwargs)

    monkeypatch.setattr(sampler, "generate_seeded", watched)
    return asked, used, counts


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "sample"])
@pytest.mark.parametrize(("first", "other"), [("static", "plain"), ("plain", "static")])
def test_a_run_goes_on_with_the_engine_that_it_began_with(
    run: Run, monkeypatch: pytest.MonkeyPatch, stage: str, first: str, other: str
) -> None:
    with monkeypatch.context() as patch:
        asked, used, _ = spy_on(patch, stage, first)
        patch.setattr(Request, "is_made", True)
        with pytest.raises(Stopped):
            run(stage)
    assert asked == ["auto"] and set(used) == {first}
    asked, used, _ = spy_on(monkeypatch, stage, other)
    run(stage)
    assert asked == [first] and set(used) == {first}


@pytest.mark.parametrize("stage", ["ppo", "sample"])
def test_who_asks_for_an_engine_gets_it_on_the_way_too(run: Run, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    with monkeypatch.context() as patch:
        spy_on(patch, stage, "static")
        patch.setattr(Request, "is_made", True)
        with pytest.raises(Stopped):
            run(stage)
    asked, used, _ = spy_on(monkeypatch, stage, "static")
    run(stage, engine="plain")
    assert asked == ["plain"] and set(used) == {"plain"}


@pytest.mark.slow
def test_slots_that_are_refilled_get_several_batches_of_prompts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 responses at a time, and 7 of each prompt: a prompt in a batch, or four for the slots."""
    for picked, prompts in (("plain", 1), ("static", 4)):
        with monkeypatch.context() as patch:
            _, _, counts = spy_on(patch, "sample", picked)
            run("sample")
        assert counts[0] == prompts


@pytest.mark.parametrize("stage", ["ppo", "sample"])
def test_static_is_refused_before_the_weights_are_loaded(run: Run, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("loaded")

    contexts: list[int] = []
    monkeypatch.setattr(engines, "find_static_fault", lambda _config, context: contexts.append(context) or "it is odd")
    monkeypatch.setattr({"ppo": ppo_setup, "sample": sample}[stage], "open_parent_base", load)
    with pytest.raises(UserError, match=r"engine is 'static', but base model .* cannot: it is odd; use --engine"):
        run(stage, engine="static")
    assert contexts == [LIMITS["max_prompt_tokens"] + 6]


def test_all_processes_take_what_the_main_one_picked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, used, _ = spy_on(monkeypatch, "ppo", "plain")
    from_main = workers.from_main

    def told(work: Callable[[], Any]) -> Any:
        found = from_main(work)
        return "static" if found == "plain" else found

    monkeypatch.setattr(workers, "from_main", told)
    run("ppo")
    assert asked == ["auto"] and set(used) == {"static"}
