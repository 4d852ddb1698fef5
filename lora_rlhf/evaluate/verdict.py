"""The plain sentence of a report: whether the candidate beats the baseline, and whether by more than sharpening."""

from collections.abc import Mapping
from typing import Any

from lora_rlhf.data.refusals import counted
from lora_rlhf.evaluate.wording import name_of, percent


def verdict(
    candidate: str, baseline: str, sampled: Mapping[str, Any] | None, best: Mapping[str, Any] | None = None
) -> str:
    """What follows from the candidate's win rate against the baseline.

    `sampled` is that win rate with both at temperature 1, `best` with each at its own best temperature. Sampling at a
    lower temperature also raises a score, without any learning; a gain that is gone once the baseline may choose its
    temperature too is only that. Something is concluded only from an interval that leaves out 50 %.
    """
    one, other = name_of(candidate), name_of(baseline)
    if sampled is None or sampled["rate"] is None:
        return f"The judge gave no verdict on {one} against {other}, so there is nothing to say."
    shown = f"Sampled at temperature 1, {one} beats {other} on {percent(sampled)} of prompts{_counts(sampled)}"
    better = sampled["low"] > 0.5
    if best is None or best["rate"] is None:
        if better:
            return f"{shown}. Whether that is more than sharpening was not measured: give --selection_prompts."
        return f"{shown}: {_no_gain(sampled)}."
    also = f"with each at its own best temperature, on {percent(best)}{_counts(best)}"
    if better and best["low"] > 0.5:
        return f"{shown}; {also}: a gain that is more than sharpening."
    if better:
        as_well = "better" if best["high"] < 0.5 else "as well"
        return (
            f"{shown}; but {also}. The gain is only sharpening, as far as {counted(best['n'], 'prompt')} can tell"
            f": sampling {other} at a temperature that suits it does {as_well}."
        )
    if best["low"] > 0.5:
        return f"{shown}: {_no_gain(sampled)}; {also}, which is a gain."
    return f"{shown}; {also}: {_no_gain(sampled)}."


def _counts(rate: Mapping[str, Any]) -> str:
    return f" ({rate['wins']} won, {rate['ties']} tied, {rate['losses']} lost)"


def _no_gain(rate: Mapping[str, Any]) -> str:
    return "it has become worse" if rate["high"] < 0.5 else "no gain is shown"
