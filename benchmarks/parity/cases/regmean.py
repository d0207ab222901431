"""`regmean` against other tools, both given the same Gram matrices."""

from benchmarks.parity.case import Case

CASES = tuple(
    Case(
        "regmean", f"off the diagonals times {scale:g}", "fusion-bench", "merging_with_regmean_weights",
        {"non_diagonal_scale": scale}, {"reduce_non_diagonal_ratio": scale}, statistics="gram",
    )
    for scale in (0.9, 1.0)
)  # fmt: skip
