"""A report as text: short tables for a terminal, and a Markdown page."""

from lora_rlhf.data.refusals import pluralize
from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.evaluation.report_model import Group, Report, WinRate, report_for_markdown
from lora_rlhf.evaluation.seen import seen_warnings
from lora_rlhf.evaluation.wording import change_word, figure_text, judge_text, rate_text, system_text, title_with_unit
from lora_rlhf.render.tables import markdown_table, terminal_table, wrapped
from lora_rlhf.render.wording import name_text, number_text, p_value_text

TERMINAL_FIGURES = ("score", "length", "eos_rate", "distinct_1", "distinct_2", "kl_per_response")  # in the terminal
FILE_GUIDE = """## Where to look

- `report.html`: the same with plots and the answers side by side, for reading; opens offline
- `report.json`: every figure, for programs
- `evaluation_samples.jsonl`: each prompt with every system's response and score
- `report.png`: the plots of the training
- `STAGE/metrics.jsonl`: a stage's training, one row a step
- `STAGE/samples.jsonl`: PPO's responses to fixed prompts over time
- `STAGE/manifest.json`: what a stage was made from, with which versions, and its results"""


def terminal_tables(report: Report) -> str:
    """The result for a terminal: figures of the systems, win rates, facts, questions and the verdict."""
    names = [name for name in TERMINAL_FIGURES if name in report.figures]
    rows = [
        [CATALOGUE[name].title, *(_figure_cell(report, name, system) for system in report.systems)] for name in names
    ]
    figure_table = terminal_table(["", *report.systems], rows)
    best_rates = report.win_rates_best_temperature
    header = ["win rate", "at temperature 1", *(["each at its best"] if best_rates else [])]
    win_rates = [
        [pair.replace("_vs_", " vs "), rate_text(rate), *([rate_text(best_rates[pair])] if best_rates else [])]
        for pair, rate in report.win_rates.items()
    ]
    fact_lines = "\n".join(map(wrapped, _fact_lines(report)))
    questions = "\n".join(map(wrapped, _question_lines(report).splitlines()))
    parts = [figure_table, terminal_table(header, win_rates), fact_lines, questions, wrapped(report.verdict)]
    return "\n\n".join(part for part in parts if part)


def markdown_page(report: Report) -> str:
    """The page report.md. No name, prompt or reason of the report is markup."""
    report = report_for_markdown(report)
    prompts = report.sets.prompts
    sections = [
        f"# Evaluation of {report.config['run']}",
        f"**{report.verdict}**",
        _question_lines(report),
        f"{prompts.used} held-out prompts from `{prompts.path}`, one response of each system to each, compared by "
        f"the {judge_text(report.judge_name)}. Intervals are 95 %; ties count half; p is of the exact sign test over "
        f"the prompts that are not tied. Content of the prompts: `{prompts.content_hash[:16]}`.",
        "![scores, KL, length and losses over training; win rates](report.png)",
        f"## Win rates\n\n{_win_rate_table(report)}",
        f"## Figures\n\n{_figure_table(report)}",
        "\n".join(f"- {fact}" for fact in _fact_lines(report)),
        _flag_section(report),
        _temperature_section(report),
        _group_section(report, report.categories, "category"),
        _group_section(report, report.languages, "language"),
        _domain_section(report),
        _comparison_section(report),
    ]
    if report.left_out:
        lines = (f"- {name_text(name)}: {why}" for name, why in report.left_out.items())
        sections.append("## Not measured\n\n" + "\n".join(lines))
    sections += [f"## Time and memory\n\n{_cost_table(report)}", FILE_GUIDE]
    return "\n\n".join(section for section in sections if section) + "\n"


def _question_lines(report: Report) -> str:
    return "\n".join(f"- {row.question} **{row.answer}**. {row.figure}" for row in report.questions)


def _figure_cell(report: Report, name: str, system: str) -> str:
    """A figure of a system; empty if it was not measured."""
    row = report.figures[name]
    return figure_text(name, row[system]) if system in row else ""


def _figure_table(report: Report) -> str:
    """Every figure of every system; the last column names the candidate's significant changes."""
    rows = []
    for name in (name for name in CATALOGUE if name in report.figures):
        change_text = change_word(name, report.paired.get(name, {}).get(report.candidate))
        rows.append(
            [title_with_unit(name), *(_figure_cell(report, name, system) for system in report.systems), change_text]
        )
    header = ["figure", *report.systems, f"{report.candidate} against {report.baseline}"]
    return markdown_table(header, rows)


def _win_rate_table(report: Report) -> str:
    """A table of the win rates of all pairs, at temperature 1 and at the best temperatures."""
    header = ["win rate", "at temperature 1", "won / tied / lost", "p", "at equal length"]
    best_rates = report.win_rates_best_temperature
    if best_rates:
        header += ["each at its best", "won / tied / lost", "p"]
    rows = [
        [
            *(pair.replace("_vs_", " vs "), *_win_rate_cells(rate), rate_text(rate.length_controlled)),
            *(_win_rate_cells(best_rates[pair]) if best_rates else ()),
        ]
        for pair, rate in report.win_rates.items()
    ]
    return markdown_table(header, rows)


def _win_rate_cells(rate: WinRate) -> tuple[str, str, str]:
    return rate_text(rate), f"{rate.wins} / {rate.ties} / {rate.losses}", p_value_text(rate.p).removeprefix("p ")


def _fact_lines(report: Report) -> list[str]:
    """Warnings, the reward model's accuracy, and raised flags, each in a line."""
    facts = [f"WARNING: {warning_text}" for warning_text in seen_warnings(report)]
    if num_failures := report.judge_failures:
        facts.append(f"WARNING: the judge gave no usable answer on {pluralize(num_failures, 'comparison')}")
    ordering = None if report.reward is None else report.reward.ordering_before
    if ordering is not None and ordering.accuracy is not None and ordering.ece is not None:
        prompts = f" of {pluralize(ordering.held_out_prompts, 'prompt')}" if ordering.held_out_prompts else ""
        pairs = f"{pluralize(ordering.accuracy.n, 'pair')}{prompts}"
        accuracy_text = f"right on {rate_text(ordering.accuracy)} of {pairs}"
        fact = f"reward model on held-out rankings: {accuracy_text}, ECE {ordering.ece:.3f}"
        if ordering.label_agreement is not None:
            fact += f"; labelers agree on {100 * ordering.label_agreement:.1f} %"
        facts.append(fact)
    grounding = report.grounding
    if grounding is not None and grounding.agreement is not None:
        alpha = "" if grounding.alpha is None else f", alpha {grounding.alpha:.2f}"
        agreement = f"{rate_text(grounding.agreement)} of {pluralize(grounding.agreement.n, 'answer')}{alpha}"
        facts.append(f"on what answers say beyond their sources, rules and judge agree on {agreement}")
    flags = report.audit.flags if report.audit else {}
    return facts + [f"AUDIT: {name_text(name)}: {flag.why}" for name, flag in flags.items() if flag.raised]


def _flag_section(report: Report) -> str:
    """The audit's flags with their reasons; empty without an audit."""
    if report.audit is None:
        return ""
    states = {True: "raised", False: "clear", None: "unknown"}
    rows = [[name_text(name), states[flag.raised], flag.why] for name, flag in report.audit.flags.items()]
    return "## Audit\n\n" + markdown_table(["flag", "", "why"], rows)


def _temperature_section(report: Report) -> str:
    """The mean scores from which each system's best temperature was chosen; empty without them."""
    mean_scores, selection = report.temperature_sweep, report.sets.selection
    if not mean_scores or selection is None:
        return ""
    header = ["system", *(f"T {temperature}" for temperature in next(iter(mean_scores.values())))]
    scores = markdown_table(header, [[name, *map(number_text, row.values())] for name, row in mean_scores.items()])
    return (
        f"## Choice of temperature\n\n{scores}\n\n"
        f"Mean {judge_text(report.judge_name)} on {selection.used} other prompts; each system's best is then used on "
        "the prompts above. T 0 is greedy decoding."
    )


def _group_section(report: Report, groups: dict[str, Group], title: str) -> str:
    """The win rate and the scores of each group; empty without groups."""
    rows = []
    for name, group in groups.items():
        scores = group.figures.get("score", {})
        cells = [figure_text("score", scores.get(system)) for system in report.systems]
        rows.append([name, str(group.n), rate_text(group.win_rates.get(report.pair)), *cells])
    header = [title, "prompts", name_text(report.pair), *(f"score, {system}" for system in report.systems)]
    return f"## By {title}\n\n{markdown_table(header, rows)}" if rows else ""


def _domain_section(report: Report) -> str:
    """Over- and under-refusal by domain; empty without domains."""
    names, systems = ("over_refusal", "under_refusal"), (report.baseline, report.candidate)
    rows = [
        [
            *(domain, str(group.n)),
            *(figure_text(name, group.figures.get(name, {}).get(system)) for name in names for system in systems),
        ]
        for domain, group in report.domains.items()
    ]
    header = ["domain", "prompts", *(f"{CATALOGUE[name].title}, {system}" for name in names for system in systems)]
    return f"## Refusals by domain\n\n{markdown_table(header, rows)}" if rows else ""


def _comparison_section(report: Report) -> str:
    """The figures that moved since the earlier report; empty without one."""
    comparison = report.comparison
    if comparison is None:
        return ""
    moved_text = f"{len(comparison.moved)} moved beyond their intervals since `{comparison.with_}`"
    summary = f"## Against the earlier report\n\nOf {comparison.compared} figures, {moved_text}."
    rows = [
        [
            *(CATALOGUE[row.figure].title, system_text(row.system)),
            *(figure_text(row.figure, row.before), figure_text(row.figure, row.after), row.verdict),
        ]
        for row in comparison.moved
    ]
    moved_table = markdown_table(["figure", "system", "then", "now", ""], rows)
    return f"{summary}\n\n{moved_table}" if rows else summary


def _cost_table(report: Report) -> str:
    rows = [[name_text(name), f"{seconds:.1f} s"] for name, seconds in report.seconds.items()]
    rows.append(["peak memory of the process", f"{report.peak_rss_gib:.2f} GiB"])
    rows.append(["peak memory of the GPU", f"{report.peak_gpu_gib:.2f} GiB"])
    return markdown_table(["part", "cost"], rows)
