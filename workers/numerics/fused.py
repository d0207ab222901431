"""Runs fused merges over rows: programs become arrays, kernels work on them, and torch steps in where there are none.

The kernels are compiled, or loaded from their cache, by `load`: once, while a process warms up, never within a job.
Where that cannot be, everything goes the way it went before them, through the methods' torch functions.
"""

import logging
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from workers.fusion import FLOAT32, NO_FILE, Draw, FusedMasks, FusedMerge, NotClean, Rows
from workers.numerics import programs
from workers.numerics.arrays import input_of, program_of, ranking_of, scratch_of, thresholds, undrawn, unsigned
from workers.numerics.programs import Windows

# dtypes that can be written, with the bits of the smallest float32 magnitude that is infinite once rounded to them
OUTPUTS = {torch.bfloat16: 0x7F7F_8000, torch.float32: 0x7F80_0000}
Keys = NDArray[np.int32]  # bits of magnitudes, or bins of them
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class FoundMasks:
    """Which entries each model keeps, and what tells the scales: see numerics/unification.py."""

    bits: NDArray[np.uint8]  # [n, ⌈m / 8⌉], the lowest bit first
    sums: NDArray[np.int64] | None  # [n, 2, 256]: of |τ|, and of what the mask keeps of |shared - base|, by exponent


_log = logging.getLogger(__name__)
_loaded: list[ModuleType] = []
_of_thread = threading.local()


def load() -> bool:
    """Make the kernels ready, and tell whether they are: in half a minute by compiling them, later in seconds."""
    if not _loaded:
        try:
            _loaded.append(_import())
        except Exception as error:  # noqa: BLE001 (not installed, or on a processor or a system it does not know)
            _log.warning("merges run without fused kernels: %s: %s", type(error).__name__, error)
    return is_ready()


def _import() -> ModuleType:
    try:
        return import_module("workers.numerics.kernels.entries")
    except RuntimeError:  # no folder for the cache: neither beside the code nor in the user's home may be written
        import_module("numba").config.CACHE_DIR = tempfile.mkdtemp(prefix="amalgam-kernels-")
        return import_module("workers.numerics.kernels.entries")


def is_ready() -> bool:
    """Tell whether the kernels are loaded."""
    return bool(_loaded)


def takes(numbers: torch.Tensor) -> bool:
    """Tell whether kernels can be given these numbers."""
    return is_ready() and numbers.device.type == "cpu"


def merge(rows: Rows, fused: FusedMerge, out: torch.Tensor) -> bool:
    """Write the merge of the rows into `out`, and tell whether all is finite: rows, task vectors, result in its dtype.

    out: [m] bfloat16 or float32, contiguous, on the CPU. Where a result is zero and the base is -0.0, it is -0.0.
    """
    program = program_of(fused, rows.has_base)
    given = input_of(rows, fused.draws, fused.importance, by_row=fused.granularity == "row")
    scratch = scratch_of(len(program.weights), given)
    to_bfloat16 = out.dtype == torch.bfloat16
    largest = _loaded[0].merge(given, program, scratch, out.view(torch.uint8).numpy(), to_bfloat16)
    return bool(largest < OUTPUTS[out.dtype])


def join(base: torch.Tensor, vectors: torch.Tensor, fused: FusedMerge) -> torch.Tensor | None:
    """Return the merge of a base and vectors in memory, [*shape] float32; None where not all of it is finite.

    base: [*shape] float32, vectors: [n, *shape] float32, which stand for the models' rows.
    """
    out = torch.empty(base.numel())
    return out.view(base.shape) if merge(_hold(base, vectors), fused, out) else None


def _hold(base: torch.Tensor, vectors: torch.Tensor) -> Rows:
    """Return rows of numbers in memory. base: [*shape] float32, vectors: [n, *shape] float32."""
    n, m = len(vectors), base.numel()
    content = torch.empty((1 + n, m))
    content[0], content[1:] = base.reshape(-1), vectors.reshape(n, m)
    whole, nowhere = np.zeros(1 + n, dtype=np.int64), np.full(1 + n, NO_FILE, dtype=np.int64)
    at, kinds = np.arange(1 + n) * (4 * m), np.full(1 + n, FLOAT32, dtype=np.int64)
    memory = content.view(torch.uint8).numpy().reshape(-1)
    return Rows("", tuple(base.shape), 0, 0, m, memory, at, kinds, nowhere, whole, has_base=True)


def mask(rows: Rows, fused: FusedMasks, out: torch.Tensor) -> FoundMasks | None:
    """Write what all tasks share into `out`, as `merge` does, and return the masks; None: not all is finite.

    rows: with a base.
    """
    n = rows.n_models
    masks = np.empty((n, -(-rows.n_elements // 8)), dtype=np.uint8)
    sums = np.zeros((n if fused.is_measured else 0, 2, 256), dtype=np.int64)
    given = undrawn(rows)
    largest = _loaded[0].mask(
        given,
        -1.0 if fused.threshold is None else fused.threshold,
        scratch_of(n, given),
        out.view(torch.uint8).numpy(),
        out.dtype == torch.bfloat16,
        masks,
        sums,
    )
    return FoundMasks(masks, sums if fused.is_measured else None) if largest < OUTPUTS[out.dtype] else None


def read_rows(file: int, place: int, out: NDArray[np.uint8], *, stride: int) -> bool:
    """Read rows of bytes that begin `stride` bytes from each other in a file, and tell whether they are all there.

    file: an open descriptor; out: [rows, bytes], contiguous. Whoever wants to know why not reads them again.
    """
    return is_ready() and bool(_loaded[0].read_rows(file, place, stride, out))


def count_signs(rows: Rows, fused: FusedMerge) -> int:
    """Return how many more elements elect 1 than -1 by the program's election; balanced ones count for neither.

    Raises: NotClean.
    """
    program, given = program_of(fused, rows.has_base), input_of(rows, fused.draws)
    balance = np.empty(1, dtype=np.int64)
    _check(_loaded[0].count_signs(given, program, scratch_of(len(program.weights), given), balance))
    return int(balance[0])


def count_keys(rows: Rows, windows: Windows) -> list[tuple[int, Keys]]:
    """Return, for each window, how many magnitudes of its model's task vector lie above it, and the keys within.

    Keys are the bits of magnitudes; they stand in memory of this thread, until its next call.
    Raises: NotClean.
    """
    n_windows = len(windows.lows)
    found: Keys | None = getattr(_of_thread, "found", None)
    if found is None or found.shape[0] < n_windows or found.shape[1] < rows.n_elements:
        found = _of_thread.found = np.empty((n_windows, rows.n_elements), dtype=np.int32)
    counts = np.empty((n_windows, 2), dtype=np.int64)
    given = input_of(rows)
    _check(_loaded[0].count_keys(given, windows, scratch_of(1, given), found, counts))
    return [(int(n_above), keys[:n_found]) for keys, (n_above, n_found) in zip(found, counts, strict=False)]


def read_keys(rows: Rows, begins: Sequence[int] | NDArray[np.int64] = (0,)) -> Keys:
    """Return the bits of each task vector's magnitudes, [n_models, m].

    begins: elements from the rows' first to those at which runs of as many as the rows have begin, which follow each
    other then: m is so many times as large. Other runs than the rows' own are read where all rows are stored.
    Raises: NotClean.
    """
    keys = np.empty((rows.n_models, len(begins) * rows.n_elements), dtype=np.int32)
    given = input_of(rows)
    at = np.array(begins, dtype=np.int64)
    _check(_loaded[0].read_keys(given, at, scratch_of(1, given), keys.view(np.float32)))
    return keys


def find_keys(rows: Rows, key: int, limit: int) -> NDArray[np.int64]:
    """Return the indices, from the rows' first, of entries whose magnitudes have these bits; the first `limit`, > 0.

    rows: of one model. Raises: NotClean.
    """
    found = np.empty(min(limit, rows.n_elements), dtype=np.int64)
    given = input_of(rows)
    n_found = int(_loaded[0].find_keys(given, np.int32(key), scratch_of(1, given), found))
    _check(n_found)
    return found[:n_found]


def join_counts(one: tuple[Keys, Counts], other: tuple[Keys, Counts]) -> tuple[Keys, Counts]:
    """Return the keys of both, each once, ascending as they are, with the sum of its counts."""
    n = len(one[0]) + len(other[0])
    keys, counts = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.int64)
    given = [np.require(array, requirements=("C", "A", "W")) for array in (*one, *other)]  # files' are read-only
    n_joined = _loaded[0].join_counts(*given, keys, counts)
    return keys[:n_joined].copy(), counts[:n_joined].copy()


def sum_norms(rows: Rows) -> NDArray[np.int64]:
    """Return the sums of each task vector's magnitudes as the rows' draws find and as they leave them, by exponent.

    result: [2, n_models, 256], zeros where nothing is drawn; see numerics/exact_sums.py.
    Raises: NotClean.
    """
    sums = np.empty((2, rows.n_models, 256), dtype=np.int64)
    given = input_of(rows)
    _check(_loaded[0].sum_norms(given, scratch_of(1, given), sums))
    return sums


def count_overlaps(rows: Rows, threshold: float) -> NDArray[np.int64]:
    """Return how many of each task vector's magnitudes above the threshold others share, and how many none does.

    result: [n_models, 2].
    Raises: NotClean.
    """
    given, counts = undrawn(rows), np.empty((rows.n_models, 2), dtype=np.int64)
    _check(_loaded[0].count_overlaps(given, np.float32(threshold), scratch_of(rows.n_models, given), counts))
    return counts


def sum_magnitudes(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return Σ |x| by exponent, [256]. numbers: [m], contiguous."""
    sums = np.zeros(256, dtype=np.int64)
    _loaded[0].sum_magnitudes(numbers, sums)
    return sums


def draw(vector: torch.Tensor, mask: Draw, *, start: int) -> None:
    """Drop, in place, the entries that are not drawn, and scale the others.

    vector: float32, contiguous, on the CPU: any entries, or [rows, width] where it is drawn by rank; start: flat index
    of the first one within the tensor.
    """
    width = vector.shape[-1] if mask.spread else 1
    behinds, divisors = thresholds(width, mask.probability, mask.spread, mask.divides)
    flat = vector.view(-1).numpy()
    _loaded[0].draw(flat, start, unsigned(mask.key), behinds, divisors, mask.factor, ranking_of(width))


def pick(row: torch.Tensor, shared: torch.Tensor, magnitude: float, n_tied: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices, [k] int64, and values, [k] float32, of what lies farther than `magnitude` from a shared row.

    row, shared: [m] float32 on the CPU; n_tied: of so many entries at the front also what lies just as far.
    """
    m = row.numel()
    indices, values = np.empty(m, dtype=np.int64), np.empty(m, dtype=np.float32)
    arrays = row.contiguous().numpy(), shared.contiguous().numpy()
    n_found = _loaded[0].pick(*arrays, np.float32(magnitude), min(max(n_tied, 0), m), indices, values)
    return torch.from_numpy(indices[:n_found].copy()), torch.from_numpy(values[:n_found].copy())


def inner_products(vectors: torch.Tensor) -> torch.Tensor:
    """Return the inner products of all pairs of vectors, [batch, n, n] float64; see numerics/precision.py.

    vectors: [n, batch, m] float32 on the CPU, m > 0.
    """
    n, batch, m = vectors.shape
    products = torch.empty(batch, n, n, dtype=torch.float64)
    _loaded[0].inner_products(vectors.reshape(n * batch, m).contiguous().numpy(), np.empty(m), products.numpy())
    return products


def spread(rows: Rows) -> torch.Tensor:
    """Return the variance of the task vectors over the models, entry by entry, [m] float64; 0 where all are equal.

    Raises: NotClean.
    """
    given, variances = undrawn(rows), np.empty(rows.n_elements)
    _check(_loaded[0].spread(given, scratch_of(rows.n_models, given), variances))
    return torch.from_numpy(variances)


def diverge(finetuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return numerics/importance.py's `diverge` on the CPU, [rows] float64. finetuned, base: [rows, width] float32."""
    return diverge_rows(replace(_hold(base, finetuned.unsqueeze(0)), is_judged=True))


def diverge_rows(rows: Rows) -> torch.Tensor:
    """Return the same of one model's rows, none of them cut. Raises: NotClean."""
    given = input_of(rows, by_row=True)
    out = torch.empty(rows.n_elements // given.width, dtype=torch.float64)
    _check(_loaded[0].diverge(given, scratch_of(1, given), out.numpy()))
    return out


def compete(deltas: torch.Tensor, clips: Sequence[tuple[float, float]], *, of_rescaled: bool) -> torch.Tensor:
    """Return numerics/competition.py's `score` of task vectors on the CPU, [n, m] float32, m > 0.

    clips: smallest and largest magnitude of each; of_rescaled: whether they are compared by rescaled magnitudes.
    """
    scores = np.empty(deltas.shape, dtype=np.float32)
    bounds, memory = np.array(clips, dtype=np.float64), np.empty((2 * len(deltas) + 1, programs.SOME))
    _loaded[0].compete(deltas.contiguous().numpy(), bounds, of_rescaled, memory, scores)
    return torch.from_numpy(scores)


def share_out(
    deltas: torch.Tensor,
    scores: torch.Tensor,
    clips: Sequence[tuple[float, float]],
    bounds: Sequence[tuple[float, float]],
    weights: Sequence[float],
) -> torch.Tensor:
    """Return numerics/competition.py's `share_out` on the CPU, [m] float64, m > 0. clips, bounds: of each."""
    out = np.empty(deltas.shape[1])
    numbers = [np.array(values, dtype=np.float64) for values in (clips, bounds, weights)]
    rows = deltas.contiguous().numpy(), scores.contiguous().numpy()
    _loaded[0].share_out(*rows, *numbers, np.empty(programs.BLOCK), out)
    return torch.from_numpy(out)


def combine_rows(base: torch.Tensor | None, finetuned: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return numerics/spans.py's `combine_rows` on the CPU, with a share for each row.

    base: [rows, width] or None; finetuned: [n, rows, width] float32; shares: [n, rows] float64.
    """
    out = torch.empty(finetuned.shape[1:])
    origin = out.new_empty(0, out.shape[1]) if base is None else base.contiguous()
    arrays = origin.numpy(), finetuned.contiguous().numpy(), shares.contiguous().numpy()
    _loaded[0].combine_rows(*arrays, np.empty(out.shape[1]), out.numpy())
    return out


def multiply_blocks(rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the inner products of all pairs of task vectors, or of models without a base, in blocks of PRODUCT_BLOCK.

    result: the vectors before the first whole block of the tensor, [n, h] float32; the products of whole blocks,
    [n_blocks, n, n] float64; the vectors behind the last, [n, t] float32.
    Raises: NotClean.
    """
    n, block = rows.n_models, programs.PRODUCT_BLOCK
    n_head = min(rows.n_elements, -rows.offset % block)
    n_blocks, n_tail = divmod(rows.n_elements - n_head, block)
    head, tail = (np.empty((n, m), dtype=np.float32) for m in (n_head, n_tail))
    products = np.empty((n_blocks, n, n))
    vectors: NDArray[np.float32] | None = getattr(_of_thread, "vectors", None)
    if vectors is None or len(vectors) != n + 1:
        vectors = _of_thread.vectors = np.empty((n + 1, block), dtype=np.float32)
    _check(_loaded[0].multiply_blocks(undrawn(rows), vectors, np.empty(block), head, tail, products))
    return torch.from_numpy(head), torch.from_numpy(products), torch.from_numpy(tail)


def _check(answer: int) -> None:
    if answer == programs.NOT_CLEAN:
        raise NotClean
