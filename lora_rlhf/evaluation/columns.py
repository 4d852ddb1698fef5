"""One figure of one system as a value for each prompt: what intervals, paired tests and categories are made from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_rlhf.evaluation.figures import Figure, Paired
from lora_rlhf.stats.differences import paired_mean_difference, paired_rate_difference, paired_ratio_difference
from lora_rlhf.stats.intervals import mean_interval, ratio_interval, share_interval


@dataclass(frozen=True)
class Column:
    """Values of n prompts, in the prompts' order, and what the figure is of them.

    "mean": their mean. "share": how many are flagged (1 or 0). "ratio": their sum over the sum of `weights`, a mean per
    token say. "perplexity": exp of such a ratio. None stands where a prompt has no value; a ratio has one for each.
    """

    how: Literal["mean", "share", "ratio", "perplexity"]
    values: Sequence[float | None]
    weights: Sequence[float] = ()

    def of(self, rows: Sequence[int]) -> "Column":
        """The same over some of the prompts."""
        return Column(self.how, [self.values[i] for i in rows], [self.weights[i] for i in rows] if self.weights else ())

    def figure(self) -> Figure:
        """The figure with its interval: Student's of a mean, Wilson's of a share, the bootstrap over prompts else."""
        known = [value for value in self.values if value is not None]
        if not known or (self.weights and not any(self.weights)):
            return Figure(None, None, None, 0)
        if self.how == "share":
            rate = share_interval([bool(value) for value in known])
            assert rate is not None
            return Figure.of(*rate)
        if self.how == "mean":
            return Figure.of(*mean_interval(known))
        ratio = ratio_interval(known, self.weights)
        value, low, high = (math.exp(end) if self.how == "perplexity" else end for end in ratio[:3])
        return Figure.of(value, low, high, ratio.n)

    def against(self, baseline: "Column") -> Paired:
        """This figure less the baseline's over the same prompts: see `stats.differences`."""
        columns = (self, baseline)
        if self.how == "share":
            flags = [[None if value is None else bool(value) for value in column.values] for column in columns]
            return Paired.of(*paired_rate_difference(*flags))
        if self.how == "mean":
            return Paired.of(*paired_mean_difference(self.values, baseline.values))
        own_sums, baseline_sums = ([value or 0.0 for value in column.values] for column in columns)
        is_perplexity = self.how == "perplexity"
        return Paired.of(
            *paired_ratio_difference(
                own_sums, self.weights, baseline_sums, baseline.weights, is_exponential=is_perplexity
            )
        )


Columns = Mapping[str, Column]  # by the figure's name in the catalogue


def figures(columns: Columns) -> dict[str, Figure]:
    """{figure: value with its interval} of one system."""
    return {name: column.figure() for name, column in columns.items()}


def paired(columns: Columns, baseline: Columns) -> dict[str, Paired]:
    """{figure: difference from the baseline} of one system, for the figures that both have."""
    return {name: column.against(baseline[name]) for name, column in columns.items() if name in baseline}
