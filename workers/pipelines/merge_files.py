"""What a merge writes: the weight files, then what lies beside them, and the manifest of it all."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from app.domain.checkpoints import CheckpointKind, FileEntry, LocalCheckpoint, Manifest, digest_weights
from app.domain.plans import MergePlan, PlannedTensor
from app.domain.recipes import Recipe
from workers.checkpoints import config, parallel
from workers.checkpoints.companions import copy_companions, write_file, write_index
from workers.checkpoints.layer_config import read_configs, with_layers
from workers.checkpoints.writer import WeightsWriter
from workers.contract import MergeMethod
from workers.pipelines.beside import FilesBeside
from workers.pipelines.merge_steps import Merger, Produced, Step, cut_steps, fuse, produce
from workers.pipelines.model_card import write_model_card
from workers.pipelines.patching import PatchesWritten

OnWritten = Callable[[str, int], None]


def ignore(_path: str, _n_bytes: int) -> None:
    """Tell nobody how far a file is written."""


@dataclass(frozen=True)
class WrittenWeights:
    """The weight files, and what lies beside them: patches, or sums."""

    entries: tuple[FileEntry, ...]
    blake3_of: Mapping[str, str]  # tensor -> of its bytes
    differing: Sequence[str]  # integer tensors that differ between the models, where one had to be taken
    beside: PatchesWritten = field(default_factory=PatchesWritten)


def write_weights(
    plan: MergePlan, merger: Merger, output: Path, beside: FilesBeside, on_written: OnWritten = ignore
) -> WrittenWeights:
    """Write every step in the order of offsets, then the patches or sums; `on_written` as WeightsWriter's."""
    threads = merger.source.threads
    writer = WeightsWriter(plan, output, on_written, by_several=threads > 1)
    differing: list[str] = []
    try:
        if threads > 1 and not merger.patched and all(_is_light(target, merger) for target in plan.tensors):
            threads += parallel.WAITING
        steps = (step for target in plan.tensors for step in cut_steps(target, merger))
        produced = parallel.map_in_order(
            lambda step: _produce_and_place(step, merger, writer, beside), steps, threads=threads
        )
        with closing(produced):  # no thread writes any more when it is left
            for step, made in produced:
                writer.digest(step.target, made.content)
                beside.write(step.target, made)
                if made.block is not None:
                    merger.blocks.take_back(made.block)
                if made.differs and not merger.patched and step.target.name not in differing:
                    differing.append(step.target.name)
        entries, blake3_of = writer.finish()
        files = beside.finish(plan, merger, _digest(plan, blake3_of))
    except BaseException:
        writer.abandon()
        beside.abandon()
        raise
    return WrittenWeights(tuple(entries), blake3_of, differing, files)


def complete(  # noqa: PLR0913 all that the card tells
    plan: MergePlan,
    method: MergeMethod,
    recipe: Recipe,
    inputs: tuple[LocalCheckpoint, Sequence[LocalCheckpoint]],
    written: WrittenWeights,
    learned: Sequence[FileEntry],
    output: Path,
) -> tuple[Manifest, list[str]]:
    """Write the files beside the weights; return the manifest of all, and warnings.

    inputs: the reference, and the models; learned: files that a learner has written.
    """
    manifest = _manifest(plan, inputs[0], written)
    companions, more = _write_companions(plan, method, recipe, inputs, manifest, output)
    names = [tensor.name for tensor in manifest.tensors]
    completed = manifest.model_copy(
        update={
            "files": tuple(sorted((*manifest.files, *companions, *learned), key=lambda entry: entry.path)),
            "tied": config.find_tied(config.read_config(output), names, written.blake3_of),
        }
    )
    differing = [
        f"Integer tensor {name} differs between the inputs; the reference's values were kept."
        for name in written.differing
    ]
    return completed, [*plan.warnings, *differing, *written.beside.warnings, *more]


def _is_light(target: PlannedTensor, merger: Merger) -> bool:
    """Tell whether a tensor is empty, copied, or merged by a kernel, and so takes little memory."""
    return target.begin == target.end or target.copied_because is not None or fuse(target, merger) is not None


def _produce_and_place(step: Step, merger: Merger, writer: WeightsWriter, beside: FilesBeside) -> tuple[Step, Produced]:
    made = produce(step, merger)
    writer.place(step.target, step.offset, made.content)
    return step, beside.place(step, made)


def _digest(plan: MergePlan, blake3_of: Mapping[str, str]) -> str:
    return digest_weights([tensor.spec for tensor in plan.tensors], dict(blake3_of))


def _write_companions(  # noqa: PLR0913 all that the card tells
    plan: MergePlan,
    method: MergeMethod,
    recipe: Recipe,
    inputs: tuple[LocalCheckpoint, Sequence[LocalCheckpoint]],
    manifest: Manifest,
    output: Path,
) -> tuple[list[FileEntry], list[str]]:
    """Write the files beside the weights; return them, and warnings."""
    reference, models = inputs
    warnings: list[str] = []

    def change_config(content: bytes) -> bytes:
        if not plan.layers:
            return content
        changed, found = with_layers(content, plan.layers, plan.n_layers, read_configs(models))
        warnings.extend(found)
        return changed

    entries = list(copy_companions(reference, output, dtype=recipe.output_dtype, change_config=change_config))
    document = json.dumps(recipe.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    entries.append(write_file(output, "recipe.json", document.encode() + b"\n"))
    entries.append(write_file(output, "README.md", write_model_card(recipe, method.card, plan, manifest).encode()))
    entries += write_index(plan, output)
    return entries, warnings


def _manifest(plan: MergePlan, reference: LocalCheckpoint, written: WrittenWeights) -> Manifest:
    """Return the manifest as far as the weights decide it."""
    return Manifest(
        kind=CheckpointKind.MULTITASK if written.beside.patches else CheckpointKind.DENSE,
        files=(*written.entries, *written.beside.entries),
        tensors=tuple(sorted((tensor.spec for tensor in plan.tensors), key=lambda tensor: tensor.name)),
        weights_digest=_digest(plan, written.blake3_of),
        architecture=reference.manifest.architecture,
        model_type=reference.manifest.model_type,
        vocab_size=reference.manifest.vocab_size,
        patches=written.beside.patches,
        patch_base=written.beside.base_file,
    )
