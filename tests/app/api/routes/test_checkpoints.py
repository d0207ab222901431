"""Checkpoints over HTTP: registering, refs, changing, comparing, lineage, deleting."""

from pathlib import Path
from typing import Any

import pytest

from tests.app.api.house import House, draw

REGISTER = "/v1/checkpoints"


def _problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    assert body["code"] == code
    assert response.headers["content-type"] == "application/problem+json"
    return body


# --- registering --------------------------------------------------------------------------------------------------


def test_registering_answers_the_checkpoint_and_its_job(any_house: House) -> None:
    uri = any_house.write("model", draw(0))
    body = {"uri": uri, "name": "minilm", "task": "tickets", "tags": {"team": "support"}}
    response = any_house.post(REGISTER, body)
    assert response.status_code == 202
    begun = response.json()
    assert response.headers["location"] == f"/v1/checkpoints/{begun['checkpoint']['id']}"
    assert begun["checkpoint"]["state"] == "importing"
    assert begun["checkpoint"]["version"] == 1
    assert begun["job"]["kind"] == "import"
    assert begun["job"]["state"] == "queued"
    assert begun["job"]["spec"]["checkpoint"] == begun["checkpoint"]["id"]


def test_the_import_makes_it_ready(any_house: House) -> None:
    begun = any_house.made(REGISTER, {"uri": any_house.write("model", draw(0)), "name": "minilm"})
    (job,) = any_house.work()
    found = any_house.read("/v1/checkpoints/minilm")
    assert job["state"] == "succeeded", job["problem"]
    assert job["result"] == {"checkpoint": begun["checkpoint"]["id"], "artifacts": [], "evaluations": [], "metrics": []}
    assert found["state"] == "ready"
    assert (found["n_tensors"], found["n_parameters"], found["dtype"]) == (2, 15, "F32")
    assert len(found["content_digest"]) == len(found["weights_digest"]) == 64
    assert found["storage"] == "reference"
    assert found["artifact"] is None


def test_a_copy_is_kept_in_the_store(house: House) -> None:
    uri = house.write("model", draw(0))
    house.made(REGISTER, {"uri": uri, "name": "minilm", "storage": "copy"})
    (job,) = house.work()
    (house.data / "model" / "model.safetensors").unlink()
    found = house.read("/v1/checkpoints/minilm")
    artifact = house.read(f"/v1/artifacts/{found['artifact']}")
    assert job["result"]["artifacts"] == [found["artifact"]]
    assert artifact["checkpoint"] == found["id"]
    assert [file["path"] for file in artifact["files"]] == ["model.safetensors"]
    assert artifact["content_digest"] == found["content_digest"]
    assert house.get(f"/v1/artifacts/{found['artifact']}/files/model.safetensors").status_code == 200


def test_the_same_name_gives_versions(any_house: House) -> None:
    uri = any_house.write("model", draw(0))
    versions = [any_house.made(REGISTER, {"uri": uri, "name": "m"})["checkpoint"]["version"] for _ in range(3)]
    assert versions == [1, 2, 3]


def test_the_same_content_under_two_names_is_one_content(house: House) -> None:
    uri = house.write("model", draw(0))
    for name in ("first", "second"):
        house.made(REGISTER, {"uri": uri, "name": name, "storage": "copy"})
    house.work()
    first, second = (house.read(f"/v1/checkpoints/{name}") for name in ("first", "second"))
    assert first["content_digest"] == second["content_digest"]
    assert first["artifact"] != second["artifact"]
    assert len(list(house.wiring.storage.list_objects())) == 1


def test_one_safetensors_file_can_be_registered(house: House) -> None:
    uri = house.write("model", draw(0)) + "/model.safetensors"
    for storage in ("reference", "copy"):
        house.made(REGISTER, {"uri": uri, "name": storage, "storage": storage})
        house.work()
        assert house.read(f"/v1/checkpoints/{storage}")["state"] == "ready"


def test_an_import_that_fails_leaves_the_problem_with_the_checkpoint(any_house: House) -> None:
    uri = any_house.write("model", draw(0))
    path = any_house.data / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    any_house.made(REGISTER, {"uri": uri, "name": "broken"})
    (job,) = any_house.work()
    found = any_house.read("/v1/checkpoints/broken")
    assert job["state"] == "failed"
    assert found["state"] == "invalid"
    assert found["problem"]["code"] == "invalid_header"
    assert found["problem"]["status"] == 422
    assert found["problem"]["type"] == "/problems/invalid_header"


def test_a_canceled_import_leaves_the_checkpoint_invalid(house: House) -> None:
    begun = house.made(REGISTER, {"uri": house.write("model", draw(0)), "name": "m"})
    assert house.post(f"/v1/jobs/{begun['job']['id']}/cancel").status_code == 202
    found = house.read("/v1/checkpoints/m")
    assert found["state"] == "invalid"
    assert "canceled" in found["problem"]["detail"]


def test_a_retried_import_makes_the_checkpoint_ready(house: House) -> None:
    begun = house.made(REGISTER, {"uri": house.write("model", draw(0)), "name": "m"})
    house.post(f"/v1/jobs/{begun['job']['id']}/cancel")
    again = house.made(f"/v1/jobs/{begun['job']['id']}/retry", None)
    assert house.read("/v1/checkpoints/m")["state"] == "importing"
    house.work()
    found = house.read("/v1/checkpoints/m")
    assert (found["state"], found["problem"], found["job"]) == ("ready", None, again["id"])


def test_each_turn_of_an_import_has_an_etag_of_its_own(any_house: House) -> None:
    begun = any_house.made(REGISTER, {"uri": any_house.write("model", draw(0)), "name": "m"})
    seen = [any_house.get("/v1/checkpoints/m").headers["etag"]]
    for step in ("cancel", "retry"):
        any_house.made(f"/v1/jobs/{begun['job']['id']}/{step}", None)
        seen.append(any_house.get("/v1/checkpoints/m").headers["etag"])
    any_house.work()
    seen.append(any_house.get("/v1/checkpoints/m").headers["etag"])
    assert len(set(seen)) == len(seen) == 4


def test_an_import_that_was_retried_already_is_not_retried(any_house: House) -> None:
    job = any_house.made(REGISTER, {"uri": any_house.write("model", draw(0)), "name": "m"})["job"]["id"]
    any_house.made(f"/v1/jobs/{job}/cancel", None)
    any_house.made(f"/v1/jobs/{job}/retry", None)
    problem = _problem(any_house.post(f"/v1/jobs/{job}/retry"), 409, "conflict")
    assert "another retry has it" in problem["detail"]
    assert len(any_house.read("/v1/jobs")["items"]) == 2


def test_an_import_of_a_deleted_checkpoint_is_not_retried(any_house: House) -> None:
    job = any_house.made(REGISTER, {"uri": any_house.write("model", draw(0)), "name": "m"})["job"]["id"]
    any_house.made(f"/v1/jobs/{job}/cancel", None)
    assert any_house.client.delete("/v1/checkpoints/m").status_code == 204
    problem = _problem(any_house.post(f"/v1/jobs/{job}/retry"), 409, "conflict")
    assert "its checkpoint was deleted" in problem["detail"]


@pytest.mark.parametrize(
    ("uri", "status", "code"),
    [
        ("file:///etc/passwd", 422, "uri_not_allowed"),
        ("/etc/passwd", 422, "uri_not_allowed"),
        ("gs://bucket/model", 422, "uri_not_allowed"),
        ("hf://org/name@main", 422, "uri_not_allowed"),
        ("{data}/missing", 404, "uri_not_found"),
        ("{data}/%2e%2e/home", 422, "uri_not_allowed"),
    ],
)
def test_a_uri_that_cannot_be_read_is_refused_at_once(house: House, uri: str, status: int, code: str) -> None:
    asked = uri.format(data=house.data.as_uri())
    _problem(house.post(REGISTER, {"uri": asked, "name": "m"}), status, code)
    assert house.read("/v1/checkpoints")["items"] == []


def test_pickles_are_refused_with_the_way_to_convert_them(house: House) -> None:
    (house.data / "old").mkdir()
    (house.data / "old" / "pytorch_model.bin").write_bytes(b"pickle")
    response = house.post(REGISTER, {"uri": (house.data / "old").as_uri(), "name": "old"})
    assert "save_pretrained" in _problem(response, 422, "unsafe_format")["detail"]


def test_a_folder_without_weights_is_refused(house: House) -> None:
    (house.data / "empty").mkdir()
    _problem(house.post(REGISTER, {"uri": (house.data / "empty").as_uri(), "name": "m"}), 422, "missing_weights")


@pytest.mark.parametrize("name", ["", "a b", "../x", "ckpt_1", "x" * 129, "-x"])
def test_a_name_that_breaks_the_grammar_is_refused(house: House, name: str) -> None:
    _problem(house.post(REGISTER, {"uri": house.data.as_uri(), "name": name}), 422, "validation_failed")


def test_an_unknown_base_is_named_with_its_pointer_and_a_near_match(house: House) -> None:
    house.register("minilm", draw(0))
    body = {"uri": house.write("model", draw(0)), "name": "m", "base_checkpoint": "minilim"}
    problem = _problem(house.post(REGISTER, body), 422, "checkpoint_not_found")
    assert problem["errors"][0]["pointer"] == "/base_checkpoint"
    assert problem["errors"][0]["did_you_mean"] == "minilm"


def test_the_same_idempotency_key_registers_once_even_when_the_files_are_gone(any_house: House) -> None:
    body = {"uri": any_house.write("model", draw(0)), "name": "m"}
    first = any_house.post(REGISTER, body, headers={"Idempotency-Key": "k1"})
    (any_house.data / "model").rename(any_house.data / "moved")
    second = any_house.post(REGISTER, body, headers={"Idempotency-Key": "k1"})
    assert second.status_code == 202
    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    other = any_house.post(REGISTER, {**body, "name": "other"}, headers={"Idempotency-Key": "k1"})
    _problem(other, 409, "idempotency_key_reused")


def test_a_file_that_changes_after_registration_fails_the_import(house: House) -> None:
    uri = house.write("model", draw(0))
    house.made(REGISTER, {"uri": uri, "name": "m"})
    path = house.data / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes())
    (job,) = house.work()
    assert job["problem"]["code"] == "input_changed"
    assert house.read("/v1/checkpoints/m")["state"] == "invalid"


# --- refs ---------------------------------------------------------------------------------------------------------


def test_every_form_of_ref_names_the_checkpoint(any_house: House) -> None:
    first = any_house.register("m", draw(0))
    second = any_house.register("m", draw(1))
    headers = {"If-None-Match": "*"}
    any_house.client.put("/v1/models/m/aliases/best", json={"version": 1}, headers=headers)
    digest = any_house.read(f"/v1/checkpoints/{second}")["content_digest"]
    named = {
        ref: any_house.read(f"/v1/checkpoints/{ref}")["id"]
        for ref in (first, "m", "m@1", "m@2", "m@best", f"sha256:{digest}")
    }
    assert named == {
        first: first,
        "m": second,
        "m@1": first,
        "m@2": second,
        "m@best": first,
        f"sha256:{digest}": second,
    }


def test_a_bare_name_is_the_latest_ready_version(house: House) -> None:
    ready = house.register("m", draw(0))
    house.made(REGISTER, {"uri": house.write("later", draw(1)), "name": "m"})
    assert house.read("/v1/checkpoints/m")["id"] == ready
    assert house.read("/v1/checkpoints/m@2")["state"] == "importing"


@pytest.mark.parametrize(
    "ref", ["nothing", "m@9", "m@best", "m@", "@", "ckpt_" + "0" * 32, "a b", "sha256:" + "0" * 64, "%ff"]
)
def test_an_unknown_ref_in_a_path_is_not_found(house: House, ref: str) -> None:
    house.register("m", draw(0))
    _problem(house.get(f"/v1/checkpoints/{ref}"), 404, "not_found")


def test_unknown_refs_in_a_body_are_all_named(house: House) -> None:
    house.register("m", draw(0))
    body = {"base_model": "nope", "models": ["m", "m@7", "nada"]}
    problem = _problem(house.post("/v1/checkpoints/compatibility", body), 422, "checkpoint_not_found")
    assert [fault["pointer"] for fault in problem["errors"]] == ["/base_model", "/models/1", "/models/2"]


def test_what_is_not_ready_conflicts_and_is_all_named(house: House) -> None:
    begun = house.made(REGISTER, {"uri": house.write("a", draw(0)), "name": "a"})
    house.post(f"/v1/jobs/{begun['job']['id']}/cancel")
    house.made(REGISTER, {"uri": house.write("b", draw(0)), "name": "b"})
    problem = _problem(house.post("/v1/checkpoints/compatibility", {"models": ["a", "b"]}), 409, "checkpoint_not_ready")
    assert [fault["pointer"] for fault in problem["errors"]] == ["/models/0", "/models/1"]
    assert "is invalid" in problem["errors"][0]["message"]
    assert "is still importing; wait for job_" in problem["errors"][1]["message"]


# --- looking ------------------------------------------------------------------------------------------------------


def test_the_list_is_filtered_and_paged(any_house: House) -> None:
    for index in range(5):
        any_house.register("even" if index % 2 == 0 else "odd", draw(0), tags={"index": str(index)}, task="tickets")
    everything = any_house.read("/v1/checkpoints")["items"]
    assert [item["tags"]["index"] for item in everything] == ["4", "3", "2", "1", "0"]
    assert [item["tags"]["index"] for item in any_house.read("/v1/checkpoints?name=odd")["items"]] == ["3", "1"]
    assert [item["name"] for item in any_house.read("/v1/checkpoints?tag.index=3")["items"]] == ["odd"]
    assert any_house.read("/v1/checkpoints?state=importing")["items"] == []
    assert any_house.read("/v1/checkpoints?tag.index=3&task=other")["items"] == []
    assert any_house.read(f"/v1/checkpoints?created_after={everything[2]['created_at']}")["items"] == everything[:2]
    first = any_house.read("/v1/checkpoints?limit=2")
    second = any_house.read(f"/v1/checkpoints?limit=2&cursor={first['next_cursor']}")
    third = any_house.read(f"/v1/checkpoints?limit=2&cursor={second['next_cursor']}")
    assert first["items"] + second["items"] + third["items"] == everything
    assert third["next_cursor"] is None


def test_a_cursor_of_other_filters_is_refused(house: House) -> None:
    for _ in range(2):
        house.register("m", draw(0))
    cursor = house.read("/v1/checkpoints?limit=1")["next_cursor"]
    _problem(house.get(f"/v1/checkpoints?limit=1&name=m&cursor={cursor}"), 400, "bad_cursor")


def test_tensors_are_listed_by_name_in_pages(house: House) -> None:
    house.register("m", draw(0, {"b": (2, 3), "a": (), "c": (1,)}))
    page = house.read("/v1/checkpoints/m/tensors?limit=2")
    assert page["items"] == [
        {"name": "a", "dtype": "F32", "shape": [], "n_elements": 1, "size_bytes": 4, "file": "model.safetensors"},
        {"name": "b", "dtype": "F32", "shape": [2, 3], "n_elements": 6, "size_bytes": 24, "file": "model.safetensors"},
    ]
    rest = house.read(f"/v1/checkpoints/m/tensors?limit=2&cursor={page['next_cursor']}")
    assert [item["name"] for item in rest["items"]] == ["c"]
    assert rest["next_cursor"] is None
    _problem(house.get("/v1/checkpoints/m/tensors?cursor=abc"), 400, "bad_cursor")


def test_tensors_are_not_known_before_the_import(house: House) -> None:
    house.made(REGISTER, {"uri": house.write("m", draw(0)), "name": "m"})
    _problem(house.get("/v1/checkpoints/m/tensors"), 409, "checkpoint_not_ready")


def test_compatibility_names_every_difference(house: House) -> None:
    house.register("base", draw(0, {"a": (2,), "b": (3,)}))
    house.register("same", draw(1, {"a": (2,), "b": (3,)}))
    house.register("other", draw(1, {"a": (4,), "c": (3,)}))
    same = house.made("/v1/checkpoints/compatibility", {"base_model": "base", "models": ["same"]})
    assert (same["is_mergeable"], same["n_differences"], same["n_tensors"]) == (True, 0, 2)
    found = house.made("/v1/checkpoints/compatibility", {"base_model": "base", "models": ["same", "other"]})
    assert not found["is_mergeable"]
    assert [(item["name"], item["problem"], item["model"]) for item in found["differences"]] == [
        ("a", "shape", 1),
        ("b", "missing", 1),
        ("c", "extra", 1),
    ]
    assert house.made("/v1/checkpoints/compatibility", {"models": ["same", "base"]})["is_mergeable"]


# --- changing -----------------------------------------------------------------------------------------------------


def test_a_change_touches_only_what_it_names(any_house: House) -> None:
    any_house.register("m", draw(0), task="tickets", tags={"a": "1"})
    changed = any_house.client.patch("/v1/checkpoints/m", json={"tags": {"b": "2"}})
    assert changed.status_code == 200
    assert (changed.json()["task"], changed.json()["tags"]) == ("tickets", {"b": "2"})
    cleared = any_house.client.patch("/v1/checkpoints/m", json={"task": None}).json()
    assert (cleared["task"], cleared["tags"]) == (None, {"b": "2"})


def test_a_change_based_on_an_old_revision_fails(any_house: House) -> None:
    any_house.register("m", draw(0))
    tag = any_house.get("/v1/checkpoints/m").headers["etag"]
    first = any_house.client.patch("/v1/checkpoints/m", json={"task": "a"}, headers={"If-Match": tag})
    assert first.status_code == 200
    assert first.headers["etag"] != tag
    late = any_house.client.patch("/v1/checkpoints/m", json={"task": "b"}, headers={"If-Match": tag})
    _problem(late, 412, "etag_mismatch")
    _problem(any_house.client.delete("/v1/checkpoints/m", headers={"If-Match": tag}), 412, "etag_mismatch")
    assert any_house.read("/v1/checkpoints/m")["task"] == "a"


def test_what_is_no_etag_is_refused(house: House) -> None:
    house.register("m", draw(0))
    response = house.client.patch("/v1/checkpoints/m", json={}, headers={"If-Match": "7"})
    _problem(response, 400, "malformed_request")


# --- deleting and lineage -----------------------------------------------------------------------------------------


def test_deleting_forgets_the_checkpoint_but_not_its_number(any_house: House) -> None:
    any_house.register("m", draw(0))
    assert any_house.client.delete("/v1/checkpoints/m").status_code == 204
    problem = _problem(any_house.get("/v1/checkpoints/m"), 404, "not_found")
    assert "Did you mean" not in problem["detail"]
    assert any_house.read("/v1/checkpoints")["items"] == []
    assert any_house.read(f"/v1/checkpoints/{any_house.register('m', draw(1))}")["version"] == 2


def test_deleting_a_reference_leaves_the_files_where_they_lie(house: House) -> None:
    uri = house.write("model", draw(0))
    house.made(REGISTER, {"uri": uri, "name": "m"})
    house.work()
    assert house.client.delete("/v1/checkpoints/m").status_code == 204
    assert (house.data / "model" / "model.safetensors").exists()


def test_a_checkpoint_in_use_is_not_deleted(any_house: House) -> None:
    base, first, second = any_house.family(2)
    merge = {"method": "average", "models": [{"checkpoint": first}, {"checkpoint": second}], "output": {"name": "out"}}
    any_house.made("/v1/merges", merge)
    problem = _problem(any_house.client.delete(f"/v1/checkpoints/{first}"), 409, "resource_in_use")
    assert "1 × job (job_" in problem["detail"]
    based = _problem(any_house.client.delete(f"/v1/checkpoints/{base}"), 409, "resource_in_use")
    assert "2 × checkpoint based on it (model-0@1, model-1@1)" in based["detail"]
    any_house.work()
    assert any_house.client.delete(f"/v1/checkpoints/{first}").status_code == 204


def test_an_importing_checkpoint_is_not_deleted(house: House) -> None:
    house.made(REGISTER, {"uri": house.write("m", draw(0)), "name": "m"})
    problem = _problem(house.client.delete("/v1/checkpoints/m"), 409, "resource_in_use")
    assert "its import job_" in problem["detail"]


def test_a_checkpoint_with_an_alias_is_not_deleted(house: House) -> None:
    house.register("m", draw(0))
    house.client.put("/v1/models/m/aliases/best", json={"version": 1}, headers={"If-None-Match": "*"})
    problem = _problem(house.client.delete("/v1/checkpoints/m"), 409, "resource_in_use")
    assert "1 × alias (best)" in problem["detail"]


def test_lineage_goes_up_and_down_and_keeps_the_deleted(any_house: House) -> None:
    base, first, second = any_house.family(2)
    models = [{"checkpoint": first}, {"checkpoint": second}]
    merge = {"method": "task_arithmetic", "base_model": base, "models": models, "output": {"name": "merged"}}
    job = any_house.finish("/v1/merges", merge)
    ids = {name: any_house.read(f"/v1/checkpoints/{name}")["id"] for name in (base, first, second, "merged")}
    any_house.client.delete("/v1/checkpoints/merged")
    found = any_house.read(f"/v1/checkpoints/{ids[first]}/lineage")
    nodes = {node["id"]: node["is_deleted"] for node in found["nodes"]}
    assert nodes[ids["merged"]] is True
    assert nodes[ids[base]] is False
    assert {"source": ids[first], "target": ids["merged"], "role": "model", "job": job["id"]} in found["edges"]
    assert {"source": ids[base], "target": ids[first], "role": "base_checkpoint", "job": None} in found["edges"]
    tombstone = any_house.read(f"/v1/checkpoints/{ids['merged']}/lineage")
    assert {edge["source"] for edge in tombstone["edges"]} == {ids[base], ids[first], ids[second]}
    assert any_house.read(f"/v1/checkpoints/{ids[first]}/lineage?depth=1")["is_truncated"] is False


def test_a_folder_beside_the_roots_is_never_listed(house: House, tmp_path: Path) -> None:
    (house.data / "escape").symlink_to(tmp_path)
    _problem(house.post(REGISTER, {"uri": f"{house.data.as_uri()}/escape", "name": "m"}), 422, "uri_not_allowed")
