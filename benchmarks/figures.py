"""Writes the figures of the committed results into README.md and docs/*.md.

    python benchmarks/figures.py

A figure stands between `<!-- figure NAME -->` and `<!-- /figure -->`: within a line, or, a table, on lines of its own.
Change a figure's formula here and the sentence around it there. Never edit the text between the markers.
"""

import json
import re
from pathlib import Path
from statistics import fmean, median
from typing import Any

import feedback_figures
import methods_report
from figure_text import rate_text, table

from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.report import models_table_markdown

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FIGURE = re.compile(r"<!-- figure (\w+) -->(.*?)<!-- /figure -->", re.DOTALL)
CONTROLS = {
    "shuffled": "reward model of shuffled labels, with the real scale",
    "flipped": "sign-flipped reward, 15 iterations",
    "kl_free": "no KL price, 60 iterations",
    "kl_priced": "the same with kl_coef 0.15",
}


def main() -> None:
    texts = figures()
    for path in PAGES:
        path.write_text(updated(path.read_text(), texts))


def updated(page: str, texts: dict[str, str]) -> str:
    """The page with the text of each figure as it is now. KeyError for a name that `figures` does not have."""

    def text_of(match: re.Match[str]) -> str:
        name, newline = match[1], "\n" if match[2].startswith("\n") else ""
        return f"<!-- figure {name} -->{newline}{texts[name]}{newline}<!-- /figure -->"

    return FIGURE.sub(text_of, page)


def figures() -> dict[str, str]:
    """The text of every figure, from benchmarks/results/*.json."""
    results = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    pages = (
        *(_quickstart, _against_trl, _speed, _app, _plan, _budgets, _zoo, _commands, _methods, _verifiable, _safety),
        *(_first_minute, *feedback_figures.PAGES),
    )
    return {name: text for page in pages for name, text in page(results).items()}


def _safety(results: Any) -> dict[str, str]:
    crowd, sweeps = results["demo_crowd"]["crowd"], results["hostile_runs"]["sweeps"]
    times = {name: row["times"] for name, row in results["no_slower"]["user_seconds"].items()}
    encoding = [row["encoding"]["times"] for row in results["templates"]["measured"].values()]
    faults: dict[str, list[str]] = {}
    for sweep in sweeps:  # of a run that was tried again, the last sweep counts
        faults |= {number: [] for number in sweep["command"].split() if number.isdecimal()}
        for fault in sweep["faults"]:
            faults[fault.split(":")[0].split()[-1]].append(fault)
    num_commands = len(sweeps[0]["commands"])
    tries, num_faults = len(faults) * num_commands, sum(map(len, faults.values()))
    return {
        "crowd": f"{crowd['medians']['alone']:.2f} s alone, and {crowd['medians']['among_the_pages']:.2f} s while "
        f"{crowd['pages']} pages of another address ask without end",
        "no_slower": f"`data check` takes {times['data check']:.2f} times the user time of the commit before, "
        f"{times['data check with tokens']:.2f} with token counts, the app's first page {times['first page']:.2f}, and "
        f"all commands of a quickstart on fewer rows and steps {times['quickstart']:.2f}",
        "template_bounds": f"{min(encoding):.2f} to {max(encoding):.2f} times as long "
        f"({median(encoding):.2f} in the middle)",
        "hostile_runs": f"{len(faults)} runs through {num_commands} commands, {tries - num_faults} of "
        f"{tries} within 5 s and 500 MiB of what a good run takes",
    }


def _verifiable(results: Any) -> dict[str, str]:
    result = results["verifiable"]
    lines = ["| | solved at temperature 1 | solved greedily | minutes of CPU time |", "|---|---|---|---|"]
    for name, title in (("sft", "SFT"), ("gae", "PPO (`gae`)"), ("grpo", "GRPO")):
        solved = [result["held_out"][name][how]["solved"] for how in ("sampled", "greedy")]
        shares = " | ".join(f"{one['rate']:.1%} ({one['low']:.1%} to {one['high']:.1%})" for one in solved)
        lines.append(f"| {title} | {shares} | {result['cost'][name]['cpu_seconds'] / 60:.1f} |")
    return {"verifiable": "\n".join(lines)}


def _first_minute(results: Any) -> dict[str, str]:
    rows = []
    for row in results["first_minute"]["rows"]:
        found = [re.search(r"([\d.]+) nats off", text or "") for text in row["planted"].values()]
        stops = [match[1] if match else "not stopped" for match in found]
        where = "a played GPU" if row["device"] == "played" else "a CPU"
        base = (
            f"{'24 layers' if row['model'] == 'deep' else 'tiny world'}, {row['quantization']}, {row['dtype']}, {where}"
        )
        rows.append(f"{base} | {'yes' if row['ended_well'] else 'no'} | {' | '.join(stops)}")
    return {"first_minute": table("base | ended well | another adapter | live dropout | shifted mask", *rows)}


def _quickstart(results: Any) -> dict[str, str]:
    last, pooled, controls = results["quickstart"], results["quality"]["pooled"], results["quality"]["controls"]
    seeds = list(results["quality"]["seeds"].values())
    win, best = "win_rate", "win_rate_best_temperature"
    by_seed = {
        "policy against SFT, both at temperature 1": [f"{seed[win]['policy_vs_sft']['rate']:.1%}" for seed in seeds],
        "policy against SFT, each at its best temperature": [
            f"{seed[best]['policy_vs_sft']['rate']:.1%}" for seed in seeds
        ],
        "two labelers agree on a pair": [f"{seed['reward']['label_agreement']:.1%}" for seed in seeds],
        "the reward model orders new pairs as their labeler did": [
            f"{seed['reward']['accuracy']['rate']:.1%}" for seed in seeds
        ],
        "the gold score orders them so": [f"{seed['reward']['gold_accuracy']:.1%}" for seed in seeds],
        "expected calibration error of the reward model": [f"{seed['reward']['ece']:.3f}" for seed in seeds],
        "KL at the end, nats per response (target 1.2)": [f"{seed['ppo']['kl']:.2f}" for seed in seeds],
    }
    return {
        "quickstart_cost": f"{last['wall_seconds'] / 60:.1f} minutes and {last['peak_rss_gib']:.1f} GiB",
        "quickstart_win_rate": rate_text(last[best]["policy_vs_sft"]),
        "win_rates": table(
            "win rate | both sampled at temperature 1 | each at its own best temperature",
            *(
                f"{pair.replace('_', ' ')} | {rate_text(rate)} | {rate_text(pooled['scores_best_temperature'][pair])}"
                for pair, rate in pooled["scores"].items()
            ),
        ),
        "by_seed": table("measured | by seed", *(f"{title} | {', '.join(row)}" for title, row in by_seed.items())),
        "controls": table(
            "control | win rate | mean gold score, SFT to policy | KL, mean of the last 10 iterations",
            *(
                f"{title} | {rate_text(control['win_rate_policy_vs_sft'])} | {control['gold']['sft']['mean']:.2f} to "
                f"{control['gold']['policy']['mean']:.2f} | {fmean(control['rollout_kl'][-10:]):.2f}"
                for title, control in ((title, controls[name]) for name, title in CONTROLS.items())
            ),
        ),
    }


def _against_trl(results: Any) -> dict[str, str]:
    result = results["ppo_against_trl_llama-4x256"]
    ours, theirs = result["ours"], result["trl"]
    by_seconds, by_cpu = (result[f"times_as_fast_by_{clock}"] for clock in ("seconds", "processor_seconds"))
    return {
        "against_trl_short": f"{ours['seconds']:.1f} s; TRL's last PPO takes {theirs['seconds']:.1f} s, so it is "
        f"{by_seconds['of_medians']:.2f} times as fast, at {result['share_of_peak_memory']['share']:.2f} of the memory",
        "times_as_fast_as_trl": f"{by_seconds['of_medians']:.2f}",
        "times_as_fast_as_trl_of_pairs": _range(by_seconds["of_each_pair"]),
        "times_as_fast_as_trl_by_cpu": f"{by_cpu['of_medians']:.2f}, {_range(by_cpu['of_each_pair'])}",
        "share_of_trls_memory": f"{result['share_of_peak_memory']['share']:.2f}",
        "against_trl": table(
            " | seconds of an iteration | sampling, scoring, update | CPU seconds | peak memory",
            *(
                f"{name} | {side['seconds']:.2f} | {', '.join(f'{seconds:.2f}' for seconds in side['parts'].values())}"
                f" | {side['processor_seconds']:.2f} | {side['peak_resident_mib']:.0f} MiB"
                for name, side in (("lora-rlhf", ours), ("TRL 1.12", theirs))
            ),
        ),
    }


def _speed(results: Any) -> dict[str, str]:
    rollouts = {
        "llama-4x256, 32 responses of 48 tokens": results["rollout_llama-4x256"],
        "tiny world, 416 responses that end at different lengths": results["rollout_tinyworld"],
    }
    mixed = {"llama-4x256": results["mixed_roles_llama-4x256"], "tiny world": results["mixed_roles_tinyworld"]}
    against, merged = "one after the other", "one after the other, merged weights"
    shapes = results["role_memory"]["shapes"]
    qwen = shapes["qwen2.5-1.5b"]
    return {
        "role_memory_short": f"a base of {qwen['base_mib']:.0f} MiB in 4 bits (qwen2.5-1.5b), a role takes "
        f"{qwen['roles']['policy']['mib']:.0f} MiB",
        "fast_paths": _fast_paths(results["fast_paths"]["measured"]),
        "rollouts": table(
            " | plain | static | transformers' `generate`, batches of 32",
            *(
                f"{name} | {' | '.join(f'{speed:.0f}' for speed in rollout['tokens_per_s'].values())}"
                for name, rollout in rollouts.items()
            ),
        ),
        "mixed_roles": table(
            "shape | asked | against adapters | against merged weights",
            *(
                f"{shape} | {asked} | {row['mixed_against'][against]} | {row['mixed_against'].get(merged, '')}"
                for shape, result in mixed.items()
                for asked, row in result["measured"].items()
            ),
        ),
        "role_memory": table(
            "shape | 4-bit base | one role | share of the base",
            *(
                f"{name} | {shape['base_mib']:.1f} MiB | {shape['roles']['policy']['mib']:.1f} MiB | "
                f"{100 * shape['roles']['policy']['share_of_base']:.1f} %"
                for name, shape in shapes.items()
            ),
        ),
    }


def _fast_paths(shapes: Any) -> str:
    """A row for each path and shape, a column for each piece of work. Empty where the path takes no part in it."""
    work = list(next(iter(shapes.values())))
    paths = dict.fromkeys(path for pieces in shapes.values() for piece in pieces.values() for path in piece["cpu_gain"])
    return table(
        f"without | shape | {' | '.join(work)}",
        *(
            f"{path} | {shape}"
            + "".join(
                f" | {pieces[name]['cpu_gain'][path]['median']:.2f}" if path in pieces[name]["cpu_gain"] else " |"
                for name in work
            )
            for path in paths
            for shape, pieces in shapes.items()
        ),
    )


def _app(results: Any) -> dict[str, str]:
    demo = results["demo"]
    page, columns, words = (median(demo["start"][key]) for key in ("first_page_s", "columns_s", "first_tokens_s"))
    equal, natural, load = (demo[name] for name in ("columns_of_equal_length", "columns_as_they_end", "load"))
    memory = load["resident_mib"]
    return {
        "app": table(
            "what | measured",
            f"the page is there, after the command | {page:.1f} s",
            f"it can be asked, after the command | {columns:.1f} s",
            f"the first words of all columns, after Enter | {words:.2f} s",
            *_page_waits(results.get("pages")),
            f"three answers of {equal['tokens']} tokens in one batch | "
            f"{equal['times_as_fast']:.1f} times as fast as one after the other",
            f"the tiny world's answers, which end at different lengths | "
            f"{natural['times_as_fast']:.1f} times as fast, of {natural['most_possible']:.1f} that a batch can reach",
            f"{load['users']} users, {load['prompts']} prompts | {load['answered']} answers",
            f"memory after the first twenty answers, and at the end | {memory[0]:.0f} MiB, {memory[-1]:.0f} MiB",
        ),
    }


def _page_waits(pages: Any) -> list[str]:
    """The rows of benchmarks/pages.py; none before it has run."""
    if pages is None:
        return []
    waits, many, turns = pages["medians"], pages["conversations"], pages["turns"]
    return [
        f"the next prompt to rank, after Save | {waits['next_prompt_s']:.2f} s",
        f"the page with its conversation, after a reload, with 2 kept, and with {many} of {turns} turns each | "
        f"{waits['first_page_s with 2']:.1f} s, {waits[f'first_page_s with {many}']:.1f} s",
        f"an earlier conversation of {turns} turns, after a click, with 2 kept, and with {many} | "
        f"{waits['history_s with 2']:.2f} s, {waits[f'history_s with {many}']:.2f} s",
    ]


def _plan(results: Any) -> dict[str, str]:
    rows = results["plan_accuracy_cpu"]["rows"]
    errors = [stage["error"] for row in rows for stage in row["stages"].values()]
    return {
        "plan_errors": f"between {min(errors):+.1%} and {max(errors):+.1%}",
        "plan_median_error": f"{median(map(abs, errors)):.1%}",
        "plan_within": f"{sum(-0.05 <= error <= 0.10 for error in errors)} of {len(errors)}",
        "plan_settings": f"{len(rows)} settings",
        "plan_table": models_table_markdown(PlanConfig(table=True), results["plan_table"]),
    }


def _budgets(results: Any) -> dict[str, str]:
    """An iteration's seconds on each card, before and after, and the activations of a token."""
    before, after = results["budgets"]["before"], results["budgets"]["after"]

    def seconds(cell: Any) -> str:
        parts = [cell["iteration"][f"{part}_s"] for part in ("rollout", "scoring", "update")]
        return f"{cell['iteration']['all_s']:.1f} ({', '.join(f'{part:.1f}' for part in parts)})"

    rows = [
        f"{model}, {card} | {seconds(before[model]['cards'][card])} | {seconds(cell)}"
        for model, found in after.items()
        for card, cell in found["cards"].items()
    ]
    saved = [
        f"activations that {model} saves for the backward pass | "
        + " | ".join(f"{found[model]['bytes of activations a token']['saved'] / 1e6:.2f} MB a token" for found in both)
        for both in [(before, after)]
        for model in after
    ]
    tried = results["budgets"]["tried on the 4090"]
    return {
        "budgets": table(" | before | after", *rows, *saved),
        "budgets_half": f"{tried['half the micro-batch']:g}",
        "budgets_scored": f"{tried['twice the rows scored at once']:g}",
        "budgets_now": f"{after['qwen2.5-1.5b']['cards']['RTX 4090']['iteration']['all_s']:g}",
    }


def _zoo(results: Any) -> dict[str, str]:
    outcomes = results["zoo"]["outcomes"]
    num_working = sum(outcome["steps"]["sft"] == "works" for outcome in outcomes.values())
    return {"zoo": f"{len(outcomes)} architectures {num_working} train, and the others are refused before training"}


def _commands(results: Any) -> dict[str, str]:
    check, evaluation, export = results["data_check"]["check"], results["evaluation"], results["export"]
    return {
        "data_check": f"{check['mb_per_s']:.0f} MB of JSONL a second in {check['peak_mb']} MB of memory",
        "evaluation_size": f"{evaluation['prompts']} prompts and {evaluation['probes']} probes",
        "evaluation_cost": f"{evaluation['wall_seconds'] / 60:.1f} minutes and {evaluation['peak_rss_gib']:.2f} GiB",
        "exports": table(
            " | layers | GB | peak memory | seconds a GB | times a plain copy",
            *(
                f"{name} | {row['layers']} | {row['gb']:.1f} | {row['peak_rss_gib']:.2f} GiB | "
                f"{row['seconds_per_gb']:.1f} | {row['times_a_copy']:.1f}"
                for name, row in (
                    ("`lora-rlhf export`", export["export"]),
                    ("PEFT's `merge_and_unload`, `save_pretrained`", export["peft"]),
                )
            ),
        ),
        "kills": f"{results['kill']['kills']}",
        "kills_dpo": f"{results['kill_dpo']['kills']}",
        "memory_slope": f"{results['memory_over_time']['slope_mib_per_100']['resident']['slope']:+.1f} MiB",
    }


def _methods(results: Any) -> dict[str, str]:
    return methods_report.tables(results["methods"])


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


if __name__ == "__main__":
    main()
