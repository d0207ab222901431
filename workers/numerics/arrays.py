"""From what a merge says to what kernels take: rows, programs and memory as arrays (numerics/programs.py)."""

import threading
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import copysign, frexp, inf

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain.errors import JobInternal
from workers.fusion import Band, Draw, FusedMerge, Importance, Rows, is_by_row
from workers.granularity import width_of
from workers.numerics import programs, randomness
from workers.numerics.programs import NUDGE, Input, Program, Scratch

FEW_BITS = 40  # of a divisor
NO_RANKING = np.empty((0, 0), dtype=np.int64)
_OF_ALL = {
    "sum": programs.SUM_OF_ALL, "mean_of_changed": programs.MEAN_OF_CHANGED, "furthest": programs.FURTHEST,
    "near": programs.NEAR, "important": programs.IMPORTANT, "pulled": programs.PULLED,
}  # fmt: skip
_OF_AGREEING = {"mean": programs.MEAN, "sum": programs.SUM, "max": programs.LARGEST}
_of_thread = threading.local()


def input_of(
    rows: Rows, draws: Sequence[Draw] = (), importance: Importance | None = None, *, by_row: bool = False
) -> Input:
    """Return rows as kernels take them. draws, importance: where the rows have none; by_row: whether none is cut."""
    draws, importance = rows.draws or draws, rows.importance or importance
    width = max(1, width_of(rows.shape))
    by_row = by_row or is_by_row(draws)
    ranked = width if by_row else 1
    kept = [thresholds(ranked, draw.probability, draw.spread, draw.divides) for draw in draws]
    return Input(
        rows.content, rows.at, rows.kinds, rows.files, rows.places, rows.n_elements, rows.offset, rows.has_base,
        rows.is_judged,
        width=width,
        is_by_row=by_row,
        keys=np.array([unsigned(draw.key) for draw in draws], dtype=np.uint64),
        behinds=np.stack([behinds for behinds, _ in kept]) if draws else np.empty((0, 0), dtype=np.int64),
        divisors=np.stack([divisors for _, divisors in kept]) if draws else np.empty((0, 0)),
        factors=np.array([draw.factor for draw in draws], dtype=np.float64),
        divergences=np.empty(0) if importance is None else importance.divergences,
        at_part=np.empty_like(rows.at),
        ranking=ranking_of(ranked if draws else 1),
        part=rows.part,
    )  # fmt: skip


def undrawn(rows: Rows) -> Input:
    """Return the rows for a kernel that draws nothing."""
    if rows.draws:
        raise JobInternal(f"draws of tensor {rows.tensor!r} reached a kernel that knows none; report this fault.")
    return input_of(rows)


@lru_cache(maxsize=64)
def thresholds(
    width: int,
    probability: float,
    spread: float,
    divides: bool,  # noqa: FBT001 (a key of the cache)
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the first draw that is not kept, and what is kept is divided by, both by rank, [width]."""
    probabilities = randomness.keep_probabilities(width, probability, spread)
    behinds = probabilities.mul(2.0**53).ceil_().long()  # the draws are whole multiples of 2^-53
    return behinds.numpy(), (probabilities if divides else torch.ones_like(probabilities)).numpy()


def ranking_of(width: int) -> NDArray[np.int64]:
    """Return this thread's memory for ranking rows of a width; of 1 there is nothing to rank."""
    found: NDArray[np.int64] | None = getattr(_of_thread, "ranking", None)
    if width == 1:
        return NO_RANKING
    if found is None or found.shape[1] < width:
        found = _of_thread.ranking = np.empty((6, max(width, programs.DIGITS)), dtype=np.int64)
    return found


@lru_cache(maxsize=64)
def program_of(fused: FusedMerge, has_base: bool) -> Program:  # noqa: FBT001 (a key of the cache)
    """Return a merge as kernels take it."""
    election, needed, importance = fused.election, fused.needed, fused.importance
    weights = [abs(weight) if election else weight for weight in fused.weights]
    divisor, reciprocal, rest = _invert(fused.divisor, weights)
    return Program(
        of_deltas=has_base and fused.of_deltas,
        reduction=_OF_AGREEING[election.reduction] if election else _OF_ALL[fused.reduction],
        weights=np.array(weights, dtype=np.float64),
        weights_differ=len(set(weights)) > 1,
        boosts=np.array(fused.boosts, dtype=np.float64),
        reach=fused.reach,
        votes=np.array(election.votes if election else (), dtype=np.float64),
        nudge=election.balanced_sign * NUDGE if election else 0.0,
        turns=np.sign(np.array(fused.weights)).astype(np.float32),
        marks=np.array([_marks(band) for band in fused.masks], dtype=np.float64).reshape(-1, 4),
        ends=np.array([_ends(band) for band in fused.masks], dtype=np.int64).reshape(-1, 2),
        min_needing=needed.min_models if needed else 0,
        threshold=needed.threshold if needed else importance.threshold if importance else 0.0,
        of_angles=fused.ratio is not None and fused.ratio.of_angles,
        is_clamped=fused.ratio is not None and fused.ratio.is_clamped,
        joins_base=has_base and fused.base_share is not None,
        scaling=fused.scaling,
        divisor=divisor,
        reciprocal=reciprocal,
        rest=rest,
        base_share=fused.base_share or 0.0,
    )


def _invert(divisor: float, weights: Sequence[float]) -> tuple[float, float, float]:
    """Return a divisor of a weighted sum, 1 and 0; or 1 and the two parts of its reciprocal, both of its sign.

    By them a quotient differs from the exact one by less than 2^-103 of itself before it is rounded. By a divisor of 40
    bits or fewer, an exact quotient differs by 2^-94 at least from every number of float64 that it is not, and from
    every one halfway between two of them: both are rounded to the same. By other divisors, and where something may
    underflow, it is divided. After Brisebarre, Muller and Raina, Accelerating correctly rounded floating-point division
    when the divisor is known in advance (2004).
    """
    has_few_bits = (frexp(divisor)[0] * 2.0**FEW_BITS).is_integer()
    is_moderate = 2.0**-64 <= abs(divisor) <= 2.0**64 and all(abs(one) >= 2.0**-500 for one in weights if one != 0.0)
    if not (has_few_bits and is_moderate):
        return divisor, 1.0, 0.0
    exact = 1 / Fraction(divisor)
    reciprocal = float(exact)
    if abs(Fraction(reciprocal)) > abs(exact):
        reciprocal = float(np.nextafter(reciprocal, 0.0))
    return 1.0, reciprocal, copysign(float(exact - Fraction(reciprocal)), reciprocal)  # of one sign: zeros keep theirs


def _marks(band: Band) -> tuple[float, float, float, float]:
    lower, upper = band.lower[0], band.upper[0]
    return lower, upper, _just_below(lower), _just_below(upper)


def _ends(band: Band) -> tuple[int, int]:
    return band.lower[1] - band.origin, band.upper[1] - band.origin


def unsigned(key: int) -> int:
    """Return the 64 bits of a key."""
    return key & (1 << 64) - 1


def _just_below(magnitude: float) -> float:
    return float(np.nextafter(np.float32(magnitude), np.float32(-inf)))


def scratch_of(n_models: int, given: Input) -> Scratch:
    """Return this thread's memory for a block."""
    found: Scratch | None = getattr(_of_thread, "scratch", None)
    size = max(programs.BLOCK, given.width if given.is_by_row else 0)
    if found is None or len(found.products) < n_models or found.wide.shape[1] < size:
        if found is not None:
            n_models, size = max(n_models, len(found.products)), max(size, found.wide.shape[1])
        rows = np.empty((n_models + 4, size), dtype=np.float32)
        found = _of_thread.scratch = Scratch(rows, np.empty((3, size)), np.empty((n_models, n_models)))
    return found
