"""What the fused kernels take: rows, a program and memory as tuples of arrays, which numba can read."""

from math import factorial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUDGE = 1e-300  # far below any sum of float32 numbers: only an exact balance of votes notices it
LEAST_TOTAL = 1e-12  # of the scores at an entry, by which shares are divided; the authors' (methods/pcb.py)
SOME = 256  # entries for which task vectors compete at a time
BLOCK = 2048  # elements that are merged at a time, in the nearer caches
PRODUCT_BLOCK = 1 << 12  # entries whose products are summed together, whatever the pieces are: parts are multiples
NOT_CLEAN = np.int64(0xFFFF_FFFF)  # what a kernel returns that cannot go on
# reductions; the first six are of all entries, the others of those that agree with an election
SUM_OF_ALL, MEAN_OF_CHANGED, FURTHEST, NEAR, IMPORTANT, PULLED, MEAN, SUM, LARGEST = range(9)
DIGITS = 1 << 10  # values of a key's four bytes, each counted where entries are ranked
SINGULAR = 1e-6  # 1 + (n − 1) cos θ below which a ratio cannot be solved for: task vectors cancel

# e to the x, x <= 0, as 2^k e^r, r within ln 2 / 2 by Taylor's series: steps that give the same bits anywhere
SMALLEST_POWER = -700.0  # smaller x count as this
LOG2_E = 1.4426950408889634
ROUNDS_TO_INTEGER = 1.5 * 2.0**52  # added and subtracted; its sum's lowest bits are the integer
LN_2_HIGH, LN_2_LOW = 0.6931471803691238, 1.9082149292705877e-10  # the first has bits to spare: k times it is exact
EXP_SERIES = tuple(1.0 / factorial(n) for n in range(12, -1, -1))

# tanh x, |x| <= 1, as x P(x²) / Q(x²) by Lambert's continued fraction x / (1 + x² / (3 + x² / (5 + …))), up to 15:
# within 1e-14 of its size; the largest power first
TANH_ABOVE = (36.0, 6930.0, 270270.0, 2027025.0)
TANH_BELOW = (1.0, 630.0, 51975.0, 945945.0, 2027025.0)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Input(NamedTuple):
    """A run of elements as the files hold it; see fusion.Rows."""

    content: NDArray[np.uint8]
    at: Integers
    kinds: Integers
    files: Integers
    places: Integers
    n_elements: int
    offset: int
    has_base: bool
    is_judged: bool
    width: int  # of the tensor's rows
    is_by_row: bool  # whether no block cuts a row
    # draws, one entry per model, or none
    keys: NDArray[np.uint64]
    behinds: Integers  # [n, 1 or width]: the first draw that is not kept, by the rank within the row
    divisors: Floats  # [n, 1 or width], of what is kept
    factors: Floats  # on what is kept
    divergences: Floats  # of the tensor's rows, or empty: see fusion.Importance
    at_part: Integers  # memory: where each row of a part begins
    ranking: Integers  # memory where entries are ranked, [6, width or more], else empty: see kernels/drawing.py
    part: int  # elements of each row that are read at a time


class Program(NamedTuple):
    """A fusion.FusedMerge, one entry of each array per model."""

    of_deltas: bool
    reduction: int
    weights: Floats
    weights_differ: bool
    boosts: Floats  # or empty
    reach: float
    votes: Floats
    nudge: float
    turns: NDArray[np.float32]  # signs of the weights
    marks: Floats  # [n, 4], or none: lower and upper magnitude of a band, then those just below
    ends: Integers  # [n, 2]: flat indices of both within the tensor
    min_needing: int  # models that must need an entry; 0: nothing is asked
    threshold: float  # of being needed, or of importance
    of_angles: bool  # whether a row's ratio is that of its angles' mean, or of their cosines'
    is_clamped: bool  # the ratio, to [0, 1]
    joins_base: bool
    scaling: float
    divisor: float  # 1 where the next two stand for it: x · reciprocal + (x · rest) is x / divisor to the last bit
    reciprocal: float  # of the divisor, rounded towards zero
    rest: float  # by which that is too small
    base_share: float


class Windows(NamedTuple):
    """Keys that are looked for, each window in one model's task vector; windows are in the order of their models."""

    of_model: Integers  # [n_models + 1]: first window of each model
    lows: NDArray[np.int32]
    highs: NDArray[np.int32]


class Scratch(NamedTuple):
    """Memory of one thread for one block: BLOCK elements, or a row that is longer."""

    rows: NDArray[np.float32]  # [n + 4, block]: the base, the models, counts, elected signs
    wide: Floats  # [3, block]: sums
    products: Floats  # [n, n]
