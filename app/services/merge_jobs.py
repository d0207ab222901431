"""What a job that merges does around its work: bring the inputs here, keep what was made, add the evaluations to come.

Shared by merges and sweeps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db import products
from app.db.checkpoints import load_manifests
from app.db.products import Product
from app.domain.checkpoints import FileEntry, LocalCheckpoint, Manifest
from app.domain.identifiers import new_id
from app.domain.needs import find_needed
from app.domain.parts import Share, only_of
from app.domain.views.jobs import JobView
from app.domain.work import LearningTask, MergeWork
from app.services import inputs, measuring, merge_plans, task_files
from app.services.actors import Actor
from app.services.measuring import EvaluationSpec, JobTerms
from app.services.merge_drafts import MergeSpec
from app.services.running import Keepers


def is_companion(path: str) -> bool:
    """Tell whether a file lies beside the weights."""
    return not path.endswith(".safetensors")


def fetch(
    keepers: Keepers, spec: MergeSpec, output: Path, is_wanted: Callable[[str], bool] = lambda _: True
) -> MergeWork:
    """Bring the inputs of a merge here and return its work, which writes into the empty folder `output`."""
    heads = [item.base_model for item in spec.learning]
    wanted = [*_merged_by(spec), *filter(None, (spec.onto, *heads)), *spec.statistics]
    here = {checkpoint_id: inputs.local(keepers, checkpoint_id, is_wanted) for checkpoint_id in dict.fromkeys(wanted)}
    return _work(keepers, spec, output, here)


def is_remote(keepers: Keepers, spec: MergeSpec) -> bool:
    """Tell whether bytes of what is merged have to be moved to whoever merges. Raises: InputChanged."""
    return any(inputs.is_remote(keepers, checkpoint_id) for checkpoint_id in dict.fromkeys(_merged_by(spec)))


def fetch_part(keepers: Keepers, spec: MergeSpec, output: Path, share: Share) -> tuple[MergeWork, bool]:
    """Bring here what a part of a merge reads; return the work of its merge, and whether more lies here than that."""
    wanted = _merged_by(spec)
    if not is_remote(keepers, spec):
        return fetch(keepers, spec, output), True
    own = only_of(merge_plans.plan_spec(keepers.sessions, spec), share)
    with keepers.sessions.read() as session:
        manifests = load_manifests(session, sorted(set(wanted)))
    base = None if spec.base_model is None else manifests[spec.base_model]
    models = [manifests[str(model["checkpoint"])] for model in spec.models]
    needed: dict[str, frozenset[str]] = {}
    for checkpoint_id, names in zip(wanted, find_needed(own, base, models), strict=True):
        needed[checkpoint_id] = needed.get(checkpoint_id, frozenset()) | names
    here = {one: inputs.local_tensors(keepers, one, names) for one, names in needed.items()}
    return _work(keepers, spec, output, here), False


def _merged_by(spec: MergeSpec) -> list[str]:
    """Return the base model, if there is one, and the models."""
    return [*filter(None, (spec.base_model,)), *(str(model["checkpoint"]) for model in spec.models)]


def _work(keepers: Keepers, spec: MergeSpec, output: Path, here: Mapping[str, LocalCheckpoint]) -> MergeWork:
    return MergeWork(
        recipe=spec.recipe,
        base_model=here[spec.base_model] if spec.base_model is not None else None,
        models=tuple(here[str(model["checkpoint"])] for model in spec.models),
        onto=here[spec.onto] if spec.onto is not None else None,
        learning=tuple(
            LearningTask(
                task=task_files.fetch(keepers, item.task_id, [item.split]),
                head_base_model=here[item.base_model] if item.base_model is not None else None,
            )
            for item in spec.learning
        ),
        statistics=tuple(here[checkpoint_id] for checkpoint_id in spec.statistics),
        output=output,
    )


@dataclass(frozen=True)
class Made:
    """What a job has merged: files that lie in the store."""

    job_id: str
    spec: MergeSpec
    manifest: Manifest
    files: Sequence[FileEntry]


@dataclass(frozen=True)
class Kept:
    """The rows of what was merged."""

    job_id: str
    checkpoint_id: str
    artifact_id: str
    evaluations: tuple[tuple[str, EvaluationSpec], ...]  # (id of the job to be, what it measures)

    @property
    def document(self) -> dict[str, JsonValue]:
        """The job's result, as far as the rows decide it."""
        return {
            "checkpoint": self.checkpoint_id,
            "artifacts": [self.artifact_id],
            "evaluations": [job_id for job_id, _ in self.evaluations],
            "metrics": [],
        }

    def result(self, source: JobView) -> dict[str, JsonValue]:
        """Return the result of a job that reuses what another made."""
        return {**self.document, "data": (source.result or {}).get("data")}


def keep(session: Session, actor: Actor, made: Made) -> Kept:
    """Add the artifact and the checkpoint; `add_evaluations` adds what follows."""
    spec = made.spec
    product = Product(
        made.job_id, made.manifest, spec.output, spec.base_checkpoint, recipe=spec.recipe, files=made.files
    )
    artifact_id, checkpoint_id = products.add(session, actor, product)
    evaluations = tuple(
        (new_id("job"), EvaluationSpec(checkpoint=checkpoint_id, tasks=(item,))) for item in spec.evaluate
    )
    return Kept(made.job_id, checkpoint_id, artifact_id, evaluations)


def add_evaluations(session: Session, actor: Actor, kept: Kept, terms: JobTerms) -> tuple[JobView, ...]:
    """Add a job per task, so that one with broken data takes no other with it; hint them after the commit."""
    return tuple(
        measuring.add_evaluation(
            session, actor, spec, terms.model_copy(update={"job_id": job_id, "parent_id": kept.job_id})
        )
        for job_id, spec in kept.evaluations
    )


def terms_of(job: JobView) -> JobTerms:
    """Return how what follows a job is run: as the job itself."""
    return JobTerms(
        priority=job.priority,
        max_attempts=job.max_attempts,
        timeout_seconds=job.timeout_seconds,
    )
