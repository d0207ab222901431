"""The life of a job: its kinds, states, allowed moves, and progress."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class JobKind(StrEnum):
    """What a job does."""

    IMPORT = "import"
    FINETUNE = "finetune"
    MERGE = "merge"
    EVALUATE = "evaluate"
    ANALYZE = "analyze"
    MATERIALIZE = "materialize"
    SWEEP = "sweep"
    PART = "part"  # of a merge that is spread over workers


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED})
LIVE_STATES = frozenset(JobState) - FINAL_STATES

# QUEUED -> SUCCEEDED: deduplicated. CANCELING -> SUCCEEDED: the result was published before the cancel was seen.
MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELING, JobState.QUEUED, JobState.CANCELED}
    ),
    JobState.CANCELING: frozenset({JobState.CANCELED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
}


class ResourceClass(StrEnum):
    """What a job needs most; a worker serves one or more of them. Also the name of the queue."""

    IO = "io"
    CPU = "cpu"
    GPU = "gpu"


RESOURCE_CLASSES = {
    JobKind.IMPORT: ResourceClass.IO,
    JobKind.MERGE: ResourceClass.CPU,
    JobKind.ANALYZE: ResourceClass.CPU,
    JobKind.MATERIALIZE: ResourceClass.CPU,
    JobKind.EVALUATE: ResourceClass.GPU,
    JobKind.FINETUNE: ResourceClass.GPU,
    JobKind.SWEEP: ResourceClass.GPU,
    JobKind.PART: ResourceClass.CPU,
}
"""What each kind needs most. Models run on the GPU of the worker that serves `gpu`, and on its cores if it has none."""


class Progress(BaseModel):
    """How far a job is: a stage of the pipeline, and units done of a total within the whole job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str = ""
    fraction: float = 0.0  # [0, 1] over the whole job
    done: int = 0
    total: int = 0
    unit: str = ""  # "bytes", "steps", "examples", …
    bytes_per_second: float | None = None
    eta_seconds: float | None = None
    loss: float | None = None  # of the last step, where a model is trained


def retry_delay_seconds(attempts: int) -> float:
    """Return how long attempt n + 1 waits after n attempts: min(2^n, 30) seconds."""
    return float(min(2**attempts, 30))
