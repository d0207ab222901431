"""Fine-tune a base model on one task: a checkpoint like its base or an adapter on it comes out, with recipe and card.

The same work order gives the same bytes on the same kind of machine, in one go or in several attempts: one thread,
deterministic kernels, draws that depend on seeds alone. The recipe and the card hold no clock time and no measurement.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import JsonValue
from transformers import PreTrainedModel

from app.domain.adapters import place
from app.domain.catalog import FinetunerCard
from app.domain.checkpoints import CheckpointKind, FileEntry, LocalCheckpoint, Manifest, digest_json
from app.domain.errors import HeadMismatch, IncompatibleCheckpoints
from app.domain.jobs import Progress
from app.domain.parameters import Parameters
from app.domain.tasks import Measurement
from app.domain.work import FinetuneWork
from workers.checkpoints.model import Models
from workers.checkpoints.trained import names_in_files, write_trained
from workers.checkpoints.trained_adapter import describe, write_trained_adapter
from workers.model_contract import Evaluator, Finetuner, LoraResult, Run, Step, Subject, Trainable, Trained
from workers.pipelines.finetune_documents import recipe_of, write_documents
from workers.pipelines.fusing import fuse_adapter
from workers.pipelines.importing import import_checkpoint
from workers.training.families import read_start
from workers.training.parameters import LoraParameters
from workers.training.states import FileStates

_TRAINING = 0.93  # share of the job's time
_HASHING = 0.95
_MAX_LOSSES = 200  # points of the loss curve in the report


def finetune(
    work: FinetuneWork,
    evaluator: Evaluator,
    finetuner: Finetuner,
    on_progress: Callable[[Progress], None],
    *,
    device: str = "cpu",
) -> tuple[Manifest, dict[str, JsonValue], tuple[Measurement, ...]]:
    """Train, write the checkpoint into the work's output folder, and measure it on the validation split, if any.

    Returns the checkpoint's manifest, a report (effective parameters, losses, what was trained), and the measurements:
    those of the training, with their steps, and those of the result.

    Raises: HeadMismatch, InvalidDataset, InputChanged, ModelNotRunnable, NotFinite, InvalidParameters,
        IncompatibleCheckpoints.
    """
    if evaluator.make_trainable is None:
        raise HeadMismatch(f"Tasks of kind {work.task.spec.kind!r} cannot be trained on; they can be measured only.")
    parameters = finetuner.parameters.model_validate(work.parameters)
    with _deterministic(device):
        models = Models(device)
        subject = Subject(work.task, _to_be_trained(work.base_model), work.head_base_model)
        trainable = evaluator.make_trainable(subject, models)
        run = _make_run(work, finetuner, trainable, on_progress, _Validator(evaluator, subject, models))
        trained = finetuner.train(trainable, parameters, run)
        on_progress(Progress(stage="writing", fraction=_TRAINING))
        report = _report(finetuner.card, parameters, trained)
        report |= _write(work, trainable, trained.adapter)
        write_documents(work, finetuner.card, parameters)
        manifest = import_checkpoint(work.output, _between(on_progress, _TRAINING, _HASHING))
        measurements = _measure(work, manifest, evaluator, _between(on_progress, _HASHING, 1.0), device)
    return manifest, report, (*trained.validations, *measurements)


def _to_be_trained(base_model: LocalCheckpoint) -> LocalCheckpoint:
    """Return the base under another digest: `Models` has one model per digest, and heads are made with the base's."""
    mark = FileEntry(path="", size_bytes=0, sha256="to be trained")
    manifest = base_model.manifest.model_copy(update={"files": (*base_model.manifest.files, mark)})
    return base_model.model_copy(update={"manifest": manifest})


def _make_run(
    work: FinetuneWork,
    finetuner: Finetuner,
    trainable: Trainable,
    on_progress: Callable[[Progress], None],
    validator: "_Validator",
) -> Run:
    parameters = finetuner.parameters.model_validate(work.parameters)
    states = None
    if work.kept is not None:
        key = digest_json(recipe_of(work, finetuner.card, parameters))
        states = FileStates(work.kept, key, every_seconds=work.save_every_seconds)
    start = None
    if work.family is not None and isinstance(parameters, LoraParameters):
        start = read_start(work.family, parameters)
    return Run(
        seed=work.seed,
        base_key=work.base_model.manifest.weights_digest,
        on_step=_StepReport(on_progress),
        states=states,
        validate=validator if "validation" in work.task.files else None,
        start=start,
        on_begin=lambda adapter: _refuse_homeless(adapter, trainable, work.base_model),
    )


class _StepReport:
    """Turns steps into progress, with the time left at the pace so far."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._n_before: int | None = None  # steps of earlier attempts

    def __call__(self, step: Step) -> None:
        if self._n_before is None:
            self._n_before = step.done - 1
        seconds_per_step = (time.monotonic() - self._started) / (step.done - self._n_before)
        self._on_progress(
            Progress(
                stage="training",
                fraction=_TRAINING * step.done / step.total,
                done=step.done,
                total=step.total,
                unit="steps",
                eta_seconds=seconds_per_step * (step.total / _TRAINING - step.done),
                loss=step.loss,
            )
        )


class _Validator:
    """Measures the model that is being trained by the task's metric, on the validation split."""

    def __init__(self, evaluator: Evaluator, subject: Subject, models: Models) -> None:
        self._evaluator = evaluator
        self._subject = subject
        self._models = models

    def __call__(self, step: int) -> Measurement:
        found = self._evaluator.measure(self._subject, "validation", self._models, lambda _done, _total: None)
        metric = self._subject.task.spec.metric
        chosen = next((one for one in found if one.name == metric), found[0])
        return chosen.model_copy(update={"step": step})


def _base_names(adapter: LoraResult, trainable: Trainable) -> dict[str, str]:
    """Return what the adapted modules are called in the base's files, where memory has other names."""
    if not isinstance(trainable.module, PreTrainedModel):
        return {}
    return names_in_files(trainable.module, [update.module for update in adapter.updates])


def _refuse_homeless(adapter: LoraResult, trainable: Trainable, base_model: LocalCheckpoint) -> None:
    """Check before anything is learned that each update has its place in the base's files.

    Raises: IncompatibleCheckpoints.
    """
    try:
        place(describe(adapter, _base_names(adapter, trainable)), base_model.manifest)
    except IncompatibleCheckpoints as error:
        raise IncompatibleCheckpoints(
            f"target_modules: an adapter on these modules could not be merged or folded into the base's files. "
            f"{error.detail} Name other modules, or use the technique full."
        ) from None


@contextmanager
def _deterministic(device: str) -> Iterator[None]:
    n_threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")  # noqa: FBT003  torch's own signature
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
        torch.set_num_threads(n_threads)


def _between(on_progress: Callable[[Progress], None], begin: float, end: float) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        on_progress(progress.model_copy(update={"fraction": begin + (end - begin) * progress.fraction}))

    return report


def _write(work: FinetuneWork, trainable: Trainable, adapter: LoraResult | None) -> dict[str, JsonValue]:
    """Write the weights, and return what the report says of them."""
    if adapter is not None:
        write_trained_adapter(adapter, work.output, _base_names(adapter, trainable))
        return {"adapted_modules": [update.module for update in adapter.updates]}
    if not isinstance(trainable.module, PreTrainedModel):
        raise TypeError(f"a {type(trainable.module).__name__} cannot be written, expected a PreTrainedModel")
    return {"n_changed_tensors": len(write_trained(work.base_model, trainable.module, work.output))}


def _measure(
    work: FinetuneWork,
    manifest: Manifest,
    evaluator: Evaluator,
    on_progress: Callable[[Progress], None],
    device: str,
) -> tuple[Measurement, ...]:
    """Measure what was written, loaded afresh; an adapter as the dense model that it makes."""
    if "validation" not in work.task.files:
        return ()

    def on_examples(done: int, total: int) -> None:
        on_progress(Progress(stage="validating", fraction=done / total, done=done, total=total, unit="examples"))

    written = LocalCheckpoint(id="", path=work.output, manifest=manifest)
    with tempfile.TemporaryDirectory(dir=work.output.parent) as folder:
        if manifest.kind is CheckpointKind.ADAPTER:
            written = fuse_adapter(written, work.base_model, Path(folder) / "fused")
        subject = Subject(work.task, written, work.head_base_model)
        return evaluator.measure(subject, "validation", Models(device), on_examples)


def _report(card: FinetunerCard, parameters: Parameters, trained: Trained) -> dict[str, JsonValue]:
    stride = -(-len(trained.losses) // _MAX_LOSSES)
    curve: list[JsonValue] = [{"step": 1 + at, "loss": trained.losses[at]} for at in range(0, trained.n_steps, stride)]
    validations: list[JsonValue] = [
        {"step": one.step, "name": one.name, "value": one.value, "n": one.n, "stderr": one.stderr}
        for one in trained.validations
    ]
    return {
        "technique": card.name,
        "parameters": parameters.model_dump(mode="json"),
        "losses": curve,
        "final_loss": trained.losses[-1],
        "n_steps": trained.n_steps,
        "kept_step": trained.kept_step,
        "validations": validations,
        "n_trained_parameters": trained.n_parameters,
    }
