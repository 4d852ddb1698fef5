"""How well a process reward's probabilities judge labelled steps: accuracy, calibration, and where in the answer."""

from collections.abc import Sequence
from typing import Any

import torch

from lora_rlhf.stats.ordering import reliability_curve, share_by_prompt

LAST_NUMBER = 5  # steps from this one on are counted together


def step_report(labels: Sequence[dict[int, bool]], probabilities: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of each answer {number of the step, from 0: label}, and the probabilities that these steps are good.

    held_out_steps; then step_accuracy (with an interval over answers), majority (what always the commoner label would
    get), ece and reliability of the likelier label, accuracy_by_step [{step, n, rate, low, high}]. Without a step, the
    number alone.
    """
    pairs = [list(zip(row.items(), found, strict=True)) for row, found in zip(labels, probabilities, strict=True)]
    pairs = [answer for answer in pairs if answer]
    steps = [(label, p) for answer in pairs for (_, label), p in answer]
    if not steps:
        return {"held_out_steps": 0}
    good = sum(label for label, _ in steps)
    calibration = reliability_curve([max(p, 1 - p) for _, p in steps], [_is_right(label, p) for label, p in steps])
    numbers = range(1 + min(LAST_NUMBER - 1, max(number for answer in pairs for (number, _), _ in answer)))
    by_step = {
        number + 1: [[(label, p) for (n, label), p in answer if min(n, LAST_NUMBER - 1) == number] for answer in pairs]
        for number in numbers
    }
    return {
        "held_out_steps": len(steps),
        "step_accuracy": _accuracy([[(label, p) for (_, label), p in answer] for answer in pairs]),
        "majority": max(good, len(steps) - good) / len(steps),
        "ece": calibration.ece,
        "reliability": [bin._asdict() for bin in calibration.bins],
        "accuracy_by_step": [{"step": number, **_accuracy(parts)} for number, parts in by_step.items() if any(parts)],
    }


def _is_right(label: bool, probability: float) -> float:
    """1 where the likelier label is the given one, a half at 0.5."""
    return 0.5 if probability == 0.5 else float((probability > 0.5) == label)


def _accuracy(answers: Sequence[Sequence[tuple[bool, float]]]) -> dict[str, float]:
    """The share of steps that are judged right, with an interval over answers; those without a step are left out."""
    answers = [answer for answer in answers if answer]
    right = [float(sum(_is_right(label, p) for label, p in answer)) for answer in answers]
    counts = [float(len(answer)) for answer in answers]
    return share_by_prompt(*(torch.tensor(values, dtype=torch.float64) for values in (right, counts)))._asdict()
