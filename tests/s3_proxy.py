"""A proxy before an S3 endpoint that counts requests and bytes, and can be cut: as a network between us and the store.

Requests are passed on one by one, with whole bodies. While it is cut, connections are closed without an answer.
"""

import contextlib
import http.client
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PASSED_ON = {"content-type", "etag", "last-modified", "content-range", "x-amz-request-id", "accept-ranges"}


@dataclass
class Traffic:
    """What has passed: requests by kind, and bytes of bodies up and down."""

    requests: Counter[str] = field(default_factory=Counter)
    n_up: int = 0
    n_down: int = 0

    @property
    def n_requests(self) -> int:
        """All requests."""
        return self.requests.total()


class S3Proxy(ThreadingHTTPServer):
    """The proxy; `traffic` may be replaced to begin to count anew."""

    daemon_threads = True

    def __init__(self, endpoint_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(endpoint_url)
        self.traffic = Traffic()
        self.lock = threading.Lock()
        self.is_cut = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def cut(self, seconds: float) -> None:
        """Answer nothing for so long; returns at once."""
        self.is_cut = True
        timer = threading.Timer(seconds, self._mend)
        timer.daemon = True
        timer.start()

    def _mend(self) -> None:
        self.is_cut = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that break."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Proxy

    def do(self) -> None:
        """Pass a request on, and its answer back."""
        n_bytes = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(n_bytes)
        if self._hangs_up():
            return
        target = self.server.target
        with contextlib.closing(http.client.HTTPConnection(str(target.hostname), target.port)) as connection:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        if self._hangs_up():
            return
        with self.server.lock:
            traffic = self.server.traffic
            is_copy = "x-amz-copy-source" in self.headers
            traffic.requests["Copy" if is_copy else _kind(self.command, self.path)] += 1
            traffic.n_up += n_bytes
            traffic.n_down += len(content)
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in PASSED_ON:
                self.send_header(name, value)
        is_head = self.command == "HEAD"
        self.send_header("Content-Length", answer.getheader("Content-Length", "0") if is_head else str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _hangs_up(self) -> bool:
        self.close_connection = self.close_connection or self.server.is_cut
        return self.server.is_cut

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do  # noqa: N815 (names of http.server)


def _kind(method: str, path: str) -> str:
    """Return what S3 calls a request, as far as we tell them apart."""
    query = urlsplit(path).query
    if "uploadId" in query:
        return {"PUT": "UploadPart", "POST": "CompleteUpload", "DELETE": "AbortUpload"}.get(method, method)
    if re.search(r"(^|&)uploads(=|&|$)", query):
        return "CreateUpload" if method == "POST" else "ListUploads"
    return method


@contextlib.contextmanager
def run_proxy(endpoint_url: str) -> Iterator[S3Proxy]:
    """Yield a proxy before an endpoint."""
    with S3Proxy(endpoint_url) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
