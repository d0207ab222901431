"""Every method worked out by hand in float64 numpy, entry by entry where it matters: slow, short, and nobody's copy.

A reference is `merge(base, models, weights, effective parameters)` in the file named like its method; it takes and
returns state dicts of float64 arrays. The laws refuse a method without one.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from tests.workers.references.arrays import Arrays, Reference


def load_reference(method: str) -> Reference:
    """Return the reference of a method."""
    reference: Reference = import_module(f"tests.workers.references.{method}").merge
    return reference


def named_references() -> list[str]:
    """Return the methods that have one."""
    shared = ("arrays", "draws", "find", "matrices", "voting")
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in shared)


def load_tasks_reference(method: str) -> Callable[..., Sequence[Arrays]]:
    """Return the reference of a method's tasks: like that of the method, but with the model of each task."""
    reference: Callable[..., Sequence[Arrays]] = import_module(f"tests.workers.references.{method}").tasks
    return reference
