"""The chat template of a run, from its SFT stage to every later one; a model that thinks keeps thinking."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import AutoTokenizer

from lora_rlhf.chat.loaded_run import load_run
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.data.chosen_template import without_date
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import decode_response, render_prompt, stop_ids
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.model.base import load_tokenizer
from lora_rlhf.runs.folder import find_stage
from lora_rlhf.stages import session, sft
from lora_rlhf.stages.sample import sample
from lora_rlhf.stages.session import open_parent_base
from lora_rlhf.system.errors import UserError
from tests.support.models import save_tiny_model
from tests.support.stages import LIMITS, manifest
from tests.support.thinking import QWEN, TAGS, give_thoughts

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def thinking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with thoughts and two templates, of which the default also writes the date."""
    folder = tmp_path_factory.mktemp("thinking")
    save_tiny_model("qwen3", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    give_thoughts(tokenizer, "<|user|>", "<|end|>")
    dated = "{{ strftime_now('%Y-%m-%d') }}\n" + tokenizer.chat_template
    tokenizer.chat_template = {"default": dated, "tool_use": tokenizer.chat_template}
    tokenizer.save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>", "<think>"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ends[:2], ends[0], 3 * 10**6, None]}))
    return folder


@pytest.fixture
def settings(thinking_model: Path, data: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        **{"run": str(tmp_path / "run"), "model": str(thinking_model), "lora_rank": 4, "epochs": 1, "batch_size": 8},
        **{"demonstrations": str(data / "demonstrations.jsonl"), "validation_fraction": 0.0, "save_every": 1},
        **LIMITS,
        "max_prompt_tokens": 64,
    }


class Day(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "Day":
        return cls(2026, 7, 1)


class NextDay(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "NextDay":
        return cls(2026, 7, 2)


@pytest.mark.parametrize("asked", [False, True])
def test_plain_answers_do_not_teach_a_thinking_model_to_skip_its_thoughts(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    inputs: list[list[int]] = []
    learned: list[list[int]] = []
    compute = sft.counted_logprobs

    def record(model: Any, labels: Tensor, counted: Tensor, **batch: Tensor) -> Tensor:
        learned.extend(labels[row][counted[row]].tolist() for row in range(len(labels)))
        inputs.extend(batch["input_ids"].tolist())
        return compute(model, labels, counted, **batch)

    monkeypatch.setattr(sft, "counted_logprobs", record)
    model = sft.train(SFTConfig(**settings, train_empty_thoughts=asked))
    tags = set(model.tokenizer.convert_tokens_to_ids(list(TAGS)))
    assert {bool(tags & set(ids)) for ids in learned} == {asked}
    assert all(EMPTY_THOUGHT in model.tokenizer.decode(ids) for ids in inputs)  # it is read
    for value, closed in (("true", False), ("false", True)):
        tokenizer = load_tokenizer(settings["model"])
        session.choose_template(tokenizer, template_args=[f"enable_thinking={value}"])
        prompt = tokenizer.decode(render_prompt(tokenizer, Prompt.of("Say the boat?")))
        assert prompt.endswith(EMPTY_THOUGHT) is closed


def test_every_later_stage_has_the_template_and_the_day_of_the_first(
    settings: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SFTConfig(**settings, template_args=("enable_thinking=false",))
    with monkeypatch.context() as patch:
        patch.setattr(session, "datetime", Day)
        begin = sft._Training._end_epoch
        patch.setattr(sft._Training, "_end_epoch", lambda *_: (_ for _ in ()).throw(RuntimeError("a crash")))
        with pytest.raises(RuntimeError, match="a crash"):
            sft.train(config)
        patch.setattr(sft._Training, "_end_epoch", begin)
        patch.setattr(session, "datetime", NextDay)  # the run goes on
        sft.train(config)
    record = manifest(settings["run"], "sft")
    template = record["base"]["chat_template"]
    assert len(record["resumed"]) == 1
    assert "2026-07-01" in template and "2026-07-02" not in template
    stops = [load_tokenizer(settings["model"]).convert_tokens_to_ids(token) for token in ("<|end|>", "<|user|>")]

    expected = "2026-07-01\n<|user|>user\nSay the boat?<|end|>\n<|user|>assistant\n" + EMPTY_THOUGHT
    monkeypatch.setattr(session, "datetime", NextDay)
    model = open_parent_base(
        SampleConfig(run=settings["run"], prompts="-", to="-"), find_stage(f"{settings['run']}/sft", "sft"), None
    )
    assert model.tokenizer.decode(render_prompt(model.tokenizer, Prompt.of("Say the boat?"))) == expected
    assert set(stop_ids(model.tokenizer)) == set(stops) and stop_ids(model.tokenizer)[0] == stops[0]
    run = load_run(settings["run"])
    words = run.model.tokenizer.encode("the boat", add_special_tokens=False)
    assert decode_response(run.model.tokenizer, [*words, stops[1], *words]) == "the boat"
    assert run.model.tokenizer.decode(run.encode(Prompt.of("Say the boat?"), 8)[0]) == expected
    # one that is in memory with another template takes the run's
    model.tokenizer.chat_template = QWEN
    sample(
        SampleConfig(
            run=settings["run"], prompts=str(data / "prompts.jsonl"), to=str(tmp_path / "responses.jsonl"),
            min_responses=2, max_responses=2, max_prompt_tokens=64, max_response_tokens=8,
        ),
        model,
    )  # fmt: skip
    assert model.tokenizer.chat_template == template
    row = json.loads((tmp_path / "responses.jsonl").read_text().splitlines()[0])
    assert not any("think" in response for response in row["responses"])

    # an export writes the day on which it is used, and ends where the base does
    export(ExportConfig(folder=settings["run"], role="sft", to=str(tmp_path / "export"), parity="none"))
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert exported.chat_template == without_date(template)
    generation = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == stops
    asked = [{"role": "user", "content": "Say the boat?"}]
    text = exported.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == expected.replace("2026-07-01", datetime.now().strftime("%Y-%m-%d"))


def test_arguments_of_another_form(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="template_args has 'enable_thinking', expected NAME=VALUE"):
        sft.train(SFTConfig(**settings, template_args=("enable_thinking",)))
