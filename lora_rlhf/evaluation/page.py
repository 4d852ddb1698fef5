"""The HTML report: one file, for readers who do not know the paper."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from lora_rlhf.evaluation.charts import draw_charts
from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.evaluation.groups import FEWEST_OF_GROUP
from lora_rlhf.evaluation.report_model import Group, Report
from lora_rlhf.evaluation.seen import seen_warnings
from lora_rlhf.evaluation.wording import (
    change_word,
    difference_text,
    figure_text,
    interval_text,
    judge_text,
    rate_text,
    system_text,
    title_with_unit,
)
from lora_rlhf.render.curves import SCRIPT, STYLE, curves_html
from lora_rlhf.render.curves import Figure as CurveFigure
from lora_rlhf.render.pages import render_page
from lora_rlhf.render.palette import DARK, LIGHT
from lora_rlhf.render.wording import capitalize_first, join_names, name_text, number_text, p_value_text
from lora_rlhf.system.typed_json import to_json

TEMPLATE = Path(__file__).parent / "templates" / "report.html"
MOST_SAMPLES = 60  # on the page; the samples file has all
MOST_TEXT_CHARACTERS = 2000  # characters of a text

# The desired answers to the five questions, in their order.
HOPED_FOR = ("yes", "no", "yes", "no", "no")

# {group: its figures}; figures that are not named here belong to the last group.
FIGURE_GROUPS: Mapping[str, Sequence[str]] = {
    "Preference": ("win_rate", "win_rate_length_controlled", "rating", "score", "reward_score"),
    "Safety and truth": ("refusal_rate", "over_refusal", "under_refusal", "toxicity", "untruthfulness"),
    "Ways to fail, each with prompts of its own": (
        *("instruction_miss", "reward_polish", "refusal_overreach", "hallucinated_certainty", "length_inflation"),
        *("inconsistency", "sycophancy"),
    ),
    "Tools": ("right_tool", "right_arguments", "missing_call", "needless_call", "malformed_call"),
    "Answers from a text or a tool": ("unsupported_tool", "unsupported_context", "unsupported_by_judge"),
    "Reward model": ("reward_accuracy", "reward_ece", "reward_length_correlation"),
    "What alignment may cost": ("perplexity", "choice_accuracy"),
    "Distance from the reference": ("kl_per_token", "kl_per_response", "entropy"),
    "Form and variety of the answers": (),
}


class Sample(NamedTuple):
    """A prompt with every system's response. `category` may be empty; `scores` is empty if the judge gives none."""

    prompt: str
    category: str
    outcome: str
    responses: Mapping[str, str]
    scores: Mapping[str, float]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Sample":
        """A sample from a row of the samples file."""
        outcome_value = row.get("outcome")
        outcome = (
            "not judged"
            if outcome_value is None
            else "won"
            if outcome_value > 0.5
            else "lost"
            if outcome_value < 0.5
            else "tied"
        )
        return cls(row["prompt"], str(row.get("category") or ""), outcome, row["responses"], row.get("scores") or {})


def report_page(
    report: Report, rows: Sequence[Mapping[str, Any]], training: Mapping[str, Sequence[CurveFigure]] | None = None
) -> str:
    """The page report.html. `rows`: of the samples file. training: {title of a stage: its curves}."""
    samples = [Sample.from_row(row) for row in choose_samples(rows)]
    return render_page(
        TEMPLATE,
        {
            **{helper.__name__: helper for helper in TEMPLATE_HELPERS},
            **{"LIGHT": LIGHT, "DARK": DARK, "catalogue": CATALOGUE, "hoped_for": HOPED_FOR},
            **{"longest": MOST_TEXT_CHARACTERS, "fewest_prompts": FEWEST_OF_GROUP},
            "report": report,
            "systems": join_names([system_text(name) for name in report.systems]),
            "charts": draw_charts(report),
            "training": _training_charts(training or {}),
            "curves_style": Markup(STYLE),
            "curves_script": Markup(SCRIPT),
            "figure_groups": _measured_figure_groups(report),
            "temperatures": [f"T {t}" for t in next(iter(report.temperature_sweep.values()), ())],
            "samples": samples,
            "num_samples": len(rows),
            "outcomes": list(dict.fromkeys(sample.outcome for sample in samples)),
            "categories": sorted({sample.category for sample in samples if sample.category}),
            "made_from": list(_provenance_rows(report)),
        },
    )


def _training_charts(training: Mapping[str, Sequence[CurveFigure]]) -> list[tuple[str, Markup]]:
    """(title of a stage, its charts as HTML); stages without curves are left out."""
    names = list(dict.fromkeys(curve.name for figures in training.values() for f in figures for curve in f.curves))
    return [(title, Markup(curves_html(figures, names))) for title, figures in training.items() if figures]


def choose_samples(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most 60 rows, the worst for the candidate first: both ends of the order, and some evenly spaced between."""
    sorted_rows = sorted(rows, key=lambda row: (row.get("margin") is None, row.get("margin") or 0.0))
    if len(sorted_rows) <= MOST_SAMPLES:
        return sorted_rows
    third = MOST_SAMPLES // 3
    middle_rows = sorted_rows[third:-third]
    step = len(middle_rows) / third
    return [*sorted_rows[:third], *(middle_rows[int(i * step)] for i in range(third)), *sorted_rows[-third:]]


def has_scores(groups: Mapping[str, Group]) -> bool:
    """Whether the judge scored the answers of any group."""
    return any("score" in group.figures for group in groups.values())


def other_changes(group: Group, candidate: str) -> list[tuple[str, str]]:
    """(title, "better" or "worse") of a group's significant changes, without win rate and score."""
    words = [
        (CATALOGUE[name].title, change_word(name, row.get(candidate)))
        for name, row in group.paired.items()
        if name not in ("score", "win_rate")
    ]
    return [(title, word) for title, word in words if word in ("better", "worse")]


def _measured_figure_groups(report: Report) -> list[tuple[str, list[str]]]:
    """(group, its measured figures) for each group that has any."""
    named_figures = {name for names in FIGURE_GROUPS.values() for name in names}
    groups = {
        group: names or [name for name in CATALOGUE if name not in named_figures]
        for group, names in FIGURE_GROUPS.items()
    }
    measured_groups = [(group, [name for name in names if name in report.figures]) for group, names in groups.items()]
    return [(group, names) for group, names in measured_groups if names]


def _provenance_rows(report: Report) -> Iterator[tuple[str, str]]:
    """Yields (term, text) on how the report was made: base, systems, sets, judge, time and memory."""
    yield "base", f"{report.base.name}, {report.base.quantization}, {report.base.source_hash[:16]}"
    for name, system in report.systems.items():
        if system.stage is not None:
            yield name, f"{system.run}, stage {system.stage}, {system.id}"
    for name, facts in to_json(report.sets).items():
        yield name, ", ".join(f"{name_text(key)} {value}" for key, value in facts.items() if value is not None)
    yield "judge", ", ".join(f"{key} {value}" for key, value in report.judge.items() if value is not None)
    yield "time", ", ".join(f"{name_text(part)} {seconds:.1f} s" for part, seconds in report.seconds.items())
    yield "memory", f"{report.peak_rss_gib:.2f} GiB, on the GPU {report.peak_gpu_gib:.2f} GiB"


TEMPLATE_HELPERS = (
    *(other_changes, capitalize_first, change_word, difference_text, figure_text, has_scores, interval_text),
    *(judge_text, system_text, number_text, p_value_text, rate_text, title_with_unit, seen_warnings, name_text),
)
