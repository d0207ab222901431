"""Masks learned by localize_and_stitch: the gradient against autograd, what is stitched of them, that they replay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import IncompatibleCheckpoints, NotFinite
from app.domain.statistics_files import statistics_file
from app.domain.work import CheckpointOutcome
from tests.workers.files import read_tensors
from tests.workers.learning.test_gradients import CPU, Whole, source_of
from tests.workers.learning.world import World, run
from workers import patches
from workers.catalog import load_method
from workers.checkpoints.model import Models
from workers.checkpoints.places import find_places
from workers.contract import MergeContext
from workers.evaluators.text_classification import open_probe
from workers.learning.localization import Localization, Localizer, open_localizer, pack
from workers.learning.statistics_files import StatisticsOfModels, write_statistics
from workers.model_contract import Probe, Subject

HOW = Localization(sigmoid_bias=2.0, learning_rate=3.0, steps=1, batch_size=4, l1=0.5, regularizer="l1")
QUICK: dict[str, Any] = {"density": 0.3, "steps": 3, "learning_rate": 50.0, "sigmoid_bias": 1.0}


class Desk:
    """A session of one model's probe, as a learner sees it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.source = source_of(world)
        self.tasks = [task.spec.name for task in world.tasks]
        self.device = CPU

    def places(self, module: torch.nn.Module) -> dict[str, str]:
        return find_places(module, self.world.base.manifest)

    def probe(self, model: int) -> Probe:
        subject = Subject(self.world.tasks[model], self.world.models[model], self.world.base)
        return open_probe(subject, "train", Models())


def start_large(_name: str, delta: Tensor) -> Tensor:
    return delta.abs() > 0.2


def open_(world: World, how: Localization = HOW, model: int = 1) -> tuple[Localizer, Probe]:
    desk = Desk(world)
    probe = desk.probe(model)
    return open_localizer(desk, model, probe, start_large, how), probe  # type: ignore[arg-type]  # a part of a session


@pytest.mark.parametrize("regularizer", ["l1", "binarize"])
def test_a_step_goes_down_the_gradient_that_autograd_finds(world: World, regularizer: Any) -> None:
    how = Localization(2.0, 3.0, 1, 4, 0.5, regularizer)
    localizer, probe = open_(world, how)
    begun = {name: scores.clone() for name, scores in localizer.scores.items()}
    localizer.step(probe, lambda _done: None)
    free = {name: scores.clone().requires_grad_() for name, scores in begun.items()}
    mixed = {
        f"module.{name}": localizer.base[name] + scores.sigmoid() * localizer.delta[name]
        for name, scores in free.items()
    }
    n = localizer.n_entries

    class Loss(Whole):
        def forward(self, batch: list[int]) -> Tensor:
            return self.probe.losses(batch).mean()

    loss = functional_call(Loss(Desk(world).probe(1)), mixed, (list(range(probe.n_examples)),))
    signs = {name: torch.ones(()) if regularizer == "l1" else -scores.sign() for name, scores in begun.items()}
    penalty = sum((signs[name] * scores.sigmoid()).sum() for name, scores in free.items()) * how.l1 / n
    total = loss + penalty
    gradients = torch.autograd.grad(total, list(free.values()))
    assert localizer.losses == [pytest.approx(loss.item(), rel=1e-5)]
    for (name, before), gradient in zip(begun.items(), gradients, strict=True):
        expected = before - how.learning_rate * n * gradient
        torch.testing.assert_close(localizer.scores[name], expected, rtol=1e-3, atol=1e-4)


def test_how_many_examples_run_at_a_time_changes_rounding_alone(world: World) -> None:
    found: list[dict[str, Tensor]] = []
    for size in (1, 12):
        localizer, probe = open_(world, Localization(2.0, 3.0, 1, size, 0.5, "l1"))
        localizer.step(probe, lambda _done: None)
        found.append(localizer.scores)
    for name, scores in found[0].items():
        torch.testing.assert_close(scores, found[1][name], rtol=1e-3, atol=1e-4)


def test_the_loss_falls_from_the_shared_start(world: World) -> None:
    localizer, probe = open_(world, Localization(1.0, 20.0, 8, 12, 0.0, "l1"))
    for _ in range(8):
        localizer.step(probe, lambda _done: None)
    assert localizer.losses[-1] < localizer.losses[0]


def test_a_strong_penalty_leaves_no_entry(world: World) -> None:
    localizer, probe = open_(world, Localization(1.0, 1.0, 2, 12, 1e4, "l1"))
    localizer.step(probe, lambda _done: None)
    assert localizer.report()["density"] == 0.0


def test_the_pull_of_the_code_leaves_masks_as_they_begin(world: World) -> None:
    localizer, probe = open_(world, Localization(1.0, 1.0, 1, 12, 1e4, "binarize"))
    begun = localizer.masks
    localizer.step(probe, lambda _done: None)
    assert all(torch.equal(mask, begun[name]) for name, mask in localizer.masks.items())


# --- as a job process runs it -----------------------------------------------------------------------------------------


def masks_in(folder: Path, world: World, model: int) -> dict[str, Tensor]:
    """Return a model's masks out of an artifact, [*shape] bool."""
    packed = load_file(folder / statistics_file("mask", world.models[model].manifest.weights_digest))
    shapes = {name: tensor.shape for name, tensor in read_tensors(world.base.path).items()}
    return {name: patches.unpack(bits, shapes[name].numel()).view(shapes[name]) for name, bits in packed.items()}


def learn(world: World, output: Path, **changes: Any) -> CheckpointOutcome:
    return world.merge(output, {**QUICK, **changes}, method="localize_and_stitch")


def test_the_result_is_stitched_of_what_the_masks_keep(world: World, tmp_path: Path) -> None:
    learn(world, tmp_path / "out")
    found, base = read_tensors(tmp_path / "out"), read_tensors(world.base.path)
    models = [read_tensors(model.path) for model in world.models]
    masks = [masks_in(tmp_path / "out", world, model) for model in range(2)]
    for name, tensor in base.items():
        deltas = [model[name].double() - tensor.double() for model in models]
        own = [mask[name] & (delta != 0) for mask, delta in zip(masks, deltas, strict=True)]
        count = sum(one.double() for one in own)
        total = sum(torch.where(one, delta, 0.0) for one, delta in zip(own, deltas, strict=True))
        expected = tensor.double() + torch.where(count > 0, total / count, 0.0)  # type: ignore[arg-type]
        np.testing.assert_allclose(found[name].double().numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_masks_differ_from_the_largest_entries_and_are_told_of(world: World, tmp_path: Path) -> None:
    outcome = learn(world, tmp_path / "out")
    start = learn(world, tmp_path / "start", steps=0)
    dataless = world.merge(
        tmp_path / "dataless", {"density": 0.3, "keep_sums": False}, method="localize_and_stitch_dataless"
    )
    assert start.manifest.weights_digest == dataless.manifest.weights_digest
    assert outcome.manifest.weights_digest != dataless.manifest.weights_digest
    learned: Any = outcome.report["learned"]
    for index, told in enumerate(learned["masks"]):
        masks = masks_in(tmp_path / "out", world, index)
        n_kept = sum(int(mask.sum()) for mask in masks.values())
        assert told["density"] == pytest.approx(n_kept / sum(mask.numel() for mask in masks.values()))
        assert [one["step"] for one in told["losses"]] == [1, 2, 3]


def test_masks_replay_without_a_task(world: World, tmp_path: Path) -> None:
    first = learn(world, tmp_path / "first")
    source = LocalCheckpoint(id="first", path=tmp_path / "first", manifest=first.manifest)
    work = world.work(tmp_path / "again", QUICK, method="localize_and_stitch")
    recipe = work.recipe.model_copy(update={"data": None})
    again = run(work.model_copy(update={"recipe": recipe, "learning": (), "statistics": (source,)}))
    assert again.manifest.weights_digest == first.manifest.weights_digest


def test_the_same_recipe_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    first, again = (learn(world, tmp_path / name) for name in ("first", "again"))
    assert first.manifest.digest == again.manifest.digest


def test_a_loss_that_is_no_number_ends_the_job_with_task_and_step(world: World, tmp_path: Path) -> None:
    broken = world.tasks[0].spec.head.model_copy(update={"scale": 1e39})
    spec = world.tasks[0].spec.model_copy(update={"head": broken})
    tasks = (world.tasks[0].model_copy(update={"spec": spec}), world.tasks[1])
    with pytest.raises(NotFinite, match=r"The loss on task 'task-0' is (nan|inf) at step 1 of 3"):
        learn(World(world.base, world.models, tasks), tmp_path / "out")


@pytest.mark.parametrize("packed", [{"w": torch.zeros(2, dtype=torch.uint8)}, {}])
def test_masks_of_another_model_are_refused(packed: dict[str, Tensor], tmp_path: Path) -> None:
    code = load_method("localize_and_stitch")
    learned = StatisticsOfModels([write_statistics(tmp_path, "statistics/mask-0.safetensors", packed)])
    context = MergeContext("w", (2, 3), 0, 0, (1.0,), learned=learned)
    with pytest.raises(IncompatibleCheckpoints, match=r"for 'w', expected the bits of \[2, 3\] in \[1\]"):
        code.merge(torch.zeros(6), torch.ones(1, 6), code.parameters(), context)


def test_bits_are_read_from_any_place(tmp_path: Path) -> None:
    mask = torch.arange(21) % 3 == 0
    written = write_statistics(tmp_path, "statistics/mask-0.safetensors", pack({"w": mask.view(3, 7)}))
    assert written.tensors["w"].shape == (3,)
    for offset in range(21):
        for n in (0, 1, 21 - offset):
            assert torch.equal(written.read_bits("w", offset, n), mask[offset : offset + n])
