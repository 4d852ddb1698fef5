"""The figures of an evaluation: title, unit, and better direction of each, and the classes of their values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Interval = tuple[float, float, float]  # a value, and the ends of its 95 % interval


def make_interval(middle: float | None, low: float | None, high: float | None) -> Interval | None:
    """(middle, low, high); None if one of them is None."""
    return None if middle is None or low is None or high is None else (middle, low, high)


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval, over `n` cases; None if it cannot be computed, for example from too few cases."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def from_floats(cls, value: float | None, low: float | None, high: float | None, n: float) -> "Figure":
        """A figure from floats, with None for NaN, which a manifest, as JSON, holds as null."""
        return cls(_none_if_nan(value), _none_if_nan(low), _none_if_nan(high), int(n))

    @property
    def interval(self) -> Interval | None:
        """(value, low, high); None if one of them is None."""
        return make_interval(self.value, self.low, self.high)


@dataclass(frozen=True)
class Paired:
    """A system's figure less the baseline's, over the same prompts, with its 95 % interval and two-sided p-value."""

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int

    @classmethod
    def from_floats(cls, difference: float, low: float, high: float, p: float, n: float) -> "Paired":
        """A difference from floats, with None for NaN, which JSON does not have."""
        return cls(_none_if_nan(difference), _none_if_nan(low), _none_if_nan(high), _none_if_nan(p), int(n))

    @property
    def interval(self) -> Interval | None:
        """(difference, low, high); None if one of them is None."""
        return make_interval(self.difference, self.low, self.high)


def _none_if_nan(number: float | None) -> float | None:
    return None if number is None or math.isnan(number) else float(number)


@dataclass(frozen=True)
class Measure:
    """The meaning of a figure. `better`: the direction in which a release should move it, if any."""

    title: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    meaning: str


# {figure's name: its meaning}. A report has only these names, and gate.yaml may name any of them.
CATALOGUE: Mapping[str, Measure] = {
    "win_rate": Measure("win rate", "share", "higher", "prompts on which it beats the baseline; ties count half"),
    "win_rate_length_controlled": Measure(
        "length-controlled win rate", "share", "higher", "the same, as if both answers were equally long"
    ),
    "rating": Measure("rating", "logits", "higher", "Bradley-Terry strength over all systems, baseline 0"),
    "score": Measure("judge's score", "score", "higher", "mean score by the judge"),
    "reward_score": Measure("reward model's score", "sd", "higher", "mean score by the run's own reward model"),
    "kl_per_token": Measure("KL per token", "nats", "neither", "k3 from the reference, over the system's own tokens"),
    "kl_per_response": Measure("KL per response", "nats", "neither", "k1 from the reference, summed over a response"),
    "entropy": Measure("entropy", "nats per token", "neither", "of the next token, over the system's own responses"),
    "length": Measure("length", "tokens", "neither", "of a response, its end included"),
    "words": Measure("words", "words", "neither", "of a response"),
    "eos_rate": Measure("ended by itself", "share", "higher", "responses that ended before the limit"),
    "distinct_1": Measure("distinct-1", "share", "higher", "unique words over words, all responses together"),
    "distinct_2": Measure("distinct-2", "share", "higher", "unique word pairs over word pairs"),
    "self_bleu": Measure("self-BLEU", "0 to 1", "lower", "how alike responses to different prompts are"),
    "repetition": Measure("repetition", "share", "lower", "word 4-grams of a response that came before in it"),
    "opening_collapse": Measure("same opening", "share", "lower", "responses that begin with the commonest four words"),
    "template_collapse": Measure("same answer", "share", "lower", "responses equal to one given to another prompt"),
    "same_template": Measure("same template", "share", "lower", "the same, but for words that stand in the prompt"),
    "refusal_rate": Measure("refusals", "share", "neither", "responses that decline to answer"),
    "over_refusal": Measure("over-refusal", "share", "lower", "prompts to be answered that are declined"),
    "under_refusal": Measure("under-refusal", "share", "lower", "prompts to be declined that are answered"),
    "right_tool": Measure("right tool", "share", "higher", "of answers that must call: the right functions are called"),
    "right_arguments": Measure(
        "right call", "share", "higher", "of answers that must call: functions and arguments are right"
    ),
    "missing_call": Measure("missing call", "share", "lower", "answers that must call a tool and call none"),
    "needless_call": Measure("needless call", "share", "lower", "answers that need no tool and call one"),
    "malformed_call": Measure("malformed call", "share", "lower", "answers with a call that cannot be read"),
    "unsupported_tool": Measure(
        "says what the tool did not",
        "share",
        "lower",
        "answers to tools' results with a number, name or quotation of none",
    ),
    "unsupported_context": Measure(
        "says what the context does not", "share", "lower", "answers with a number, name or quotation that is not in it"
    ),
    "unsupported_by_judge": Measure(
        "unsupported, by the judge",
        "share",
        "lower",
        "the same answers, where the judge finds a statement without support",
    ),
    "toxicity": Measure("toxicity", "share", "lower", "responses that the toxicity scorer flags"),
    "untruthfulness": Measure("untruthfulness", "share", "lower", "responses that the truthfulness scorer flags"),
    "perplexity": Measure("perplexity", "per token", "lower", "on held-out pretraining text: the alignment tax"),
    "choice_accuracy": Measure("multiple choice", "share", "higher", "right answers to frozen questions"),
    "instruction_miss": Measure("instruction miss", "share", "lower", "answers that break a stated instruction"),
    "reward_polish": Measure("reward polish", "share", "lower", "high reward, but the answer says little"),
    "refusal_overreach": Measure("refusal overreach", "share", "lower", "harmless requests that are declined"),
    "hallucinated_certainty": Measure(
        "hallucinated certainty", "share", "lower", "false or unknowable things asserted"
    ),
    "length_inflation": Measure("length inflation", "share", "lower", "answers longer than the question needs"),
    "inconsistency": Measure("inconsistency", "share", "lower", "near-identical prompts answered differently"),
    "sycophancy": Measure("sycophancy", "share", "lower", "answers that take over a false premise of the prompt"),
    "reward_accuracy": Measure(
        "reward accuracy", "share", "higher", "held-out pairs that the reward model orders right"
    ),
    "reward_ece": Measure("reward ECE", "0 to 1", "lower", "expected calibration error of the reward model"),
    "reward_length_correlation": Measure("reward and length", "-1 to 1", "neither", "correlation of score and length"),
}
