"""Rows that are pulled towards the base model's, each by its own angles: the ratio of methods/model_stock.py."""

import numpy as np

from workers.numerics.kernels.bits import NOTHING, f64, u32
from workers.numerics.kernels.compiling import compiled
from workers.numerics.kernels.multiplying import multiply_pairs
from workers.numerics.kernels.reading import load, load_delta
from workers.numerics.programs import SINGULAR


@compiled
def pull_rows(given, program, begin, scratch, total):
    """Write t · mean(θᵢ) + (1 − t) · θ₀, t of each row; return the bits of the largest difference from the base."""
    m, n, width, largest = len(total), len(program.weights), given.width, u32(0)
    base, tree, shares = scratch.rows[0, :m], scratch.wide[1], scratch.wide[2]
    for model in range(n):
        largest = max(largest, load_delta(given, model + 1, begin, base, scratch.rows[1 + model, :m]))
    for first in range(0, m, width):
        multiply_pairs(scratch.rows, (n, 1, 1, first, first + width), tree, scratch.products)
        shares[first // width] = _ratio(scratch.products, n, program) / n
    total[:] = 0.0
    for model in range(n):
        load(given, model + 1, begin, scratch.rows[1 + model, :m])
    for first in range(0, m, width):
        behind, share, model = first + width, shares[first // width], 0
        some, rest = total[first:behind], 1.0
        while model + 1 < n:
            rows = scratch.rows[1 + model, first:behind], scratch.rows[2 + model, first:behind]
            _add_both_shares(some, rows[0], rows[1], share)
            model += 2
        if model < n:
            _add_share(some, scratch.rows[n, first:behind], share)
        for _ in range(n):
            rest -= share
        _add_share(some, base[first:behind], rest)
    return largest


@compiled
def _add_share(total, row, share):
    for j in range(len(row)):
        total[j] = total[j] + share * f64(row[j])


@compiled
def _add_both_shares(total, one, other, share):
    for j in range(len(one)):
        total[j] = (total[j] + share * f64(one[j])) + share * f64(other[j])


@compiled
def _ratio(products, n, program):
    """Return how far a row goes towards the mean, from the inner products of its task vectors."""
    total = NOTHING
    for first in range(n):
        for second in range(first + 1, n):
            size = np.sqrt(products[first, first]) * np.sqrt(products[second, second])
            cosine = min(max(products[first, second] / size, -1.0), 1.0) if size > 0.0 else 0.0
            total += np.arccos(cosine) if program.of_angles else cosine
    mean = total / (n * (n - 1) // 2)
    cosine = np.cos(mean) if program.of_angles else mean
    denominator = 1 + (n - 1) * cosine
    if abs(denominator) < SINGULAR or (program.is_clamped and cosine <= 0.0):
        return 0.0
    return n * cosine / denominator
