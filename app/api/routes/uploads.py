"""Uploads: files sent one by one, which become a checkpoint when they are complete."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Body, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.api.dependencies import ActorDep, IdempotencyDep, SessionsDep, WiringDep
from app.api.digests import parse_content_digest
from app.api.problems import problems
from app.api.schemas.checkpoints import show_import
from app.domain.checkpoints import FileEntry
from app.domain.errors import (
    BadRequest,
    CheckpointNotReady,
    DigestMismatch,
    NotFound,
    OutOfDisk,
    UnknownCheckpoint,
    UnsafeFormat,
    UploadClosed,
    UploadIncomplete,
)
from app.domain.registrations import UploadRequest
from app.domain.views.checkpoints import ImportView
from app.domain.views.uploads import UploadView
from app.services import uploads
from app.storage.base import CHUNK_BYTES, TempObject

router = APIRouter(prefix="/v1/checkpoints/uploads", tags=["checkpoints"])

UPLOAD_EXAMPLES = {
    "expert": {
        "summary": "A fine-tuned model",
        "value": {"name": "tickets-expert", "task": "tickets", "base_checkpoint": "minilm"},
    }
}
BINARY_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "",
    operation_id="begin_upload",
    summary="Begin an upload",
    status_code=201,
    responses=problems(UnknownCheckpoint, CheckpointNotReady),
)
def begin_upload(
    body: Annotated[UploadRequest, Body(openapi_examples=UPLOAD_EXAMPLES)],
    response: Response,
    wiring: WiringDep,
    actor: ActorDep,
    idempotency: IdempotencyDep,
) -> UploadView:
    """Begin an upload. Send its files with PUT, then complete it."""
    opened = uploads.begin(wiring, actor, body, idempotency)
    response.headers["Location"] = f"/v1/checkpoints/uploads/{opened.id}"
    return opened


@router.get("/{upload_id}", operation_id="get_upload", summary="Get an upload", responses=problems(NotFound))
def get_upload(upload_id: str, sessions: SessionsDep, actor: ActorDep) -> UploadView:
    """Return an upload; `files` lists those that have arrived whole, so a client knows what to send again."""
    return uploads.get(sessions, actor, upload_id)


@router.put(
    "/{upload_id}/files/{path:path}",
    operation_id="put_upload_file",
    summary="Send one file of an upload",
    status_code=201,
    responses={
        200: {"description": "The file replaces one that was sent before", "model": FileEntry},
        **problems(NotFound, UploadClosed, UnsafeFormat, DigestMismatch, OutOfDisk),
    },
    openapi_extra=BINARY_BODY,
)
async def put_upload_file(
    upload_id: str,
    path: Annotated[str, Path(description="Where the file lies in the checkpoint's folder: model.safetensors.")],
    request: Request,
    response: Response,
    wiring: WiringDep,
    actor: ActorDep,
    content_digest: Annotated[
        str | None, Header(description="sha-256=:<base64>: of the file (RFC 9530); checked when given.")
    ] = None,
) -> FileEntry:
    """Send a file, streamed. It counts when it has arrived whole; sending it again replaces it."""
    announced_sha256 = parse_content_digest(content_digest)
    length = request.headers.get("content-length", "")
    announced_bytes = int(length) if length.isdigit() else None
    arrival = await run_in_threadpool(uploads.receive, wiring, actor, upload_id, path, announced_bytes)
    with arrival.temp as temp:
        await _write(request, temp)
        entry, is_new = await run_in_threadpool(uploads.keep, wiring, actor, arrival, announced_sha256=announced_sha256)
    response.status_code = 201 if is_new else 200
    if is_new:
        response.headers["Location"] = f"/v1/checkpoints/uploads/{upload_id}/files/{quote(entry.path)}"
    return entry


@router.post(
    "/{upload_id}/complete",
    operation_id="complete_upload",
    summary="Complete an upload",
    status_code=202,
    responses=problems(NotFound, UploadClosed, UploadIncomplete, UnknownCheckpoint, CheckpointNotReady),
)
def complete_upload(
    upload_id: str, response: Response, wiring: WiringDep, actor: ActorDep, idempotency: IdempotencyDep
) -> ImportView:
    """Turn the files into a checkpoint. A job reads its headers, hashes and checks it."""
    begun = uploads.complete(wiring, actor, upload_id, idempotency)
    response.headers["Location"] = f"/v1/checkpoints/{begun.checkpoint.id}"
    return show_import(begun)


async def _write(request: Request, temp: TempObject) -> None:
    pending = bytearray()
    try:
        async for chunk in request.stream():
            pending += chunk
            if len(pending) >= CHUNK_BYTES:
                await run_in_threadpool(temp.write, bytes(pending))
                pending.clear()
    except ClientDisconnect:
        raise BadRequest("The connection ended before the file was complete. Send the file again.") from None
    await run_in_threadpool(temp.write, bytes(pending))
