"""`peft_combination` against PEFT, and read by it."""

from benchmarks.parity.case import FLOAT32_SVD, LOADED, TOLERANCE, Case

WEIGHTS = (0.7, -0.3)
EXACT = ("cat", "linear", "ties", "magnitude_prune")
CUT = ("svd", "ties_svd", "magnitude_prune_svd")
FREQUENCY = {"majority_sign_method": "frequency"}


def _compare(kind: str) -> Case:
    pruned = {} if kind in ("cat", "linear", "svd") else {"density": 0.5}
    parameters = {"combination_type": kind, **pruned}
    tolerance = FLOAT32_SVD if kind in CUT else TOLERANCE
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
        Case(
            "peft_combination", f"{kind}, density 1 (nothing is drawn)", "peft", "add_weighted_adapter",
            {"combination_type": kind, "density": 1.0}, {"combination_type": kind, "density": 1.0}, WEIGHTS,
            tolerance=FLOAT32_SVD if kind.endswith("_svd") else TOLERANCE,
        )
        for kind in ("dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd")
    ),
    *(
        Case("peft_combination", f"{kind}, loaded", "peft", LOADED, {"combination_type": kind}, weights=WEIGHTS)
        for kind in ("cat", "svd", "linear")
    ),
)  # fmt: skip
