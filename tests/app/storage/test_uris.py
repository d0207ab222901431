"""URIs are decoded once, then checked; what is not plainly a place we read is refused with what would do."""

from pathlib import PurePosixPath
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.domain.errors import UriNotAllowed
from app.storage.uris import FileUri, ObjectUri, parse_uri


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///models/minilm", "/models/minilm"),
        ("file:/models/minilm", "/models/minilm"),
        ("file://localhost/models", "/models"),
        ("FILE:///models/", "/models"),
        ("file:///with%20space/%23hash", "/with space/#hash"),
        ("file:///a//b", "/a/b"),
        ("file:///twice%2520encoded", "/twice%20encoded"),
        ("file:///", "/"),
        ("file:///ü/日本", "/ü/日本"),
    ],
)
def test_a_file_uri_is_a_path(uri: str, path: str) -> None:
    assert parse_uri(uri) == FileUri(PurePosixPath(path))


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://models/minilm", "models", "minilm"),
        ("s3://models/a/b.safetensors", "models", "a/b.safetensors"),
        ("s3://models", "models", ""),
        ("s3://models/", "models", ""),
        ("s3://my.models-1/a%20b/", "my.models-1", "a b"),
    ],
)
def test_an_s3_uri_is_a_bucket_and_a_key(uri: str, bucket: str, key: str) -> None:
    assert parse_uri(uri) == ObjectUri(bucket, key)


# What has been tried against other model registries: traversal plain, encoded and doubled, hosts, queries, fragments.
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "has no scheme"),
        ("/etc/passwd", "has no scheme"),
        ("models", "has no scheme"),
        ("file:models", "is not absolute"),
        ("file://", "is not absolute"),
        ("file://server/share", "names the host 'server'"),
        ("file:///models/../etc/passwd", "as a segment"),
        ("file:///models/%2e%2e/etc/passwd", "as a segment"),
        ("file:///models/%2E%2e%2fetc", "as a segment"),
        ("file:///models/./x", "as a segment"),
        ("file:///models/..", "as a segment"),
        ("file:///models\\..\\etc", "a backslash"),
        ("file:///models%5c..%5cetc", "a backslash"),
        ("file:///models#/../etc/passwd", "a query or a fragment"),
        ("file:///models?path=../etc", "a query or a fragment"),
        ("file:///models%00.safetensors", "control characters"),
        ("file:///models\x00", "control characters"),
        ("file:///models\n", "control characters"),
        ("file:///models%zz", "begins no percent code"),
        ("file:///models%ff", "is not UTF-8"),
        ("s3:models/x", "has no bucket"),
        ("s3:///x", "where a bucket's name must stand"),
        ("s3://Models/x", "where a bucket's name must stand"),
        ("s3://a..b/x", "where a bucket's name must stand"),
        ("s3://user:secret@bucket/x", "where a bucket's name must stand"),
        ("s3://models/../x", "as a segment"),
        ("s3://models/a//b", "an empty segment"),
        ("s3://models/a?versionId=1", "a query or a fragment"),
        ("gs://bucket/x", "names Google Cloud Storage"),
        ("hf://org/name@main", "names the Hugging Face Hub"),
        ("https://example.org/model", "names a web address"),
        ("javascript:alert(1)", "has the scheme 'javascript'"),
        ("file:///" + "x" * 2100, "characters, at most"),
    ],
)
def test_what_is_not_plainly_a_place_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(UriNotAllowed) as refused:
        parse_uri(uri)
    assert reason in refused.value.detail
    assert "Use file:///folder" in refused.value.detail


@given(st.text(max_size=60))
@example("file:")
@example("s3://")
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = parse_uri(text)
    except UriNotAllowed:
        return
    assert isinstance(parsed, FileUri | ObjectUri)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\"), min_size=1), min_size=1)
)
def test_a_path_never_keeps_dots_and_is_otherwise_kept(segments: list[str]) -> None:
    uri = "file:///" + "/".join(quote(segment, safe="") for segment in segments)
    try:
        parsed = parse_uri(uri)
    except UriNotAllowed:
        assert len(uri) > 2048 or any(segment in (".", "..") for segment in segments)
        return
    assert parsed == FileUri(PurePosixPath("/", *segments))
