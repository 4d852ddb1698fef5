"""The evaluation: every system answers the same held-out prompts, and report.json compares them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_rlhf.configs.catalogue import BY_NAME
from lora_rlhf.configs.values import check
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Prompt
from lora_rlhf.evaluation.compare import compare_reports, require_comparable
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.evaluation import Evaluation
from lora_rlhf.evaluation.frozen import FrozenSets, open_frozen_sets
from lora_rlhf.evaluation.groups import prompt_categories, prompt_languages
from lora_rlhf.evaluation.harness import load_tasks
from lora_rlhf.evaluation.inputs import (
    check_lock,
    describe_prompt_set,
    encode_prompt_set,
    read_distinct_prompts,
    read_selection_prompts,
)
from lora_rlhf.evaluation.markdown import markdown_page
from lora_rlhf.evaluation.measuring import measure_answers
from lora_rlhf.evaluation.page import report_page
from lora_rlhf.evaluation.plots import plot_report
from lora_rlhf.evaluation.questions import answer_questions
from lora_rlhf.evaluation.report_model import BaseRecord, Report, Sets, TrainingData, read_report
from lora_rlhf.evaluation.scorers import HarmScorer, open_scorers
from lora_rlhf.evaluation.sections import fill_report
from lora_rlhf.evaluation.seen import count_seen_prompts, seen_warning
from lora_rlhf.evaluation.systems import RunStages, SystemSet, find_systems, open_model
from lora_rlhf.evaluation.verdict import verdict_sentence
from lora_rlhf.judges.choose import choose_judge, open_judge
from lora_rlhf.judges.judge import Judge
from lora_rlhf.judges.scores import ScoreJudge, gold_judge, prompt_text, reward_judge
from lora_rlhf.model.kernels import prepare_base
from lora_rlhf.model.memory import peak_gpu_gib, peak_rss_gib
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.sets import World
from lora_rlhf.render.curves import Figure
from lora_rlhf.runs.curves import read_settings, stage_figures
from lora_rlhf.runs.folder import CONFIG, METRICS, read_metrics
from lora_rlhf.system.disk import write_json, write_text
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.typed_json import to_json

log = logging.getLogger("lora_rlhf")

REPORT, HTML, MARKDOWN, PICTURE = "report.json", "report.html", "report.md", "report.png"
SAMPLES = "evaluation_samples.jsonl"


@dataclass(frozen=True)
class EvaluationPlan:
    """The inputs of an evaluation, before a model is loaded. The numbers of used prompts are added to `sets` later."""

    system_set: SystemSet
    prompts: list[Prompt]
    selection: list[Prompt]
    judge: str
    pairwise_judge: Judge | None
    world: World | None
    frozen: FrozenSets
    scorers: dict[str, HarmScorer]
    tasks: dict[str, Any]
    left_out: dict[str, str]
    earlier: Report | None
    sets: Sets
    training_data: TrainingData


def evaluate(config: EvaluateConfig, model: SharedModel | None = None, world: World | None = None) -> Report:
    """Compares systems over held-out prompts; writes report.json, .html, .md, .png and the samples.

    world: a world that knows the exact quality of answers; it is used if it knows all of the prompts. Raises UserError
    for a mistake of the user before anything is generated.
    """
    plan = _make_plan(config, world)
    model = open_model(plan.system_set, config.device, model, config.trust_remote_code)
    prepare_base(model, config.dequantize, config.attn_implementation, config.fused_kernels)
    evaluation = _make_evaluation(config, plan, model)
    with evaluation.progress:
        evaluation.run()
        columns_by_system = measure_answers(evaluation)
        report = _new_report(config, plan, evaluation)
        fill_report(report, evaluation, columns_by_system)
    evaluation.judge.close()
    _finish_report(report, config, plan, evaluation)
    _write_files(Path(config.folder), report, plan, _sample_rows(evaluation))
    return report


def _make_plan(config: EvaluateConfig, world: World | None) -> EvaluationPlan:
    """Checks and reads all inputs, the cheapest checks first."""
    check(config)
    path = Path(config.folder) / REPORT
    if path.exists() and not config.overwrite:
        raise UserError(f"{path}: this run has been evaluated already; use --overwrite to replace its report")
    earlier_report = None if config.compare is None else read_report(config.compare)
    system_set = find_systems(config)
    prompts = read_distinct_prompts(config, config.prompts, "--prompts")
    selection = read_selection_prompts(config, prompts)
    prompt_categories(prompts, config.category)
    prompt_set = describe_prompt_set(config.prompts, prompts)
    check_lock(prompt_set, config.lock)
    selection_set = (
        None if config.selection_prompts is None else describe_prompt_set(config.selection_prompts, selection)
    )
    gold = None if world is None else world.gold
    judge = choose_judge(config, config.run, system_set.stages.reward, gold, [*prompts, *selection])
    known_world = world if judge == "gold" or (world is not None and _is_known_to_world(world, prompts)) else None
    frozen = open_frozen_sets(config, known_world)
    scorers, missing_scorers = open_scorers(config, known_world)
    sets = Sets(prompts=prompt_set, selection=selection_set, **frozen.sets)
    if earlier_report is not None:
        require_comparable(earlier_report, sets, judge, str(config.compare))
    training_data = _count_seen(system_set, config.prompts, prompts)
    for name, asked in frozen.asked_beside().items():
        one = frozen.sets[name]
        setattr(sets, name, replace(one, training_data=_count_seen(system_set, str(one.path), asked)))
    return EvaluationPlan(
        system_set=system_set,
        prompts=prompts,
        selection=selection,
        judge=judge,
        world=known_world,
        frozen=frozen,
        scorers=scorers,
        tasks=load_tasks(config.lm_eval) if config.lm_eval else {},
        pairwise_judge=None
        if judge in ("gold", "reward")
        else open_judge(config, config.run, config.device, config.trust_remote_code),
        left_out=frozen.left_out | missing_scorers,
        earlier=earlier_report,
        sets=sets,
        training_data=training_data,
    )


def _count_seen(system_set: SystemSet, path: str, prompts: Sequence[Prompt]) -> TrainingData:
    """How many of these prompts the systems were trained on, with a warning where there are any."""
    training_data = count_seen_prompts(system_set.stages, path, prompts, system_set.others)
    if warning_text := seen_warning(training_data):
        log.warning("%s: %s", path, warning_text)
    return training_data


def _make_evaluation(config: EvaluateConfig, plan: EvaluationPlan, model: SharedModel) -> Evaluation:
    """Encodes the prompts and opens the judge."""
    prompts, plan.sets.prompts = encode_prompt_set(config, model, plan.prompts, plan.sets.prompts)
    selection: list[EncodedPrompt] = []
    if plan.sets.selection is not None:
        selection, plan.sets.selection = encode_prompt_set(config, model, plan.selection, plan.sets.selection)
    used_prompts = [encoded.prompt for encoded in prompts]
    reward = _make_reward_judge(config, plan, model)
    return Evaluation(
        config=config,
        model=model,
        system_set=plan.system_set,
        judge=_make_judge(plan, reward),
        reward=reward,
        world=plan.world,
        prompts=prompts,
        selection=selection,
        frozen=plan.frozen,
        scorers=plan.scorers,
        tasks=plan.tasks,
        asked=plan.frozen.encode_prompts(model, config.max_prompt_tokens),
        categories=prompt_categories(used_prompts, config.category),
        languages=prompt_languages(used_prompts),
        progress=tqdm(desc="evaluate", unit="part", disable=None),
    )


def _make_reward_judge(config: EvaluateConfig, plan: EvaluationPlan, model: SharedModel) -> ScoreJudge | None:
    """The first run's reward model, as the judge or for a comparison with the judge; None without a reward stage."""
    stage = plan.system_set.stages.reward
    if stage is None:
        return None
    model.set_score_offset("reward", stage.score_offset)
    return reward_judge(model, config.micro_batch_size, str(stage.manifest["id"]))


def _make_judge(plan: EvaluationPlan, reward: ScoreJudge | None) -> Judge:
    """The judge of the plan."""
    if plan.judge == "gold":
        assert plan.world is not None
        return gold_judge(plan.world.gold)
    if plan.judge == "reward":
        assert reward is not None
        return reward
    assert plan.pairwise_judge is not None
    return plan.pairwise_judge


def _is_known_to_world(world: World, prompts: Sequence[Prompt]) -> bool:
    """Whether the world knows all of the prompts."""
    try:
        for prompt in prompts:
            world.qualities(prompt_text(prompt), "")
    except KeyError:
        return False
    return True


def _new_report(config: EvaluateConfig, plan: EvaluationPlan, evaluation: Evaluation) -> Report:
    """A report without its sections: configuration, systems, sets and judge."""
    system_set, base = plan.system_set, plan.system_set.stages.sft.manifest["base"]
    num_failures = sum(outcome is None for outcomes in evaluation.outcomes.values() for outcome in outcomes)
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=to_json(asdict(config)),
        base=BaseRecord(name=base["name"], source_hash=base["source_hash"], quantization=base["quantization"]),
        systems={system.name: system.to_record() for system in system_set.systems},
        candidate=system_set.candidate,
        baseline=system_set.baseline,
        judge={**evaluation.judge.describe(), "failures": num_failures, "inconsistent": evaluation.num_inconsistent},
        sets=plan.sets,
        training_data=plan.training_data,
        figures={},
        paired={},
        win_rates={},
        left_out=dict(plan.left_out),
        questions=[],
        verdict="",
        seconds={},
        peak_rss_gib=0.0,
        peak_gpu_gib=0.0,
    )


def _finish_report(report: Report, config: EvaluateConfig, plan: EvaluationPlan, evaluation: Evaluation) -> None:
    """Adds questions, verdict and comparison, which need the sections, and the costs."""
    report.require_known_names()
    report.questions = answer_questions(report)
    rate, best_rate = report.win_rates.get(report.pair), report.win_rates_best_temperature.get(report.pair)
    report.verdict = verdict_sentence(report.candidate, report.baseline, rate, best_rate)
    if plan.earlier is not None:
        report.comparison = compare_reports(plan.earlier, report, str(config.compare))
    seconds = {part: round(part_seconds, 2) for part, part_seconds in evaluation.seconds.items()}
    report.seconds = {**plan.system_set.stages.seconds_by_stage(), **seconds}
    report.peak_rss_gib, report.peak_gpu_gib = round(peak_rss_gib(), 3), round(peak_gpu_gib(), 3)


def _sample_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """Yields a row for each prompt with all responses and scores, from which all win rates can be computed again."""
    system_set, judge = evaluation.system_set, evaluation.judge
    outcomes = evaluation.outcomes[f"{system_set.candidate}_vs_{system_set.baseline}"]
    scores: dict[str, list[float]] = {}
    if isinstance(judge, ScoreJudge):
        scores = {name: judge.scores(evaluation.prompts, answers) for name, answers in evaluation.answers.items()}
    for i, prompt in enumerate(evaluation.prompts):
        row: dict[str, Any] = {
            "prompt": prompt_text(prompt.prompt),
            **prompt.prompt.meta,
            "responses": {name: answers[i].text for name, answers in evaluation.answers.items()},
            "outcome": outcomes[i],
        }
        if evaluation.categories is not None:
            row["category"] = evaluation.categories[i]
        if scores:
            row["scores"] = {name: values[i] for name, values in scores.items()}
            row["margin"] = scores[system_set.candidate][i] - scores[system_set.baseline][i]
        elif (outcome := outcomes[i]) is not None:
            row["margin"] = outcome - 0.5
        if evaluation.best_answers:
            best_answers = {name: answers[i] for name, answers in evaluation.best_answers.items()}
            row["responses_best_temperature"] = {name: answer.text for name, answer in best_answers.items()}
            if isinstance(judge, ScoreJudge):
                best_scores = {name: judge.scores([prompt], [answer])[0] for name, answer in best_answers.items()}
                row["scores_best_temperature"] = best_scores
        yield row


def _training_figures(stages: RunStages) -> dict[str, list[Figure]]:
    """{title of a stage: what it wrote while it trained}, in the order in which they ran."""
    figures = {}
    for name, parent in stages.by_name.items():
        rows, settings = read_metrics(parent.folder / METRICS), read_settings(parent.folder / CONFIG)
        figures[BY_NAME[name].title] = stage_figures(BY_NAME[name], {name: rows}, {name: settings})
    return figures


def _write_files(folder: Path, report: Report, plan: EvaluationPlan, samples: Iterator[dict[str, Any]]) -> None:
    """Writes all files of the report; report.json is the last, so that its presence means that all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(samples)
    write_jsonl(folder / SAMPLES, rows)
    stages = plan.system_set.stages
    newest_stage, newest_folder = stages.writers[-1]
    metrics = read_metrics(newest_folder.folder / METRICS)
    plot_report(report, metrics, stages.read_setting(newest_stage, "kl_target"), folder / PICTURE)
    write_text(folder / HTML, report_page(report, rows, _training_figures(stages)))
    write_text(folder / MARKDOWN, markdown_page(report))
    write_json(folder / REPORT, to_json(report))
