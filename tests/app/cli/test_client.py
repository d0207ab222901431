"""The client against a server that misbehaves on purpose, over real sockets."""

import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from app.cli.client import Client, Document, ServiceProblem, ServiceUnreachable


@dataclass
class Request:
    """What the server received."""

    verb: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What the server sends; `cut` closes the connection in the middle of the body."""

    status: int = 200
    body: bytes = b"{}"
    media_type: str = "application/json"
    cut: bool = False


@dataclass
class Script:
    """Answers in order, and what was asked."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def say(self, document: object, status: int = 200) -> None:
        self.answers.append(Answer(status, json.dumps(document).encode()))


@pytest.fixture
def script() -> Iterator[Script]:
    played = Script()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = Request(self.command, self.path, dict(self.headers), self.rfile.read(length))
            played.requests.append(request)
            answer = played.answers.pop(0)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.media_type)
            self.send_header("Content-Length", str(len(answer.body) + (1 if answer.cut else 0)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815  the library's names

        def log_message(self, format: str, *arguments: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        played.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield played
        server.shutdown()


def sse(*events: Document) -> bytes:
    return b"".join(f"id: {e['seq']}\nevent: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events)


def event(seq: int) -> Document:
    return {"seq": seq, "type": "job.progress", "at": "2026-01-01T00:00:00.000000Z", "data": {}}


def test_a_service_that_is_not_ready_is_asked_again(script: Script) -> None:
    script.say({"detail": "starting"}, 503)
    script.say({"items": []})

    with Client(script.url) as client:
        assert client.get("/v1/jobs") == {"items": []}
    assert len(script.requests) == 2


def test_a_post_that_is_sent_again_carries_the_same_key(script: Script) -> None:
    script.say({"detail": "starting"}, 503)
    script.say({"id": "job_1"}, 202)

    with Client(script.url) as client:
        client.post("/v1/merges", {"method": "ties"})
    keys = [request.headers["Idempotency-Key"] for request in script.requests]
    assert keys[0] == keys[1] != ""


def test_two_posts_carry_different_keys(script: Script) -> None:
    script.say({}, 202)
    script.say({}, 202)

    with Client(script.url) as client:
        client.post("/v1/merges", {})
        client.post("/v1/merges", {})
    assert len({request.headers["Idempotency-Key"] for request in script.requests}) == 2


def test_patience_ends_with_the_last_problem(script: Script) -> None:
    script.answers = [Answer(503, b'{"code": "unavailable", "detail": "The database is away."}')] * 50

    with Client(script.url, patience_seconds=0.2) as client, pytest.raises(ServiceProblem, match="database is away"):
        client.get("/v1/jobs")


def test_a_refusal_is_not_repeated(script: Script) -> None:
    script.say({"code": "unknown_method", "detail": "There is no method 'tie'."}, 422)

    with Client(script.url) as client, pytest.raises(ServiceProblem, match="no method 'tie'") as caught:
        client.post("/v1/merges", {})
    assert caught.value.problem["status"] == 422
    assert len(script.requests) == 1


def test_finding_nothing_is_no_error(script: Script) -> None:
    script.say({"detail": "There is no checkpoint 'x'."}, 404)

    with Client(script.url) as client:
        assert client.find("/v1/checkpoints/x") is None


def test_finding_passes_other_refusals_on(script: Script) -> None:
    script.say({"detail": "no"}, 400)

    with Client(script.url) as client, pytest.raises(ServiceProblem):
        client.find("/v1/checkpoints/x")


def test_lists_are_read_page_after_page_up_to_the_limit(script: Script) -> None:
    script.say({"items": [{"n": 1}, {"n": 2}], "next_cursor": "c2"})
    script.say({"items": [{"n": 3}], "next_cursor": "c3"})

    with Client(script.url) as client:
        items = list(client.items("/v1/jobs", {"state": "queued", "kind": None}, limit=3))
    assert [item["n"] for item in items] == [1, 2, 3]
    assert [request.path for request in script.requests] == [
        "/v1/jobs?state=queued&limit=3",
        "/v1/jobs?state=queued&limit=1&cursor=c2",
    ]


def test_events_go_on_after_a_lost_connection_from_where_they_broke_off(script: Script) -> None:
    script.answers.append(Answer(200, sse(event(1), event(2)), "text/event-stream", cut=True))
    script.answers.append(Answer(200, sse(event(3)), "text/event-stream"))
    script.say({"state": "succeeded"})

    with Client(script.url) as client:
        assert [seen["seq"] for seen in client.events("job_1")] == [1, 2, 3]
    assert script.requests[1].headers["Last-Event-ID"] == "2"


def test_waiting_polls_until_the_state_is_final(script: Script) -> None:
    script.say({"state": "running"})
    script.say({"state": "failed"})

    with Client(script.url) as client:
        assert client.wait("job_1")["state"] == "failed"
    assert script.requests[0].path == "/v1/jobs/job_1?wait_seconds=20"


def test_another_program_at_the_address_is_not_taken_for_the_service(script: Script) -> None:
    script.answers = [Answer(200, b"<html>", "text/html"), Answer(502, b"<html>", "text/html")]

    with Client(script.url) as client:
        with pytest.raises(ServiceUnreachable, match="not as an Amalgam service does"):
            client.get("/")
        with pytest.raises(ServiceProblem, match="answered 502, but not as an Amalgam service does"):
            client.get("/")


@pytest.mark.parametrize("act", [lambda c: c.get("/v1/jobs"), lambda c: c.put_bytes("/x", iter([b"a"]), {})])
def test_nobody_listening_is_said_with_what_to_do(act: Callable[[Client], object]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused, and nobody else gets the port
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            Client(url, patience_seconds=0.1) as client,
            pytest.raises(ServiceUnreachable, match="Start one with `amalgam serve`"),
        ):
            act(client)
