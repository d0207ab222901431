"""What is measured against what: a method of ours with its settings, and how another tool is asked for the same.

`ROWS` are those of the goals at 1.1 billion parameters; benchmarks/clip has a list of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

MERGEKIT, FUSION_BENCH = "mergekit", "fusion-bench"

RANDOM = "random numbers of another stream"
FLOAT32_ANGLE = "it takes the angles of nearly parallel tensors in float32"
BY_MAGNITUDE = (  # methods that find thresholds or ranks before they merge: they may take more memory
    "arcee_fusion", "breadcrumbs", "cabs", "consensus_ties", "della", "della_linear", "localize_and_stitch_dataless",
    "pcb", "peru_fft", "post_pruning", "sce", "ties",
)  # fmt: skip

Values = Mapping[str, JsonValue]

AS_MERGEKIT: Values = {"trim_scope": "tensor", "vote": "weighted", "zero_vote": "positive"}


@dataclass(frozen=True)
class Peer:
    """How another tool is asked for a row's merge.

    same: our parameters under which both compute the same, where the row's are others; merged once, to be compared.
    """

    tool: str
    call: str  # its name for the method, or its class
    parameters: Values = field(default_factory=dict)
    differs: str = ""  # why results are not expected to be equal
    same: Values | None = None
    goal: float | None = None  # its process's time over our merge's


@dataclass(frozen=True)
class Row:
    """One method with its settings."""

    method: str
    settings: str = ""  # for the table: what is not the default
    parameters: Values = field(default_factory=dict)
    peers: tuple[Peer, ...] = ()
    n_models: int | None = None  # None: all there are
    is_based: bool = True  # whether the base model is given
    task: int | None = None  # of a multitask artifact: whose model is compared

    @property
    def name(self) -> str:
        """What the row is called in the table and among the results."""
        return f"{self.method}, {self.settings}" if self.settings else self.method

    @property
    def finds_thresholds(self) -> bool:
        """Whether magnitudes are ranked before anything is merged."""
        return self.method in BY_MAGNITUDE or "trim_density" in self.parameters


ROWS = (
    Row(
        "average",
        peers=(Peer(MERGEKIT, "linear", goal=8), Peer(FUSION_BENCH, "SimpleAverageAlgorithm", goal=10)),
        is_based=False,
    ),
    Row(
        "task_arithmetic",
        peers=(Peer(MERGEKIT, "task_arithmetic", {"lambda": 0.3}, goal=8),
               Peer(FUSION_BENCH, "TaskArithmeticAlgorithm", {"scaling_factor": 0.3}, goal=10)),
    ),
    Row("ties", peers=(Peer(MERGEKIT, "ties", {"density": 0.2}, same=AS_MERGEKIT, goal=30),)),
    Row(
        "breadcrumbs",
        peers=(Peer(MERGEKIT, "breadcrumbs", {"density": 0.15, "gamma": 0.01, "lambda": 0.3}, goal=25),),
    ),
    Row(
        "dare_ties", "density .2", {"density": 0.2},
        (Peer(MERGEKIT, "dare_ties", {"density": 0.2}, RANDOM,
              {"density": 0.2, "rescale": "l1", "vote": "weighted", "reduce": "sum"}, 30),),
    ),
    Row("karcher", peers=(Peer(MERGEKIT, "karcher", differs=FLOAT32_ANGLE, goal=80),), is_based=False),
    Row(
        "model_stock",
        peers=(Peer(MERGEKIT, "model_stock", same={"mean": "cosine", "clamp": False}, goal=15),),
    ),
    Row(
        "slerp", "two models", {"t": 0.5}, (Peer(MERGEKIT, "slerp", {"t": 0.5}, FLOAT32_ANGLE, goal=8),),
        n_models=2, is_based=False,
    ),
)  # fmt: skip

START_UP = {  # by tool: the merge whose time for next to nothing is what starting the tool takes
    MERGEKIT: Peer(MERGEKIT, "linear"),
    FUSION_BENCH: Peer(FUSION_BENCH, "SimpleAverageAlgorithm"),
}
