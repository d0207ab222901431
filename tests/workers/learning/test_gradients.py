"""Gradients of coefficients by inner products are those that autograd finds through the whole merge."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.workers.files import read_tensors
from tests.workers.learning.world import World
from workers.checkpoints.model import Models
from workers.checkpoints.places import find_places
from workers.evaluators.text_classification import open_probe
from workers.learning.merged_weights import MergedWeights
from workers.learning.task_vectors import TaskVectors
from workers.model_contract import Probe, Subject
from workers.numerics.entropy import entropy_of_logits
from workers.statistics.views import TensorSource

CPU = torch.device("cpu")
BATCH = [0, 3, 4]


def source_of(world: World) -> TensorSource:
    base, *models = (read_tensors(one.path) for one in (world.base, *world.models))
    return TensorSource(base, models, [1.0] * len(models), piece_elements=7)


def open_task(world: World, index: int) -> Probe:
    return open_probe(Subject(world.tasks[index], world.base, world.base), "train", Models())


class Whole(nn.Module):
    """A task's model from batch to mean entropy, so that torch can run it with other weights."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.module = probe.module
        self.probe = probe

    def forward(self, batch: list[int]) -> Tensor:
        return entropy_of_logits(self.probe.logits(batch)).mean()


def by_autograd(world: World, coefficients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients through a graph over all models."""
    base, *models = (read_tensors(one.path) for one in (world.base, *world.models))
    free = {name: values.float().requires_grad_() for name, values in coefficients.items()}
    total = torch.zeros(())
    for index in range(len(world.tasks)):
        mixed = {
            f"module.{name}": base[name]
            + sum(values[at] * (model[name] - base[name]) for at, model in enumerate(models))
            for name, values in free.items()
        }
        total = total + functional_call(Whole(open_task(world, index)), mixed, (BATCH,))
    found = torch.autograd.grad(total, list(free.values()), allow_unused=True)
    return {name: torch.zeros(2) if gradient is None else gradient for name, gradient in zip(free, found, strict=True)}


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_gradients_agree_with_autograd(world: World, kept_bytes: int) -> None:
    weights = MergedWeights(TaskVectors(source_of(world), kept_bytes=kept_bytes), CPU)
    probes: Sequence[Probe] = [open_task(world, index) for index in range(2)]
    for probe in probes:
        weights.bind(probe.module, find_places(probe.module, world.base.manifest))
    generator = torch.Generator().manual_seed(5)
    coefficients = {name: torch.rand(2, generator=generator, dtype=torch.float64) for name in weights.moved}

    weights.mix(coefficients)
    for probe in probes:
        entropy_of_logits(probe.logits(BATCH)).mean().backward()  # type: ignore[no-untyped-call]
    found = weights.take_gradients()

    expected = by_autograd(world, coefficients)
    assert any(bool(values.abs().max() > 1e-4) for values in expected.values())
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values.double(), rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_taken_once(world: World) -> None:
    weights = MergedWeights(TaskVectors(source_of(world)), CPU)
    probe = open_task(world, 0)
    weights.bind(probe.module, find_places(probe.module, world.base.manifest))
    probe.losses(BATCH).sum().backward()  # type: ignore[no-untyped-call]
    assert any(bool(values.any()) for values in weights.take_gradients().values())
    assert not any(bool(values.any()) for values in weights.take_gradients().values())


def test_models_share_what_is_merged_and_keep_the_rest(world: World) -> None:
    source = source_of(world)
    kept = {name for name, _, _ in source.tensors if "layer" in name}
    part = TensorSource(
        {name: source.base[name] for name in kept},  # type: ignore[index]
        [{name: model[name] for name in kept} for model in source.models],
        [1.0, 1.0],
    )
    weights = MergedWeights(TaskVectors(part), CPU)
    first, second = (open_task(world, index).module for index in range(2))
    for module in (first, second):
        weights.bind(module, find_places(module, world.base.manifest))
    shared, other = dict(first.named_parameters()), dict(second.named_parameters())
    for name, value in shared.items():
        assert (value is other[name]) == (name in kept), name


def test_losses_are_those_of_the_labels(world: World) -> None:
    probe = open_task(world, 0)
    assert probe.n_examples == 12
    expected = torch.nn.functional.cross_entropy(probe.logits([0, 11]), torch.tensor([0, 1]), reduction="none")
    assert torch.equal(probe.losses([0, 11]), expected)
