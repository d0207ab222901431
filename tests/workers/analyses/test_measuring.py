"""The analyses that merge and measure, against the same numbers from checkpoints written one by one."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import HeadMismatch, InvalidParameters
from app.domain.tasks import OwnHead
from app.domain.work import AnalyzeWork
from tests.workers import tiny_bert
from tests.workers.analyses.works import make_models, make_task, make_work, with_tasks
from workers.analyses import negation, task_trend
from workers.analyses.negation import Negated
from workers.analyses.task_trend import TaskTrendParameters
from workers.catalog import load_analysis, load_evaluator, load_recipe
from workers.checkpoints.model import Models
from workers.evaluators import text_classification
from workers.model_contract import Probe, Subject
from workers.pipelines.bench import MemoryBench, Workshop

ALL = 100  # examples: all that there are


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[LocalCheckpoint]:
    return make_models(tmp_path_factory.mktemp("models"), 3)


class Brute:
    """Writes θ₀ + Σ cᵢ τᵢ into a folder and runs it, or measures it, as any checkpoint."""

    def __init__(self, work: AnalyzeWork, folder: Path) -> None:
        self._work = work
        self._folder = folder

    def subject(self, coefficients: Sequence[float]) -> Subject:
        work = self._work
        base, *others = (load_file(one.path / "model.safetensors") for one in (work.base_model, *work.models))
        merged = {
            name: (
                tensor.double()
                + sum(c * (o[name].double() - tensor.double()) for c, o in zip(coefficients, others, strict=True))
            ).float()
            for name, tensor in base.items()
        }
        folder = tiny_bert.make_encoder(self._folder / f"at{list(coefficients)}", num_hidden_layers=2)
        save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})
        return Subject(work.tasks[0], tiny_bert.local(folder), work.base_model)

    def open(self, coefficients: Sequence[float]) -> Probe:
        return text_classification.open_probe(self.subject(coefficients), "test", Models())

    def logits(self, coefficients: Sequence[float]) -> Tensor:
        probe = self.open(coefficients)
        return torch.cat([probe.logits([index]) for index in range(probe.n_examples)]).double()

    def classes(self, coefficients: Sequence[float]) -> Tensor:
        return self.logits(coefficients).argmax(-1)

    def features(self, coefficients: Sequence[float]) -> Tensor:
        probe = self.open(coefficients)
        assert probe.features is not None
        return torch.cat([probe.features([index]) for index in range(probe.n_examples)])

    def measure(self, coefficients: Sequence[float], split: str = "test") -> float:
        (found,) = text_classification.measure.measure(
            self.subject(coefficients), split, Models(), tiny_bert.ignore_examples
        )
        return float(found.value or 0.0)


def open_bench(work: AnalyzeWork) -> MemoryBench:
    evaluators = {"text-classification": load_evaluator("text-classification")}
    return MemoryBench(work, Workshop(evaluators, load_recipe), tiny_bert.ignore)


def analyze(work: AnalyzeWork) -> dict[str, Any]:
    """Return what the analysis finds; files and figures are test_every_analysis' matter."""
    analysis = load_analysis(work.analysis)
    found = analysis.examine(open_bench(work), analysis.parameters.model_validate(work.parameters))
    return found.model_dump(mode="json")


def test_examples_are_spread_evenly_and_come_in_their_order(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    work = with_tasks(make_work("loss_landscape", models[:3], tmp_path), tmp_path, 1)
    bench = open_bench(work.model_copy(update={"split": "train"}))
    with bench.combine((1.0, 0.0)) as merged:
        whole, part = merged.classify(0, ALL), merged.classify(0, 4)
        features = merged.embed(0, ALL)
    assert whole.labels.tolist() == [0] * 6 + [1] * 6
    assert part.labels.tolist() == [0, 0, 1, 1]  # examples 0, 3, 6, 9
    torch.testing.assert_close(part.logits, whole.logits[::3])
    assert features.shape == (12, 8)


def test_losses_are_those_of_written_models(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    work = make_work("loss_landscape", models[:3], tmp_path)
    work = with_tasks(work, tmp_path, 1, low=-0.5, high=1.5, n_steps=3)
    found, brute = analyze(work), Brute(work, tmp_path)
    assert found["coefficients"] == [-0.5, 0.5, 1.5]
    total = np.array(found["total_loss"])
    for (row, b), (column, a) in itertools.product(enumerate(found["coefficients"]), repeat=2):
        if (row, column) not in ((0, 0), (0, 2), (1, 0)):
            continue
        expected = torch.nn.functional.cross_entropy(brute.logits((a, b)), torch.tensor([0, 0, 0, 1, 1, 1]))
        assert total[row, column] == pytest.approx(float(expected), rel=1e-5)
    at = [int(place) for place in np.unravel_index(total.argmin(), total.shape)]
    assert found["best"] == [found["coefficients"][at[1]], found["coefficients"][at[0]]]
    assert found["n_examples"] == [6]


def test_disentanglement_is_the_share_of_changed_predictions(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    work = with_tasks(
        make_work("disentanglement_error", models[:3], tmp_path), tmp_path, 2, low=0.0, high=2.0, n_steps=2
    )
    found, brute = analyze(work), Brute(work, tmp_path)
    together = brute.classes((2.0, 2.0))
    first, second = (brute.classes(pair) for pair in ((2.0, 0.0), (0.0, 2.0)))
    expected = float((together != first).double().mean()), float((together != second).double().mean())
    assert found["error"][1][1] == pytest.approx(sum(expected))
    assert [grid[1][1] for grid in found["errors"]] == pytest.approx(expected)
    assert found["errors"][0][0] == [0.0, 0.0]  # without the other vector nothing changes
    assert [line[0] for line in found["errors"][1]] == [0.0, 0.0]
    assert found["mean_error_within"] == found["error"][0][0] == 0.0


def test_feature_distance_is_the_mean_absolute_difference(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    work = with_tasks(make_work("feature_distance", models[:3], tmp_path), tmp_path, 2, merge={"method": "average"})
    found, brute = analyze(work), Brute(work, tmp_path)
    merged, own = brute.features((0.5, 0.5)), brute.features((0.0, 1.0))
    distance = found["distances"][1]["merged"]
    assert distance["l1"] == pytest.approx(float((merged - own).abs().mean()), rel=1e-4)
    assert distance["l2"] == pytest.approx(float((merged - own).norm(dim=1).mean()), rel=1e-4)
    assert (found["distances"][1]["n_examples"], found["distances"][1]["width"]) == (6, 8)


def test_the_head_in_the_checkpoint_gives_no_features(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    labels = list(tiny_bert.CLASSES)
    heads = [tiny_bert.local(tiny_bert.make_classifier(tmp_path / f"c{seed}", labels, seed=seed)) for seed in range(2)]
    work = with_tasks(make_work("feature_distance", heads, tmp_path), tmp_path, 1)
    own = make_task(tmp_path / "own", head=OwnHead(kind="own"))
    work = work.model_copy(update={"tasks": (own,), "head_bases": {own.id: heads[0]}})
    with pytest.raises(HeadMismatch, match="has head 'own', under which models give logits and no features"):
        analyze(work)


def test_the_trend_measures_every_subset(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    merge: dict[str, JsonValue] = {"method": "average", "parameters": {}}
    work = with_tasks(make_work("task_trend", models, tmp_path), tmp_path, 3, merge=merge)
    found, brute = analyze(work), Brute(work, tmp_path)
    assert [one["models"] for one in found["subsets"]] == [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]]
    own = [brute.measure(row) for row in np.eye(3).tolist()]
    assert found["individual"] == own
    pair = found["subsets"][4]
    value = brute.measure((0.5, 0.0, 0.5))
    assert pair["all_tasks"]["values"] == [value] * 3
    assert pair["normalized_mean_of_merged"] == pytest.approx((value / own[0] + value / own[2]) / 2)
    size = found["sizes"][1]
    means = [one["normalized_mean_of_merged"] for one in found["subsets"][3:6]]
    assert (size["n_models"], size["n_subsets"], size["n_possible"]) == (2, 3, 3)
    assert size["merged_tasks"] == pytest.approx({"mean": sum(means) / 3, "low": min(means), "high": max(means)})


def test_a_trend_of_many_subsets_draws_some_by_the_seed(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    bench = open_bench(with_tasks(make_work("task_trend", models, tmp_path), tmp_path, 3))

    def draw(seed: int) -> list[tuple[int, ...]]:
        return task_trend._choose(bench, TaskTrendParameters(max_subsets=2, seed=seed))

    assert [len(subset) for subset in draw(0)] == [1, 1, 2, 2, 3]
    assert draw(0) == draw(0)
    assert len({str(draw(seed)) for seed in range(3)}) > 1


def test_the_incremental_curve_tunes_on_validation_alone(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    work = with_tasks(make_work("incremental_curve", models, tmp_path), tmp_path, 3, values=[-3.0, 0.4, 0.9], n_first=2)
    found, brute = analyze(work), Brute(work, tmp_path)
    own = [brute.measure(row, "validation") for row in np.eye(3).tolist()[:2]]
    tried = [brute.measure((value, value, 0.0), "validation") for value in (-3.0, 0.4, 0.9)]
    means = [sum(value / one for one in own) / 2 for value in tried]
    trials = [one for one in found["trials"] if one["n_models"] == 2]
    assert [one["mean"] for one in trials] == pytest.approx(means)
    assert found["frozen_value"] == (-3.0, 0.4, 0.9)[int(np.argmax(means))]
    assert [point["n_models"] for point in found["frozen"]] == [2, 3]
    frozen = found["frozen_value"]
    assert found["frozen"][1]["scores"]["values"] == [brute.measure((frozen,) * 3)] * 3
    assert [point["n_models"] for point in found["retuned"]] == [2, 3]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"parameter": "scaling_coefficent"}, "scaling_coefficent"),
        ({"n_first": 4}, "n_first is 4, there are 3 models to add"),
        (
            {"merge": {"method": "ties"}, "parameter": "density", "values": [0.5, 2.0]},
            "2.0 is greater than the maximum",
        ),
    ],
)
def test_a_curve_that_cannot_be_is_refused_before_anything_runs(
    models: list[LocalCheckpoint], tmp_path: Path, parameters: dict[str, Any], message: str
) -> None:
    work = with_tasks(make_work("incremental_curve", models, tmp_path), tmp_path, 3, **parameters)
    with pytest.raises(InvalidParameters, match=message):
        analyze(work)


def test_negation_subtracts(models: list[LocalCheckpoint], tmp_path: Path) -> None:
    work = with_tasks(make_work("negation", models[:2], tmp_path), tmp_path, 2, coefficients=[2.0], min_control=0.0)
    found, brute = analyze(work), Brute(work, tmp_path)
    base, away = brute.measure((0.0,), "validation"), brute.measure((-2.0,), "validation")
    assert [one["coefficient"] for one in found["validation"]] == [0.0, 2.0]
    assert [one["target"] for one in found["validation"]] == [base, away]
    assert found["chosen"] == (2.0 if away < base else 0.0)
    assert found["negated"]["target"] == brute.measure((-found["chosen"],))
    assert found["finetuned_target"] == brute.measure((1.0,))


def test_the_coefficient_that_forgets_most_and_keeps_the_controls_is_chosen() -> None:
    def at(coefficient: float, target: float | None, kept: float | None) -> Negated:
        return Negated(coefficient=coefficient, target=target, target_kept=target, controls=[kept], control_kept=kept)

    curve = [at(0.0, 1.0, 1.0), at(0.3, 0.7, 0.97), at(0.5, 0.4, 0.95), at(0.7, 0.4, 0.96), at(1.0, 0.1, 0.9)]
    assert negation._choose(curve, 0.95) == 0.5
    assert negation._choose([at(0.0, 1.0, 1.0), at(1.0, 0.1, 0.9), at(2.0, None, None)], 0.95) == 0.0
