"""The sections of a report: each a small function that fills in its part of the report."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from lora_rlhf.data.encode import EncodedRanking, Limits
from lora_rlhf.evaluation.asked_sections import add_grounding, add_refusals, add_tool_figures
from lora_rlhf.evaluation.columns import Column
from lora_rlhf.evaluation.evaluation import Evaluation, LeftOut
from lora_rlhf.evaluation.figures import Figure, Paired
from lora_rlhf.evaluation.groups import FEWEST_OF_GROUP, find_cluster, group_by_label
from lora_rlhf.evaluation.harness import harness_columns
from lora_rlhf.evaluation.measuring import (
    ColumnsBySystem,
    add_columns,
    add_figures,
    differences_by_name,
    figures_by_name,
    make_group,
    select_prompts,
    system_roles,
)
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
from lora_rlhf.evaluation.tax import block_tokens, encode_choices, guessing_accuracy, measure_tax, pack_text
from lora_rlhf.judges.scores import ScoreJudge, prompt_text
from lora_rlhf.probes.audit import SystemAnswers, audit
from lora_rlhf.probes.bins import POLISH, failures_by_bin, high_reward_flags
from lora_rlhf.stats.bradley_terry import bradley_terry_ratings
from lora_rlhf.stats.win_rates import length_controlled_win_rate, win_rate
from lora_rlhf.system.typed_json import from_json, to_json

log = logging.getLogger("lora_rlhf")

NUM_LENGTHS = 16  # bars of the histogram of lengths


def add_preferences(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds the win rates of all pairs, each system's against the baseline, both also at equal length, and ratings."""
    baseline = evaluation.system_set.baseline
    lengths = {name: [len(answer.ids) for answer in answers] for name, answers in evaluation.answers.items()}

    def length_gaps(first: str, second: str) -> list[int]:
        return [a - b for a, b in zip(lengths[first], lengths[second], strict=True)]

    for pair, outcomes in evaluation.outcomes.items():
        controlled = length_controlled_win_rate(outcomes, length_gaps(*evaluation.system_set.pairs[pair]))
        report.win_rates[pair] = WinRate.from_statistics(win_rate(outcomes), controlled)
    figures: Figures = {"win_rate": {}, "win_rate_length_controlled": {}, "rating": {}}
    paired: Differences = {"win_rate": {}}
    for system, outcomes in evaluation.outcomes_against_baseline().items():
        rate = WinRate.from_statistics(win_rate(outcomes))
        controlled = length_controlled_win_rate(outcomes, length_gaps(system, baseline))
        figures["win_rate"][system] = Figure(rate.rate, rate.low, rate.high, rate.n)
        figures["win_rate_length_controlled"][system] = Figure(*controlled[:4])
        paired["win_rate"][system] = _difference_from_half(rate)
    pairs = {evaluation.system_set.pairs[pair]: outcomes for pair, outcomes in evaluation.outcomes.items()}
    with suppress(ValueError):  # the judge failed on all comparisons of a system
        figures["rating"] = {
            system: Figure.from_floats(*rating) for system, rating in bradley_terry_ratings(pairs, baseline).items()
        }
    add_figures(report, figures, paired)


def add_best_temperatures(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds the same win rates with each system at its best temperature."""
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


def add_answer_figures(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds every figure that was measured on each answer, and its difference from the baseline's."""
    add_columns(report, columns_by_system)


def add_categories(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds the same figures for each category of prompts."""
    if evaluation.categories is None:
        raise LeftOut("the prompts have no category: give them a column, and its name with --category")
    report.categories = _group_figures_by_label(evaluation, columns_by_system, evaluation.categories)


def add_languages(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds the same figures for each language of prompts."""
    if len(set(evaluation.languages)) < 2:
        raise LeftOut(f"all prompts are of one language or script, {evaluation.languages[0]}")
    report.languages = _group_figures_by_label(evaluation, columns_by_system, evaluation.languages)


def add_clusters(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Tests whether the candidate loses more prompts in some category or language."""
    is_lost = [None if outcome is None else float(outcome < 0.5) for outcome in evaluation.outcomes[report.pair]]
    for kind, labels in (("category", evaluation.categories), ("language", evaluation.languages)):
        cluster = None if labels is None else find_cluster(is_lost, labels)
        if cluster is not None:
            report.clusters[kind] = cluster
    if not report.clusters:
        raise LeftOut(f"fewer than two categories or languages have {FEWEST_OF_GROUP} prompts")


def add_probe_figures(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds the share of each failure bin's cases that a system failed, and its difference from the baseline's."""
    failed_cases = _failed_cases(evaluation)
    if not failed_cases:
        raise LeftOut(evaluation.frozen.left_out["probes"])
    bin_columns = {
        name: {bin: Column("share", [float(has_failed) for has_failed in cases]) for bin, cases in bins.items()}
        for name, bins in failed_cases.items()
    }
    add_columns(report, bin_columns)


def add_alignment_tax(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds perplexity on held-out text and accuracy on multiple-choice questions, if there are any."""
    model, config, frozen = evaluation.model, evaluation.config, evaluation.frozen
    text = None if frozen.texts is None else pack_text(model.tokenizer, frozen.texts, block_tokens(model))
    questions: list[EncodedRanking] = []
    if frozen.choices is not None:
        limits = Limits(config.max_prompt_tokens, config.max_response_tokens)
        questions, refused_rows = encode_choices(model.tokenizer, frozen.choices.choices, limits)
        if refused_rows.count:
            log.warning("multiple-choice questions: %s", refused_rows.summary())
    add_columns(report, measure_tax(model, system_roles(evaluation), text, questions, config.micro_batch_size))
    if questions and report.sets.choices is not None:
        report.sets.choices = replace(report.sets.choices, chance=guessing_accuracy(questions))


def add_task_figures(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds every metric of EleutherAI's tasks, by task/metric."""
    if not evaluation.tasks:
        raise LeftOut("no tasks of EleutherAI's harness were asked for: give their names with --lm_eval")
    model, config, role_by_system = evaluation.model, evaluation.config, system_roles(evaluation)
    columns = harness_columns(model, role_by_system, evaluation.tasks, config.micro_batch_size, config.lm_eval_limit)
    paired = differences_by_name(columns, report.baseline)
    report.tasks = {
        name: TaskFigures(figures=row, paired=paired.get(name, {})) for name, row in figures_by_name(columns).items()
    }


def add_reward_record(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds how the reward model orders held-out rankings, and how it orders the answers that the judge compared."""
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
    add_figures(report, {name: {report.candidate: figure} for name, figure in ordering_figures(after).items()}, {})
    report.reward = RewardRecord(before=before, after=to_json(after), change=reward_changes(before, after))


def add_audit(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds the reward-hacking audit: flags, and answers on which reward and judge disagree.

    If the reward model is the judge, no quality of the answers is known, and the flags that need it are left out.
    """
    failed_cases = _failed_cases(evaluation)
    is_judge_independent = evaluation.judge.name != "reward"

    def system_answers(name: str) -> SystemAnswers:
        """The answers of a system with their scores, as far as they are known."""
        values = {
            key: [float(value or 0.0) for value in column.values] for key, column in columns_by_system[name].items()
        }
        is_scored = is_judge_independent and isinstance(evaluation.judge, ScoreJudge)
        return SystemAnswers(
            [answer.text for answer in evaluation.answers[name]],
            quality=values["score"] if is_scored else None,
            rewards=values.get("reward_score"),
            kl=values.get("kl_per_response"),
            failed=failed_cases.get(name, {}),
        )

    other_systems = [system_answers(name) for name in report.systems if name not in (report.candidate, report.baseline)]
    outcomes = evaluation.outcomes[report.pair] if is_judge_independent else None
    prompts = [prompt_text(prompt.prompt) for prompt in evaluation.prompts]
    audit_results = audit(
        prompts, system_answers(report.candidate), system_answers(report.baseline), other_systems, outcomes
    )
    report.audit = from_json(Audit, to_json(audit_results), "audit")


def add_length_histogram(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds a histogram of the answers' lengths in tokens for each system."""
    lengths = {name: [len(answer.ids) for answer in answers] for name, answers in evaluation.answers.items()}
    longest = max(map(max, lengths.values()))
    width = max(1, math.ceil((longest + 1) / NUM_LENGTHS))
    bars = range(longest // width + 1)
    counter_by_system = {name: Counter(length // width for length in values) for name, values in lengths.items()}
    report.lengths = LengthHistogram(
        edges=[width * bar for bar in (*bars, len(bars))],
        counts={name: [counter[bar] for bar in bars] for name, counter in counter_by_system.items()},
    )


# In the order in which they are computed.
SECTIONS: Mapping[str, Callable[[Evaluation, ColumnsBySystem, Report], None]] = {
    "preferences": add_preferences,
    "best_temperature": add_best_temperatures,
    "answers": add_answer_figures,
    "categories": add_categories,
    "languages": add_languages,
    "clusters": add_clusters,
    "probes": add_probe_figures,
    "tools": add_tool_figures,
    "grounding": add_grounding,
    "refusals": add_refusals,
    "tax": add_alignment_tax,
    "tasks": add_task_figures,
    "reward": add_reward_record,
    "audit": add_audit,
    "lengths": add_length_histogram,
}


def fill_report(report: Report, evaluation: Evaluation, columns_by_system: ColumnsBySystem) -> None:
    """Fills in all sections. `left_out` gets the reason for each section that cannot be computed."""
    for name, section in SECTIONS.items():
        with evaluation.measure_time(name):
            try:
                section(evaluation, columns_by_system, report)
            except LeftOut as reason:
                report.left_out[name] = str(reason)


def _failed_cases(evaluation: Evaluation) -> dict[str, dict[str, list[bool]]]:
    """{system: {bin: whether each of its cases failed}}; empty without probes."""
    probe_set = evaluation.frozen.probes
    if probe_set is None:
        return {}
    has_high_reward: Mapping[str, Sequence[bool] | None] = dict.fromkeys(evaluation.system_set.names)
    if evaluation.reward is not None and any(probe.bin == POLISH for probe in probe_set.probes):
        prompts = evaluation.asked["probes"]
        scores = {
            name: evaluation.reward.scores(prompts, answers)
            for name, answers in evaluation.asked_answers["probes"].items()
        }
        has_high_reward = high_reward_flags(scores, probe_set)
    return {
        name: failures_by_bin(probe_set, [answer.text for answer in answers], evaluation.world, has_high_reward[name])
        for name, answers in evaluation.asked_answers["probes"].items()
    }


def _difference_from_half(rate: WinRate) -> Paired:
    """The difference of a win rate from a half, the win rate of two equal systems."""
    if rate.interval is None:
        return Paired(None, None, None, None, 0)
    middle, low, high = rate.interval
    return Paired(middle - 0.5, low - 0.5, high - 0.5, rate.p, rate.n)


def _group_figures_by_label(
    evaluation: Evaluation, columns_by_system: ColumnsBySystem, labels: Sequence[str]
) -> dict[str, Group]:
    """{label: its figures}; a group of under ten prompts has values without intervals or tests."""
    return {
        label: _group_figures(evaluation, columns_by_system, indices)
        for label, indices in group_by_label(labels).items()
    }


def _group_figures(evaluation: Evaluation, columns_by_system: ColumnsBySystem, indices: Sequence[int]) -> Group:
    """The figures over the prompts with these indices."""
    baseline = evaluation.system_set.baseline
    group_columns = select_prompts(evaluation, columns_by_system, indices)
    rates = {
        pair: WinRate.from_statistics(win_rate([outcomes[i] for i in indices]))
        for pair, outcomes in evaluation.outcomes.items()
    }
    figures = figures_by_name(group_columns)
    rates_against_baseline = {
        system: win_rate([outcomes[i] for i in indices])
        for system, outcomes in evaluation.outcomes_against_baseline().items()
    }
    figures["win_rate"] = {
        system: Figure(rate.rate, rate.low, rate.high, rate.n) for system, rate in rates_against_baseline.items()
    }
    return make_group(len(indices), figures, differences_by_name(group_columns, baseline), rates)
