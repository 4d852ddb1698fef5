"""The evaluation in a model card: how it was made, what was found, and everything that got worse."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.evaluation.figures import CATALOGUE, Figure
from lora_rlhf.evaluation.report_model import Flag, Report
from lora_rlhf.exporting.lineage import Lineage
from lora_rlhf.exporting.markdown import bullets, plain, short
from lora_rlhf.render.tables import markdown_table
from lora_rlhf.render.wording import capital

SURE = 0.05  # the p-value below which a figure counts as having moved
JUDGES = {
    "gold": "the exact score of the tiny world, which training never saw",
    "reward": "the run's own reward model, which the policy was trained to please",
    "human": "people",
    "local": "a chat model on the same machine",
    "endpoint": "a chat model behind an API",
}
OF_REWARD_MODEL = ("reward_accuracy", "reward_ece", "reward_length_correlation")


def evaluation(facts: Mapping[str, Any], lineage: Lineage) -> str:
    """The section. An evaluation of another model than the exported one is not shown as its own."""
    report, role = lineage.report, facts["role"]
    if report is None:
        return "## Evaluation\n\nThe run had no evaluation that can be read here when this was exported.\n"
    if BY_ROLE[role].scores:
        return _of_reward_model(report)
    system = report.systems.get(role)
    if system is None or system.id != facts["source"]["id"]:
        why = "this model was not part of it" if system is None else "it was made before this model was trained"
        return f"## Evaluation\n\nThe run's evaluation is left out: {why}.\n"
    is_candidate = role == report.candidate
    parts = ["## Evaluation\n"]
    if is_candidate:
        parts.append(f"{plain(report.verdict)}\n")
    parts += [_how(report), _table(report, tuple(CATALOGUE))]
    if role != report.baseline:
        parts += [f"### Worse than {plain(report.baseline)}\n", _worse(report, role)]
    if is_candidate:
        answers = (f"{plain(q.question)} **{capital(q.answer)}.** {plain(q.figure)}" for q in report.questions)
        parts += ["### Questions\n", bullets(answers)]
        if report.audit is not None and report.audit.flags:
            parts += ["### Reward hacking\n", bullets(_flags(list(report.audit.flags.values())))]
    return "\n".join(parts)


def _of_reward_model(report: Report) -> str:
    table = _table(report, OF_REWARD_MODEL)
    if not table:
        return "## Evaluation\n\nThe run's evaluation has no figures of the reward model.\n"
    origin = f"On answers of `{plain(report.candidate)}` and `{plain(report.baseline)}`, after the update."
    return f"## Evaluation\n\n{origin}\n\n{table}"


def _how(report: Report) -> str:
    """On what, by whom, and how to read the table."""
    prompts, data = report.sets.prompts, report.training_data
    judge = JUDGES.get(report.judge_name, plain(report.judge_name))
    if report.judge.get("model") is not None:
        judge += f", {short(report.judge['model'])}"
    seen = "" if data.seen is None or data.prompts is None else f", of which training had seen {data.seen:,}"
    return (
        f"{prompts.used} prompts (`{short(prompts.path)}`){seen}. Judge: {judge}. "
        f"Win rates, rating and p-values are against `{plain(report.baseline)}`. In brackets: 95 % intervals.\n"
    )


def _table(report: Report, names: Sequence[str]) -> str:
    """A row for each figure that was measured; empty without any."""
    rows = []
    for name in names:
        row, measure = report.figures.get(name), CATALOGUE[name]
        if row is not None:
            cells = (_figure(row.get(system)) for system in report.systems)
            better = "" if measure.better == "neither" else measure.better
            rows.append((measure.title, measure.unit, *cells, better, measure.meaning))
    header = ("figure", "unit", *map(plain, report.systems), "better", "what it is")
    return f"{markdown_table(header, rows, aligned=False)}\n" if rows else ""


def _figure(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return ""
    return f"{figure.value:.3g}" if figure.interval is None else "{:.3g} ({:.3g} to {:.3g})".format(*figure.interval)


def _worse(report: Report, system: str) -> str:
    compared, lines = 0, []
    for name, row in report.paired.items():
        paired, measure = row.get(system), CATALOGUE[name]
        if paired is None or paired.difference is None or paired.p is None or measure.better == "neither":
            continue
        compared += 1
        if (paired.difference < 0) == (measure.better == "higher") and paired.p < SURE:
            figures = report.figures.get(name, {})
            before, after = (_figure(figures.get(side)) for side in (report.baseline, system))
            values = f", from {before} to {after}" if before and after else ""
            lines.append(f"{measure.title}, by {abs(paired.difference):.3g} (p {paired.p:.2g}){values}")
    if not lines:
        return f"Of {compared} figures, none is worse further than chance explains (p below {SURE:g}).\n"
    return f"Further than chance explains (p below {SURE:g}), {len(lines)} of {compared} figures:\n\n{bullets(lines)}"


def _flags(flags: Sequence[Flag]) -> Iterator[str]:
    """Those that were raised, and how many were not."""
    raised = [flag for flag in flags if flag.raised]
    for flag in raised:
        yield f"A sign of it: {plain(flag.why)}"
    unknown = sum(flag.raised is None for flag in flags)
    rest = f", {unknown} could not be told" if unknown else ""
    yield f"{len(raised)} of {len(flags)} signs were found{rest}."
