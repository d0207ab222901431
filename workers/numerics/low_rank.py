"""Products of two thin factors, element by element in one order: the bits do not depend on where a run is cut.

A product of two float32 numbers is exact in float64, and its terms are added one after the other; a matrix product
would order them by the shape of the piece.
"""

import torch
from torch import Tensor


def multiply_run(left: Tensor, right: Tensor, offset: int, n_elements: int) -> Tensor:
    """Return elements offset, offset + 1, … of the flattened product left · right.

    left: [rows, r]; right: [r, columns], both float32; result: [n_elements] float64.
    """
    n_columns = right.shape[1]
    first, last = offset // n_columns, (offset + n_elements - 1) // n_columns
    begin = offset - first * n_columns
    if first == last:  # a part of one row
        return _multiply(left[first : first + 1], right[:, begin : begin + n_elements]).flatten()
    rows = _multiply(left[first : last + 1], right)
    return rows.flatten()[begin : begin + n_elements]


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    wide, tall = left.double(), right.double()
    total = torch.zeros(left.shape[0], right.shape[1], dtype=torch.float64)
    for index in range(left.shape[1]):
        total.addcmul_(wide[:, index : index + 1], tall[index : index + 1])
    return total
