"""`nuslerp` against other tools."""

from benchmarks.parity.case import Case

ROWS = {"nuslerp_flatten": False}
COLUMNS = {"nuslerp_flatten": False, "nuslerp_row_wise": True}

CASES = (
    Case("nuslerp", "weights .7, .3", "mergekit", "nuslerp", weights=(0.7, 0.3)),
    Case("nuslerp", "weights .7, .3, no base", "mergekit", "nuslerp", weights=(0.7, 0.3), is_based=False),
    Case("nuslerp", "weights 3, -1", "mergekit", "nuslerp", weights=(3.0, -1.0)),
    Case("nuslerp", "weights .7, .3, by row", "mergekit", "nuslerp", {"scope": "row"}, ROWS, weights=(0.7, 0.3)),
    Case(
        "nuslerp", "weights .7, .3, by column", "mergekit", "nuslerp",
        {"scope": "column"}, COLUMNS, weights=(0.7, 0.3), left_out=("encoder.scale",),
    ),
)  # fmt: skip
