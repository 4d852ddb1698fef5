"""How good a reward model is on rankings that it was not trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lora_rlhf.data.encode import EncodedRanking
from lora_rlhf.data.refusals import pluralize
from lora_rlhf.stats.ordering import OrderingReport, ordering_report

CHANCE = 0.5  # the accuracy of a coin


def held_out_report(rankings: Sequence[EncodedRanking], scores: list[Tensor]) -> OrderingReport:
    """`ordering_report` of rankings and of each its scores (K,); lengths in tokens."""
    lengths = [[len(ids) for ids in ranking.response_ids] for ranking in rankings]
    return ordering_report([ranking.ranks for ranking in rankings], scores, lengths)


def chance_fault(results: Mapping[str, Any]) -> str | None:
    """What is wrong with a reward model whose accuracy may be a coin's; None for a better one, or an unmeasured one.

    results: of the reward stage, with the held-out accuracy and its 95 % interval.
    """
    return f"this reward model may be no better than chance: {accuracy_text(results)}" if is_chance(results) else None


def is_chance(results: Mapping[str, Any]) -> bool:
    """Whether the held-out accuracy may be a coin's; False where it was not measured.

    Of steps, one label may be commoner, and chance is to say that one always.
    """
    accuracy = held_out_accuracy(results)
    return accuracy is not None and accuracy["low"] <= results.get("majority", CHANCE)


def held_out_accuracy(results: Mapping[str, Any]) -> Mapping[str, float] | None:
    """The accuracy on held-out pairs, or on the held-out steps of a process reward; None where it was not measured."""
    accuracy: Mapping[str, float] | None = results.get("accuracy") or results.get("step_accuracy")
    return accuracy


def accuracy_text(results: Mapping[str, Any]) -> str:
    """The held-out accuracy of a stage's results, with its 95 % interval, in words."""
    accuracy = held_out_accuracy(results)
    if accuracy is None:
        return "accuracy not measured: nothing was held out"
    interval = f"{accuracy['rate']:.3f} (95 % interval {accuracy['low']:.3f} to {accuracy['high']:.3f})"
    if "held_out_steps" in results:
        commoner = f"always the commoner label would get {results['majority']:.3f}; ECE {results['ece']:.3f}"
        return f"held-out accuracy {interval} on {pluralize(results['held_out_steps'], 'labelled step')} ({commoner})"
    return f"held-out accuracy {interval} on {pluralize(results['held_out_pairs'], 'pair')}"


def reliability_table(results: Mapping[str, Any]) -> str:
    """The bins of a process reward's stated probabilities, and its accuracy by the number of the step; "" for none."""
    lines = [f"{'stated':>12} {'right':>6} {'n':>6}"]
    bins = [row for row in results.get("reliability", ()) if row["n"]]
    lines += [f"{row['confidence']:12.3f} {row['accuracy']:6.3f} {row['n']:6,}" for row in bins]
    lines += [f"      step {row['step']} {row['rate']:6.3f} {row['n']:6,}" for row in results["accuracy_by_step"]]
    return "\n".join(lines)
