"""Digest fields of RFC 9530."""

import hashlib

import pytest

from app.api.digests import parse_content_digest, write_digest
from app.domain.errors import BadRequest

SHA256 = hashlib.sha256(b'{"hello": "world"}\n').hexdigest()
FIELD = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"  # RFC 9530, appendix B.1


def test_the_example_of_the_rfc_is_read_and_written() -> None:
    assert parse_content_digest(FIELD) == SHA256
    assert write_digest(SHA256) == FIELD


def test_other_algorithms_are_passed_over() -> None:
    assert parse_content_digest(f"sha-512=:YWJj:, {FIELD}") == SHA256
    assert parse_content_digest("sha-512=:YWJj:") is None
    assert parse_content_digest(None) is None


@pytest.mark.parametrize(
    "field", ["", "sha-256", "sha-256=abc", "sha-256=:abc:", "sha-256=:YWJj:", f"{FIELD},", "sha-256=:=:"]
)
def test_what_cannot_be_read_is_refused(field: str) -> None:
    with pytest.raises(BadRequest, match="expected sha-256=:"):
        parse_content_digest(field)
