"""Methods that try merges on labeled examples: greedy soups, and coefficients without gradients."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.work import CheckpointOutcome
from tests.workers import tiny_bert
from tests.workers.files import read_tensors
from tests.workers.learning.world import World
from workers.checkpoints.model import Models
from workers.evaluators.text_classification import measure as text_classification
from workers.evaluators.text_classification import open_probe
from workers.model_contract import Subject
from workers.numerics import evolution


def accuracy(world: World, folder: Path) -> float:
    """Return the mean accuracy on the validation splits of the tasks, as an evaluation measures it."""
    checkpoint = tiny_bert.local(folder)
    found = [
        text_classification.measure(
            Subject(task, checkpoint, world.base), "validation", Models(), tiny_bert.ignore_examples
        )[0].value
        or 0.0
        for task in world.tasks
    ]
    return sum(found) / len(found)


def learned(outcome: CheckpointOutcome) -> dict[str, Any]:
    found = outcome.report["learned"]
    assert isinstance(found, dict)
    return found


def coefficients_in(folder: Path) -> dict[str, list[float]]:
    document = json.loads((folder / "coefficients.json").read_text(encoding="utf-8"))
    found: dict[str, list[float]] = document["coefficients"]
    return found


# --- greedy soup --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def soup(world: World) -> World:
    """Three models, of which one stands apart, and one task."""
    return World(world.base, (*world.models, world.base), world.tasks[:1])


def test_a_soup_is_never_worse_than_its_best_model(soup: World, tmp_path: Path) -> None:
    outcome = soup.merge(tmp_path / "out", {}, method="greedy_soup")
    alone = [accuracy(soup, model.path) for model in soup.models]
    told = learned(outcome)
    trace = {point["model"]: point for point in told["trace"]}
    assert [trace[index]["alone"] for index in range(3)] == pytest.approx(alone)
    assert told["score"] == pytest.approx(accuracy(soup, tmp_path / "out"))
    assert told["score"] >= max(alone)
    assert [point["alone"] for point in told["trace"]] == sorted(alone, reverse=True)  # the best first
    kept = [index for index in range(3) if trace[index]["kept"]]
    shares = [1 / len(kept) if index in kept else 0.0 for index in range(3)]
    assert coefficients_in(tmp_path / "out") == {"*": pytest.approx(shares)}
    models = [read_tensors(model.path) for model in soup.models]
    for name, tensor in read_tensors(tmp_path / "out").items():
        expected = torch.stack([models[index][name] for index in kept]).double().mean(0).float()
        torch.testing.assert_close(tensor, expected, msg=name)


def test_what_makes_an_average_worse_is_left_out(soup: World, tmp_path: Path) -> None:
    told = learned(soup.merge(tmp_path / "out", {"metric": "loss"}, method="greedy_soup"))
    best = told["trace"][0]["alone"]
    for point in told["trace"][1:]:
        assert point["kept"] == (point["with"] >= best)
        best = point["with"] if point["kept"] else best
    assert told["score"] == best
    assert best < 0  # a loss, so that more is better


def test_a_soup_replays_and_does_not_depend_on_the_order_of_models(soup: World, tmp_path: Path) -> None:
    first = soup.merge(tmp_path / "first", {"metric": "loss"}, method="greedy_soup")
    given = {"coefficients": coefficients_in(tmp_path / "first")}
    again = soup.merge(tmp_path / "again", given, method="greedy_soup")
    turned = World(soup.base, soup.models[::-1], soup.tasks).merge(
        tmp_path / "turned", {"metric": "loss"}, method="greedy_soup"
    )
    assert again.manifest.weights_digest == first.manifest.weights_digest == turned.manifest.weights_digest


# --- lorahub ------------------------------------------------------------------------------------------------------

QUICK = {"budget": 12}


def test_what_is_found_is_not_worse_than_the_base_and_within_the_bounds(world: World, tmp_path: Path) -> None:
    told = learned(world.merge(tmp_path / "out", QUICK | {"bound": 0.4}, method="lorahub"))
    losses = [point["loss"] for point in told["losses"]]
    assert len(losses) == 12
    assert min(losses) < losses[0]  # the first are coefficients of 0: the base model
    (found,) = coefficients_in(tmp_path / "out").values()
    assert all(abs(value) <= 0.4 for value in found)
    assert any(found)


def test_its_loss_is_the_mean_per_example_and_task_and_a_penalty(world: World, tmp_path: Path) -> None:
    told = learned(world.merge(tmp_path / "out", {"budget": 1}, method="lorahub"))
    assert coefficients_in(tmp_path / "out") == {"*": [0.0, 0.0]}
    expected = 0.0
    for task in world.tasks:
        probe = open_probe(Subject(task, world.base, world.base), "validation", Models())
        expected += probe.losses(range(probe.n_examples)).mean().item() / 2
    assert told["losses"][0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_it_replays_and_comes_from_the_seed(world: World, tmp_path: Path) -> None:
    first, same = (world.merge(tmp_path / name, QUICK, method="lorahub") for name in ("first", "same"))
    again = world.merge(tmp_path / "again", {"coefficients": coefficients_in(tmp_path / "first")}, method="lorahub")
    assert first.manifest.weights_digest == same.manifest.weights_digest == again.manifest.weights_digest


def test_the_strategy_finds_a_minimum_within_budget_and_bounds() -> None:
    target = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    tried: list[Tensor] = []

    def objective(point: Tensor) -> float:
        tried.append(point)
        return float((point - target).square().sum()) if len(tried) % 7 else float("nan")

    found = evolution.minimize(objective, 3, bound=1.5, budget=150, generator=torch.Generator().manual_seed(0))
    assert len(tried) == 150
    assert torch.equal(tried[0], torch.zeros(3, dtype=torch.float64))
    assert max(float(point.abs().max()) for point in tried) <= 1.5
    torch.testing.assert_close(found, torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64), rtol=0.0, atol=0.1)
