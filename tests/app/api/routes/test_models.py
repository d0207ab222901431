"""Models over HTTP: versions and aliases, moved only from the revision that was read."""

from typing import Any

import pytest

from tests.app.api.house import House, draw

NEW = {"If-None-Match": "*"}


def _problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.json()["code"] == code
    body: dict[str, Any] = response.json()
    return body


def _put(house: House, alias: str, version: int, **headers: str) -> Any:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return house.client.put(f"/v1/models/m/aliases/{alias}", json={"version": version}, headers=fields)


@pytest.fixture
def three(any_house: House) -> House:
    """A house with m@1, m@2 ready and m@3 importing."""
    any_house.register("m", draw(0))
    any_house.register("m", draw(1))
    any_house.made("/v1/checkpoints", {"uri": any_house.write("later", draw(2)), "name": "m"})
    return any_house


def test_a_model_lists_its_versions_and_aliases(three: House) -> None:
    _put(three, "best", 1, If_None_Match="*")
    found = three.read("/v1/models/m")
    assert (found["last_version"], found["n_versions"], found["latest_ready_version"]) == (3, 3, 2)
    assert found["aliases"] == {"best": 1}
    assert [(item["version"], item["state"]) for item in found["versions"]] == [
        (3, "importing"),
        (2, "ready"),
        (1, "ready"),
    ]


def test_models_are_listed_by_name_in_pages(house: House) -> None:
    for name in ("zebra", "ant", "mole"):
        house.register(name, draw(0))
    page = house.read("/v1/models?limit=2")
    rest = house.read(f"/v1/models?limit=2&cursor={page['next_cursor']}")
    assert [item["name"] for item in page["items"]] == ["ant", "mole"]
    assert [item["name"] for item in rest["items"]] == ["zebra"]
    assert rest["next_cursor"] is None


def test_a_misspelt_model_is_not_found_with_a_near_match(house: House) -> None:
    house.register("minilm", draw(0))
    assert "Did you mean 'minilm'?" in _problem(house.get("/v1/models/minilim"), 404, "not_found")["detail"]


def test_an_alias_is_made_moved_and_deleted_with_its_history(three: House) -> None:
    made = _put(three, "best", 1, If_None_Match="*")
    assert made.status_code == 201
    assert made.headers["location"] == made.request.url.path
    moved = _put(three, "best", 2, If_Match=made.headers["etag"])
    assert moved.status_code == 200
    assert three.read("/v1/models/m/aliases/best")["version"] == 2
    assert three.read("/v1/checkpoints/m@best")["version"] == 2
    assert three.client.delete("/v1/models/m/aliases/best").status_code == 204
    _problem(three.get("/v1/models/m/aliases/best"), 404, "not_found")
    changes = three.read("/v1/models/m/aliases/best/history")["items"]
    assert [(item["previous_version"], item["version"]) for item in changes] == [(2, None), (1, 2), (None, 1)]


def test_an_alias_is_not_changed_without_saying_from_what(three: House) -> None:
    _problem(_put(three, "best", 1), 428, "precondition_required")
    _problem(_put(three, "best", 1, If_Match="*"), 428, "precondition_required")


def test_an_alias_is_not_moved_from_a_revision_that_has_passed(three: House) -> None:
    first = _put(three, "best", 1, If_None_Match="*").headers["etag"]
    assert _put(three, "best", 2, If_Match=first).status_code == 200
    _problem(_put(three, "best", 1, If_Match=first), 412, "etag_mismatch")
    _problem(_put(three, "best", 1, If_None_Match="*"), 412, "etag_mismatch")
    _problem(_put(three, "other", 1, If_Match=first), 412, "etag_mismatch")
    assert three.read("/v1/models/m/aliases/best")["version"] == 2


def test_an_alias_made_anew_has_an_etag_of_its_own(three: House) -> None:
    first = _put(three, "best", 1, If_None_Match="*").headers["etag"]
    three.client.delete("/v1/models/m/aliases/best")
    second = _put(three, "best", 1, If_None_Match="*").headers["etag"]
    assert first != second
    late = three.client.delete("/v1/models/m/aliases/best", headers={"If-Match": first})
    _problem(late, 412, "etag_mismatch")


def test_an_alias_names_a_ready_version(three: House) -> None:
    unknown = _problem(_put(three, "best", 9, If_None_Match="*"), 422, "checkpoint_not_found")
    assert unknown["errors"][0]["pointer"] == "/version"
    _problem(_put(three, "best", 3, If_None_Match="*"), 409, "checkpoint_not_ready")


@pytest.mark.parametrize("alias", ["7", "007"])
def test_an_alias_that_reads_as_a_version_is_refused(three: House, alias: str) -> None:
    assert (
        "would read as a version"
        in _problem(_put(three, alias, 1, If_None_Match="*"), 422, "validation_failed")["detail"]
    )


def test_an_alias_of_an_unknown_model_is_not_found(house: House) -> None:
    _problem(_put(house, "best", 1, If_None_Match="*"), 404, "not_found")
    _problem(house.get("/v1/models/m/aliases/best/history"), 404, "not_found")
    _problem(house.client.delete("/v1/models/m/aliases/best"), 404, "not_found")


def test_a_misspelt_alias_is_not_found_with_a_near_match(three: House) -> None:
    _put(three, "production", 1, If_None_Match="*")
    problem = _problem(three.get("/v1/models/m/aliases/prodution"), 404, "not_found")
    assert "Did you mean 'production'?" in problem["detail"]
