"""Artifacts over HTTP: files with ranges and ETags, one tar, deleting and what goes with it."""

import hashlib
import io
import tarfile
from typing import Any

import pytest

from app.services import freeing
from tests.app.api.house import House, draw


def _problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.json()["code"] == code
    body: dict[str, Any] = response.json()
    return body


def _copy(house: House, name: str = "m", seed: int = 0) -> str:
    """Register a copy with a page among its files, and return its artifact's id."""
    uri = house.write(name, draw(seed))
    (house.data / name / "README.md").write_text("<script>alert(1)</script>")
    house.made("/v1/checkpoints", {"uri": uri, "name": name, "storage": "copy"})
    house.work()
    return str(house.read(f"/v1/checkpoints/{name}")["artifact"])


def _content(house: House, name: str = "m") -> bytes:
    return (house.data / name / "model.safetensors").read_bytes()


def test_an_artifact_lists_its_files(any_house: House) -> None:
    artifact = any_house.read(f"/v1/artifacts/{_copy(any_house)}")
    content = _content(any_house)
    assert artifact["kind"] == "checkpoint"
    assert artifact["size_bytes"] == len(content) + 25
    assert artifact["files"] == [
        {"path": "README.md", "size_bytes": 25, "sha256": hashlib.sha256(b"<script>alert(1)</script>").hexdigest()},
        {"path": "model.safetensors", "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
    ]


def test_artifacts_are_listed_newest_first_and_filtered(any_house: House) -> None:
    first, second = _copy(any_house, "a"), _copy(any_house, "b", 1)
    checkpoint = any_house.read("/v1/checkpoints/a")["id"]
    assert [item["id"] for item in any_house.read("/v1/artifacts")["items"]] == [second, first]
    assert [item["id"] for item in any_house.read(f"/v1/artifacts?checkpoint={checkpoint}")["items"]] == [first]
    assert any_house.read("/v1/artifacts?kind=report")["items"] == []
    page = any_house.read("/v1/artifacts?limit=1")
    assert [item["id"] for item in any_house.read(f"/v1/artifacts?limit=1&cursor={page['next_cursor']}")["items"]] == [
        first
    ]


def test_an_unknown_artifact_is_not_found(house: House) -> None:
    for path in ("", "/files/x", "/archive"):
        _problem(house.get(f"/v1/artifacts/art_1{path}"), 404, "not_found")
    _problem(house.client.delete("/v1/artifacts/art_1"), 404, "not_found")


def test_a_misspelt_file_is_not_found_with_a_near_match(house: House) -> None:
    problem = _problem(house.get(f"/v1/artifacts/{_copy(house)}/files/model.safetensor"), 404, "not_found")
    assert "Did you mean 'model.safetensors'?" in problem["detail"]


@pytest.mark.parametrize(
    "path", ["../README.md", "%2e%2e/README.md", "/etc/passwd", "model.safetensors/..", "%2fetc%2fpasswd"]
)
def test_no_path_leads_out_of_the_artifact(house: House, path: str) -> None:
    assert house.get(f"/v1/artifacts/{_copy(house)}/files/{path}").status_code == 404


def test_a_file_is_downloaded_as_an_attachment_whatever_it_holds(house: House) -> None:
    response = house.get(f"/v1/artifacts/{_copy(house)}/files/README.md")
    assert response.content == b"<script>alert(1)</script>"
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''README.md"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"].startswith("sandbox")


def test_a_whole_file_carries_length_etag_and_digest(house: House) -> None:
    response = house.get(f"/v1/artifacts/{_copy(house)}/files/model.safetensors")
    content = _content(house)
    assert response.status_code == 200
    assert response.content == content
    assert response.headers["content-length"] == str(len(content))
    assert response.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["repr-digest"].startswith("sha-256=:")


@pytest.mark.parametrize(
    ("header", "span"),
    [("bytes=0-9", (0, 10)), ("bytes=5-", (5, None)), ("bytes=-7", (-7, None)), ("bytes=10-99999999", (10, None))],
)
def test_a_range_is_answered_with_its_part(house: House, header: str, span: tuple[int, int | None]) -> None:
    url = f"/v1/artifacts/{_copy(house)}/files/model.safetensors"
    content = _content(house)
    response = house.get(url, headers={"Range": header})
    part = content[slice(*span)]
    start = len(content) - 7 if span[0] == -7 else span[0]
    assert response.status_code == 206
    assert response.content == part
    assert response.headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    assert response.headers["content-length"] == str(len(part))


@pytest.mark.parametrize("header", ["bytes=99999999-", "bytes=-0"])
def test_a_range_outside_the_file_is_refused_with_its_size(house: House, header: str) -> None:
    response = house.get(f"/v1/artifacts/{_copy(house)}/files/model.safetensors", headers={"Range": header})
    _problem(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(_content(house))}"


@pytest.mark.parametrize("header", ["bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,4-5", "bytes=-", ""])
def test_what_is_no_single_range_gets_the_whole_file(house: House, header: str) -> None:
    response = house.get(f"/v1/artifacts/{_copy(house)}/files/model.safetensors", headers={"Range": header})
    assert response.status_code == 200
    assert response.content == _content(house)


def test_a_file_that_the_caller_has_is_not_sent_again(house: House) -> None:
    url = f"/v1/artifacts/{_copy(house)}/files/model.safetensors"
    tag = house.get(url).headers["etag"]
    for listed in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        response = house.get(url, headers={"If-None-Match": listed})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == tag
    assert house.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_range_of_another_version_gets_the_whole_file(house: House) -> None:
    url = f"/v1/artifacts/{_copy(house)}/files/model.safetensors"
    tag = house.get(url).headers["etag"]
    assert house.get(url, headers={"Range": "bytes=0-1", "If-Range": tag}).status_code == 206
    assert house.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200


def test_the_archive_is_a_tar_of_all_files_below_the_id(any_house: House) -> None:
    artifact = _copy(any_house)
    response = any_house.get(f"/v1/artifacts/{artifact}/archive")
    assert response.headers["content-length"] == str(len(response.content))
    assert response.headers["content-disposition"] == f"attachment; filename*=UTF-8''{artifact}.tar"
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        members = {member.name: member for member in archive.getmembers()}
        assert list(members) == [f"{artifact}/README.md", f"{artifact}/model.safetensors"]
        assert all(member.isfile() for member in members.values())
        extracted = archive.extractfile(f"{artifact}/model.safetensors")
        assert extracted is not None
        assert extracted.read() == _content(any_house)


def test_the_archive_is_the_same_every_time(house: House) -> None:
    artifact = _copy(house)
    first, second = (house.get(f"/v1/artifacts/{artifact}/archive").content for _ in range(2))
    assert first == second


def test_deleting_the_artifact_deletes_its_checkpoint_and_the_other_way_round(any_house: House) -> None:
    artifact = _copy(any_house, "a")
    assert any_house.client.delete(f"/v1/artifacts/{artifact}").status_code == 204
    _problem(any_house.get("/v1/checkpoints/a"), 404, "not_found")
    _problem(any_house.get(f"/v1/artifacts/{artifact}"), 404, "not_found")
    other = _copy(any_house, "b", 1)
    assert any_house.client.delete("/v1/checkpoints/b").status_code == 204
    _problem(any_house.get(f"/v1/artifacts/{other}"), 404, "not_found")


def test_an_artifact_whose_checkpoint_is_needed_is_not_deleted(house: House) -> None:
    artifact = _copy(house)
    house.register("based", draw(1), base_checkpoint="m")
    problem = _problem(house.client.delete(f"/v1/artifacts/{artifact}"), 409, "resource_in_use")
    assert "based@1" in problem["detail"]


def test_shared_bytes_stay_as_long_as_anything_names_them(house: House) -> None:
    first = _copy(house, "first")
    _copy(house, "second")  # the same content
    storage, sessions = house.wiring.storage, house.wiring.sessions
    assert len(list(storage.list_objects())) == 2
    house.client.delete(f"/v1/artifacts/{first}")
    freeing.sweep(sessions, storage, grace_seconds=0)
    assert len(list(storage.list_objects())) == 2
    house.client.delete("/v1/checkpoints/second")
    assert len(list(storage.list_objects())) == 2  # young: left to the sweep
    assert freeing.sweep(sessions, storage, grace_seconds=0).n_deleted_objects == 2
    assert list(storage.list_objects()) == []


def test_old_bytes_go_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = _copy(house)
    monkeypatch.setattr(freeing, "PUBLISH_SECONDS", 0.0)
    house.client.delete(f"/v1/artifacts/{artifact}")
    assert list(house.wiring.storage.list_objects()) == []


def test_bytes_that_are_gone_are_said_plainly(house: House) -> None:
    artifact = _copy(house)
    digest = house.read(f"/v1/artifacts/{artifact}")["files"][1]["sha256"]
    house.wiring.storage.delete([digest], min_age_seconds=0)
    _problem(house.get(f"/v1/artifacts/{artifact}/files/model.safetensors"), 409, "artifact_gone")
    _problem(house.get(f"/v1/artifacts/{artifact}/archive"), 409, "artifact_gone")


@pytest.mark.parametrize("what", ["files/model.safetensors", "files/README.md", "archive"])
def test_head_gives_the_headers_of_a_download_alone(house: House, what: str) -> None:
    url = f"/v1/artifacts/{_copy(house)}/{what}"
    whole = house.get(url)

    head = house.client.head(url)
    part = house.client.head(url, headers={"Range": "bytes=0-3"})

    ours = {"x-request-id", "traceparent", "date"}
    for found in (head, part):  # a range has no meaning for HEAD
        assert (found.status_code, found.content) == (200, b"")
        assert {k: v for k, v in found.headers.items() if k not in ours} == {
            k: v for k, v in whole.headers.items() if k not in ours
        }
    if what != "archive":
        assert house.client.head(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    assert house.client.head(url.replace("art_", "art_0")).status_code == 404
    assert house.client.put(url).headers["allow"] == "GET, HEAD"
