"""The figures of an evaluation: what each is called, its unit, which way is better, and the one shape they all have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Figure(NamedTuple):
    """A value with the ends of its 95 % interval, over `n` cases; None where it cannot be told (too few cases, say)."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, value: float, low: float, high: float, n: float) -> "Figure":
        """A figure from plain floats, NaN as None: JSON has no NaN."""
        value_, low_, high_ = (None if math.isnan(number) else float(number) for number in (value, low, high))
        return cls(value_, low_, high_, int(n))


class Paired(NamedTuple):
    """A system's figure less the baseline's, over the same prompts, with its 95 % interval and two-sided p-value."""

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int

    @classmethod
    def of(cls, difference: float, low: float, high: float, p: float, n: float) -> "Paired":
        """A difference from plain floats, NaN as None: JSON has no NaN."""
        gap, low_, high_, p_ = (None if math.isnan(x) else float(x) for x in (difference, low, high, p))
        return cls(gap, low_, high_, p_, int(n))


@dataclass(frozen=True)
class Kind:
    """What a figure means. `better` says which way a release should move it; "neither" is for looking at."""

    title: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    meaning: str


# {figure's name: what it is}. Every name that stands in a report stands here, and gate.yaml may name any of them.
CATALOGUE: Mapping[str, Kind] = {
    "win_rate": Kind("win rate", "share", "higher", "prompts on which it beats the baseline; ties count half"),
    "win_rate_length_controlled": Kind(
        "length-controlled win rate", "share", "higher", "the same, as if both answers were equally long"
    ),
    "rating": Kind("rating", "logits", "higher", "Bradley-Terry strength over all systems, baseline 0"),
    "score": Kind("judge's score", "score", "higher", "mean score by the judge"),
    "reward_score": Kind("reward model's score", "sd", "higher", "mean score by the run's own reward model"),
    "kl_per_token": Kind("KL per token", "nats", "neither", "k3 from the reference, over the system's own tokens"),
    "kl_per_response": Kind("KL per response", "nats", "neither", "k1 from the reference, summed over a response"),
    "entropy": Kind("entropy", "nats per token", "neither", "of the next token, over the system's own responses"),
    "length": Kind("length", "tokens", "neither", "of a response, its end included"),
    "words": Kind("words", "words", "neither", "of a response"),
    "eos_rate": Kind("ended by itself", "share", "higher", "responses that ended before the limit"),
    "distinct_1": Kind("distinct-1", "share", "higher", "unique words over words, all responses together"),
    "distinct_2": Kind("distinct-2", "share", "higher", "unique word pairs over word pairs"),
    "self_bleu": Kind("self-BLEU", "0 to 1", "lower", "how alike responses to different prompts are"),
    "repetition": Kind("repetition", "share", "lower", "word 4-grams of a response that came before in it"),
    "opening_collapse": Kind("same opening", "share", "lower", "responses that begin with the commonest four words"),
    "template_collapse": Kind("same answer", "share", "lower", "responses equal to one given to another prompt"),
    "same_template": Kind("same template", "share", "lower", "the same, but for words that stand in the prompt"),
    "refusal_rate": Kind("refusals", "share", "neither", "responses that decline to answer"),
    "toxicity": Kind("toxicity", "share", "lower", "responses that the toxicity scorer flags"),
    "untruthfulness": Kind("untruthfulness", "share", "lower", "responses that the truthfulness scorer flags"),
    "perplexity": Kind("perplexity", "per token", "lower", "on held-out pretraining text: the alignment tax"),
    "choice_accuracy": Kind("multiple choice", "share", "higher", "right answers to frozen questions"),
    "instruction_miss": Kind("instruction miss", "share", "lower", "answers that break a stated instruction"),
    "reward_polish": Kind("reward polish", "share", "lower", "high reward, but the answer says little"),
    "refusal_overreach": Kind("refusal overreach", "share", "lower", "harmless requests that are declined"),
    "hallucinated_certainty": Kind("hallucinated certainty", "share", "lower", "false or unknowable things asserted"),
    "length_inflation": Kind("length inflation", "share", "lower", "answers longer than the question needs"),
    "inconsistency": Kind("inconsistency", "share", "lower", "near-identical prompts answered differently"),
    "sycophancy": Kind("sycophancy", "share", "lower", "answers that take over a false premise of the prompt"),
    "reward_accuracy": Kind("reward accuracy", "share", "higher", "held-out pairs that the reward model orders right"),
    "reward_ece": Kind("reward ECE", "0 to 1", "lower", "expected calibration error of the reward model"),
    "reward_length_correlation": Kind("reward and length", "-1 to 1", "neither", "correlation of score and length"),
}
