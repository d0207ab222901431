"""Documentation that works without the internet: /docs with its assets served from here, and what a problem means."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse
from pydantic import BaseModel
from starlette.staticfiles import StaticFiles

from app.api.problems import problems, status_of
from app.domain.errors import FieldProblem, NotFound, all_errors, near_match

STATIC = Path(__file__).parent.parent / "static"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " frame-ancestors 'none'; base-uri 'none'"
)

router = APIRouter(tags=["operations"])
router.mount("/static", StaticFiles(directory=STATIC), name="static")


class ProblemKind(BaseModel):
    """What a problem's code means."""

    code: str
    title: str
    status: int
    meaning: str
    retryable: bool


@router.get("/", include_in_schema=False)
def show_start() -> RedirectResponse:
    """Lead to the documentation."""
    return RedirectResponse("/docs")


@router.get("/docs", include_in_schema=False)
def show_docs() -> FileResponse:
    """Show the API as a page."""
    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-cache"}
    return FileResponse(STATIC / "docs.html", media_type="text/html", headers=headers)


@router.get("/favicon.ico", include_in_schema=False)
def show_icon() -> FileResponse:
    """Give the icon."""
    return FileResponse(STATIC / "amalgam.svg", media_type="image/svg+xml")


@router.get(
    "/problems/{code}",
    operation_id="explain_problem",
    summary="What a problem's code means",
    responses=problems(NotFound),
)
def explain_problem(code: str) -> ProblemKind:
    """Explain the `type` of a problem."""
    kinds = {kind.code: kind for kind in all_errors()}
    if code not in kinds:
        match = near_match(code, kinds)
        hint = f" Did you mean {match!r}?" if match else ""
        message = f"There is no problem with code {code!r}.{hint} docs/errors.md lists all of them."
        raise NotFound(message, errors=[FieldProblem("/path/code", message, match)])
    kind = kinds[code]
    return ProblemKind(
        code=code,
        title=kind.title,
        status=status_of(kind),
        meaning=" ".join((kind.__doc__ or "").split()),
        retryable=kind.retryable,
    )
