"""Write the dense model that an adapter makes of its base, for whatever wants to run it."""

from pathlib import Path

from app.domain.checkpoints import LocalCheckpoint
from app.domain.plans import make_plan
from app.domain.recipes import Recipe, RecipeModel, pin
from workers.contract import RecipeCode
from workers.methods import lora_fuse
from workers.pipelines.merge import merge_checkpoints

SHARD_BYTES = 1 << 53  # one file


def fuse_adapter(adapter: LocalCheckpoint, base: LocalCheckpoint, output: Path) -> LocalCheckpoint:
    """Write the dense model into the folder `output`, which is made, as the method lora_fuse does.

    Raises: IncompatibleCheckpoints for an adapter of another base; NotFinite, InputChanged, OutOfDisk.
    """
    method = lora_fuse.merge
    recipe = Recipe(
        method=method.card.name,
        method_version=method.card.version,
        base_model=pin(base),
        models=(RecipeModel(**pin(adapter).model_dump()),),
        parameters=method.parameters().model_dump(mode="json"),
        shard_bytes=SHARD_BYTES,
        adapter_space="delta",
    )
    plan = make_plan(recipe, base.manifest, [adapter.manifest], method.card)
    output.mkdir(parents=True)
    manifest, _ = merge_checkpoints(
        plan,
        RecipeCode(method),
        recipe=recipe,
        base=base,
        models=[adapter],
        output=output,
        on_progress=lambda _: None,
    )
    return LocalCheckpoint(id=adapter.id, path=output, manifest=manifest)
