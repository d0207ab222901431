"""The tree of errors: what can go wrong, with a stable code each. HTTP status codes live in app/api/problems.py.

AmalgamError
├── BadRequest                 the request cannot be read (malformed_request, bad_cursor, …)
├── NotFound                   a path names nothing we hold
├── Conflict                   the request disagrees with the state of what it names
├── PreconditionFailed / PreconditionRequired
├── TooLarge / UnsupportedMediaType / NotAcceptable / RangeNotSatisfiable
├── Invalid                    well-formed, but the content does not hold (422)
│   └── CheckpointInvalid      what an import finds wrong in the files themselves
├── OutOfDisk                  the plan does not fit the disk (507)
├── Unavailable                something we stand on is away (503), retryable
└── JobError                   ends an attempt of a job
    ├── WorkerLost, OutOfMemory, JobTimedOut, …

Every message names the thing, what was found, what was expected, and what to do next.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["AmalgamError", "FieldProblem", "all_errors", "near_match"]


@dataclass(frozen=True)
class FieldProblem:
    """One fault in the input: where (JSON pointer), what, and the nearest valid name if there is one."""

    pointer: str
    message: str
    did_you_mean: str | None = None

    def to_json(self) -> dict[str, str]:
        """Return the wire form; `did_you_mean` is left out when there is none."""
        document = {"pointer": self.pointer, "message": self.message}
        if self.did_you_mean is not None:
            document["did_you_mean"] = self.did_you_mean
        return document


def near_match(name: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to a misspelt one, or None."""
    return next(iter(near_matches(name, known, most=1)), None)


def near_matches(name: str, known: Iterable[str], *, most: int) -> list[str]:
    """Return the known names nearest to a misspelt one, the nearest first."""
    return difflib.get_close_matches(name, sorted(known), n=most, cutoff=0.6)


class AmalgamError(Exception):
    """Anything this service refuses or fails at, with a stable code."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong inside the service"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, errors: Sequence[FieldProblem] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.detail, self.errors))

    def to_json(self) -> dict[str, object]:
        """Return the stored form of the problem: code, title, detail, retryable and field errors, without a status."""
        document: dict[str, object] = {
            "code": self.code,
            "title": self.title,
            "detail": self.detail,
            "retryable": self.retryable,
        }
        if self.errors:
            document["errors"] = [problem.to_json() for problem in self.errors]
        return document


def _rebuild(kind: type[AmalgamError], detail: str, errors: Sequence[FieldProblem]) -> AmalgamError:
    return kind(detail, errors=errors)


def all_errors() -> list[type[AmalgamError]]:
    """Return every class of the tree, sorted by code; docs/errors.md and the OpenAPI document are made from it."""
    found: dict[str, type[AmalgamError]] = {}
    pending: list[type[AmalgamError]] = [AmalgamError]
    while pending:
        kind = pending.pop()
        if "code" in vars(kind):
            found[kind.code] = kind
        pending.extend(kind.__subclasses__())
    return [found[code] for code in sorted(found)]


def from_json(document: Mapping[str, object]) -> AmalgamError:
    """Return the error that a stored problem was made from (`to_json`); an unknown code gives the root class."""
    kinds = {kind.code: kind for kind in all_errors()}
    kind = kinds.get(str(document.get("code")), AmalgamError)
    stored = document.get("errors")
    faults = [
        FieldProblem(str(fault["pointer"]), str(fault["message"]), fault.get("did_you_mean"))
        for fault in (stored if isinstance(stored, list) else [])
    ]
    return kind(str(document.get("detail", "")), errors=faults)


# --- the request itself -------------------------------------------------------------------------------------------


class BadRequest(AmalgamError):
    """The request cannot be read."""

    code = "malformed_request"
    title = "The request cannot be read"


class BadCursor(BadRequest):
    """A list cursor that this service did not give out."""

    code = "bad_cursor"
    title = "The cursor is not one of ours"


class NotFound(AmalgamError):
    """The path names nothing we hold."""

    code = "not_found"
    title = "Not found"


class MethodNotFound(NotFound):
    """No merge method of that name in the catalog."""

    code = "method_not_found"
    title = "No merge method has this name"


class EvaluatorNotFound(NotFound):
    """No evaluator of that name in the catalog."""

    code = "evaluator_not_found"
    title = "No evaluator has this name"


class UriNotFound(NotFound):
    """The URI is allowed, but nothing lies there."""

    code = "uri_not_found"
    title = "Nothing lies at this URI"


class MethodNotAllowed(AmalgamError):
    """The path exists, the verb does not."""

    code = "method_not_allowed"
    title = "This path does not answer this verb"


class NotAcceptable(AmalgamError):
    """No representation that the caller accepts."""

    code = "not_acceptable"
    title = "None of the accepted media types can be served"


class UnsupportedMediaType(AmalgamError):
    """A body in a media type that this path does not read."""

    code = "unsupported_media_type"
    title = "The body's media type is not supported here"


class TooLarge(AmalgamError):
    """A body beyond its limit."""

    code = "body_too_large"
    title = "The body is too large"


class RangeNotSatisfiable(AmalgamError):
    """A byte range outside the file."""

    code = "range_not_satisfiable"
    title = "The byte range lies outside the file"


class PreconditionFailed(AmalgamError):
    """`If-Match` names a revision that is not the current one."""

    code = "etag_mismatch"
    title = "The resource has changed since it was read"


class PreconditionRequired(AmalgamError):
    """This change must name the revision it is based on."""

    code = "precondition_required"
    title = "Say which revision the change is based on"


# --- conflicts with state -----------------------------------------------------------------------------------------


class Conflict(AmalgamError):
    """The request disagrees with the state of what it names."""

    code = "conflict"
    title = "The request conflicts with the current state"


class IdempotencyKeyReused(Conflict):
    """The same Idempotency-Key with another body or path."""

    code = "idempotency_key_reused"
    title = "This Idempotency-Key was used for another request"


class CheckpointNotReady(Conflict):
    """A checkpoint that is still importing, or invalid."""

    code = "checkpoint_not_ready"
    title = "The checkpoint is not ready"


class ResourceInUse(Conflict):
    """A deletion of something that a job or an artifact still needs."""

    code = "resource_in_use"
    title = "Something still needs this"


class JobIsFinal(Conflict):
    """A job in a final state never changes."""

    code = "job_is_final"
    title = "The job has already ended"


class JobNotFinal(Conflict):
    """Only a job that ended can be retried."""

    code = "job_not_final"
    title = "The job has not ended yet"


class NameTaken(Conflict):
    """A unique name is held by other content."""

    code = "name_taken"
    title = "The name is taken by other content"


class UploadIncomplete(Conflict):
    """An upload that is completed before its files are there."""

    code = "upload_incomplete"
    title = "The upload is not complete"


class UploadClosed(Conflict):
    """An upload that was completed or has expired."""

    code = "upload_closed"
    title = "The upload is closed"


class ArtifactGone(Conflict):
    """The record is there, its bytes were deleted."""

    code = "artifact_gone"
    title = "The artifact's bytes are gone"


# --- well-formed but invalid --------------------------------------------------------------------------------------


class Invalid(AmalgamError):
    """Well-formed, but the content does not hold."""

    code = "validation_failed"
    title = "The request is not valid"


class UnknownMethod(Invalid):
    """A recipe that names no method of the catalog."""

    code = "unknown_method"
    title = "No merge method has this name"


class UnknownTaskKind(Invalid):
    """A task of a kind that no evaluator measures."""

    code = "unknown_task_kind"
    title = "No evaluator measures tasks of this kind"


class UnknownTechnique(Invalid):
    """A fine-tuning request that names no technique of the catalog."""

    code = "unknown_technique"
    title = "No fine-tuning technique has this name"


class ModulesNotFoldable(Invalid):
    """A task of a multitask artifact whose patch holds surgery modules: no dense checkpoint computes what they do."""

    code = "modules_not_foldable"
    title = "The task's model is more than a dense checkpoint can hold"


class UnknownAnalysis(Invalid):
    """An analysis request that names no kind of the catalog."""

    code = "unknown_analysis"
    title = "No analysis is of this kind"


class InvalidParameters(Invalid):
    """Unknown, missing or out-of-range parameters of a method."""

    code = "invalid_parameters"
    title = "The method's parameters are not valid"


class UnknownCheckpoint(Invalid):
    """A body names checkpoints that do not exist; all of them are named."""

    code = "checkpoint_not_found"
    title = "The request names checkpoints that do not exist"


class UnknownTask(Invalid):
    """A body names tasks that do not exist; all of them are named."""

    code = "task_not_found"
    title = "The request names tasks that do not exist"


class IncompatibleCheckpoints(Invalid):
    """Checkpoints whose tensors do not match."""

    code = "incompatible_checkpoints"
    title = "The checkpoints do not have the same tensors"


class UriNotAllowed(Invalid):
    """A URI whose scheme, form or place is not allowed."""

    code = "uri_not_allowed"
    title = "This URI is not allowed"


class UnsafeFormat(Invalid):
    """Pickled weights: reading them runs code."""

    code = "unsafe_format"
    title = "Pickle files are refused because reading them can run code"


class DigestMismatch(Invalid):
    """The bytes received are not those that were announced."""

    code = "digest_mismatch"
    title = "The bytes do not have the digest that was announced"


class UnknownBaseModel(Invalid):
    """No base model can be found for a head or a comparison."""

    code = "base_model_unknown"
    title = "The base model cannot be determined"


class InvalidDataset(Invalid):
    """A task's data file that cannot be read as described."""

    code = "invalid_dataset"
    title = "The task's data cannot be read as described"


class CheckpointInvalid(Invalid):
    """What an import finds wrong in the files themselves."""

    code = "invalid_checkpoint"
    title = "The checkpoint's files are not valid"


class InvalidHeader(CheckpointInvalid):
    """A safetensors header that breaks the format or its limits; the tensor is named."""

    code = "invalid_header"
    title = "The safetensors header is not valid"


class MissingWeights(CheckpointInvalid):
    """A folder without safetensors weights, or an index that names files which are not there."""

    code = "missing_weights"
    title = "The weights are not all there"


class AdapterUnsupported(CheckpointInvalid):
    """An adapter that is no low-rank sum on its base's weights; the config's field is named, with the way out."""

    code = "adapter_unsupported"
    title = "This kind of adapter is not supported"


# --- what we stand on ---------------------------------------------------------------------------------------------


class OutOfDisk(AmalgamError):
    """Not enough room for what the plan writes."""

    code = "insufficient_storage"
    title = "There is not enough disk space"


class Unavailable(AmalgamError):
    """The database or the store is away."""

    code = "unavailable"
    title = "The service cannot reach what it needs"
    retryable = True


# --- what ends an attempt of a job --------------------------------------------------------------------------------


class JobError(AmalgamError):
    """An attempt of a job failed."""

    code = "job_failed"
    title = "The job failed"


class WorkerLost(JobError):
    """The worker died, or its job process was killed from outside."""

    code = "worker_lost"
    title = "The worker running the job was lost"
    retryable = True


class OutOfMemory(JobError):
    """The job process asked for more memory than there is."""

    code = "out_of_memory"
    title = "The job ran out of memory"


class JobTimedOut(JobError):
    """The job ran longer than its time limit."""

    code = "timeout"
    title = "The job ran longer than its time limit"


class InputChanged(JobError):
    """A referenced file is no longer the one that was registered."""

    code = "input_changed"
    title = "An input changed since it was registered"


class NotFinite(JobError):
    """NaN or infinity where a number must stand; the tensor is named."""

    code = "not_finite"
    title = "A weight is NaN or infinite"


class ModelNotRunnable(JobError):
    """A checkpoint whose files do not make a model that can be run; what is missing is named."""

    code = "model_not_runnable"
    title = "The checkpoint cannot be run as a model"


class HeadMismatch(JobError):
    """A head that does not fit the model or the task's classes."""

    code = "head_mismatch"
    title = "The head does not fit the model or the task"


class JobInternal(JobError):
    """A fault of ours inside the job process; the traceback is in the worker's log."""

    code = "job_internal"
    title = "The job failed for a reason of ours"
    retryable = True
