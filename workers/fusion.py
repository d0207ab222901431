"""How a method is computed in one go: rows as files hold them, and a value that says what is made of them.

A method that is element-wise, once its statistics are known, says with `fused=` of merge_method what it computes as a
`FusedMerge`: masks, an election or a sum, and how the result joins the base model. numerics/fused.py runs it over a
piece, from the files' bytes to the output's, without an array between. The method's torch function stays its
definition: the two agree to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.domain.catalog import Granularity

BFLOAT16, FLOAT32, FLOAT16 = range(3)  # kinds of rows
ROW_KINDS = {"BF16": BFLOAT16, "F32": FLOAT32, "F16": FLOAT16}
KIND_BYTES = {BFLOAT16: 2, FLOAT32: 4, FLOAT16: 2}
NO_FILE = -1
PART_BYTES = 1 << 19  # of all rows, that are read from their files at a time, or about as many: half a second cache
LEAST_PART, PART, LARGEST_PART = 1 << 12, 1 << 14, 1 << 16  # elements of a row; programs.PRODUCT_BLOCK divides them
Bytes = NDArray[np.uint8]


class NotClean(Exception):
    """Rows cannot be read or are not finite: what is wrong shows when they are read as a piece."""


@dataclass(frozen=True)
class Rows:
    """A run of elements of one tensor as the files hold it: the base model's row first, if there is one."""

    tensor: str
    shape: tuple[int, ...]  # of the whole tensor
    offset: int  # flat index within the tensor
    position: int  # flat index within the merge set
    n_elements: int
    content: Bytes  # rows, or room for what is read of them at a time; it belongs to the thread, until its next run
    at: NDArray[np.int64]  # first byte of each row, or of its room, within the content
    kinds: NDArray[np.int64]  # kind of each row
    files: NDArray[np.int64]  # descriptor of the file that a kernel reads the row from, NO_FILE if it is in the content
    places: NDArray[np.int64]  # first byte of each row within its file
    has_base: bool
    is_judged: bool = False  # an earlier pass found all of the tensor finite
    draws: tuple["Draw", ...] = ()  # one per model: what chance drops of it before anything else; (): none
    importance: "Importance | None" = None  # of the one model's changes: they stand for task vectors where keys count
    part: int = PART  # elements of each row that a kernel reads at a time

    @property
    def n_models(self) -> int:
        """How many rows are models."""
        return len(self.kinds) - self.has_base

    @property
    def are_stored(self) -> bool:
        """Whether kernels read all rows from files, and so can read elsewhere in the tensor, too."""
        return bool((self.files != NO_FILE).all())

    def without_base(self) -> "Rows":
        """Return the models' rows alone."""
        if not self.has_base:
            return self
        return replace(self._with([*range(1, len(self.kinds))]), has_base=False)

    def of_model(self, model: int) -> "Rows":
        """Return the rows of one model, and of the base if there is one."""
        base = [0] if self.has_base else []
        return replace(self._with([*base, len(base) + model]), draws=self.draws[model : model + 1])

    def _with(self, numbers: list[int]) -> "Rows":
        return replace(self, **{name: getattr(self, name)[numbers] for name in ("at", "kinds", "files", "places")})


def part_of(n_bytes: int) -> int:
    """Return how many elements of each row are read at a time, of rows whose elements have so many bytes together."""
    return min(max(1 << round(log2(PART_BYTES / n_bytes)), LEAST_PART), LARGEST_PART)


@dataclass(frozen=True)
class Band:
    """Keeps the entries of a task vector that rank before `lower` and not before `upper` (numerics/sparsify.py)."""

    lower: tuple[float, int]  # magnitude and flat index of a boundary
    upper: tuple[float, int]
    origin: int  # index, within what was ranked, of the tensor's first element


@dataclass(frozen=True)
class Draw:
    """Keeps an entry if its draw, by position in the tensor, lies below its probability (numerics/randomness.py).

    With a spread, that grows with the rank of the entry's magnitude within its row, from `probability` - spread to
    + spread. What is kept may be divided by it in float64, and rounded to float32; then multiplied by the factor, and
    rounded again.
    """

    key: int
    probability: float
    spread: float = 0.0
    divides: bool = False
    factor: float = 1.0


@dataclass(frozen=True)
class Election:
    """The entries elect a sign, and those that agree with it are merged (numerics/signs.py)."""

    votes: tuple[float, ...]  # one per model
    balanced_sign: int  # -1 or 1
    reduction: Literal["mean", "sum", "max"]


@dataclass(frozen=True, eq=False)
class Importance:
    """Takes the entries of a tensor that matter: |θ - θ₀| times the divergence of the row is at least the threshold.

    The product is taken in float64, held below the largest float32 and rounded to it (numerics/importance.py).
    """

    threshold: float
    divergences: NDArray[np.float64]  # one per row
    width: int  # of a row


@dataclass(frozen=True)
class RowRatio:
    """Pulls the mean of each row towards the base model's row, the farther the wider the angles between task vectors.

    How far it stays away is the ratio of methods/model_stock.py.
    """

    of_angles: bool  # whether angles are averaged, or their cosines
    is_clamped: bool


@dataclass(frozen=True)
class Needed:
    """Keeps the merged entries x that at least so many models need: |wᵢ τᵢ| > threshold · |x - wᵢ τᵢ|, τᵢ undropped."""

    threshold: float
    min_models: int


@dataclass(frozen=True)
class FusedMasks:
    """What all tasks share of each element, and which models keep it for theirs (numerics/unification.py).

    Task vectors are summed in float64. Without a threshold the shared number is the model's that lies farthest from the
    base model's on the sum's side, and who lies on that side keeps it. With one it is the base model's plus the sum,
    and kept by whose task vector, which is float64 then, is larger than threshold times what the others add.
    """

    threshold: float | None = None
    is_measured: bool = False  # whether the sums are wanted that tell each task's scale


@dataclass(frozen=True)
class FusedMerge:
    """What becomes of each element: base_share · base + scaling · (Σ wᵢ xᵢ) / divisor, all but xᵢ in float64.

    xᵢ is the model's element or, with `of_deltas`, what it differs by from the base model, in float32, zero where the
    draw or the mask drops it. In place of the sum may stand its quotient by the number of xᵢ that are not zero (if that
    is 1, times this model's boost); the xᵢ of the largest magnitude, the last of equal ones; or the one model's element
    if it is no farther than `reach` from the base model's, else this moved by the reach. With an election, xᵢ is turned
    by the sign of wᵢ, and the election's reduction by |wᵢ| stands for the sum. Of this sum, whatever it is, too few
    models may need an entry: it counts as zero then. "important" takes the one model's element where it matters, else
    the base model's. "pulled" stands for what the row's ratio makes of the models and the base model, whatever the
    weights.
    """

    weights: tuple[float, ...]  # one per model
    of_deltas: bool = False
    draws: tuple[Draw, ...] = ()  # one per model; (): none, or those that rows come with
    masks: tuple[Band, ...] = ()  # one per model, of what is drawn; (): none
    election: Election | None = None
    reduction: Literal["sum", "mean_of_changed", "furthest", "near", "important", "pulled"] = "sum"  # if none elects
    boosts: tuple[float, ...] = ()  # one per model, or all are 1
    reach: float = 0.0
    needed: Needed | None = None
    importance: Importance | None = None
    ratio: RowRatio | None = None
    scaling: float = 1.0
    divisor: float = 1.0
    base_share: float | None = None  # None: the base model has no share

    @property
    def granularity(self) -> Granularity:
        """What it must see at once: any run of elements, or whole rows."""
        return "row" if self.ratio is not None or is_by_row(self.draws) else "element"


def is_by_row(draws: Sequence[Draw]) -> bool:
    """Tell whether draws need whole rows."""
    return any(draw.spread != 0.0 for draw in draws)
