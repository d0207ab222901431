"""The state of the service as callers see it."""

from typing import Any, Literal

from app.domain.views.jobs import Instant, View


class WorkerView(View):
    """A worker process as last seen. `silent`: its heartbeat is overdue."""

    id: str
    name: str
    state: Literal["active", "draining", "stopped", "silent"]
    queues: list[str]
    device: str
    concurrency: int
    machine: str  # empty, as of a worker of an earlier release: unknown
    cores: int
    threads: int
    version: str
    load: dict[str, Any]
    started_at: Instant
    seen_at: Instant


class HealthView(View):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class PartView(View):
    """One thing that the service stands on."""

    ok: bool
    required: bool
    detail: str


class ReadinessView(View):
    """Whether the service can do its work: every required part is there."""

    status: Literal["ready", "not_ready"]
    parts: dict[str, PartView]


class UsageView(View):
    """How much the project holds."""

    checkpoints: int
    models: int
    tasks: int
    artifacts: int
    artifact_bytes: int
    stored_bytes: int
    metrics: int
    jobs: dict[str, int]
