import json
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file

from app.domain.checkpoints import Manifest
from app.domain.errors import HeadMismatch
from app.domain.jobs import Progress
from app.domain.tasks import LocalTask, Measurement
from app.domain.work import FinetuneWork
from tests.workers import tiny_bert
from workers.evaluators import text_classification
from workers.finetuning import full
from workers.model_contract import Evaluator
from workers.pipelines.finetune import finetune
from workers.pipelines.importing import import_checkpoint

EVALUATOR = text_classification.measure
PARAMETERS: dict[str, JsonValue] = {"steps": 60, "learning_rate": 0.02, "batch_size": 4}
SHORT = {"max_tokens": 16}

Result = tuple[Manifest, dict[str, JsonValue], tuple[Measurement, ...]]


def make_work(folder: Path, *, task: LocalTask | None = None, output: str = "out", seed: int = 0) -> FinetuneWork:
    base = folder / "base"
    base_model = tiny_bert.local(base if base.exists() else tiny_bert.make_encoder(base))
    (folder / output).mkdir()
    return FinetuneWork(
        base_model=base_model,
        head_base_model=base_model,
        task=task or tiny_bert.make_task(folder / "task", preprocessing=SHORT),
        technique="full",
        parameters=PARAMETERS,
        seed=seed,
        output=folder / output,
    )


def run(work: FinetuneWork, reports: list[Progress] | None = None) -> Result:
    return finetune(work, EVALUATOR, full.train, tiny_bert.ignore if reports is None else reports.append)


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_task_is_learned_and_measured_on_validation(tmp_path: Path) -> None:
    _, report, measurements = run(make_work(tmp_path))
    losses = report["losses"]
    assert isinstance(losses, list)
    first, last = losses[0], losses[-1]
    assert isinstance(first, dict)
    assert isinstance(last, dict)
    assert (first["step"], last["step"]) == (1, 60)
    assert float(str(last["loss"])) < 0.2 * float(str(first["loss"]))
    assert [(m.name, m.split, m.n, m.value) for m in measurements] == [("accuracy", "validation", 6, 1.0)]


def test_same_work_same_bytes_other_seed_other_weights(tmp_path: Path) -> None:
    run(make_work(tmp_path))
    run(make_work(tmp_path, output="again"))
    run(make_work(tmp_path, output="other", seed=1))
    first, again, other = (read_all(tmp_path / name) for name in ("out", "again", "other"))
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def test_manifest_is_that_of_an_import(tmp_path: Path) -> None:
    manifest, _, _ = run(make_work(tmp_path))
    assert manifest == import_checkpoint(tmp_path / "out", tiny_bert.ignore)
    assert {tensor.name for tensor in manifest.tensors} == set(load_file(tmp_path / "base/model.safetensors"))


def test_report_says_what_was_trained(tmp_path: Path) -> None:
    _, report, _ = run(make_work(tmp_path))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert all(name.startswith("encoder.") for name in changed)
    n_encoder = sum(value.numel() for name, value in before.items() if name.startswith("encoder."))
    assert report["n_trained_parameters"] == n_encoder
    assert report["n_changed_tensors"] == len(changed)
    assert report["parameters"] == full.FullParameters.model_validate(PARAMETERS).model_dump(mode="json")
    assert report["technique"] == "full"


def test_recipe_and_card_tell_the_inputs_and_no_folder_or_id(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    run(work)
    recipe = json.loads((tmp_path / "out/finetune.json").read_text())
    pinned = {
        "content_digest": work.base_model.manifest.digest,
        "weights_digest": work.base_model.manifest.weights_digest,
    }
    assert recipe == {
        "format_version": 1,
        "technique": "full",
        "technique_version": 1,
        "base_model": pinned,
        "head_base_model": pinned,
        "task": {"name": "kind", "digest": work.task.spec.digest},
        "parameters": full.FullParameters.model_validate(PARAMETERS).model_dump(mode="json"),
        "seed": 0,
    }
    card = (tmp_path / "out/README.md").read_text()
    assert work.base_model.manifest.digest in card
    for text in (card, (tmp_path / "out/finetune.json").read_text()):
        assert str(tmp_path) not in text
        assert work.task.id not in text


def test_progress_counts_steps_with_loss_and_never_falls(tmp_path: Path) -> None:
    reports: list[Progress] = []
    run(make_work(tmp_path), reports)
    training = [report for report in reports if report.stage == "training"]
    assert [(report.done, report.total, report.unit) for report in training] == [(n, 60, "steps") for n in range(1, 61)]
    assert all(report.loss is not None and report.eta_seconds is not None for report in training)
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {report.stage for report in reports} == {"training", "writing", "hashing", "validating"}


def test_a_task_without_validation_is_not_measured(tmp_path: Path) -> None:
    task = tiny_bert.make_task(tmp_path / "task", preprocessing=SHORT)
    only_train = tiny_bert.as_task({"train": task.files["train"]}, preprocessing=SHORT)
    assert run(make_work(tmp_path, task=only_train))[2] == ()


def test_the_result_can_be_trained_again_under_the_first_base_s_head(tmp_path: Path) -> None:
    first = make_work(tmp_path)
    run(first)
    second = make_work(tmp_path, output="second").model_copy(update={"base_model": tiny_bert.local(tmp_path / "out")})
    manifest, _, measurements = run(second)
    recipe = json.loads((tmp_path / "second/finetune.json").read_text())
    assert recipe["base_model"] != recipe["head_base_model"]
    assert "README.md" in {file.path for file in manifest.files}
    assert measurements[0].value == 1.0


def test_settings_of_torch_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run(make_work(tmp_path))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_an_evaluator_that_cannot_train_is_refused(tmp_path: Path) -> None:
    measuring_only = Evaluator(EVALUATOR.card, EVALUATOR.parameters, EVALUATOR.measure, None)
    with pytest.raises(HeadMismatch, match="'text-classification' cannot be trained on"):
        finetune(make_work(tmp_path), measuring_only, full.train, tiny_bert.ignore)
