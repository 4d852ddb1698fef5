"""The plain sentence of a report: whether the candidate beats the baseline, and whether by more than sharpening."""

from lora_rlhf.data.refusals import counted
from lora_rlhf.evaluation.report_model import WinRate
from lora_rlhf.evaluation.wording import name_of, percent


def verdict(candidate: str, baseline: str, sampled: WinRate | None, best: WinRate | None = None) -> str:
    """What follows from the candidate's win rate against the baseline.

    `sampled` is that win rate with both at temperature 1, `best` with each at its own best temperature. Sampling at a
    lower temperature also raises a score, without any learning; a gain that is gone once the baseline may choose its
    temperature too is only that. Something is concluded only from an interval that leaves out 50 %.
    """
    first, second = name_of(candidate), name_of(baseline)
    if sampled is None or sampled.interval is None:
        return f"The judge gave no verdict on {first} against {second}, so there is nothing to say."
    _, low, high = sampled.interval
    result = f"Sampled at temperature 1, {first} beats {second} on {percent(sampled)} of prompts{_counts(sampled)}"
    is_better = low > 0.5
    no_gain = "it has become worse" if high < 0.5 else "no gain is shown"
    if best is None or best.interval is None:
        if is_better:
            return f"{result}. Whether that is more than sharpening was not measured: give --selection_prompts."
        return f"{result}: {no_gain}."
    _, best_low, best_high = best.interval
    at_best = f"with each at its own best temperature, on {percent(best)}{_counts(best)}"
    if is_better and best_low > 0.5:
        return f"{result}; {at_best}: a gain that is more than sharpening."
    if is_better:
        as_well = "better" if best_high < 0.5 else "as well"
        return (
            f"{result}; but {at_best}. The gain is only sharpening, as far as {counted(best.n, 'prompt')} can tell"
            f": sampling {second} at a temperature that suits it does {as_well}."
        )
    if best_low > 0.5:
        return f"{result}: {no_gain}; {at_best}, which is a gain."
    return f"{result}; {at_best}: {no_gain}."


def _counts(rate: WinRate) -> str:
    return f" ({rate.wins} won, {rate.ties} tied, {rate.losses} lost)"
