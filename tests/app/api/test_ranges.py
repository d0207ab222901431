"""Ranges of bytes (RFC 9110, section 14)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.ranges import ByteRange, parse_range
from app.domain.errors import RangeNotSatisfiable


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=2-5", 2, 6),
        ("bytes=9-", 9, 10),
        ("bytes=-3", 7, 10),
        ("bytes=-50", 0, 10),
        ("bytes=3-50", 3, 10),
    ],
)
def test_one_range_is_cut_at_the_end_of_the_file(header: str, start: int, end: int) -> None:
    assert parse_range(header, 10) == ByteRange(start, end, 10)


@pytest.mark.parametrize(
    "header", [None, "", "bytes=-", "bytes=5-3", "bytes=0-1,3-4", "rows=0-1", "bytes 0-1", "bytes=0x1-2"]
)
def test_what_is_no_single_range_of_bytes_is_the_whole_file(header: str | None) -> None:
    assert parse_range(header, 10) is None


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)]
)
def test_a_range_without_a_byte_of_the_file_cannot_be_served(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable, match=f"has {size} bytes"):
        parse_range(header, size)


@given(st.text(max_size=30), st.integers(0, 10**15))
def test_any_header_gives_a_part_of_the_file_or_is_refused(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        try:
            found = parse_range(header, size)
        except RangeNotSatisfiable:
            continue
        assert found is None or 0 <= found.start < found.end <= size


def test_content_range_counts_inclusively() -> None:
    assert ByteRange(2, 6, 10).content_range == "bytes 2-5/10"
