"""Figures over the responses of a run's stages, and the plain sentence that follows from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_rlhf.algo.statistics import clopper_pearson, mean_interval, sign_test, win_rate
from lora_rlhf.data.refusals import counted
from lora_rlhf.evaluate.generation import Answer

PAIRS = {"policy_vs_sft": ("policy", "sft"), "policy_vs_base": ("policy", "base"), "sft_vs_base": ("sft", "base")}
SAME_SCORE = 1e-9  # sums of the same weights in another order differ by less, scores that mean something by far more

Scores = Mapping[str, Sequence[float]]


def outcomes(scores: Sequence[float], other: Sequence[float]) -> list[float]:
    """Per prompt: 1 where `scores` is higher, 0 where `other` is, 0.5 where they are the same."""
    gaps = [a - b for a, b in zip(scores, other, strict=True)]
    return [0.5 if abs(gap) <= SAME_SCORE else float(gap > 0) for gap in gaps]


def win_rates(scores: Scores) -> dict[str, dict[str, Any]]:
    """{pair: {rate, low, high, n, wins, ties, losses, p}} over prompts that both stages answered; ties count half.

    The 95 % interval is the wider, at either end, of two: the bootstrap over prompts, and the exact interval
    (Clopper-Pearson) of the share of wins among the untied prompts, with the ties at half. Few untied prompts resample
    into too narrow an interval (4 losses in 29 prompts into one below 50 %), which the second corrects: it lies on one
    side of 50 % just where p, of the exact sign test over the untied prompts, is below 0.05. The first says how far the
    number of ties itself is a matter of chance.
    """
    there = {pair: stages for pair, stages in PAIRS.items() if all(stage in scores for stage in stages)}
    return {pair: _win_rate(outcomes(scores[one], scores[two])) for pair, (one, two) in there.items()}


def _win_rate(found: list[float]) -> dict[str, Any]:
    wins, ties, losses = (found.count(outcome) for outcome in (1.0, 0.5, 0.0))
    interval, untied = win_rate(found), wins + losses
    low, high = interval.low, interval.high
    if untied:
        exact = clopper_pearson(wins, untied)
        low = min(low, (ties / 2 + untied * exact.low) / len(found))
        high = max(high, (ties / 2 + untied * exact.high) / len(found))
    counts = {"wins": wins, "ties": ties, "losses": losses, "p": sign_test(wins, losses)}
    return {**interval._asdict(), "low": low, "high": high, **counts}


def mean_scores(scores: Scores) -> dict[str, dict[str, float]]:
    """{stage: {mean, low, high, n}}."""
    return {stage: mean_interval(values)._asdict() for stage, values in scores.items()}


def mean_length(answers: Sequence[Answer]) -> float:
    """Tokens of a response, the end-of-sequence token included."""
    return sum(len(answer.ids) for answer in answers) / len(answers)


def eos_rate(answers: Sequence[Answer]) -> float:
    """Share of responses that ended by themselves."""
    return sum(answer.finished for answer in answers) / len(answers)


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Unique n-grams over n-grams of white-space words, over all texts (Li et al., arXiv 1510.03055); None without any.

    Falls with the number of texts: compare only figures over as many.
    """
    grams = [gram for text in texts for gram in _ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else None


def by_group(scores: Scores, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """{group: {n, and each stage's mean score}}, largest group first."""
    found = {}
    for group in sorted(set(groups), key=lambda name: (-groups.count(name), name)):
        rows = [i for i, name in enumerate(groups) if name == group]
        means = {stage: sum(values[i] for i in rows) / len(rows) for stage, values in scores.items()}
        found[group] = {"n": len(rows), **means}
    return found


def verdict(sampled: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    """Whether the policy beats the SFT model, and whether by more than sharpening.

    Both arguments are as of `win_rates`: all stages at temperature 1, and each at its own best temperature. Sampling
    at a lower temperature also raises a score, without any learning; a gain that is gone once the SFT model may choose
    its temperature too is only that. Something is concluded only from an interval that leaves out 50 %.
    """
    if "policy_vs_sft" not in sampled:
        return "There is no policy in this run, so there is nothing to say of one."
    rate = sampled["policy_vs_sft"]
    shown = f"Sampled at temperature 1, the policy beats the SFT model on {percent(rate)} of prompts{_counts(rate)}"
    better, best_rate = rate["low"] > 0.5, (best or {}).get("policy_vs_sft")
    if best_rate is None:
        if better:
            return f"{shown}. Whether that is more than sharpening was not measured: give --selection_prompts."
        return f"{shown}: {_no_gain(rate)}."
    also = f"with each at its own best temperature, on {percent(best_rate)}{_counts(best_rate)}"
    if better and best_rate["low"] > 0.5:
        return f"{shown}; {also}: a gain that is more than sharpening."
    if better:
        as_well = "better" if best_rate["high"] < 0.5 else "as well"
        return (
            f"{shown}; but {also}. The gain is only sharpening, as far as {counted(best_rate['n'], 'prompt')} can tell"
            f": sampling the SFT model at a temperature that suits it does {as_well}."
        )
    if best_rate["low"] > 0.5:
        return f"{shown}: {_no_gain(rate)}; {also}, which is a gain."
    return f"{shown}; {also}: {_no_gain(rate)}."


def percent(rate: Mapping[str, Any]) -> str:
    """A rate with its interval, as people read it."""
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def _counts(rate: Mapping[str, Any]) -> str:
    return f" ({rate['wins']} won, {rate['ties']} tied, {rate['losses']} lost)"


def _no_gain(rate: Mapping[str, Any]) -> str:
    return "it has become worse" if rate["high"] < 0.5 else "no gain is shown"


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
