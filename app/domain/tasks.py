"""What a model is measured on: a task (dataset + head + metric), and the numbers measured."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from app.domain.checkpoints import Value, digest_json


class LabelPromptsHead(Value):
    """Class vectors are the base model's embeddings of the label prompts; logits are scale x cosine."""

    kind: Literal["label_prompts"]
    prompts: tuple[str, ...]
    scale: float = Field(default=20.0, gt=0, allow_inf_nan=False)


class PrototypesHead(Value):
    """Class vectors are means of the base model's features of training examples; logits are scale x cosine."""

    kind: Literal["prototypes"]
    shots: int = Field(default=16, ge=1)  # training examples per class, the first in the file
    scale: float = Field(default=20.0, gt=0, allow_inf_nan=False)


class LinearHead(Value):
    """Class vectors from a safetensors file: `weight` [n_classes, width], optional `bias` [n_classes]."""

    kind: Literal["linear"]
    weights: str  # URI of the file


class OwnHead(Value):
    """The checkpoint's own head: of a classifier, or of a language model."""

    kind: Literal["own"] = "own"


Head = Annotated[LabelPromptsHead | PrototypesHead | LinearHead | OwnHead, Field(discriminator="kind")]


class DataFile(Value):
    """One data file as it was when the task was made."""

    uri: str
    sha256: str
    size_bytes: int


class Columns(Value):
    """Which columns of the data are which."""

    input: str = "text"
    label: str = "label"


class TaskSpec(Value):
    """A task, immutable: what is measured, on which content, with which head."""

    name: str
    kind: str  # the evaluator's name
    dataset: dict[str, DataFile]  # split -> file
    columns: Columns = Columns()
    classes: tuple[str, ...] = ()
    head: Head
    head_weights: DataFile | None = None  # of a linear head
    preprocessing: dict[str, JsonValue] = Field(default_factory=dict)
    metric: str = "accuracy"

    @property
    def head_needs_base(self) -> bool:
        """Tell whether the head is made with a base model."""
        return isinstance(self.head, LabelPromptsHead | PrototypesHead)

    def splits_read(self, split: str) -> list[str]:
        """Return the splits whose files are read to measure on one of them."""
        return list(dict.fromkeys([split, *(["train"] if isinstance(self.head, PrototypesHead) else [])]))

    @property
    def digest(self) -> str:
        """Digest of data, head and preprocessing; not of names and places."""
        content = self.model_dump(mode="json", exclude={"name"})
        for file in [*content["dataset"].values(), content["head_weights"] or {}]:
            file.pop("uri", None)
        content["head"].pop("weights", None)
        return digest_json(content)


class LocalTask(Value):
    """A task whose files lie on this machine, as evaluators and fine-tuners take it."""

    id: str
    spec: TaskSpec
    files: dict[str, Path]  # split -> file
    head_weights: Path | None = None


class Interval(Value):
    """Between which bounds the number lies with a probability of `level`."""

    low: float
    high: float
    level: float
    method: Literal["wilson", "bootstrap"]


class ClassScore(Value):
    """The counts of one class; its recall is n_correct / n, its precision n_correct / n_predicted."""

    name: str
    n: int
    n_predicted: int
    n_correct: int


class MeasurementDetails(Value):
    """What stands behind a number."""

    interval: Interval | None = None  # none for a single example
    n_correct: int | None = None  # where an answer is right or wrong
    per_class: tuple[ClassScore, ...] = ()  # in the order of the task's classes
    counts: dict[str, int] = Field(default_factory=dict)  # such as n_tokens
    other: dict[str, float] = Field(default_factory=dict)  # other numbers of the same run, by name


class Measurement(Value):
    """One number measured. `value` is None where the number is undefined."""

    task: str  # the task's id
    name: str
    value: float | None
    unit: str = "fraction"
    higher_is_better: bool = True
    split: str
    n: int  # examples
    stderr: float | None = None
    details: MeasurementDetails = MeasurementDetails()
