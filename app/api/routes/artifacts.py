"""Artifacts: what jobs have made and imports have copied, as files."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.api.dependencies import ActorDep, SessionsDep, StorageDep
from app.api.digests import write_digest
from app.api.etags import is_listed
from app.api.failures import ANSWERS_HEAD
from app.api.pages import CreatedAfterDep, CreatedBeforeDep, PageDep
from app.api.problems import answer, problems
from app.api.ranges import parse_range
from app.domain.errors import ArtifactGone, BadCursor, NotFound, RangeNotSatisfiable, ResourceInUse
from app.domain.views.artifacts import ArtifactView
from app.domain.views.pages import Page
from app.services import artifacts

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

ArtifactId = Annotated[str, Path(description="An artifact's id.")]
BINARY = {"schema": {"type": "string", "format": "binary"}}
BYTES = {"content": dict.fromkeys((artifacts.OPAQUE, *artifacts.REPORTED.values()), BINARY)}
TAR = {"content": {"application/x-tar": BINARY}}
DOWNLOADS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file", **BYTES},
    206: {"description": "The range asked for", **BYTES},
    304: {"description": "The file is the one in If-None-Match"},
    **problems(NotFound, ArtifactGone, RangeNotSatisfiable),
}


@router.get("", operation_id="list_artifacts", summary="List artifacts", responses=problems(BadCursor))
def list_artifacts(
    sessions: SessionsDep,
    actor: ActorDep,
    page: PageDep,
    created_after: CreatedAfterDep,
    created_before: CreatedBeforeDep,
    kind: Literal["checkpoint", "report"] | None = None,
    job: Annotated[str | None, Query(max_length=40)] = None,
    checkpoint: Annotated[str | None, Query(max_length=40, description="A checkpoint's id.")] = None,
) -> Page[ArtifactView]:
    """List artifacts, newest first."""
    filters = artifacts.ArtifactFilters(
        kind=kind, job=job, checkpoint=checkpoint, created_after=created_after, created_before=created_before
    )
    return artifacts.list_(sessions, actor, filters, page)


@router.get("/{artifact_id}", operation_id="get_artifact", summary="Get an artifact", responses=problems(NotFound))
def get_artifact(artifact_id: ArtifactId, response: Response, sessions: SessionsDep, actor: ActorDep) -> ArtifactView:
    """Return an artifact with its files; of a merge its recipe; of a multitask one what it takes (`storage`)."""
    found = artifacts.get(sessions, actor, artifact_id)
    response.headers["ETag"] = f'"{found.content_digest}"'
    return found


@router.head("/{artifact_id}/files/{path:path}", include_in_schema=False)
@router.get(
    "/{artifact_id}/files/{path:path}",
    operation_id="get_artifact_file",
    summary="Download a file",
    openapi_extra=ANSWERS_HEAD,
    response_class=Response,
    responses=DOWNLOADS,
)
def get_artifact_file(
    artifact_id: ArtifactId,
    path: Annotated[str, Path(description="A path of the artifact's `files`.")],
    request: Request,
    sessions: SessionsDep,
    storage: StorageDep,
    actor: ActorDep,
    range_: Annotated[str | None, Header(alias="Range", description="bytes=0-99, bytes=100- or bytes=-100.")] = None,
    if_range: Annotated[str | None, Header(description="Use Range only if the file has this ETag.")] = None,
    if_none_match: Annotated[str | None, Header(description="ETags of what the caller has.")] = None,
) -> Response:
    """Download a file, streamed; HEAD gives the headers alone.

    Always as an attachment: nothing that was uploaded here is ever shown as a page. A report's files have their media
    types, so that a page of yours may show its figures.
    """
    file, media_type = artifacts.find_file(sessions, storage, actor, artifact_id, path)
    tag = f'"{file.sha256}"'
    headers = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, immutable, max-age=31536000"}
    if is_listed(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    asked = range_ if request.method == "GET" and if_range in (None, tag) else None
    try:
        span = parse_range(asked, file.size_bytes)
    except RangeNotSatisfiable as error:
        return answer(error, request, {"Content-Range": f"bytes */{file.size_bytes}"})
    headers |= _attachment(path.rsplit("/", 1)[-1]) | {"Repr-Digest": write_digest(file.sha256)}
    if request.method == "HEAD":  # a Range has no meaning here (RFC 9110, section 14.2)
        return _headers(headers, file.size_bytes, media_type=media_type)
    if span is None:
        headers["Content-Length"] = str(file.size_bytes)
        return _stream(storage.read(file.sha256), 200, headers, media_type=media_type)
    headers |= {"Content-Length": str(span.end - span.start), "Content-Range": span.content_range}
    chunks = storage.read(file.sha256, start=span.start, end=span.end)
    return _stream(chunks, 206, headers, media_type=media_type)


@router.head("/{artifact_id}/archive", include_in_schema=False)
@router.get(
    "/{artifact_id}/archive",
    operation_id="get_artifact_archive",
    summary="Download all files",
    openapi_extra=ANSWERS_HEAD,
    response_class=Response,
    responses={200: {"description": "A tar of all files", **TAR}, **problems(NotFound, ArtifactGone)},
)
def get_artifact_archive(
    artifact_id: ArtifactId, request: Request, sessions: SessionsDep, storage: StorageDep, actor: ActorDep
) -> Response:
    """Download all files as one tar, streamed, below a folder with the artifact's id; HEAD gives the headers alone."""
    archive = artifacts.pack(sessions, storage, actor, artifact_id)
    if request.method == "HEAD":
        return _headers(_attachment(archive.name), archive.size_bytes, media_type="application/x-tar")
    headers = {**_attachment(archive.name), "Content-Length": str(archive.size_bytes)}
    return _stream(archive.chunks, 200, headers, media_type="application/x-tar")


@router.delete(
    "/{artifact_id}",
    operation_id="delete_artifact",
    summary="Delete an artifact",
    status_code=204,
    responses=problems(NotFound, ResourceInUse),
)
def delete_artifact(artifact_id: ArtifactId, sessions: SessionsDep, storage: StorageDep, actor: ActorDep) -> None:
    """Delete an artifact and the checkpoint it is."""
    artifacts.delete(sessions, storage, actor, artifact_id)


def _attachment(name: str) -> dict[str, str]:
    return {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }


def _headers(headers: Mapping[str, str], size_bytes: int, *, media_type: str) -> Response:
    return Response(headers={**headers, "Content-Length": str(size_bytes)}, media_type=media_type)


def _stream(chunks: Iterator[bytes], status: int, headers: Mapping[str, str], *, media_type: str) -> Response:
    return StreamingResponse(chunks, status_code=status, headers=headers, media_type=media_type)
