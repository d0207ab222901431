"""Measured numbers, looked up."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from app.db import checkpoints as checkpoint_rows
from app.db import metrics as rows
from app.db import tasks as task_rows
from app.db.engine import Sessions
from app.db.paging import made_between, paginate
from app.db.tables import Metric
from app.domain.views.metrics import MetricView
from app.domain.views.pages import Page, PageRequest
from app.services.actors import Actor


@dataclass(frozen=True)
class MetricFilters:
    """What narrows a list of metrics; None: anything."""

    checkpoint: str | None = None  # ref
    task: str | None = None  # name or id
    name: str | None = None
    job: str | None = None
    split: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


def list_(
    sessions: Sessions, actor: Actor, filters: MetricFilters, page: PageRequest, *, has_details: bool = False
) -> Page[MetricView]:
    """Return a page of metrics. Raises: UnknownCheckpoint, CheckpointNotReady, UnknownTask, BadCursor."""
    with sessions.read() as session:
        between = made_between(Metric.at, filters.created_after, filters.created_before)
        statement = select(Metric).where(Metric.project_id == actor.project_id, *between)
        if filters.checkpoint is not None:
            refs = [("/query/checkpoint", filters.checkpoint)]
            checkpoint = checkpoint_rows.resolve(session, actor.project_id, refs)[0]
            statement = statement.where(Metric.checkpoint_id == checkpoint.id)
        if filters.task is not None:
            task = task_rows.resolve(session, actor.project_id, [("/query/task", filters.task)])[0]
            statement = statement.where(Metric.task_id == task.id)
        for column, value in ((Metric.name, filters.name), (Metric.job_id, filters.job), (Metric.split, filters.split)):
            if value is not None:
                statement = statement.where(column == value)
        found, cursor = paginate(session, statement, key=Metric.id, request=page, filters=vars(filters))
        details = rows.find_details(session, found)
        return Page(items=rows.views(session, found, details, has_details=has_details), next_cursor=cursor)
