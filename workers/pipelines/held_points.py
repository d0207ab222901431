"""The points of a sweep that are measured from memory: as many as fit are merged in one read of the inputs."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from app.domain.catalog import load_catalog
from app.domain.checkpoints import FileEntry, LocalCheckpoint
from app.domain.errors import NotFinite
from app.domain.jobs import Progress
from app.domain.planning import plan_merge
from app.domain.plans import MergePlan
from app.domain.recipes import Recipe
from app.domain.work import MergeWork
from workers.checkpoints.companions import copy_companions
from workers.checkpoints.held import hold
from workers.checkpoints.model import Models
from workers.contract import RecipeCode
from workers.pipelines.held_merge import HeldTensors, MergeSet, can_hold, count_held, merge_together
from workers.statistics.kept import Shelf

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class HeldPoints:
    """Merges a point with those that follow it, and holds each until it was measured."""

    work: MergeWork  # whose recipe is that of some point
    folder: Path  # for what lies beside the weights; it may be made
    load_code: Callable[[Recipe], RecipeCode]
    models: Models  # that run
    threads: int | None
    room_bytes: int
    _shelf: Shelf = field(default_factory=Shelf, init=False)
    _made: dict[str, HeldTensors | NotFinite] = field(default_factory=dict, init=False)  # recipe's digest -> result

    def find_plan(self, recipe: Recipe) -> MergePlan | None:
        """Return how a point is merged in memory; None where its result is no dense model, or too large."""
        catalog, base = load_catalog(), self.work.base_model
        card, beside = catalog.method(recipe.method), catalog.cards_beside(recipe)
        models = [model.manifest for model in self.work.models]
        plan = plan_merge(recipe, None if base is None else base.manifest, models, card, beside)
        return plan if can_hold(recipe, card, plan, room_bytes=self.room_bytes) else None

    @contextmanager
    def merged(
        self, recipe: Recipe, plan: MergePlan, following: Iterable[Recipe], on_progress: OnProgress
    ) -> Iterator[LocalCheckpoint]:
        """Yield a point's merge. following: of the points that will be measured next, in order. Raises: NotFinite."""
        if recipe.digest not in self._made:
            self._merge(recipe, plan, following, on_progress)
        made = self._made.pop(recipe.digest)
        if isinstance(made, NotFinite):
            raise made
        content = recipe.model_dump_json().encode()
        identity = FileEntry(path="recipe.json", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        checkpoint = hold(made, self.folder, self._companions, identity)
        try:
            yield checkpoint
        finally:
            self.models.forget(checkpoint)

    @cached_property
    def _companions(self) -> tuple[FileEntry, ...]:
        self.folder.mkdir()
        reference = self.work.base_model or self.work.models[0]
        return tuple(copy_companions(reference, self.folder, dtype=self.work.recipe.output_dtype))

    def _merge(self, recipe: Recipe, plan: MergePlan, following: Iterable[Recipe], on_progress: OnProgress) -> None:
        """Merge a point and those right behind it that differ in nothing but numbers, as many as fit."""
        n_fitting = count_held(plan, room_bytes=self.room_bytes, threads=self.threads) - len(self._made)
        together = {recipe.digest: (recipe, self.load_code(recipe))}
        others = (one for one in following if one.digest not in together and one.digest not in self._made)
        for other in islice(others, max(0, n_fitting - 1)):
            found, code = self.find_plan(other), self.load_code(other)
            if found is None or (found.tensors, code.uses_base) != (plan.tensors, together[recipe.digest][1].uses_base):
                break
            together[other.digest] = (other, code)
        merge_set = MergeSet(plan, self.work.base_model, self.work.models, str(self.models.device), self.threads)
        self._shelf.begin()
        made = merge_together(merge_set, [*together.values()], self._shelf, on_progress)
        self._made.update(zip(together, made, strict=True))
