"""The line through a merge's seconds."""

import argparse

import pytest

from benchmarks.scaling.__main__ import Line, Measured, Rates, compute, fit, render, speed_up


def _measured(read: float, written: float, seconds: float) -> Measured:
    return Measured(
        method="ties",
        shape="0.1b",
        n_models=1,
        n_passes=1,
        read_bytes=int(read * 1e9),
        written_bytes=int(written * 1e9),
        seconds=seconds,
        idle_bytes=0,
        peak_bytes=0,
    )


def test_the_line_finds_what_seconds_are_made_of() -> None:
    """Start, reading and writing are told apart where sizes and numbers of models differ."""
    sizes = [(0.5, 0.25), (1.0, 0.25), (4.4, 2.2), (8.8, 2.2), (27.0, 6.9)]
    line = fit([_measured(read, written, 0.3 + 0.2 * read + 0.7 * written) for read, written in sizes])
    assert line.start == pytest.approx(0.3)
    assert line.per_read * 1e9 == pytest.approx(0.2)
    assert line.per_written * 1e9 == pytest.approx(0.7)
    assert line.seconds(10e9, 1e9) == pytest.approx(3.0)


def test_no_part_of_the_line_is_negative() -> None:
    """Where noise would make starting cost less than nothing, it costs nothing."""
    line = fit([_measured(1, 1, 0.7), _measured(2, 1, 1.5), _measured(4, 2, 3.2), _measured(8, 2, 6.4)])
    assert min(line.start, line.per_read, line.per_written) == 0
    assert line.seconds(8e9, 2e9) == pytest.approx(6.4, rel=0.1)


def test_one_merge_gives_a_line_through_it() -> None:
    """Too few measurements to tell parts apart still meet what was measured."""
    assert fit([_measured(2, 1, 1.0)]).seconds(2e9, 1e9) == pytest.approx(1.0)
    assert Line(1, 0, 0).seconds(5, 5) == 1


def test_one_disk_reads_and_writes_one_after_the_other() -> None:
    """Work and disk overlap, the two directions of the disk do not; fetching and storing come before and after."""
    line = Line(0.0, 0.2e-9, 0.8e-9)
    large = compute(line, 3, 100e9, 20e9, Rates(disk=2e9, network=1e9, price=1.0))
    assert (large.fetch, large.upload) == (100.0, 20.0)
    assert large.work == pytest.approx(0.2 * 300 + 0.8 * 20)
    assert large.merge == large.disk == (300 + 20) / 2
    assert large.alone == 100 + 160 + 20
    # bytes are shared by four, 76 s of work are twice as fast: 38 s, less than the disk's 40
    assert large.shared(4, speedup=2.0) == pytest.approx(30 + 40)
    assert large.shared(4, speedup=1.0) == pytest.approx(30 + 76)


@pytest.mark.parametrize(("n", "of_two", "expected"), [(1, 1.5, 1.0), (2, 1.5, 1.5), (8, 2.0, 8.0), (8, 1.6, 8 / 2.75)])
def test_growth_is_that_of_two_workers(n: int, of_two: float, expected: float) -> None:
    """With 1.6 for two a quarter stays serial: 8 / (1 + 0.25 · 7)."""
    assert speed_up(n, of_two) == pytest.approx(expected)


def test_what_lies_beyond_the_line_is_held_against_the_model() -> None:
    """Of 27 and 7 GB over a disk of 2 GB/s the model makes 17 s."""
    sizes = [(2, 1), (4, 1), (8, 2), (16, 2)]
    fitted = [_measured(read, written, 0.2 * read + 0.7 * written) for read, written in sizes]
    beyond = Measured(**{**vars(_measured(27, 7, 34.0)), "shape": "3b"})
    rates = argparse.Namespace(
        fit=["0.1b"], disk=2.0, network=1.0, price=1.0, two_workers={"task_arithmetic": 1.6, "ties": 1.5}
    )
    told = render([*fitted, beyond], rates)
    assert "Measured against the model, beyond the line: 2.00 (ties 3b base + 1)." in told
    assert "34.0 | 10.3 | 17.0" in told
