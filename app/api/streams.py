"""Event streams (SSE): what is logged, as it is logged; no database session is held between two looks.

A stream ends after a job's final state; a client that reconnects after the end gets 204 and stops.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import structlog
from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse

from app.domain.errors import AmalgamError, NotAcceptable
from app.domain.views.jobs import EventView

MEDIA_TYPE = "text/event-stream"
POLL_SECONDS = 0.25
HEARTBEAT_SECONDS = 15.0
LONGEST_SECONDS = 1800.0  # then the client reconnects and resumes
RETRY_MILLISECONDS = 2000

log = structlog.get_logger(__name__)
Look = Callable[[int], tuple[Sequence[EventView], bool]]
"""(after_seq) -> the next events, and whether no more will come after them."""


def wants_stream(accept: str | None) -> bool:
    """Tell by the Accept header whether a stream is asked for, or a JSON list.

    Raises: NotAcceptable when neither is.
    """
    kinds = [part.split(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
    if MEDIA_TYPE in kinds:
        return True
    if any(kind in ("*/*", "application/*", "application/json") for kind in kinds):
        return False
    raise NotAcceptable(
        f"Accept is {accept!r}; events come as application/json or text/event-stream. Ask for one of them."
    )


def stream(look: Look, after_seq: int) -> StreamingResponse:
    """Return a stream of events that follow a sequence number."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_write(look, after_seq), media_type=MEDIA_TYPE, headers=headers)


async def _write(look: Look, after_seq: int) -> AsyncIterator[bytes]:
    started = last_written = time.monotonic()
    yield format_sse_event(data_str=None, retry=RETRY_MILLISECONDS)
    while time.monotonic() - started < LONGEST_SECONDS:
        try:
            events, is_over = await asyncio.to_thread(look, after_seq)
        except AmalgamError as error:  # the database is away: the client reconnects and resumes
            log.warning("stream_cut", code=error.code, detail=error.detail)
            return
        for event in events:
            after_seq = event.seq
            yield format_sse_event(data_str=event.model_dump_json(), event=event.type, id=str(event.seq))
            last_written = time.monotonic()
        if is_over and not events:
            return
        if events:
            continue
        if time.monotonic() - last_written > HEARTBEAT_SECONDS:
            yield format_sse_event(data_str=None, comment="still here")
            last_written = time.monotonic()
        await asyncio.sleep(POLL_SECONDS)
