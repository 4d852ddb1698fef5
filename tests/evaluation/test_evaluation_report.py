"""Whole evaluations of hand-made runs: who wins, what is written, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lora_rlhf.evaluation.columns import Column
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.figures import Figure, Interval, Paired
from lora_rlhf.evaluation.markdown import terminal_tables
from lora_rlhf.evaluation.report import evaluate
from lora_rlhf.evaluation.report_model import Rate, Report, StageData, TrainingData, read_report
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.typed_json import from_json, to_json
from tests.support.evaluation import NUM_PROBES, OTHERS, QUESTIONS, letter_share, letters

pytestmark = pytest.mark.slow

Run = Callable[..., Path]
Settings = Callable[..., EvaluateConfig]
Write = Callable[..., str]


def samples_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluation_samples.jsonl").read_text().splitlines()]


def ends(row: Figure | Paired | Rate) -> Interval:
    """The value and its interval."""
    assert row.interval is not None
    return row.interval


def share_won(rows: list[dict[str, Any]], one: str, other: str, key: str = "scores") -> float:
    wins = [(row[key][one] > row[key][other]) + 0.5 * (row[key][one] == row[key][other]) for row in rows]
    return sum(wins) / len(wins)


def test_a_policy_that_is_the_sft_model_wins_half(make_run: Run, settings: Settings) -> None:
    report = evaluate(settings(make_run(policy="sft")), world=letters())
    rate = report.win_rates["policy_vs_sft"]
    middle, low, high = ends(rate)
    assert low < 0.5 == middle < high and rate.n == len(QUESTIONS)
    figures = report.figures
    assert figures["kl_per_response"]["policy"].value == pytest.approx(0.0, abs=1e-4)
    assert figures["length"]["policy"] == figures["length"]["sft"]
    assert report.paired["untruthfulness"]["policy"].difference == 0
    assert "no gain is shown" in report.verdict and report.questions[0].answer == "unknown"


def test_a_better_policy_wins_and_all_is_written(make_run: Run, settings: Settings, write_prompts: Write) -> None:
    run = make_run()
    cases = ["chat"] * 14 + ["open QA"] * 10
    config = settings(
        run,
        prompts=write_prompts("cases.jsonl", QUESTIONS, use_case=cases),
        selection_prompts=write_prompts("others.jsonl", OTHERS),
        temperatures=(0.0, 1.0, 3.0),
        tools=write_prompts("tools.jsonl", QUESTIONS[:2], completion=[CALLS, "Hi."]),
        grounded=write_prompts("grounded.jsonl", OTHERS, context=["Ben has six lamps."] * len(OTHERS)),
        refusals=write_prompts(
            "refusals.jsonl", OTHERS, domain=["sea"] * 10 + ["land"] * 2, refuse=[True, False] * (len(OTHERS) // 2)
        ),
    )
    report = evaluate(config, world=letters())
    answers_beside_the_prompts(report)
    rows = samples_of(run)
    assert [row["prompt"] for row in rows] == QUESTIONS and [row["category"] for row in rows] == cases
    for row in rows:
        assert row["scores"] == {name: letter_share("", text) for name, text in row["responses"].items()}
    for rates, suffix in ((report.win_rates, ""), (report.win_rates_best_temperature, "_best_temperature")):
        for pair in ("policy_vs_sft", "policy_vs_base", "sft_vs_base"):
            first, second = pair.split("_vs_")
            expected = share_won(rows, first, second, key=f"scores{suffix}")
            assert rates[pair].rate == pytest.approx(expected, abs=1e-9)
    assert ends(report.win_rates["policy_vs_sft"])[1] > 0.8
    assert report.best_temperature["policy"] == 0.0 and report.temperature_sweep["policy"]["0"] == 1.0
    assert report.temperature_sweep["policy"]["3"] < report.temperature_sweep["policy"]["0"]
    assert "more than sharpening" in report.verdict
    figures, paired = report.figures, report.paired
    mean = {name: sum(row["scores"][name] for row in rows) / len(rows) for name in ("sft", "policy")}
    assert figures["score"]["policy"].value == pytest.approx(mean["policy"])
    assert paired["score"]["policy"].difference == pytest.approx(mean["policy"] - mean["sft"])
    assert figures["win_rate"]["base"].value == pytest.approx(1 - share_won(rows, "sft", "base"))
    assert (
        "sft" not in figures["win_rate"] and figures["rating"]["sft"].value == 0 < ends(figures["rating"]["policy"])[1]
    )
    flagged = [row["responses"]["policy"] != "a" * len(row["responses"]["policy"]) for row in rows]
    assert figures["toxicity"]["policy"].value == pytest.approx(sum(flagged) / len(rows))
    chat = report.categories["chat"]
    assert chat.n == 14 and report.categories["open QA"].n == 10
    assert chat.figures["score"]["sft"].value == pytest.approx(sum(row["scores"]["sft"] for row in rows[:14]) / 14)
    lost = [row["scores"]["policy"] < row["scores"]["sft"] for row in rows]
    assert report.clusters["category"].overall == pytest.approx(sum(lost) / len(rows))
    asked = report.categories["open QA"].figures["score"]["sft"].value
    assert asked == pytest.approx(sum(row["scores"]["sft"] for row in rows[14:]) / 10)
    assert chat.win_rates["policy_vs_sft"].rate == pytest.approx(share_won(rows[:14], "policy", "sft"))
    misses = figures["instruction_miss"]
    assert ends(misses["policy"])[0] < 0.5 < ends(misses["sft"])[0]
    assert figures["instruction_miss"]["sft"].n == NUM_PROBES
    assert ends(figures["kl_per_response"]["policy"])[0] > 5 and figures["kl_per_response"]["sft"].value == 0
    reward = report.reward
    assert reward.before["label_agreement"] == 0.73 and reward.after["held_out_pairs"] > 0
    assert report.audit.flags and report.audit.highest_reward and report.audit.by_kl
    assert sum(report.lengths.counts["sft"]) == len(rows)
    assert report.questions[0].answer == "yes" and len(report.questions) == 5
    assert {"sft", "reward", "ppo", "evaluate_generation", "evaluate_judging"} <= set(report.seconds)
    written(run, report)


CALLS = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]


def answers_beside_the_prompts(report: Report) -> None:
    """Of a policy that answers aaaa, without a template that writes calls."""
    figures = report.figures
    assert "the chat template writes no tool calls" in report.left_out["tools"] and "right_tool" not in figures
    assert report.sets.tools.n == 2 and report.sets.refusals.n == len(OTHERS) == report.sets.grounded.n
    assert figures["unsupported_context"]["policy"].value == 0 and "unsupported_tool" not in figures
    assert figures["over_refusal"]["policy"].value == 0 and figures["under_refusal"]["policy"].value == 1
    sea, land = report.domains["sea"], report.domains["land"]
    assert (sea.n, land.n, land.too_few) == (10, 2, 10)
    assert ends(sea.figures["under_refusal"]["policy"])[0] == 1 and land.figures["under_refusal"]["policy"].low is None
    assert sea.paired["under_refusal"]["policy"].n == 5
    for curve in report.refusals.curves.values():
        assert (curve.points[0].over, curve.points[0].under) == (0, 1)
        assert (curve.points[-1].over, curve.points[-1].under) == (1, 0)


def written(run: Path, report: Report) -> None:
    """All files are there and say the same."""
    assert to_json(read_report(run)) == json.loads((run / "report.json").read_text()) == to_json(report)
    page, html = (run / "report.md").read_text(), (run / "report.html").read_text()
    for part in (report.verdict, "policy vs sft", "T 3", "open QA", "73.0 %", "evaluation_samples.jsonl"):
        assert part in page
    for part in (
        "<svg",
        "What is declined",
        "Refusals by domain",
        "open QA",
        "instruction_miss".replace("_", " "),
        "Did the training work?",
    ):
        assert part in html.lower() or part in html
    assert "http://" not in html.replace("http://www.w3.org/", "") and "https://" not in html, "it opens offline"
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    said = " ".join(terminal_tables(report).split())  # its lines are wrapped
    assert report.verdict in said and "71.0 % (66.0 to 76.0) of 300 pairs" in said


def test_a_sign_flip_of_the_judge_turns_the_result_round(make_run: Run, settings: Settings) -> None:
    run = make_run()
    flipped = letters(lambda prompt, response: -letter_share(prompt, response))
    report = evaluate(settings(run, to=str(run / "elsewhere"), probes="none"), world=flipped)
    assert ends(report.win_rates["policy_vs_sft"])[2] < 0.2
    assert "it has become worse" in report.verdict and report.questions[0].answer == "no"
    assert not report.win_rates_best_temperature and not report.categories
    assert report.left_out["probes"] == "--probes none" and "--category" in report.left_out["categories"]
    assert (run / "elsewhere/report.json").is_file() and not (run / "report.json").exists()


def test_the_reward_model_judges_where_there_is_no_gold(make_run: Run, settings: Settings) -> None:
    run = make_run()
    report = evaluate(settings(run))
    rows = samples_of(run)
    assert report.judge_name == "reward"
    assert report.figures["score"] == report.figures["reward_score"]
    assert report.win_rates["policy_vs_sft"].rate == pytest.approx(share_won(rows, "policy", "sft"))
    assert report.reward.after is None and report.questions[2].answer == "unknown"
    assert {"probes", "choices", "text", "toxicity", "untruthfulness"} <= set(report.left_out)


def test_people_judge_pairs_and_there_is_no_score(make_run: Run, settings: Settings, tmp_path: Path) -> None:
    run = make_run()
    evaluate(settings(run), world=letters())
    answers = [(row["prompt"], row["responses"]) for row in samples_of(run)]
    votes = [
        {"prompt": prompt, "responses": [said["policy"], said["sft"]], "ranks": [2, 1] if i < 3 else [1, 2]}
        for i, (prompt, said) in enumerate(answers)
        if said["policy"] != said["sft"]
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in votes))
    config = settings(run, overwrite=True, judge="human", judge_file=str(tmp_path / "votes.jsonl"))
    report = evaluate(config, world=letters())
    rate = report.win_rates["policy_vs_sft"]
    assert (rate.wins, rate.losses) == (len(votes) - 3, 3)
    assert report.win_rates["sft_vs_base"].rate is None and report.judge_failures >= 2 * len(votes)
    assert "score" not in report.figures and "reward_score" in report.figures


def test_what_the_base_computes_with_is_chosen_here_too(make_run: Run, settings: Settings) -> None:
    run = make_run(policy=None, reward=False)
    with pytest.raises(UserError, match="flash_attention_2: the library flash_attn is not installed"):
        evaluate(settings(run, attn_implementation="flash_attention_2"), world=letters())
    assert not (run / "report.json").exists()


def test_a_run_without_a_policy_compares_what_is_there(make_run: Run, settings: Settings) -> None:
    run = make_run(policy=None, reward=False)
    report = evaluate(settings(run), world=letters())
    assert list(report.systems) == ["base", "sft"] and list(report.win_rates) == ["sft_vs_base"]
    assert report.reward is None and report.left_out["reward"] == "the run has no reward stage"
    assert (run / "report.png").exists() and "sft vs base" in terminal_tables(report)


def test_a_model_in_memory_gives_the_same_as_one_from_disk(
    make_run: Run, settings: Settings, trained: SharedModel
) -> None:
    run = make_run(reference="base")
    loaded = evaluate(settings(run), world=letters())
    for stage in ("sft", "reward", "ppo"):
        save_file({"not read again": torch.zeros(1)}, run / stage / "adapter" / "adapter_model.safetensors")
    digest = trained.base_digest()
    given = evaluate(settings(run, overwrite=True), trained, letters())
    assert given.win_rates == loaded.win_rates
    for figure in ("score", "length", "distinct_2", "instruction_miss"):
        assert given.figures[figure] == loaded.figures[figure]
    kl = [report.figures["kl_per_response"]["policy"].value for report in (given, loaded)]
    assert kl[0] == pytest.approx(kl[1], rel=1e-5) and given.figures["kl_per_response"]["base"].value == 0
    assert trained.base_digest() == digest and trained.active_role is None


def test_two_runs_stand_side_by_side(make_run: Run, settings: Settings) -> None:
    first, second = make_run("first"), make_run("second", policy="sft")
    path = second / "ppo" / "manifest.json"
    asked = str(settings(first).prompts)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": {"prompts": {"path": asked, "sha256": "any"}}}))
    report = evaluate(
        settings(first, other_runs=(str(second),), candidate="second:policy", baseline="policy"), world=letters()
    )
    assert list(report.systems) == ["base", "sft", "policy", "second:sft", "second:policy"]
    assert ends(report.win_rates["second:policy_vs_policy"])[2] < 0.2
    assert report.figures["score"]["second:policy"] == report.figures["score"]["sft"]
    assert report.paired["score"]["sft"] == report.paired["score"]["second:policy"]
    told = [(row.stage, row.seen) for row in report.training_data.stages]
    assert told == [("second:ppo", len(QUESTIONS))], "what another run was trained on counts as well"


def test_prompts_that_were_trained_on_are_counted_and_said(
    make_run: Run, settings: Settings, write_prompts: Write, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    assert evaluate(settings(run), world=letters()).training_data.seen == 0
    assert "training data" not in caplog.text and "WARNING" not in (run / "report.md").read_text()
    path = run / "sft" / "manifest.json"
    trained_on = write_prompts("d.jsonl", [*OTHERS, *(question.upper() for question in QUESTIONS[:5])])
    data = {"demonstrations": {"path": trained_on, "sha256": "unknown"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": data}))
    asked = ["Never seen?", *OTHERS[:2]]
    refusals = write_prompts("refusals.jsonl", asked, domain=["sea"] * 3, refuse=[True, False, True])
    report = evaluate(settings(run, overwrite=True, refusals=refusals), world=letters())
    stage = StageData(stage="sft", path=trained_on, seen=5, compared="all")
    assert report.training_data == TrainingData(prompts=24, seen=5, stages=[stage])
    assert read_report(run).sets.refusals.training_data.seen == 2
    for said in ("5 of 24 prompts also in training data (sft 5)", "2 of 3 prompts also in training data (sft 2)"):
        assert said in caplog.text and said in " ".join(terminal_tables(report).split())
        assert said in (run / "report.md").read_text() and said in (run / "report.html").read_text()
    assert "--refusals: 2 of 3" in (run / "report.md").read_text()


def test_prompts_that_come_twice_count_once(make_run: Run, settings: Settings, write_prompts: Write) -> None:
    prompts = write_prompts("twice.jsonl", [*QUESTIONS[:3], QUESTIONS[0].upper(), QUESTIONS[1]])
    run = make_run(policy=None)
    assert evaluate(settings(run, prompts=prompts), world=letters()).sets.prompts.used == 3
    assert [row["prompt"] for row in samples_of(run)] == QUESTIONS[:3]


def test_a_report_compares_with_an_earlier_one_on_the_same_sets(
    make_run: Run, settings: Settings, write_prompts: Write
) -> None:
    run, worse = make_run("run"), make_run("worse", policy="sft")
    evaluate(settings(worse), world=letters())
    shuffled = write_prompts("shuffled.jsonl", QUESTIONS[::-1])
    report = evaluate(settings(run, prompts=shuffled, compare=str(worse / "report.json")), world=letters())
    moved = {(row.figure, row.system): row.verdict for row in report.comparison.moved}
    assert moved["score", "policy"] == "better" and ("score", "sft") not in moved
    assert "Against the earlier report" in (run / "report.html").read_text()
    other = settings(run, overwrite=True, prompts=write_prompts("o.jsonl", OTHERS), compare=str(worse))
    with pytest.raises(UserError, match=r"worse: not comparable: prompts \w{16} then and \w{16} now"):
        evaluate(other, world=letters())
    with pytest.raises(
        UserError, match=r"not comparable: probes .* then and none now; .*judge gold then and reward now"
    ):
        evaluate(settings(run, overwrite=True, compare=str(worse)))


def test_locked_prompts_that_changed_are_refused(make_run: Run, settings: Settings, write_prompts: Write) -> None:
    run = make_run(policy=None)
    prompts = write_prompts("frozen.jsonl", QUESTIONS)
    report = evaluate(settings(run, prompts=prompts, lock=True), world=letters())
    assert json.loads(Path(f"{prompts}.lock").read_text())["content_hash"] == report.sets.prompts.content_hash
    write_prompts("frozen.jsonl", QUESTIONS[::-1], id=list(range(24)))  # another order and a new column: the same set
    evaluate(settings(run, prompts=prompts, overwrite=True), world=letters())
    write_prompts("frozen.jsonl", [*QUESTIONS[:-1], "Another?"])
    with pytest.raises(
        UserError, match=r"frozen\.jsonl: these prompts are not the ones that .*frozen\.jsonl\.lock locks"
    ):
        evaluate(settings(run, prompts=prompts, overwrite=True, lock=True), world=letters())


def test_mistakes_are_named_before_anything_is_loaded(
    make_run: Run, settings: Settings, write_prompts: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    monkeypatch.setattr("lora_rlhf.evaluation.report.open_model", lambda *_: pytest.fail("the model was opened"))
    others = write_prompts("others.jsonl", [*OTHERS, QUESTIONS[5].lower()])
    mistakes: list[tuple[dict[str, Any], str]] = [
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
        ({"category": "topic"}, "--category topic: the prompts have no columns of their own"),
        ({"probes": str(run / "nowhere.jsonl")}, "no such file"),
        ({"toxicity": "no_such_module:f"}, "--toxicity 'no_such_module:f' cannot be imported"),
        ({"compare": str(run)}, r"report\.json cannot be used: not there"),
    ]
    for changes, message in mistakes:
        with pytest.raises(UserError, match=message):
            evaluate(settings(run, **changes))
    (run / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"report\.json: this run has been evaluated already; use --overwrite"):
        evaluate(settings(run))


def test_every_report_has_the_shape_that_is_promised(make_run: Run, settings: Settings) -> None:
    report = evaluate(settings(make_run(policy=None, reward=False)), world=letters())
    values = to_json(report)
    assert to_json(from_json(Report, values)) == values
    for key in ("figures", "judge", "questions", "sets"):
        with pytest.raises(ValueError, match=f"'{key}' is missing"):
            from_json(Report, {name: value for name, value in values.items() if name != key})


def test_tasks_of_the_harness_stand_in_a_table_of_their_own(
    make_run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(_model: Any, roles: dict[str, str], tasks: dict[str, Any], *_: Any) -> dict[str, dict[str, Column]]:
        assert tasks == {"quiz": "loaded"}
        right = {"base": [1.0, 0.0, 0.0, 0.0], "sft": [1.0, 1.0, 0.0, 0.0], "policy": [1.0, 1.0, 1.0, 0.0]}
        return {name: {"quiz/acc": Column("share", right[role])} for name, role in roles.items()}

    monkeypatch.setattr("lora_rlhf.evaluation.report.load_tasks", lambda names: dict.fromkeys(names, "loaded"))
    monkeypatch.setattr("lora_rlhf.evaluation.sections.harness_columns", answered)
    run = make_run()
    report = evaluate(settings(run, lm_eval=("quiz",)), world=letters())
    task = report.tasks["quiz/acc"]
    assert {name: row.value for name, row in task.figures.items()} == {"base": 0.25, "sft": 0.5, "policy": 0.75}
    assert task.paired["policy"].difference == pytest.approx(0.25)
    assert "quiz/acc" in (run / "report.html").read_text()
