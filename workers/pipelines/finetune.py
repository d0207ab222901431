"""Fine-tune a base model on one task: a checkpoint like its base comes out, with a recipe and a model card.

The same work order gives the same bytes on the same kind of machine: one thread, deterministic kernels, draws that
depend on the seed alone. The recipe and the card hold no clock time and no measurement.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from pydantic import JsonValue

from app.domain.catalog import FinetunerCard
from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.errors import HeadMismatch
from app.domain.jobs import Progress
from app.domain.parameters import Parameters
from app.domain.tasks import Measurement
from app.domain.work import FinetuneWork
from workers.checkpoints.model import Models
from workers.checkpoints.trained import write_trained
from workers.model_contract import Evaluator, Finetuner, Step, Subject
from workers.pipelines.importing import import_checkpoint

FINETUNE_FORMAT_VERSION = 1
RECIPE_FILE = "finetune.json"
CARD_FILE = "README.md"

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

    Returns the checkpoint's manifest, a report (effective parameters, losses, what was trained), the measurements.

    Raises: HeadMismatch, InvalidDataset, InputChanged, ModelNotRunnable, NotFinite.
    """
    if evaluator.make_trainable is None:
        raise HeadMismatch(f"Tasks of kind {work.task.spec.kind!r} cannot be trained on; they can be measured only.")
    parameters = finetuner.parameters.model_validate(work.parameters)
    models = Models(device)
    losses: list[Step] = []
    with _deterministic(device):
        trainable = evaluator.make_trainable(Subject(work.task, work.base_model, work.head_base_model), models)
        on_step = _StepReport(on_progress, losses)
        trained = finetuner.train(trainable, parameters, work.seed, on_step)
        on_progress(Progress(stage="writing", fraction=_TRAINING))
        changed = write_trained(work.base_model, trainable.module, work.output)  # type: ignore[arg-type]  # it is one
        _write_documents(work, finetuner.card, parameters)
        manifest = import_checkpoint(work.output, _between(on_progress, _TRAINING, _HASHING))
        measurements = _validate(work, manifest, evaluator, _between(on_progress, _HASHING, 1.0), device)
    report = _report(finetuner.card, parameters, losses)
    report["n_trained_parameters"] = sum(
        value.numel() for name, value in trainable.module.named_parameters() if name in trained
    )
    report["n_changed_tensors"] = len(changed)
    return manifest, report, measurements


class _StepReport:
    """Keeps the losses and turns steps into progress, with the time left at the pace so far."""

    def __init__(self, on_progress: Callable[[Progress], None], losses: list[Step]) -> None:
        self._on_progress = on_progress
        self._losses = losses
        self._started = time.monotonic()

    def __call__(self, step: Step) -> None:
        self._losses.append(step)
        seconds_per_step = (time.monotonic() - self._started) / step.done
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


def _validate(
    work: FinetuneWork,
    manifest: Manifest,
    evaluator: Evaluator,
    on_progress: Callable[[Progress], None],
    device: str,
) -> tuple[Measurement, ...]:
    if "validation" not in work.task.files:
        return ()
    written = LocalCheckpoint(id="", path=work.output, manifest=manifest)
    subject = Subject(work.task, written, work.head_base_model)

    def on_examples(done: int, total: int) -> None:
        on_progress(Progress(stage="validating", fraction=done / total, done=done, total=total, unit="examples"))

    return evaluator.measure(subject, "validation", Models(device), on_examples)  # what was written, loaded afresh


def _report(card: FinetunerCard, parameters: Parameters, losses: list[Step]) -> dict[str, JsonValue]:
    stride = -(-len(losses) // _MAX_LOSSES)
    curve: list[JsonValue] = [{"step": step.done, "loss": step.loss} for step in losses[::stride]]
    return {
        "technique": card.name,
        "parameters": parameters.model_dump(mode="json"),
        "losses": curve,
        "final_loss": losses[-1].loss,
    }


def _write_documents(work: FinetuneWork, card: FinetunerCard, parameters: Parameters) -> None:
    recipe = {
        "format_version": FINETUNE_FORMAT_VERSION,
        "technique": card.name,
        "technique_version": card.version,
        "base_model": _pinned(work.base_model),
        "head_base_model": _pinned(work.head_base_model),
        "task": {"name": work.task.spec.name, "digest": work.task.spec.digest},
        "parameters": parameters.model_dump(mode="json"),
        "seed": work.seed,
    }
    text = json.dumps(recipe, indent=2, sort_keys=True, ensure_ascii=False)
    (work.output / RECIPE_FILE).write_text(f"{text}\n", encoding="utf-8")
    (work.output / CARD_FILE).write_text(_card(work, card, parameters), encoding="utf-8")


def _pinned(checkpoint: LocalCheckpoint) -> dict[str, str]:
    return {"content_digest": checkpoint.manifest.digest, "weights_digest": checkpoint.manifest.weights_digest}


def _card(work: FinetuneWork, card: FinetunerCard, parameters: Parameters) -> str:
    spec = work.task.spec
    rows = "\n".join(f"| {name} | {value} |" for name, value in sorted(parameters.model_dump(mode="json").items()))
    return f"""---
library_name: transformers
tags:
- amalgam
- finetuned
---

# {spec.name}: a fine-tuned checkpoint

Made by Amalgam with the technique `{card.name}` (version {card.version}): {card.summary}

| input | content digest (sha256) |
| --- | --- |
| base model | `{work.base_model.manifest.digest}` |
| base model of the head | `{work.head_base_model.manifest.digest}` |
| task `{spec.name}` | `{spec.digest}` |

The task has {len(spec.classes)} classes and the head `{spec.head.kind}`, which stays with the task; this checkpoint
holds the encoder.

| parameter | value |
| --- | --- |
{rows}
| seed | {work.seed} |

`{RECIPE_FILE}` says the same for programs. Source of the recipe: {card.source}.
"""
