"""`fisher` against other tools, both given the same information: measuring it is another matter (docs/methods)."""

from benchmarks.parity.case import UNEQUAL, Case

CALL = "merging_with_fisher_weights"
FLOOR = "it adds the floor before it scales a model's information, we after: its floor depends on the model's scale"

CASES = (
    Case(
        "fisher", "no floor", "fusion-bench", CALL,
        {"floor": 0.0}, {"minimal_fisher_weight": 0.0}, statistics="fisher",
    ),
    Case(
        "fisher", "no floor, weights .5, .3, .2", "fusion-bench", CALL,
        {"floor": 0.0}, {"minimal_fisher_weight": 0.0}, statistics="fisher", weights=UNEQUAL,
    ),
    Case(
        "fisher", "not normalized", "fusion-bench", CALL,
        {"normalize": False}, {"normalize_fisher_weight": False}, statistics="fisher",
    ),
    Case("fisher", "the defaults", "fusion-bench", CALL, statistics="fisher", differs=FLOOR),
)  # fmt: skip
