"""One figure of one system as a value for each prompt, from which intervals and paired tests are computed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_rlhf.evaluation.figures import Figure, Paired
from lora_rlhf.stats.differences import paired_mean_difference, paired_rate_difference, paired_ratio_difference
from lora_rlhf.stats.intervals import mean_interval, ratio_interval, share_interval


@dataclass(frozen=True)
class Column:
    """Values of n prompts, in the prompts' order, and how the figure is computed from them.

    "mean": their mean. "share": the share of ones (values are 1 or 0). "ratio": their sum over the sum of `weights`,
    for example a mean per token. "perplexity": exp of such a ratio. A value is None if a prompt has none; in a ratio
    every prompt has one.
    """

    kind: Literal["mean", "share", "ratio", "perplexity"]
    values: Sequence[float | None]
    weights: Sequence[float] = ()

    def select(self, indices: Sequence[int]) -> "Column":
        """The column with only these prompts."""
        return Column(
            self.kind, [self.values[i] for i in indices], [self.weights[i] for i in indices] if self.weights else ()
        )

    def figure(self) -> Figure:
        """The figure with its interval: Student's for a mean, Wilson's for a share, else the bootstrap over prompts."""
        present_values = [value for value in self.values if value is not None]
        if not present_values or (self.weights and not any(self.weights)):
            return Figure(None, None, None, 0)
        if self.kind == "share":
            rate = share_interval([bool(value) for value in present_values])
            assert rate is not None
            return Figure.from_floats(*rate)
        if self.kind == "mean":
            return Figure.from_floats(*mean_interval(present_values))
        ratio = ratio_interval(present_values, self.weights)
        value, low, high = (math.exp(end) if self.kind == "perplexity" else end for end in ratio[:3])
        return Figure.from_floats(value, low, high, ratio.n)

    def paired_difference(self, baseline: "Column") -> Paired:
        """This figure minus the baseline's over the same prompts: see `stats.differences`."""
        columns = (self, baseline)
        if self.kind == "share":
            flags = [[None if value is None else bool(value) for value in column.values] for column in columns]
            return Paired.from_floats(*paired_rate_difference(*flags))
        if self.kind == "mean":
            return Paired.from_floats(*paired_mean_difference(self.values, baseline.values))
        own_sums, baseline_sums = ([value or 0.0 for value in column.values] for column in columns)
        is_perplexity = self.kind == "perplexity"
        return Paired.from_floats(
            *paired_ratio_difference(
                own_sums, self.weights, baseline_sums, baseline.weights, is_exponential=is_perplexity
            )
        )


Columns = Mapping[str, Column]  # by the figure's name in the catalogue
