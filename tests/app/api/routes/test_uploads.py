"""Uploads over HTTP: files come one by one, checked; complete, they become a checkpoint."""

import base64
import hashlib
import json
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from app.db import uploads as rows
from app.db.tables import utc_now
from app.domain.errors import Invalid, UnsafeFormat
from app.services import freeing
from app.services.uploads import check_path
from tests.app.api.house import House, draw

UPLOADS = "/v1/checkpoints/uploads"
WEIGHTS = save(draw(0), metadata={"format": "pt"})


def _digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def _put(house: House, upload: str, path: str, content: bytes, **headers: str) -> httpx.Response:
    response: Any = house.client.put(f"{UPLOADS}/{upload}/files/{path}", content=content, headers=headers)
    return response  # type: ignore[no-any-return]


def _problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.json()["code"] == code
    body: dict[str, Any] = response.json()
    return body


@pytest.fixture
def upload(house: House) -> str:
    return str(house.made(UPLOADS, {"name": "expert", "task": "tickets", "tags": {"a": "b"}})["id"])


def test_an_upload_becomes_a_checkpoint(any_house: House) -> None:
    begun = any_house.post(UPLOADS, {"name": "expert", "task": "tickets", "tags": {"a": "b"}})
    assert begun.status_code == 201
    assert begun.headers["location"] == f"{UPLOADS}/{begun.json()['id']}"
    upload = begun.json()["id"]
    sent = _put(any_house, upload, "model.safetensors", WEIGHTS)
    assert (sent.status_code, sent.headers["location"]) == (201, f"{UPLOADS}/{upload}/files/model.safetensors")
    assert _put(any_house, upload, "tokenizer/vocab.txt", b"a\n").status_code == 201
    completed = any_house.post(f"{UPLOADS}/{upload}/complete")
    assert completed.status_code == 202
    assert completed.headers["location"] == f"/v1/checkpoints/{completed.json()['checkpoint']['id']}"
    (job,) = any_house.work()
    found = any_house.read("/v1/checkpoints/expert")
    artifact = any_house.read(f"/v1/artifacts/{found['artifact']}")
    assert (found["state"], found["storage"], found["uri"]) == ("ready", "copy", None), found["problem"]
    assert (found["task"], found["tags"]) == ("tickets", {"a": "b"})
    assert [file["path"] for file in artifact["files"]] == ["model.safetensors", "tokenizer/vocab.txt"]
    assert job["result"]["artifacts"] == [found["artifact"]]
    assert any_house.read(f"{UPLOADS}/{upload}")["state"] == "completed"


def test_a_file_is_answered_with_its_size_and_digest(house: House, upload: str) -> None:
    response = _put(house, upload, "config.json", b"{}", **{"Content-Digest": _digest(b"{}")})
    assert response.json() == {
        "path": "config.json",
        "size_bytes": 2,
        "sha256": hashlib.sha256(b"{}").hexdigest(),
    }


def test_an_upload_lists_what_has_arrived_and_a_file_can_be_sent_again(house: House, upload: str) -> None:
    assert _put(house, upload, "config.json", b"{}").status_code == 201
    assert _put(house, upload, "config.json", b'{"a": 1}').status_code == 200
    files = house.read(f"{UPLOADS}/{upload}")["files"]
    assert [(file["path"], file["size_bytes"]) for file in files] == [("config.json", 8)]


def test_a_large_file_arrives_in_chunks(house: House, upload: str) -> None:
    content = bytes(range(256)) * 20_000  # 5 MB

    def chunks() -> Any:
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]

    response = house.client.put(f"{UPLOADS}/{upload}/files/model.safetensors", content=chunks())
    assert response.status_code == 201
    assert response.json()["sha256"] == hashlib.sha256(content).hexdigest()


def test_bytes_that_are_not_those_announced_are_refused(house: House, upload: str) -> None:
    response = _put(house, upload, "config.json", b"{}", **{"Content-Digest": _digest(b"other")})
    assert hashlib.sha256(b"{}").hexdigest() in _problem(response, 422, "digest_mismatch")["detail"]
    assert house.read(f"{UPLOADS}/{upload}")["files"] == []


def test_a_digest_that_cannot_be_read_is_refused(house: House, upload: str) -> None:
    response = _put(house, upload, "config.json", b"{}", **{"Content-Digest": "sha-256=abc"})
    _problem(response, 400, "malformed_request")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/model.pt", "x.pkl", "y.ckpt", "z.pth"])
def test_a_pickle_is_refused_with_advice(house: House, upload: str, name: str) -> None:
    assert "save_pretrained" in _problem(_put(house, upload, name, b"x"), 422, "unsafe_format")["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e/x",
        "a/%2e%2e/x",
        "/etc/passwd",
        "a//b",
        ".hidden",
        "a/.git",
        "a%5Cb",
        "a%00b",
        "a b",
        "x" * 600,
        "C:/x",
        "a/",
    ],
)
def test_a_path_that_is_not_plain_is_refused(house: House, upload: str, path: str) -> None:
    response = _put(house, upload, path, b"x")
    assert response.status_code in (400, 404, 422)
    assert house.read(f"{UPLOADS}/{upload}")["files"] == []


@given(st.text(max_size=40))
def test_a_path_that_is_taken_stays_below_its_folder(path: str) -> None:
    try:
        check_path(path)
    except (Invalid, UnsafeFormat):
        return
    assert not path.startswith("/")
    assert all(segment not in ("", ".", "..") for segment in path.split("/"))
    assert path.isascii() and path.isprintable()


def test_a_file_cannot_lie_below_a_file(house: House, upload: str) -> None:
    _put(house, upload, "tokenizer", b"x")
    problem = _problem(_put(house, upload, "tokenizer/vocab.txt", b"x"), 422, "validation_failed")
    assert "'tokenizer' is a file" in problem["detail"]
    assert [file["path"] for file in house.read(f"{UPLOADS}/{upload}")["files"]] == ["tokenizer"]


def test_without_weights_an_upload_is_not_complete(house: House, upload: str) -> None:
    _put(house, upload, "config.json", b"{}")
    problem = _problem(house.post(f"{UPLOADS}/{upload}/complete"), 409, "upload_incomplete")
    assert "none is .safetensors" in problem["detail"]


def test_missing_shards_are_named(house: House, upload: str) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": dict(zip(("a", "b"), names, strict=True))}
    _put(house, upload, names[0], WEIGHTS)
    _put(house, upload, "model.safetensors.index.json", json.dumps(index).encode())
    problem = _problem(house.post(f"{UPLOADS}/{upload}/complete"), 409, "upload_incomplete")
    assert f"names 1 files not yet sent: {names[1]}" in problem["detail"]


def test_a_completed_upload_takes_no_more(house: House, upload: str) -> None:
    _put(house, upload, "model.safetensors", WEIGHTS)
    assert house.post(f"{UPLOADS}/{upload}/complete").status_code == 202
    _problem(_put(house, upload, "config.json", b"{}"), 409, "upload_closed")
    _problem(house.post(f"{UPLOADS}/{upload}/complete"), 409, "upload_closed")


def test_completing_twice_with_one_key_is_one_checkpoint(any_house: House) -> None:
    upload = any_house.made(UPLOADS, {"name": "m"})["id"]
    _put(any_house, upload, "model.safetensors", WEIGHTS)
    headers = {"Idempotency-Key": "k"}
    first, second = (any_house.post(f"{UPLOADS}/{upload}/complete", headers=headers) for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len(any_house.read("/v1/checkpoints")["items"]) == 1


def test_an_unknown_upload_is_not_found(house: House) -> None:
    _problem(house.get(f"{UPLOADS}/upl_{'0' * 32}"), 404, "not_found")
    _problem(_put(house, "upl_1", "config.json", b"{}"), 404, "not_found")
    _problem(house.post(f"{UPLOADS}/upl_1/complete"), 404, "not_found")


def test_an_unknown_base_is_refused_when_the_upload_begins(house: House) -> None:
    _problem(house.post(UPLOADS, {"name": "m", "base_checkpoint": "nope"}), 422, "checkpoint_not_found")


def test_an_expired_upload_is_closed_and_its_bytes_go(any_house: House) -> None:
    upload = any_house.made(UPLOADS, {"name": "m"})["id"]
    _put(any_house, upload, "model.safetensors", WEIGHTS)
    with any_house.wiring.sessions.begin() as session:
        rows.find(session, "default", upload).expires_at = utc_now() - timedelta(seconds=1)
    _problem(_put(any_house, upload, "config.json", b"{}"), 409, "upload_closed")
    report = freeing.sweep(any_house.wiring.sessions, any_house.wiring.storage, grace_seconds=0)
    assert (report.n_expired_uploads, report.n_deleted_objects) == (1, 1)
    assert any_house.read(f"{UPLOADS}/{upload}")["state"] == "expired"
    assert list(any_house.wiring.storage.list_objects()) == []


def test_a_file_that_does_not_fit_the_disk_is_refused_before_it_comes(
    house: House, upload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(house.wiring.storage), "free_bytes", lambda _self: 1000)
    _problem(_put(house, upload, "model.safetensors", WEIGHTS), 507, "insufficient_storage")


def test_an_upload_whose_import_fails_can_be_looked_into(house: House, upload: str) -> None:
    _put(house, upload, "model.safetensors", b"not safetensors")
    house.post(f"{UPLOADS}/{upload}/complete")
    (job,) = house.work()
    assert job["problem"]["code"] == "invalid_header"
    assert house.read("/v1/checkpoints/expert")["state"] == "invalid"
    assert house.client.delete("/v1/checkpoints/expert").status_code == 204
    assert house.read(f"{UPLOADS}/{upload}")["files"] == []
