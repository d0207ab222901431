"""Laws of the waiting helper."""

import time
from collections.abc import Iterator

import pytest

from tests.waiting import wait_until


def test_wait_until_returns_the_first_true_result() -> None:
    results: Iterator[object] = iter([None, [], "ready", "late"])

    assert wait_until(lambda: next(results)) == "ready"


def test_wait_until_names_the_last_result_when_the_deadline_passes() -> None:
    with pytest.raises(AssertionError, match=r"the job did not come true within 0\.05 s; the last result was 0"):
        wait_until(lambda: 0, deadline_seconds=0.05, reason="the job")


def test_wait_until_keeps_to_its_deadline() -> None:
    started = time.monotonic()

    with pytest.raises(AssertionError):
        wait_until(lambda: False, deadline_seconds=0.1)

    assert 0.1 <= time.monotonic() - started < 2.0


def test_wait_until_lets_errors_of_the_predicate_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 / 0)
