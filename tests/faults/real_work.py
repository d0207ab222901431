"""A job process that does its work as it is, without what a worker checks and compiles first. For tests alone."""

from workers.runner import run

__all__ = ["run", "warm_up"]


def warm_up() -> str | None:
    return None
