"""Runs a function over items on several threads and yields the results in the items' order, a few ahead.

torch and hashlib let go of the interpreter lock while they work, so threads are enough.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # results that may wait, per thread


def n_threads(threads: int | None) -> int:
    """Return the number of threads asked for, or one for each core this process may use."""
    return max(1, threads if threads is not None else len(os.sched_getaffinity(0)))


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """Yield function(item) in the order of the items; the first error ends everything."""
    with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= threads * AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch from starting threads of its own inside ours; sums then also have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
