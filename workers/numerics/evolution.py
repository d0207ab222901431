"""Minimization without gradients: the evolution strategy (1 + 1) with the rule of one fifth.

Source: Rechenberg 1973; the constants of Kern et al. 2004, "Learning probability distributions in continuous
    evolutionary algorithms", section 2.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

FIRST_STEP = 1.0 / 3.0  # of the bound
ON_SUCCESS, ON_FAILURE = math.exp(0.8), math.exp(-0.2)  # factors on the step: one success in five keeps it


def minimize(
    objective: Callable[[Tensor], float], n: int, *, bound: float, budget: int, generator: torch.Generator
) -> Tensor:
    """Return the best point found within [-bound, bound]ⁿ from 0 on, [n] float64; the start counts towards budget.

    A candidate is the best point so far plus a normal step, put back into the bounds; it takes over where it is not
    worse. An objective that is not finite is never taken.
    """
    best = torch.zeros(n, dtype=torch.float64)
    least = objective(best)
    step = FIRST_STEP * bound
    for _ in range(budget - 1):
        drawn = torch.randn(n, dtype=torch.float64, generator=generator)
        candidate = (best + step * drawn).clamp_(-bound, bound)
        value = objective(candidate)
        if value <= least:
            best, least, step = candidate, value, step * ON_SUCCESS
        else:
            step *= ON_FAILURE
    return best
