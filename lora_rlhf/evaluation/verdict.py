"""The verdict of a report in one sentence: whether the candidate beats the baseline, and by more than sharpening."""

from lora_rlhf.data.refusals import pluralize
from lora_rlhf.evaluation.report_model import WinRate
from lora_rlhf.evaluation.wording import rate_text, system_text


def verdict_sentence(candidate: str, baseline: str, sampled: WinRate | None, best: WinRate | None = None) -> str:
    """The conclusion from the candidate's win rate against the baseline.

    `sampled` is that win rate with both at temperature 1, `best` with each at its own best temperature. Sampling at a
    lower temperature also raises a score, without any learning; a gain that vanishes when the baseline also has
    its best temperature is only such sharpening. A conclusion needs an interval that does not include 50 %.
    """
    first, second = system_text(candidate), system_text(baseline)
    if sampled is None or sampled.interval is None:
        return f"The judge gave no verdict on {first} against {second}, so there is nothing to say."
    _, low, high = sampled.interval
    result = (
        f"Sampled at temperature 1, {first} beats {second} on {rate_text(sampled)} of prompts{_counts_text(sampled)}"
    )
    is_better = low > 0.5
    no_gain = "it has become worse" if high < 0.5 else "no gain is shown"
    if best is None or best.interval is None:
        if is_better:
            return f"{result}. Whether that is more than sharpening was not measured: give --selection_prompts."
        return f"{result}: {no_gain}."
    _, best_low, best_high = best.interval
    at_best = f"with each at its own best temperature, on {rate_text(best)}{_counts_text(best)}"
    if is_better and best_low > 0.5:
        return f"{result}; {at_best}: a gain that is more than sharpening."
    if is_better:
        as_well = "better" if best_high < 0.5 else "as well"
        return (
            f"{result}; but {at_best}. The gain is only sharpening, as far as {pluralize(best.n, 'prompt')} can tell"
            f": sampling {second} at a temperature that suits it does {as_well}."
        )
    if best_low > 0.5:
        return f"{result}: {no_gain}; {at_best}, which is a gain."
    return f"{result}; {at_best}: {no_gain}."


def _counts_text(rate: WinRate) -> str:
    return f" ({rate.wins} won, {rate.ties} tied, {rate.losses} lost)"
