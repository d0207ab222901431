"""Digests of recipes and tasks: what changes them and what must not."""

from app.domain.recipes import PinnedCheckpoint, Recipe, RecipeModel
from app.domain.tasks import DataFile, LabelPromptsHead, TaskSpec

PINNED = PinnedCheckpoint(content_digest="1" * 64, weights_digest="2" * 64)


def model(weight: float = 1.0) -> RecipeModel:
    return RecipeModel(content_digest="1" * 64, weights_digest="2" * 64, weight=weight)


def recipe(**changes: object) -> Recipe:
    fields: dict[str, object] = {
        "method": "ties",
        "method_version": 1,
        "base_model": PINNED,
        "models": (model(), model(0.5)),
        "parameters": {"density": 0.2},
        "shard_bytes": 1 << 30,
    }
    return Recipe.model_validate(fields | changes)


def test_equal_recipes_have_equal_digests() -> None:
    assert recipe().digest == recipe().digest


def test_everything_that_decides_bytes_changes_the_digest() -> None:
    changes: list[dict[str, object]] = [
        {"method": "average"},
        {"method_version": 2},
        {"engine_version": 99},
        {"base_model": None},
        {"models": (model(0.5), model())},
        {"parameters": {"density": 0.3}},
        {"seed": 1},
        {"output_dtype": "bfloat16"},
        {"shard_bytes": 1 << 20},
        {"include": ("*.weight",)},
        {"exclude": ("*.bias",)},
        {"nan_policy": "zero"},
        {"tensors": "intersection"},
        {"merge_buffers": False},
    ]
    digests = {recipe(**change).digest for change in changes}
    assert len(digests) == len(changes)
    assert recipe().digest not in digests


def test_a_recipe_survives_json() -> None:
    assert Recipe.model_validate_json(recipe().model_dump_json()) == recipe()


def task(**changes: object) -> TaskSpec:
    fields: dict[str, object] = {
        "name": "tickets",
        "kind": "text-classification",
        "dataset": {"test": DataFile(uri="file:///a", sha256="3" * 64, size_bytes=9)},
        "classes": ("yes", "no"),
        "head": LabelPromptsHead(kind="label_prompts", prompts=("yes", "no")),
    }
    return TaskSpec.model_validate(fields | changes)


def test_a_task_digest_covers_content_not_name_or_place() -> None:
    moved = {"test": DataFile(uri="s3://elsewhere/b", sha256="3" * 64, size_bytes=9)}
    assert task().digest == task(name="other").digest == task(dataset=moved).digest


def test_a_task_digest_sees_data_head_and_preprocessing() -> None:
    other_data = {"test": DataFile(uri="file:///a", sha256="4" * 64, size_bytes=9)}
    other_head = LabelPromptsHead(kind="label_prompts", prompts=("yes", "nope"))
    variants = [task(dataset=other_data), task(head=other_head), task(preprocessing={"max_tokens": 8})]
    assert len({task().digest, *(variant.digest for variant in variants)}) == 4
