"""What a checkpoint was made from, and what was made from it: job inputs, and the base named at registration.

Tombstones of deleted checkpoints are part of it. The walk is breadth first, a query a generation, and bounded.
"""

from collections.abc import Iterable

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, aliased

from app.db.tables import Checkpoint, JobInput
from app.domain.views.checkpoints import LineageEdge, LineageNode, LineageView

MAX_NODES = 500

Edge = tuple[str, str, str, str]  # source, target, role, job ("" without one)


def trace(session: Session, checkpoint: Checkpoint, *, depth: int) -> LineageView:
    """Return the lineage of a checkpoint, `depth` generations up and down."""
    edges: set[Edge] = set()
    seen = {checkpoint.id}
    is_truncated = False
    for is_up in (True, False):
        frontier = {checkpoint.id}
        for _ in range(depth):
            found = _edges(session, frontier, is_up=is_up)
            frontier = {edge[0] if is_up else edge[1] for edge in found} - seen
            if len(seen) + len(frontier) > MAX_NODES:
                is_truncated = True
                frontier = set(sorted(frontier)[: MAX_NODES - len(seen)])
            seen |= frontier
            edges |= {edge for edge in found if edge[0] in seen and edge[1] in seen}
            if not frontier:
                break
    return LineageView(
        checkpoint=checkpoint.id,
        nodes=_nodes(session, seen),
        edges=[
            LineageEdge.model_validate({"source": source, "target": target, "role": role, "job": job or None})
            for source, target, role, job in sorted(edges)
        ],
        is_truncated=is_truncated,
    )


def _edges(session: Session, ids: Iterable[str], *, is_up: bool) -> set[Edge]:
    """Return the edges that end (`is_up`) or begin in any of these checkpoints."""
    wanted = sorted(ids)
    made = aliased(Checkpoint)
    by_job = select(JobInput.checkpoint_id, made.id, JobInput.role, made.job_id).join(
        made, made.job_id == JobInput.job_id
    )
    near: ColumnElement[bool] = made.id.in_(wanted) if is_up else JobInput.checkpoint_id.in_(wanted)
    edges: set[Edge] = {
        (source, target, role, job or "") for source, target, role, job in session.execute(by_job.where(near))
    }
    by_word = select(Checkpoint.base_checkpoint_id, Checkpoint.id).where(Checkpoint.base_checkpoint_id.is_not(None))
    near = Checkpoint.id.in_(wanted) if is_up else Checkpoint.base_checkpoint_id.in_(wanted)
    for source, target in session.execute(by_word.where(near)):
        if source is not None and not any(edge[:2] == (source, target) for edge in edges):
            edges.add((source, target, "base_checkpoint", ""))
    return edges


def _nodes(session: Session, ids: Iterable[str]) -> list[LineageNode]:
    rows = session.scalars(select(Checkpoint).where(Checkpoint.id.in_(sorted(ids))).order_by(Checkpoint.id))
    return [
        LineageNode.model_validate(
            {
                "is_deleted": row.deleted_at is not None,
                **{name: getattr(row, name) for name in LineageNode.model_fields if hasattr(row, name)},
            }
        )
        for row in rows
    ]
