"""Lists in pages: every row once, whatever is added meanwhile; a cursor works only where it was given out."""

import pytest

from tests.app.api.house import Document, House, draw
from tests.app.api.test_operations import add_worker


def make_tasks(house: House, *names: str) -> list[str]:
    return [house.made("/v1/tasks", house.task_body(name))["id"] for name in names]


def pages(house: House, query: str) -> list[list[str]]:
    found: list[list[str]] = []
    cursor = ""
    while True:
        page = house.read(f"/v1/tasks?{query}{cursor}")
        found.append([task["id"] for task in page["items"]])
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 200])
def test_pages_hold_every_row_once(house: House, limit: int) -> None:
    ids = make_tasks(house, "a", "b", "c", "d")

    for order, expected in (("created_at", ids), ("-created_at", ids[::-1])):
        found = pages(house, f"limit={limit}&order={order}")

        assert [task for page in found for task in page] == expected
        assert all(len(page) == limit for page in found[:-1])


def test_what_is_added_meanwhile_neither_repeats_nor_skips(any_house: House) -> None:
    house = any_house
    ids = make_tasks(house, "a", "b", "c", "d")
    first = house.read("/v1/tasks?limit=2")
    make_tasks(house, "e", "f")

    second = house.read(f"/v1/tasks?limit=2&cursor={first['next_cursor']}")

    seen = [task["id"] for task in (*first["items"], *second["items"])]
    assert seen == ids[::-1]


def test_what_is_deleted_meanwhile_does_not_matter(house: House) -> None:
    ids = make_tasks(house, "a", "b", "c", "d")
    first = house.read("/v1/tasks?limit=2")
    assert house.client.delete("/v1/tasks/c").status_code == 204

    second = house.read(f"/v1/tasks?limit=2&cursor={first['next_cursor']}")

    assert [task["id"] for task in second["items"]] == [ids[1], ids[0]]


@pytest.mark.parametrize("query", ["order=created_at&", "kind=x&"])
def test_a_cursor_of_another_list_is_refused(house: House, query: str) -> None:
    make_tasks(house, "a", "b")
    cursor = house.read("/v1/tasks?limit=1")["next_cursor"]

    assert refused(house, f"/v1/tasks?{query}cursor={cursor}")
    assert refused(house, f"/v1/jobs?cursor={cursor}")


@pytest.mark.parametrize("cursor", ["x", "W10", "bnVsbA", "WyJhIiwgImIiXQ", "%F0%9F%98%80", "!!!", "A" * 512])
def test_a_made_up_cursor_is_refused(house: House, cursor: str) -> None:
    assert refused(house, f"/v1/tasks?cursor={cursor}")


def refused(house: House, path: str) -> Document:
    response = house.get(path)
    assert (response.status_code, response.json()["code"]) == (400, "bad_cursor")
    problem: Document = response.json()
    return problem


@pytest.mark.parametrize(
    "path", ["/v1/tasks", "/v1/metrics", "/v1/models", "/v1/jobs", "/v1/checkpoints", "/v1/artifacts"]
)
def test_every_list_is_narrowed_by_time(house: House, path: str) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body())
    house.finish("/v1/merges", {"method": "average", "models": [{"checkpoint": "bert"}], "evaluate": ["kind"]})
    every = house.read(path)["items"]
    assert every

    assert (
        house.read(f"{path}?created_after=2020-01-01T00:00:00Z&created_before=2120-01-01T00:00:00Z")["items"] == every
    )
    assert house.read(f"{path}?created_after=2120-01-01T00:00:00Z")["items"] == []
    assert house.read(f"{path}?created_before=2020-01-01T00:00:00Z")["items"] == []


@pytest.mark.parametrize("path", ["/v1/methods", "/v1/evaluators", "/v1/finetuners", "/v1/workers"])
def test_short_lists_have_pages_too(house: House, path: str) -> None:
    add_worker(house, "a")
    add_worker(house, "b")
    whole = house.read(path)
    first = house.read(f"{path}?limit=1")

    assert whole["next_cursor"] is None
    assert first["items"] == whole["items"][:1]
    assert (first["next_cursor"] is None) == (len(whole["items"]) == 1)
    if first["next_cursor"] is not None:
        rest = house.read(f"{path}?cursor={first['next_cursor']}")
        assert rest == {"items": whole["items"][1:], "next_cursor": None}
    assert refused(house, f"{path}?cursor=x")


def test_models_are_listed_backwards_too(house: House) -> None:
    for name in ("a", "c", "b"):
        house.register(name, draw(0))

    first = house.read("/v1/models?order=-name&limit=2")
    rest = house.read(f"/v1/models?order=-name&limit=2&cursor={first['next_cursor']}")

    assert [item["name"] for item in (*first["items"], *rest["items"])] == ["c", "b", "a"]


def test_models_are_listed_by_time_too(any_house: House) -> None:
    house = any_house
    for name in ("b", "c", "a"):
        house.register(name, draw(0))

    for order, expected in (("created_at", ["b", "c", "a"]), ("-created_at", ["a", "c", "b"])):
        first = house.read(f"/v1/models?order={order}&limit=2")
        rest = house.read(f"/v1/models?order={order}&limit=2&cursor={first['next_cursor']}")

        assert [item["name"] for item in (*first["items"], *rest["items"])] == expected
        assert refused(house, f"/v1/models?order=name&cursor={first['next_cursor']}")


@pytest.mark.parametrize("path", ["/v1/methods", "/v1/evaluators", "/v1/finetuners", "/v1/workers"])
def test_short_lists_run_backwards_too(house: House, path: str) -> None:
    add_worker(house, "a")
    add_worker(house, "b")
    forwards = house.read(path)["items"]
    found: list[Document] = []
    cursor = ""
    while True:
        page = house.read(f"{path}?order=-name&limit=1{cursor}")
        found += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert found == forwards[::-1]
    assert house.get(f"{path}?order=created_at").status_code == 422


@pytest.mark.parametrize(
    "query", ["tag.", "tag.%20a=b", "tag.a%C3%A9=b", f"tag.{'a' * 64}=b", f"tag.a={'b' * 256}", "tag.-a=b"]
)
def test_a_filter_by_what_can_be_no_tag_is_refused(house: House, query: str) -> None:
    response = house.get(f"/v1/jobs?{query}")

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")
    assert response.json()["errors"][0]["pointer"].startswith("/query/tag.")
