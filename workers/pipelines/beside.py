"""The files that a merge writes beside the weights while it runs: a multitask artifact's patches, a result's sums."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.domain.checkpoints import LocalCheckpoint
from app.domain.plans import MergePlan, PlannedTensor
from app.domain.recipes import Recipe
from app.domain.sums import keeps_sums
from workers.checkpoints.sums_file import SumsWriter
from workers.contract import MergeMethod
from workers.learning_contract import HasModules
from workers.pipelines.merge_steps import Merger, Produced, Step
from workers.pipelines.patching import PatchesWritten, TaskPatches
from workers.surgery import Modules


@dataclass(frozen=True)
class FilesBeside:
    """The writers of what lies beside the weights."""

    patches: TaskPatches | None
    sums: SumsWriter | None

    def place(self, step: Step, made: Produced) -> Produced:
        """Write what has its place already, from any thread; return what is left to be written in order."""
        if self.patches is None:
            return made
        return replace(made, patches=self.patches.place(step.target, step.offset, made.patches))

    def write(self, target: PlannedTensor, made: Produced) -> None:
        """Take what a step gave beside its bytes."""
        if self.patches is not None:
            self.patches.write(target, made.patches)
        if self.sums is not None:
            self.sums.write(target.name, made.sums)

    def finish(self, plan: MergePlan, merger: Merger, digest: str) -> PatchesWritten:
        """Write the files. digest: of the weights."""
        inputs = merger.inputs
        if self.patches is None:
            return PatchesWritten() if self.sums is None else PatchesWritten(entries=(self.sums.finish(),))
        copied = [tensor for tensor in plan.tensors if tensor.copied_because is not None]
        models = list(zip(inputs.models, inputs.found, strict=True))
        self.patches.write_scales(merger.program.scales)
        self.patches.write_copied(copied, (inputs.reference, inputs.stored), models)
        self.patches.write_modules(_modules_in(merger.program.learned))
        return self.patches.finish(digest)

    def abandon(self) -> None:
        """Remove what was written."""
        for writer in (self.patches, self.sums):
            if writer is not None:
                writer.abandon()


def _modules_in(learned: object) -> Sequence[Modules]:
    return learned.of_tasks if isinstance(learned, HasModules) else ()


def open_beside(
    plan: MergePlan, method: MergeMethod, recipe: Recipe, output: Path, onto: LocalCheckpoint | None
) -> FilesBeside:
    """Return the writers for a recipe's result. onto: the result that its models are added to."""
    card = method.card
    has_patches, over_base = method.patch is not None, plan.tensors if card.patch_codec == "mask" else None
    return FilesBeside(
        TaskPatches(recipe, output, over_base=over_base, onto=onto) if has_patches else None,
        SumsWriter(recipe, output) if keeps_sums(card, recipe) else None,
    )
