"""A tiny BERT, models near it, a task for each, and merges that learn: as a job process is given them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertModel

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.jobs import Progress
from app.domain.recipes import PinnedStep, PinnedTask, Recipe, RecipeData, RecipeModel
from app.domain.tasks import LabelPromptsHead, LocalTask
from app.domain.work import CheckpointOutcome, LearningTask, MergeWork
from tests.workers import tiny_bert
from tests.workers.files import pin
from workers.runner import WorkOrder, perform

PROMPTS = (("red green", "cat dog"), ("the is", "runs a"))


@dataclass(frozen=True)
class World:
    """What can be merged, and on what can be learned: one task per model."""

    base: LocalCheckpoint
    models: tuple[LocalCheckpoint, ...]
    tasks: tuple[LocalTask, ...]

    def work(self, output: Path, parameters: dict[str, Any], **changes: Any) -> MergeWork:
        """Return a work order; `changes` go into the recipe. An output folder is made."""
        output.mkdir(parents=True)
        transforms = changes.pop("transforms", ())
        card, effective = load_catalog().check(
            "adamerging", parameters, has_base_model=True, weights=[1.0] * len(self.models)
        )
        learning = tuple(LearningTask(task=task, head_base_model=self.base) for task in self.tasks)
        recipe = Recipe(
            method=card.name,
            method_version=card.version,
            base_model=pin(self.base),
            models=tuple(RecipeModel(**pin(model).model_dump()) for model in self.models),
            parameters=effective,
            shard_bytes=1 << 40,
            transforms=tuple(_pin_step(name) for name in transforms),
            data=RecipeData(
                **{
                    "split": "validation",
                    "tasks": tuple(PinnedTask(digest=task.spec.digest) for task in self.tasks),
                    **changes,
                }
            ),
        )
        if not card.learns(effective):
            recipe, learning = recipe.model_copy(update={"data": None}), ()
        return MergeWork(recipe=recipe, base_model=self.base, models=self.models, learning=learning, output=output)

    def merge(self, output: Path, parameters: dict[str, Any], **changes: Any) -> CheckpointOutcome:
        """Run a merge as a job process does."""
        return run(self.work(output, parameters, **changes))


def run(work: MergeWork, reports: list[Progress] | None = None) -> CheckpointOutcome:
    """Do the work; progress is added to `reports`."""
    outcome = perform(WorkOrder(work=work), (reports if reports is not None else []).append)
    assert isinstance(outcome, CheckpointOutcome)
    return outcome


def make_world(folder: Path, n_models: int = 2) -> World:
    """Write a world; its models differ from the base in every weight but the embeddings."""
    base = tiny_bert.local(tiny_bert.make_encoder(folder / "base"))
    models = tuple(_near(base, folder / f"model-{index}", seed=index + 1) for index in range(n_models))
    tasks = tuple(
        tiny_bert.make_task(
            folder / f"task-{index}",
            name=f"task-{index}",
            head=LabelPromptsHead(kind="label_prompts", prompts=prompts),
            preprocessing={"max_tokens": 16},
        ).model_copy(update={"id": f"task_{index}"})
        for index, prompts in zip(range(n_models), PROMPTS, strict=True)
    )
    return World(base, models, tasks)


def shuffled(world: World, order: Sequence[int]) -> World:
    """Return the world with its models and their tasks in another order."""
    return World(world.base, tuple(world.models[at] for at in order), tuple(world.tasks[at] for at in order))


def _near(base: LocalCheckpoint, folder: Path, *, seed: int) -> LocalCheckpoint:
    generator = torch.Generator().manual_seed(seed)
    model = BertModel.from_pretrained(base.path)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "embeddings" not in name:
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(folder)
    tiny_bert.make_tokenizer().save_pretrained(folder)
    return tiny_bert.local(folder)


def _pin_step(name: str) -> PinnedStep:
    card, parameters = load_catalog().check_step("transforms", name, {}, pointer="")
    return PinnedStep(name=card.name, version=card.version, parameters=parameters)
