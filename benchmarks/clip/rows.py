"""What is measured: every method that works by elements, rows or thresholds, and who else can do the same.

A row's settings are those under which both sides are meant to compute the same (benchmarks/parity says so too); where
they draw random numbers or part for a reason, `differs` says why, and only time and memory are compared.
"""

from pydantic import JsonValue

from benchmarks.engine.rows import AS_MERGEKIT, FLOAT32_ANGLE, FUSION_BENCH, MERGEKIT, RANDOM, Peer, Row, Values
from benchmarks.engine.shapes import SHAPES, n_elements

GOAL = 8.0  # times as fast as each tool that has the method

SAMPLED = "its quartiles are those of a sample of large tensors"
FLOORED = "it takes products of norms for 1e-6 at least: rows of the patch embedding are smaller"
EQUAL_SHARES = "equal shares where mean squares add up to less than 1e-6, as here"


def _mergekit(call: str, differs: str = "", **parameters: JsonValue) -> Peer:
    return Peer(MERGEKIT, call, parameters, differs, goal=GOAL)


def _fusion_bench(call: str, differs: str = "", **parameters: JsonValue) -> Peer:
    return Peer(FUSION_BENCH, call, parameters, differs, goal=GOAL)


def _one_more(density: float) -> float:
    """Return the density that keeps one entry more of all: fusion-bench's k-th value counts from the other end."""
    n = n_elements(SHAPES["clip"])
    return (int(density * n) + 1) / n


DARE_OF_FUSION_BENCH: Values = {"sparsity_ratio": 0.5, "only_on_linear_weights": False, "rescale": True}

ROWS = (
    Row("average", peers=(_mergekit("linear"), _fusion_bench("SimpleAverageAlgorithm"))),
    Row(
        "task_arithmetic",
        peers=(Peer(MERGEKIT, "task_arithmetic", {"lambda": 0.3}, goal=GOAL),
               _fusion_bench("TaskArithmeticAlgorithm", scaling_factor=0.3)),
    ),
    Row(
        "ties", "per tensor, weighted vote", AS_MERGEKIT, (_mergekit("ties", density=0.2),),
    ),
    Row(
        "ties", "λ .3, one entry more", {"density": _one_more(0.2), "scaling_coefficient": 0.3},
        (_fusion_bench("TiesMergingAlgorithm", scaling_factor=0.3, threshold=20, remove_keys=[], merge_func="mean"),),
    ),
    Row(
        "breadcrumbs",
        peers=(Peer(MERGEKIT, "breadcrumbs", {"density": 0.15, "gamma": 0.01, "lambda": 0.3}, goal=GOAL),),
    ),
    Row(
        "breadcrumbs", "signs elected", {"elect_signs": True, "scaling_coefficient": 1.0},
        (_mergekit("breadcrumbs_ties", density=0.15, gamma=0.01),),
    ),
    Row("dare_linear", "l1 norms restored", {"rescale": "l1"}, (_mergekit("dare_linear", RANDOM, density=0.5),)),
    Row(
        "dare_linear",
        peers=(Peer(FUSION_BENCH, "DareTaskArithmetic", {**DARE_OF_FUSION_BENCH, "scaling_factor": 1.0}, RANDOM,
                    goal=GOAL),),
    ),
    Row(
        "dare_ties", "l1 norms restored, weighted vote, sum", {"rescale": "l1", "vote": "weighted", "reduce": "sum"},
        (_mergekit("dare_ties", RANDOM, density=0.5),),
    ),
    Row(
        "dare_ties", "trimmed to .2, sum", {"trim_density": 0.2, "reduce": "sum", "zero_vote": "majority"},
        (Peer(FUSION_BENCH, "DareTiesMerging",
              {**DARE_OF_FUSION_BENCH, "scaling_factor": 1.0, "threshold": 20, "remove_keys": [], "merge_func": "sum"},
              RANDOM, goal=GOAL),),
    ),
    Row("dare_ties"),
    Row(
        "della", "l1 norms restored, weighted vote", {"rescale": "l1", "vote": "weighted"},
        (_mergekit("della", RANDOM, density=0.7, epsilon=0.07),),
    ),
    Row(
        "della_linear", "l1 norms restored", {"rescale": "l1"},
        (_mergekit("della_linear", RANDOM, density=0.7, epsilon=0.07),),
    ),
    Row("della"),
    Row("karcher", peers=(_mergekit("karcher", FLOAT32_ANGLE),), is_based=False),
    Row(
        "model_stock", "cosines, no clamp", {"mean": "cosine", "clamp": False}, (_mergekit("model_stock"),),
    ),
    Row("model_stock", "no clamp", {"clamp": False}, (_fusion_bench("ModelStock"),)),
    Row("model_stock", "by row", {"mean": "cosine", "clamp": False, "scope": "row"},
        (_mergekit("model_stock", FLOORED, filter_wise=True),)),
    Row("multislerp", peers=(_mergekit("multislerp"),)),
    Row("nuslerp", "two models", peers=(_mergekit("nuslerp"),), n_models=2),
    Row(
        "slerp", "two models", {"t": 0.5},
        (_mergekit("slerp", FLOAT32_ANGLE, t=0.5), _fusion_bench("SlerpMergeAlgorithm", FLOAT32_ANGLE, t=0.5)),
        n_models=2,
    ),
    Row("sce", "density .1", {"density": 0.1}, (_mergekit("sce", EQUAL_SHARES, select_topk=0.1),)),
    Row("ram", peers=(_mergekit("ram"),)),
    Row(
        "ram", "boost .1", {"unique_boost": 0.1}, (_mergekit("ramplus_tl", epsilon=1e-5),),
    ),
    Row("magmax", peers=(_fusion_bench("MagMaxAlgorithm"),)),
    Row("expo", peers=(_fusion_bench("ExPOAlgorithm", extrapolation_factor=0.3),)),
    Row("arcee_fusion", "one model", peers=(_mergekit("arcee_fusion", SAMPLED),), n_models=1),
    Row("nearswap", "one model", peers=(_mergekit("nearswap", t=0.0001),), n_models=1),
    Row("passthrough", "one model", peers=(_mergekit("passthrough"),), n_models=1, is_based=False),
    Row("emr", "tensor means", {"rescale": "tensor_mean"}, (_fusion_bench("emr_merge"),), task=0),
    Row("tall_mask"),
    Row("consensus_ta"),
    Row("consensus_ties"),
    Row("awd_task_arithmetic"),
    Row("localize_and_stitch_dataless"),
    Row("pcb"),
    Row("cabs"),
    Row("bitdelta"),
    Row("peru_fft"),
    Row("post_pruning"),
)  # fmt: skip
