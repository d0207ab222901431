"""How the service is: alive, ready, its workers, what it holds, and its numbers for Prometheus."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.api.dependencies import ActorDep, SessionsDep, WiringDep
from app.api.pages import ShortPageDep
from app.api.problems import problems
from app.db.engine import Sessions
from app.domain.errors import BadCursor
from app.domain.views.operations import HealthView, ReadinessView, UsageView, WorkerView
from app.domain.views.pages import Page
from app.services import operations

router = APIRouter(tags=["operations"])


@router.get("/healthz", operation_id="check_health", summary="Is the process alive?")
def check_health() -> HealthView:
    """Say that the process is alive; nothing else is looked at."""
    return HealthView()


@router.get(
    "/readyz",
    operation_id="check_readiness",
    summary="Can the service do its work?",
    response_model=ReadinessView,
    responses={503: {"description": "A required part is away.", "model": ReadinessView}},
)
def check_readiness(wiring: WiringDep) -> Response:
    """Look at database, migrations and storage, which are required, and at broker and workers, which are reported."""
    found = operations.check_readiness(wiring)
    is_ready = found.status == "ready"
    headers = {} if is_ready else {"Retry-After": "2"}
    return JSONResponse(found.model_dump(mode="json"), status_code=200 if is_ready else 503, headers=headers)


@router.get(
    "/metrics",
    operation_id="read_gauges",
    summary="Numbers for Prometheus",
    response_class=PlainTextResponse,
)
def read_gauges(request: Request, sessions: SessionsDep) -> Response:
    """Give the service's numbers in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gauges(sessions))
    text = generate_latest(registry) + generate_latest(request.app.state.http_metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/workers", operation_id="list_workers", summary="Workers seen lately", responses=problems(BadCursor))
def list_workers(sessions: SessionsDep, page: ShortPageDep) -> Page[WorkerView]:
    """List the workers: queues, device, load, when last seen."""
    return operations.list_workers(sessions, page)


@router.get("/v1/usage", operation_id="get_usage", summary="What the project holds")
def get_usage(sessions: SessionsDep, actor: ActorDep) -> UsageView:
    """Count what the project holds."""
    return operations.count_usage(sessions, actor)


class _Gauges(Collector):
    """Reads the tables once per scrape."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        for gauge in operations.read_gauges(self.sessions):
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)
            for labels, value in gauge.values.items():
                family.add_metric(labels, value)
            yield family
