"""A job process that does its work as it is, without the checks and kernels that a worker makes ready. For tests alone."""

from workers.runner import run

__all__ = ["run", "warm_up"]


def warm_up() -> str | None:
    return None
