"""How many requests, how they ended, how long they took: counted by route, never by path, so that labels stay few.

Each request also leaves a line in the log: reads that went well at level debug, everything else at level info.
"""

import time

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger(__name__)
BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class HttpMetrics:
    """The counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route")
        self.requests = Counter(
            "amalgam_http_requests", "Requests by their answer.", (*labels, "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "amalgam_http_seconds",
            "Seconds until the answer's last byte.",
            labels,
            registry=self.registry,
            buckets=BUCKETS_SECONDS,
        )


class Measured:
    """Counts and times every request."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope.get("route") is not None else "any"
        self.metrics.requests.labels(method, route, str(status)).inc()
        self.metrics.seconds.labels(method, route).observe(seconds)
        write = log.debug if scope["method"] in ("GET", "HEAD") and status < 400 else log.info
        write(
            "request_answered",
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 4),
            request_id=scope.get("state", {}).get("request_id"),
            traceparent=scope.get("state", {}).get("traceparent"),
        )
