"""What callers ask for: the bodies of the creating POSTs, as frozen values that refuse unknown fields.

Types are strict (a number is not a string), numbers finite. What a body names (refs, tasks, methods) is checked by the
services.
"""

import json
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from app.domain.adapters import AdapterSpace
from app.domain.catalog import MAX_MODELS
from app.domain.identifiers import Name, ReferenceText
from app.domain.parts import MAX_PARTS
from app.domain.recipes import RECIPE_FORMAT_VERSION, NanPolicy, Recipe, RecipeData, TensorPolicy
from app.domain.tasks import Columns

MAX_TASKS = 128
MAX_CLASSES = 100_000
TAG_KEY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"
MAX_TAG_VALUE = 255
BESIDE_A_RECIPE = ("output", "evaluate", "force", "parallelism", "priority", "max_attempts", "timeout_seconds")

Split = Literal["train", "validation", "test"]
MAX_EXAMPLES = 5_000_000
TaskReference = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
    Field(description="A task's name or id."),
]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=512)]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
TagKey = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=TAG_KEY_PATTERN)]
TagValue = Annotated[str, StringConstraints(max_length=MAX_TAG_VALUE)]
Tags = Annotated[dict[TagKey, TagValue], Field(max_length=64)]
Weight = Annotated[float, Field(ge=-1e6, le=1e6, description="Factor on this model's part.")]


class Request(BaseModel):
    """Base of the bodies."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class WorkRequest(Request):
    """How a job is run, whatever it does."""

    priority: int = Field(default=0, ge=-100, le=100, description="Higher runs earlier.")
    max_attempts: int | None = Field(default=None, ge=1, le=100, description="Default: AMALGAM_MAX_ATTEMPTS.")
    timeout_seconds: int | None = Field(default=None, ge=1, le=604_800, description="Default: AMALGAM_TIMEOUT_SECONDS.")


# --- tasks --------------------------------------------------------------------------------------------------------


class LabelPromptsRequest(Request):
    """Class vectors are the base model's embeddings of the label prompts."""

    kind: Literal["label_prompts"]
    prompts: list[ClassName] = Field(min_length=2, max_length=MAX_CLASSES, description="One per class, in order.")
    scale: float = Field(default=20.0, gt=0, le=1e6)
    base_model: ReferenceText | None = Field(default=None, description="Default: the base of what is evaluated.")


class PrototypesRequest(Request):
    """Class vectors are means of the base model's features of the first training examples of each class."""

    kind: Literal["prototypes"]
    shots: int = Field(default=16, ge=1, le=10_000, description="Training examples per class.")
    scale: float = Field(default=20.0, gt=0, le=1e6)
    base_model: ReferenceText | None = Field(default=None, description="Default: the base of what is evaluated.")


class LinearHeadRequest(Request):
    """Class vectors from a safetensors file: `weight` [classes, width] and optionally `bias` [classes]."""

    kind: Literal["linear"]
    weights: Uri


class OwnHeadRequest(Request):
    """The checkpoint's own head: of a classifier, or of a language model."""

    kind: Literal["own"] = "own"


HeadRequest = LabelPromptsRequest | PrototypesRequest | LinearHeadRequest | OwnHeadRequest


class TaskRequest(Request):
    """What models are measured on: dataset, head, metric."""

    name: Name
    kind: str = Field(min_length=1, max_length=64, description="An evaluator of GET /v1/evaluators.")
    dataset: dict[Split, Uri] = Field(
        min_length=1, description="Split to data file: JSON lines or Parquet; of images also .npz or .zip."
    )
    columns: Columns = Columns()
    classes: list[ClassName] = Field(
        default_factory=list, max_length=MAX_CLASSES, description="At least two, where the kind has classes."
    )
    head: Annotated[HeadRequest, Field(discriminator="kind")] = OwnHeadRequest()
    preprocessing: dict[str, JsonValue] = Field(default_factory=dict)
    metric: str | None = Field(
        default=None, min_length=1, max_length=64, description="Default: the first that the evaluator's card lists."
    )

    @field_validator("classes")
    @classmethod
    def _check_number(cls, classes: list[str]) -> list[str]:
        if len(classes) == 1:
            raise ValueError("found one class, expected at least two, or none where the kind has no classes")
        return classes

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        double = sorted(name for name, count in Counter(self.classes).items() if count > 1)
        if double:
            raise ValueError(f"classes must differ; found twice: {', '.join(map(repr, double[:5]))}")
        if isinstance(self.head, LabelPromptsRequest) and len(self.head.prompts) != len(self.classes):
            found = f"found {len(self.head.prompts)} prompts for {len(self.classes)} classes"
            raise ValueError(f"head.prompts must hold one prompt per class, in the classes' order; {found}")
        if isinstance(self.head, PrototypesRequest) and "train" not in self.dataset:
            raise ValueError("head.kind prototypes needs a train split: prototypes are means of training examples")
        return self


class EvaluationItem(Request):
    """A task and the split to measure on."""

    task: TaskReference
    split: Split = "test"


EvaluationItems = Annotated[list[TaskReference | EvaluationItem], Field(max_length=MAX_TASKS)]


class DataTask(Request):
    """A task that a method learns on."""

    task: Annotated[
        str,
        StringConstraints(min_length=1, max_length=128, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*|sha256:[0-9a-f]{64})$"),
        Field(description="A task's name, id or `sha256:` digest."),
    ]
    head_base_model: ReferenceText | None = Field(
        default=None, description="Behind a head of label prompts; default: the task's own, else the models' root."
    )


class DataRequest(Request):
    """What a method that learns looks at."""

    split: Split = Field(default="validation", description="`test` makes the result transductive.")
    max_examples: int | None = Field(
        default=None, ge=1, le=MAX_EXAMPLES, description="Of each task, drawn by the seed; default: all."
    )
    tasks: list[TaskReference | DataTask] | None = Field(
        default=None, min_length=1, max_length=MAX_MODELS, description="Default: each model's task."
    )


# --- work ---------------------------------------------------------------------------------------------------------


class MergeModel(Request):
    """One model to merge."""

    checkpoint: ReferenceText
    weight: Weight = 1.0
    task: Name | None = Field(
        default=None,
        description="Labels the model's patch in a multitask artifact, and names the task that a method learns on; "
        "default: the checkpoint's task.",
    )
    parameters: dict[str, JsonValue] = Field(
        default_factory=dict, description="Its own, before those of all: what `per_model` of the method's card names."
    )


class OverrideRequest(Request):
    """Other parameters or weights for some tensors; of two overrides that match a tensor, the later one wins."""

    match: Glob = Field(description="Glob of tensor names.")
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="Those that differ.")
    weights: list[Weight | Annotated[list[Weight], Field(min_length=2, max_length=1000)] | None] | None = Field(
        default=None,
        max_length=MAX_MODELS,
        description="One per model: a number, a list interpolated over depth, or null to leave it.",
    )
    models: list[dict[str, JsonValue] | None] | None = Field(
        default=None,
        max_length=MAX_MODELS,
        description="One per model: its own parameters there, as in models[].parameters, or null to leave them.",
    )


class StepRequest(Request):
    """A transform before the method, or a post-step after it."""

    name: str = Field(min_length=1, max_length=128)
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    version: int | None = Field(default=None, ge=1, le=2**53, description="Refuse any other version's bytes.")


Overrides = Annotated[list[OverrideRequest], Field(max_length=1000)]
Steps = Annotated[list[StepRequest], Field(max_length=16)]


class Output(Request):
    """What the result is called."""

    name: Name | None = Field(default=None, description="The result becomes this name's next version.")
    tags: Tags = Field(default_factory=dict)


class MergeOutput(Output):
    """What the result is called, and how it is written."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        default=None, description="Default: each tensor keeps the base's."
    )
    shard_bytes: int | None = Field(
        default=None, ge=2**20, le=2**53, description="Largest weights file; default: AMALGAM_SHARD_BYTES."
    )


class MergeRequest(WorkRequest):
    """A merge: method, base, models, parameters, output; or an artifact's `recipe.json`, which is one."""

    method: str = Field(min_length=1, max_length=128, description="A method of GET /v1/methods.")
    base_model: ReferenceText | None = None
    models: list[MergeModel] = Field(min_length=1, max_length=MAX_MODELS)
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="As the method's card says.")
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    output: MergeOutput = MergeOutput()
    include: list[Glob] = Field(default_factory=list, max_length=1000, description="Globs of tensors; default: all.")
    exclude: list[Glob] = Field(
        default_factory=list, max_length=1000, description="Globs of tensors kept as the base's."
    )
    evaluate: EvaluationItems = Field(default_factory=list)
    force: bool = Field(default=False, description="Run even if an equal recipe has run.")
    nan_policy: NanPolicy = "fail"
    tensors: TensorPolicy = "strict"
    merge_buffers: bool = True
    adapter_space: AdapterSpace | None = Field(
        default=None, description="Where adapters are merged; default: the first that the method's card names."
    )
    overrides: Overrides = Field(default_factory=list)
    transforms: Steps = Field(default_factory=list, description="Of GET /v1/transforms; before the method.")
    post_steps: Steps = Field(default_factory=list, description="Of GET /v1/post_steps; after the method.")
    data: DataRequest | None = Field(default=None, description="What a method that learns looks at.")
    statistics: list[ReferenceText] = Field(
        default_factory=list,
        max_length=MAX_MODELS,
        description="Earlier results that hold each model's statistics; nothing is looked at then.",
    )
    onto: ReferenceText | None = Field(
        default=None, description="A result of the same method that the models are added to, where its card allows it."
    )
    parallelism: Annotated[int, Field(ge=1, le=MAX_PARTS)] | Literal["auto"] = Field(
        default="auto",
        description="Into how many jobs the merge is split, any worker taking any; `auto`: where it is large and more "
        "than one merge could begin now on cores of its own.",
    )
    n_blocks: int | None = Field(default=None, ge=1, le=2**31, description="Refuse models of another depth.")
    method_version: int | None = Field(default=None, ge=1, le=2**53, description="Refuse any other version's bytes.")
    engine_version: int | None = Field(default=None, ge=1, le=2**53, description="Refuse any other version's bytes.")

    @model_validator(mode="before")
    @classmethod
    def _read_recipe(cls, document: object) -> object:
        """Take the document of a recipe, alone or with what a recipe does not hold: name, evaluations, terms."""
        if not isinstance(document, dict) or "format_version" not in document:
            return document
        own = {name: document[name] for name in BESIDE_A_RECIPE if name in document}
        rest = {name: value for name, value in document.items() if name not in own}
        try:
            recipe = Recipe.model_validate_json(json.dumps(rest), strict=True)
        except ValidationError as error:
            fault = error.errors()[0]
            place = "/".join(map(str, fault["loc"]))
            raise ValueError(f"the recipe (format_version) cannot be read: {place}: {fault['msg']}") from None
        if recipe.format_version != RECIPE_FORMAT_VERSION:
            known = f"expected {RECIPE_FORMAT_VERSION}, found {recipe.format_version}"
            raise ValueError(f"format_version: {known}; another release of Amalgam reads that recipe")
        request = request_of(recipe)
        output = own.get("output", {})
        return {**request, **own, "output": {**request["output"], **output} if isinstance(output, dict) else output}


def request_of(recipe: Recipe) -> dict[str, Any]:
    """Return the request of a recipe: it gives the same bytes wherever the same contents are registered."""
    document = recipe.model_dump(mode="json", exclude={"format_version", "output_dtype", "shard_bytes"})
    base = recipe.base_model
    models = [
        {"checkpoint": f"sha256:{model.content_digest}"}
        | model.model_dump(mode="json", exclude={"content_digest", "weights_digest"})
        for model in recipe.models
    ]
    return document | {
        "data": _data_of(recipe.data) if recipe.data is not None else None,
        "base_model": f"sha256:{base.content_digest}" if base is not None else None,
        "statistics": [f"sha256:{one.content_digest}" for one in recipe.statistics],
        "onto": f"sha256:{recipe.onto.content_digest}" if recipe.onto is not None else None,
        "models": models,
        "output": {"dtype": recipe.output_dtype, "shard_bytes": recipe.shard_bytes},
    }


def _data_of(data: RecipeData) -> dict[str, Any]:
    tasks = [
        {
            "task": f"sha256:{task.digest}",
            "head_base_model": f"sha256:{head.content_digest}" if (head := task.head_base_model) is not None else None,
        }
        for task in data.tasks
    ]
    return {"split": data.split, "max_examples": data.max_examples, "tasks": tasks}


class MaterializationRequest(WorkRequest):
    """Write the dense models of tasks out of a multitask artifact."""

    task: Name | None = Field(default=None, description="A task that the artifact has a patch for.")
    tasks: list[Name] = Field(
        default_factory=list,
        max_length=MAX_TASKS,
        description="In place of `task`: several, by one job, which reads once what they share.",
    )
    output: Output = Field(
        default=Output(), description="Of several tasks, the name of each model is this one, a hyphen and the task."
    )

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if (self.task is None) == (not self.tasks):
            found = "neither" if self.task is None else "both"
            raise ValueError(f"either task or tasks must name what is written; found {found}")
        double = sorted(name for name, count in Counter(self.tasks).items() if count > 1)
        if double:
            raise ValueError(f"tasks must differ; found twice: {', '.join(map(repr, double[:5]))}")
        return self


class TaskAdditionRequest(WorkRequest):
    """Add models to a merged artifact, without the models that it was made of."""

    models: list[MergeModel] = Field(min_length=1, max_length=MAX_MODELS)
    output: Output = Field(default=Output(), description="Default: the next version of the artifact's checkpoint.")
    evaluate: EvaluationItems = Field(default_factory=list)
    force: bool = Field(default=False, description="Run even if an equal recipe has run.")


class EvaluationRequest(WorkRequest):
    """Measure a checkpoint on tasks."""

    checkpoint: ReferenceText
    tasks: EvaluationItems = Field(min_length=1)
    split: Split = Field(default="test", description="Of the tasks that name none themselves.")
    force: bool = Field(default=False, description="Run even if equal weights were measured on an equal task.")


class FinetuneRequest(WorkRequest):
    """Train a base model on one task."""

    base_model: ReferenceText
    task: TaskReference
    technique: str = Field(default="full", min_length=1, max_length=64)
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    family: ReferenceText | None = Field(
        default=None,
        description="Another adapter of the same base, trained with linearized_lora: this one begins where it began. "
        "Not needed between adapters made here: they begin at one place unless init_seed says otherwise.",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    output: Output = Output()


class AnalysisRequest(WorkRequest):
    """Look at models without changing them."""

    kind: str = Field(min_length=1, max_length=128, description="A kind of GET /v1/analyses/kinds.")
    base_model: ReferenceText
    models: list[ReferenceText] = Field(min_length=1, max_length=MAX_MODELS)
    merged: ReferenceText | None = Field(
        default=None,
        description="For kinds that take it (`takes_merged`): a merge of the models that is there already, to be "
        "looked at instead of one that the analysis makes.",
    )
    tasks: list[TaskReference] = Field(
        default_factory=list,
        max_length=MAX_TASKS,
        description="For kinds that measure; how many, the kind's card says.",
    )
    split: Split = Field(default="test", description="Of the tasks: what is measured on.")
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="As the kind's card says.")
