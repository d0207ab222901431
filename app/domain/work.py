"""What a supervisor hands to a job process, and what comes back: paths and values, nothing else.

The job process (workers/runner.py) reaches no database, no store and no queue; all it needs is in its work order.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from app.domain.checkpoints import FileEntry, LocalCheckpoint, Manifest, Value
from app.domain.jobs import Progress
from app.domain.parts import Share
from app.domain.recipes import Recipe
from app.domain.sweeps import MeasuredPoint, Selection, Space
from app.domain.tasks import LocalTask, Measurement


class ImportWork(Value):
    """Check and hash the files of one checkpoint."""

    kind: Literal["import"] = "import"
    source: Path  # a folder, or one .safetensors file


class LearningTask(Value):
    """A task that a method learns on, and the base model behind its head, where it needs one."""

    task: LocalTask
    head_base_model: LocalCheckpoint | None


class MergeWork(Value):
    """Run a recipe; models in the recipe's order."""

    kind: Literal["merge"] = "merge"
    recipe: Recipe
    base_model: LocalCheckpoint | None
    models: tuple[LocalCheckpoint, ...]
    onto: LocalCheckpoint | None = None
    learning: tuple[LearningTask, ...] = ()  # as recipe.data names them
    statistics: tuple[LocalCheckpoint, ...] = ()  # as recipe.statistics names them
    output: Path  # an empty folder


class PartWork(Value):
    """Do one part of a merge: merge its files, or, while statistics of the whole are missing, tally its tensors."""

    kind: Literal["part"] = "part"
    merge: MergeWork
    share: Share
    tallies: tuple[Path, ...] = ()  # files of all parts, of every pass that has been tallied
    round: int = 0
    merges: bool = True  # False: it tallies only; where nothing is left to tally, others merge
    is_whole: bool = True  # all inputs are here as a whole; else only the tensors of the share, as for every part


class JoinWork(Value):
    """Complete a merge whose weight files are in the store: write what lies beside them."""

    kind: Literal["join"] = "join"
    merge: MergeWork
    merged: tuple[Path, ...]  # files of MergedFiles, of all parts in their order


class MaterializeWork(Value):
    """Write the dense models of tasks out of a multitask checkpoint, each into a folder named by its place."""

    kind: Literal["materialize"] = "materialize"
    checkpoint: LocalCheckpoint
    tasks: tuple[str, ...]  # the labels of their patches
    output: Path  # an empty folder


class PatchedTasks(Value):
    """Which patch of a multitask checkpoint each task is measured with."""

    labels: dict[str, str]  # task id -> label of the patch
    scratch: Path  # an empty folder, for one task's model at a time


class EvaluateWork(Value):
    """Measure one checkpoint on tasks; `base_models` gives the head's base model per task id."""

    kind: Literal["evaluate"] = "evaluate"
    checkpoint: LocalCheckpoint
    tasks: tuple[LocalTask, ...]
    base_models: dict[str, LocalCheckpoint]
    split: dict[str, str]  # task id -> split
    patched: PatchedTasks | None = None  # of a multitask checkpoint
    adapter_base: LocalCheckpoint | None = None  # what the checkpoint lies on, if it is an adapter
    scratch: Path | None = None  # a folder that may be made


class FinetuneWork(Value):
    """Fine-tune a base model on one task."""

    kind: Literal["finetune"] = "finetune"
    base_model: LocalCheckpoint
    head_base_model: LocalCheckpoint
    task: LocalTask
    technique: str
    parameters: dict[str, JsonValue]
    seed: int
    output: Path  # an empty folder
    family: LocalCheckpoint | None = None  # another adapter, whose start is this one's
    kept: Path | None = None  # a folder that may be made, and outlives the attempt
    save_every_seconds: float = 10.0  # between two states in `kept`


class AnalyzeWork(Value):
    """Look at task vectors, and measure what is merged of them on tasks where the analysis does that."""

    kind: Literal["analyze"] = "analyze"
    analysis: str
    base_model: LocalCheckpoint
    models: tuple[LocalCheckpoint, ...]
    labels: tuple[str, ...] = ()  # one per model, for the figure; none: models[0], models[1], …
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    tasks: tuple[LocalTask, ...] = ()
    head_bases: dict[str, LocalCheckpoint] = Field(default_factory=dict)  # task id -> base model of its head
    split: str = "test"
    merged: EvaluateWork | None = None  # the merge to look at, as it is measured on the tasks; None: one that is made
    scratch: Path | None = None  # a folder that may be made, where there are tasks
    output: Path  # an empty folder


class SweepWork(Value):
    """Measure a merge at many points, and write the best one; tasks as in EvaluateWork."""

    kind: Literal["sweep"] = "sweep"
    merge: MergeWork  # its recipe is that of some point
    space: Space
    selection: Selection
    tasks: tuple[LocalTask, ...]
    base_models: dict[str, LocalCheckpoint]  # task id -> of its head
    labels: dict[str, str] = Field(default_factory=dict)  # of a multitask result: task id -> label of its patch
    measured: tuple[MeasuredPoint, ...] = ()  # by an earlier attempt
    scratch: Path  # a folder that may be made


Work = Annotated[
    ImportWork
    | MergeWork
    | PartWork
    | JoinWork
    | MaterializeWork
    | EvaluateWork
    | FinetuneWork
    | AnalyzeWork
    | SweepWork,
    Field(discriminator="kind"),
]


class ImportOutcome(Value):
    """The manifest of the files."""

    kind: Literal["import"] = "import"
    manifest: Manifest


class CheckpointOutcome(Value):
    """A checkpoint was written into the work's output folder (merge, finetune)."""

    kind: Literal["checkpoint"] = "checkpoint"
    manifest: Manifest
    report: dict[str, JsonValue] = Field(default_factory=dict)  # effective parameters, statistics, losses, warnings
    measurements: tuple[Measurement, ...] = ()


class MaterializeOutcome(Value):
    """A checkpoint of each task was written into a folder of the work's output folder, named by the task's place."""

    kind: Literal["materialize"] = "materialize"
    manifests: tuple[Manifest, ...]

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files, by their paths within the output folder."""
        return tuple(
            entry.model_copy(update={"path": f"{place}/{entry.path}"})
            for place, manifest in enumerate(self.manifests)
            for entry in manifest.files
        )


class PartOutcome(Value):
    """A part of a merge was done: files in the work's output folder, the one that tells of it last.

    No files: it was to tally, and nothing was left to be.
    """

    kind: Literal["part"] = "part"
    files: tuple[FileEntry, ...]
    is_merged: bool  # the last file is MergedFiles; else it holds tallies, and another round follows
    bytes_read: int


class EvaluateOutcome(Value):
    """The numbers measured."""

    kind: Literal["evaluate"] = "evaluate"
    measurements: tuple[Measurement, ...]


class AnalyzeOutcome(Value):
    """The data of a report, and its files: data and figures in the work's output folder."""

    kind: Literal["analyze"] = "analyze"
    data: dict[str, JsonValue]
    files: tuple[FileEntry, ...] = ()


class SweepOutcome(Value):
    """The best merge, written into the work's output folder, and beside it the files of the curve."""

    kind: Literal["sweep"] = "sweep"
    manifest: Manifest
    report: dict[str, JsonValue]  # of the merge
    recipe: Recipe  # of the best point
    best: MeasuredPoint
    curve: dict[str, JsonValue]
    curve_files: tuple[FileEntry, ...]


Outcome = Annotated[
    ImportOutcome
    | CheckpointOutcome
    | MaterializeOutcome
    | PartOutcome
    | EvaluateOutcome
    | AnalyzeOutcome
    | SweepOutcome,
    Field(discriminator="kind"),
]


def files_of(outcome: Outcome) -> tuple[FileEntry, ...]:
    """Return the files that work has left in its output folder, which are to be published."""
    if isinstance(outcome, CheckpointOutcome):
        return outcome.manifest.files
    if isinstance(outcome, SweepOutcome):
        return (*outcome.manifest.files, *outcome.curve_files)
    return outcome.files if isinstance(outcome, MaterializeOutcome | PartOutcome | AnalyzeOutcome) else ()


class ProgressReport(Value):
    """From the job process while it runs."""

    kind: Literal["progress"] = "progress"
    progress: Progress


class PointReport(Value):
    """From the job process of a sweep: a point that it has measured."""

    kind: Literal["point"] = "point"
    point: MeasuredPoint


class WrittenReport(Value):
    """From the job process of a merge: the first bytes of a file in its output folder are as they will stay."""

    kind: Literal["written"] = "written"
    path: str
    n_bytes: int


class WorkSucceeded(Value):
    """Last word of a job process that did its work."""

    kind: Literal["succeeded"] = "succeeded"
    outcome: Outcome
    stages: tuple[tuple[str, float], ...] = ()  # (stage, seconds)


class WorkFailed(Value):
    """Last word of a job process that could not do its work: AmalgamError.to_json()."""

    kind: Literal["failed"] = "failed"
    problem: dict[str, JsonValue]


Report = Annotated[
    ProgressReport | PointReport | WrittenReport | WorkSucceeded | WorkFailed, Field(discriminator="kind")
]
