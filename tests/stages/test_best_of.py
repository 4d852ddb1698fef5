"""The best of n responses as demonstrations: which are kept, what is said of it, and that an attempt goes on."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.algo.kl import best_of_n_kl
from lora_rlhf.cli.main import main
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.sources import Source
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.best_of import BestOf
from lora_rlhf.stages.sample import sample
from lora_rlhf.system.errors import UserError
from tests.support.stages import DEMONSTRATIONS, LIMITS, Models, open_model, write_rows

FLAGS = "--max_prompt_tokens 48 --max_response_tokens 24 --device cpu --engine plain"  # with 24 some end
ROWS = [{**row, "limit": 5, "pattern": "[aeiou]"} for row in DEMONSTRATIONS[:6]]


def chosen(tmp_path: Path, candidates: Sequence[tuple[list[str], Any]], **changes: Any) -> tuple[list[str], Any]:
    """(the responses that are kept, the report) of given candidates."""
    prompts = [Prompt.of(f"Question {number}?") for number in range(len(candidates))]
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt.messages[0].content} for prompt in prompts])
    values: dict[str, Any] = {"run": "r", "prompts": path, "to": str(tmp_path / "best.jsonl"), "best_of": 4, **LIMITS}
    config = SampleConfig(**(values | changes))
    assert config.faults() == []
    rows = BestOf(config, Source(path, "prompts")).finish(
        config,
        [EncodedPrompt([1], prompt) for prompt in prompts],
        [{"responses": responses, "scores": scores} for responses, scores in candidates],
    )
    return [row["completion"] for row in rows], json.loads((tmp_path / "best.report.json").read_text())


def test_the_best_is_kept_and_the_means_are_of_all_and_of_the_kept(tmp_path: Path) -> None:
    candidates = [(["a", "b", "c", "d"], [0.0, 3.0, 1.0, 2.0]), (["e", "f", "g", "h"], [-1.0, -5.0, None, -3.0])]
    kept, report = chosen(tmp_path, candidates)
    assert kept == ["b", "e"]
    assert report["mean_score"] == {"before": pytest.approx(-3 / 7), "after": 1.0}
    assert (report["responses"], report["responses_without_score"], report["kept"]) == (8, 1, 2)
    assert report["acceptance"] == 0.25 and report["prompts_with_a_tie"] == 0
    assert report["kl_bound_nats"] == pytest.approx(math.log(4) - 3 / 4)


def test_of_equal_scores_the_earlier_is_kept_and_a_tie_is_counted(tmp_path: Path) -> None:
    candidates = [(["a", "b", "c", "d"], [1.0, 2.0, 2.0, 0.0]), (["e", "f", "f", "e"], [1.0, 2.0, 2.0, 1.0])]
    kept, report = chosen(tmp_path, candidates)
    assert kept == ["b", "f"]
    assert report["prompts_with_a_tie"] == 1, "the same text twice is no tie"


def test_several_best_and_a_least_score_are_rejection_sampling(tmp_path: Path) -> None:
    candidates = [(["a", "b", "a", "d"], [1.0, 2.0, 1.0, 0.0]), (["e", "f", "g", "h"], [0.0, 0.0, 0.5, None])]
    kept, report = chosen(tmp_path, candidates, keep=3, min_score=1.0)
    assert kept == ["b", "a"]
    assert (report["prompts_left_out"], report["acceptance"]) == (1, 0.25)
    assert chosen(tmp_path, candidates, keep=4)[0] == ["b", "a", "d", "g", "e", "f"]


def test_a_prompt_without_any_score_is_left_out_and_none_at_all_is_refused(tmp_path: Path) -> None:
    nothing = (["a", "b", "c", "d"], [None] * 4)
    kept, report = chosen(tmp_path, [nothing, (["e", "f", "g", "h"], [0.0, 1.0, None, None])])
    assert (kept, report["prompts_left_out"]) == (["f"], 1)
    with pytest.raises(UserError, match="none of 2 prompts gave a finished response with a score"):
        chosen(tmp_path, [nothing, nothing])
    with pytest.raises(UserError, match="with a score of 7 or more"):
        chosen(tmp_path, [(["e", "f", "g", "h"], [0.0, 1.0, 2.0, 3.0])], min_score=7.0)


def test_the_kl_of_best_of_n() -> None:
    assert best_of_n_kl(1) == 0.0
    # of two samples: the better one's density is 2 F f, so its KL is the integral of 2 u log(2 u) over (0, 1)
    steps = 100_000
    integral = sum(2 * u * math.log(2 * u) for u in ((i + 0.5) / steps for i in range(steps))) / steps
    assert best_of_n_kl(2) == pytest.approx(integral, abs=1e-6)


def test_by_function_writes_a_file_that_sft_reads_as_it_is(parents: Path, tmp_path: Path) -> None:
    prompts, to = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "best.jsonl"
    flags = f"--best-of 16 --by function --reward-functions length_window(most='@limit') regex=3 {FLAGS}"
    assert main(f"sample --run {parents} --prompts {prompts} --to {to} {flags}".split()) == 0
    demonstrations = list(Source(str(to), "demonstrations", strict=True))
    report = json.loads((tmp_path / "best.report.json").read_text())
    assert len(demonstrations) + report["prompts_left_out"] == 6 and len(demonstrations) > 2
    assert report["responses_without_score"] > 0, "some did not end"
    assert {row.prompt.meta["limit"] for row in demonstrations} == {5}
    scores = [
        (len(row.response.split()) <= 5) + 3 * any(map(row.response.__contains__, "aeiou")) for row in demonstrations
    ]
    assert report["mean_score"]["after"] == pytest.approx(sum(scores) / len(scores))
    assert report["mean_score"]["after"] > report["mean_score"]["before"]


def test_the_best_of_one_is_plain_sampling(parents: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts, to = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "one.jsonl"
    flags = f"--best-of 1 --by function --reward-functions length_window(most='@limit') {FLAGS}"
    assert main(f"sample --run {parents} --prompts {prompts} --to {to} {flags}".split()) == 0
    report = json.loads((tmp_path / "one.report.json").read_text())
    assert report["kl_bound_nats"] == 0.0 and report["mean_score"]["before"] == report["mean_score"]["after"]
    assert "the best of 1 is plain sampling" in caplog.text


def test_by_reward_takes_what_the_reward_model_scores_highest_and_an_attempt_goes_on(
    parents: Path, data: Path, tiny_model: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(tiny_model("llama"))

    def config(name: str) -> SampleConfig:
        values: dict[str, Any] = {**LIMITS, "generation_batch_size": 64, "engine": "plain"}
        prompts = str(data / "prompts.jsonl")
        return SampleConfig(run=str(parents), prompts=prompts, to=str(tmp_path / name), best_of=8, **values)

    sample(config("whole.jsonl"), model)
    report = json.loads((tmp_path / "whole.report.json").read_text())
    assert report["mean_score"]["after"] > report["mean_score"]["before"]

    class Killed(Exception):
        pass

    real, steps = BestOf.candidates, list[int]()

    def die_in_the_third_step(self: BestOf, model: SharedModel, *rest: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise Killed
        return real(self, model, *rest)

    monkeypatch.setattr(BestOf, "candidates", die_in_the_third_step)
    with pytest.raises(Killed):
        sample(config("stopped.jsonl"), model)
    kept = (tmp_path / ".stopped.jsonl.partial").read_text().splitlines()
    assert 1 < len(kept) - 1 < len(DEMONSTRATIONS)
    sample(config("stopped.jsonl"), model)
    for name in ("jsonl", "report.json"):
        assert (tmp_path / f"stopped.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()
    assert len(steps) == 3 + 2, "four steps in all, of which two were kept"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--best-of 0", "best_of"),
        ("--best-of 2 --keep 3", "keep 3 is above best_of 2"),
        ("--keep 3", "keep is for best_of, which is not given"),
        ("--best-of 2 --by function", "by function needs reward_functions"),
        ("--best-of 2 --reward-functions regex", "reward_functions need by function"),
        ("--best-of 2 --by function --reward-functions regex", "needs the column 'pattern', which the prompts lack"),
        ("--best-of 2", "no reward stage there"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    parents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    prompts = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Say the boat?", "answer": "The boat."}])
    run = parents
    if message == "no reward stage there":
        run = tmp_path / "run"
        shutil.copytree(parents / "sft", run / "sft")
    assert main(f"sample --run {run} --prompts {prompts} --to {tmp_path}/x.jsonl {flags} {FLAGS}".split()) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()
