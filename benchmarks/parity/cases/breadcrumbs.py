"""`breadcrumbs` against other tools."""

from benchmarks.parity.case import SCALAR, SMALL, UNEQUAL, Case

NO_SMALL_TENSORS = "it zeroes the task vector of a tensor too small to keep one entry; we keep such a tensor whole"
CLIPPED = "at density 1 it ignores the outliers; we drop them"
SHRUNK = "it drops fewer outliers when density and outliers exceed 1; we drop what was asked and keep the rest"

CASES = (
    Case(
        "breadcrumbs", "density .5, outliers .1, weighted", "mergekit", "breadcrumbs",
        {"density": 0.5, "outlier_fraction": 0.1, "scaling_coefficient": 0.4},
        {"density": 0.5, "gamma": 0.1, "lambda": 0.4}, weights=UNEQUAL, left_out=(SCALAR,),
    ),
    Case(
        "breadcrumbs", "density .15, outliers .01 (the defaults)", "mergekit", "breadcrumbs",
        {}, {"density": 0.15, "gamma": 0.01, "lambda": 0.3}, left_out=(SCALAR, SMALL),
    ),
    Case(
        "breadcrumbs", "the defaults, tensors of 1 and 3 entries too", "mergekit", "breadcrumbs",
        {}, {"density": 0.15, "gamma": 0.01, "lambda": 0.3}, differs=NO_SMALL_TENSORS,
    ),
    Case(
        "breadcrumbs", "signs elected", "mergekit", "breadcrumbs_ties",
        {"density": 0.5, "outlier_fraction": 0.1, "scaling_coefficient": 1.0, "elect_signs": True},
        {"density": 0.5, "gamma": 0.1}, weights=UNEQUAL, left_out=(SCALAR,),
    ),
    Case(
        "breadcrumbs", "density 1, no outliers", "mergekit", "breadcrumbs",
        {"density": 1.0, "outlier_fraction": 0.0, "scaling_coefficient": 0.4},
        {"density": 1.0, "gamma": 0.0, "lambda": 0.4},
    ),
    Case(
        "breadcrumbs", "density 1, outliers .1", "mergekit", "breadcrumbs",
        {"density": 1.0, "outlier_fraction": 0.1, "scaling_coefficient": 0.4},
        {"density": 1.0, "gamma": 0.1, "lambda": 0.4}, differs=CLIPPED,
    ),
    Case(
        "breadcrumbs", "density .95, outliers .1", "mergekit", "breadcrumbs",
        {"density": 0.95, "outlier_fraction": 0.1, "scaling_coefficient": 0.4},
        {"density": 0.95, "gamma": 0.1, "lambda": 0.4}, differs=SHRUNK,
    ),
)  # fmt: skip
