"""Takes every measure of every answer: scores, form, variety, refusals, harm, distance from the reference."""

from collections.abc import Mapping, Sequence

from lora_rlhf.evaluate.columns import Column, Columns
from lora_rlhf.evaluate.contest import Contest
from lora_rlhf.evaluate.figures import Figure, Paired
from lora_rlhf.evaluate.policy_figures import answer_columns, measure_distances
from lora_rlhf.evaluate.scorers import flags
from lora_rlhf.judges.scores import ScoreJudge, prompt_text

Measured = Mapping[str, Columns]  # {system: {figure: its values}}, one value a prompt


def measure(contest: Contest) -> Measured:
    """Everything that is measured on the answers to the prompts."""
    found: dict[str, dict[str, Column]] = {name: {} for name in contest.compared.names}
    for figure, judge in (("score", contest.judge), ("reward_score", contest.reward)):
        if isinstance(judge, ScoreJudge):
            with contest.timed("judging", figure):
                for name, held in contest.answers.items():
                    found[name][figure] = Column("mean", judge.scores(contest.prompts, held))
    asked = [prompt_text(prompt.prompt) for prompt in contest.prompts]
    for figure, scorer in contest.scorers.items():
        with contest.timed("scorers", figure):
            for name, held in contest.answers.items():
                texts = [answer.text for answer in held]
                found[name][figure] = Column("share", flags(figure, scorer, asked, texts))
    with contest.timed("distances"):
        for name, columns in _distances(contest).items():
            found[name] |= columns
    with contest.timed("text"):
        for name, columns in _form(contest, range(len(contest.prompts))).items():
            found[name] |= columns
    return found


def part_of(contest: Contest, measured: Measured, rows: Sequence[int]) -> Measured:
    """The same over some of the prompts; what belongs to all answers together is measured on these alone."""
    form = _form(contest, rows)
    return {
        name: {**{figure: column.of(rows) for figure, column in columns.items()}, **form[name]}
        for name, columns in measured.items()
    }


def figures_of(measured: Measured) -> dict[str, dict[str, Figure]]:
    """{figure: {system: its value with its interval}}."""
    found: dict[str, dict[str, Figure]] = {}
    for system, columns in measured.items():
        for figure, column in columns.items():
            found.setdefault(figure, {})[system] = column.figure()
    return found


def paired_of(measured: Measured, baseline: str) -> dict[str, dict[str, Paired]]:
    """{figure: {system: its difference from the baseline's}}, for the figures that both have."""
    found: dict[str, dict[str, Paired]] = {}
    for system, columns in measured.items():
        for figure in columns.keys() & measured[baseline].keys() if system != baseline else ():
            found.setdefault(figure, {})[system] = columns[figure].against(measured[baseline][figure])
    return found


def _form(contest: Contest, rows: Sequence[int]) -> Measured:
    """What can be told of the ids and the text of these answers alone."""
    asked = [prompt_text(contest.prompts[row].prompt) for row in rows]
    return {name: answer_columns(asked, [held[row] for row in rows]) for name, held in contest.answers.items()}


def _distances(contest: Contest) -> Measured:
    """KL of each system from the role that its run's policy was held to, and its entropy."""
    found: dict[str, Columns] = {}
    systems = contest.compared.systems
    for reference in dict.fromkeys(system.reference for system in systems):
        roles = {system.name: system.role for system in systems if system.reference == reference}
        size = contest.config.micro_batch_size
        found |= measure_distances(contest.model, roles, reference, contest.prompts, contest.answers, size)
    return found
