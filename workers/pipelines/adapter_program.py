"""What is computed of adapters that merge into an adapter: each group of modules with equal parameters by itself.

A method of adapters is given a group's modules; a dense method inside (the parameter `merge`, or any method in the
space `factors`) runs over tensors in memory by the same program as over files, on the CPU: they are small.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.adapter_sets import name_factors
from app.domain.errors import IncompatibleCheckpoints
from app.domain.parameters import NestedMethod
from app.domain.recipes import Recipe
from app.domain.tensor_parameters import TensorGroup, group_tensors
from workers.adapter_contract import AdapterCode, AdapterContext, AdapterMethod, Coordinates, ModuleUpdates
from workers.contract import MergeMethod, RecipeCode, Tick, ignore_tick
from workers.learning_contract import Factors, Learn, Learned
from workers.numerics import updates
from workers.patches import LowRank
from workers.pipelines import program
from workers.pipelines.group_reports import join_reports
from workers.pipelines.program import MergeProgram
from workers.pipelines.progress import ProgressMeter
from workers.statistics.views import TensorSource

LearnOnFactors = Callable[[Mapping[str, Factors]], Learn]  # of the factors, by the base's tensors


@dataclass(frozen=True)
class MergedModules:
    """What modules became, and what there is to tell of it."""

    updates: Mapping[str, LowRank]  # by the base's tensors
    groups: tuple[TensorGroup, ...]
    found: Mapping[str, JsonValue] = field(default_factory=dict)  # as MergeProgram.report
    learned: Learned | None = None


def merge_modules(
    code: AdapterCode,
    recipe: Recipe,
    modules: Sequence[ModuleUpdates],
    learn: LearnOnFactors | None = None,
    meter: ProgressMeter | None = None,
) -> MergedModules:
    """Return the result's updates, of an adapter method or of a dense one in a space of factors.

    modules: sorted by name. meter: enters the stage "merging", in which each module counts as its bytes for each time
    that it is worked on.
    Raises: IncompatibleCheckpoints for adapters that the space cannot merge; Invalid for an override that matches none
        of the modules (in the space `factors`: of their factors), or a gradient where no blocks are numbered.
    """
    watch = _Watch(ProgressMeter(lambda _: None, total=0) if meter is None else meter)
    if isinstance(code.method, MergeMethod) and recipe.adapter_space != "concat":
        watch.begin(modules, n_times=1)
        dense = RecipeCode(code.method) if code.dense is None else code.dense
        return _merge_factors(dense, recipe, modules, learn, watch)
    watch.begin(modules, n_times=2 if code.dense is not None and isinstance(code.method, AdapterMethod) else 1)
    groups = group_tensors(recipe, [module.name for module in modules])
    called = {module.name: module for module in modules}
    merged: dict[str, LowRank] = {}
    reports: list[Mapping[str, JsonValue]] = []
    for group in groups:
        made = _GroupMerge(code, _recipe_of(recipe, group), [called[name] for name in group.names], watch)
        merged |= made.merge()
        reports.append(made.found)
    return MergedModules(merged, groups, join_reports(reports))


class _Watch:
    """Counts modules as they are worked on, by the bytes of their factors."""

    def __init__(self, meter: ProgressMeter) -> None:
        self._meter = meter

    def begin(self, modules: Sequence[ModuleUpdates], *, n_times: int) -> None:
        """Say how often the modules are going to be worked on."""
        self._meter.turn_to("merging", left=n_times * sum(map(_size, modules)))

    def count(self, module: ModuleUpdates) -> None:
        """Count a module once."""
        self._meter.advance(_size(module))

    def share(self, modules: Sequence[ModuleUpdates]) -> Tick:
        """Return what takes the fraction of some modules that is done."""
        return self._meter.share(sum(map(_size, modules))).tick


def _size(module: ModuleUpdates) -> int:
    return sum(factor.nbytes for one in module.updates if one is not None for factor in (one.a, one.b))


def _recipe_of(recipe: Recipe, group: TensorGroup) -> Recipe:
    """Return the recipe as it holds for a group of modules."""
    models = tuple(
        model.model_copy(update={"weight": weight}) for model, weight in zip(recipe.models, group.weights, strict=True)
    )
    return recipe.model_copy(update={"parameters": group.parameters, "models": models, "overrides": ()})


@dataclass
class _GroupMerge:
    """The merge of one group's modules."""

    code: AdapterCode
    recipe: Recipe  # as it holds for the group
    modules: Sequence[ModuleUpdates]
    watch: _Watch
    found: Mapping[str, JsonValue] = field(default_factory=dict)  # of the method inside, once it has merged

    def merge(self) -> Mapping[str, LowRank]:
        """Return the group's updates by the base's tensors."""
        method = self.code.method
        if isinstance(method, AdapterMethod):
            parameters = method.parameters.model_validate(self.recipe.parameters)
            return method.merge(self.modules, parameters, self._context())
        coefficients = _coefficients(method, self.recipe)
        if coefficients is None:
            raise TypeError(f"{method.card.name} is no linear combination")
        return {module.name: updates.stack(module, coefficients) for module in self._context().each(self.modules)}

    def _context(self) -> AdapterContext:
        inner = self.code.dense if isinstance(self.code.method, AdapterMethod) else None
        return AdapterContext(
            weights=tuple(model.weight for model in self.recipe.models),
            seed=self.recipe.seed,
            model_keys=tuple(model.weights_digest for model in self.recipe.models),
            merge=self._merge_inside,
            coefficients=None if inner is None else _coefficients(inner.method, _inner_recipe(self.recipe)),
            on_module=self.watch.count,
        )

    def _merge_inside(self, models: Sequence[Coordinates]) -> dict[str, Tensor]:
        if self.code.dense is None:
            raise TypeError(f"{self.recipe.method} names no method to merge with")
        recipe = _inner_recipe(self.recipe)
        tick = self.watch.share(self.modules)
        merged, ready = merge_coordinates(self.code.dense, recipe, models, tick=tick)
        self.found = ready.report()
        return merged


def _coefficients(method: MergeMethod, recipe: Recipe) -> tuple[float, ...] | None:
    if method.coefficients is None:
        return None
    weights = tuple(model.weight for model in recipe.models)
    return tuple(method.coefficients(method.parameters.model_validate(recipe.parameters), weights))


def _inner_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the method that the parameter `merge` names."""
    inner = NestedMethod.model_validate(recipe.parameters["merge"])
    return recipe.model_copy(
        update={"method": inner.method, "method_version": inner.version or 1, "parameters": dict(inner.parameters)}
    )


def merge_coordinates(
    code: RecipeCode,
    recipe: Recipe,
    models: Sequence[Coordinates],
    *,
    learn: Learn | None = None,
    tick: Tick = ignore_tick,
) -> tuple[dict[str, Tensor], MergeProgram]:
    """Merge tensors that lie in memory around a base of zeros; return them, and the program that has done it."""
    zeros = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in models[0].items()}
    source = TensorSource(
        base=zeros if code.uses_base else None,
        models=[{name: tensor.float() for name, tensor in model.items()} for model in models],
        weights=[model.weight for model in recipe.models],
    )
    ready = program.prepare(recipe, code, source, learn=learn)
    total = sum(prod(shape) for _, shape, _ in source.tensors)
    merged: dict[str, Tensor] = {}
    for name, shape, position in source.tensors:
        n_elements = prod(shape)
        part = _part_of(tick, position / max(1, total), n_elements / max(1, total))
        whole = ready.merge(source.read(name, 0, n_elements), part) if n_elements else torch.empty(0)
        merged[name] = whole.view(shape)
        part(1.0)
    return merged, ready


def _part_of(tick: Tick, begin: float, share: float) -> Tick:
    """Return what takes the fraction of a part of the work that begins at a fraction of the whole."""
    return lambda fraction: tick(begin + share * fraction)


def _merge_factors(
    code: RecipeCode,
    recipe: Recipe,
    modules: Sequence[ModuleUpdates],
    learn: LearnOnFactors | None,
    watch: _Watch,
) -> MergedModules:
    """Merge the factors A and B themselves, as if they were a model's tensors."""
    for module in modules:
        _check_alike(module)
    factors = {module.name: _describe_factors(module) for module in modules}
    models: list[dict[str, Tensor]] = [{} for _ in recipe.models]
    for module in modules:
        for model, update in zip(models, module.updates, strict=True):
            if update is not None:
                model[factors[module.name].a] = update.a
                model[factors[module.name].b] = update.b
    on_factors = None if learn is None else learn(factors)
    merged, ready = merge_coordinates(code, recipe, models, learn=on_factors, tick=watch.share(modules))
    updates_of = {name: LowRank(a=merged[of.a], b=merged[of.b] * of.scaling) for name, of in factors.items()}
    return MergedModules(updates_of, tuple(group.tensors for group in ready.groups), ready.report(), ready.learned)


def _describe_factors(module: ModuleUpdates) -> Factors:
    scaling = next(update.scaling for update in module.updates if update is not None)
    return Factors(*name_factors(module.name), scaling, module.is_transposed)


def _check_alike(module: ModuleUpdates) -> None:
    """Refuse updates whose factors do not correspond: of different ranks or scalings, or of which some are missing."""
    facts = {None if update is None else (update.a.shape[0], update.scaling) for update in module.updates}
    if len(facts) > 1:
        found = ", ".join(
            "none" if update is None else f"rank {update.a.shape[0]}, scaling {update.scaling:g}"
            for update in module.updates
        )
        raise IncompatibleCheckpoints(
            f"The adapters' updates of {module.name!r} differ ({found}); in the space 'factors' all must have one rank "
            "and one scaling. Merge in the space 'delta' or 'concat'."
        )
    if any(update is not None and update.a_start is not None for update in module.updates):
        raise IncompatibleCheckpoints(
            f"The adapters' updates of {module.name!r} are linearized; merging their factors as they are would forget "
            "where they began. Use the method linearized_lora, or the space 'delta'."
        )
