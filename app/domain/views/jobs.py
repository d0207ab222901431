"""A job and its events as callers see them: JSON names and meanings of the REST contract."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PlainSerializer

from app.domain.jobs import FINAL_STATES, JobKind, JobState, Progress, ResourceClass


def _to_wire(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Instant = Annotated[datetime, PlainSerializer(_to_wire, return_type=str, when_used="json")]


class View(BaseModel):
    """Base of what services return: frozen, without rows or sessions behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageTiming(View):
    """How long one stage of the last attempt took."""

    name: str
    seconds: float


class JobTimings(View):
    """When things happened; `started_at` is the last attempt's."""

    queued_at: Instant
    started_at: Instant | None = None
    finished_at: Instant | None = None
    stages: tuple[StageTiming, ...] = ()


class JobInputRef(View):
    """A checkpoint that a job reads; `role` is base_model, model or head."""

    role: str
    position: int
    checkpoint_id: str


class PartsView(View):
    """How many parts of a merge, over all rounds, are in each state; `GET /v1/jobs?parent=` lists them."""

    total: int
    queued: int = 0
    running: int = 0
    canceling: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0


class JobView(View):
    """One piece of work. `spec`: the request, refs pinned to ids; `problem`: the stored form of an error."""

    id: str
    kind: JobKind
    state: JobState
    project_id: str = Field(default="default", exclude=True)
    resource_class: ResourceClass
    priority: int
    spec: dict[str, JsonValue]
    tags: dict[str, JsonValue] = Field(default_factory=dict)
    recipe_digest: str | None = None
    progress: Progress | None = None
    attempts: int
    max_attempts: int
    timeout_seconds: int
    timings: JobTimings
    worker: str | None = None
    parent: str | None = None
    children: tuple[str, ...] = ()
    parts: PartsView | None = None
    retry_of: str | None = None
    deduplicated_from: str | None = None
    waits_for: str | None = None
    cancel_requested_at: Instant | None = None
    result: dict[str, JsonValue] | None = None
    problem: dict[str, JsonValue] | None = None
    actor: str
    request_id: str | None = None
    traceparent: str | None = None
    created_at: Instant
    updated_at: Instant
    revision: int

    @property
    def is_final(self) -> bool:
        """Whether the job has ended; a final state never changes."""
        return self.state in FINAL_STATES


class EventView(View):
    """One line of a job's log; `seq` is gap-free within the job."""

    seq: int
    type: str
    at: Instant
    data: dict[str, JsonValue] = Field(default_factory=dict)


class GlobalEventView(EventView):
    """One line of the log over all jobs; here `seq` is the project's own sequence."""

    job: str
