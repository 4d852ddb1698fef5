"""A report as text: the short tables of a terminal, and the Markdown page that a model card can take over."""

from collections.abc import Sequence
from typing import Any

from lora_rlhf.data.refusals import counted
from lora_rlhf.evaluate.figures import CATALOGUE
from lora_rlhf.evaluate.seen import warning
from lora_rlhf.evaluate.wording import JUDGES, NOTHING, change, figure, name_of, number, p_value, percent, titled

SHORT = ("score", "length", "eos_rate", "distinct_1", "distinct_2", "kl_per_response")  # what a terminal shows


def table(report: dict[str, Any]) -> str:
    """The result in two tables and a few lines: systems and their figures, win rates, the questions and the verdict."""
    names = [name for name in SHORT if name in report["figures"]]
    rows = []
    for system in report["systems"]:
        there = [report["figures"][name].get(system) for name in names]
        rows.append([system, *("" if row is None else figure(n, row) for n, row in zip(names, there, strict=True))])
    parts = [grid(["system", *(CATALOGUE[name].title for name in names)], rows), _win_rates(report)]
    if facts := _facts(report):
        parts.append("\n".join(facts))
    return "\n\n".join([*parts, _questions(report), report["verdict"]])


def markdown(report: dict[str, Any]) -> str:
    """The page report.md."""
    counts, judge = report["sets"]["prompts"], report["judge"]["name"]
    sections = [
        f"# Evaluation of {report['config']['run']}",
        f"**{report['verdict']}**",
        _questions(report),
        f"{counts['used']} held-out prompts from `{counts['path']}`, one response of each system to each, compared by "
        f"the {JUDGES.get(judge, judge)}. Intervals are 95 %; ties count half; p is of the exact sign test over the "
        f"prompts that are not tied. Content of the prompts: `{counts['content_hash'][:16]}`.",
        "![scores, KL, length and losses over training; win rates](report.png)",
        "## Win rates\n\n" + _win_rates(report),
        "## Figures\n\n" + _figures(report),
    ]
    if facts := _facts(report):
        sections.append("\n".join(f"- {fact}" for fact in facts))
    if "audit" in report:
        sections.append("## Audit\n\n" + _flags(report))
    if "temperature_sweep" in report:
        sections.append(f"## Choice of temperature\n\n{_sweep(report)}\n\n{_sweep_note(report)}")
    for key, title in (("categories", "category"), ("languages", "language")):
        if key in report:
            sections.append(f"## By {title}\n\n{_groups(report, key, title)}")
    if "comparison" in report:
        sections.append("## Against the earlier report\n\n" + _comparison(report))
    if report["left_out"]:
        lines = (f"- {name.replace('_', ' ')}: {why}" for name, why in report["left_out"].items())
        sections.append("## Not measured\n\n" + "\n".join(lines))
    sections += ["## Time and memory\n\n" + _costs(report), "## Where to look\n\n" + _guide()]
    return "\n\n".join(sections) + "\n"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; the first column to the left, the others to the right."""
    rows = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def _questions(report: dict[str, Any]) -> str:
    lines = (f"- {row['question']} **{row['answer']}**. {row['figure']}" for row in report["questions"])
    return "\n".join(lines)


def _figures(report: dict[str, Any]) -> str:
    """Every figure of every system; the last column where the candidate's differs from the baseline's for sure."""
    systems, rows = list(report["systems"]), []
    for name in (name for name in CATALOGUE if name in report["figures"]):
        row = report["figures"][name]
        paired = report["paired"].get(name, {}).get(report["candidate"])
        cells = [figure(name, row[system]) if system in row else "" for system in systems]
        rows.append([titled(name), *cells, change(name, paired)])
    return grid(["figure", *systems, f"{report['candidate']} against {report['baseline']}"], rows)


def _win_rates(report: dict[str, Any]) -> str:
    header = ["win rate", "at temperature 1", "won / tied / lost", "p", "at equal length"]
    best = report.get("win_rates_best_temperature")
    if best:
        header += ["each at its best", "won / tied / lost", "p"]
    rows = []
    for pair, rate in report["win_rates"].items():
        controlled = rate.get("length_controlled")
        cells = [*_win_rate(rate), percent(controlled) if controlled else NOTHING]
        rows.append([pair.replace("_vs_", " vs "), *cells, *(_win_rate(best[pair]) if best else [])])
    return grid(header, rows)


def _win_rate(rate: dict[str, Any]) -> list[str]:
    won = f"{rate['wins']} / {rate['ties']} / {rate['losses']}"
    return [percent(rate), won, p_value(rate["p"]).removeprefix("p ")]


def _facts(report: dict[str, Any]) -> list[str]:
    facts = [f"WARNING: {told}"] if (told := warning(report["training_data"])) else []
    if failures := report["judge"].get("failures"):
        facts.append(f"WARNING: the judge gave no usable answer on {counted(failures, 'comparison')}")
    before = report.get("reward", {}).get("before", {})
    if "accuracy" in before:
        accuracy, prompts = before["accuracy"], before.get("held_out_prompts")
        pairs = counted(accuracy["n"], "pair") + (f" of {counted(prompts, 'prompt')}" if prompts else "")
        fact = f"reward model on held-out rankings: right on {percent(accuracy)} of {pairs}, ECE {before['ece']:.3f}"
        if before.get("label_agreement") is not None:
            fact += f"; labelers agree on {100 * before['label_agreement']:.1f} %"
        facts.append(fact)
    flags = report.get("audit", {}).get("flags", {})
    facts += [f"AUDIT: {name.replace('_', ' ')}: {flag['why']}" for name, flag in flags.items() if flag["raised"]]
    return facts


def _flags(report: dict[str, Any]) -> str:
    said = {True: "raised", False: "clear"}
    flags = report["audit"]["flags"].items()
    return grid(
        ["flag", "", "why"],
        [[name.replace("_", " "), said.get(flag["raised"], "unknown"), flag["why"]] for name, flag in flags],
    )


def _sweep(report: dict[str, Any]) -> str:
    header = ["system", *(f"T {t}" for t in next(iter(report["temperature_sweep"].values())))]
    return grid(header, [[name, *map(number, means.values())] for name, means in report["temperature_sweep"].items()])


def _sweep_note(report: dict[str, Any]) -> str:
    return (
        f"Mean {JUDGES[report['judge']['name']]} on {report['sets']['selection']['used']} other prompts; each system's "
        "best is then used on the prompts above. T 0 is greedy decoding."
    )


def _groups(report: dict[str, Any], key: str, title: str) -> str:
    pair, systems = f"{report['candidate']}_vs_{report['baseline']}", list(report["systems"])
    rows = []
    for name, group in report[key].items():
        score = group["figures"].get("score", {})
        scores = [figure("score", score[system]) if system in score else NOTHING for system in systems]
        rows.append([name, str(group["n"]), percent(group["win_rates"][pair]), *scores])
    return grid([title, "prompts", pair.replace("_", " "), *(f"score, {system}" for system in systems)], rows)


def _comparison(report: dict[str, Any]) -> str:
    found = report["comparison"]
    told = (
        f"Of {found['compared']} figures, {len(found['moved'])} moved beyond their intervals since `{found['with']}`."
    )
    if not found["moved"]:
        return told
    rows = [
        [
            *(CATALOGUE[row["figure"]].title, name_of(row["system"])),
            *(figure(row["figure"], row[when]) for when in ("before", "after")),
            row["verdict"],
        ]
        for row in found["moved"]
    ]
    return told + "\n\n" + grid(["figure", "system", "then", "now", ""], rows)


def _costs(report: dict[str, Any]) -> str:
    rows = [[name.replace("_", " "), f"{seconds:.1f} s"] for name, seconds in report["seconds"].items()]
    rows.append(["peak memory of the process", f"{report['peak_rss_gib']:.2f} GiB"])
    rows.append(["peak memory of the GPU", f"{report['peak_gpu_gib']:.2f} GiB"])
    return grid(["part", "cost"], rows)


def _guide() -> str:
    rows = [
        ["report.html", "the same with plots and the answers side by side, for reading; opens offline"],
        ["report.json", "every figure, for programs"],
        ["evaluation_samples.jsonl", "each prompt with every system's response and score"],
        ["report.png", "the plots of the training"],
        ["STAGE/metrics.jsonl", "a stage's training, one row a step"],
        ["STAGE/samples.jsonl", "PPO's responses to fixed prompts over time"],
        ["STAGE/manifest.json", "what a stage was made from, with which versions, and its results"],
    ]
    return "\n".join(f"- `{name}`: {what}" for name, what in rows)
