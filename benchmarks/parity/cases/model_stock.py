"""`model_stock` against other tools."""

from benchmarks.parity.case import Case

AS_MERGEKIT = {"mean": "cosine", "clamp": False}
ANGLES = "it averages the cosines of all pairs; we average their angles, as the authors do"
CLAMPED = "its ratio is below 0 where task vectors oppose each other; ours is held at 0, the base model"
TWO = (1.0, 1.0)

CASES = (
    Case("model_stock", "cosines, no clamp", "mergekit", "model_stock", AS_MERGEKIT),
    Case(
        "model_stock", "cosines, no clamp, by row", "mergekit", "model_stock",
        {**AS_MERGEKIT, "scope": "row"}, {"filter_wise": True},
    ),
    Case("model_stock", "two models, no clamp", "mergekit", "model_stock", {"clamp": False}, weights=TWO),
    Case("model_stock", "angles, no clamp", "mergekit", "model_stock", {"clamp": False}, differs=ANGLES),
    Case("model_stock", "the defaults", "mergekit", "model_stock", differs=CLAMPED),
    Case("model_stock", "angles, no clamp", "fusion-bench", "ModelStock", {"clamp": False}),
    Case("model_stock", "two models, no clamp", "fusion-bench", "ModelStock", {"clamp": False}, weights=TWO),
    Case("model_stock", "the defaults", "fusion-bench", "ModelStock", differs=CLAMPED),
)  # fmt: skip
