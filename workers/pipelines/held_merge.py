"""A merge whose result stays in memory: the same steps as a merge into files, and so the same bytes.

For what is measured once and thrown away. The inputs are read through the system's cache of files; statistics that
another merge of the same inputs has collected are taken from the shelf.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.adapter_sets import writes_adapter
from app.domain.catalog import MethodCard
from app.domain.checkpoints import LocalCheckpoint
from app.domain.plans import MergePlan, PlannedTensor, piece_elements
from app.domain.recipes import Recipe
from workers.checkpoints import parallel
from workers.checkpoints.memory import keep_freed_memory
from workers.checkpoints.reader import TORCH_DTYPES
from workers.checkpoints.source import CheckpointSource
from workers.contract import RecipeCode
from workers.pipelines import program
from workers.pipelines.merge import count_threads, open_inputs, open_transport
from workers.pipelines.merge_steps import Merger, Step, cut_steps, produce
from workers.pipelines.progress import ProgressMeter
from workers.statistics.kept import Shelf, keep_statistics
from workers.transport import HOST

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


def merge_in_memory(merge_set: MergeSet, recipe: Recipe, code: RecipeCode, shelf: Shelf) -> dict[str, Tensor]:
    """Return the merged tensors by name, in the dtypes of the plan.

    Raises: NotFinite naming the tensor; InputChanged; Invalid for an override that matches no tensor.
    """
    transport = open_transport(merge_set.device) if code.uses_device else HOST
    keep_freed_memory()
    kept = keep_statistics(code, shelf, recipe.transforms)
    plan = merge_set.plan
    with ExitStack() as stack:
        stack.enter_context(parallel.one_torch_thread())
        inputs = open_inputs(stack, plan, code, base=merge_set.base, models=merge_set.models)
        source = CheckpointSource(
            base=inputs.base,
            models=inputs.models,
            merged=inputs.merged,
            weights=[model.weight for model in recipe.models],
            piece_elements=piece_elements(len(merge_set.models)),
            threads=count_threads(plan, merge_set.threads),
            nan_policy=recipe.nan_policy,
        )
        ready = program.prepare(recipe, kept, source, transport=transport)
        return _fill(plan.tensors, Merger(ready, inputs, source, ProgressMeter(lambda _: None, total=0)))


def _fill(planned: Sequence[PlannedTensor], merger: Merger) -> dict[str, Tensor]:
    content = {target.name: torch.empty(target.end - target.begin, dtype=torch.uint8) for target in planned}

    def place(step: Step) -> None:
        made = produce(step, merger)
        if len(made.content):
            run = slice(step.offset, step.offset + len(made.content))
            content[step.target.name][run] = torch.frombuffer(made.content, dtype=torch.uint8)
        if made.block is not None:
            merger.blocks.take_back(made.block)

    steps = (step for target in planned for step in cut_steps(target, merger))
    for _ in parallel.map_in_order(place, steps, threads=merger.source.threads):
        pass
    return _shape(content, planned)


def _shape(content: Mapping[str, Tensor], planned: Sequence[PlannedTensor]) -> dict[str, Tensor]:
    return {target.name: content[target.name].view(DTYPES[target.dtype]).view(target.shape) for target in planned}
