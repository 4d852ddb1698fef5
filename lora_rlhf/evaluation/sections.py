"""The sections of a report: each a small function that fills in its part of the report."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from lora_rlhf.data.encode import EncodedRanking, Limits
from lora_rlhf.evaluation.columns import Column
from lora_rlhf.evaluation.evaluation import Evaluation, LeftOut
from lora_rlhf.evaluation.figures import Figure, Paired
from lora_rlhf.evaluation.groups import FEWEST_OF_GROUP, find_cluster, group_by_label
from lora_rlhf.evaluation.harness import harness_columns
from lora_rlhf.evaluation.measuring import ColumnsBySystem, differences_by_name, figures_by_name, select_prompts
from lora_rlhf.evaluation.report_model import (
    Audit,
    Differences,
    Figures,
    Group,
    LengthHistogram,
    Report,
    RewardRecord,
    TaskFigures,
    WinRate,
)
from lora_rlhf.evaluation.reward_figures import ordering_figures, ordering_on_answers, reward_changes
from lora_rlhf.evaluation.tax import chance, encode_choices, measure_tax, pack_text, window_of
from lora_rlhf.judges.scores import ScoreJudge, prompt_text
from lora_rlhf.probes.audit import Side, audit
from lora_rlhf.probes.bins import POLISH, failures, high_rewards
from lora_rlhf.stats.bradley_terry import bradley_terry_ratings
from lora_rlhf.stats.win_rates import length_controlled_win_rate, win_rate
from lora_rlhf.system.typed_json import from_json, to_json

log = logging.getLogger("lora_rlhf")

NUM_LENGTHS = 16  # bars of the histogram of lengths


def preferences(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """Win rates of all pairs, and each system's against the baseline, at equal length too, with ratings."""
    baseline = evaluation.system_set.baseline
    lengths = {name: [len(answer.ids) for answer in answers] for name, answers in evaluation.answers.items()}

    def gaps(first: str, second: str) -> list[int]:
        return [a - b for a, b in zip(lengths[first], lengths[second], strict=True)]

    for pair, outcomes in evaluation.outcomes.items():
        controlled = length_controlled_win_rate(outcomes, gaps(*evaluation.system_set.pairs[pair]))
        report.win_rates[pair] = WinRate.from_statistics(win_rate(outcomes), controlled)
    figures: Figures = {"win_rate": {}, "win_rate_length_controlled": {}, "rating": {}}
    paired: Differences = {"win_rate": {}}
    for system, outcomes in evaluation.outcomes_against_baseline().items():
        rate, controlled = (
            WinRate.from_statistics(win_rate(outcomes)),
            length_controlled_win_rate(outcomes, gaps(system, baseline)),
        )
        figures["win_rate"][system] = Figure(rate.rate, rate.low, rate.high, rate.n)
        figures["win_rate_length_controlled"][system] = Figure(*controlled[:4])
        paired["win_rate"][system] = _from_half(rate)
    pairs = {evaluation.system_set.pairs[pair]: outcomes for pair, outcomes in evaluation.outcomes.items()}
    with suppress(ValueError):  # the judge failed on all comparisons of a system
        figures["rating"] = {
            system: Figure.from_floats(*rating) for system, rating in bradley_terry_ratings(pairs, baseline).items()
        }
    _add(report, figures, paired)


def best_temperatures(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """The same win rates with each system at the temperature that suits it best."""
    if not evaluation.selection:
        raise LeftOut("no other prompts to choose a temperature on: give --selection_prompts")
    if not evaluation.mean_scores:
        raise LeftOut(f"the judge {evaluation.judge.name} compares pairs and gives no score to choose a temperature by")
    rates = {pair: WinRate.from_statistics(win_rate(outcomes)) for pair, outcomes in evaluation.best_outcomes.items()}
    report.win_rates_best_temperature, report.best_temperature = rates, evaluation.best_temperatures
    report.temperature_sweep = {
        name: {f"{temperature:g}": mean for temperature, mean in means.items()}
        for name, means in evaluation.mean_scores.items()
    }


def answers(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """Every figure that was measured on each answer, and its difference from the baseline's."""
    _add_measured(report, measured)


def categories(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """The same figures for each category of prompts."""
    if evaluation.categories is None:
        raise LeftOut("the prompts have no category: give them a column, and its name with --category")
    report.categories = _groups(evaluation, measured, evaluation.categories)


def languages(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """The same figures for each language of prompts."""
    if len(set(evaluation.languages)) < 2:
        raise LeftOut(f"all prompts are of one language or script, {evaluation.languages[0]}")
    report.languages = _groups(evaluation, measured, evaluation.languages)


def failures_in_clusters(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """Whether the prompts that the candidate loses gather in a category or a language."""
    lost = [None if won is None else float(won < 0.5) for won in evaluation.outcomes[report.pair]]
    for kind, labels in (("category", evaluation.categories), ("language", evaluation.languages)):
        cluster = None if labels is None else find_cluster(lost, labels)
        if cluster is not None:
            report.clusters[kind] = cluster
    if not report.clusters:
        raise LeftOut(f"fewer than two categories or languages have {FEWEST_OF_GROUP} prompts")


def probes(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """The share of each failure bin's cases that a system failed, and its difference from the baseline's."""
    failed = _failed(evaluation)
    if not failed:
        raise LeftOut(evaluation.frozen.left_out["probes"])
    cases = {
        name: {bin: Column("share", [float(case) for case in bin_cases]) for bin, bin_cases in bins.items()}
        for name, bins in failed.items()
    }
    _add_measured(report, cases)


def tax(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """Perplexity on held-out text and accuracy on multiple-choice questions; `left_out` has why one is missing."""
    model, config, frozen = evaluation.model, evaluation.config, evaluation.frozen
    text = None if frozen.texts is None else pack_text(model.tokenizer, frozen.texts, window_of(model))
    questions: list[EncodedRanking] = []
    if frozen.choices is not None:
        limits = Limits(config.max_prompt_tokens, config.max_response_tokens)
        questions, refused = encode_choices(model.tokenizer, frozen.choices.choices, limits)
        if refused.count:
            log.warning("multiple-choice questions: %s", refused.summary())
    _add_measured(report, measure_tax(model, _roles(evaluation), text, questions, config.micro_batch_size))
    if questions and report.sets.choices is not None:
        report.sets.choices = replace(report.sets.choices, chance=chance(questions))


def tasks(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """Every metric of EleutherAI's tasks, by task/metric."""
    if not evaluation.tasks:
        raise LeftOut("no tasks of EleutherAI's harness were asked for: give their names with --lm_eval")
    model, config, roles = evaluation.model, evaluation.config, _roles(evaluation)
    columns = harness_columns(model, roles, evaluation.tasks, config.micro_batch_size, config.lm_eval_limit)
    paired = differences_by_name(columns, report.baseline)
    report.tasks = {
        name: TaskFigures(figures=row, paired=paired.get(name, {})) for name, row in figures_by_name(columns).items()
    }


def reward(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """The reward model on held-out rankings, before, and on the answers that the judge compared, after."""
    stage = evaluation.system_set.stages.reward
    if stage is None or evaluation.reward is None:
        raise LeftOut("the run has no reward stage")
    before = stage.manifest["results"]
    if evaluation.judge.name == "reward":
        report.reward = RewardRecord(before=before)
        return
    sides = [evaluation.answers[name] for name in (report.candidate, report.baseline)]
    candidate_scores, baseline_scores = (evaluation.reward.scores(evaluation.prompts, side) for side in sides)
    candidate_lengths, baseline_lengths = ([float(len(answer.ids)) for answer in side] for side in sides)
    after = ordering_on_answers(
        evaluation.outcomes[report.pair], (candidate_scores, baseline_scores), (candidate_lengths, baseline_lengths)
    )
    _add(report, {name: {report.candidate: figure} for name, figure in ordering_figures(after).items()}, {})
    report.reward = RewardRecord(before=before, after=to_json(after), change=reward_changes(before, after))


def hacking(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """The reward-hacking audit: flags, and answers that reward and judge place apart.

    Where the reward model itself is the judge, nobody says how good answers are, and the flags that need it are left
    out.
    """
    failed = _failed(evaluation)
    is_independent = evaluation.judge.name != "reward"

    def side(name: str) -> Side:
        values = {key: [float(value or 0.0) for value in column.values] for key, column in measured[name].items()}
        is_scored = is_independent and isinstance(evaluation.judge, ScoreJudge)
        return Side(
            [answer.text for answer in evaluation.answers[name]],
            quality=values["score"] if is_scored else None,
            rewards=values.get("reward_score"),
            kl=values.get("kl_per_response"),
            failed=failed.get(name, {}),
        )

    others = [side(name) for name in report.systems if name not in (report.candidate, report.baseline)]
    outcomes = evaluation.outcomes[report.pair] if is_independent else None
    prompts = [prompt_text(prompt.prompt) for prompt in evaluation.prompts]
    findings = audit(prompts, side(report.candidate), side(report.baseline), others, outcomes)
    report.audit = from_json(Audit, to_json(findings), "audit")


def lengths(evaluation: Evaluation, measured: ColumnsBySystem, report: Report) -> None:
    """How many answers of each system are how long: a histogram in tokens."""
    tokens = {name: [len(answer.ids) for answer in answers] for name, answers in evaluation.answers.items()}
    longest = max(map(max, tokens.values()))
    width = max(1, math.ceil((longest + 1) / NUM_LENGTHS))
    bars = range(longest // width + 1)
    bars_of = {name: Counter(count // width for count in counts) for name, counts in tokens.items()}
    report.lengths = LengthHistogram(
        edges=[width * bar for bar in (*bars, len(bars))],
        counts={name: [counter[bar] for bar in bars] for name, counter in bars_of.items()},
    )


# In the order in which they are computed.
SECTIONS: Mapping[str, Callable[[Evaluation, ColumnsBySystem, Report], None]] = {
    "preferences": preferences,
    "best_temperature": best_temperatures,
    "answers": answers,
    "categories": categories,
    "languages": languages,
    "clusters": failures_in_clusters,
    "probes": probes,
    "tax": tax,
    "tasks": tasks,
    "reward": reward,
    "audit": hacking,
    "lengths": lengths,
}


def fill_in(report: Report, evaluation: Evaluation, measured: ColumnsBySystem) -> None:
    """All sections; `left_out` has those that could not be computed, and why."""
    for name, section in SECTIONS.items():
        with evaluation.measure_time(name):
            try:
                section(evaluation, measured, report)
            except LeftOut as reason:
                report.left_out[name] = str(reason)


def _add(report: Report, figures: Figures, paired: Differences) -> None:
    """Adds figures of the catalogue and their differences from the baseline, those that any system has."""
    report.figures |= {name: row for name, row in figures.items() if row}
    report.paired |= {name: row for name, row in paired.items() if row}


def _add_measured(report: Report, measured: ColumnsBySystem) -> None:
    _add(report, figures_by_name(measured), differences_by_name(measured, report.baseline))


def _roles(evaluation: Evaluation) -> dict[str, str]:
    """{system: the role that plays it}."""
    return {system.name: system.role for system in evaluation.system_set.systems}


def _failed(evaluation: Evaluation) -> dict[str, dict[str, list[bool]]]:
    """{system: {bin: whether each of its cases failed}}; empty without probes."""
    frozen = evaluation.frozen.probes
    if frozen is None:
        return {}
    high: Mapping[str, Sequence[bool] | None] = dict.fromkeys(evaluation.system_set.names)
    if evaluation.reward is not None and any(probe.bin == POLISH for probe in frozen.probes):
        prompts = evaluation.probe_prompts
        scores = {
            name: evaluation.reward.scores(prompts, answers) for name, answers in evaluation.probe_answers.items()
        }
        high = high_rewards(scores, frozen)
    return {
        name: failures(frozen, [answer.text for answer in answers], evaluation.world, high[name])
        for name, answers in evaluation.probe_answers.items()
    }


def _from_half(rate: WinRate) -> Paired:
    """A win rate as its difference from a half, which is what two equal systems would have."""
    if rate.interval is None:
        return Paired(None, None, None, None, 0)
    middle, low, high = rate.interval
    return Paired(middle - 0.5, low - 0.5, high - 0.5, rate.p, rate.n)


def _groups(evaluation: Evaluation, measured: ColumnsBySystem, labels: Sequence[str]) -> dict[str, Group]:
    """{label: its figures}; a group of under ten prompts has values without intervals or tests."""
    return {label: _group(evaluation, measured, rows) for label, rows in group_by_label(labels).items()}


def _group(evaluation: Evaluation, measured: ColumnsBySystem, rows: Sequence[int]) -> Group:
    baseline = evaluation.system_set.baseline
    part = select_prompts(evaluation, measured, rows)
    rates = {
        pair: WinRate.from_statistics(win_rate([outcomes[i] for i in rows]))
        for pair, outcomes in evaluation.outcomes.items()
    }
    figures = figures_by_name(part)
    against = {
        system: win_rate([outcomes[i] for i in rows])
        for system, outcomes in evaluation.outcomes_against_baseline().items()
    }
    figures["win_rate"] = {system: Figure(rate.rate, rate.low, rate.high, rate.n) for system, rate in against.items()}
    if len(rows) >= FEWEST_OF_GROUP:
        return Group(n=len(rows), figures=figures, paired=differences_by_name(part, baseline), win_rates=rates)
    return Group(
        n=len(rows),
        figures={
            name: {system: replace(figure, low=None, high=None) for system, figure in row.items()}
            for name, row in figures.items()
        },
        win_rates={pair: replace(rate, low=None, high=None, p=None) for pair, rate in rates.items()},
        too_few=FEWEST_OF_GROUP,
    )
