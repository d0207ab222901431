"""`peft_combination` against PEFT, and read by it."""

from benchmarks.parity.case import FLOAT32_SVD, LOADED, Case

WEIGHTS = (0.7, -0.3)
EXACT = ("cat", "linear", "ties", "magnitude_prune")
CUT = ("svd", "ties_svd", "magnitude_prune_svd")
FREQUENCY = {"majority_sign_method": "frequency"}


def _compare(kind: str) -> Case:
    pruned = {} if kind in ("cat", "linear", "svd") else {"density": 0.5}
    parameters = {"combination_type": kind, **pruned}
    tolerance = FLOAT32_SVD if kind in CUT else 1e-7
    return Case(
        "peft_combination", kind, "peft", "add_weighted_adapter", parameters, parameters, WEIGHTS, tolerance=tolerance
    )


CASES = (
    *(_compare(kind) for kind in (*EXACT, *CUT)),
    Case(
        "peft_combination", "ties, signs by frequency", "peft", "add_weighted_adapter",
        {"combination_type": "ties", "density": 0.5, **FREQUENCY},
        {"combination_type": "ties", "density": 0.5, **FREQUENCY}, WEIGHTS,
    ),
    *(
        Case("peft_combination", f"{kind}, loaded", "peft", LOADED, {"combination_type": kind}, weights=WEIGHTS)
        for kind in ("cat", "svd", "linear")
    ),
)  # fmt: skip
