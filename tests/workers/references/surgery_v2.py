"""`surgery_v2` without data, worked by hand: as `surgery`."""

from tests.workers.references.surgery import merge, tasks

__all__ = ["merge", "tasks"]
