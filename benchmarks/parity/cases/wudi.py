"""`wudi` against other tools."""

from benchmarks.parity.case import Case

CASES = (
    Case("wudi", "300 steps", "fusion-bench", "WUDIMerging", {"dense_patterns": []}, {"iter_num": 300}),
    Case("wudi", "20 steps", "fusion-bench", "WUDIMerging", {"steps": 20, "dense_patterns": []}, {"iter_num": 20}),
    Case(
        "wudi", "closed form", "fusion-bench", "WUDIMerging",
        {"solver": "closed_form", "dense_patterns": []}, {"iter_num": 300},
        differs="it stops Adam after 300 steps; the closed form goes to the minimum",
    ),
)  # fmt: skip
