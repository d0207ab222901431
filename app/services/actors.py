"""Who asks: the project, the caller's name, and the marks that follow a request into its jobs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Actor:
    """The caller of a service function."""

    project_id: str = "default"
    name: str = "anonymous"
    request_id: str | None = None
    traceparent: str | None = None
