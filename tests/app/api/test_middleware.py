"""Strict JSON: what it admits is what Python's parser gives; what it refuses is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.middleware import MAX_DEPTH, parse_json
from app.domain.errors import BadRequest, Invalid

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=30,
)


@given(VALUES)
def test_every_json_document_is_read_as_it_is(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary())
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        value = parse_json(body)
    except (BadRequest, Invalid) as error:
        assert error.detail
    else:
        assert parse_json(json.dumps(value).encode()) == value


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_is_admitted_up_to_its_limit() -> None:
    assert parse_json(json.dumps(nested(MAX_DEPTH)).encode()) == nested(MAX_DEPTH)
    with pytest.raises(BadRequest, match=f"deeper than {MAX_DEPTH}"):
        parse_json(json.dumps(nested(MAX_DEPTH + 1)).encode())


@pytest.mark.parametrize("body", [b'{"a": {"b": [1, NaN]}}', b'{"a": {"b": [1, 1e400]}}'])
def test_a_number_that_is_not_finite_is_refused_with_its_place(body: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        parse_json(body)

    assert refused.value.errors[0].pointer == "/a/b/1"


def test_a_name_with_nul_is_refused() -> None:
    with pytest.raises(Invalid, match="NUL"):
        parse_json(b'{"a\\u0000": 1}')


def test_a_place_is_written_as_a_json_pointer() -> None:
    with pytest.raises(Invalid) as refused:
        parse_json(b'{"a/b": {"c~d": NaN}}')

    assert refused.value.errors[0].pointer == "/a~1b/c~0d"
