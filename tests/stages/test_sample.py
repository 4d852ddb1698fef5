"""Sampled responses, ready to be ranked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.data.encode import Limits, encode_ranking
from lora_rlhf.data.records import read_ranking_row
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import render_response, stop_ids
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.drawing import Response
from lora_rlhf.stages import sample as module
from lora_rlhf.stages.sample import sample
from lora_rlhf.system.errors import UserError
from tests.support.stages import DEMONSTRATIONS, LIMITS, Models, open_model, same, write_rows

Config = Callable[..., SampleConfig]


@pytest.fixture
def config(parents: Path, data: Path, tmp_path: Path) -> Config:
    def make(**changes: Any) -> SampleConfig:
        usual = {
            "run": str(parents),
            "prompts": str(data / "prompts.jsonl"),
            "to": str(tmp_path / "new" / "candidates.jsonl"),
            "min_responses": 3,
            "max_responses": 5,
            **LIMITS,
            "max_response_tokens": 6,
        }
        return SampleConfig(**(usual | changes))

    return make


def rows(settings: SampleConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(settings.to).read_text().splitlines()]


def test_every_prompt_gets_distinct_responses(config: Config, tiny_model: Models, parents: Path) -> None:
    settings, model = config(), open_model(tiny_model("llama"))
    digest = model.base_digest()
    sample(settings, model)
    found = rows(settings)
    assert [row["prompt"] for row in found] == [row["prompt"] for row in DEMONSTRATIONS]
    for row in found:
        assert len(set(row["responses"])) == len(row["responses"])
        assert all(response == response.strip() for response in row["responses"])
        assert len(row["ended"]) == len(row["responses"])
    assert {len(row["responses"]) for row in found} == {3, 4, 5}
    assert {one for row in found for one in row["ended"]} == {True, False}
    assert model.base_digest() == digest
    assert same(model.adapter_state("sft"), read_adapter(parents / "sft" / "adapter")[1])


def test_what_is_written_fits_the_limit_when_it_is_read_again_and_only_what_ended_has_an_end(
    config: Config, tiny_model: Models
) -> None:
    settings, model = config(max_response_tokens=9), open_model(tiny_model("llama"))
    sample(settings, model)
    limits, refused, ends = Limits(settings.max_prompt_tokens, 9), RefusedRows(), stop_ids(model.tokenizer)
    for row in rows(settings):
        ranking = read_ranking_row({**row, "ranks": [1] * len(row["responses"])})
        encoded = encode_ranking(model.tokenizer, ranking, limits, refused)
        assert encoded is not None
        assert tuple(ids[-1] in ends for ids in encoded.response_ids) == ranking.ended
    assert (refused.count, refused.cut_responses) == (0, 0)


def test_a_response_that_is_longer_when_read_again_loses_its_end(config: Config, tiny_model: Models) -> None:
    tokenizer = open_model(tiny_model("llama")).tokenizer
    (end,) = set(stop_ids(tokenizer)) & {tokenizer.eos_token_id}
    half = next(i for i in range(len(tokenizer)) if tokenizer.decode([i]) == "\ufffd")  # a part of a character
    grown = len(tokenizer("\ufffd", add_special_tokens=False)["input_ids"])
    assert grown > 1
    settings, prompt = config(max_response_tokens=8), Prompt.of("Who?")
    response = Response([half] * 7 + [end], True)
    text, has_ended = module._text_within_limit(settings, tokenizer, prompt, response)
    assert not has_ended and 0 < len(text) < 7
    assert len(render_response(tokenizer, prompt, text)) - 1 <= 8
    short = Response([half, end], True)
    assert module._text_within_limit(settings, tokenizer, prompt, short) == ("\ufffd", True)


def test_seed_and_role_decide(config: Config, tmp_path: Path) -> None:
    changed: dict[str, dict[str, Any]] = {"one": {}, "again": {}, "other": {"seed": 1}, "base": {"role": "base"}}
    runs = {name: config(to=str(tmp_path / f"{name}.jsonl"), **changes) for name, changes in changed.items()}
    for settings in runs.values():
        sample(settings)
    found = {name: rows(settings) for name, settings in runs.items()}
    assert found["one"] == found["again"]
    assert found["one"] != found["other"]
    assert found["one"] != found["base"]


def test_a_policy_that_was_not_trained_can_not_be_sampled(config: Config) -> None:
    with pytest.raises(UserError, match="no ppo stage there; run `lora-rlhf ppo"):
        sample(config(role="policy"))


def test_prompts_that_repeat_themselves_are_left_out(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    """At a temperature near 0 all responses are the same."""
    with pytest.raises(UserError, match=r"no prompt gave 3 distinct responses; lower --min-responses or raise"):
        sample(config(temperature=1e-6))


def test_a_file_that_can_not_be_written_is_told_first(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/new/a\.jsonl: its folder cannot be made"):
        sample(config(to=str(tmp_path / "file" / "new" / "a.jsonl")))


def test_mistakes_are_named_before_anything_is_loaded(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_responses 2 is below min_responses 3"):
        sample(config(max_responses=2))
    with pytest.raises(UserError, match="nowhere/sft: no sft stage there"):
        sample(config(run=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"empty\.jsonl: no rows"):
        sample(config(prompts=write_rows(tmp_path / "empty.jsonl", [])))
    with pytest.raises(UserError, match=r"max_prompt_tokens 300 .* 306 tokens, but the context .* is 256"):
        sample(config(max_prompt_tokens=300))


def test_prompts_that_come_again_are_left_out_as_asked(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = DEMONSTRATIONS[:2]
    turns = [
        {"role": "user", "content": first["prompt"]},
        {"role": "assistant", "content": first["completion"]},
        {"role": "user", "content": second["prompt"]},
    ]
    prompts = [first["prompt"], second["prompt"], first["prompt"].upper(), turns]
    path = write_rows(tmp_path / "repeated.jsonl", [{"prompt": prompt} for prompt in prompts])
    for deduplicate, count in (("none", 4), ("exact", 3), ("prefix", 2)):
        settings = config(prompts=path, deduplicate=deduplicate, overwrite=True)
        sample(settings)
        assert len(rows(settings)) == count
    assert "1 refused: the same prompt as an earlier one" in caplog.text
    assert "1 refused: continues an earlier prompt, or is continued by it" in caplog.text
