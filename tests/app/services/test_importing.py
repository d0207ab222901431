"""Imports, and what jobs get of a checkpoint afterwards: by reference or as a copy, from disk and from S3."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.errors import Conflict, InputChanged, OutOfDisk
from app.services import importing, inputs
from tests.app.api.house import House, draw, open_house
from tests.app.storage.contents import read_folder
from tests.servers import S3Bucket


@pytest.fixture
def s3_house(tmp_path: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A service whose store is a bucket."""
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    with open_house(tmp_path / "house", store_url=f"{s3_bucket.url}/store") as opened:
        yield opened


def _put_model(house: House, bucket: S3Bucket, seed: int) -> str:
    """Put a model's folder into the bucket and return its URI."""
    house.write(f"model-{seed}", draw(seed))
    client = bucket.client()
    for path, content in read_folder(house.data / f"model-{seed}").items():
        client.put_object(Bucket=bucket.name, Key=f"models/minilm/{path}", Body=content)
    return f"{bucket.url}/models/minilm"


def _import(house: House, uri: str, **fields: object) -> str:
    begun = house.made("/v1/checkpoints", {"uri": uri, "name": "m", **fields})
    house.work()
    found = house.read(f"/v1/checkpoints/{begun['checkpoint']['id']}")
    assert found["state"] == "ready", found["problem"]
    return str(found["id"])


def _local(house: House, checkpoint_id: str) -> Path:
    return inputs.local(house.keepers, checkpoint_id).path


def test_a_reference_is_used_where_it_lies(house: House) -> None:
    checkpoint = _import(house, house.write("model", draw(0)))
    assert _local(house, checkpoint) == house.data / "model"


def test_a_reference_to_one_file_is_used_in_its_folder(house: House) -> None:
    checkpoint = _import(house, house.write("model", draw(0)) + "/model.safetensors")
    assert _local(house, checkpoint) == house.data / "model"


def test_a_copy_is_used_from_the_store(house: House) -> None:
    checkpoint = _import(house, house.write("model", draw(0)), storage="copy")
    expected = read_folder(house.data / "model")
    (house.data / "model" / "model.safetensors").unlink()
    assert read_folder(_local(house, checkpoint)) == expected


def test_a_reference_that_changed_is_refused_at_its_next_use(house: House) -> None:
    checkpoint = _import(house, house.write("model", draw(0)))
    path = house.data / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes())
    with pytest.raises(InputChanged, match=r"'model\.safetensors' of .* changed"):
        _local(house, checkpoint)


def test_a_file_that_is_no_part_of_the_checkpoint_may_change(house: House) -> None:
    uri = house.write("model", draw(0))
    (house.data / "model" / "training.log").write_text("epoch 1")
    checkpoint = _import(house, uri)
    (house.data / "model" / "training.log").write_text("epoch 1, 2")
    assert _local(house, checkpoint) == house.data / "model"


def test_pickles_beside_the_weights_are_not_copied(house: House) -> None:
    uri = house.write("model", draw(0))
    (house.data / "model" / "pytorch_model.bin").write_bytes(b"pickle")
    checkpoint = _import(house, uri, storage="copy")
    assert sorted(read_folder(_local(house, checkpoint))) == ["model.safetensors"]
    assert len(list(house.wiring.storage.list_objects())) == 1


def test_a_copy_of_links_within_the_roots_holds_the_bytes(house: House) -> None:
    house.write("blobs", draw(0))
    (house.data / "snapshot").mkdir()
    (house.data / "snapshot" / "model.safetensors").symlink_to("../blobs/model.safetensors")
    checkpoint = _import(house, (house.data / "snapshot").as_uri(), storage="copy")
    assert read_folder(_local(house, checkpoint)) == read_folder(house.data / "blobs")


def test_a_deleted_checkpoint_cannot_be_used(house: House) -> None:
    checkpoint = _import(house, house.write("model", draw(0)))
    house.client.delete(f"/v1/checkpoints/{checkpoint}")
    with pytest.raises(InputChanged, match="was deleted after this job was accepted"):
        _local(house, checkpoint)


def test_a_copy_that_does_not_fit_is_refused_before_it_starts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(house.wiring.storage), "free_bytes", lambda _self: importing.RESERVE_BYTES)
    body = {"uri": house.write("model", draw(0)), "name": "m", "storage": "copy"}
    assert house.post("/v1/checkpoints", body).status_code == 507
    with pytest.raises(OutOfDisk, match="the store has 10 left"):
        monkeypatch.setattr(type(house.wiring.storage), "free_bytes", lambda _self: 10)
        importing.check_room(house.wiring.storage, 11, "It")


def test_a_store_without_a_visible_limit_has_room(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(house.wiring.storage), "free_bytes", lambda _self: None)
    importing.check_room(house.wiring.storage, 10**15, "It")


def test_an_import_of_a_deleted_checkpoint_says_so(house: House) -> None:
    begun = house.made("/v1/checkpoints", {"uri": house.write("model", draw(0)), "name": "m"})
    house.post(f"/v1/jobs/{begun['job']['id']}/cancel")
    house.client.delete("/v1/checkpoints/m")
    again = house.post(f"/v1/jobs/{begun['job']['id']}/retry")
    if again.status_code == 202:
        (job,) = house.work()
        assert job["problem"]["code"] == Conflict.code
        assert "was deleted" in job["problem"]["detail"]


def test_a_prefix_in_s3_is_imported_by_reference_and_fetched_at_use(s3_house: House, s3_bucket: S3Bucket) -> None:
    checkpoint = _import(s3_house, _put_model(s3_house, s3_bucket, 0))
    assert read_folder(_local(s3_house, checkpoint)) == read_folder(s3_house.data / "model-0")
    assert s3_house.read(f"/v1/checkpoints/{checkpoint}")["artifact"] is None


def test_an_object_in_s3_that_changed_is_refused(s3_house: House, s3_bucket: S3Bucket) -> None:
    checkpoint = _import(s3_house, _put_model(s3_house, s3_bucket, 0))
    _put_model(s3_house, s3_bucket, 1)
    with pytest.raises(InputChanged, match="registered with ETag"):
        _local(s3_house, checkpoint)


def test_a_copy_into_s3_is_served_and_merged_from_there(s3_house: House) -> None:
    for index, name in enumerate(("a", "b")):
        s3_house.made("/v1/checkpoints", {"uri": s3_house.write(name, draw(index)), "name": name, "storage": "copy"})
    s3_house.work()
    merge = {"method": "average", "models": [{"checkpoint": "a"}, {"checkpoint": "b"}], "output": {"name": "merged"}}
    job = s3_house.finish("/v1/merges", merge)
    assert job["state"] == "succeeded", job["problem"]
    artifact = s3_house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")
    for file in artifact["files"]:
        response = s3_house.get(f"/v1/artifacts/{artifact['id']}/files/{file['path']}")
        assert len(response.content) == file["size_bytes"]
    part = s3_house.get(
        f"/v1/artifacts/{artifact['id']}/files/{artifact['files'][0]['path']}", headers={"Range": "bytes=1-3"}
    )
    assert (part.status_code, len(part.content)) == (206, 3)
