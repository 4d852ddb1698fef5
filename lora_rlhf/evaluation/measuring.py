"""Measures every answer: scores, form, variety, refusals, harm, distance from the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_rlhf.evaluation.columns import Column, Columns
from lora_rlhf.evaluation.evaluation import Evaluation
from lora_rlhf.evaluation.groups import FEWEST_OF_GROUP
from lora_rlhf.evaluation.policy_figures import answer_columns, measure_distances
from lora_rlhf.evaluation.report_model import Differences, Figures, Group, Report, WinRate
from lora_rlhf.evaluation.scorers import flag_responses
from lora_rlhf.judges.scores import ScoreJudge, prompt_text

ColumnsBySystem = Mapping[str, Columns]  # {system: {figure: a value for each prompt}}


def measure_answers(evaluation: Evaluation) -> ColumnsBySystem:
    """Every figure that is measured on the answers to the prompts."""
    columns_by_system: dict[str, dict[str, Column]] = {name: {} for name in evaluation.system_set.names}
    for figure, judge in (("score", evaluation.judge), ("reward_score", evaluation.reward)):
        if isinstance(judge, ScoreJudge):
            with evaluation.measure_time("judging", figure):
                for name, answers in evaluation.answers.items():
                    columns_by_system[name][figure] = Column("mean", judge.scores(evaluation.prompts, answers))
    prompts = [prompt_text(prompt.prompt) for prompt in evaluation.prompts]
    for figure, scorer in evaluation.scorers.items():
        with evaluation.measure_time("scorers", figure):
            for name, answers in evaluation.answers.items():
                texts = [answer.text for answer in answers]
                columns_by_system[name][figure] = Column("share", flag_responses(figure, scorer, prompts, texts))
    with evaluation.measure_time("distances"):
        for name, columns in _measure_reference_distances(evaluation).items():
            columns_by_system[name] |= columns
    with evaluation.measure_time("text"):
        for name, columns in _measure_form(evaluation, range(len(evaluation.prompts))).items():
            columns_by_system[name] |= columns
    return columns_by_system


def select_prompts(
    evaluation: Evaluation, columns_by_system: ColumnsBySystem, indices: Sequence[int]
) -> ColumnsBySystem:
    """The columns for some of the prompts; figures of several answers together are measured again on these alone."""
    form_columns = _measure_form(evaluation, indices)
    return {
        name: {**{figure: column.select(indices) for figure, column in columns.items()}, **form_columns[name]}
        for name, columns in columns_by_system.items()
    }


def figures_by_name(columns_by_system: ColumnsBySystem) -> Figures:
    """{figure: {system: its value with its interval}}."""
    figures: Figures = {}
    for system, columns in columns_by_system.items():
        for name, column in columns.items():
            figures.setdefault(name, {})[system] = column.figure()
    return figures


def differences_by_name(columns_by_system: ColumnsBySystem, baseline: str) -> Differences:
    """{figure: {system: its difference from the baseline}}, for the figures that both have."""
    differences: Differences = {}
    for system, columns in columns_by_system.items():
        for name, column in columns.items() if system != baseline else ():
            if name in columns_by_system[baseline]:
                differences.setdefault(name, {})[system] = column.paired_difference(columns_by_system[baseline][name])
    return differences


def add_figures(report: Report, figures: Figures, paired: Differences) -> None:
    """Adds figures of the catalogue and their differences from the baseline; figures without systems are left out."""
    report.figures |= {name: row for name, row in figures.items() if row}
    report.paired |= {name: row for name, row in paired.items() if row}


def add_columns(report: Report, columns_by_system: ColumnsBySystem) -> None:
    add_figures(report, figures_by_name(columns_by_system), differences_by_name(columns_by_system, report.baseline))


def system_roles(evaluation: Evaluation) -> dict[str, str]:
    """{system: its role}."""
    return {system.name: system.role for system in evaluation.system_set.systems}


def make_group(n: int, figures: Figures, paired: Differences, rates: dict[str, WinRate]) -> Group:
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


def _measure_form(evaluation: Evaluation, indices: Sequence[int]) -> ColumnsBySystem:
    """The figures that need only the ids and the text of these answers."""
    prompts = [prompt_text(evaluation.prompts[index].prompt) for index in indices]
    return {
        name: answer_columns(prompts, [answers[index] for index in indices])
        for name, answers in evaluation.answers.items()
    }


def _measure_reference_distances(evaluation: Evaluation) -> ColumnsBySystem:
    """KL of each system from the reference of its run's policy, and its entropy."""
    distances: dict[str, Columns] = {}
    systems = evaluation.system_set.systems
    for reference in dict.fromkeys(system.reference for system in systems):
        roles = {system.name: system.role for system in systems if system.reference == reference}
        micro_batch_size = evaluation.config.micro_batch_size
        distances |= measure_distances(
            evaluation.model, roles, reference, evaluation.prompts, evaluation.answers, micro_batch_size
        )
    return distances
