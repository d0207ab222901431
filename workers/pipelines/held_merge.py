"""Merges whose results stay in memory: the same steps as a merge into files, and so the same bytes.

For what is measured once and thrown away. Several merges of the same inputs read them once, together; statistics that
an earlier one has collected are taken from the shelf.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from app.domain.adapter_sets import writes_adapter
from app.domain.catalog import MethodCard
from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import NotFinite
from app.domain.jobs import Progress
from app.domain.plans import MergePlan, PlannedTensor, piece_elements
from app.domain.recipes import Recipe
from workers.checkpoints import parallel
from workers.checkpoints.held_source import HELD_BYTES, HeldSource
from workers.checkpoints.memory import keep_freed_memory
from workers.checkpoints.reader import TORCH_DTYPES
from workers.checkpoints.source import CheckpointSource
from workers.contract import RecipeCode
from workers.pipelines import program
from workers.pipelines.merge import count_threads, open_inputs, open_transport, total_bytes
from workers.pipelines.merge_steps import Merger, Produced, Step, cut_steps, produce, split_step
from workers.pipelines.program import MergeProgram
from workers.pipelines.progress import ProgressMeter
from workers.pipelines.shared_passes import SharedPasses
from workers.statistics.kept import Shelf, keep_statistics
from workers.transport import HOST

HeldTensors = dict[str, Tensor]  # name -> [*shape], in the dtypes of the plan
MERGED_AT_ONCE = 16  # points: more would spare little of what is read, and a lost worker would lose more
DTYPES = TORCH_DTYPES | {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip


@dataclass(frozen=True)
class MergeSet:
    """What every merge of a sweep has in common."""

    plan: MergePlan
    base: LocalCheckpoint | None
    models: Sequence[LocalCheckpoint]
    device: str
    threads: int | None


def can_hold(recipe: Recipe, card: MethodCard, plan: MergePlan, *, room_bytes: int) -> bool:
    """Tell whether the result is one dense model that fits into memory, all of its tensors of a dtype that torch has.

    A method that learns, or takes what it learned from earlier results, runs models on tasks: it is merged into files.
    Twice: as the merge writes it, and in float32 as it is run.
    """
    is_dense = card.produces == "dense" and not writes_adapter(recipe, card)
    is_plain = recipe.onto is None and not card.copies and not card.learns(recipe.parameters)
    elements = sum(tensor.spec.n_elements for tensor in plan.tensors)
    written = sum(tensor.end - tensor.begin for tensor in plan.tensors)
    has_dtypes = all(tensor.dtype in DTYPES for tensor in plan.tensors)
    return is_dense and is_plain and has_dtypes and written + 4 * elements <= room_bytes


def count_held(plan: MergePlan, *, room_bytes: int, threads: int | None) -> int:
    """Return how many results fit into memory at once, as written, beside one in float32: one at least.

    Where whole tensors are merged, what is held of the inputs takes of the room, too.
    """
    written = sum(tensor.end - tensor.begin for tensor in plan.tensors)
    left = room_bytes - 4 * sum(tensor.spec.n_elements for tensor in plan.tensors)
    if plan.tensor_bytes:
        left -= HELD_BYTES * count_threads(plan, threads)
    return max(1, min(MERGED_AT_ONCE, left // max(1, written)))


def merge_in_memory(merge_set: MergeSet, recipe: Recipe, code: RecipeCode, shelf: Shelf) -> HeldTensors:
    """Return the merged tensors by name, in the dtypes of the plan.

    Raises: NotFinite naming the tensor; InputChanged; Invalid for an override that matches no tensor.
    """
    (made,) = merge_together(merge_set, [(recipe, code)], shelf)
    if isinstance(made, NotFinite):
        raise made
    return made


def merge_together(
    merge_set: MergeSet,
    points: Sequence[tuple[Recipe, RecipeCode]],
    shelf: Shelf,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> list[HeldTensors | NotFinite]:
    """Return what each recipe makes of the same inputs, which are read once for all; or why it makes nothing.

    points: of one plan; they differ in parameters and weights. Raises: as merge_in_memory, but for NotFinite.
    """
    keep_freed_memory()
    plan, (recipe, code) = merge_set.plan, points[0]
    with ExitStack() as stack:
        stack.enter_context(parallel.one_torch_thread())
        inputs = open_inputs(stack, plan, code, base=merge_set.base, models=merge_set.models)
        meter = ProgressMeter(on_progress, total=total_bytes(plan, inputs, plan.n_passes))
        meter.enter("merging points")
        source = (CheckpointSource if len(points) == 1 else HeldSource)(
            base=inputs.base,
            models=inputs.models,
            merged=inputs.merged,
            weights=[model.weight for model in recipe.models],
            piece_elements=piece_elements(len(merge_set.models)),
            threads=count_threads(plan, merge_set.threads),
            nan_policy=recipe.nan_policy,
            on_bytes=meter.advance,
        )
        made = _prepare(merge_set, points, source, shelf)
        meter.expect(total_bytes(plan, inputs))
        silent = ProgressMeter(lambda _: None, total=0)  # what is read for all is counted once
        results = [
            one if isinstance(one, NotFinite) else _begin(plan.tensors, Merger(one, inputs, source, silent))
            for one in made
        ]
        steps = _steps(plan.tensors, [one for one in results if isinstance(one, _Result)])
        for failed in parallel.map_in_order(partial(_place, meter=meter), steps, threads=source.threads):
            for result, error in failed:
                result.error = result.error or error
    return [one if isinstance(one, NotFinite) else one.error or _shape(one.content, plan.tensors) for one in results]


def _prepare(
    merge_set: MergeSet, points: Sequence[tuple[Recipe, RecipeCode]], source: CheckpointSource, shelf: Shelf
) -> list[MergeProgram | NotFinite]:
    """Return the programs of all points, whose statistics are collected in the same passes."""
    uses_device = any(code.uses_device for _, code in points)
    transport = open_transport(merge_set.device) if uses_device else HOST
    passes = SharedPasses(source, shelf)

    def prepare(recipe: Recipe, code: RecipeCode) -> MergeProgram:
        kept = keep_statistics(code, passes, recipe.transforms)
        return program.prepare(recipe, kept, passes.source_of(recipe), transport=transport)

    made: list[MergeProgram | NotFinite] = []
    for outcome in passes.run([partial(prepare, *point) for point in points]):
        if isinstance(outcome, Exception) and not isinstance(outcome, NotFinite):
            raise outcome
        made.append(outcome)
    return made


@dataclass
class _Result:
    """A result while it is made, as bytes; or why it is not."""

    merger: Merger
    content: dict[str, Tensor]  # name -> [bytes] uint8
    error: NotFinite | None = None

    def make(self, step: Step) -> Produced | NotFinite:
        """Return what a step gives, or why it gives nothing."""
        try:
            return produce(step, self.merger)
        except NotFinite as error:
            return error

    def place(self, step: Step, made: Produced) -> None:
        """Take the bytes of a step."""
        if len(made.content):
            run = slice(step.offset, step.offset + len(made.content))
            self.content[step.target.name][run] = torch.frombuffer(made.content, dtype=torch.uint8)
        if made.block is not None:
            self.merger.blocks.take_back(made.block)


Together = Sequence[tuple[_Result, Step]]  # steps that look at the same runs of the inputs


def _steps(planned: Sequence[PlannedTensor], results: Sequence[_Result]) -> Iterator[Together]:
    """Yield the steps of all results, those together that look at the same runs."""
    for target in planned:
        alike: dict[Hashable, list[tuple[_Result, list[Step]]]] = {}
        for result in results:
            if result.error is None:
                steps = list(cut_steps(target, result.merger))
                cut = (steps[0].fusion is None, *(step.offset for step in steps))
                alike.setdefault(cut, []).append((result, steps))
        for group in alike.values():
            for same in zip(*(steps for _, steps in group), strict=True):
                yield [(result, step) for (result, _), step in zip(group, same, strict=True)]


def _place(together: Together, meter: ProgressMeter) -> list[tuple[_Result, NotFinite]]:
    """Take steps run by run, for each result; return what is not finite, and why."""
    failed: dict[int, tuple[_Result, NotFinite]] = {}
    for parts in zip(*(split_step(step) for _, step in together), strict=True):
        made: Produced | NotFinite | None = None
        for at, ((result, _), part) in enumerate(zip(together, parts, strict=True)):
            if result.error is not None or at in failed:
                continue
            made = result.make(part) if part.runs or made is None else made  # what is copied is so for all
            if isinstance(made, NotFinite):
                failed[at] = result, made
            else:
                result.place(part, made)
        meter.advance(parts[0].input_bytes)
    return list(failed.values())


def _begin(planned: Sequence[PlannedTensor], merger: Merger) -> _Result:
    room = {target.name: torch.empty(target.end - target.begin, dtype=torch.uint8) for target in planned}
    return _Result(merger, room)


def _shape(content: Mapping[str, Tensor], planned: Sequence[PlannedTensor]) -> HeldTensors:
    return {target.name: content[target.name].view(DTYPES[target.dtype]).view(target.shape) for target in planned}
