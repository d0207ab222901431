"""How sure a measured number is: Wilson's interval for a share, the percentile bootstrap for everything else.

A share of n examples has a closed form that also holds at 0 and 1, where resampling would claim to be certain; all
other numbers are computed again on examples drawn with replacement. The draws depend on the number of examples alone,
so the same answers give the same interval.

Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; Efron and Tibshirani 1993,
"An Introduction to the Bootstrap", chapter 13.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from app.domain.tasks import Interval

LEVEL = 0.95
N_RESAMPLES = 1000
SEED = 0
_Z = 1.959963984540054  # the normal distribution's 0.975 quantile

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def share_interval(n_hits: int, n: int) -> Interval:
    """Return Wilson's interval of the share n_hits / n; n >= 1."""
    share = n_hits / n
    widening = _Z**2 / n
    middle = (share + widening / 2) / (1 + widening)
    half = _Z / (1 + widening) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    low = 0.0 if n_hits == 0 else middle - half  # exact, where rounding would leave a trace
    high = 1.0 if n_hits == n else middle + half
    return Interval(low=low, high=high, level=LEVEL, method="wilson")


def resample_examples(n: int, statistic: Callable[[Integers], float]) -> tuple[float | None, Interval | None]:
    """Return standard error and interval of a number computed from n examples; none of either for a single example.

    statistic: indices of examples [n], drawn with replacement -> the number.
    """
    draw = np.random.default_rng([SEED, n])
    return _summarize(n, lambda: statistic(draw.integers(0, n, size=n)))


def resample_counts(counts: Integers, statistic: Callable[[Integers], float]) -> tuple[float | None, Interval | None]:
    """As `resample_examples` for a number that depends only on how many examples are in each cell.

    counts: [n_cells], examples per cell; statistic: counts of a resample [n_cells] -> the number. The cost does not
    depend on the number of examples.
    """
    n = int(counts.sum())
    draw = np.random.default_rng([SEED, n])
    return _summarize(n, lambda: statistic(draw.multinomial(n, counts / n)))


def _summarize(n: int, resampled: Callable[[], float]) -> tuple[float | None, Interval | None]:
    if n < 2:
        return None, None
    found = np.array([resampled() for _ in range(N_RESAMPLES)])
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    interval = Interval(low=float(low), high=float(high), level=LEVEL, method="bootstrap")
    return float(found.std(ddof=1)), interval
