"""`model_stock` against other tools."""

from benchmarks.parity.case import SCALAR, Case

AS_MERGEKIT = {"mean": "cosine", "clamp": False}
ANGLES = "it averages the cosines of all pairs; we average their angles, as the authors do"
CLAMPED = "its ratio is below 0 where task vectors oppose each other; ours is held at 0, the base model"
TWO = (1.0, 1.0)
KERNEL = "encoder.conv.weight"  # rows of three: ratios so far from 0 that float32 shows

CASES = (
    Case("model_stock", "cosines, no clamp", "mergekit", "model_stock", AS_MERGEKIT),
    Case(
        "model_stock", "cosines, no clamp, by row", "mergekit", "model_stock",
        {**AS_MERGEKIT, "scope": "row"}, {"filter_wise": True}, left_out=(KERNEL,),
    ),
    Case("model_stock", "two models, no clamp", "mergekit", "model_stock", {"clamp": False}, weights=TWO),
    Case("model_stock", "angles, no clamp", "mergekit", "model_stock", {"clamp": False}, differs=ANGLES),
    Case("model_stock", "the defaults", "mergekit", "model_stock", differs=CLAMPED),
    Case("model_stock", "angles, no clamp", "fusion-bench", "ModelStock", {"clamp": False}, left_out=(SCALAR,)),
    Case(
        "model_stock", "two models, no clamp", "fusion-bench", "ModelStock",
        {"clamp": False}, weights=TWO, left_out=(SCALAR,),
    ),
    Case("model_stock", "the defaults", "fusion-bench", "ModelStock", differs=CLAMPED),
)  # fmt: skip
