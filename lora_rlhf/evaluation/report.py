"""The evaluation: every system answers the same held-out prompts, and report.json says how they compare."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_rlhf.configs.values import check
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Prompt
from lora_rlhf.evaluation.compare import compare_reports, require_comparable
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.evaluation import Evaluation
from lora_rlhf.evaluation.frozen import Frozen, open_frozen
from lora_rlhf.evaluation.groups import categories_of, languages_of
from lora_rlhf.evaluation.harness import load_tasks
from lora_rlhf.evaluation.inputs import describe, encode, keep_lock, read_distinct, read_selection
from lora_rlhf.evaluation.markdown import markdown
from lora_rlhf.evaluation.measuring import measure
from lora_rlhf.evaluation.page import page
from lora_rlhf.evaluation.plots import plot_report, read_metrics
from lora_rlhf.evaluation.questions import answer_questions
from lora_rlhf.evaluation.report_model import BaseRecord, Report, Sets, TrainingData, read_report
from lora_rlhf.evaluation.scorers import HarmScorer, open_scorers
from lora_rlhf.evaluation.sections import fill_in
from lora_rlhf.evaluation.seen import find_seen, warning
from lora_rlhf.evaluation.systems import Compared, find_systems, open_model
from lora_rlhf.evaluation.verdict import verdict
from lora_rlhf.judges.choose import choose_judge, open_judge
from lora_rlhf.judges.judge import Judge
from lora_rlhf.judges.scores import ScoreJudge, gold_judge, prompt_text, reward_judge
from lora_rlhf.model.memory import peak_gpu_gib, peak_rss_gib
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.sets import World
from lora_rlhf.runs.folder import METRICS
from lora_rlhf.system.disk import write_json, write_text
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.typed_json import to_json

log = logging.getLogger("lora_rlhf")

REPORT, HTML, MARKDOWN, PICTURE = "report.json", "report.html", "report.md", "report.png"
SAMPLES = "evaluation_samples.jsonl"


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation is about, known before a model is loaded. `sets` learns how many prompts were used later."""

    compared: Compared
    prompts: list[Prompt]
    selection: list[Prompt]
    judge: str
    pairwise: Judge | None
    world: World | None
    frozen: Frozen
    scorers: dict[str, HarmScorer]
    tasks: dict[str, Any]
    left_out: dict[str, str]
    earlier: Report | None
    sets: Sets
    training_data: TrainingData


def evaluate(config: EvaluateConfig, model: SharedModel | None = None, world: World | None = None) -> Report:
    """Compares systems over held-out prompts; writes report.json, .html, .md, .png and the samples.

    world: where the quality of answers is known exactly; it counts where it knows all of the prompts. UserError for a
    mistake of the user's, before anything is generated.
    """
    plan = _plan(config, world)
    model = open_model(plan.compared, config.device, model, config.trust_remote_code)
    evaluation = _open(config, plan, model)
    with evaluation.progress:
        evaluation.run()
        measured = measure(evaluation)
        report = _new_report(config, plan, evaluation)
        fill_in(report, evaluation, measured)
    evaluation.judge.close()
    _conclude(report, config, plan, evaluation)
    _write(Path(config.folder), report, plan, _sample_rows(evaluation))
    return report


def _plan(config: EvaluateConfig, world: World | None) -> EvaluationPlan:
    """Everything that can be at fault, in the order of what it costs to find out."""
    check(config)
    path = Path(config.folder) / REPORT
    if path.exists() and not config.overwrite:
        raise UserError(f"{path}: this run has been evaluated already; use --overwrite to replace its report")
    earlier = None if config.compare is None else read_report(config.compare)
    compared = find_systems(config)
    prompts = read_distinct(config, config.prompts, "--prompts")
    selection = read_selection(config, prompts)
    categories_of(prompts, config.category)
    prompt_set = describe(config.prompts, prompts)
    keep_lock(prompt_set, config.lock)
    selection_set = None if config.selection_prompts is None else describe(config.selection_prompts, selection)
    gold = None if world is None else world.gold
    judge = choose_judge(config, config.run, compared.stages.reward, gold, [*prompts, *selection])
    known = world if judge == "gold" or (world is not None and _knows(world, prompts)) else None
    frozen = open_frozen(config, known)
    scorers, no_scorers = open_scorers(config, known)
    sets = Sets(prompts=prompt_set, selection=selection_set, **frozen.sets)
    if earlier is not None:
        require_comparable(earlier, sets, judge, str(config.compare))
    training_data = find_seen(compared.stages, config.prompts, prompts, compared.others)
    if seen := warning(training_data):
        log.warning("%s: %s", config.prompts, seen)
    return EvaluationPlan(
        compared=compared,
        prompts=prompts,
        selection=selection,
        judge=judge,
        world=known,
        frozen=frozen,
        scorers=scorers,
        tasks=load_tasks(config.lm_eval) if config.lm_eval else {},
        pairwise=None
        if judge in ("gold", "reward")
        else open_judge(config, config.run, config.device, config.trust_remote_code),
        left_out=frozen.left_out | no_scorers,
        earlier=earlier,
        sets=sets,
        training_data=training_data,
    )


def _open(config: EvaluateConfig, plan: EvaluationPlan, model: SharedModel) -> Evaluation:
    prompts, plan.sets.prompts = encode(config, model, plan.prompts, plan.sets.prompts)
    selection: list[EncodedPrompt] = []
    if plan.sets.selection is not None:
        selection, plan.sets.selection = encode(config, model, plan.selection, plan.sets.selection)
    used = [encoded.prompt for encoded in prompts]
    reward = _reward(config, plan, model)
    return Evaluation(
        config=config,
        model=model,
        compared=plan.compared,
        judge=_judge(plan, reward),
        reward=reward,
        world=plan.world,
        prompts=prompts,
        selection=selection,
        frozen=plan.frozen,
        scorers=plan.scorers,
        tasks=plan.tasks,
        probe_prompts=plan.frozen.encode_probes(model, config.max_prompt_tokens),
        categories=categories_of(used, config.category),
        languages=languages_of(used),
        progress=tqdm(desc="evaluate", unit="part", disable=None),
    )


def _reward(config: EvaluateConfig, plan: EvaluationPlan, model: SharedModel) -> ScoreJudge | None:
    """The first run's reward model: the judge, or what the judge is held against."""
    stage = plan.compared.stages.reward
    if stage is None:
        return None
    model.set_score_offset("reward", stage.score_offset)
    return reward_judge(model, config.micro_batch_size, str(stage.manifest["id"]))


def _judge(plan: EvaluationPlan, reward: ScoreJudge | None) -> Judge:
    if plan.judge == "gold":
        assert plan.world is not None
        return gold_judge(plan.world.gold)
    if plan.judge == "reward":
        assert reward is not None
        return reward
    assert plan.pairwise is not None
    return plan.pairwise


def _knows(world: World, prompts: Sequence[Prompt]) -> bool:
    try:
        for prompt in prompts:
            world.qualities(prompt_text(prompt), "")
    except KeyError:
        return False
    return True


def _new_report(config: EvaluateConfig, plan: EvaluationPlan, evaluation: Evaluation) -> Report:
    """The report before its sections: what was asked of whom, and who judged."""
    compared, base = plan.compared, plan.compared.stages.sft.manifest["base"]
    failures = sum(won is None for outcomes in evaluation.outcomes.values() for won in outcomes)
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=to_json(asdict(config)),
        base=BaseRecord(name=base["name"], source_hash=base["source_hash"], quantization=base["quantization"]),
        systems={system.name: system.record() for system in compared.systems},
        candidate=compared.candidate,
        baseline=compared.baseline,
        judge={**evaluation.judge.describe(), "failures": failures, "inconsistent": evaluation.inconsistent},
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


def _conclude(report: Report, config: EvaluateConfig, plan: EvaluationPlan, evaluation: Evaluation) -> None:
    """Fills in what follows from the sections, and what all of it took."""
    report.require_known_names()
    report.questions = answer_questions(report)
    rate, best = report.win_rates.get(report.pair), report.win_rates_best_temperature.get(report.pair)
    report.verdict = verdict(report.candidate, report.baseline, rate, best)
    if plan.earlier is not None:
        report.comparison = compare_reports(plan.earlier, report, str(config.compare))
    seconds = {part: round(took, 2) for part, took in evaluation.seconds.items()}
    report.seconds = {**plan.compared.stages.seconds(), **seconds}
    report.peak_rss_gib, report.peak_gpu_gib = round(peak_rss_gib(), 3), round(peak_gpu_gib(), 3)


def _sample_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """One row a prompt with every response and score: enough to compute all win rates again."""
    compared, judge = evaluation.compared, evaluation.judge
    outcomes = evaluation.outcomes[f"{compared.candidate}_vs_{compared.baseline}"]
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
            row["margin"] = scores[compared.candidate][i] - scores[compared.baseline][i]
        elif (won := outcomes[i]) is not None:
            row["margin"] = won - 0.5
        if evaluation.best_answers:
            best = {name: answers[i] for name, answers in evaluation.best_answers.items()}
            row["responses_best_temperature"] = {name: answer.text for name, answer in best.items()}
            if isinstance(judge, ScoreJudge):
                best_scores = {name: judge.scores([prompt], [answer])[0] for name, answer in best.items()}
                row["scores_best_temperature"] = best_scores
        yield row


def _write(folder: Path, report: Report, plan: EvaluationPlan, samples: Iterator[dict[str, Any]]) -> None:
    """The report itself last: where it is, everything is."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(samples)
    write_jsonl(folder / SAMPLES, rows)
    stages = plan.compared.stages
    newest, trained = stages.writers[-1]
    metrics = read_metrics(trained.folder / METRICS)
    plot_report(report, metrics, stages.setting(newest, "kl_target"), folder / PICTURE)
    write_text(folder / HTML, page(report, rows))
    write_text(folder / MARKDOWN, markdown(report))
    write_json(folder / REPORT, to_json(report))
