"""Rounds: on the tiny world, killed between all steps, ranked by a judge and by people; and what they refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_rlhf.cli import rounds
from lora_rlhf.cli.main import main
from lora_rlhf.cli.recipe_run import run_recipe
from lora_rlhf.cli.rounds import run_round
from lora_rlhf.configs.rounds import RoundConfig
from lora_rlhf.data.sources import read_prompts, read_rankings
from lora_rlhf.runs.folder import find_stage
from lora_rlhf.runs.rounds import read_rounds
from lora_rlhf.system.errors import Stopped, UserError
from tests.cli.test_recipe import small_recipe
from tests.stages.test_label import by_length
from tests.support.fake_api import serve
from tests.support.stages import write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny world with a policy; do not write to it."""
    run = tmp_path_factory.mktemp("runs") / "first"
    recipe = small_recipe(run)
    run_recipe({name: values for name, values in recipe.items() if name not in ("evaluate", "export")})
    return run


@pytest.fixture
def configure(first: Path, tmp_path: Path) -> Callable[..., RoundConfig]:
    run = tmp_path / "first"
    shutil.copytree(first, run)
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps({"evaluate": {"probes": "none", "choices": "none", "text": "none"}}))

    def make(**changes: Any) -> RoundConfig:
        prompts = {"prompts": f"{run}/data/ppo_prompts.jsonl", "held_out": f"{run}/data/evaluation_prompts.jsonl"}
        sizes = {"labels": 8, "random_share": 0.25, "max_responses": 3, "device": "cpu"}
        return RoundConfig(**{"folder": str(run), "settings": str(settings), **prompts, **sizes, **changes})

    return make


Configure = Callable[..., RoundConfig]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Killed(BaseException):
    """The end of a process."""


def test_a_round_that_dies_at_every_step_ends_well(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a judge; benchmarks/rounds.py compares a round that was killed with one that was not."""
    run, folder, died = tmp_path / "first", tmp_path / "first-round-2", set[str]()

    def killing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """The function, before and after whose first call the process dies."""

        def call(*values: Any, **named: Any) -> Any:
            if name not in died:
                died.add(name)
                raise Killed
            result = real(*values, **named)
            if name + "!" not in died and name != "run_recipe":  # which evaluates each time
                died.add(name + "!")
                raise Killed
            return result

        return call

    names = ("new_folder", "write_jsonl", "choose", "run_recipe", "finite")
    for name in names:
        monkeypatch.setattr(rounds, name, killing(name, getattr(rounds, name)))
    with serve(by_length) as api:
        judge = {"judge": "endpoint", "judge_model": "m", "judge_url": api.url, "question": "listwise"}
        while True:
            try:
                record = run_round(configure(**judge))
                break
            except Killed:
                pass
        assert len(died) == 2 * len(names) - 1
        assert len(api.bodies) == 1 + 8  # nothing is asked twice: an easy question, and one a prompt
    assert (record["number"], record["from"], record["labels"]) == (
        2,
        "first",
        {"asked": 8, "random": 2, "uncertain": 6},
    )
    # each stage stands on the one before
    parents = find_stage(folder / "ppo", "ppo").manifest["parents"]
    assert parents["init"]["id"] == find_stage(run / "ppo", "ppo").manifest["id"]
    assert parents["sft"]["id"] == find_stage(run / "sft", "sft").manifest["id"]
    assert parents["reward"]["id"] == find_stage(folder / "reward", "reward").manifest["id"]
    # the rankings of both rounds are trained on, those drawn at random are not
    earlier, trained, measured = (
        {ranking.prompt.key for ranking in read_rankings(str(path))[0]}
        for path in (run / "data" / "rankings.jsonl", folder / "all_rankings.jsonl", folder / "measured.jsonl")
    )
    assert record["trained_on"] == len(read_rankings(str(folder / "all_rankings.jsonl"))[0])
    assert earlier < trained and len(trained) == len(earlier) + 6 and len(measured) == 2 and not measured & trained
    assert record["measured"]["before"]["n"] == record["measured"]["after"]["n"] == 2
    report = json.loads((folder / "report.json").read_text())
    assert record["win_rate"]["rate"] == report["win_rates"]["policy_vs_first:policy"]["rate"]
    assert list((folder / "gate").glob("*.json")) and record["gate"] in ("pass", "fail")
    assert run_round(configure(number=2)) == record  # nothing is done twice

    # people rank the next round: it leaves out what was ranked, and waits
    with pytest.raises(Stopped) as stopped:
        run_round(configure(labels=2))
    third = tmp_path / "first-round-3"
    assert "2 prompts wait for rankings" in str(stopped.value) and str(third / "rankings.jsonl") in str(stopped.value)
    asked = {prompt.key for prompt in read_prompts(str(third / "prompts.jsonl"))[0]}
    assert asked and not asked & (trained | measured)
    ranked = [row | {"ranks": [*range(1, 1 + len(row["responses"]))]} for row in rows_of(third / "candidates.jsonl")]
    write_rows(third / "rankings.jsonl", ranked[:1])
    with pytest.raises(Stopped, match="1 prompts wait"):
        run_round(configure(labels=2))
    monkeypatch.setattr(rounds._Round, "_train_and_evaluate", lambda self: None)
    monkeypatch.setattr(rounds._Round, "_finish", lambda self, report: self.record)
    assert run_round(configure(labels=2, accept_fewer=True))["number"] == 3
    assert len(rows_of(third / "all_rankings.jsonl")) == len(trained) + 1
    assert main(["rounds", str(run)]) == 0
    assert "first" in capsys.readouterr().out and len(read_rounds(run)) == 1


@pytest.mark.parametrize(("has_reward", "trained", "measured"), [(True, ["b"], ["a"]), (False, ["a", "b"], [])])
def test_rankings_drawn_at_random_measure_a_reward_model_or_are_trained_on(
    tmp_path: Path, has_reward: bool, trained: list[str], measured: list[str]
) -> None:
    rows = [{"prompt": name, "responses": ["x", "y"], "ranks": [1, 2]} for name in "ab"]
    write_rows(tmp_path / "rankings.jsonl", rows)
    reasons = ("random", "uncertain")
    write_rows(
        tmp_path / "candidates.jsonl",
        [{**row, "chosen_for": reason} for row, reason in zip(rows, reasons, strict=True)],
    )
    this = SimpleNamespace(
        path=lambda name: tmp_path / f"{name}.jsonl", has_reward=has_reward, _earlier_rankings=lambda: []
    )
    rounds._Round._collect_rankings(this)  # type: ignore[arg-type]
    assert [row["prompt"] for row in rows_of(tmp_path / "new_rankings.jsonl")] == trained
    assert [row["prompt"] for row in rows_of(tmp_path / "measured.jsonl")] == measured


def test_what_a_round_refuses(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(configure().folder)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("sft: {epochs: 3}")
    faults: list[tuple[dict[str, Any], str]] = [
        ({"settings": str(wrong)}, "'sft' is no section"),
        ({"number": 3}, "round 2 of .* is not finished"),
        ({"max_responses": 1}, "max_responses is 1"),
        ({"judge": "endpoint"}, "--judge endpoint needs --judge_model"),
        ({"prompts": f"{run}/data/evaluation_prompts.jsonl"}, "were ranked in earlier rounds or are held out"),
    ]
    for changes, message in faults:
        with pytest.raises(UserError, match=message):
            run_round(configure(**changes))
        shutil.rmtree(tmp_path / "first-round-2", ignore_errors=True)
    monkeypatch.setattr(rounds._Round, "run", lambda self: self.record)
    run_round(configure())
    with pytest.raises(UserError, match=r"began with other settings .*'labels': 8.*'labels': 9"):
        run_round(configure(labels=9))
    monkeypatch.setattr("lora_rlhf.model.base.hash_source", lambda name: "0" * 64)
    with pytest.raises(UserError, match="'tinyworld', whose files have changed since"):
        run_round(configure())
    shutil.rmtree(run / "ppo")
    with pytest.raises(UserError, match="no policy there to go on from"):
        run_round(configure())
    shutil.rmtree(run / "sft")
    with pytest.raises(UserError, match="no finished sft stage there; a round goes on from a run that holds"):
        run_round(configure())
