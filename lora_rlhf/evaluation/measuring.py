"""Takes every measure of every answer: scores, form, variety, refusals, harm, distance from the reference."""

from collections.abc import Mapping, Sequence

from lora_rlhf.evaluation.columns import Column, Columns
from lora_rlhf.evaluation.evaluation import Evaluation
from lora_rlhf.evaluation.policy_figures import answer_columns, measure_distances
from lora_rlhf.evaluation.report_model import Differences, Figures
from lora_rlhf.evaluation.scorers import flags
from lora_rlhf.judges.scores import ScoreJudge, prompt_text

Measured = Mapping[str, Columns]  # {system: {figure: its values}}, one value a prompt


def measure(evaluation: Evaluation) -> Measured:
    """Everything that is measured on the answers to the prompts."""
    measured: dict[str, dict[str, Column]] = {name: {} for name in evaluation.compared.names}
    for figure, judge in (("score", evaluation.judge), ("reward_score", evaluation.reward)):
        if isinstance(judge, ScoreJudge):
            with evaluation.timed("judging", figure):
                for name, answers in evaluation.answers.items():
                    measured[name][figure] = Column("mean", judge.scores(evaluation.prompts, answers))
    prompts = [prompt_text(prompt.prompt) for prompt in evaluation.prompts]
    for figure, scorer in evaluation.scorers.items():
        with evaluation.timed("scorers", figure):
            for name, answers in evaluation.answers.items():
                texts = [answer.text for answer in answers]
                measured[name][figure] = Column("share", flags(figure, scorer, prompts, texts))
    with evaluation.timed("distances"):
        for name, columns in _distances(evaluation).items():
            measured[name] |= columns
    with evaluation.timed("text"):
        for name, columns in _form(evaluation, range(len(evaluation.prompts))).items():
            measured[name] |= columns
    return measured


def part_of(evaluation: Evaluation, measured: Measured, rows: Sequence[int]) -> Measured:
    """The same over some of the prompts; what belongs to all answers together is measured on these alone."""
    form = _form(evaluation, rows)
    return {
        name: {**{figure: column.of(rows) for figure, column in columns.items()}, **form[name]}
        for name, columns in measured.items()
    }


def figures_of(measured: Measured) -> Figures:
    """Every figure with its interval."""
    figures: Figures = {}
    for system, columns in measured.items():
        for name, column in columns.items():
            figures.setdefault(name, {})[system] = column.figure()
    return figures


def paired_of(measured: Measured, baseline: str) -> Differences:
    """Every system's differences from the baseline, for the figures that both have."""
    paired: Differences = {}
    for system, columns in measured.items():
        for name, column in columns.items() if system != baseline else ():
            if name in measured[baseline]:
                paired.setdefault(name, {})[system] = column.against(measured[baseline][name])
    return paired


def _form(evaluation: Evaluation, rows: Sequence[int]) -> Measured:
    """What can be told of the ids and the text of these answers alone."""
    prompts = [prompt_text(evaluation.prompts[row].prompt) for row in rows]
    return {
        name: answer_columns(prompts, [answers[row] for row in rows]) for name, answers in evaluation.answers.items()
    }


def _distances(evaluation: Evaluation) -> Measured:
    """KL of each system from the role that its run's policy was held to, and its entropy."""
    distances: dict[str, Columns] = {}
    systems = evaluation.compared.systems
    for reference in dict.fromkeys(system.reference for system in systems):
        roles = {system.name: system.role for system in systems if system.reference == reference}
        size = evaluation.config.micro_batch_size
        distances |= measure_distances(evaluation.model, roles, reference, evaluation.prompts, evaluation.answers, size)
    return distances
