"""How well the reward model orders answers: on held-out rankings, and on answers of a policy trained on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_rlhf.evaluation.figures import Figure
from lora_rlhf.evaluation.report_model import Change
from lora_rlhf.stats.differences import independent_difference
from lora_rlhf.stats.ordering import OrderingReport, ordering_report
from lora_rlhf.stats.win_rates import Outcomes


def ordering_on_answers(
    outcomes: Outcomes,
    scores: tuple[Sequence[float], Sequence[float]],
    lengths: tuple[Sequence[float], Sequence[float]],
) -> OrderingReport:
    """How the reward model orders pairs of answers that a judge compared, as `ordering_report` reports it.

    outcomes: of the candidate's answer against the baseline's to each prompt; ties and failures make no pair. scores
    and lengths: the candidate's and the baseline's. The reward stage reports the same on rankings like those that it
    was trained on; a policy that was trained on the reward model has found its errors.
    """
    judged_indices = [i for i, outcome in enumerate(outcomes) if outcome is not None]
    ranks = [[1, 1] if outcomes[i] == 0.5 else [1, 2] if outcomes[i] else [2, 1] for i in judged_indices]
    pairs = [torch.tensor([scores[0][i], scores[1][i]], dtype=torch.float64) for i in judged_indices]
    return ordering_report(ranks, pairs, [[lengths[0][i], lengths[1][i]] for i in judged_indices])


def ordering_figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    """The catalogue's figures in a report on rankings; empty if the report has no pair."""
    if not report.get("held_out_pairs"):
        return {}
    num_pairs = report["held_out_pairs"]
    figures = {
        "reward_accuracy": Figure.from_floats(*(report["accuracy"][end] for end in ("rate", "low", "high", "n")))
    }
    keys_and_names = (("ece", "reward_ece"), ("length_correlation", "reward_length_correlation"))
    for key, name in keys_and_names:
        ends = report.get(f"{key}_interval") or {"low": float("nan"), "high": float("nan")}
        figures[name] = Figure.from_floats(report[key], ends["low"], ends["high"], num_pairs)
    return figures


def reward_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    """The change of accuracy and of ece, by name: the report `after` minus the report `before`, on other pairs.

    A figure without an interval in one of the two reports is left out.
    """
    figures_after, figures_before = ordering_figures(after), ordering_figures(before)
    changes = {}
    for key, name in (("accuracy", "reward_accuracy"), ("ece", "reward_ece")):
        intervals = [figures[name].interval for figures in (figures_after, figures_before) if name in figures]
        known_intervals = [interval for interval in intervals if interval is not None]
        if len(known_intervals) == 2:
            difference, low, high = independent_difference(*known_intervals)
            changes[key] = Change(difference=difference, low=low, high=high)
    return changes
