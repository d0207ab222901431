"""Jobs: one life for all work. Looked at, waited for, canceled, retried; and their logs, as lists or as streams."""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from app.api import mergekit_documents, streams
from app.api import problems as problem_details
from app.api.dependencies import ActorDep, IdempotencyDep, QueueDep, SessionsDep, require_positive_sequence
from app.api.pages import (
    MAX_EVENTS,
    TAG_FILTERS,
    CreatedAfterDep,
    CreatedBeforeDep,
    EventsDep,
    PageDep,
    TagFiltersDep,
)
from app.api.problems import problems
from app.domain.errors import (
    BadCursor,
    Conflict,
    FieldProblem,
    Invalid,
    JobIsFinal,
    JobNotFinal,
    NotAcceptable,
    NotFound,
)
from app.domain.jobs import JobKind, JobState
from app.domain.requests import MergeRequest
from app.domain.views.jobs import EventView, GlobalEventView, JobView
from app.domain.views.pages import EventsRequest, Page
from app.services import jobs, merges
from app.services.jobs import JobFilters

MAX_WAIT_SECONDS = 60

router = APIRouter(prefix="/v1", tags=["jobs"])

LastEventId = Annotated[str | None, Header(max_length=64, description="Resumes a stream after this event.")]
STREAM: dict[int | str, dict[str, object]] = {
    200: {
        "description": "A list of events; with `Accept: text/event-stream` a stream of them.",
        "content": {
            streams.MEDIA_TYPE: {
                "schema": {
                    "type": "string",
                    "description": "SSE: `id` is the sequence, `event` the type, `data` an event.",
                }
            }
        },
    }
}


@router.get("/jobs", operation_id="list_jobs", summary="All jobs", openapi_extra=TAG_FILTERS)
def list_jobs(
    page: PageDep,
    tags: TagFiltersDep,
    created_after: CreatedAfterDep,
    created_before: CreatedBeforeDep,
    sessions: SessionsDep,
    actor: ActorDep,
    kind: Annotated[JobKind | None, Query()] = None,
    state: Annotated[JobState | None, Query()] = None,
    method: Annotated[str | None, Query(max_length=128, description="Of merges.")] = None,
    task: Annotated[str | None, Query(max_length=128, description="Of fine-tunings and evaluations.")] = None,
    parent: Annotated[str | None, Query(max_length=64, description="Only children of this job.")] = None,
) -> Page[JobView]:
    """List jobs."""
    filters = JobFilters(
        kind=kind,
        state=state,
        method=method,
        task=task,
        parent=parent,
        tags=tags,
        created_after=created_after,
        created_before=created_before,
    )
    found = jobs.list_(sessions, actor, filters, page)
    return Page(items=[_present(job) for job in found.items], next_cursor=found.next_cursor)


@router.get("/jobs/{job_id}", operation_id="get_job", summary="One job", responses=problems(NotFound))
async def get_job(
    job_id: str,
    response: Response,
    sessions: SessionsDep,
    actor: ActorDep,
    wait_seconds: Annotated[
        float,
        Query(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False, description="Answer once the job is final, or then."),
    ] = 0,
) -> JobView:
    """Give a job; with `wait_seconds` the answer comes when the job is final or the time is over."""
    job = await jobs.wait(sessions, actor, job_id, wait_seconds)
    response.headers["ETag"] = f'"{job.revision}"'
    return _present(job)


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="cancel_job",
    summary="Cancel a job",
    status_code=202,
    responses=problems(NotFound, JobIsFinal),
)
def cancel_job(job_id: str, sessions: SessionsDep, actor: ActorDep, idempotency: IdempotencyDep) -> JobView:
    """Cancel a job: a queued one at once, a running one as soon as its worker has stopped it."""
    return _present(jobs.cancel(sessions, actor, job_id, idempotency))


@router.post(
    "/jobs/{job_id}/retry",
    operation_id="retry_job",
    summary="Run a job again",
    status_code=202,
    responses=problems(NotFound, JobNotFinal, Conflict),
)
def retry_job(
    job_id: str,
    response: Response,
    sessions: SessionsDep,
    queue: QueueDep,
    actor: ActorDep,
    idempotency: IdempotencyDep,
) -> JobView:
    """Run a job that has ended once more, as a new job linked to it."""
    job = jobs.retry(sessions, queue, actor, job_id, idempotency)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return _present(job)


@router.get(
    "/jobs/{job_id}/recipe",
    operation_id="get_job_recipe",
    summary="A merge's recipe",
    response_model=MergeRequest,
    responses={
        200: {
            "description": "The recipe; with `format=mergekit` as mergekit writes it.",
            "content": {mergekit_documents.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/MergekitMerge"}}},
        },
        **problems(NotFound, NotAcceptable),
    },
    response_model_exclude_none=True,
)
def get_job_recipe(
    job_id: str,
    sessions: SessionsDep,
    actor: ActorDep,
    format_: Annotated[
        Literal["json", "mergekit"], Query(alias="format", description="`mergekit`: YAML, where mergekit can say it.")
    ] = "json",
) -> Response | MergeRequest:
    """Give a merge's recipe with its inputs by content: a body for POST /v1/merges, here or elsewhere."""
    if format_ == "mergekit":
        document = merges.export_for_mergekit(sessions, actor, job_id)
        return Response(document, media_type=mergekit_documents.MEDIA_TYPE)
    return merges.export_recipe(sessions, actor, job_id)


@router.get(
    "/jobs/{job_id}/events",
    operation_id="list_job_events",
    summary="A job's log",
    response_model=Page[EventView],
    responses={
        **STREAM,
        204: {"description": "The stream has ended: the job is final and all its events were sent."},
        **problems(BadCursor, NotFound, NotAcceptable),
    },
)
def list_job_events(
    job_id: str,
    request: Request,
    sessions: SessionsDep,
    actor: ActorDep,
    asked: EventsDep,
    last_event_id: LastEventId = None,
) -> Response | Page[EventView]:
    """Give a job's log as a list, or as a stream that ends after the final state."""
    if not streams.wants_stream(request.headers.get("accept")):
        events = jobs.events(sessions, actor, job_id, asked)
        return Page(items=events, next_cursor=str(events[-1].seq) if len(events) == asked.limit else None)
    start = _start_of_stream(asked, last_event_id)

    def look(after: int) -> tuple[list[EventView], bool]:
        is_over = jobs.get(sessions, actor, job_id).is_final  # asked first: a final job logs nothing more
        return jobs.events(sessions, actor, job_id, _everything(after)), is_over

    found, is_over = look(start)
    if is_over and not found:
        return Response(status_code=204)
    return streams.stream(look, start)


@router.get(
    "/events",
    operation_id="list_events",
    summary="The log of all jobs",
    response_model=Page[GlobalEventView],
    responses={**STREAM, **problems(BadCursor, NotAcceptable)},
)
def list_events(
    request: Request,
    sessions: SessionsDep,
    actor: ActorDep,
    asked: EventsDep,
    last_event_id: LastEventId = None,
) -> Response | Page[GlobalEventView]:
    """Give the log of all jobs, with a sequence of its own, as a list or as a stream without end."""
    if not streams.wants_stream(request.headers.get("accept")):
        events = jobs.all_events(sessions, actor, asked)
        return Page(items=events, next_cursor=str(events[-1].seq) if len(events) == asked.limit else None)
    return streams.stream(
        lambda after: (jobs.all_events(sessions, actor, _everything(after)), False),
        _start_of_stream(asked, last_event_id),
    )


def _start_of_stream(asked: EventsRequest, last_event_id: str | None) -> int:
    """Return the number after which a stream begins.

    Raises: Invalid for what narrows or turns a list: a stream has no order but that of time.
    """
    if not asked.is_plain:
        message = "order, created_after and created_before are of lists; leave them out, or ask for application/json"
        raise Invalid(f"A stream goes on as things happen: {message}.", errors=[FieldProblem("/query/order", message)])
    return max(asked.after_seq, require_positive_sequence(last_event_id))


def _everything(after_seq: int) -> EventsRequest:
    return EventsRequest(after_seq=after_seq, limit=MAX_EVENTS)


def _present(job: JobView) -> JobView:
    """Give a stored problem the form of an error."""
    return job if job.problem is None else job.model_copy(update={"problem": problem_details.complete(job.problem)})
