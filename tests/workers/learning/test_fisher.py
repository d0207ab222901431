"""Fisher information against closed forms, and merges that count weights by it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from app.domain.errors import NotFinite
from app.domain.jobs import Progress
from app.domain.work import MergeWork
from tests.workers.files import read_tensors
from tests.workers.learning.world import World, run
from tests.workers.references.arrays import Vector
from tests.workers.tiny_bert import local
from workers.learning.fisher import Labels, measure_fisher
from workers.model_contract import Probe

INPUTS = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])
GIVEN = torch.tensor([0, 2, 1])


def measure(labels: Labels, weight: Tensor | None = None, *, seed: int = 0) -> Tensor:
    """Return the information of a linear classifier of three classes."""
    module = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.3, -0.1], [0.0, 0.4], [-0.2, 0.2]]) if weight is None else weight)
    probe = Probe(
        module=module,
        n_examples=3,
        logits=lambda batch: module(INPUTS[list(batch)]),
        losses=lambda batch: nn.functional.cross_entropy(
            module(INPUTS[list(batch)]), GIVEN[list(batch)], reduction="none"
        ),
        features=None,
        labels=GIVEN.tolist(),
        order=range(3),
    )
    generator = torch.Generator().manual_seed(seed)
    return measure_fisher(probe, {"w": module.weight}, labels, generator, lambda _done: None)["w"]


def predictions() -> Tensor:
    return (INPUTS @ torch.tensor([[0.3, -0.1], [0.0, 0.4], [-0.2, 0.2]]).T).softmax(-1)  # [3 examples, 3 classes]


def test_over_all_labels_it_is_the_closed_form() -> None:
    # of W in softmax(W x): E_x p_k (1 - p_k) x_j²
    p = predictions()
    expected = torch.einsum("ik,ij->kj", p * (1 - p), INPUTS.square()) / 3
    torch.testing.assert_close(measure("expected"), expected)


def test_with_given_labels_gradients_are_squared_per_example_not_per_batch() -> None:
    slopes = nn.functional.one_hot(GIVEN, 3) - predictions()  # [3, 3]
    per_example = torch.einsum("ik,ij->kj", slopes.square(), INPUTS.square()) / 3
    per_batch = torch.einsum("ik,ij->kj", slopes, INPUTS).square() / 3
    torch.testing.assert_close(measure("given"), per_example)
    assert not torch.allclose(measure("given"), per_batch, rtol=0.1)


def test_drawn_labels_come_from_the_seed_and_have_the_right_mean() -> None:
    assert torch.equal(measure("sampled", seed=3), measure("sampled", seed=3))
    mean = torch.stack([measure("sampled", seed=seed) for seed in range(400)]).mean(0)
    torch.testing.assert_close(mean, measure("expected"), rtol=0.2, atol=0.05)


def test_information_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NotFinite, match="Fisher information of tensor 'w' is not finite"):
        measure("expected", torch.full((3, 2), float("nan")))


def statistics_in(folder: Path, world: World) -> list[dict[str, Vector]]:
    return [
        {
            name: tensor.astype(np.float64)
            for name, tensor in load_file(
                folder / "statistics" / f"fisher-{model.manifest.weights_digest[:16]}.safetensors"
            ).items()
        }
        for model in world.models
    ]


def test_the_merge_counts_each_weight_by_its_information(world: World, tmp_path: Path) -> None:
    outcome = world.merge(tmp_path / "out", {}, method="fisher", weights=[1.0, 0.5])
    found = statistics_in(tmp_path / "out", world)
    lengths = [np.sqrt(sum(float((tensor**2).sum()) for tensor in one.values())) for one in found]
    models = [read_tensors(one.path) for one in world.models]
    for name, merged in read_tensors(tmp_path / "out").items():
        counts = [
            weight * (one.get(name, np.zeros(merged.shape)) / length + 1e-6)
            for weight, one, length in zip((1.0, 0.5), found, lengths, strict=True)
        ]
        expected = sum(count * model[name].double().numpy() for count, model in zip(counts, models, strict=True)) / sum(
            counts
        )
        np.testing.assert_allclose(merged.double().numpy(), expected, rtol=1e-6, atol=1e-9, err_msg=name)
    assert "pooler.dense.weight" not in found[0]  # no prediction depends on it
    assert found[0]["encoder.layer.0.output.dense.weight"].shape == (8, 12)
    learned = outcome.report["learned"]
    assert isinstance(learned, dict)
    assert (learned["split"], learned["transductive"], len(learned["files"])) == ("validation", False, 2)  # type: ignore[arg-type]
    paths = [file.path for file in outcome.manifest.files]
    assert set(learned["files"]) <= set(paths)  # type: ignore[arg-type]


def test_one_model_comes_back(world: World, tmp_path: Path) -> None:
    World(world.base, world.models[:1], world.tasks[:1]).merge(tmp_path / "out", {}, method="fisher")
    for name, tensor in read_tensors(tmp_path / "out").items():
        torch.testing.assert_close(tensor, read_tensors(world.models[0].path)[name], rtol=3e-7, atol=0.0, msg=name)


def test_statistics_are_used_again_and_those_of_several_merges_together(world: World, tmp_path: Path) -> None:
    whole = world.merge(tmp_path / "whole", {}, method="fisher")
    for index in range(2):
        World(world.base, world.models[index : index + 1], world.tasks[index : index + 1]).merge(
            tmp_path / f"alone-{index}", {}, method="fisher"
        )
    for sources in (["whole"], ["alone-1", "alone-0"]):
        again = run(reusing(world, [tmp_path / name for name in sources], tmp_path / f"again-{sources[0]}"))
        assert again.manifest.weights_digest == whole.manifest.weights_digest
        assert not [file.path for file in again.manifest.files if file.path.startswith("statistics/")]


def reusing(
    world: World, folders: list[Path], output: Path, parameters: dict[str, Any] | None = None, *, method: str = "fisher"
) -> MergeWork:
    work = world.work(output, parameters or {}, method=method)
    recipe = work.recipe.model_copy(update={"data": None})
    statistics = tuple(local(folder) for folder in folders)  # a folder that is registered keeps its statistics
    return work.model_copy(update={"recipe": recipe, "learning": (), "statistics": statistics})


def test_progress_rises_over_all_models(world: World, tmp_path: Path) -> None:
    reports: list[Progress] = []
    run(world.work(tmp_path / "out", {}, method="fisher", max_examples=3), reports)
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert [report.done for report in reports if report.stage == "learning"] == [1, 2, 3, 4, 5, 6]
