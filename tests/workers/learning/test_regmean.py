"""Regression means against numpy, Gram matrices of real inputs, and merges with them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertModel
from transformers.pytorch_utils import Conv1D

from app.domain.errors import NotFinite
from tests.workers.files import read_tensors
from tests.workers.learning.test_fisher import reusing
from tests.workers.learning.world import World, run
from workers.checkpoints.model import Models
from workers.evaluators.text_classification import open_probe
from workers.learning.front_to_back import find_stages
from workers.learning.gram import find_linear_layers, measure_grams
from workers.model_contract import Probe, Subject
from workers.numerics.regression import Regression

LAYER = "encoder.layer.0.output.dense.weight"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regress(weights: Sequence[Tensor], grams: Sequence[Tensor], *, scale: float = 1.0, ridge: float = 1e-9) -> Tensor:
    regression = Regression(torch.stack(list(weights)).mean(0))
    for weight, gram in zip(weights, grams, strict=True):
        regression.add(weight, gram, 1.0, non_diagonal_scale=scale)
    return regression.solve(ridge)


def test_it_is_the_closed_form_and_no_other_matrix_fits_the_inputs_better() -> None:
    weights = [drawn(3, 4, seed=seed) for seed in (1, 2)]
    inputs = [drawn(4, 20, seed=seed) for seed in (3, 4)]  # [in, n]
    grams = [x @ x.T for x in inputs]
    found = regress(weights, grams)
    by_hand = (weights[0] @ grams[0] + weights[1] @ grams[1]) @ torch.linalg.inv(grams[0] + grams[1])
    torch.testing.assert_close(found, by_hand, rtol=1e-6, atol=1e-7)
    slope = sum((found - weight) @ x @ x.T for weight, x in zip(weights, inputs, strict=True))
    assert float(torch.as_tensor(slope).abs().max()) < 1e-6


def test_a_diagonal_alone_weighs_columns_and_equal_ones_average() -> None:
    weights, grams = [drawn(3, 4, seed=seed) for seed in (1, 2)], [drawn(4, 9, seed=seed) for seed in (3, 4)]
    grams = [gram @ gram.T for gram in grams]
    first, second = (gram.diagonal() for gram in grams)
    expected = (weights[0] * first + weights[1] * second) / (first + second)
    torch.testing.assert_close(regress(weights, grams, scale=0.0), expected, rtol=1e-6, atol=1e-7)
    mean = torch.stack(weights).mean(0)
    torch.testing.assert_close(regress(weights, [torch.eye(4), 3 * torch.eye(4)]), (weights[0] + 3 * weights[1]) / 4)
    torch.testing.assert_close(regress(weights, [torch.eye(4)] * 2), mean)


def test_equal_weights_come_back_and_unseen_inputs_leave_the_mean() -> None:
    weight, other = drawn(3, 4, seed=1), drawn(3, 4, seed=2)
    gram = torch.zeros(4, 4, dtype=torch.float64)
    gram[0, 0] = 2.0  # of one direction alone: singular
    assert torch.equal(regress([weight, weight], [gram, 5 * gram]), weight)
    found = regress([weight, other], [gram, 3 * gram])
    torch.testing.assert_close(found[:, 0], (weight[:, 0] + 3 * other[:, 0]) / 4)
    assert torch.equal(found[:, 1:], ((weight + other) / 2)[:, 1:])
    assert torch.equal(regress([weight, other], [0 * gram] * 2), (weight + other) / 2)


def test_gram_matrices_are_those_of_the_inputs_however_a_layer_stores_its_weight() -> None:
    torch.manual_seed(0)
    first, second, table = nn.Linear(2, 3), Conv1D(4, 3), nn.Embedding(5, 2)  # type: ignore[no-untyped-call]
    tied = nn.Linear(2, 5, bias=False)
    tied.weight = table.weight
    module = nn.ModuleDict({"table": table, "first": first, "second": second, "tied": tied})
    tokens = torch.tensor([[0, 1], [2, 4], [3, 3]])
    probe = Probe(
        module=module,
        n_examples=3,
        logits=lambda batch: second(first(table(tokens[list(batch)])))[:, 0],
        losses=lambda batch: second(first(table(tokens[list(batch)])))[:, 0].logsumexp(dim=-1),
        features=None,
        labels=(0, 0, 0),
        order=range(3),
    )
    weights = {path: parameter for path, parameter in module.named_parameters() if path.endswith("weight")}
    layers = find_linear_layers(module, weights)
    assert [layer.tensor for layer in layers] == ["first.weight", "second.weight"]  # not the table's twin
    found = measure_grams(probe, layers, lambda _done: None)
    rows = table(tokens).flatten(0, 1).detach()
    torch.testing.assert_close(found["first.weight"].float(), rows.T @ rows / 6)
    entered = first(rows).detach()
    torch.testing.assert_close(found["second.weight.transposed"].float(), entered.T @ entered / 6)
    with torch.no_grad():
        first.weight.fill_(float("nan"))
    with pytest.raises(NotFinite, match=r"enters the layer 'second.weight.transposed' is NaN"):
        measure_grams(probe, layers, lambda _done: None)


def grams_in(folder: Path, world: World) -> list[dict[str, Tensor]]:
    return [
        load_file(folder / f"statistics/gram-{model.manifest.weights_digest[:16]}.safetensors")
        for model in world.models
    ]


def test_the_merge_regresses_linear_layers_and_averages_the_rest(world: World, tmp_path: Path) -> None:
    world.merge(tmp_path / "out", {"ridge": 1e-9}, method="regmean", max_examples=4)
    merged, models = read_tensors(tmp_path / "out"), [read_tensors(one.path) for one in world.models]
    grams = [one[LAYER].double() for one in grams_in(tmp_path / "out", world)]
    shrunk = [0.9 * gram + 0.1 * gram.diag().diag() for gram in grams]
    expected = sum(model[LAYER].double() @ gram for model, gram in zip(models, shrunk, strict=True)) @ torch.linalg.inv(
        torch.stack(shrunk).sum(0)
    )
    torch.testing.assert_close(merged[LAYER].double(), expected, rtol=1e-4, atol=1e-6)
    bias = "encoder.layer.0.output.dense.bias"
    torch.testing.assert_close(merged[bias], (models[0][bias] + models[1][bias]) / 2)
    assert not torch.allclose(merged[LAYER], (models[0][LAYER] + models[1][LAYER]) / 2, atol=1e-3)


def test_gram_matrices_are_used_again_with_other_parameters(world: World, tmp_path: Path) -> None:
    whole = world.merge(tmp_path / "whole", {}, method="regmean")
    work = reusing(world, [tmp_path / "whole"], tmp_path / "again", method="regmean")
    assert run(work).manifest.weights_digest == whole.manifest.weights_digest
    softer = reusing(world, [tmp_path / "whole"], tmp_path / "softer", {"non_diagonal_scale": 0.2}, method="regmean")
    assert run(softer).manifest.weights_digest != whole.manifest.weights_digest


@pytest.mark.parametrize("method", ["regmean", "regmean_plus_plus"])
def test_one_model_comes_back(world: World, method: str, tmp_path: Path) -> None:
    World(world.base, world.models[:1], world.tasks[:1]).merge(tmp_path / "out", {}, method=method, max_examples=2)
    kept = read_tensors(world.models[0].path)
    for name, tensor in read_tensors(tmp_path / "out").items():
        assert torch.equal(tensor, kept[name]), name


def by_hand_front_to_back(world: World) -> dict[str, Tensor]:
    """Merge the block and then the pooler of the one-layer models as the paper's loop reads."""
    models = [BertModel.from_pretrained(one.path) for one in world.models]
    mean = {
        name: torch.stack([model.state_dict()[name] for model in models]).mean(0) for name in models[0].state_dict()
    }
    merged = dict(mean)
    for stage in ("encoder.layer.0.", "pooler."):
        grams: dict[str, list[Tensor]] = {}
        names = [name for name in mean if name.startswith(stage) and name.endswith("weight") and mean[name].ndim == 2]
        for model, task in zip(models, world.tasks, strict=True):
            own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            mixed = {name: own[name] if name.startswith(stage) else merged[name] for name in own}
            probe = open_probe(Subject(task, world.base, world.base), "validation", Models())
            probe.module.load_state_dict(mixed)
            rows: dict[str, list[Tensor]] = {}
            for name in names:
                layer = probe.module.get_submodule(name.removesuffix(".weight"))
                layer.register_forward_pre_hook(
                    lambda _module, given, name=name, rows=rows: rows.setdefault(name, []).append(
                        given[0].flatten(end_dim=-2)
                    )
                )
            with torch.no_grad():
                for index in range(probe.n_examples):
                    probe.logits([index])
            for name in names:
                x = torch.cat(rows[name]).double()
                gram = x.T @ x / len(x)
                grams.setdefault(name, []).append(0.9 * gram + 0.1 * gram.diag().diag())
        for name in names:
            total = torch.stack(grams[name]).sum(0)
            total += 1e-6 * total.diagonal().mean() * torch.eye(len(total))
            moved = sum(
                (model.state_dict()[name] - mean[name]).double() @ gram
                for model, gram in zip(models, grams[name], strict=True)
            )
            merged[name] = (mean[name].double() + moved @ torch.linalg.inv(total)).float()
    return merged


def test_plus_plus_measures_behind_the_layers_that_are_merged(world: World, tmp_path: Path) -> None:
    outcome = world.merge(tmp_path / "out", {}, method="regmean_plus_plus")
    world.merge(tmp_path / "plain", {}, method="regmean")
    merged, plain, expected = (
        read_tensors(tmp_path / "out"),
        read_tensors(tmp_path / "plain"),
        by_hand_front_to_back(world),
    )
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name].numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    assert not torch.allclose(merged["pooler.dense.weight"], plain["pooler.dense.weight"], atol=1e-4)
    learned = outcome.report["learned"]
    assert isinstance(learned, dict)
    assert (learned["n_stages"], learned["n_tensors"], learned["split"]) == (2, 7, "validation")


def test_stages_are_blocks_and_what_stands_outside_in_the_order_they_run(world: World) -> None:
    probe = open_probe(Subject(world.tasks[0], world.base, world.base), "train", Models())
    stages = find_stages(probe)
    assert stages[0].startswith("embeddings.")
    assert stages[-2:] == ["encoder.layer.0", "pooler.dense"]
