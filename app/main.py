"""The API's door: reads the settings, builds what the routes stand on, and makes the FastAPI application."""

import contextlib
import importlib
import pkgutil
import threading
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app.api import failures, openapi, routes
from app.api.dependencies import refuse_unknown_query
from app.api.http_metrics import HttpMetrics, Measured
from app.api.middleware import Intake, RequestContext
from app.config import Settings, load_settings
from app.db.engine import Sessions, make_engine
from app.domain.catalog import load_catalog
from app.domain.hosts import answered_hosts
from app.queue import JobQueue
from app.services import merges, reaping
from app.services.reaping import Reaper, ReapLimits
from app.services.wiring import Defaults, Wiring
from app.storage.factory import open_storage
from app.storage.sources import Sources

DESCRIPTION = """
Merges fine-tuned model checkpoints: register checkpoints, merge them, evaluate the result, compare.

Errors are `application/problem+json` with a stable `code`; `GET /problems/{code}` explains each. Work answers `202`
with a job; follow it with `GET /v1/jobs/{id}?wait_seconds=30` or its event stream. Every POST takes an
`Idempotency-Key`. Lists use cursors.
"""


def create_app(settings: Settings | None = None, host: str = "127.0.0.1") -> FastAPI:
    """Return the application; nothing is reached over the network before the first request.

    `host`: the address that it is served on, which decides what Host headers it answers to.
    """
    settings = settings or load_settings()
    app = FastAPI(
        title="Amalgam",
        version=version("amalgam"),
        summary="Merges fine-tuned model checkpoints.",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(refuse_unknown_query)],
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.wiring = wire(settings)
    app.state.http_metrics = HttpMetrics()
    for resource in sorted(module.name for module in pkgutil.iter_modules(routes.__path__)):
        app.include_router(importlib.import_module(f"{routes.__name__}.{resource}").router)
    failures.install(app)
    hosts = answered_hosts(settings.allowed_hosts, host)
    app.add_middleware(Intake, allowed_hosts=hosts, body_limit_bytes=settings.body_limit_bytes)
    if settings.cors_origins:  # around the intake, whose problems a page must be able to read
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["ETag", "Idempotent-Replayed", "Location", "Retry-After", "Traceparent", "X-Request-ID"],
        )
    app.add_middleware(RequestContext)
    app.add_middleware(Measured, metrics=app.state.http_metrics)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]  # FastAPI's own way to replace it
    return app


def wire(settings: Settings) -> Wiring:
    """Build what the routes stand on."""
    return Wiring(
        sessions=Sessions(make_engine(settings.database_url)),
        catalog=load_catalog(),
        storage=open_storage(settings.store_url, settings.cache, settings.scratch, cache_bytes=settings.cache_bytes),
        sources=Sources(settings.file_roots, settings.cache, cache_bytes=settings.cache_bytes),
        queue=JobQueue(settings.broker_url),
        defaults=Defaults(
            max_attempts=settings.max_attempts,
            timeout_seconds=settings.timeout_seconds,
            shard_bytes=settings.shard_bytes,
            upload_expires_seconds=settings.upload_expires_seconds,
        ),
    )


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    stop = threading.Event()
    # Workers reap more often; here it keeps the states honest while no worker runs.
    every_seconds = 5 * app.state.settings.reap_seconds
    reaper = threading.Thread(
        target=reaping.keep_reaping,
        args=(_reaper(app.state.settings, app.state.wiring), stop),
        kwargs={"every_seconds": every_seconds},
        name="reaper",
        daemon=True,
    )
    reaper.start()
    yield
    stop.set()
    reaper.join(1.0)
    app.state.wiring.queue.close()
    app.state.wiring.sessions.engine.dispose()


def _reaper(settings: Settings, wiring: Wiring) -> Reaper:
    limits = ReapLimits(
        hint_seconds=settings.hint_seconds,
        cancel_grace_seconds=settings.cancel_grace_seconds,
        worker_seconds=max(60.0, settings.lease_seconds),
    )
    return Reaper(wiring.sessions, wiring.queue, merges.complete_waiter, limits)
