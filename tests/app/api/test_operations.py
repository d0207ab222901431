"""Health, readiness, workers, usage, gauges; the catalog; the documentation that needs no internet."""

import re
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api import error_pages
from app.api.problems import status_of
from app.db.migrate import downgrade
from app.db.tables import Worker, utc_now
from app.domain.errors import Unavailable, all_errors
from tests.app.api.house import House, draw


def add_worker(house: House, name: str, *, state: str = "active", silent_seconds: float = 0) -> None:
    with house.wiring.sessions.begin() as session:
        session.add(
            Worker(
                id=f"wrk_{name}",
                name=name,
                queues=["io", "cpu"],
                device="cpu",
                concurrency=2,
                version="0.1.0",
                state=state,
                seen_at=utc_now() - timedelta(seconds=silent_seconds),
            )
        )


# --- health -----------------------------------------------------------------------------------------------------------


def test_a_service_is_ready_without_workers_and_says_so(any_house: House) -> None:
    ready = any_house.read("/readyz")

    assert ready["status"] == "ready"
    assert {name for name, part in ready["parts"].items() if part["required"]} == {"database", "migrations", "storage"}
    assert (ready["parts"]["workers"]["ok"], ready["parts"]["broker"]["ok"]) == (False, True)


def test_workers_are_reported(house: House) -> None:
    add_worker(house, "a")

    assert house.read("/readyz")["parts"]["workers"] == {"ok": True, "required": False, "detail": "1 active"}


def test_a_service_with_an_old_schema_is_not_ready(any_house: House) -> None:
    downgrade(any_house.settings.database_url, "base")

    response = any_house.get("/readyz")

    assert response.status_code == 503
    assert not response.json()["parts"]["migrations"]["ok"]
    assert "amalgam migrate" in response.json()["parts"]["migrations"]["detail"]
    assert int(response.headers["retry-after"]) > 0


def test_a_service_without_its_store_is_not_ready(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise Unavailable("The store is away.")

    monkeypatch.setattr(type(house.wiring.storage), "check", fail)

    response = house.get("/readyz")

    assert (response.status_code, response.json()["parts"]["storage"]["ok"]) == (503, False)


def test_a_service_without_its_broker_is_ready_and_accepts_work(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(house.wiring.queue), "is_reachable", lambda _: False)

    ready = house.read("/readyz")

    assert (ready["status"], ready["parts"]["broker"]["ok"]) == ("ready", False)


def test_silent_workers_are_told_from_active_ones(house: House) -> None:
    add_worker(house, "a")
    add_worker(house, "b", silent_seconds=40)
    add_worker(house, "c", state="stopped", silent_seconds=40)

    workers = house.read("/v1/workers")["items"]

    assert [(worker["name"], worker["state"]) for worker in workers] == [
        ("a", "active"),
        ("b", "silent"),
        ("c", "stopped"),
    ]
    assert workers[0]["queues"] == ["io", "cpu"]
    assert (workers[0]["machine"], workers[0]["cores"], workers[0]["threads"]) == ("", 1, 0)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_usage_counts_what_there_is(any_house: House) -> None:
    house = any_house
    house.family()
    body = {"method": "average", "models": [{"checkpoint": "model-0"}]}
    house.finish("/v1/merges", body)
    house.made("/v1/merges", body)  # equal bytes, stored once

    usage = house.read("/v1/usage")

    assert (usage["checkpoints"], usage["models"], usage["artifacts"], usage["tasks"]) == (5, 4, 2, 0)
    assert usage["artifact_bytes"] == 2 * usage["stored_bytes"] > 0
    assert usage["jobs"] == {"succeeded": 5}


def test_gauges_are_read_from_the_tables(any_house: House) -> None:
    house = any_house
    add_worker(house, "a")
    house.made("/v1/checkpoints", {"uri": house.write("a", draw(0)), "name": "a"})

    text = house.get("/metrics").text

    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["amalgam_jobs", "import", "io", "queued"] == 1
    assert samples["amalgam_queue_oldest_seconds", "io"] >= 0
    assert samples["amalgam_workers", "active"] == 1
    assert samples["amalgam_checkpoints", "importing"] == 1
    assert samples["amalgam_http_requests_total", "/v1/checkpoints", "202", "POST"] == 1


def test_requests_are_counted_by_route_not_by_path(house: House) -> None:
    for name in ("a", "b"):
        house.get(f"/v1/tasks/{name}")

    text = house.get("/metrics").text

    assert 'amalgam_http_requests_total{method="GET",route="/v1/tasks/{task}",status="404"} 2.0' in text


# --- catalog ----------------------------------------------------------------------------------------------------------


def test_every_method_has_a_card_with_its_parameters(house: House) -> None:
    cards = house.read("/v1/methods")["items"]

    assert {"average", "task_arithmetic", "ties", "breadcrumbs", "slerp"} <= {card["name"] for card in cards}
    for card in cards:
        assert card["parameters"]["type"] == "object"
        assert card["parameters"]["additionalProperties"] is False
        assert house.read(f"/v1/methods/{card['name']}") == card
        for alias in card["aliases"]:
            assert house.read(f"/v1/methods/{alias}") == card


def test_every_evaluator_and_technique_has_a_card(house: House) -> None:
    assert house.read("/v1/evaluators")["items"][0] == house.read("/v1/evaluators/image-classification")
    assert house.read("/v1/finetuners")["items"][0] == house.read("/v1/finetuners/full")
    assert "'full'" in house.get("/v1/finetuners/ful").json()["detail"]


# --- documentation ----------------------------------------------------------------------------------------------------


def test_the_documentation_needs_no_other_server(house: House) -> None:
    page = house.get("/docs")

    assert page.headers["content-type"].startswith("text/html")
    assert "unsafe-inline" not in page.headers["content-security-policy"].split("style-src")[0]
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert all(address.startswith("/") for address in addresses)
    for address in addresses:
        assert house.get(address).status_code == 200, address
    assert "https://" not in house.get("/static/docs.js").text
    assert house.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert house.get("/", follow_redirects=False).headers["location"] == "/docs"


def test_the_assets_carry_their_license(house: House) -> None:
    assert "Apache License" in house.get("/static/swagger-ui/LICENSE.txt").text
    assert "SmartBear" in house.get("/static/swagger-ui/README.txt").text


@pytest.mark.parametrize("path", ["/static/../main.py", "/static/%2e%2e/main.py", "/static/swagger-ui"])
def test_nothing_else_is_served_as_an_asset(house: House, path: str) -> None:
    assert house.get(path).status_code == 404


def test_every_code_is_explained(house: House) -> None:
    for kind in all_errors():
        explained = house.read(f"/problems/{kind.code}")

        assert (explained["title"], explained["status"]) == (kind.title, status_of(kind))
    assert "'not_found'" in house.get("/problems/not_fund").json()["detail"]


def test_the_page_of_errors_is_current() -> None:
    assert error_pages.PAGE.read_text(encoding="utf-8") == error_pages.render()
    assert error_pages.main(["--check"]) == 0
