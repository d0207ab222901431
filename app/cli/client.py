"""A thin client of the REST API: JSON in and out, problems as exceptions, patience while the service starts.

Every POST carries an Idempotency-Key, so a request that is sent again after a lost connection acts once.
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import httpx

Document = dict[str, Any]  # a JSON object of the wire, whose form the OpenAPI document describes
Parameters = Mapping[str, str | int | bool | None]

DEFAULT_URL = "http://127.0.0.1:8000"
FINAL_STATES = frozenset({"succeeded", "failed", "canceled"})
_RETRIED_STATUSES = frozenset({429, 503})
_LONG_POLL_SECONDS = 20


class ServiceProblem(Exception):
    """The service answered with an application/problem+json document."""

    def __init__(self, problem: Document) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or "the service refused the request")
        self.problem = problem


class ServiceUnreachable(Exception):
    """Nothing answers at the service's address, or it stopped answering."""


class Client:
    """Speaks HTTP with one service. `patience_seconds`: how long it tries again where the service is away."""

    def __init__(self, url: str = DEFAULT_URL, *, patience_seconds: float = 5.0) -> None:
        import httpx  # noqa: PLC0415  a fifth of a second that --help and the server commands do without

        self.url = url.rstrip("/")
        self._patience_seconds = patience_seconds
        self._transport_errors = (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol)
        timeout = httpx.Timeout(_LONG_POLL_SECONDS + 40, connect=5)
        self._http = httpx.Client(base_url=self.url, timeout=timeout, headers={"User-Agent": "amalgam-cli"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, parameters: Parameters | None = None) -> Document:
        """Return the resource at this path."""
        return self._document(self._send("GET", path, parameters=parameters))

    def find(self, path: str) -> Document | None:
        """Return the resource at this path, or None where there is none."""
        try:
            return self.get(path)
        except ServiceProblem as problem:
            if problem.problem.get("status") == 404:
                return None
            raise

    def post(self, path: str, body: Document | None = None, *, idempotency_key: str | None = None) -> Document:
        """Create what the body describes; the same key again returns the first answer."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._document(self._send("POST", path, body=body, headers=headers))

    def put_bytes(self, path: str, chunks: Iterator[bytes], headers: Mapping[str, str]) -> Document:
        """Stream bytes to this path, once: a stream cannot be sent again."""
        try:
            response = self._http.put(path, content=chunks, headers=dict(headers))
        except self._transport_errors as error:
            raise self._unreachable(error) from error
        return self._document(self._checked(response))

    def delete(self, path: str) -> None:
        """Delete what lies at this path."""
        self._send("DELETE", path)

    def items(self, path: str, parameters: Parameters | None = None, *, limit: int | None = None) -> Iterator[Document]:
        """Yield the items of a list, page after page, at most `limit` of them."""
        asked = dict(parameters or {})
        remaining = limit
        while remaining is None or remaining > 0:
            asked["limit"] = 200 if remaining is None else min(remaining, 200)
            page = self.get(path, asked)
            yield from page["items"]
            if remaining is not None:
                remaining -= len(page["items"])
            if page["next_cursor"] is None:
                return
            asked["cursor"] = page["next_cursor"]

    def wait(self, job_id: str) -> Document:
        """Return the job when it has ended."""
        while True:
            job = self.get(f"/v1/jobs/{job_id}", {"wait_seconds": _LONG_POLL_SECONDS})
            if job["state"] in FINAL_STATES:
                return job

    def events(self, job_id: str) -> Iterator[Document]:
        """Yield the job's events until it has ended; after a lost connection, from where it broke off."""
        last_seq = 0
        lost_since: float | None = None
        while True:
            try:
                for event in self._stream(f"/v1/jobs/{job_id}/events", last_seq):
                    last_seq, lost_since = event["seq"], None
                    yield event
            except self._transport_errors as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > self._patience_seconds:
                    raise self._unreachable(error) from error
                time.sleep(0.5)
                continue
            if self.get(f"/v1/jobs/{job_id}")["state"] in FINAL_STATES:
                return

    def _stream(self, path: str, last_seq: int) -> Iterator[Document]:
        headers = {"Accept": "text/event-stream"}
        if last_seq:
            headers["Last-Event-ID"] = str(last_seq)
        with self._http.stream("GET", path, headers=headers) as response:
            if response.status_code >= 400:
                response.read()
                self._checked(response)
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))

    def _send(
        self,
        verb: str,
        path: str,
        *,
        parameters: Parameters | None = None,
        body: Document | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "httpx.Response":
        """Send, and again while the service is away: reads may repeat, writes carry a key or name one thing."""
        deadline = time.monotonic() + self._patience_seconds
        given = {name: value for name, value in (parameters or {}).items() if value is not None}
        pause = 0.05
        while True:
            is_late = time.monotonic() > deadline
            try:
                response = self._http.request(verb, path, params=given, json=body, headers=headers)
            except self._transport_errors as error:
                if is_late:
                    raise self._unreachable(error) from error
            else:
                if response.status_code not in _RETRIED_STATUSES or is_late:
                    return self._checked(response)
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _checked(self, response: "httpx.Response") -> "httpx.Response":
        if response.status_code < 400:
            return response
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            problem = {"detail": f"{self.url} answered {response.status_code}, but not as an Amalgam service does."}
        raise ServiceProblem({"status": response.status_code, **problem})

    def _document(self, response: "httpx.Response") -> Document:
        if response.status_code == 204 or not response.content:
            return {}
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise ServiceUnreachable(f"{self.url} answers, but not as an Amalgam service does. Is the address right?")
        return document

    def _unreachable(self, error: Exception) -> ServiceUnreachable:
        return ServiceUnreachable(
            f"No Amalgam service answers at {self.url} ({error}). Start one with `amalgam serve`, "
            "or name another with --url or AMALGAM_URL."
        )
