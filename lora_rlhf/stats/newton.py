"""Newton's method for the models that are fitted here, many resamples at once."""

from collections.abc import Callable

from torch import Tensor

FIT_RESAMPLES = 1000  # resamples of a fitted figure: each takes a fit, so fewer than of a mean
CONVERGED = 1e-9  # largest step, in logits, that ends the iteration
MAX_ITERATIONS = 40
LARGEST_STEP = 2.0  # in logits: far from the maximum, Newton's step can overshoot


def solve_newton(start: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    """The parameters (b, k) at which the step is 0. step: parameters (b, k) -> Newton's step (b, k), in logits."""
    parameters = start
    for _ in range(MAX_ITERATIONS):
        change = step(parameters).clamp(-LARGEST_STEP, LARGEST_STEP)
        parameters = parameters + change
        if change.numel() == 0 or float(change.abs().max()) < CONVERGED:
            break
    return parameters
