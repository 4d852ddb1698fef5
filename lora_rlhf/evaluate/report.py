"""The evaluation: every system answers the same held-out prompts, and report.json says how they compare."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_rlhf.configs.values import check
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Prompt
from lora_rlhf.evaluate.compare import compare_reports, require_comparable
from lora_rlhf.evaluate.config import EvaluateConfig
from lora_rlhf.evaluate.contest import Contest
from lora_rlhf.evaluate.frozen import Frozen, open_frozen
from lora_rlhf.evaluate.groups import categories_of, languages_of
from lora_rlhf.evaluate.harness import load_tasks
from lora_rlhf.evaluate.inputs import describe, encode, keep_lock, read_distinct, read_selection
from lora_rlhf.evaluate.measuring import measure
from lora_rlhf.evaluate.page import page
from lora_rlhf.evaluate.plots import plot_report, read_metrics
from lora_rlhf.evaluate.questions import answer_questions
from lora_rlhf.evaluate.render import markdown, table
from lora_rlhf.evaluate.schema import FORMAT, read_report, require_report
from lora_rlhf.evaluate.scorers import Scorer, open_scorers
from lora_rlhf.evaluate.sections import compute
from lora_rlhf.evaluate.seen import find_seen, warning
from lora_rlhf.evaluate.systems import Compared, find_systems, open_model
from lora_rlhf.evaluate.verdict import verdict
from lora_rlhf.judges.choose import choose_judge, open_judge
from lora_rlhf.judges.records import Judge
from lora_rlhf.judges.scores import ScoreJudge, gold_judge, prompt_text, reward_judge
from lora_rlhf.model.memory import peak_gpu_gib, peak_rss_gib
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.records import World
from lora_rlhf.runs.folder import METRICS
from lora_rlhf.system.disk import write_json, write_text
from lora_rlhf.system.errors import UserError

__all__ = ["evaluate", "table"]

log = logging.getLogger("lora_rlhf")

REPORT, PAGE, PICTURE, SAMPLES = "report.json", "report.md", "report.png", "evaluation_samples.jsonl"
HTML = "report.html"


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What an evaluation is about, known before a model is loaded."""

    compared: Compared
    prompts: list[Prompt]
    selection: list[Prompt]
    judge: str
    pairwise: Judge | None
    world: World | None
    frozen: Frozen
    scorers: dict[str, Scorer]
    tasks: dict[str, Any]
    left_out: dict[str, str]
    earlier: dict[str, Any] | None
    sets: dict[str, Any]
    seen: dict[str, Any]


def evaluate(config: EvaluateConfig, model: SharedModel | None = None, world: World | None = None) -> dict[str, Any]:
    """Compares systems over held-out prompts; writes report.json, .html, .md, .png and the samples.

    world: where the quality of answers is known exactly; it counts where it knows all of the prompts. UserError for a
    mistake of the user's, before anything is generated.
    """
    plan = _plan(config, world)
    model = open_model(plan.compared, config.device, model, config.trust_remote_code)
    contest = _contest(config, plan, model)
    with contest.progress:
        contest.hold()
        measured = measure(contest)
        left_out: dict[str, str] = dict(plan.left_out)
        found = compute(contest, measured, left_out)
    contest.judge.close()
    report = _report(config, plan, contest, found, left_out)
    _write(Path(config.folder), report, plan, _sample_rows(contest))
    return report


def _plan(config: EvaluateConfig, world: World | None) -> _Plan:
    """Everything that can be at fault, in the order of what it costs to find out."""
    check(config)
    place = Path(config.folder) / REPORT
    if place.exists() and not config.overwrite:
        raise UserError(f"{place}: this run has been evaluated already; use --overwrite to replace its report")
    earlier = None if config.compare is None else read_report(config.compare)
    compared = find_systems(config)
    prompts = read_distinct(config, config.prompts, "--prompts")
    selection = read_selection(config, prompts)
    categories_of(prompts, config.category)
    sets = {"prompts": describe(config.prompts, prompts)}
    keep_lock(config.prompts, sets["prompts"]["content_hash"], config.lock)
    if config.selection_prompts is not None:
        sets["selection"] = describe(config.selection_prompts, selection)
    gold = None if world is None else world.gold
    judge = choose_judge(config, config.run, compared.stages.reward, gold, [*prompts, *selection])
    known = world if judge == "gold" or (world is not None and _knows(world, prompts)) else None
    frozen = open_frozen(config, known)
    scorers, no_scorers = open_scorers(config, known)
    sets |= frozen.sets
    if earlier is not None:
        require_comparable(earlier, sets, judge, str(config.compare))
    seen = find_seen(compared.stages, config.prompts, prompts, compared.others)
    if told := warning(seen):
        log.warning("%s: %s", config.prompts, told)
    tasks = load_tasks(config.lm_eval) if config.lm_eval else {}
    pairwise = None
    if judge not in ("gold", "reward"):
        pairwise = open_judge(config, config.run, config.device, config.trust_remote_code)
    left_out = frozen.left_out | no_scorers
    return _Plan(
        compared, prompts, selection, judge, pairwise, known, frozen, scorers, tasks, left_out, earlier, sets, seen
    )


def _contest(config: EvaluateConfig, plan: _Plan, model: SharedModel) -> Contest:
    prompts, counts = encode(config, model, plan.prompts)
    plan.sets["prompts"] |= counts
    selection: list[EncodedPrompt] = []
    if plan.selection:
        selection, counts = encode(config, model, plan.selection)
        plan.sets["selection"] |= counts
    asked = [encoded.prompt for encoded in prompts]
    reward = _reward(config, plan, model)
    return Contest(
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
        categories=categories_of(asked, config.category),
        languages=languages_of(asked),
        progress=tqdm(desc="evaluate", unit="part", disable=None),
    )


def _reward(config: EvaluateConfig, plan: _Plan, model: SharedModel) -> ScoreJudge | None:
    """The first run's reward model: the judge, or what the judge is held against."""
    stage = plan.compared.stages.reward
    if stage is None:
        return None
    manifest = stage.manifest
    return reward_judge(model, float(manifest["results"]["offset"]), config.micro_batch_size, str(manifest["id"]))


def _judge(plan: _Plan, reward: ScoreJudge | None) -> Judge:
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


def _report(
    config: EvaluateConfig, plan: _Plan, contest: Contest, found: dict[str, Any], left_out: dict[str, str]
) -> dict[str, Any]:
    compared, base = plan.compared, plan.compared.stages.sft.manifest["base"]
    if (chance := found.pop("chance", None)) is not None:
        plan.sets["choices"]["chance"] = chance
    failures = sum(won is None for outcomes in contest.outcomes.values() for won in outcomes)
    report: dict[str, Any] = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": dataclasses.asdict(config),
        "base": {name: base[name] for name in ("name", "source_hash", "quantization")},
        "systems": {system.name: system.record() for system in compared.systems},
        "candidate": compared.candidate,
        "baseline": compared.baseline,
        "judge": {**contest.judge.describe(), "failures": failures, "inconsistent": contest.inconsistent},
        "sets": plan.sets,
        "training_data": plan.seen,
        **found,
        "left_out": left_out,
    }
    report = _json(report)
    pair = f"{compared.candidate}_vs_{compared.baseline}"
    best = report.get("win_rates_best_temperature", {}).get(pair)
    report["questions"] = answer_questions(report)
    report["verdict"] = verdict(compared.candidate, compared.baseline, report["win_rates"].get(pair), best)
    if plan.earlier is not None:
        report["comparison"] = compare_reports(plan.earlier, report, str(config.compare))
    seconds = {name: round(value, 2) for name, value in contest.seconds.items()}
    report["seconds"] = {**compared.stages.seconds(), **seconds}
    report |= {"peak_rss_gib": round(peak_rss_gib(), 3), "peak_gpu_gib": round(peak_gpu_gib(), 3)}
    require_report(report)
    return report


def _sample_rows(contest: Contest) -> Iterator[dict[str, Any]]:
    """One row a prompt with every response and score: enough to compute all win rates again."""
    compared = contest.compared
    judge = contest.judge
    outcomes = contest.outcomes[f"{compared.candidate}_vs_{compared.baseline}"]
    scores: dict[str, list[float]] = {}
    if isinstance(judge, ScoreJudge):
        scores = {name: judge.scores(contest.prompts, held) for name, held in contest.answers.items()}
    for i, prompt in enumerate(contest.prompts):
        row: dict[str, Any] = {
            "prompt": prompt_text(prompt.prompt),
            **prompt.prompt.meta,
            "responses": {name: held[i].text for name, held in contest.answers.items()},
            "outcome": outcomes[i],
        }
        if contest.categories is not None:
            row["category"] = contest.categories[i]
        if scores:
            row["scores"] = {name: own[i] for name, own in scores.items()}
            row["margin"] = scores[compared.candidate][i] - scores[compared.baseline][i]
        elif (won := outcomes[i]) is not None:
            row["margin"] = won - 0.5
        if contest.best_answers:
            row["responses_best_temperature"] = {name: held[i].text for name, held in contest.best_answers.items()}
            if isinstance(judge, ScoreJudge):
                again = {n: judge.scores([prompt], [held[i]])[0] for n, held in contest.best_answers.items()}
                row["scores_best_temperature"] = again
        yield row


def _write(folder: Path, report: dict[str, Any], plan: _Plan, samples: Iterator[dict[str, Any]]) -> None:
    """The report itself last: where it is, everything is."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(samples)
    write_jsonl(folder / SAMPLES, rows)
    stages = plan.compared.stages
    newest, trained = stages.writers[-1]
    metrics = read_metrics(trained.folder / METRICS)
    plot_report(report, metrics, stages.setting(newest, "kl_target"), folder / PICTURE)
    write_text(folder / HTML, page(report, rows))
    write_text(folder / PAGE, markdown(report))
    write_json(folder / REPORT, report)


def _json(value: Any) -> Any:
    """Figures and other named tuples as objects, and numbers that JSON cannot write as null."""
    if hasattr(value, "_asdict"):
        return _json(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
