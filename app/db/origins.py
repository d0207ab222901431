"""What data went into a checkpoint: into its own merge or sweep, and into all that it was made from.

Inputs are followed by content, so a copy of a checkpoint carries what the checkpoint carries.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from app.db.tables import Artifact, Checkpoint, Job, Task
from app.domain.jobs import JobKind
from app.domain.sweeps import Space
from app.domain.views.metrics import TuningView

SPACE: TypeAdapter[Space] = TypeAdapter(Space)

Looked = tuple[str, str]  # at which data: digest or id of a task, and split


@dataclass(frozen=True)
class Origin:
    """The data behind a checkpoint."""

    files: frozenset[str]  # sha256 of the data files that were learned on or chosen by
    tunings: tuple[TuningView, ...]  # the sweeps that chose parameters, the earliest first


@dataclass
class _Content:
    """What checkpoints of one content were made from, by themselves."""

    inputs: set[str] = field(default_factory=set)  # content digests
    looked_at: set[Looked] = field(default_factory=set)
    tunings: dict[str, TuningView] = field(default_factory=dict)  # by job


def find(session: Session, checkpoint_ids: Iterable[str]) -> dict[str, Origin]:
    """Return the data behind each checkpoint, by its id."""
    wanted = select(Checkpoint.id, Checkpoint.content_digest).where(Checkpoint.id.in_(set(checkpoint_ids)))
    start = {checkpoint_id: str(digest) for checkpoint_id, digest in session.execute(wanted)}
    contents: dict[str, _Content] = {}
    pending = set(start.values())
    while pending:
        found = _read(session, pending)
        contents.update(found)
        pending = {digest for one in found.values() for digest in one.inputs} - contents.keys()
    behind = {checkpoint_id: _gather(digest, contents) for checkpoint_id, digest in start.items()}
    files = _find_files(session, behind.values())
    return {checkpoint_id: _describe(content, files) for checkpoint_id, content in behind.items()}


def _read(session: Session, digests: set[str]) -> dict[str, _Content]:
    """Return what made the checkpoints of these contents: recipes of merges, sweeps, the bases of what was trained."""
    contents = {digest: _Content() for digest in digests}
    base = aliased(Checkpoint)
    recipe = [Artifact.recipe[name] for name in ("base_model", "onto", "models", "statistics", "data")]
    made = (
        select(Checkpoint.content_digest, base.content_digest, *recipe)
        .outerjoin(base, base.id == Checkpoint.base_checkpoint_id)
        .outerjoin(Artifact, Artifact.checkpoint_id == Checkpoint.id)
        .where(Checkpoint.content_digest.in_(digests))
    )
    for digest, trained_from, base_model, onto, models, statistics, data in session.execute(made):
        pinned = [base_model, onto, *(models or ()), *(statistics or ())]
        contents[digest].inputs |= {one["content_digest"] for one in pinned if one} | {trained_from} - {None}
        contents[digest].looked_at |= {(task["digest"], data["split"]) for task in data["tasks"]} if data else set()
    swept = (
        select(Checkpoint.content_digest, Job.id, Job.spec)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.content_digest.in_(digests), Job.kind == str(JobKind.SWEEP))
    )
    for digest, job_id, spec in session.execute(swept):
        contents[digest].looked_at |= {(task["task_id"], task["split"]) for task in spec["tasks"]}
        contents[digest].tunings[job_id] = _tuning(job_id, spec)
    return contents


def _tuning(job_id: str, spec: Mapping[str, Any]) -> TuningView:  # Any: a job's spec
    return TuningView(
        job=job_id,
        split=spec["selection"]["split"],
        metric=spec["selection"]["metric"],
        tasks=[task["task"] for task in spec["tasks"]],
        n_points=SPACE.validate_python(spec["space"]).n_points,
    )


def _gather(digest: str, contents: Mapping[str, _Content]) -> _Content:
    """Return what a checkpoint and everything behind it were made from, as one."""
    whole, pending = _Content(), [digest]
    while pending:
        if (at := pending.pop()) not in whole.inputs:
            whole.inputs.add(at)
            whole.looked_at |= contents[at].looked_at
            whole.tunings |= contents[at].tunings
            pending += contents[at].inputs
    return whole


def _find_files(session: Session, contents: Iterable[_Content]) -> dict[Looked, str]:
    """Return the sha256 of the files that were looked at.

    A digest covers the files, so any task of that digest tells them; once none is left, nobody does.
    """
    keys = {key for content in contents for key, _ in content.looked_at}
    if not keys:
        return {}
    found = select(Task.digest, Task.id, Task.spec["dataset"]).where(Task.digest.in_(keys) | Task.id.in_(keys))
    return {
        (key, split): file["sha256"]
        for digest, task_id, dataset in session.execute(found)
        for split, file in dataset.items()
        for key in (digest, task_id)
    }


def _describe(content: _Content, files: Mapping[Looked, str]) -> Origin:
    return Origin(
        files=frozenset(files[one] for one in content.looked_at if one in files),
        tunings=tuple(content.tunings[job] for job in sorted(content.tunings)),
    )
