"""Measures every answer: scores, form, variety, refusals, harm, distance from the reference."""

from collections.abc import Mapping, Sequence

from lora_rlhf.evaluation.columns import Column, Columns
from lora_rlhf.evaluation.evaluation import Evaluation
from lora_rlhf.evaluation.policy_figures import answer_columns, measure_distances
from lora_rlhf.evaluation.report_model import Differences, Figures
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
