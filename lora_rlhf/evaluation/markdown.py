"""A report as text: the short tables of a terminal, and the Markdown page that a model card can take over."""

from lora_rlhf.data.refusals import counted
from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.evaluation.report_model import Group, Report, WinRate
from lora_rlhf.evaluation.seen import warning
from lora_rlhf.evaluation.wording import change, figure, judge_of, name_of, percent, titled
from lora_rlhf.render.tables import markdown_table
from lora_rlhf.render.wording import number, p_value, words_of

SHORT = ("score", "length", "eos_rate", "distinct_1", "distinct_2", "kl_per_response")  # what a terminal shows
GUIDE = """## Where to look

- `report.html`: the same with plots and the answers side by side, for reading; opens offline
- `report.json`: every figure, for programs
- `evaluation_samples.jsonl`: each prompt with every system's response and score
- `report.png`: the plots of the training
- `STAGE/metrics.jsonl`: a stage's training, one row a step
- `STAGE/samples.jsonl`: PPO's responses to fixed prompts over time
- `STAGE/manifest.json`: what a stage was made from, with which versions, and its results"""


def table(report: Report) -> str:
    """The result in two tables and a few lines: systems and their figures, win rates, the questions and the verdict."""
    names = [name for name in SHORT if name in report.figures]
    rows = [[system, *(_cell(report, name, system) for name in names)] for system in report.systems]
    figures = markdown_table(["system", *(CATALOGUE[name].title for name in names)], rows)
    facts = "\n".join(_facts(report))
    parts = [figures, _win_rates(report), facts, _questions(report), report.verdict]
    return "\n\n".join(part for part in parts if part)


def markdown(report: Report) -> str:
    """The page report.md."""
    prompts = report.sets.prompts
    sections = [
        f"# Evaluation of {report.config['run']}",
        f"**{report.verdict}**",
        _questions(report),
        f"{prompts.used} held-out prompts from `{prompts.path}`, one response of each system to each, compared by "
        f"the {judge_of(report.judge_name)}. Intervals are 95 %; ties count half; p is of the exact sign test over the "
        f"prompts that are not tied. Content of the prompts: `{prompts.content_hash[:16]}`.",
        "![scores, KL, length and losses over training; win rates](report.png)",
        f"## Win rates\n\n{_win_rates(report)}",
        f"## Figures\n\n{_figures(report)}",
        "\n".join(f"- {fact}" for fact in _facts(report)),
        _flags(report),
        _temperatures(report),
        _groups(report, report.categories, "category"),
        _groups(report, report.languages, "language"),
        _comparison(report),
    ]
    if report.left_out:
        lines = (f"- {words_of(name)}: {why}" for name, why in report.left_out.items())
        sections.append("## Not measured\n\n" + "\n".join(lines))
    sections += [f"## Time and memory\n\n{_costs(report)}", GUIDE]
    return "\n\n".join(section for section in sections if section) + "\n"


def _questions(report: Report) -> str:
    return "\n".join(f"- {row.question} **{row.answer}**. {row.figure}" for row in report.questions)


def _cell(report: Report, name: str, system: str) -> str:
    """A figure of a system; empty where it was not measured."""
    row = report.figures[name]
    return figure(name, row[system]) if system in row else ""


def _figures(report: Report) -> str:
    """Every figure of every system; the last column where the candidate's differs from the baseline's for sure."""
    rows = []
    for name in (name for name in CATALOGUE if name in report.figures):
        changed = change(name, report.paired.get(name, {}).get(report.candidate))
        rows.append([titled(name), *(_cell(report, name, system) for system in report.systems), changed])
    header = ["figure", *report.systems, f"{report.candidate} against {report.baseline}"]
    return markdown_table(header, rows)


def _win_rates(report: Report) -> str:
    header = ["win rate", "at temperature 1", "won / tied / lost", "p", "at equal length"]
    best = report.win_rates_best_temperature
    if best:
        header += ["each at its best", "won / tied / lost", "p"]
    rows = [
        [
            *(pair.replace("_vs_", " vs "), *_win_rate(rate), percent(rate.length_controlled)),
            *(_win_rate(best[pair]) if best else ()),
        ]
        for pair, rate in report.win_rates.items()
    ]
    return markdown_table(header, rows)


def _win_rate(rate: WinRate) -> tuple[str, str, str]:
    return percent(rate), f"{rate.wins} / {rate.ties} / {rate.losses}", p_value(rate.p).removeprefix("p ")


def _facts(report: Report) -> list[str]:
    facts = [f"WARNING: {seen}"] if (seen := warning(report.training_data)) else []
    if failures := report.judge_failures:
        facts.append(f"WARNING: the judge gave no usable answer on {counted(failures, 'comparison')}")
    before = None if report.reward is None else report.reward.ordering_before
    if before is not None and before.accuracy is not None and before.ece is not None:
        prompts = f" of {counted(before.held_out_prompts, 'prompt')}" if before.held_out_prompts else ""
        pairs = f"{counted(before.accuracy.n, 'pair')}{prompts}"
        right = f"right on {percent(before.accuracy)} of {pairs}"
        fact = f"reward model on held-out rankings: {right}, ECE {before.ece:.3f}"
        if before.label_agreement is not None:
            fact += f"; labelers agree on {100 * before.label_agreement:.1f} %"
        facts.append(fact)
    flags = report.audit.flags if report.audit else {}
    return facts + [f"AUDIT: {words_of(name)}: {flag.why}" for name, flag in flags.items() if flag.raised]


def _flags(report: Report) -> str:
    if report.audit is None:
        return ""
    states = {True: "raised", False: "clear", None: "unknown"}
    rows = [[words_of(name), states[flag.raised], flag.why] for name, flag in report.audit.flags.items()]
    return "## Audit\n\n" + markdown_table(["flag", "", "why"], rows)


def _temperatures(report: Report) -> str:
    sweep, selection = report.temperature_sweep, report.sets.selection
    if not sweep or selection is None:
        return ""
    header = ["system", *(f"T {temperature}" for temperature in next(iter(sweep.values())))]
    scores = markdown_table(header, [[name, *map(number, row.values())] for name, row in sweep.items()])
    return (
        f"## Choice of temperature\n\n{scores}\n\n"
        f"Mean {judge_of(report.judge_name)} on {selection.used} other prompts; each system's best is then used on the "
        "prompts above. T 0 is greedy decoding."
    )


def _groups(report: Report, groups: dict[str, Group], title: str) -> str:
    rows = []
    for name, group in groups.items():
        scores = group.figures.get("score", {})
        cells = [figure("score", scores.get(system)) for system in report.systems]
        rows.append([name, str(group.n), percent(group.win_rates.get(report.pair)), *cells])
    header = [title, "prompts", words_of(report.pair), *(f"score, {system}" for system in report.systems)]
    return f"## By {title}\n\n{markdown_table(header, rows)}" if rows else ""


def _comparison(report: Report) -> str:
    comparison = report.comparison
    if comparison is None:
        return ""
    moved = f"{len(comparison.moved)} moved beyond their intervals since `{comparison.with_}`"
    summary = f"## Against the earlier report\n\nOf {comparison.compared} figures, {moved}."
    rows = [
        [
            *(CATALOGUE[row.figure].title, name_of(row.system)),
            *(figure(row.figure, row.before), figure(row.figure, row.after), row.verdict),
        ]
        for row in comparison.moved
    ]
    table = markdown_table(["figure", "system", "then", "now", ""], rows)
    return f"{summary}\n\n{table}" if rows else summary


def _costs(report: Report) -> str:
    rows = [[words_of(name), f"{seconds:.1f} s"] for name, seconds in report.seconds.items()]
    rows.append(["peak memory of the process", f"{report.peak_rss_gib:.2f} GiB"])
    rows.append(["peak memory of the GPU", f"{report.peak_gpu_gib:.2f} GiB"])
    return markdown_table(["part", "cost"], rows)
