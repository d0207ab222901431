"""The line through a merge's seconds."""

import pytest

from benchmarks.scaling.__main__ import Line, Measured, fit


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
