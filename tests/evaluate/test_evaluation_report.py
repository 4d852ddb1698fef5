"""Whole evaluations of hand-made runs: who wins, what is written, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_helpers import OTHERS, QUESTIONS, letter_share

from lora_rlhf.config import EvaluateConfig
from lora_rlhf.errors import UserError
from lora_rlhf.evaluate.report import evaluate, table
from lora_rlhf.model.shared import SharedModel

Run, Settings, Write = Callable[..., Path], Callable[..., EvaluateConfig], Callable[..., str]


def samples_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluation_samples.jsonl").read_text().splitlines()]


def share_won(rows: list[dict[str, Any]], one: str, other: str, key: str = "scores") -> float:
    wins = [(row[key][one] > row[key][other]) + 0.5 * (row[key][one] == row[key][other]) for row in rows]
    return sum(wins) / len(wins)


def test_a_policy_that_is_the_sft_model_wins_half(make_run: Run, settings: Settings) -> None:
    report = evaluate(settings(make_run(policy="sft")), gold=letter_share)
    rate = report["win_rate"]["policy_vs_sft"]
    assert rate["rate"] == 0.5 and rate["low"] < 0.5 < rate["high"] and rate["n"] == len(QUESTIONS)
    assert report["kl"]["policy_reference"]["mean"] == pytest.approx(0.0, abs=1e-4)
    assert report["length"]["policy"] == report["length"]["sft"]
    assert "no gain is shown" in report["verdict"]


def test_a_better_policy_wins_and_all_is_written(make_run: Run, settings: Settings, write_prompts: Write) -> None:
    run = make_run()
    cases = ["chat"] * 14 + ["open QA"] * 10
    config = settings(
        run,
        prompts=write_prompts("cases.jsonl", QUESTIONS, use_case=cases),
        selection_prompts=write_prompts("others.jsonl", OTHERS),
        temperatures=(0.0, 1.0, 3.0),
    )
    report = evaluate(config, gold=letter_share)
    rows = samples_of(run)
    assert [row["prompt"] for row in rows] == QUESTIONS and [row["use_case"] for row in rows] == cases
    for row in rows:
        assert row["scores"] == {role: letter_share("", text) for role, text in row["responses"].items()}
    for key, suffix in (("win_rate", ""), ("win_rate_best_temperature", "_best_temperature")):
        for pair in ("policy_vs_sft", "policy_vs_base", "sft_vs_base"):
            expected = share_won(rows, *pair.split("_vs_"), key=f"scores{suffix}")
            assert report[key][pair]["rate"] == pytest.approx(expected, abs=1e-9)
    assert report["win_rate"]["policy_vs_sft"]["low"] > 0.8
    assert report["best_temperature"]["policy"] == 0.0 and report["gold_best_temperature"]["policy"]["mean"] == 1.0
    assert report["temperature_sweep"]["policy"]["3"] < report["temperature_sweep"]["policy"]["0"]
    assert "more than sharpening" in report["verdict"]
    mean = sum(row["scores"]["policy"] for row in rows) / len(rows)
    assert report["gold"]["policy"]["mean"] == pytest.approx(mean)
    chat = sum(row["scores"]["sft"] for row in rows[:14]) / 14
    assert report["by_use_case"]["chat"]["sft"] == pytest.approx(chat) and report["by_use_case"]["open QA"]["n"] == 10
    words = [word for row in rows for word in row["responses"]["sft"].split()]
    assert report["distinct"]["sft"]["distinct_1"] == pytest.approx(len(set(words)) / len(words))
    assert report["kl"]["policy_reference"]["mean"] > 5 and report["kl"]["reference"] == "sft"
    assert report["reward"]["label_agreement"] == 0.73 and report["reward"]["accuracy"]["n"] == 300
    assert {"sft", "reward", "ppo", "evaluate_generation", "evaluate_judging", "evaluate_kl"} == set(report["seconds"])
    assert report["peak_rss_gib"] > 0.1
    stored = json.loads((run / "report.json").read_text())
    assert stored == json.loads(json.dumps(report))
    page = (run / "report.md").read_text()
    for part in (report["verdict"], "policy vs sft", "T 3", "open QA", "73.0 %", "evaluation_samples.jsonl"):
        assert part in page
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert report["verdict"] in table(report) and "71.0 % (66.0 to 76.0) of 300 pairs" in table(report)
    wins = report["win_rate"]["policy_vs_sft"]
    assert f"{wins['wins']} / {wins['ties']} / {wins['losses']}" in table(report)


def test_a_sign_flip_of_the_judge_turns_the_result_round(make_run: Run, settings: Settings) -> None:
    report = evaluate(settings(make_run()), gold=lambda prompt, response: -letter_share(prompt, response))
    assert report["win_rate"]["policy_vs_sft"]["high"] < 0.2
    assert "it has become worse" in report["verdict"]
    assert "win_rate_best_temperature" not in report and "by_use_case" not in report


def test_the_reward_model_judges_where_there_is_no_gold(make_run: Run, settings: Settings) -> None:
    run = make_run()
    report = evaluate(settings(run))
    rows = samples_of(run)
    assert report["judge"] == "reward_score" and "gold" not in report
    assert set(report["reward_score"]) == {"base", "sft", "policy"}
    assert report["win_rate"]["policy_vs_sft"]["rate"] == pytest.approx(share_won(rows, "policy", "sft"))
    assert "reward model's score" in table(report)


def test_a_run_without_a_policy_compares_what_is_there(make_run: Run, settings: Settings) -> None:
    run = make_run(policy=None, reward=False)
    report = evaluate(settings(run), gold=letter_share)
    assert report["stages"] == ["base", "sft"] and list(report["win_rate"]) == ["sft_vs_base"]
    assert "kl" not in report and "reward" not in report and "no policy" in report["verdict"]
    assert (run / "report.png").exists() and "sft vs base" in table(report)


def test_a_model_in_memory_gives_the_same_as_one_from_disk(
    make_run: Run, settings: Settings, trained: SharedModel
) -> None:
    run = make_run(reference="base")
    loaded = evaluate(settings(run), gold=letter_share)
    for stage in ("sft", "reward", "ppo"):
        shutil.rmtree(run / stage / "adapter")
    digest = trained.base_digest()
    given = evaluate(settings(run, overwrite=True), trained, letter_share)
    for key in ("win_rate", "gold", "length", "distinct"):
        assert given[key] == loaded[key]
    assert given["kl"]["reference"] == "base"
    assert given["kl"]["policy_reference"]["mean"] == pytest.approx(loaded["kl"]["policy_reference"]["mean"], rel=1e-5)
    assert trained.base_digest() == digest and trained.active_role is None


def test_prompts_that_were_trained_on_are_counted_and_said(
    make_run: Run, settings: Settings, write_prompts: Write, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    assert evaluate(settings(run), gold=letter_share)["training_data"]["seen"] == 0
    assert "training data" not in caplog.text and "WARNING" not in (run / "report.md").read_text()
    path = run / "sft" / "manifest.json"
    trained_on = write_prompts("d.jsonl", [*OTHERS, *(question.upper() for question in QUESTIONS[:5])])
    data = {"demonstrations": {"path": trained_on, "sha256": "unknown"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": data}))
    report = evaluate(settings(run, overwrite=True), gold=letter_share)
    assert report["training_data"] == {
        "prompts": 24,
        "seen": 5,
        "stages": [{"stage": "sft", "path": trained_on, "seen": 5, "compared": "all"}],
    }
    said = "5 of 24 prompts also in training data (sft 5)"
    assert said in caplog.text and said in table(report) and said in (run / "report.md").read_text()


def test_prompts_that_come_twice_count_once(make_run: Run, settings: Settings, write_prompts: Write) -> None:
    prompts = write_prompts("twice.jsonl", [*QUESTIONS[:3], QUESTIONS[0].upper(), QUESTIONS[1]])
    run = make_run(policy=None)
    assert evaluate(settings(run, prompts=prompts), gold=letter_share)["prompts"]["used"] == 3
    assert [row["prompt"] for row in samples_of(run)] == QUESTIONS[:3]


def test_mistakes_are_named_before_anything_is_loaded(
    make_run: Run, settings: Settings, write_prompts: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    monkeypatch.setattr("lora_rlhf.evaluate.report.open_model", lambda *_: pytest.fail("the model was opened"))
    others = write_prompts("others.jsonl", [*OTHERS, QUESTIONS[5].lower()])
    mistakes = [
        ({"prompts": write_prompts("one.jsonl", QUESTIONS[:1])}, r"one\.jsonl: 1 distinct prompt, --prompts needs"),
        (
            {"selection_prompts": others},
            r"others\.jsonl: .*prompts\.jsonl holds 1 prompt of it too.*Give other prompts",
        ),
        ({"selection_prompts": others, "temperatures": ()}, "temperatures is empty"),
        ({"temperatures": (-1.0,)}, "temperatures below 0"),
        ({"judge": "gold"}, "--judge gold"),
        ({"prompts": str(run / "nowhere.jsonl")}, "no such file"),
        ({"run": str(run / "nowhere")}, "no sft stage"),
    ]
    for changes, message in mistakes:
        with pytest.raises(UserError, match=message):
            evaluate(settings(run, **changes))
    (run / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"report\.json: this run has been evaluated already; use --overwrite"):
        evaluate(settings(run))
