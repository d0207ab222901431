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


def truncate(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors (A, B) of the best approximation of B·A of at most some rank, the singular values split evenly.

    a: [r, in]; b: [out, r], any floating dtype; result: float64.
    """
    if a.shape[0] == 0:
        return a.double(), b.double()
    u, sigma, vt = decompose(a, b)
    kept = min(rank, int((sigma > 0).sum()))
    return balance(u[:, :kept], sigma[:kept], vt[:kept])


def decompose(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular triples of B·A, those of 0 included: [out, k], [k], [k, in] float64, the largest first.

    a: [r, in]; b: [out, r], any floating dtype. The product is never formed: with B = Q R and Aᵀ = P S its singular
    values are those of R·Sᵀ, which is r × r.
    """
    q, r = torch.linalg.qr(b.double())
    p, s = torch.linalg.qr(a.double().T)
    u, sigma, vt = torch.linalg.svd(r @ s.T, full_matrices=False)
    return q @ u, sigma, vt @ p.T


def balance(u: Tensor, sigma: Tensor, vt: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors A = √σ Vᵀ and B = U √σ; of each pair of vectors the left one's largest entry is positive."""
    sign = _signs(u)
    root = sigma.sqrt()
    return vt * (sign * root).unsqueeze(1), u * (sign * root)


def fix_signs(vectors: Tensor) -> Tensor:
    """Return the columns, each turned so that its largest entry is positive: decompositions leave the sign open."""
    return vectors * _signs(vectors)


def _signs(vectors: Tensor) -> Tensor:
    if vectors.numel() == 0:
        return torch.ones(vectors.shape[1], dtype=vectors.dtype)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)


def linearize(a: Tensor, b: Tensor, a_start: Tensor, b_start: Tensor) -> Tensor:
    """Return the first-order Taylor expansion of B·A around its start: B·A₀ + B₀·(A − A₀), in the inputs' dtype."""
    return b @ a_start + b_start @ (a - a_start)


def expand(a: Tensor, b: Tensor, a_start: Tensor | None, b_start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return factors (A, B) of an adapter's update; of a linearized one, without rounding any entry, of its expansion.

    B·A₀ + B₀·A − B₀·A₀ is again a product, of rank 3r; where B₀ is zero, as PEFT starts, of rank r.
    """
    if a_start is None or b_start is None:
        return a, b
    if not b_start.any():
        return a_start, b
    return torch.cat([a_start, a, a_start]), torch.cat([b, b_start, -b_start], dim=1)
