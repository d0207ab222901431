"""Adapters merged as adapters: which modules take part, of which shapes, and what the result's files will hold.

Used where the result is an adapter again: by methods that give one, and by any method in the spaces `factors` and
`concat`. In the space `delta` adapters are dense models (merge_sets.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from app.domain.adapters import PREFIX, Kind, LoraPart, Placed, place
from app.domain.catalog import MethodCard
from app.domain.checkpoints import Manifest, TensorSpec
from app.domain.errors import FieldProblem, IncompatibleCheckpoints, Invalid
from app.domain.recipes import Recipe


@dataclass(frozen=True)
class AdaptedModule:
    """One tensor of the base that adapters lie on, and each adapter's update of it."""

    tensor: TensorSpec  # the base's
    module: str  # path of the module in the first adapter that adapts it
    kind: Kind
    is_transposed: bool
    parts: tuple[LoraPart | None, ...]  # one per adapter; None: it leaves the module as it is

    @property
    def n_out(self) -> int:
        """Rows of the update, in PEFT's orientation."""
        return self._any.n_out

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Columns of the update; a kernel's are [in, *kernel]."""
        return self._any.a.shape[1:]

    @property
    def n_in(self) -> int:
        """Columns of the update; a kernel's positions count."""
        return self._any.n_in

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each adapter's update; 0 where it has none."""
        return tuple(0 if part is None else part.rank for part in self.parts)

    @property
    def _any(self) -> LoraPart:
        return next(part for part in self.parts if part is not None)


def writes_adapter(recipe: Recipe, card: MethodCard) -> bool:
    """Tell whether a recipe's result is an adapter."""
    return card.produces == "adapter" or recipe.adapter_space in ("factors", "concat")


def extracts_adapter(card: MethodCard) -> bool:
    """Tell whether a method makes an adapter of a dense model."""
    return card.produces == "adapter" and card.accepts_dense


def gather(recipe: Recipe, base: Manifest, adapters: Sequence[Manifest]) -> tuple[AdaptedModule, ...]:
    """Return the modules that any of the adapters adapts, by the names of the base's tensors.

    Raises: IncompatibleCheckpoints for an adapter that does not fit the base, or holds whole tensors; Invalid where
        include and exclude leave nothing.
    """
    placed = [_place(adapter, base, index) for index, adapter in enumerate(adapters)]
    stored = {tensor.name: tensor for tensor in base.tensors}
    names = sorted({name for one in placed for name in one})
    kept = [name for name in names if _is_selected(name, recipe)]
    if not kept:
        message = f"include and exclude leave none of the {len(names)} adapted tensors"
        raise Invalid(f"{recipe.method}: {message}.", errors=[FieldProblem("/include", message)])
    return tuple(_gather(stored[name], [one.get(name) for one in placed]) for name in kept)


def name_factors(tensor: str) -> tuple[str, str]:
    """Return what the factors A and B of one of the base's tensors are called where they are merged themselves."""
    stem = tensor.removesuffix(".weight")
    return f"{stem}.lora_A", f"{stem}.lora_B"


def factor_names(module: str, kind: Kind) -> tuple[str, str]:
    """Return the names under which PEFT stores the factors A and B of a module."""
    if kind == "embedding":
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _place(adapter: Manifest, base: Manifest, index: int) -> Mapping[str, Placed]:
    if adapter.adapter is None:
        message = f"models[{index}] is no adapter; its factors cannot be merged. Merge in the space 'delta'"
        raise IncompatibleCheckpoints(f"{message}.", errors=[FieldProblem(f"/models/{index}", message)])
    try:
        placed = place(adapter, base)
    except Invalid as error:
        fault = FieldProblem(f"/models/{index}", error.detail)
        raise IncompatibleCheckpoints(f"models[{index}]: {error.detail}", errors=[fault]) from None
    whole = sorted(name for name, one in placed.items() if one.full is not None)
    if whole:
        message = (
            f"models[{index}] holds {len(whole)} whole tensors beside its factors ({whole[0]!r}, from modules_to_save "
            "or trained biases), which are no low-rank updates. Merge in the space 'delta', which merges them like "
            "weights"
        )
        raise IncompatibleCheckpoints(f"{message}.", errors=[FieldProblem(f"/models/{index}", message)])
    return placed


def _is_selected(name: str, recipe: Recipe) -> bool:
    is_included = not recipe.include or any(fnmatchcase(name, glob) for glob in recipe.include)
    return is_included and not any(fnmatchcase(name, glob) for glob in recipe.exclude)


def _gather(tensor: TensorSpec, placed: Sequence[Placed | None]) -> AdaptedModule:
    parts = tuple(None if one is None else one.lora for one in placed)
    first = next(part for part in parts if part is not None)
    turned = {one.is_transposed for one in placed if one is not None}
    if len(turned) > 1 or {part.a.shape[1:] for part in parts if part is not None} != {first.a.shape[1:]}:
        raise IncompatibleCheckpoints(
            f"The adapters' updates of tensor {tensor.name!r} have different orientations (fan_in_fan_out), expected "
            "one. Correct the adapter_config.json of one of them."
        )
    return AdaptedModule(tensor, first.module, first.kind, turned.pop(), parts)
