"""Threads: order kept, few results ahead, the first error ends everything."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from app.domain import plans
from workers.checkpoints.parallel import (
    STEPS_BACK,
    WAITING,
    batched,
    map_in_order,
    n_threads,
    one_torch_thread,
    spread,
)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_results_come_in_the_order_of_the_items(threads: int, at_once: int) -> None:
    squares = map_in_order(lambda item: item * item, range(50), threads=threads, at_once=at_once)
    assert list(squares) == [item * item for item in range(50)]


def test_groups_are_full_but_for_the_last() -> None:
    assert list(batched(range(7), 3)) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert list(batched([], 3)) == []


def test_items_are_taken_only_a_few_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = map_in_order(lambda item: item, items(), threads=2)
    assert next(results) == 0
    assert len(taken) <= 4
    results.close()
    assert len(taken) <= 4


def test_an_error_arrives_and_no_thread_is_left() -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(map_in_order(fail, range(100), threads=3))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("merge")]


def test_threads_are_one_more_than_the_cores_unless_it_is_one_core() -> None:
    assert n_threads(3) == 4
    assert n_threads(1) == 1
    assert n_threads(0) == 1
    assert n_threads(None) >= 1


def test_plans_count_the_runs_that_threads_have_in_flight() -> None:
    assert n_threads(plans.CORES) + WAITING == plans.RUNS_AT_ONCE


def test_torch_uses_one_thread_inside_and_as_many_as_before_outside() -> None:
    before = torch.get_num_threads()
    with one_torch_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_spread_item_uses_the_threads_that_have_nothing_to_do() -> None:
    both_are_here = threading.Barrier(2, timeout=10)
    threads: set[int] = set()

    def meet() -> None:
        both_are_here.wait()
        threads.add(threading.get_ident())

    assert list(map_in_order(lambda _: spread([meet, meet]), [0], threads=2)) == [None]
    assert len(threads) == 2


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_all_of_a_spread_item_is_done_when_it_is(threads: int) -> None:
    def count(item: int) -> int:
        done: list[int] = []
        spread([partial(done.append, index) for index in range(item)])
        return len(set(done))

    assert list(map_in_order(count, range(40), threads=threads)) == [*range(40)]


def test_outside_of_any_map_one_thread_does_all() -> None:
    done: list[int] = []
    spread([partial(done.append, index) for index in range(5)])
    assert done == [*range(5)]


def test_an_error_within_a_spread_item_ends_it() -> None:
    def fail(index: int) -> None:
        if index == 3:
            raise ValueError("three")

    def item(_: int) -> None:
        spread([partial(fail, index) for index in range(100)])

    for threads in (1, 3):
        with pytest.raises(ValueError, match="three"):
            list(map_in_order(item, range(4), threads=threads))


def test_an_error_on_another_thread_ends_a_spread_item() -> None:
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("there")

    def wait() -> None:
        assert failed.wait(timeout=10)

    with pytest.raises(ValueError, match="there"):
        list(map_in_order(lambda _: spread([wait, fail]), [0], threads=2))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_who_takes_the_results_comes_before_who_makes_them() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    found: list[int] = []

    def note() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, 0))
        time.sleep(0.01)

    def make(_: int) -> None:
        note()
        spread([note] * 8)  # on a thread that is begun by this one
        list(map_in_order(lambda _: note(), range(2), threads=2))

    list(map_in_order(make, range(1), threads=2))
    assert found == [min(own + STEPS_BACK, 19)] * 11
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
