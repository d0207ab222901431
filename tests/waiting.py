"""Wait on a condition with a deadline; no test sleeps and hopes."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_until(
    predicate: Callable[[], Result | None],
    *,
    deadline_seconds: float = 10.0,
    every_seconds: float = 0.02,
    reason: str = "",
) -> Result:
    """Call `predicate` until it returns something true, and return that.

    An exception of the predicate is the test's: it is not caught.

    Raises:
        AssertionError: nothing true came before the deadline; the message carries the last result.
    """
    deadline = time.monotonic() + deadline_seconds
    while not (result := predicate()):
        if time.monotonic() > deadline:
            expected = reason or getattr(predicate, "__name__", "the condition")
            message = f"{expected} did not come true within {deadline_seconds} s; the last result was {result!r}"
            raise AssertionError(message)
        time.sleep(every_seconds)
    return result
