"""Jobs over HTTP: looked at, waited for, canceled, retried; their logs as lists and as streams."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from sqlalchemy.pool import QueuePool

from app.api import streams
from app.cli.client import Client
from app.db import events as event_log
from app.domain.errors import WorkerLost
from app.services import running
from tests.app.api.house import Document, House, draw
from tests.servers import free_port
from tests.waiting import wait_until

STREAM = {"Accept": "text/event-stream"}


def begin(house: House, **fields: object) -> Document:
    """Begin an import job; nothing runs it yet."""
    job: Document = house.made("/v1/checkpoints", {"uri": house.write("a", draw(0)), "name": "a", **fields})["job"]
    return job


def claim(house: House) -> running.Claim:
    taken = running.claim(house.wiring.sessions, house.worker, lease_seconds=600)
    assert taken is not None
    return taken


# --- looking ----------------------------------------------------------------------------------------------------------


def test_a_job_in_full(house: House) -> None:
    job = begin(house)
    house.work()

    found = house.read(f"/v1/jobs/{job['id']}")

    assert (found["kind"], found["state"], found["attempts"], found["max_attempts"]) == ("import", "succeeded", 1, 3)
    assert found["timings"]["queued_at"].endswith("Z")
    assert found["timings"]["queued_at"] <= found["timings"]["started_at"] <= found["timings"]["finished_at"]
    assert (found["problem"], found["parent"], found["retry_of"]) == (None, None, None)
    assert found["result"]["checkpoint"].startswith("ckpt_")
    assert "project_id" not in found


def test_jobs_are_filtered(any_house: House) -> None:
    house = any_house
    job = begin(house)
    house.family()
    merge = house.made(
        "/v1/merges",
        {"method": "average", "models": [{"checkpoint": "model-0"}], "output": {"tags": {"team": "a/b"}}},
    )

    def ids(query: str) -> list[str]:
        return [found["id"] for found in house.read(f"/v1/jobs?{query}")["items"]]

    assert ids("kind=merge") == ids("state=queued") == ids("method=average") == ids("tag.team=a/b") == [merge["id"]]
    assert ids("tag.team=c") == ids("method=ties") == ids("kind=merge&state=failed") == []
    assert ids("order=created_at")[0] == job["id"]
    assert ids(f"created_after={job['created_at']}&order=created_at")[0] != job["id"]
    assert ids(f"created_before={merge['created_at']}&order=-created_at")[0] != merge["id"]


def test_an_unknown_job_is_not_found(house: House) -> None:
    for path in ("", "/events", "/recipe"):
        assert house.get(f"/v1/jobs/job_0{path}").status_code == 404
    for path in ("cancel", "retry"):
        assert house.post(f"/v1/jobs/job_0/{path}").status_code == 404
    assert house.get("/v1/jobs/job_0/events", headers=STREAM).status_code == 404


def test_a_job_has_an_etag_of_its_revision(house: House) -> None:
    job = begin(house)

    response = house.get(f"/v1/jobs/{job['id']}")

    assert response.headers["etag"] == f'"{response.json()["revision"]}"'


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_waiting_ends_with_the_time(house: House) -> None:
    job = begin(house)
    began = time.monotonic()

    found = house.read(f"/v1/jobs/{job['id']}?wait_seconds=0.3")

    assert found["state"] == "queued"
    assert time.monotonic() - began >= 0.3


def test_waiting_ends_with_the_job(house: House) -> None:
    job = begin(house)
    worker = threading.Timer(0.3, house.work)
    worker.start()

    found = house.read(f"/v1/jobs/{job['id']}?wait_seconds=30")

    assert found["state"] == "succeeded"
    worker.join()


@pytest.mark.parametrize("seconds", ["61", "-1", "nan", "inf", "x"])
def test_waiting_has_limits(house: House, seconds: str) -> None:
    job = begin(house)

    assert house.get(f"/v1/jobs/{job['id']}?wait_seconds={seconds}").status_code == 422


# --- canceling and retrying -------------------------------------------------------------------------------------------


def test_a_queued_job_is_canceled_at_once(any_house: House) -> None:
    job = begin(any_house)

    response = any_house.post(f"/v1/jobs/{job['id']}/cancel")

    assert (response.status_code, response.json()["state"]) == (202, "canceled")
    assert any_house.work() == []
    checkpoint = any_house.read("/v1/checkpoints/a@1")
    assert (checkpoint["state"], checkpoint["problem"]["status"]) == ("invalid", 422)


def test_a_running_job_is_canceling_until_its_worker_has_stopped(house: House) -> None:
    job = begin(house)
    taken = claim(house)

    assert house.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "canceling"
    assert running.heartbeat(house.wiring.sessions, taken).cancel_requested
    running.confirm_canceled(house.wiring.sessions, taken)

    assert house.read(f"/v1/jobs/{job['id']}")["state"] == "canceled"


def test_a_job_that_has_ended_is_not_canceled(house: House) -> None:
    job = begin(house)
    house.work()

    response = house.post(f"/v1/jobs/{job['id']}/cancel")

    assert (response.status_code, response.json()["code"]) == (409, "job_is_final")


def test_a_retry_is_a_new_job_linked_to_the_first(any_house: House) -> None:
    job = begin(any_house)
    any_house.post(f"/v1/jobs/{job['id']}/cancel")

    response = any_house.post(f"/v1/jobs/{job['id']}/retry")

    again = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{again['id']}"
    assert again["retry_of"] == job["id"]
    any_house.work()
    assert any_house.read(f"/v1/jobs/{again['id']}")["state"] == "succeeded"
    assert any_house.read("/v1/checkpoints/a")["state"] == "ready"


def test_a_job_that_has_not_ended_is_not_retried(house: House) -> None:
    job = begin(house)

    response = house.post(f"/v1/jobs/{job['id']}/retry")

    assert (response.status_code, response.json()["code"]) == (409, "job_not_final")


def test_a_failed_job_tells_its_problem_as_an_error_does(house: House) -> None:
    begin(house)
    for _ in range(3):
        taken = running.claim(house.wiring.sessions, house.worker, lease_seconds=600)
        if taken is None:
            break
        running.fail(house.wiring.sessions, taken, _Permanent("It broke."))

    (job,) = house.read("/v1/jobs")["items"]

    assert job["state"] == "failed"
    assert job["problem"]["type"] == "/problems/worker_lost"
    assert job["problem"]["status"] == 500
    assert job["problem"]["detail"] == "It broke."


class _Permanent(WorkerLost):
    retryable = False


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_log_is_gap_free_and_ends_with_the_final_state(any_house: House) -> None:
    job = begin(any_house)
    any_house.work()

    events = any_house.read(f"/v1/jobs/{job['id']}/events")["items"]

    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events] == ["job.queued", "job.started", "job.succeeded"]
    assert set(events[0]) == {"seq", "type", "at", "data"}


def test_a_log_is_read_in_pages(house: House) -> None:
    job = begin(house)
    house.work()

    first = house.read(f"/v1/jobs/{job['id']}/events?limit=2")
    second = house.read(f"/v1/jobs/{job['id']}/events?limit=2&after_seq={first['next_cursor']}")

    assert [event["seq"] for event in (*first["items"], *second["items"])] == [1, 2, 3]
    assert (first["next_cursor"], second["next_cursor"]) == ("2", None)


@pytest.mark.parametrize("path", ["/v1/jobs/{}/events", "/v1/events"])
def test_a_log_is_paged_like_every_list(house: House, path: str) -> None:
    path = path.format(begin(house)["id"])
    house.work()

    first = house.read(f"{path}?limit=2")
    second = house.read(f"{path}?limit=2&cursor={first['next_cursor']}")

    assert [event["seq"] for event in (*first["items"], *second["items"])] == [1, 2, 3]
    for cursor in ("x", "-1", "9" * 30, "%C2%B2"):
        refused = house.get(f"{path}?cursor={cursor}")
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_cursor")


@pytest.mark.parametrize("path", ["/v1/jobs/{}/events", "/v1/events"])
def test_a_log_is_read_backwards_and_narrowed_by_time(any_house: House, path: str) -> None:
    path = path.format(begin(any_house)["id"])
    any_house.work()

    first = any_house.read(f"{path}?order=-created_at&limit=2")
    second = any_house.read(f"{path}?order=-created_at&limit=2&cursor={first['next_cursor']}")
    now = first["items"][1]["at"]
    early = any_house.read(f"{path}?created_before={quote(now)}")
    late = any_house.read(f"{path}?created_after={quote(now)}")

    assert [event["seq"] for event in (*first["items"], *second["items"])] == [3, 2, 1]
    assert second["next_cursor"] is None
    assert ([event["seq"] for event in early["items"]], [event["seq"] for event in late["items"]]) == ([1], [3])


@pytest.mark.parametrize("query", ["order=-created_at", "created_before=2120-01-01T00:00:00Z"])
def test_a_stream_cannot_be_narrowed_or_turned(house: House, query: str) -> None:
    job = begin(house)
    for path in (f"/v1/jobs/{job['id']}/events", "/v1/events"):
        response = house.get(f"{path}?{query}", headers=STREAM)
        assert (response.status_code, response.json()["code"]) == (422, "validation_failed")


def test_the_client_reads_a_log_of_many_pages(house: House) -> None:
    job = begin(house)
    with house.wiring.sessions.begin() as session:
        for number in range(450):
            event_log.append(session, job["id"], "job.progress", {"done": number})

    with serving(house) as url, Client(url) as client:
        found = list(client.items(f"/v1/jobs/{job['id']}/events"))

    assert [event["seq"] for event in found] == list(range(1, 452))


def test_the_log_of_all_jobs_has_a_sequence_of_its_own(any_house: House) -> None:
    house = any_house
    first = begin(house)
    second = house.made("/v1/checkpoints", {"uri": house.write("b", draw(1)), "name": "b"})["job"]

    before = house.read("/v1/events")["items"]
    house.work()
    after = house.read(f"/v1/events?after_seq={before[-1]['seq']}")["items"]

    assert [event["seq"] for event in (*before, *after)] == [1, 2, 3, 4, 5, 6]
    assert {event["job"] for event in before} == {first["id"], second["id"]}


# --- streams ----------------------------------------------------------------------------------------------------------


@contextmanager
def serving(house: House) -> Iterator[str]:
    """Serve the house over a real socket: a test client reads a stream only when it has ended."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(house.app, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def read_stream(response: httpx.Response) -> Iterator[Document]:
    """Yield the events of a stream: their fields, `data` parsed."""
    event: Document = {}
    for line in response.iter_lines():
        if line:
            field, _, value = line.partition(": ")
            event[field] = value
        elif "data" in event:
            yield {**event, "data": json.loads(event["data"])}
            event = {}


def test_a_stream_gives_what_is_logged_and_ends_with_the_job(house: House) -> None:
    job = begin(house)
    with serving(house) as url, httpx.stream("GET", f"{url}/v1/jobs/{job['id']}/events", headers=STREAM) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        events = read_stream(response)
        first = next(events)
        house.work()  # while the stream is open
        rest = list(events)

    assert (first["id"], first["event"], first["data"]["seq"]) == ("1", "job.queued", 1)
    assert [event["event"] for event in rest] == ["job.started", "job.succeeded"]
    assert [event["id"] for event in rest] == ["2", "3"]


def test_a_stream_resumes_after_the_last_event_without_loss(house: House) -> None:
    job = begin(house)
    house.work()

    response = house.get(f"/v1/jobs/{job['id']}/events", headers={**STREAM, "Last-Event-ID": "1"})

    assert [event["id"] for event in read_stream(response)] == ["2", "3"]


def test_a_stream_that_has_ended_is_no_content(house: House) -> None:
    job = begin(house)
    house.work()

    response = house.get(f"/v1/jobs/{job['id']}/events", headers={**STREAM, "Last-Event-ID": "3"})

    assert (response.status_code, response.content) == (204, b"")


def test_a_last_event_id_of_no_event_is_malformed(house: House) -> None:
    job = begin(house)

    response = house.get(f"/v1/jobs/{job['id']}/events", headers={**STREAM, "Last-Event-ID": "x"})

    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")


def test_a_silent_stream_beats_its_heart(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)
    job = begin(house)
    with serving(house) as url, httpx.stream("GET", f"{url}/v1/jobs/{job['id']}/events", headers=STREAM) as response:
        lines = response.iter_lines()

        assert next(line for line in lines if line.startswith(":")) == ": still here"
        house.work()
        assert any("job.succeeded" in line for line in lines)


def test_the_stream_of_all_jobs_goes_on(house: House) -> None:
    with serving(house) as url, httpx.stream("GET", f"{url}/v1/events", headers=STREAM) as response:
        events = read_stream(response)
        job = begin(house)
        house.work()

        seen = [next(events) for _ in range(3)]

    assert [event["data"]["job"] for event in seen] == [job["id"]] * 3
    assert [event["id"] for event in seen] == ["1", "2", "3"]


def test_a_stream_holds_no_connection_while_it_waits(house: House) -> None:
    job = begin(house)
    pool = house.wiring.sessions.engine.pool
    assert isinstance(pool, QueuePool)
    with serving(house) as url, httpx.stream("GET", f"{url}/v1/jobs/{job['id']}/events", headers=STREAM) as response:
        next(read_stream(response))

        wait_until(lambda: pool.checkedout() == 0)
        house.work()
