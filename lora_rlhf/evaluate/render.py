"""A report as text: the tables that a terminal and a Markdown page both show."""

from collections.abc import Sequence
from typing import Any

from lora_rlhf.data.refusals import counted
from lora_rlhf.evaluate.metrics import percent
from lora_rlhf.evaluate.seen import warning

JUDGES = {"gold": "gold score", "reward_score": "reward model's score"}


def table(report: dict[str, Any]) -> str:
    """The result in two tables and a few lines: stages and their figures, win rates, KL and the verdict."""
    parts = [_stages(report), _win_rates(report)]
    if facts := _facts(report):
        parts.append("\n".join(facts))
    return "\n\n".join([*parts, report["verdict"]])


def markdown(report: dict[str, Any]) -> str:
    """The page report.md."""
    name = JUDGES[report["judge"]]
    counts = report["prompts"]
    sections = [
        f"# Evaluation of {report['config']['run']}",
        f"**{report['verdict']}**",
        f"{counts['used']} held-out prompts from `{report['config']['prompts']}`, one response of each stage to each, "
        f"judged by the {name}. Intervals are 95 %; ties count half; p is of the exact sign test over the prompts that "
        "are not tied.",
        "![scores, KL, length and losses over training; win rates](report.png)",
        "## Stages\n\n" + _stages(report),
        "## Win rates\n\n" + _win_rates(report),
    ]
    if facts := _facts(report):
        sections.append("\n".join(f"- {fact}" for fact in facts))
    if "temperature_sweep" in report:
        sections.append(f"## Choice of temperature\n\n{_sweep(report)}\n\n{_sweep_note(report)}")
    if "by_use_case" in report:
        sections.append(f"## Mean {name} by use case\n\n{_use_cases(report)}")
    sections += ["## Time and memory\n\n" + _costs(report), "## Where to look\n\n" + _guide()]
    return "\n\n".join(sections) + "\n"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def _stages(report: dict[str, Any]) -> str:
    judge = report["judge"]
    best = report.get("best_temperature")
    header = ["stage", JUDGES[judge], "tokens", "ended", "distinct-1", "distinct-2"]
    if best:
        header[2:2] = ["best T", "score at best T"]
    rows = []
    for stage in report["stages"]:
        row = [stage, _mean(report[judge][stage])]
        if best:
            row += [f"{best[stage]:g}", _mean(report[f"{judge}_best_temperature"][stage])]
        row += [f"{report['length'][stage]:.1f}", f"{100 * report['eos_rate'][stage]:.1f} %"]
        rows.append(row + [_number(report["distinct"][stage][key]) for key in ("distinct_1", "distinct_2")])
    return grid(header, rows)


def _win_rates(report: dict[str, Any]) -> str:
    header = ["win rate", "at temperature 1", "won / tied / lost", "p"]
    best = report.get("win_rate_best_temperature")
    if best:
        header += ["each at its best", "won / tied / lost", "p"]
    rows = []
    for pair, rate in report["win_rate"].items():
        rows.append([pair.replace("_", " "), *_win_rate(rate), *(_win_rate(best[pair]) if best else [])])
    return grid(header, rows)


def _win_rate(rate: dict[str, Any]) -> list[str]:
    p = "< 0.001" if rate["p"] < 0.001 else f"{rate['p']:.3f}"
    return [percent(rate), f"{rate['wins']} / {rate['ties']} / {rate['losses']}", p]


def _facts(report: dict[str, Any]) -> list[str]:
    facts = [f"WARNING: {told}"] if (told := warning(report["training_data"])) else []
    if "kl" in report:
        kl = report["kl"]
        facts.append(
            f"KL of the policy from {kl['reference']}: {_mean(kl['policy_reference'])} nats a response, "
            f"{kl['k3_per_token']:.4f} a token (k3)"
        )
    reward = report.get("reward", {})
    if "accuracy" in reward:
        accuracy, prompts = reward["accuracy"], reward.get("held_out_prompts")
        pairs = counted(accuracy["n"], "pair") + (f" of {counted(prompts, 'prompt')}" if prompts else "")
        fact = f"reward model on held-out rankings: right on {percent(accuracy)} of {pairs}, ECE {reward['ece']:.3f}"
        if reward.get("label_agreement") is not None:
            fact += f"; labelers agree on {100 * reward['label_agreement']:.1f} %"
        facts.append(fact)
    return facts


def _sweep(report: dict[str, Any]) -> str:
    temperatures = report["config"]["temperatures"]
    header = ["stage", *(f"T {temperature:g}" for temperature in temperatures)]
    rows = [[stage, *map(_number, means.values())] for stage, means in report["temperature_sweep"].items()]
    return grid(header, rows)


def _sweep_note(report: dict[str, Any]) -> str:
    return (
        f"Mean {JUDGES[report['judge']]} on {report['prompts']['selection']} other prompts; each stage's best is then "
        "used on the prompts above. T 0 is greedy decoding."
    )


def _use_cases(report: dict[str, Any]) -> str:
    rows = []
    for case, row in report["by_use_case"].items():
        rows.append([case, str(row["n"]), *(_number(row[stage]) for stage in report["stages"])])
    return grid(["use case", "prompts", *report["stages"]], rows)


def _costs(report: dict[str, Any]) -> str:
    rows = [[name.replace("_", " "), f"{seconds:.1f} s"] for name, seconds in report["seconds"].items()]
    rows.append(["peak memory of the process", f"{report['peak_rss_gib']:.2f} GiB"])
    rows.append(["peak memory of the GPU", f"{report['peak_gpu_gib']:.2f} GiB"])
    return grid(["part", "cost"], rows)


def _guide() -> str:
    rows = [
        ["report.json", "every figure above, for programs"],
        ["evaluation_samples.jsonl", "each prompt with every stage's response and score"],
        ["report.png", "the plots"],
        ["STAGE/metrics.jsonl", "a stage's training, one row a step"],
        ["STAGE/samples.jsonl", "PPO's responses to fixed prompts over time"],
        ["STAGE/manifest.json", "what a stage was made from, with which versions, and its results"],
    ]
    return "\n".join(f"- `{name}`: {what}" for name, what in rows)


def _mean(interval: dict[str, Any]) -> str:
    return f"{interval['mean']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
