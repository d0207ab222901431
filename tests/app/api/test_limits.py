"""Limits that are answered clearly, never felt as a crash: every line of the contract about bad input."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from app.api.middleware import MAX_DEPTH
from tests.app.api.house import Document, House, open_house
from tests.servers import S3Bucket

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One service for all these tests: next to none of them changes anything."""
    with open_house(tmp_path_factory.mktemp("limits") / "house") as opened:
        yield opened


def send(house: House, body: str | bytes, **headers: str) -> Any:
    return house.client.post("/v1/merges", content=body, headers={**JSON, **headers})


def problem_of(response: Any, status: int, code: str) -> Document:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: Document = response.json()
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"/problems/{code}")
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


# --- bodies -----------------------------------------------------------------------------------------------------------


def test_a_body_over_one_mebibyte_is_too_large(house: House) -> None:
    problem = problem_of(send(house, b"x" * (2**20 + 1)), 413, "body_too_large")

    assert "1048576" in problem["detail"]


def test_a_chunked_body_over_one_mebibyte_is_too_large(house: House) -> None:
    chunks = (b"x" * 65536 for _ in range(17))

    response = house.client.post("/v1/merges", content=chunks, headers=JSON)

    problem_of(response, 413, "body_too_large")


def test_a_body_of_one_mebibyte_is_read(house: House) -> None:
    body = json.dumps({"method": "average", "models": [], "labels": "x" * (2**20 - 60)})
    assert len(body) <= 2**20

    problem_of(send(house, body), 422, "validation_failed")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ('{"method": "ties", "models": [{"checkpoint": "a", "weight": %s}]}', "/models/0/weight"),
        ('{"method": "ties", "models": [], "parameters": {"a/b": [0, {"c": %s}]}}', "/parameters/a~1b/1/c"),
        ('{"unknown": %s}', "/unknown"),
        ("%s", "/"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_anywhere(house: House, body: str, pointer: str, number: str) -> None:
    problem = problem_of(send(house, body % number), 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == pointer
    assert "finite" in problem["errors"][0]["message"]


@pytest.mark.parametrize("body", ["{", '{"a": }', "[1,]", "nothing", '{"a" 1}', "\ufeff{}"])
def test_what_is_not_json_is_malformed(house: House, body: str) -> None:
    problem = problem_of(send(house, body.encode()), 400, "malformed_request")

    assert "JSON" in problem["detail"]


def test_what_is_not_utf8_is_malformed(house: House) -> None:
    assert "UTF-8" in problem_of(send(house, b'{"method": "\xff"}'), 400, "malformed_request")["detail"]


def test_a_name_twice_in_an_object_is_malformed(house: House) -> None:
    problem = problem_of(send(house, '{"method": "ties", "method": "average"}'), 400, "malformed_request")

    assert "'method' twice" in problem["detail"]


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_deep_nesting_is_malformed(house: House, depth: int) -> None:
    body = '{"parameters": ' + "[" * depth + "]" * depth + "}"

    assert "deep" in problem_of(send(house, body), 400, "malformed_request")["detail"]


def test_an_integer_without_end_is_malformed(house: House) -> None:
    problem_of(send(house, '{"seed": ' + "9" * 50_000 + "}"), 400, "malformed_request")


def test_an_integer_beyond_the_range_is_refused_with_the_range(house: House) -> None:
    body = {"method": "average", "models": [{"checkpoint": "a"}], "seed": 2**63}

    problem = problem_of(house.post("/v1/merges", body), 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/seed"
    assert str(2**63 - 1) in problem["errors"][0]["message"]


@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800"])
def test_text_that_no_database_holds_is_refused(house: House, text: str) -> None:
    body = '{"method": "average", "models": [], "output": {"tags": {"a": "TEXT"}}}'.replace("TEXT", text)

    problem = problem_of(send(house, body), 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/output/tags/a"


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded"])
def test_another_media_type_is_not_supported(house: House, kind: str) -> None:
    response = house.client.post("/v1/merges", content=b"method: ties", headers={"Content-Type": kind})

    assert kind in problem_of(response, 415, "unsupported_media_type")["detail"]


def test_a_body_without_a_media_type_is_not_supported(house: House) -> None:
    problem_of(house.client.post("/v1/merges", content=b'{"method": "ties"}'), 415, "unsupported_media_type")


def test_no_body_is_a_missing_body(house: House) -> None:
    problem_of(house.client.post("/v1/merges"), 422, "validation_failed")


# --- unknown fields and values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "pointer", "nearest"),
    [
        ({"methd": "ties"}, "/methd", "method"),
        ({"models": [{"checkpoint": "a", "wieght": 1}]}, "/models/0/wieght", "weight"),
        ({"output": {"nmae": "x"}}, "/output/nmae", "name"),
        ({"evaluate": [{"task": "x", "spilt": "test"}]}, "/evaluate/0/spilt", "split"),
        ({"zzz": 1}, "/zzz", None),
    ],
)
def test_an_unknown_field_is_refused_with_a_near_match(
    house: House, body: Document, pointer: str, nearest: str | None
) -> None:
    full = {"method": "average", "models": [{"checkpoint": "a"}], **body}

    problem = problem_of(house.post("/v1/merges", full), 422, "validation_failed")

    faults = [fault for fault in problem["errors"] if fault["pointer"] == pointer]
    assert len(faults) == 1
    assert faults[0].get("did_you_mean") == nearest
    assert "unknown field" in faults[0]["message"]


def test_an_unknown_field_of_a_head_is_refused_with_a_near_match(house: House) -> None:
    body = house.task_body(head={"kind": "linear", "wieghts": "file:///x"})

    problem = problem_of(house.post("/v1/tasks", body), 422, "validation_failed")

    faults = {fault["pointer"]: fault for fault in problem["errors"]}
    assert faults["/head/wieghts"]["did_you_mean"] == "weights"
    assert "/head/weights" in faults


def test_an_unknown_query_parameter_is_refused_with_a_near_match(house: House) -> None:
    problem = problem_of(house.get("/v1/jobs?stat=queued"), 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/query/stat"
    assert problem["errors"][0]["did_you_mean"] == "state"


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "order=name", "state=done", "created_after=x"])
def test_a_query_value_out_of_its_range_is_refused(house: House, query: str) -> None:
    problem = problem_of(house.get(f"/v1/jobs?{query}"), 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == f"/query/{query.split('=')[0]}"


def test_an_instant_without_a_zone_is_refused(house: House) -> None:
    problem_of(house.get("/v1/jobs?created_after=2026-01-01T00:00:00"), 422, "validation_failed")


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00"])
def test_an_instant_beyond_the_calendar_is_refused(house: House, instant: str) -> None:
    problem = problem_of(house.get(f"/v1/jobs?created_after={instant}"), 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/query/created_after"


def test_a_name_that_looks_like_an_id_is_refused(house: House) -> None:
    body = {"method": "average", "models": [{"checkpoint": "a"}], "output": {"name": "ckpt_mine"}}

    problem = problem_of(house.post("/v1/merges", body), 422, "validation_failed")

    assert "id prefix" in problem["errors"][0]["message"]


@pytest.mark.parametrize("path", ["/v1/jobs/%00", "/v1/tasks/a%00b", "/v1/jobs?task=%00", "/v1/checkpoints/%00"])
def test_nul_in_an_address_is_malformed(any_house: House, path: str) -> None:
    problem_of(any_house.get(path), 400, "malformed_request")


# --- addresses and verbs ----------------------------------------------------------------------------------------------


def test_an_unknown_path_is_a_problem(house: House) -> None:
    problem_of(house.get("/v1/merge"), 404, "not_found")


def test_a_slash_too_many_is_an_unknown_path(house: House) -> None:
    problem_of(house.get("/v1/methods/"), 404, "not_found")


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [("DELETE", "/v1/merges", "POST"), ("PUT", "/v1/tasks", "GET, POST"), ("POST", "/v1/tasks/x", "DELETE, GET")],
)
def test_another_verb_is_refused_with_those_that_are_answered(house: House, verb: str, path: str, allowed: str) -> None:
    response = house.client.request(verb, path)

    problem_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


def test_events_come_as_json_or_as_a_stream_only(house: House) -> None:
    problem_of(house.get("/v1/events", headers={"Accept": "text/html"}), 406, "not_acceptable")


def test_an_unknown_method_gives_the_nearest_names(house: House) -> None:
    problem = problem_of(house.get("/v1/methods/tie"), 404, "method_not_found")

    assert "'ties'" in problem["detail"]


def test_an_unknown_evaluator_gives_the_nearest_names(house: House) -> None:
    problem = problem_of(house.get("/v1/evaluators/text-clasification"), 404, "evaluator_not_found")

    assert "'text-classification'" in problem["detail"]


def test_a_bucket_that_is_not_there_is_not_found(
    house: House, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)

    problem = problem_of(
        house.post("/v1/checkpoints", {"uri": "s3://nothing-here/minilm", "name": "a"}), 404, "uri_not_found"
    )

    assert "no bucket 'nothing-here'" in problem["detail"]


# --- request ids ------------------------------------------------------------------------------------------------------


def test_a_request_id_is_echoed(house: House) -> None:
    assert house.get("/healthz", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\u00e9"])
def test_another_request_id_is_made_where_none_can_be_used(house: House, given: str) -> None:
    made = house.get("/healthz", headers={"X-Request-ID": given.encode("latin-1")}).headers["x-request-id"]

    assert re.fullmatch(r"[0-9a-f]{32}", made)


def test_a_job_carries_the_id_of_its_request(house: House) -> None:
    house.family()
    body = {"method": "average", "models": [{"checkpoint": "model-0"}]}
    headers = {"X-Request-ID": "mine-2", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

    job = house.made("/v1/merges", body, headers=headers)

    assert (job["request_id"], job["traceparent"]) == ("mine-2", headers["traceparent"])


def test_a_trace_is_echoed(house: House) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert house.get("/healthz", headers={"traceparent": given}).headers["traceparent"] == given


@pytest.mark.parametrize(
    "given", ["", "x", f"ff-{'a' * 32}-{'b' * 16}-01", f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'0' * 16}-01"]
)
def test_another_trace_is_made_where_none_can_be_used(house: House, given: str) -> None:
    answers = [house.get("/healthz", headers={"traceparent": given}).headers["traceparent"] for _ in range(2)]

    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", made) for made in answers)
    assert answers[0] != answers[1]


def test_a_request_is_logged_with_its_id_and_its_trace(house: House) -> None:
    with structlog.testing.capture_logs() as lines:
        answer = house.post("/v1/merges", {})

    logged = next(line for line in lines if line["event"] == "request_answered")
    assert logged["request_id"] == answer.headers["x-request-id"]
    assert logged["traceparent"] == answer.headers["traceparent"]


# --- hosts and origins ------------------------------------------------------------------------------------------------


def test_another_host_is_refused(tmp_path: Path) -> None:
    with open_house(tmp_path / "house", allowed_hosts=("merge.example", "*.merge.example")) as house:
        for host in ("merge.example", "merge.example:8000", "eu.merge.example"):
            assert house.get("/healthz", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "xmerge.example", "merge.example.evil"):
            problem = problem_of(house.get("/healthz", headers={"Host": host}), 400, "malformed_request")
            assert "AMALGAM_ALLOWED_HOSTS" in problem["detail"]


def test_a_service_on_loopback_answers_to_its_own_names_only(house: House) -> None:
    for host in ("localhost", "LocalHost:8000", "127.0.0.1:8000", "[::1]", "[::1]:8000"):
        assert house.get("/healthz", headers={"Host": host}).status_code == 200
    problem_of(house.get("/healthz", headers={"Host": "evil.example"}), 400, "malformed_request")


def test_no_origin_may_call_unless_it_is_named(house: House, tmp_path: Path) -> None:
    asked = {"Origin": "https://dashboard.example"}
    assert "access-control-allow-origin" not in house.get("/healthz", headers=asked).headers
    with open_house(tmp_path / "other", cors_origins=("https://dashboard.example",)) as other:
        assert other.get("/healthz", headers=asked).headers["access-control-allow-origin"] == asked["Origin"]
        for problem in (
            other.get("/healthz", headers={**asked, "Host": "evil.example"}),
            other.client.post("/v1/plans", content=b'{"seed": NaN}', headers={**asked, **JSON}),
            other.client.post("/v1/plans", content=b" " * 2**21, headers={**asked, **JSON}),
        ):
            assert problem.status_code in (400, 413, 422)
            assert problem.headers["access-control-allow-origin"] == asked["Origin"]
        foreign = other.get("/healthz", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers


# --- faults of ours ---------------------------------------------------------------------------------------------------


def test_a_fault_of_ours_says_nothing_of_its_insides(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret of /srv/data")

    monkeypatch.setattr("app.services.operations.count_usage", fail)

    response = house.get("/v1/usage", headers={"X-Request-ID": "mine-3"})

    problem = problem_of(response, 500, "internal")
    assert "secret" not in response.text
    assert "mine-3" in problem["detail"]


def test_a_database_that_is_away_is_said_to_be_away(tmp_path: Path) -> None:
    with open_house(tmp_path / "house") as house:
        (tmp_path / "house" / "home" / "amalgam.db").rename(tmp_path / "gone.db")
        house.wiring.sessions.engine.dispose()
        for path in ("/v1/jobs", "/v1/checkpoints", "/v1/usage"):
            response = house.get(path)
            problem = problem_of(response, 503, "unavailable")
            assert problem["retryable"]
            assert int(response.headers["retry-after"]) > 0
        assert house.get("/healthz").status_code == 200
        ready = house.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
