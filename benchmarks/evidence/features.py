"""How far features lie from those of each task's own model, before and after Surgery, on texts it has not seen.

Source: Yang et al. 2024, arXiv:2402.02705 (Representation Surgery), equation 2: the mean absolute difference.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint
from app.domain.parameters import NestedMethod
from app.domain.work import EvaluateWork
from benchmarks.suite.inputs import Suite, open_bench


def measure_distances(
    suite: Suite, models: Sequence[LocalCheckpoint], shared: NestedMethod, operated: EvaluateWork, n_texts: int
) -> dict[str, JsonValue]:
    """Return the distance on each task of a merge (`before`), and of what Surgery made of it (`after`).

    operated: the result as it is measured, with a scratch folder; n_texts: of each task's test split, evenly spaced.
    """
    folder = _room_of(operated)
    tasks = range(len(suite.tasks))
    bench = open_bench(suite, models, folder, merged=operated)
    with bench.merge(shared, tasks) as merged:
        before = [merged.embed(task, n_texts) for task in tasks]
    with bench.take(shared) as merged:
        after = [merged.embed(task, n_texts) for task in tasks]
    own: list[Tensor] = []
    for task in tasks:
        with bench.combine([float(model == task) for model in tasks]) as merged:
            own.append(merged.embed(task, n_texts))
    return {"before": _distances(before, own), "after": _distances(after, own)}


def _distances(found: Sequence[Tensor], own: Sequence[Tensor]) -> list[JsonValue]:
    return [(one - aim).double().abs().mean().item() for one, aim in zip(found, own, strict=True)]


def _room_of(operated: EvaluateWork) -> Path:
    if operated.scratch is None:
        raise ValueError("expected work with a scratch folder, found none")
    return operated.scratch.parent
