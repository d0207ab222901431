"""Runs fused merges over rows: programs become arrays, kernels work on them, and torch steps in where there are none.

The kernels are compiled, or loaded from their cache, by `load`: once, while a process warms up, never within a job.
Where that cannot be, everything goes the way it went before them, through the methods' torch functions.
"""

import logging
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from math import ceil, inf
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from workers.fusion import BFLOAT16, FLOAT32, Band, Bytes, Draw, FusedMerge, Mask, Rows
from workers.numerics.signs import NUDGE

OUTPUT_KINDS = {torch.bfloat16: BFLOAT16, torch.float32: FLOAT32}
# bits of the smallest float32 magnitude that is infinite once rounded to the output's dtype
_OVERFLOW = {BFLOAT16: 0x7F7F_8000, FLOAT32: 0x7F80_0000}
_REDUCTIONS = {"mean": 1, "sum": 2, "max": 3}
_BAND, _DRAW = 1, 2

Keys = NDArray[np.int32]
_log = logging.getLogger(__name__)
_loaded: list[ModuleType] = []
_of_thread = threading.local()


def load() -> bool:
    """Make the kernels ready, and tell whether they are: seconds when they are compiled, less from the cache."""
    if not _loaded:
        try:
            _loaded.append(_import())
        except Exception as error:  # noqa: BLE001 (not installed, or on a processor or a system it does not know)
            _log.warning("merges run without fused kernels: %s: %s", type(error).__name__, error)
    return is_ready()


def _import() -> ModuleType:
    try:
        return import_module("workers.numerics.kernels")
    except RuntimeError:  # no folder for the cache: neither beside the code nor in the user's home may be written
        import_module("numba").config.CACHE_DIR = tempfile.mkdtemp(prefix="amalgam-kernels-")
        return import_module("workers.numerics.kernels")


def is_ready() -> bool:
    """Tell whether the kernels are loaded."""
    return bool(_loaded)


def merge(rows: Rows, fused: FusedMerge, out: torch.Tensor) -> bool:
    """Write the merge of the rows into `out`, and tell whether all of it is finite, in float32 and in its own dtype.

    out: [m] bfloat16 or float32, contiguous, on the CPU. Where a result is zero and the base is -0.0, it is -0.0.
    """
    kind = OUTPUT_KINDS[out.dtype]
    program = _compile(fused, rows.has_base, kind)
    largest = _loaded[0].merge(*_arguments(rows, program), out.view(torch.uint8).numpy())
    return bool(largest < _OVERFLOW[kind])


def count_signs(rows: Rows, fused: FusedMerge) -> int:
    """Return how many more elements elect 1 than -1 by the program's election; balanced ones count for neither."""
    return int(_loaded[0].count_signs(*_arguments(rows, _compile(fused, rows.has_base, FLOAT32))))


def count_keys(rows: Rows, model: int, low: int, high: int) -> tuple[int, Keys]:
    """Return how many magnitudes of a model's task vector lie above a window of keys, and the keys within.

    Keys are the bits of magnitudes; they stand in memory of this thread, until its next call.
    """
    first = int(rows.has_base)
    scratch = _scratch_of(1)
    if len(scratch.found) < rows.n_elements:
        scratch.found = np.empty(rows.n_elements, dtype=np.int32)
    n_above, n_found = _loaded[0].count_keys(
        rows.content, rows.at, rows.kinds, rows.n_elements, first, first + model, low, high, scratch.rows, scratch.found
    )
    return n_above, scratch.found[:n_found]


@dataclass(frozen=True)
class _Program:
    """A fused merge as the kernels take it; see there what each place means."""

    flags: NDArray[np.int64]
    shares: NDArray[np.float64]
    weights: NDArray[np.float64]
    votes: NDArray[np.float64]
    turns: NDArray[np.float32]
    masks: NDArray[np.int64]
    marks: NDArray[np.float64]  # [n, 4]
    ends: NDArray[np.int64]  # [n, 2]
    keys: NDArray[np.uint64]


@lru_cache(maxsize=64)
def _compile(fused: FusedMerge, has_base: bool, output_kind: int) -> _Program:  # noqa: FBT001 (a key of the cache)
    n = len(fused.weights)
    election = fused.election
    weights = [abs(weight) if election else weight for weight in fused.weights]
    flags = [
        has_base,
        has_base and fused.of_deltas,
        _REDUCTIONS[election.reduction] if election else 0,
        len(set(weights)) > 1,
        has_base and fused.base_share is not None,
        output_kind,
    ]
    nudge = election.balanced_sign * NUDGE if election else 0.0
    masks = [_describe(mask) for mask in fused.masks or (None,) * n]
    return _Program(
        flags=np.array(flags, dtype=np.int64),
        shares=np.array([fused.scaling, fused.divisor, fused.base_share or 0.0, nudge]),
        weights=np.array(weights, dtype=np.float64),
        votes=np.array(election.votes if election else weights, dtype=np.float64),
        turns=np.sign(np.array(fused.weights)).astype(np.float32),
        masks=np.array([kind for kind, _, _, _ in masks], dtype=np.int64),
        marks=np.array([marks for _, marks, _, _ in masks], dtype=np.float64).reshape(n, 4),
        ends=np.array([ends for _, _, ends, _ in masks], dtype=np.int64).reshape(n, 2),
        keys=np.array([key for _, _, _, key in masks], dtype=np.uint64),
    )


def _describe(mask: Mask | None) -> tuple[int, Sequence[float], Sequence[int], int]:
    """Return kind, magnitudes, indices within the tensor, and key."""
    if isinstance(mask, Band):
        (lower, lower_end), (upper, upper_end) = mask.lower, mask.upper
        marks = (lower, upper, _just_below(lower), _just_below(upper))
        return _BAND, marks, (lower_end - mask.origin, upper_end - mask.origin), 0
    if isinstance(mask, Draw):
        behind = ceil(mask.probability * 2.0**53)  # the draws are whole multiples of 2^-53
        return _DRAW, (0.0,) * 4, (behind, 0), mask.key & (1 << 64) - 1
    return 0, (-1.0, inf, -1.0, inf), (0, 0), 0


def _just_below(magnitude: float) -> float:
    return float(np.nextafter(np.float32(magnitude), np.float32(-inf)))


def _arguments(rows: Rows, program: _Program) -> tuple[object, ...]:
    scratch = _scratch_of(len(program.weights))
    return (
        rows.content, rows.at, rows.kinds, rows.n_elements, rows.offset, program.flags, program.shares,
        program.weights, program.votes, program.turns, program.masks, program.marks, program.ends, program.keys,
        scratch.rows, scratch.wide,
    )  # fmt: skip


class _Scratch:
    """One thread's blocks: the base's row, one per model, two more; two sums in float64; keys that were found."""

    def __init__(self, n_models: int) -> None:
        self.rows = np.empty((n_models + 3, _loaded[0].BLOCK), dtype=np.float32)
        self.wide = np.empty((2, _loaded[0].BLOCK), dtype=np.float64)
        self.found: Keys = np.empty(0, dtype=np.int32)


def _scratch_of(n_models: int) -> _Scratch:
    found: _Scratch | None = getattr(_of_thread, "scratch", None)
    if found is None or len(found.rows) < n_models + 3:
        found = _of_thread.scratch = _Scratch(n_models)
    return found
