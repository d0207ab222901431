"""Evaluations of equal weights: the same weights on the same task under the same evaluator give the same numbers.

What was measured is found again by a digest of all that a number depends on: weights, config and tokenizer of the
checkpoint and of the head's base model, the task's digest and split, the evaluator's version. Names do not count.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import checkpoints
from app.db.tables import Checkpoint, Job, Metric
from app.domain.checkpoints import digest_json
from app.domain.jobs import JobKind, JobState

MAX_JOBS = 1000  # newest evaluations of equal weights that are looked through
_DOCUMENTS = ("recipe.json", "finetune.json")  # no model reads them
_DOCUMENT_SUFFIX = ".md"
_INDEX_SUFFIX = ".safetensors.index.json"  # says which tensor is where


@dataclass(frozen=True)
class Measured:
    """What a job has measured on one task: numbers as its result has them."""

    job_id: str
    metrics: Sequence[Mapping[str, JsonValue]]


def digest_model(session: Session, checkpoint_id: str) -> str:
    """Return a digest of all that a run of the checkpoint reads; an adapter's base with it."""
    row = session.get_one(Checkpoint, checkpoint_id)
    manifest = checkpoints.load_manifest(session, checkpoint_id)
    of_weights = {tensor.file for tensor in manifest.tensors}  # the weights' digest covers them
    beside: list[JsonValue] = [
        [file.path, file.sha256] for file in manifest.files if file.path not in of_weights and _is_read(file.path)
    ]
    base = digest_model(session, row.base_checkpoint_id) if manifest.adapter and row.base_checkpoint_id else None
    return digest_json([manifest.weights_digest, beside, base])


def find(session: Session, checkpoint_id: str, digests: Sequence[str]) -> dict[str, Measured]:
    """Return, by digest, what succeeded evaluations of equal weights measured; the newest counts."""
    if not digests:
        return {}
    checkpoint = session.get_one(Checkpoint, checkpoint_id)
    project = checkpoint.project_id
    alike = select(Checkpoint.id).where(
        Checkpoint.project_id == project, Checkpoint.weights_digest == checkpoint.weights_digest
    )
    measuring = select(Metric.job_id).where(Metric.project_id == project, Metric.checkpoint_id.in_(alike))
    statement = select(Job.id, Job.spec, Job.result).where(
        Job.id.in_(measuring), Job.kind == str(JobKind.EVALUATE), Job.state == str(JobState.SUCCEEDED)
    )
    found: dict[str, Measured] = {}
    for job_id, spec, result in session.execute(statement.order_by(Job.id.desc()).limit(MAX_JOBS)):
        for digest, metrics in _measured(spec, result):
            if digest is not None and digest in digests and metrics:
                found.setdefault(digest, Measured(job_id, metrics))
    return found


def _measured(
    spec: dict[str, Any], result: dict[str, Any] | None
) -> Iterator[tuple[str | None, list[dict[str, JsonValue]]]]:
    metrics = (result or {}).get("metrics", ())
    for item in spec["tasks"]:
        yield item.get("digest"), [metric for metric in metrics if metric["task_id"] == item["task_id"]]


def _is_read(path: str) -> bool:
    is_document = PurePosixPath(path).name in _DOCUMENTS or path.endswith(_DOCUMENT_SUFFIX)
    return not is_document and not path.endswith(_INDEX_SUFFIX)
