"""The sections of a report: each a small function that fills in its part of the report."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from lora_rlhf.data.calls import find_call_reader
from lora_rlhf.data.encode import EncodedRanking, Limits
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.evaluation.columns import Column
from lora_rlhf.evaluation.evaluation import Evaluation, LeftOut
from lora_rlhf.evaluation.figures import Figure, Paired
from lora_rlhf.evaluation.grounding import grounded_cases, measure_grounding, stated_texts
from lora_rlhf.evaluation.groups import FEWEST_OF_GROUP, find_cluster, group_by_label
from lora_rlhf.evaluation.harness import harness_columns
from lora_rlhf.evaluation.measuring import ColumnsBySystem, differences_by_name, figures_by_name, select_prompts
from lora_rlhf.evaluation.refusals import refusal_columns, refusal_scores, trade_off
from lora_rlhf.evaluation.report_model import (
    Audit,
    Differences,
    Figures,
    Group,
    LengthHistogram,
    Refusals,
    Report,
    RewardRecord,
    TaskFigures,
    WinRate,
)
from lora_rlhf.evaluation.reward_figures import ordering_figures, ordering_on_answers, reward_changes
from lora_rlhf.evaluation.tax import block_tokens, encode_choices, guessing_accuracy, measure_tax, pack_text
from lora_rlhf.evaluation.tool_figures import tool_columns
from lora_rlhf.judges.pairwise import PairwiseJudge
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
    _add_figures(report, figures, paired)


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
    _add_columns(report, columns_by_system)


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
    _add_columns(report, bin_columns)


def add_tool_figures(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds how often the right tools are called, with the right arguments."""
    rows = evaluation.frozen.tool_rows
    if not rows:
        raise LeftOut("no conversations with tool calls: give --tools FILE")
    try:
        reader = find_call_reader(evaluation.model.tokenizer)
    except BadRow as reason:
        raise LeftOut(str(reason)) from reason
    answers_by_system = evaluation.asked_answers["tools"]
    _add_columns(
        report,
        {
            name: tool_columns(rows, [answer.text for answer in answers], reader)
            for name, answers in answers_by_system.items()
        },
    )


def add_grounding(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds how often answers say what their context, or a tool's result, does not; by rules, and by the judge."""
    cases = grounded_cases({name: [prompt.prompt for prompt in prompts] for name, prompts in evaluation.asked.items()})
    if not cases:
        raise LeftOut("no prompts with a text to answer from: give --grounded FILE, or --tools FILE with results")
    reader = None
    with suppress(BadRow):  # then no answer of this model can be known to call
        reader = find_call_reader(evaluation.model.tokenizer)
    texts_by_system = {
        name: stated_texts([evaluation.asked_answers[case.set_name][name][case.place].text for case in cases], reader)
        for name in report.systems
    }
    columns, report.grounding = measure_grounding(cases, texts_by_system, evaluation.judge, report.candidate)
    _add_columns(report, columns)
    if isinstance(evaluation.judge, PairwiseJudge):
        report.judge |= evaluation.judge.asker.describe()


def add_refusals(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds over- and under-refusal, over all prompts and by domain, and each system's trade-off between the two."""
    refusal_set = evaluation.frozen.refusals
    if refusal_set is None:
        raise LeftOut("no prompts that say whether they should be declined: give --refusals FILE")
    cases, prompts, config = refusal_set.cases, evaluation.asked["refusals"], evaluation.config
    texts = {name: [one.text for one in answers] for name, answers in evaluation.asked_answers["refusals"].items()}
    _add_columns(report, {name: refusal_columns(cases, answers) for name, answers in texts.items()})
    for domain, places in group_by_label([case.domain for case in cases]).items():
        own_cases = [cases[place] for place in places]
        columns = {name: refusal_columns(own_cases, [answers[i] for i in places]) for name, answers in texts.items()}
        report.domains[domain] = _make_group(
            len(places), figures_by_name(columns), differences_by_name(columns, report.baseline), {}
        )
    refuse = [case.refuse for case in cases]
    if len(set(refuse)) == 2:
        curves = {}
        for name, role in _role_by_system(evaluation).items():
            scores = refusal_scores(evaluation.model, role, prompts, config.refusal_text, config.micro_batch_size)
            curves[name] = trade_off(scores, refuse)
        report.refusals = Refusals(text=config.refusal_text, curves=curves)


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
    _add_columns(report, measure_tax(model, _role_by_system(evaluation), text, questions, config.micro_batch_size))
    if questions and report.sets.choices is not None:
        report.sets.choices = replace(report.sets.choices, chance=guessing_accuracy(questions))


def add_task_figures(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds every metric of EleutherAI's tasks, by task/metric."""
    if not evaluation.tasks:
        raise LeftOut("no tasks of EleutherAI's harness were asked for: give their names with --lm_eval")
    model, config, role_by_system = evaluation.model, evaluation.config, _role_by_system(evaluation)
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
    _add_figures(report, {name: {report.candidate: figure} for name, figure in ordering_figures(after).items()}, {})
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


def _add_figures(report: Report, figures: Figures, paired: Differences) -> None:
    """Adds figures of the catalogue and their differences from the baseline; figures without systems are left out."""
    report.figures |= {name: row for name, row in figures.items() if row}
    report.paired |= {name: row for name, row in paired.items() if row}


def _add_columns(report: Report, columns_by_system: ColumnsBySystem) -> None:
    _add_figures(report, figures_by_name(columns_by_system), differences_by_name(columns_by_system, report.baseline))


def _role_by_system(evaluation: Evaluation) -> dict[str, str]:
    """{system: its role}."""
    return {system.name: system.role for system in evaluation.system_set.systems}


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
    return _make_group(len(indices), figures, differences_by_name(group_columns, baseline), rates)


def _make_group(n: int, figures: Figures, paired: Differences, rates: dict[str, WinRate]) -> Group:
    """The group of n prompts; under ten it has values without intervals or tests."""
    if n >= FEWEST_OF_GROUP:
        return Group(n=n, figures=figures, paired=paired, win_rates=rates)
    return Group(
        n=n,
        figures={
            name: {system: replace(figure, low=None, high=None) for system, figure in row.items()}
            for name, row in figures.items()
        },
        win_rates={pair: replace(rate, low=None, high=None, p=None) for pair, rate in rates.items()},
        too_few=FEWEST_OF_GROUP,
    )
