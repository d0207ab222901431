"""Runs a function over items on several threads and yields the results in the items' order, a few ahead.

Whoever takes the results comes before those that make them: a merge's are hashed in order, on one thread.

A large item may be spread: its thread hands parts of it to those that have nothing else to do.

torch and hashlib let go of the interpreter lock while they work, so threads are enough.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # groups of results that may wait, per thread
PIECES_AT_ONCE = 8
WAITING = 2  # threads more where whoever makes results waits until they are written
STEPS_BACK = 5  # of priority (nice): whoever has none to give comes three times as often to a core

_here = threading.local()  # .pool: that this thread belongs to, .size: how many threads it has


def n_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def n_threads(cores: int | None) -> int:
    """Return how many threads keep so many cores busy (default: those of this process): one more, as disks let wait.

    One core is one thread's.
    """
    cores = n_cores() if cores is None else cores
    return cores + 1 if cores > 1 else 1


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, at_once: int = 1
) -> Generator[Result, None, None]:
    """Yield function(item) in the order of the items; the first error, or closing the generator, ends everything.

    at_once: how many items a thread is handed together; a handover costs about half a millisecond of CPU.
    """
    groups = batched(items, at_once)
    with ThreadPoolExecutor(
        threads, thread_name_prefix="merge", initializer=_set_priority, initargs=(_priority(),)
    ) as pool:
        pending: deque[Future[list[Result]]] = deque()
        try:
            for group in groups:
                pending.append(pool.submit(_apply, function, group, pool, threads))
                if len(pending) >= threads * AHEAD:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def batched(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Yield the items in groups of `size`; the last one may be smaller."""
    iterator = iter(items)
    while group := tuple(islice(iterator, size)):
        yield group


def _priority() -> int:
    """Return the priority of threads that make results: some steps behind this one, unless it is one of them."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    return own if hasattr(_here, "pool") else own + STEPS_BACK


def _set_priority(priority: int) -> None:
    """Give this thread a priority; Linux has one for each thread, others one for the process."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, priority)


def _apply(
    function: Callable[[Item], Result], group: Sequence[Item], pool: ThreadPoolExecutor, size: int
) -> list[Result]:
    _here.pool, _here.size = pool, size
    return [function(item) for item in group]


def spread(works: Sequence[Callable[[], None]]) -> None:
    """Do all of these, on this thread and on those of the `map_in_order` it belongs to that are idle; contract.Spread.

    Others stand behind all items that the pool has been handed before. The first error ends everything.
    """
    left = deque(works)

    def work() -> None:
        try:
            while (one := _take(left)) is not None:
                one()
        finally:
            left.clear()  # where one failed, nobody begins another

    pool: ThreadPoolExecutor | None = getattr(_here, "pool", None)
    helpers = [pool.submit(work) for _ in range(min(_here.size, len(works)) - 1)] if pool is not None else []
    try:
        work()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()


def _take(left: deque[Callable[[], None]]) -> Callable[[], None] | None:
    try:
        return left.popleft()
    except IndexError:  # which another thread may have emptied
        return None


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch from starting threads of its own inside ours; sums then also have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
