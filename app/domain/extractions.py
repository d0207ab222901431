"""What becomes of each tensor of a dense model that is made into an adapter: a low-rank update, or a whole tensor.

Decided from headers. PEFT adapts modules: matrices and kernels called `weight`; embeddings, norms, biases and what
stands alone are kept whole, as it does with `modules_to_save`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from app.domain.adapters import Kind
from app.domain.checkpoints import Manifest, TensorSpec
from app.domain.errors import FieldProblem, Invalid
from app.domain.merge_sets import find_merge_set
from app.domain.recipes import Recipe
from app.domain.tensor_parameters import TensorGroup, group_tensors

WEIGHT = ".weight"
EMBEDDINGS = ("wte", "wpe", "shared")  # modules that embed, beside those with "embed" in their name
TURNED_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # they store [in, out] (Conv1D) in:
TURNED_MODULES = ("c_attn", "c_proj", "c_fc", "q_attn")


@dataclass(frozen=True)
class ExtractedModule:
    """A tensor that becomes a low-rank update."""

    tensor: TensorSpec  # the base's
    kind: Kind
    is_transposed: bool

    @property
    def module(self) -> str:
        """The path of its module."""
        return self.tensor.name.removesuffix(WEIGHT)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Columns of the update, in PEFT's orientation; a kernel's are [in, *kernel]."""
        return self.tensor.shape[:1] if self.is_transposed else self.tensor.shape[1:]

    @property
    def n_out(self) -> int:
        """Rows of the update."""
        return self.tensor.shape[1] if self.is_transposed else self.tensor.shape[0]

    @property
    def n_in(self) -> int:
        """Columns of the update."""
        return prod(self.in_shape)


@dataclass(frozen=True)
class Extraction:
    """What an extraction reads and writes, at most: what did not change is left out of the result."""

    modules: tuple[ExtractedModule, ...]
    full: tuple[TensorSpec, ...]  # the base's
    skipped: tuple[str, ...]  # names of tensors that stay the base's, whatever the model has
    groups: tuple[TensorGroup, ...]  # of all of these, by their parameters
    warnings: tuple[str, ...]


def find_extraction(recipe: Recipe, base: Manifest, models: Sequence[Manifest]) -> Extraction:
    """Return what becomes of each tensor, by the parameters `embeddings` and `vectors`.

    Raises: IncompatibleCheckpoints, Invalid: as a merge of these models; Invalid where no matrix is among them.
    """
    merge_set = find_merge_set(recipe, base, models)
    groups = group_tensors(recipe, list(merge_set.merged))
    parameters = {name: group.parameters for group in groups for name in group.names}
    modules: list[ExtractedModule] = []
    full: list[TensorSpec] = []
    skipped: list[str] = []
    for name, tensor in merge_set.merged.items():
        kind = _kind_of(tensor)
        choice = "lora" if kind in ("linear", "conv") else "modules_to_save"
        if kind == "embedding":
            choice = str(parameters[name].get("embeddings", choice))
        elif kind is None:
            choice = str(parameters[name].get("vectors", choice))
        if choice == "lora" and kind is not None:
            modules.append(ExtractedModule(tensor, kind, _is_transposed(tensor, kind, base.model_type)))
        elif choice == "skip":
            skipped.append(name)
        else:
            full.append(tensor)
    if not modules:
        raise Invalid(
            f"/exclude: found no matrix or kernel among the {len(merge_set.merged)} tensors that are left, expected at "
            "least one whose change becomes a low-rank update; include one, or let embeddings be 'lora'.",
            errors=[FieldProblem("/exclude", "nothing is left that becomes a low-rank update")],
        )
    warnings = _warn(base, [tensor.name for tensor in full])
    return Extraction(tuple(modules), tuple(full), tuple(skipped), groups, warnings)


def _kind_of(tensor: TensorSpec) -> Kind | None:
    """Return what kind of module a tensor is the weight of; None for what PEFT does not adapt."""
    if not tensor.name.endswith(WEIGHT) or not 2 <= len(tensor.shape) <= 5 or tensor.n_elements == 0:
        return None
    if len(tensor.shape) > 2:
        return "conv"
    last = tensor.name.removesuffix(WEIGHT).rpartition(".")[2]
    return "embedding" if "embed" in last or last in EMBEDDINGS else "linear"


def _is_transposed(tensor: TensorSpec, kind: Kind, model_type: str | None) -> bool:
    if kind == "embedding":
        return True
    last = tensor.name.removesuffix(WEIGHT).rpartition(".")[2]
    return kind == "linear" and model_type in TURNED_TYPES and last in TURNED_MODULES


def _warn(base: Manifest, full: Sequence[str]) -> tuple[str, ...]:
    tied = [group for group in base.tied if set(group) & set(full)]
    return tuple(
        f"The base model ties {', '.join(group)}; PEFT unties what it keeps whole, so the adapter changes {group[0]} "
        f"alone."
        for group in tied
    )
