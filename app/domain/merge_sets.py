"""Which tensors take part in a merge, and what is to be said about them: globs, differences, policies, warnings."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from app.domain.adapters import as_dense
from app.domain.catalog import MethodCard
from app.domain.checkpoints import (
    MERGEABLE_DTYPES,
    CheckpointKind,
    Compatibility,
    Manifest,
    TensorDifference,
    TensorSpec,
    check_mergeable,
    distinct_tensors,
)
from app.domain.errors import FieldProblem, IncompatibleCheckpoints, Invalid
from app.domain.recipes import Recipe

BUFFER_SUFFIXES = ("running_mean", "running_var")
DOMINANT_SHARE = 0.3
MAX_NAMED = 50

CopyReason = Literal["integer", "excluded", "buffer", "missing", "passthrough"]


@dataclass(frozen=True)
class MergeSet:
    """The tensors of a merge, by the names of the reference model: the base model, else models[0]."""

    has_base: bool
    reference: Manifest
    expected: Mapping[str, TensorSpec]  # the reference's tensors, tied ones once
    found: Sequence[Mapping[str, TensorSpec]]  # each model's tensors under the same names
    copied: Mapping[str, CopyReason]  # name in `expected` -> why it is not merged
    differences: Sequence[TensorDifference]  # that the policy allows

    @property
    def merged(self) -> dict[str, TensorSpec]:
        """The reference's tensors that are merged, tied ones once, sorted by name."""
        return {name: self.expected[name] for name in sorted(self.expected) if name not in self.copied}

    def source(self, name: str) -> str:
        """Return the name under which `expected` holds a tensor: another one for a further copy of a tied tensor."""
        if name in self.expected:
            return name
        return next(group[0] for group in self.reference.tied if name in group)


def find_merge_set(recipe: Recipe, base: Manifest | None, models: Sequence[Manifest]) -> MergeSet:
    """Return what takes part in the merge.

    Raises: IncompatibleCheckpoints naming the tensors that differ or have a dtype that cannot be merged; Invalid for a
        glob that matches nothing, or when nothing is left to merge.
    """
    reference = base or models[0]
    models = view_adapters(base, models)
    selected = _select(recipe, reference, models)
    differences = _check_differences(recipe, check_mergeable(reference, models).differences, selected)
    missing = {difference.name for difference in differences if difference.problem == "missing"}
    expected, found = distinct_tensors(reference, models)
    reasons = {name: _copy_reason(tensor, selected, missing, recipe) for name, tensor in expected.items()}
    copied = {name: reason for name, reason in reasons.items() if reason is not None}
    merge_set = MergeSet(base is not None, reference, expected, found, copied, differences)
    if not merge_set.merged:
        raise Invalid(
            f"{recipe.method}: nothing is left to merge among {len(expected)} tensors; loosen include and exclude.",
            errors=[FieldProblem("/include", "selects no tensor that can be merged")],
        )
    _refuse_unmergeable(merge_set)
    return merge_set


def view_adapters(base: Manifest | None, models: Sequence[Manifest]) -> list[Manifest]:
    """Return the models with each adapter as the dense model that it makes of the base.

    Raises: IncompatibleCheckpoints naming the model, for an adapter without a base or one that does not fit it.
    """
    return [_view_adapter(base, model, index) for index, model in enumerate(models)]


def compare_manifests(base: Manifest | None, models: Sequence[Manifest]) -> Compatibility:
    """Compare models with the base, else with the first of them; an adapter as the dense model it makes of the base."""
    views: list[Manifest] = []
    unfit: list[TensorDifference] = []
    for index, model in enumerate(models):
        try:
            views.append(_view_adapter(base, model, index))
        except IncompatibleCheckpoints as error:
            unfit.append(TensorDifference(name="*", problem="adapter", model=index, found=error.detail))
            views.append(model if base is None else base)
    outcome = check_mergeable(base or views[0], views)
    if not unfit:
        return outcome
    return outcome.model_copy(update={"is_mergeable": False, "differences": (*unfit, *outcome.differences)})


def _view_adapter(base: Manifest | None, model: Manifest, index: int) -> Manifest:
    if model.kind is not CheckpointKind.ADAPTER:
        return model
    if base is None:
        message = f"models[{index}] is an adapter; name the base_model that it lies on"
        raise IncompatibleCheckpoints(f"{message}.", errors=[FieldProblem("/base_model", message)])
    try:
        return as_dense(model, base)
    except Invalid as error:
        fault = FieldProblem(f"/models/{index}", error.detail)
        raise IncompatibleCheckpoints(f"models[{index}]: {error.detail}", errors=[fault]) from None


def _select(recipe: Recipe, reference: Manifest, models: Sequence[Manifest]) -> set[str]:
    """Return the names that include and exclude leave in the merge; of tied names, all or none."""
    names = sorted({tensor.name for manifest in (reference, *models) for tensor in manifest.tensors})
    for field, globs in (("include", recipe.include), ("exclude", recipe.exclude)):
        for index, glob in enumerate(globs):
            if not any(fnmatchcase(name, glob) for name in names):
                _refuse_glob(f"/{field}/{index}", glob, names)
    included = {name for name in names if not recipe.include or _matches(name, recipe.include)}
    excluded = {name for name in names if _matches(name, recipe.exclude)}
    for group in reference.tied:
        included |= set(group) if included & set(group) else set()
        excluded |= set(group) if excluded & set(group) else set()
    return included - excluded


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _refuse_glob(pointer: str, glob: str, names: Sequence[str]) -> None:
    near = difflib.get_close_matches(glob, names, n=3, cutoff=0.4)
    hint = f"; near matches: {', '.join(near)}" if near else f"; the first of {len(names)} names is {names[0]!r}"
    message = f"{glob!r} matches none of the tensors' names{hint}"
    raise Invalid(
        f"A glob must match a tensor: {message}. Correct it or leave it out.",
        errors=[FieldProblem(pointer, message, near[0] if near else None)],
    )


def _check_differences(recipe: Recipe, found: Sequence[TensorDifference], selected: set[str]) -> list[TensorDifference]:
    """Return how the selected tensors differ, as far as the policy allows it.

    Raises: IncompatibleCheckpoints for what it does not allow.
    """
    differences = [difference for difference in found if difference.name in selected and difference.problem != "dtype"]
    allowed = {"missing", "extra"} if recipe.tensors == "intersection" else set()
    blocking = [difference for difference in differences if difference.problem not in allowed]
    if blocking:
        named = [_describe(difference) for difference in blocking[:MAX_NAMED]]
        rest = f" (and {len(blocking) - 1} more)" if len(blocking) > 1 else ""
        raise IncompatibleCheckpoints(
            f"{named[0].message}{rest}. Merge models of one architecture, exclude these tensors, or set tensors to "
            "'intersection' to take missing ones from the base model.",
            errors=named,
        )
    return differences


def _describe(difference: TensorDifference) -> FieldProblem:
    what = {
        "missing": "is missing from this model",
        "extra": "is in this model but not in the one it is compared with",
        "shape": f"has shape {difference.found}, expected {difference.expected}",
    }[difference.problem]
    return FieldProblem(f"/models/{difference.model}", f"models[{difference.model}]: tensor {difference.name!r} {what}")


def _copy_reason(tensor: TensorSpec, selected: set[str], missing: set[str], recipe: Recipe) -> CopyReason | None:
    if tensor.name not in selected:
        return "excluded"
    if tensor.name in missing:
        return "missing"
    if not tensor.dtype.startswith(("F", "BF")):
        return "integer"
    if not recipe.merge_buffers and tensor.name.endswith(BUFFER_SUFFIXES):
        return "buffer"
    return None


def _refuse_unmergeable(merge_set: MergeSet) -> None:
    for name, tensor in merge_set.merged.items():
        for spec in (tensor, *(model[name] for model in merge_set.found)):
            if spec.dtype not in MERGEABLE_DTYPES:
                raise IncompatibleCheckpoints(
                    f"Tensor {name!r} has dtype {spec.dtype}, expected one of {', '.join(sorted(MERGEABLE_DTYPES))}; "
                    "convert the model, or exclude the tensor.",
                    errors=[FieldProblem("/models", f"tensor {name!r} has dtype {spec.dtype}")],
                )


def list_warnings(merge_set: MergeSet, card: MethodCard) -> tuple[str, ...]:
    """Return what a caller should know before the merge: what is not merged, mixed dtypes, one tensor above all."""
    return (
        *_warn_of_copies(merge_set),
        *_warn_of_extra_tensors(merge_set),
        *_warn_of_mixed_dtypes(merge_set),
        *_warn_of_buffers(merge_set),
        *_warn_of_dominance(merge_set, card),
    )


def _warn_of_copies(merge_set: MergeSet) -> list[str]:
    origin = "the base model" if merge_set.has_base else "models[0]"
    warnings: list[str] = []
    for reason, words in (
        ("integer", "hold integers"),
        ("missing", "are missing from a model"),
        ("buffer", "are running statistics"),
    ):
        names = sorted(name for name, why in merge_set.copied.items() if why == reason)
        if names:
            warnings.append(f"Tensors that {words} are copied from {origin}: {_list(names)}.")
    return warnings


def _warn_of_extra_tensors(merge_set: MergeSet) -> list[str]:
    names = sorted({difference.name for difference in merge_set.differences if difference.problem == "extra"})
    return [f"Tensors that only some models have are left out: {_list(names)}."] if names else []


def _warn_of_mixed_dtypes(merge_set: MergeSet) -> list[str]:
    merged = merge_set.merged
    dtypes = {spec.dtype for spec in merged.values()} | {
        model[name].dtype for model in merge_set.found for name in merged
    }
    if len(dtypes) == 1:
        return []
    return [f"The inputs mix dtypes ({', '.join(sorted(dtypes))}); all arithmetic is float32."]


def _warn_of_buffers(merge_set: MergeSet) -> list[str]:
    if not any(name.endswith(BUFFER_SUFFIXES) for name in merge_set.merged):
        return []
    return ["Running statistics of normalization layers are merged; recalibrate them on data afterwards."]


def _warn_of_dominance(merge_set: MergeSet, card: MethodCard) -> list[str]:
    merged = merge_set.merged
    largest = max(merged.values(), key=lambda tensor: (tensor.n_elements, tensor.name))
    share = largest.n_elements / max(1, sum(tensor.n_elements for tensor in merged.values()))
    if not card.statistic_passes or len(merged) == 1 or share <= DOMINANT_SHARE:
        return []
    return [
        f"Tensor {largest.name} holds {share:.0%} of all merged entries and will dominate what is counted over the "
        "whole model; consider excluding it, or counting within each tensor."
    ]


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names) - 5} more)" if len(names) > 5 else "")
