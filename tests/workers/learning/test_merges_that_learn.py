"""Merges that learn, as a job process runs them: what they give, what they tell, and that they can be repeated."""

import json
from pathlib import Path

import pytest
import torch

from app.domain.errors import ModelNotRunnable, NotFinite
from app.domain.jobs import Progress
from app.domain.tasks import OwnHead
from tests.workers import tiny_bert
from tests.workers.files import read_tensors
from tests.workers.learning.world import World, run, shuffled
from workers.checkpoints.model import Models, load_encoder
from workers.checkpoints.places import find_places
from workers.numerics.entropy import entropy_of_logits, entropy_of_mean

QUICK = {"steps": 8, "batch_size": 4, "learning_rate": 0.05}


def coefficients_in(folder: Path) -> dict[str, list[float]]:
    document = json.loads((folder / "coefficients.json").read_text(encoding="utf-8"))
    assert (document["format"], document["version"]) == ("amalgam-coefficients", 1)
    found: dict[str, list[float]] = document["coefficients"]
    return found


def test_without_steps_it_is_task_arithmetic(world: World, tmp_path: Path) -> None:
    world.merge(tmp_path / "out", {"steps": 0})
    base, *models = (read_tensors(one.path) for one in (world.base, *world.models))
    for name, tensor in read_tensors(tmp_path / "out").items():
        expected = base[name].double() + 0.3 * sum(model[name].double() - base[name].double() for model in models)
        torch.testing.assert_close(tensor, expected.float(), rtol=1e-6, atol=1e-8, msg=name)


def test_the_entropy_falls(world: World, tmp_path: Path) -> None:
    outcome = world.merge(tmp_path / "out", QUICK | {"steps": 30, "batch_size": 6})
    learned = outcome.report["learned"]
    assert isinstance(learned, dict)
    losses: list[float] = [point["loss"] for point in learned["losses"]]  # type: ignore[union-attr,index,call-overload,misc]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


@pytest.mark.parametrize("granularity", ["layer", "task"])
def test_what_was_learned_replays_to_the_same_weights(world: World, granularity: str, tmp_path: Path) -> None:
    first = world.merge(tmp_path / "first", QUICK | {"granularity": granularity})
    again = world.merge(tmp_path / "again", {"coefficients": coefficients_in(tmp_path / "first")})
    assert again.manifest.weights_digest == first.manifest.weights_digest
    assert "learned" not in again.report
    assert not (tmp_path / "again" / "coefficients.json").exists()
    plain = world.merge(tmp_path / "plain", {"steps": 0})
    assert first.manifest.weights_digest != plain.manifest.weights_digest


def test_the_same_recipe_gives_the_same_files(world: World, tmp_path: Path) -> None:
    first, again = (world.merge(tmp_path / name, QUICK) for name in ("first", "again"))
    assert first.manifest.digest == again.manifest.digest


def test_coefficients_follow_their_models(world: World, tmp_path: Path) -> None:
    world.merge(tmp_path / "forward", QUICK)
    shuffled(world, (1, 0)).merge(tmp_path / "backward", QUICK)
    forward, backward = coefficients_in(tmp_path / "forward"), coefficients_in(tmp_path / "backward")
    assert forward.keys() == backward.keys()
    for name, (first, second) in forward.items():
        if name.endswith("key.bias"):
            continue  # a softmax does not see it: its gradient is rounding, which Adam walks along
        assert backward[name] == pytest.approx([second, first], abs=1e-4), name


def test_by_task_each_model_has_one_coefficient(world: World, tmp_path: Path) -> None:
    outcome = world.merge(tmp_path / "out", QUICK | {"granularity": "task"})
    found = coefficients_in(tmp_path / "out")
    assert list(found) == ["*"]
    assert found["*"] != [0.3, 0.3]
    assert outcome.report["learned"]["mean_coefficients"] == pytest.approx(found["*"])  # type: ignore[index,call-overload]


def test_tensors_that_no_task_runs_with_keep_the_coefficient_of_the_start(world: World, tmp_path: Path) -> None:
    world.merge(tmp_path / "out", QUICK)
    found = coefficients_in(tmp_path / "out")
    assert found["*"] == [0.3, 0.3]
    assert found["pooler.dense.weight"] == [0.3, 0.3]  # features are taken before it
    assert found["encoder.layer.0.output.dense.weight"] != [0.3, 0.3]
    assert "embeddings.word_embeddings.weight" not in found  # no model has moved it


def test_clamped_coefficients_stay_between_0_and_1(world: World, tmp_path: Path) -> None:
    eager = {"steps": 6, "learning_rate": 0.1, "batch_size": 4}
    world.merge(tmp_path / "in", eager | {"initial_coefficient": 1.0})
    world.merge(tmp_path / "free", eager | {"initial_coefficient": 1.0, "clamp": False})
    inside, free = (coefficients_in(tmp_path / name).values() for name in ("in", "free"))
    assert all(0.0 <= value <= 1.0 for row in inside for value in row)
    assert any(value > 1.0 for row in free for value in row)


def test_the_result_tells_what_was_looked_at(world: World, tmp_path: Path) -> None:
    outcome = world.merge(tmp_path / "out", QUICK, split="test", max_examples=3, transductive=True)
    learned = outcome.report["learned"]
    assert isinstance(learned, dict)
    assert (learned["split"], learned["transductive"], learned["file"]) == ("test", True, "coefficients.json")
    tasks = learned["tasks"]
    assert tasks == [
        {"task": f"task-{index}", "digest": task.spec.digest, "n_examples": 3} for index, task in enumerate(world.tasks)
    ]
    watched = learned["prediction_entropy"]
    assert isinstance(watched, list)
    for one in watched:
        assert isinstance(one, dict)
        assert 0 <= one["of_mean"] <= one["largest"] + 1e-6  # type: ignore[operator]
        assert one["largest"] == pytest.approx(0.6931, abs=1e-4)  # two classes


@pytest.mark.parametrize("transform", ["awd", "ties"])
def test_what_stands_before_it_changes_what_is_learned_on(world: World, transform: str, tmp_path: Path) -> None:
    first = world.merge(tmp_path / "first", QUICK, transforms=(transform,))
    found = coefficients_in(tmp_path / "first")
    again = world.merge(tmp_path / "again", {"coefficients": found}, transforms=(transform,))
    plain = world.merge(tmp_path / "plain", {"coefficients": found})
    assert first.manifest.weights_digest == again.manifest.weights_digest
    assert first.manifest.weights_digest != plain.manifest.weights_digest


def test_under_heads_of_their_own_models_share_all_but_the_heads(tmp_path: Path) -> None:
    base, *models = (
        tiny_bert.local(tiny_bert.make_classifier(tmp_path / f"classifier-{seed}", tiny_bert.CLASSES, seed=seed))
        for seed in range(3)
    )
    task = tiny_bert.make_task(tmp_path / "task", head=OwnHead(kind="own"), preprocessing={"max_tokens": 16})
    world = World(base, tuple(models), (task, task))
    work = world.work(tmp_path / "out", QUICK)
    run(work.model_copy(update={"recipe": work.recipe.model_copy(update={"exclude": ("classifier.*",)})}))
    found, kept = coefficients_in(tmp_path / "out"), read_tensors(base.path)
    assert found["bert.encoder.layer.0.output.dense.weight"] != [0.3, 0.3]
    assert found["bert.embeddings.word_embeddings.weight"] != [0.3, 0.3]
    assert not [name for name in found if name.startswith("classifier")]
    assert torch.equal(read_tensors(tmp_path / "out")["classifier.weight"], kept["classifier.weight"])


def test_files_that_name_tensors_otherwise_are_refused(world: World) -> None:
    manifest = world.base.manifest
    renamed = tuple(
        tensor.model_copy(update={"name": tensor.name.replace("output", "out")}) for tensor in manifest.tensors
    )
    module = Models().open(world.base, load_encoder).module
    with pytest.raises(ModelNotRunnable, match=r"8 weights of the BertModel .* encoder.layer.0.attention.output.dense"):
        find_places(module, manifest.model_copy(update={"tensors": renamed}))


def test_progress_only_rises_and_tells_steps(world: World, tmp_path: Path) -> None:
    reports: list[Progress] = []
    run(world.work(tmp_path / "out", QUICK, transforms=("ties",)), reports)
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    steps = [report for report in reports if report.stage == "learning"]
    assert [report.done for report in steps] == list(range(1, 9))
    assert steps[-1].unit == "steps"
    assert steps[-1].loss is not None
    assert {"opening task-0", "opening task-1", "merging"} <= {report.stage for report in reports}


def test_weights_that_make_no_numbers_end_the_job_with_step_and_task(world: World, tmp_path: Path) -> None:
    runaway = {"steps": 3, "initial_coefficient": 10.0, "clamp": False}
    broken = world.tasks[0].spec.head.model_copy(update={"scale": 1e39})
    spec = world.tasks[0].spec.model_copy(update={"head": broken})
    task = world.tasks[0].model_copy(update={"spec": spec})
    with pytest.raises(NotFinite, match=r"task 'task-0' is nan at step 1 of 3"):
        World(world.base, world.models, (task, world.tasks[1])).merge(tmp_path / "out", runaway)


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.6931472], [100.0, 0.0]])
    # ln 2; of (1/3, 2/3): ln 3 − 2/3 ln 2; none
    assert entropy_of_logits(logits).tolist() == pytest.approx([0.693147, 0.636514, 0.0], abs=1e-5)
    assert entropy_of_logits(torch.zeros(2, 1)).tolist() == [0.0, 0.0]
    assert entropy_of_mean(torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(0.693147)
    assert entropy_of_mean(torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == 0.0
