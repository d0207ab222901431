"""ETags of resources."""

import pytest

from app.api.etags import NO_REVISION, etag, is_listed, parse_if_match, parse_if_none_match
from app.domain.errors import BadRequest


@pytest.mark.parametrize(
    ("header", "revision"),
    [(None, None), ("*", None), ('"7"', 7), (' "12" ', 12), ('W/"7"', NO_REVISION), ('"abc"', NO_REVISION), ('"0"', 0)],
)
def test_if_match_names_a_revision(header: str | None, revision: int | None) -> None:
    assert parse_if_match(header) == revision


def test_an_etag_is_read_as_it_is_written() -> None:
    assert parse_if_match(etag(41)) == 41


@pytest.mark.parametrize("header", ["7", "", '"7', '"7", "8"', "w/'7'"])
def test_what_is_no_etag_is_refused(header: str) -> None:
    with pytest.raises(BadRequest, match="expected one ETag as it was sent"):
        parse_if_match(header)


def test_if_none_match_asks_for_something_new() -> None:
    assert parse_if_none_match("*")
    assert not parse_if_none_match(None)
    with pytest.raises(BadRequest, match="only \\* is understood here"):
        parse_if_none_match('"7"')


@pytest.mark.parametrize(
    ("header", "is_in"),
    [(None, False), ("*", True), ('"a"', True), ('W/"a"', True), ('"b", "a"', True), ('"b"', False), ("a", False)],
)
def test_a_list_of_etags_is_compared_weakly(header: str | None, *, is_in: bool) -> None:
    assert is_listed(header, '"a"') is is_in
