"""Surgery, as a job process runs it: what the patches hold, that features come closer, that it repeats to the byte."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.errors import HeadMismatch, ModelNotRunnable, NotFinite
from app.domain.recipes import PinnedTask, Recipe
from app.domain.tasks import LabelPromptsHead, Measurement, OwnHead
from app.domain.work import CheckpointOutcome, EvaluateWork, MergeWork, PatchedTasks
from tests.workers import tiny_bert, tiny_vision
from tests.workers.files import read_tensors
from tests.workers.learning.world import World, run, shuffled
from workers.checkpoints.model import Models
from workers.checkpoints.patch_files import PatchReader
from workers.evaluators import image_classification, perplexity, text_classification
from workers.learning.blocks import BlockOutputs, find_blocks
from workers.model_contract import Subject
from workers.pipelines.evaluate import evaluate
from workers.pipelines.importing import import_checkpoint
from workers.surgery import FEATURES, Modules

QUICK: dict[str, Any] = {"steps": 60, "learning_rate": 0.02, "batch_size": 4, "rank": 3}
BLOCK = "encoder.layer.0"
PLACES = {"surgery": FEATURES, "surgery_v2": BLOCK}
both = pytest.mark.parametrize("method", PLACES)


def merge(world: World, output: Path, method: str, **changes: Any) -> CheckpointOutcome:
    """Merge with labels, so that patches are called like the tasks."""
    return run(labeled(world.work(output, {**QUICK, **changes}, method=method), world))


def labeled(work: MergeWork, world: World) -> MergeWork:
    names = [task.spec.name for task in world.tasks]
    models = [model.model_copy(update={"task": name}) for model, name in zip(work.recipe.models, names, strict=True)]
    return work.model_copy(update={"recipe": work.recipe.model_copy(update={"models": tuple(models)})})


def artifact(outcome: CheckpointOutcome, folder: Path) -> LocalCheckpoint:
    return LocalCheckpoint(id="merged", path=folder, manifest=outcome.manifest)


def modules_of(checkpoint: LocalCheckpoint, index: int) -> Modules:
    return PatchReader(checkpoint, checkpoint.manifest.patches[index].file).modules()


def features(world: World, index: int, checkpoint: LocalCheckpoint, modules: Modules, split: str) -> Tensor:
    subject = Subject(world.tasks[index], checkpoint, world.base, modules)
    opened = text_classification.open_(subject, split, Models())
    assert opened.features is not None
    with torch.no_grad():
        return opened.features(range(len(opened.labels)))


def shared_of(outcome: CheckpointOutcome, folder: Path) -> LocalCheckpoint:
    return LocalCheckpoint(
        id="shared", path=folder, manifest=outcome.manifest.model_copy(update={"kind": CheckpointKind.DENSE})
    )


@both
def test_the_shared_model_is_the_nested_merge_and_each_patch_holds_a_module(
    world: World, method: str, tmp_path: Path
) -> None:
    outcome = merge(world, tmp_path / "out", method)
    plain = world.merge(tmp_path / "plain", {}, method="task_arithmetic")
    assert outcome.manifest.weights_digest == plain.manifest.weights_digest
    assert outcome.manifest.kind is CheckpointKind.MULTITASK
    for index, patch in enumerate(outcome.manifest.patches):
        assert (patch.task, patch.modules, patch.n_values) == (f"task-{index}", (PLACES[method],), 2 * 3 * 8)
        module = modules_of(artifact(outcome, tmp_path / "out"), index)[PLACES[method]]
        assert (module.down.shape, module.up.shape) == ((3, 8), (8, 3))


@both
def test_features_come_closer_to_those_of_the_tasks_own_model(world: World, method: str, tmp_path: Path) -> None:
    outcome = merge(world, tmp_path / "out", method)
    merged = shared_of(outcome, tmp_path / "out")
    for index, model in enumerate(world.models):
        modules = modules_of(artifact(outcome, tmp_path / "out"), index)
        aim = features(world, index, model, {}, "validation")
        before = (features(world, index, merged, {}, "validation") - aim).abs().mean()
        after = (features(world, index, merged, modules, "validation") - aim).abs().mean()
        assert after < 0.8 * before


@both
def test_the_loss_that_is_told_is_the_distance(world: World, method: str, tmp_path: Path) -> None:
    whole = {"batch_size": 6, "steps": 1}  # all examples of the split in one step
    outcome = merge(world, tmp_path / "out", method, **whole)
    merged = shared_of(outcome, tmp_path / "out")
    told: Any = outcome.report["learned"]
    assert told["modules"][1]["task"] == "task-1"
    if method == "surgery":
        aim, found = (features(world, 1, one, {}, "validation") for one in (world.models[1], merged))
    else:
        aim, found = (hidden(world, 1, one) for one in (world.models[1], merged))
    expected = (found - aim).abs().mean().item()
    assert told["modules"][1]["losses"] == [{"step": 1, "loss": pytest.approx(expected, rel=1e-5)}]


def hidden(world: World, index: int, checkpoint: LocalCheckpoint) -> Tensor:
    """Return what the only block gives of all tokens that are no padding, one text at a time."""
    opened = text_classification.open_(Subject(world.tasks[index], checkpoint, world.base), "validation", Models())
    found: list[Tensor] = []
    block = opened.module.get_submodule(BLOCK)
    block.register_forward_hook(lambda _block, _arguments, output: found.append(output))
    with torch.no_grad():
        for example in range(len(opened.labels)):
            opened.logits([example])
    return torch.cat([one[0] for one in found])


@both
def test_the_same_recipe_gives_the_same_bytes_and_each_task_its_own_module(
    world: World, method: str, tmp_path: Path
) -> None:
    first, again = (merge(world, tmp_path / name, method) for name in ("first", "again"))
    assert first.manifest.digest == again.manifest.digest
    turned = merge(shuffled(world, (1, 0)), tmp_path / "turned", method)
    files = [{entry.path: entry.sha256 for entry in outcome.manifest.files} for outcome in (first, turned)]
    for index in range(2):  # the order of the models changes no module
        path = first.manifest.patches[index].file
        assert files[0][path] == files[1][path]
    assert files[0][first.manifest.patches[0].file] != files[0][first.manifest.patches[1].file]


@both
def test_a_downloaded_artifact_is_imported_as_what_it_was(world: World, method: str, tmp_path: Path) -> None:
    outcome = merge(world, tmp_path / "out", method)
    assert import_checkpoint(tmp_path / "out", tiny_bert.ignore) == outcome.manifest


@both
@pytest.mark.parametrize("change", [{"steps": 0}, {"rank": 0}])
def test_without_steps_or_rank_there_is_no_module(
    world: World, method: str, change: dict[str, int], tmp_path: Path
) -> None:
    outcome = merge(world, tmp_path / "out", method, **change)
    assert [patch.modules for patch in outcome.manifest.patches] == [(), ()]


@both
def test_a_merge_that_is_the_tasks_own_model_needs_no_module(world: World, method: str, tmp_path: Path) -> None:
    alone = World(world.base, world.models[:1], world.tasks[:1])
    shared = {"method": "average", "parameters": {}}
    outcome = merge(alone, tmp_path / "out", method, shared=shared)  # the gradient of no distance is 0
    assert [patch.modules for patch in outcome.manifest.patches] == [()]


def flip(path: Path) -> None:
    """Put a module into a patch that turns features z into −z: z − 2 (ReLU z − ReLU −z)."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    one = torch.eye(8)
    save_file(
        {"features::down": torch.cat((one, -one)), "features::up": torch.cat((2 * one, -2 * one), 1)}, path, about
    )


def measure(world: World, merged: LocalCheckpoint, scratch: Path) -> list[Measurement]:
    scratch.mkdir()
    work = EvaluateWork(
        checkpoint=merged,
        tasks=world.tasks,
        base_models={task.id: world.base for task in world.tasks},
        split={task.id: "train" for task in world.tasks},
        patched=PatchedTasks(labels={task.id: task.spec.name for task in world.tasks}, scratch=scratch),
    )
    return list(evaluate(work, {"text-classification": text_classification.measure}, tiny_bert.ignore))


@both
def test_each_task_is_measured_with_its_modules(world: World, method: str, tmp_path: Path) -> None:
    outcome = merge(world, tmp_path / "out", method)
    merged, shared = artifact(outcome, tmp_path / "out"), shared_of(outcome, tmp_path / "out")
    for index, found in enumerate(measure(world, merged, tmp_path / "scratch")):
        subject = Subject(world.tasks[index], shared, world.base, modules_of(merged, index))
        assert (found,) == text_classification.measure.measure(subject, "train", Models(), tiny_bert.ignore_examples)


def test_a_module_of_one_task_changes_what_that_task_gets_and_no_other(world: World, tmp_path: Path) -> None:
    outcome = merge(world, tmp_path / "out", "surgery", steps=0)
    merged = artifact(outcome, tmp_path / "out")
    plain = measure(world, merged, tmp_path / "plain")
    flip(tmp_path / "out" / outcome.manifest.patches[0].file)
    found = measure(world, merged, tmp_path / "flipped")
    assert found[1] == plain[1]
    counts = [[one.n_predicted for one in measurement.details.per_class] for measurement in (plain[0], found[0])]
    assert counts[1] == counts[0][::-1]  # of two classes the other one
    assert counts[1] != counts[0]


def test_tasks_of_a_kind_that_knows_no_modules_are_refused(world: World, tmp_path: Path) -> None:
    outcome = merge(world, tmp_path / "out", "surgery")
    (tmp_path / "scratch").mkdir()
    spec = world.tasks[0].spec.model_copy(update={"kind": "perplexity"})
    task = world.tasks[0].model_copy(update={"spec": spec})
    work = EvaluateWork(
        checkpoint=artifact(outcome, tmp_path / "out"),
        tasks=(task,),
        base_models={task.id: world.base},
        split={task.id: "test"},
        patched=PatchedTasks(labels={task.id: "task-0"}, scratch=tmp_path / "scratch"),
    )
    with pytest.raises(HeadMismatch, match=r"tasks of kind 'perplexity' cannot be measured with"):
        evaluate(work, {"perplexity": perplexity.measure}, tiny_bert.ignore)


def test_what_is_not_merged_is_the_tasks_own_while_a_module_is_learned(world: World, tmp_path: Path) -> None:
    work = labeled(world.work(tmp_path / "out", {**QUICK, "steps": 1, "batch_size": 6}, method="surgery"), world)
    outcome = run(work.model_copy(update={"recipe": work.recipe.model_copy(update={"exclude": ("encoder.*",)})}))
    told: Any = outcome.report["learned"]
    assert told["modules"][0]["losses"][0]["loss"] == 0.0  # all that its features depend on is in its patch


def classifiers(folder: Path) -> World:
    base, *models = (
        tiny_bert.local(tiny_bert.make_classifier(folder / f"classifier-{seed}", tiny_bert.CLASSES, seed=seed))
        for seed in range(3)
    )
    task = tiny_bert.make_task(folder / "task", head=OwnHead(kind="own"), preprocessing={"max_tokens": 16})
    spec = task.spec.model_copy(update={"name": "other"})
    return World(base, tuple(models), (task, task.model_copy(update={"id": "task_other", "spec": spec})))


def test_features_before_a_head_of_its_own_are_not_at_hand(tmp_path: Path) -> None:
    with pytest.raises(HeadMismatch, match=r"Task 'kind' has the checkpoint's own head.*merge by surgery_v2"):
        merge(classifiers(tmp_path), tmp_path / "out", "surgery")


def test_blocks_are_corrected_under_heads_of_their_own(tmp_path: Path) -> None:
    world = classifiers(tmp_path)
    work = labeled(world.work(tmp_path / "out", QUICK, method="surgery_v2"), world)
    outcome = run(work.model_copy(update={"recipe": work.recipe.model_copy(update={"exclude": ("classifier.*",)})}))
    assert [patch.modules for patch in outcome.manifest.patches] == [(BLOCK,), (BLOCK,)]


@pytest.mark.parametrize(("method", "n_values"), [("surgery", 2 * 3 * 6), ("surgery_v2", 2 * 3 * 8)])
def test_modules_of_clips_are_learned_on_images(method: str, n_values: int, tmp_path: Path) -> None:
    base, *models = (tiny_bert.local(tiny_vision.make_clip(tmp_path / f"clip-{seed}", seed=seed)) for seed in range(3))
    tasks = tuple(
        tiny_vision.make_task(
            tmp_path / name,
            name=name,
            head=LabelPromptsHead(kind="label_prompts", prompts=(f"a {name}", f"the {name}")),
        ).model_copy(update={"id": f"task_{name}"})
        for name in ("cat", "dog")
    )
    world = World(base, tuple(models), tasks)
    outcome = merge(world, tmp_path / "out", method)
    merged = artifact(outcome, tmp_path / "out")
    assert [patch.n_values for patch in outcome.manifest.patches] == [n_values] * 2
    subject = Subject(tasks[0], shared_of(outcome, tmp_path / "out"), base, modules_of(merged, 0))
    found = image_classification.measure.measure(subject, "test", Models(), tiny_bert.ignore_examples)
    assert found[0].n == 12


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    with pytest.raises(ModelNotRunnable, match=r"A Linear runs no list of blocks"):
        find_blocks(torch.nn.Linear(2, 2), lambda: None)


def test_blocks_that_give_no_sequence_are_refused() -> None:
    blocks = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 1)])
    model = torch.nn.Module()
    model.layers = blocks
    with (
        pytest.raises(ModelNotRunnable, match=r"'layers\.0' of a Module gives \[1, 4, 2, 2\], expected \[n, tokens, "),
        BlockOutputs(model, ["layers.0"]).watching(),
    ):
        blocks[0](torch.ones(1, 3, 2, 2))


def test_a_distance_that_is_no_number_ends_the_job_with_task_and_step(world: World, tmp_path: Path) -> None:
    shared = {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 1e38}}
    with pytest.raises(NotFinite, match=r"the model of task 'task-0' is (nan|inf) at step 1 of 60"):
        merge(world, tmp_path / "out", "surgery", shared=shared)


def test_the_recipe_says_what_was_looked_at(world: World, tmp_path: Path) -> None:
    outcome = merge(world, tmp_path / "out", "surgery")
    recipe = Recipe.model_validate_json((tmp_path / "out" / "recipe.json").read_bytes())
    assert recipe.data is not None
    assert recipe.data.split == "validation"
    assert recipe.data.tasks == tuple(PinnedTask(digest=task.spec.digest) for task in world.tasks)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Surgery modules run beside the weights" in card
    assert read_tensors(tmp_path / "out").keys() == read_tensors(world.base.path).keys()
    assert outcome.report["storage"]
