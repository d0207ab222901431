"""The EleutherAI harness on a task's own files: its prompts, scoring and metrics, on a causal language model.

The harness is an optional extra (`pip install 'amalgam[harness]'`); without it a job says so. A task's preprocessing
holds the fields of a harness task file under their own names. What a task file could do beside describing is left out:
no code (`!function`), no data from a hub, and templates run in Jinja's sandbox.

Source: Gao et al., "A framework for few-shot language model evaluation", lm-evaluation-harness 0.4.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from pydantic import Field, JsonValue

from app.domain.errors import InvalidDataset, InvalidParameters, ModelNotRunnable
from app.domain.parameters import Parameters
from app.domain.tasks import LocalTask, Measurement, MeasurementDetails
from workers.checkpoints.language import CausalModel, load_causal
from workers.datasets.rows import read_rows
from workers.model_contract import ModelSource, Subject, evaluator
from workers.scoring.intervals import share_interval

_METRICS = {"multiple_choice": ("acc", "acc_norm"), "generate_until": ("exact_match",)}
_NAME = "task"


Function = Literal["regex", "multi_choice_regex", "remove_whitespace", "lowercase", "uppercase", "map", "take_first"]
_OPTIONS: dict[Function, tuple[str, ...]] = {
    "regex": ("regex_pattern", "group_select", "fallback"),
    "multi_choice_regex": (
        "regex_pattern", "group_select", "fallback", "ignore_case", "ignore_punctuation", "regexes_to_ignore"
    ),
    "map": ("mapping_dict", "default_value"),
}  # fmt: skip


class FilterStep(Parameters):
    """A function of the harness that an answer passes through, with its options; left out, they are the harness's."""

    function: Function
    regex_pattern: str | None = Field(default=None, max_length=10_000, description="What is found is the answer.")
    group_select: int | None = Field(default=None, description="Which match: 0 the first, -1 the last.")
    fallback: str | None = Field(default=None, max_length=1000, description="The answer where nothing is found.")
    ignore_case: bool | None = None
    ignore_punctuation: bool | None = None
    regexes_to_ignore: list[str] | None = Field(default=None, max_length=100)
    mapping_dict: dict[str, str] | None = Field(default=None, description="From what is found to the answer.")
    default_value: str | None = Field(default=None, max_length=1000, description="For what is not in the mapping.")


class HarnessFilter(Parameters):
    """What the generated answers pass through, in this order."""

    name: str = Field(default="filter", min_length=1, max_length=100)
    filter: list[FilterStep] = Field(min_length=1, max_length=20)


class HarnessPreprocessing(Parameters):
    """A task in the harness's own words."""

    output_type: Literal["multiple_choice", "generate_until"] = Field(
        default="multiple_choice", description="Compare the choices' probabilities, or generate an answer."
    )
    doc_to_text: str = Field(
        default="{{text}}", min_length=1, max_length=100_000, description="The prompt: a template over a row's columns."
    )
    doc_to_target: str = Field(
        default="{{label}}", min_length=1, max_length=100_000, description="The right choice's index, or the answer."
    )
    doc_to_choice: str | list[str] = Field(
        default="{{choices}}", description="The choices: a list, or a template that gives one."
    )
    description: str = Field(default="", max_length=100_000, description="What stands before the first example.")
    target_delimiter: str = Field(default=" ", max_length=1000, description="Between prompt and answer.")
    fewshot_delimiter: str = Field(default="\n\n", max_length=1000, description="Between examples.")
    num_fewshot: int = Field(default=0, ge=0, le=1000, description="Examples shown: the first of the train split.")
    until: list[str] = Field(default=["\n\n"], max_length=100, description="Where a generated answer ends.")
    max_new_tokens: int = Field(default=64, ge=1, le=4096, description="Most tokens of a generated answer.")
    filter_list: list[HarnessFilter] = Field(
        default=[], max_length=1, description="What a generated answer passes through before it is compared."
    )
    ignore_case: bool = Field(default=False, description="Compare answers without case.")
    ignore_punctuation: bool = Field(default=False, description="Compare answers without punctuation.")
    regexes_to_ignore: list[str] = Field(
        default=[], max_length=100, description="What is cut out of answer and target before they are compared."
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="Requests run at once.")


@evaluator(
    name="lm-eval",
    title="Language model evaluation harness",
    summary="The EleutherAI harness (an optional extra) on the task's own files: choices, or generated answers.",
    source="Gao et al., lm-evaluation-harness 0.4",
    heads=("own",),
    metrics=("acc", "acc_norm", "exact_match"),
    parameters=HarnessPreprocessing,
    classes="none",
)
def measure(
    subject: Subject, split: str, models: ModelSource, on_examples: Callable[[int, int], None]
) -> tuple[Measurement, ...]:
    """Return the task's metric as the harness scores each example, with the share's standard error and interval.

    Raises: ModelNotRunnable without the harness; InvalidDataset, InputChanged; InvalidParameters for a metric that the
        output_type has not, and for templates that fail.
    """
    task = subject.task
    preprocessing = HarnessPreprocessing.model_validate(task.spec.preprocessing)
    _refuse_other_metric(task, preprocessing)
    _refuse_other_options(task, preprocessing)
    if find_spec("lm_eval") is None:
        raise ModelNotRunnable(
            "Tasks of kind lm-eval need the EleutherAI harness, which is not installed on this worker. Install it "
            "(`pip install 'amalgam[harness]'`) and start the worker again, or make a task of another kind."
        )
    data = {name: [row.values for row in read_rows(task, name)] for name in _splits(task, split, preprocessing)}
    model = models.open(subject.checkpoint, load_causal)
    samples = _run(task, _configure(preprocessing, task.spec.metric, split, data), model, preprocessing.batch_size)
    hits = np.array([float(sample[task.spec.metric]) for sample in samples])
    on_examples(len(hits), len(hits))
    return (_score(task, split, hits),)


def _refuse_other_metric(task: LocalTask, preprocessing: HarnessPreprocessing) -> None:
    known = _METRICS[preprocessing.output_type]
    if task.spec.metric not in known:
        raise InvalidParameters(
            f"Task {task.spec.name!r} has the metric {task.spec.metric}, output_type {preprocessing.output_type} has "
            f"{' and '.join(known)}. Make a task with one of them."
        )


def _refuse_other_options(task: LocalTask, preprocessing: HarnessPreprocessing) -> None:
    """Refuse options that a function has not, and what is of generated answers where none are.

    Raises: InvalidParameters.
    """
    of_answers = ("filter_list", "ignore_case", "ignore_punctuation", "regexes_to_ignore")
    given = [name for name in of_answers if getattr(preprocessing, name)]
    if given and preprocessing.output_type != "generate_until":
        raise InvalidParameters(
            f"Task {task.spec.name!r} has {given[0]}, which is of generated answers, and output_type "
            f"{preprocessing.output_type}. Leave it out, or make a task with output_type generate_until."
        )
    for one in (step for pipeline in preprocessing.filter_list for step in pipeline.filter):
        known = _OPTIONS.get(one.function, ())
        strange = [name for name in _options(one) if name not in known]
        if strange:
            raise InvalidParameters(
                f"Task {task.spec.name!r} has a filter {one.function} with {strange[0]}; it takes "
                f"{', '.join(known) or 'no options'}. Make a task without it."
            )


def _options(step: FilterStep) -> dict[str, JsonValue]:
    return step.model_dump(exclude={"function"}, exclude_none=True)


def _splits(task: LocalTask, split: str, preprocessing: HarnessPreprocessing) -> Iterable[str]:
    if preprocessing.num_fewshot and "train" not in task.files:
        raise InvalidDataset(
            f"Task {task.spec.name!r} shows {preprocessing.num_fewshot} examples of its train split, and has none. "
            "Make a task that names a file for it."
        )
    return dict.fromkeys([split, *(["train"] if preprocessing.num_fewshot else [])])


def _configure(
    preprocessing: HarnessPreprocessing, metric: str, split: str, data: Mapping[str, Sequence[object]]
) -> dict[str, object]:
    """Return the task as the harness takes it, with its data in memory."""
    datasets: Any = import_module("datasets")  # comes with the harness, untyped here
    fields = ("output_type", "doc_to_text", "doc_to_target", "description", "target_delimiter", "fewshot_delimiter")
    config: dict[str, object] = {name: getattr(preprocessing, name) for name in fields}
    comparing = ("ignore_case", "ignore_punctuation", "regexes_to_ignore")
    options = {name: getattr(preprocessing, name) for name in comparing if metric == "exact_match"}
    config |= {
        "task": _NAME,
        "custom_dataset": lambda **_: {name: datasets.Dataset.from_list(list(rows)) for name, rows in data.items()},
        "test_split": split,
        "num_fewshot": preprocessing.num_fewshot,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True, **options}],
    }
    if preprocessing.num_fewshot:
        config |= {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    if preprocessing.output_type == "multiple_choice":
        return {**config, "doc_to_choice": preprocessing.doc_to_choice}
    generation = {"until": preprocessing.until, "max_gen_toks": preprocessing.max_new_tokens, "do_sample": False}
    if preprocessing.filter_list:
        config["filter_list"] = [
            {"name": one.name, "filter": [{"function": step.function, **_options(step)} for step in one.filter]}
            for one in preprocessing.filter_list
        ]
    return {**config, "generation_kwargs": generation}


def _run(task: LocalTask, config: dict[str, object], model: CausalModel, batch_size: int) -> list[dict[str, Any]]:
    """Return what the harness says of each example."""
    _sandbox_templates()
    harness: Any = import_module("lm_eval")
    wrapped = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch_size, max_length=model.max_tokens
    )
    try:
        found = harness.simple_evaluate(model=wrapped, tasks=[config], bootstrap_iters=0, log_samples=True)
    except MemoryError:
        raise
    except Exception as error:  # templates and columns are the caller's, and the harness has no errors of its own
        raise InvalidParameters(
            f"The harness cannot run task {task.spec.name!r}: {type(error).__name__}: {str(error)[:400]}. Check the "
            "templates in its preprocessing against the columns of its data, and its filters."
        ) from error
    samples: list[dict[str, Any]] = found["samples"][_NAME]
    return samples


def _sandbox_templates() -> None:
    """Make the harness render templates in Jinja's sandbox: they come from callers, and could run code."""
    utils: Any = import_module("lm_eval.utils")
    jinja2: Any = import_module("jinja2")
    sandboxed = import_module("jinja2.sandbox").ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    sandboxed.filters["regex_replace"] = utils.regex_replace
    utils.env = sandboxed


def _score(task: LocalTask, split: str, hits: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Measurement:
    n, n_correct = len(hits), round(hits.sum())
    share = n_correct / n
    return Measurement(
        task=task.id,
        name=task.spec.metric,
        value=share,
        split=split,
        n=n,
        stderr=math.sqrt(share * (1 - share) / n),
        details=MeasurementDetails(interval=share_interval(n_correct, n), n_correct=n_correct),
    )
