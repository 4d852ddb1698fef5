"""The sections of a report on sets of their own: tool calls, answers from given texts, and refusals by domain."""

from contextlib import suppress

from lora_rlhf.data.calls import find_call_reader
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.evaluation.evaluation import Evaluation, LeftOut
from lora_rlhf.evaluation.grounding import grounded_cases, measure_grounding, stated_texts
from lora_rlhf.evaluation.groups import group_by_label
from lora_rlhf.evaluation.measuring import (
    ColumnsBySystem,
    add_columns,
    differences_by_name,
    figures_by_name,
    make_group,
    system_roles,
)
from lora_rlhf.evaluation.refusals import refusal_columns, refusal_scores, trade_off
from lora_rlhf.evaluation.report_model import Refusals, Report
from lora_rlhf.evaluation.tool_figures import tool_columns
from lora_rlhf.judges.pairwise import PairwiseJudge


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
    add_columns(
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
    add_columns(report, columns)
    if isinstance(evaluation.judge, PairwiseJudge):
        report.judge |= evaluation.judge.asker.describe()


def add_refusals(evaluation: Evaluation, columns_by_system: ColumnsBySystem, report: Report) -> None:
    """Adds over- and under-refusal, over all prompts and by domain, and each system's trade-off between the two."""
    refusal_set = evaluation.frozen.refusals
    if refusal_set is None:
        raise LeftOut("no prompts that say whether they should be declined: give --refusals FILE")
    cases, prompts, config = refusal_set.cases, evaluation.asked["refusals"], evaluation.config
    texts = {name: [one.text for one in answers] for name, answers in evaluation.asked_answers["refusals"].items()}
    add_columns(report, {name: refusal_columns(cases, answers) for name, answers in texts.items()})
    for domain, places in group_by_label([case.domain for case in cases]).items():
        own_cases = [cases[place] for place in places]
        columns = {name: refusal_columns(own_cases, [answers[i] for i in places]) for name, answers in texts.items()}
        report.domains[domain] = make_group(
            len(places), figures_by_name(columns), differences_by_name(columns, report.baseline), {}
        )
    refuse = [case.refuse for case in cases]
    if len(set(refuse)) == 2:
        curves = {}
        for name, role in system_roles(evaluation).items():
            scores = refusal_scores(evaluation.model, role, prompts, config.refusal_text, config.micro_batch_size)
            curves[name] = trade_off(scores, refuse)
        report.refusals = Refusals(text=config.refusal_text, curves=curves)
