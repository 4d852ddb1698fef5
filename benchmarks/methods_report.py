"""The tables and the picture of benchmarks/results/methods.json. Rates and figures are means over seeds."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from figure_text import rate_text, table
from matplotlib.figure import Figure

from lora_rlhf.render.palette import FAINT, INK, SERIES
from lora_rlhf.render.pictures import SMALL, save_png, style_axis

TITLES = {
    "best_of_16": "best of 16",
    "rejection": "rejection sampling",
    "dpo": "DPO",
    "ipo": "IPO",
    "kto": "KTO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
    "dpo_as_long": "DPO, as long as PPO",
}
WINS = {"win_rate": "at temperature 1", "win_rate_best_temperature": "each at its best temperature"}
FIGURES = ("gold", "kl", "length", "perplexity")
NEEDS_REWARD = ("best_of_16", "rejection", "rloo", "grpo", "ppo", "ppo_ptx")
HEAD = (
    "method | ranked prompts x answers | seeds | wins against SFT, temperature 1 | each at its best temperature | "
    "gold score | KL, nats a response | tokens | perplexity | CPU seconds | GiB"
)


def tables(result: Any) -> dict[str, str]:
    """The figures of the pages: all methods on equal prompts, DPO in PPO's time, and what a command costs."""
    counts = counts_of(result)
    equal = [name for name in TITLES if name != "dpo_as_long"]
    both = {key: judged for key, judged in result["judged"].items() if "dpo_as_long" in judged}
    return {
        "methods": table(HEAD, _sft_row(result), *(_rows(result, counts, equal))),
        "methods_equal_time": table(HEAD, *_rows({**result, "judged": both}, counts, ("ppo", "dpo_as_long"))),
        **_costs(result, counts),
    }


def counts_of(result: Any) -> list[int]:
    """The numbers of ranked prompts that were judged."""
    return sorted({int(key.split("/")[1]) for key in result["judged"]})


def _rows(result: Any, counts: Sequence[int], names: Sequence[str]) -> list[str]:
    rows = [(name, count, _judged(result, name, count)) for count in counts for name in names]
    return [_row(result, name, count, found) for name, count, found in rows if found]


def _judged(result: Any, name: str, count: int) -> dict[str, Any]:
    """{seed: what was judged of a method}."""
    found = {
        key.split("/")[0]: judged.get(name) for key, judged in result["judged"].items() if key.endswith(f"/{count}")
    }
    return {seed: judged for seed, judged in found.items() if judged}


def _row(result: Any, name: str, count: int, found: dict[str, Any]) -> str:
    costs = [_cost(result, name, f"{seed}/{count}") for seed in found]
    wins = [[row[key] for row in found.values() if row.get(key)] for key in WINS]
    return " | ".join(
        [
            *(TITLES[name], f"{count:,} x {result['answers'][str(count)]}", str(len(found))),
            *(rate_text(mean_rate(rates)) if rates else "" for rates in wins),
            *_means(found.values()),
            *(f"{fmean(seconds for seconds, _ in costs):.0f}", f"{max(peak for _, peak in costs):.2f}"),
        ]
    )


def _cost(result: Any, name: str, key: str) -> tuple[float, float]:
    """(CPU seconds, peak GiB) of a method: with its reward model, and for rejection sampling with the sampling."""
    parts = [name, *(["reward"] if name in NEEDS_REWARD else []), *(["best"] if name == "rejection" else [])]
    costs = [result["costs"][f"{key}/{part}"] for part in parts]
    return sum(cost["cpu_seconds"] for cost in costs), max(cost["peak_gib"] for cost in costs)


def _sft_row(result: Any) -> str:
    costs = [cost for key, cost in result["costs"].items() if key.endswith("/sft")]
    seconds, peak = fmean(cost["cpu_seconds"] for cost in costs), max(cost["peak_gib"] for cost in costs)
    rows = {key.split("/")[0]: judged["sft"] for key, judged in result["judged"].items()}.values()
    return " | ".join(["SFT", "", str(len(costs)), "", "", *_means(rows), f"{seconds:.0f}", f"{peak:.2f}"])


def _means(rows: Any) -> list[str]:
    known = [[row[figure] for row in rows if row.get(figure) is not None] for figure in FIGURES]
    return [f"{fmean(values):.2f}" if values else "" for values in known]


def _costs(result: Any, counts: Sequence[int]) -> dict[str, str]:
    """What a thousand rows cost, by the name of the figure; of ranked prompts, those with the most answers."""
    rows, costs, answers = result["rows"], result["costs"], result["answers"]

    def most(name: str) -> int:
        known = [count for count in counts if any(key.endswith(f"/{count}/{name}") for key in costs)]
        return max(known, key=lambda count: (answers[str(count)], count))

    per_thousand = {
        **{"sft": ("/sft", rows["demonstrations"]), "best_of_16": ("/best_of_16", rows["evaluation_prompts"])},
        **{name: (f"/{most(name)}/{name}", most(name)) for name in ("reward", "dpo", "kto")},
        **{name: (f"/{name}", rows["ppo_responses"]) for name in ("ppo", "ppo_ptx", "rloo")},
    }
    found = {
        name: ([cost for key, cost in costs.items() if key.endswith(end)], count)
        for name, (end, count) in per_thousand.items()
    }
    return {
        f"cost_{name}": f"{fmean(cost['cpu_seconds'] for cost in spent) / count * 1000:.0f} s, "
        f"{max(cost['peak_gib'] for cost in spent):.2f} GiB"
        for name, (spent, count) in found.items()
    }


def mean_rate(rates: Sequence[Any]) -> dict[str, float]:
    """The mean of rates over as many prompts each, with the interval of their mean."""
    mean = fmean(rate["rate"] for rate in rates)
    half = sum(((rate["high"] - rate["low"]) / 2) ** 2 for rate in rates) ** 0.5 / len(rates)
    return {"rate": mean, "low": mean - half, "high": mean + half}


def plot(result: Any, path: Path) -> None:
    """One panel for each number of ranked prompts: every method's wins against the SFT model, with intervals."""
    counts = counts_of(result)
    figure = Figure(figsize=(3 + 3 * len(counts), 3.6), layout="constrained")
    panels = figure.subplots(1, len(counts), sharex=True, sharey=True, squeeze=False)[0]
    names = [name for name in reversed(TITLES) if any(name in judged for judged in result["judged"].values())]
    for axis, count in zip(panels, counts, strict=True):
        for (key, title), color, shift in zip(WINS.items(), SERIES, (0.15, -0.15), strict=False):
            found = [
                (y, [row[key] for row in _judged(result, name, count).values() if row.get(key)])
                for y, name in enumerate(names)
            ]
            rates = [(y + shift, mean_rate(rows)) for y, rows in found if rows]
            ends = [[abs(rate[end] - rate["rate"]) for _, rate in rates] for end in ("low", "high")]
            axis.errorbar(
                [rate["rate"] for _, rate in rates],
                [y for y, _ in rates],
                xerr=ends,
                fmt="o",
                markersize=4,
                color=color,
                linewidth=1.2,
                label=title,
            )
        axis.axvline(0.5, color=FAINT, linewidth=0.8, linestyle=":")
        seeds = sorted({len(judged) for name in names if (judged := _judged(result, name, count))})
        span = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) + f" seed{'s' * (seeds[-1] > 1)}"
        axis.set_title(f"{count:,} ranked prompts, {span}", fontsize=10, loc="left", color=INK)
        axis.set_xlabel("share of wins against SFT", fontsize=SMALL, color=INK)
        style_axis(axis)
    panels[0].set_yticks(range(len(names)), [TITLES[name] for name in names])
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False
    )
    save_png(figure, path)
