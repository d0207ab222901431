"""Sources: what lies where, only below the roots, and whether it is still what was registered."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.exceptions import PermissionDeniedError

from app.domain.errors import InputChanged, Unavailable, UriNotAllowed, UriNotFound
from app.domain.sources import SourceListing
from app.storage.sources import Sources
from tests.app.storage.contents import read_folder, write_folder
from tests.servers import S3Bucket, free_port

CONTENTS = {"model.safetensors": b"weights", "config.json": b"{}", "tokenizer/vocab.txt": b"a\n"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def sources(root: Path, tmp_path: Path) -> Sources:
    return Sources([root], tmp_path / "cache")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    write_folder(folder, {"secret.safetensors": b"secret"})
    return folder


def test_a_folder_is_listed_with_everything_below(sources: Sources, root: Path) -> None:
    write_folder(root / "model", CONTENTS)
    listing = sources.look((root / "model").as_uri())
    assert [file.path for file in listing.files] == ["config.json", "model.safetensors", "tokenizer/vocab.txt"]
    assert [file.size_bytes for file in listing.files] == [2, 7, 2]
    assert not listing.is_file
    assert listing.size_bytes == 11


def test_one_file_is_listed_by_its_name(sources: Sources, root: Path) -> None:
    write_folder(root, {"a b.safetensors": b"weights"})
    uri = (root / "a b.safetensors").as_uri()
    listing = sources.look(uri)
    assert listing.is_file
    assert [file.path for file in listing.files] == ["a b.safetensors"]
    assert sources.fetch(uri, listing) == root / "a b.safetensors"
    assert b"".join(sources.read_file(uri)) == b"weights"
    assert sources.stat_file(uri) == listing.files[0]


def test_a_folder_is_fetched_where_it_lies(sources: Sources, root: Path) -> None:
    write_folder(root / "model", CONTENTS)
    uri = (root / "model").as_uri()
    assert sources.fetch(uri, sources.look(uri)) == root / "model"


def test_hidden_files_are_left_out(sources: Sources, root: Path) -> None:
    write_folder(root / "model", {"model.safetensors": b"w", ".git/config": b"x", ".cache": b"y"})
    assert [file.path for file in sources.look((root / "model").as_uri()).files] == ["model.safetensors"]


@pytest.mark.parametrize("path", ["", "secret.safetensors", "missing"])
def test_outside_the_roots_everything_is_refused_alike(sources: Sources, secret: Path, path: str) -> None:
    with pytest.raises(UriNotAllowed, match="lies outside the folders that may be read"):
        sources.look((secret / path).as_uri())


def test_a_neighbor_whose_name_begins_alike_is_outside(sources: Sources, root: Path) -> None:
    write_folder(root.with_name("root2"), {"model.safetensors": b"w"})
    with pytest.raises(UriNotAllowed, match="lies outside"):
        sources.look(root.with_name("root2").as_uri())


def test_below_the_root_what_is_missing_is_not_found(sources: Sources, root: Path) -> None:
    with pytest.raises(UriNotFound, match="Nothing lies at"):
        sources.look((root / "missing").as_uri())


def test_a_link_out_of_the_roots_is_refused(sources: Sources, root: Path, secret: Path) -> None:
    (root / "link").symlink_to(secret)
    with pytest.raises(UriNotAllowed, match="lies outside"):
        sources.look((root / "link").as_uri())
    with pytest.raises(UriNotAllowed, match="lies outside"):
        sources.look((root / "link" / "secret.safetensors").as_uri())
    with pytest.raises(UriNotAllowed, match="lies outside"):
        sources.read_file((root / "link" / "secret.safetensors").as_uri())


def test_a_link_out_of_the_roots_within_a_folder_is_refused_by_its_name(
    sources: Sources, root: Path, secret: Path
) -> None:
    write_folder(root / "model", {"model.safetensors": b"w"})
    (root / "model" / "extra.safetensors").symlink_to(secret / "secret.safetensors")
    with pytest.raises(UriNotAllowed, match=r"'extra\.safetensors' of .* is a link out of the file roots"):
        sources.look((root / "model").as_uri())


def test_a_link_within_the_roots_is_followed(sources: Sources, root: Path) -> None:
    write_folder(root / "blobs", {"abc": b"weights"})
    (root / "snapshot").mkdir()
    (root / "snapshot" / "model.safetensors").symlink_to("../blobs/abc")  # as a Hugging Face cache does
    listing = sources.look((root / "snapshot").as_uri())
    assert [(file.path, file.size_bytes) for file in listing.files] == [("model.safetensors", 7)]
    sources.check((root / "snapshot").as_uri(), listing)


def test_links_in_a_circle_end(sources: Sources, root: Path) -> None:
    write_folder(root / "model", {"model.safetensors": b"w"})
    (root / "model" / "again").symlink_to(root / "model")
    with pytest.raises(UriNotAllowed, match="folders more than 8 deep"):
        sources.look((root / "model").as_uri())
    (root / "self").symlink_to(root / "self")
    with pytest.raises((UriNotAllowed, UriNotFound)):
        sources.look((root / "self").as_uri())


def test_a_root_that_is_a_link_may_be_named_either_way(root: Path, tmp_path: Path) -> None:
    write_folder(root / "model", CONTENTS)
    (tmp_path / "linked").symlink_to(root)
    sources = Sources([tmp_path / "linked"], tmp_path / "cache")
    assert len(sources.look((tmp_path / "linked" / "model").as_uri()).files) == 3
    assert len(sources.look((root / "model").as_uri()).files) == 3


def test_what_is_neither_file_nor_folder_is_refused(sources: Sources, root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(UriNotAllowed, match="is neither a file nor a folder"):
        sources.look((root / "pipe").as_uri())


def test_a_folder_is_not_read_as_a_file(sources: Sources, root: Path) -> None:
    write_folder(root / "model", CONTENTS)
    with pytest.raises(UriNotAllowed, match="is a folder; name one file"):
        sources.stat_file((root / "model").as_uri())
    with pytest.raises(UriNotAllowed, match="is not a file; name one file"):
        sources.read_file((root / "model").as_uri())


def test_a_folder_with_too_many_files_is_refused(sources: Sources, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.local_sources.MAX_FILES", 2)
    write_folder(root / "model", CONTENTS)
    with pytest.raises(UriNotAllowed, match="holds more than 2 files; name the checkpoint's own folder"):
        sources.look((root / "model").as_uri())


def test_messages_never_hold_a_path_of_the_server(sources: Sources, root: Path, secret: Path) -> None:
    (root / "link").symlink_to(secret)
    for uri in ((root / "link").as_uri(), (root / "missing").as_uri(), secret.as_uri()):
        with pytest.raises((UriNotAllowed, UriNotFound)) as refused:
            sources.look(uri)
        assert str(root) not in refused.value.detail.replace(uri, "")
        assert str(secret) not in refused.value.detail.replace(uri, "")


# --- changes ------------------------------------------------------------------------------------------------------


def _rewrite(path: Path) -> None:
    path.write_bytes(b"WEIGHTS")


def _rewrite_keeping_size_and_time(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_rewrite, "mtime_ns: registered"),
        (_rewrite_keeping_size_and_time, "inode: registered"),
        (lambda path: path.write_bytes(b"longer weights"), "size_bytes: registered 7, found 14"),
        (Path.unlink, "is not there any more"),
    ],
)
def test_a_change_is_noticed(sources: Sources, root: Path, change: Callable[[Path], object], says: str) -> None:
    write_folder(root / "model", CONTENTS)
    uri = (root / "model").as_uri()
    listing = sources.look(uri)
    os.utime(root / "model" / "model.safetensors", ns=(1, 1))
    listing = sources.look(uri)
    sources.check(uri, listing)
    change(root / "model" / "model.safetensors")
    with pytest.raises(InputChanged, match=r"'model\.safetensors' of") as changed:
        sources.check(uri, listing)
    assert says in changed.value.detail


def test_a_folder_that_is_gone_is_a_change(sources: Sources, root: Path) -> None:
    write_folder(root / "model", CONTENTS)
    uri = (root / "model").as_uri()
    listing = sources.look(uri)
    (root / "model").rename(root / "moved")
    with pytest.raises(InputChanged, match="is not there any more"):
        sources.check(uri, listing)


def test_a_file_that_became_a_link_out_of_the_roots_is_a_change(sources: Sources, root: Path, secret: Path) -> None:
    write_folder(root / "model", CONTENTS)
    uri = (root / "model").as_uri()
    listing = sources.look(uri)
    (root / "model" / "config.json").unlink()
    (root / "model" / "config.json").symlink_to(secret / "secret.safetensors")
    with pytest.raises(InputChanged, match="leads out of the file roots now"):
        sources.check(uri, listing)


def test_a_file_that_was_not_listed_may_change(sources: Sources, root: Path) -> None:
    write_folder(root / "model", CONTENTS)
    uri = (root / "model").as_uri()
    listing = sources.look(uri)
    write_folder(root / "model", {"notes.txt": b"new"})
    sources.check(uri, listing)


def test_a_listing_survives_json(sources: Sources, root: Path) -> None:
    write_folder(root / "model", CONTENTS)
    listing = sources.look((root / "model").as_uri())
    assert SourceListing.model_validate(listing.model_dump(mode="json")) == listing


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    path=st.lists(
        st.sampled_from(["..", ".", "model", "link", "%2e%2e", "outside", "secret.safetensors", ""]), max_size=6
    )
)
def test_no_path_leads_out_of_the_roots(sources: Sources, root: Path, secret: Path, path: list[str]) -> None:
    write_folder(root / "model", CONTENTS)
    if not (root / "link").is_symlink():
        (root / "link").symlink_to(secret)
    try:
        listing = sources.look("/".join([root.as_uri(), *path]))
    except (UriNotAllowed, UriNotFound):
        return
    assert not any("secret" in file.path for file in listing.files)


# --- S3 -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def put(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], str]:
    """Put an object into a bucket and return its URI."""
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    client = s3_bucket.client()

    def put_object(key: str, content: bytes) -> str:
        client.put_object(Bucket=s3_bucket.name, Key=key, Body=content)
        return f"{s3_bucket.url}/{key}"

    return put_object


def test_a_prefix_is_listed_and_fetched_as_a_folder(sources: Sources, put: Callable[[str, bytes], str]) -> None:
    for path, content in CONTENTS.items():
        uri = put(f"models/minilm/{path}", content).removesuffix(f"/{path}")
    put("models/minilm2/other.txt", b"no")
    put("models/minilm/.hidden", b"no")
    listing = sources.look(uri)
    assert {file.path: file.size_bytes for file in listing.files} == {path: len(CONTENTS[path]) for path in CONTENTS}
    assert read_folder(sources.fetch(uri, listing)) == CONTENTS
    assert sources.fetch(uri, listing) == sources.fetch(uri, listing)


def test_one_object_is_fetched_as_a_file(sources: Sources, put: Callable[[str, bytes], str]) -> None:
    uri = put("a b/model.safetensors", b"weights").replace(" ", "%20")
    listing = sources.look(uri)
    assert listing.is_file
    assert sources.fetch(uri, listing).read_bytes() == b"weights"
    assert b"".join(sources.read_file(uri)) == b"weights"


def test_a_changed_object_is_noticed(sources: Sources, put: Callable[[str, bytes], str]) -> None:
    uri = put("m/model.safetensors", b"weights").removesuffix("/model.safetensors")
    listing = sources.look(uri)
    sources.check(uri, listing)
    put("m/model.safetensors", b"WEIGHTS")
    with pytest.raises(InputChanged, match=r"'model\.safetensors' of .* changed \(registered with ETag"):
        sources.check(uri, listing)
    with pytest.raises(InputChanged, match="changed or is gone"):
        sources.fetch(uri, listing)


def test_nothing_under_a_prefix_is_not_found(sources: Sources, put: Callable[[str, bytes], str]) -> None:
    uri = put("m/model.safetensors", b"weights").replace("/m/model.safetensors", "/other")
    with pytest.raises(UriNotFound, match="Nothing lies at"):
        sources.look(uri)


def test_a_bucket_that_is_not_there_is_not_found(sources: Sources, put: Callable[[str, bytes], str]) -> None:
    put("m", b"")
    with pytest.raises(UriNotFound, match="there is no bucket 'no-such-bucket-here'"):
        sources.look("s3://no-such-bucket-here/m")


def test_without_credentials_a_bucket_is_refused(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionDeniedError("403")

    monkeypatch.setattr("obstore.head", refuse)
    with pytest.raises(UriNotAllowed, match="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its environment"):
        sources.look("s3://models/m")


def test_an_endpoint_that_is_away_is_said_plainly(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3Bucket("models", f"http://127.0.0.1:{free_port()}").environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match="Look at AWS_ENDPOINT_URL"):
        sources.look("s3://models/m")
