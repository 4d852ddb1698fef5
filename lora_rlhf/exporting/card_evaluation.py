"""The evaluation in a model card: how it was made, its figures, and all figures that got worse."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.evaluation.figures import CATALOGUE, Figure
from lora_rlhf.evaluation.report_model import Flag, Report
from lora_rlhf.exporting.lineage import Lineage
from lora_rlhf.exporting.markdown import bullet_list, short_text
from lora_rlhf.render.tables import markdown_table
from lora_rlhf.render.wording import capitalize_first
from lora_rlhf.system.shown_text import for_markdown

SIGNIFICANCE = 0.05  # a difference with a smaller p-value counts as real
JUDGE_DESCRIPTIONS = {
    "gold": "the exact score of the tiny world, which training never saw",
    "reward": "the run's own reward model, which the policy was trained to please",
    "human": "people",
    "local": "a chat model on the same machine",
    "endpoint": "a chat model behind an API",
}
REWARD_MODEL_FIGURES = ("reward_accuracy", "reward_ece", "reward_length_correlation")


def evaluation_section(facts: Mapping[str, Any], lineage: Lineage) -> str:
    """The section. An evaluation of another model than the exported one is left out."""
    report, role = lineage.report, facts["role"]
    if report is None:
        return "## Evaluation\n\nThe run had no evaluation that can be read here when this was exported.\n"
    if BY_ROLE[role].scores:
        return _reward_model_section(report)
    system = report.systems.get(role)
    if system is None or system.id != facts["source"]["id"]:
        why = "this model was not part of it" if system is None else "it was made before this model was trained"
        return f"## Evaluation\n\nThe run's evaluation is left out: {why}.\n"
    is_candidate = role == report.candidate
    parts = ["## Evaluation\n"]
    if is_candidate:
        parts.append(f"{for_markdown(report.verdict)}\n")
    parts += [_method_paragraph(report), _figure_table(report, tuple(CATALOGUE))]
    if role != report.baseline:
        parts += [f"### Worse than {for_markdown(report.baseline)}\n", _worse_section(report, role)]
    if is_candidate:
        answers = (
            f"{for_markdown(q.question)} **{capitalize_first(q.answer)}.** {for_markdown(q.figure)}"
            for q in report.questions
        )
        parts += ["### Questions\n", bullet_list(answers)]
        if report.audit is not None and report.audit.flags:
            parts += ["### Reward hacking\n", bullet_list(_flag_lines(list(report.audit.flags.values())))]
    return "\n".join(parts)


def _reward_model_section(report: Report) -> str:
    """The section of a reward model's card."""
    table = _figure_table(report, REWARD_MODEL_FIGURES)
    if not table:
        return "## Evaluation\n\nThe run's evaluation has no figures of the reward model.\n"
    origin = (
        f"On answers of `{for_markdown(report.candidate)}` and `{for_markdown(report.baseline)}`, after the update."
    )
    return f"## Evaluation\n\n{origin}\n\n{table}"


def _method_paragraph(report: Report) -> str:
    """The prompts, the judge, and how to read the table."""
    prompts, data = report.sets.prompts, report.training_data
    judge = JUDGE_DESCRIPTIONS.get(report.judge_name, for_markdown(report.judge_name))
    if report.judge.get("model") is not None:
        judge += f", {short_text(report.judge['model'])}"
    seen_text = "" if data.seen is None or data.prompts is None else f", of which training had seen {data.seen:,}"
    return (
        f"{prompts.used} prompts (`{short_text(prompts.path)}`){seen_text}. Judge: {judge}. "
        f"Win rates, rating and p-values are against `{for_markdown(report.baseline)}`. In brackets: 95 % intervals.\n"
    )


def _figure_table(report: Report, names: Sequence[str]) -> str:
    """A table with a row for each measured figure; empty if none was measured."""
    rows = []
    for name in names:
        figures, entry = report.figures.get(name), CATALOGUE[name]
        if figures is not None:
            values = (_figure_text(figures.get(system)) for system in report.systems)
            better = "" if entry.better == "neither" else entry.better
            rows.append((entry.title, entry.unit, *values, better, entry.meaning))
    header = ("figure", "unit", *map(for_markdown, report.systems), "better", "what it is")
    return f"{markdown_table(header, rows, aligned=False)}\n" if rows else ""


def _figure_text(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return ""
    return f"{figure.value:.3g}" if figure.interval is None else "{:.3g} ({:.3g} to {:.3g})".format(*figure.interval)


def _worse_section(report: Report, system: str) -> str:
    """The figures of a system that are significantly worse than the baseline's."""
    num_compared, lines = 0, []
    for name, row in report.paired.items():
        paired, entry = row.get(system), CATALOGUE[name]
        if paired is None or paired.difference is None or paired.p is None or entry.better == "neither":
            continue
        num_compared += 1
        if (paired.difference < 0) == (entry.better == "higher") and paired.p < SIGNIFICANCE:
            figures = report.figures.get(name, {})
            baseline_text, system_text = (_figure_text(figures.get(side)) for side in (report.baseline, system))
            change_text = f", from {baseline_text} to {system_text}" if baseline_text and system_text else ""
            lines.append(f"{entry.title}, by {abs(paired.difference):.3g} (p {paired.p:.2g}){change_text}")
    if not lines:
        return f"Of {num_compared} figures, none is worse further than chance explains (p below {SIGNIFICANCE:g}).\n"
    summary = f"Further than chance explains (p below {SIGNIFICANCE:g}), {len(lines)} of {num_compared} figures"
    return f"{summary}:\n\n{bullet_list(lines)}"


def _flag_lines(flags: Sequence[Flag]) -> Iterator[str]:
    """Yields a line for each raised flag, then how many flags were raised or could not be computed."""
    raised = [flag for flag in flags if flag.raised]
    for flag in raised:
        yield f"A sign of it: {for_markdown(flag.why)}"
    num_unknown = sum(flag.raised is None for flag in flags)
    unknown_text = f", {num_unknown} could not be told" if num_unknown else ""
    yield f"{len(raised)} of {len(flags)} signs were found{unknown_text}."
