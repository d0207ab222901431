"""docs/errors.md, written from the tree of errors: `python -m app.api.error_pages [--check]`."""

import sys
from pathlib import Path

from app.api.problems import status_of
from app.domain.errors import AmalgamError, all_errors

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"

HEAD = """# Errors

Every error is `application/problem+json` (RFC 9457): `type`, `title`, `status`, `detail`, `code`, `request_id`,
`retryable`, and `errors` with a JSON pointer, a message and, for a misspelt name, `did_you_mean`. A job's or a
checkpoint's `problem` has the same form. `code` is stable; `detail` is for people. This page is generated
(`make catalog`) from `app/domain/errors.py`.

| status | code | what it says | meaning | try again? |
|---|---|---|---|---|
"""


def render() -> str:
    """Return the page: one row per code, by status."""
    kinds = sorted(all_errors(), key=lambda kind: (status_of(kind), kind.code))
    return HEAD + "".join(_row(kind) for kind in kinds)


def main(arguments: list[str]) -> int:
    """Write the page, or with --check tell whether the committed one is current; return the exit status."""
    if "--check" not in arguments:
        PAGE.write_text(render(), encoding="utf-8")
        return 0
    is_current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == render()
    if not is_current:
        sys.stderr.write(f"{PAGE.name} does not say what app/domain/errors.py says. Run `make catalog`.\n")
    return 0 if is_current else 1


def _row(kind: type[AmalgamError]) -> str:
    meaning = " ".join((kind.__doc__ or "").split())
    return f"| {status_of(kind)} | `{kind.code}` | {kind.title} | {meaning} | {'yes' if kind.retryable else 'no'} |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
