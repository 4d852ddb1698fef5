"""The HTML report: one page that needs nothing else, for somebody who has not read the paper."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_rlhf.evaluation.charts import charts
from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.evaluation.groups import FEWEST_OF_GROUP
from lora_rlhf.evaluation.report_model import Group, Report
from lora_rlhf.evaluation.seen import warning
from lora_rlhf.evaluation.wording import change, difference, figure, interval, judge_of, name_of, percent, titled
from lora_rlhf.render.pages import html_page
from lora_rlhf.render.palette import DARK, LIGHT
from lora_rlhf.render.wording import capital, listed, number, p_value, words_of
from lora_rlhf.system.typed_json import to_json

TEMPLATE = Path(__file__).parent / "templates" / "report.html"
MOST_SAMPLES = 60  # of the samples file, which has them all
LONGEST = 2000  # characters of a text

# What each of the five questions should be answered by, in their order.
HOPED_FOR = ("yes", "no", "yes", "no", "no")

# The figures in groups, as the catalogue has them; what is not named here comes under the last.
GROUPS: Mapping[str, Sequence[str]] = {
    "Preference": ("win_rate", "win_rate_length_controlled", "rating", "score", "reward_score"),
    "Safety and truth": ("refusal_rate", "toxicity", "untruthfulness"),
    "Ways to fail, each with prompts of its own": (
        *("instruction_miss", "reward_polish", "refusal_overreach", "hallucinated_certainty", "length_inflation"),
        *("inconsistency", "sycophancy"),
    ),
    "Reward model": ("reward_accuracy", "reward_ece", "reward_length_correlation"),
    "What alignment may cost": ("perplexity", "choice_accuracy"),
    "Distance from the reference": ("kl_per_token", "kl_per_response", "entropy"),
    "Form and variety of the answers": (),
}


class Sample(NamedTuple):
    """A prompt with every system's response; `category` is empty without one, `scores` without a judge that scores."""

    prompt: str
    category: str
    outcome: str
    responses: Mapping[str, str]
    scores: Mapping[str, float]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Sample":
        """From a row of the samples file."""
        won = row.get("outcome")
        outcome = "not judged" if won is None else "won" if won > 0.5 else "lost" if won < 0.5 else "tied"
        return cls(row["prompt"], str(row.get("category") or ""), outcome, row["responses"], row.get("scores") or {})


def page(report: Report, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page report.html. rows: of the samples file."""
    samples = [Sample.of(row) for row in choose(rows)]
    return html_page(
        TEMPLATE,
        {
            **{helper.__name__: helper for helper in HELPERS},
            **{"LIGHT": LIGHT, "DARK": DARK, "catalogue": CATALOGUE, "hoped_for": HOPED_FOR},
            **{"longest": LONGEST, "fewest_prompts": FEWEST_OF_GROUP},
            "report": report,
            "systems": listed([name_of(name) for name in report.systems]),
            "charts": charts(report),
            "figure_groups": _figure_groups(report),
            "temperatures": [f"T {t}" for t in next(iter(report.temperature_sweep.values()), ())],
            "samples": samples,
            "num_samples": len(rows),
            "outcomes": list(dict.fromkeys(sample.outcome for sample in samples)),
            "categories": sorted({sample.category for sample in samples if sample.category}),
            "made_from": list(_made_from(report)),
        },
    )


def choose(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most 60 rows, the worst for the candidate first: the two ends of the order, and evenly spaced ones between."""
    order = sorted(rows, key=lambda row: (row.get("margin") is None, row.get("margin") or 0.0))
    if len(order) <= MOST_SAMPLES:
        return order
    third = MOST_SAMPLES // 3
    between = order[third:-third]
    step = len(between) / third
    return [*order[:third], *(between[int(i * step)] for i in range(third)), *order[-third:]]


def have_scores(groups: Mapping[str, Group]) -> bool:
    """Whether the judge scored the answers of any group."""
    return any("score" in group.figures for group in groups.values())


def also_changed(group: Group, candidate: str) -> list[tuple[str, str]]:
    """The titles of a group's figures, win rate and score aside, that got better or worse, and which of the two."""
    words = [
        (CATALOGUE[name].title, change(name, row.get(candidate)))
        for name, row in group.paired.items()
        if name not in ("score", "win_rate")
    ]
    return [(title, word) for title, word in words if word in ("better", "worse")]


def _figure_groups(report: Report) -> list[tuple[str, list[str]]]:
    """The groups and the figures of each that were measured."""
    named = {name for names in GROUPS.values() for name in names}
    groups = {group: names or [name for name in CATALOGUE if name not in named] for group, names in GROUPS.items()}
    measured = [(group, [name for name in names if name in report.figures]) for group, names in groups.items()]
    return [(group, names) for group, names in measured if names]


def _made_from(report: Report) -> Iterator[tuple[str, str]]:
    """What the report rests on: a term, and what there is to say of it."""
    yield "base", f"{report.base.name}, {report.base.quantization}, {report.base.source_hash[:16]}"
    for name, system in report.systems.items():
        if system.stage is not None:
            yield name, f"{system.run}, stage {system.stage}, {system.id}"
    for name, facts in to_json(report.sets).items():
        yield name, ", ".join(f"{words_of(key)} {value}" for key, value in facts.items() if value is not None)
    yield "judge", ", ".join(f"{key} {value}" for key, value in report.judge.items() if value is not None)
    yield "time", ", ".join(f"{words_of(part)} {seconds:.1f} s" for part, seconds in report.seconds.items())
    yield "memory", f"{report.peak_rss_gib:.2f} GiB, on the GPU {report.peak_gpu_gib:.2f} GiB"


HELPERS = (
    *(also_changed, capital, change, difference, figure, have_scores, interval, judge_of, name_of, number, p_value),
    *(percent, titled, warning, words_of),
)
