from pathlib import Path

import pytest
import torch

from app.domain.checkpoints import LocalCheckpoint
from app.domain.jobs import Progress
from app.domain.work import EvaluateWork, PatchedTasks
from tests.workers import tiny_bert
from tests.workers.files import FileMerge
from workers.checkpoints.model import Encoder, load_encoder
from workers.evaluators import text_classification
from workers.pipelines.evaluate import evaluate

EVALUATORS = {"text-classification": text_classification.measure}
SHORT = {"max_tokens": 16, "batch_size": 3}


def make_work(folder: Path) -> EvaluateWork:
    first = tiny_bert.make_task(folder / "first", preprocessing=SHORT, name="first")
    second = tiny_bert.make_task(folder / "second", preprocessing=SHORT, name="second")
    tasks = (first.model_copy(update={"id": "task_a"}), second.model_copy(update={"id": "task_b"}))
    base_model = tiny_bert.local(tiny_bert.make_encoder(folder / "base"))
    return EvaluateWork(
        checkpoint=base_model,
        tasks=tasks,
        base_models=dict.fromkeys(("task_a", "task_b"), base_model),
        split={"task_a": "test", "task_b": "validation"},
    )


def make_patched(folder: Path) -> tuple[EvaluateWork, list[LocalCheckpoint]]:
    """Return the work of a multitask checkpoint that holds two models whole, and the models."""
    base, *models = (tiny_bert.local(tiny_bert.make_encoder(folder / f"bert-{seed}", seed=seed)) for seed in range(3))
    manifest = FileMerge("peru_fft", {"density": 1.0})(base, models, folder / "artifact")
    (folder / "scratch").mkdir()
    patched = PatchedTasks(labels={"task_a": "model-0", "task_b": "model-1"}, scratch=folder / "scratch")
    artifact = LocalCheckpoint(id="artifact", path=folder / "artifact", manifest=manifest)
    return make_work(folder).model_copy(update={"checkpoint": artifact, "patched": patched}), models


def test_every_task_is_measured_on_its_split_in_the_order_given(tmp_path: Path) -> None:
    found = evaluate(make_work(tmp_path), EVALUATORS, tiny_bert.ignore)
    assert [(one.task, one.split, one.n) for one in found] == [("task_a", "test", 6), ("task_b", "validation", 6)]


def test_numbers_do_not_depend_on_what_else_is_measured(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    both = evaluate(work, EVALUATORS, tiny_bert.ignore)
    alone = evaluate(work.model_copy(update={"tasks": work.tasks[1:]}), EVALUATORS, tiny_bert.ignore)
    assert alone == both[1:]


def test_progress_rises_to_one_with_examples_and_time_left(tmp_path: Path) -> None:
    reports: list[Progress] = []
    evaluate(make_work(tmp_path), EVALUATORS, reports.append)
    assert [(report.stage, report.done, report.total) for report in reports] == [
        ("measuring first", 3, 6), ("measuring first", 6, 6), ("measuring second", 3, 6), ("measuring second", 6, 6)
    ]  # fmt: skip
    assert [report.fraction for report in reports] == [0.25, 0.5, 0.75, 1.0]
    assert reports[-1].eta_seconds == 0
    assert {report.unit for report in reports} == {"examples"}


def test_the_base_of_the_heads_is_loaded_once_for_all_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = make_patched(tmp_path)[0]
    loaded: list[str] = []

    def load(checkpoint: LocalCheckpoint, device: torch.device) -> Encoder:
        loaded.append(checkpoint.id)
        return load_encoder(checkpoint, device)

    monkeypatch.setattr(text_classification, "load_encoder", load)
    evaluate(work, EVALUATORS, tiny_bert.ignore)
    assert sorted(loaded) == ["artifact", "artifact", work.base_models["task_a"].id]


def test_each_task_of_a_multitask_checkpoint_is_measured_with_its_own_patch(tmp_path: Path) -> None:
    work, models = make_patched(tmp_path)
    found = evaluate(work, EVALUATORS, tiny_bert.ignore)
    alone = [
        evaluate(
            work.model_copy(update={"checkpoint": model, "tasks": (task,), "patched": None}),
            EVALUATORS,
            tiny_bert.ignore,
        )
        for model, task in zip(models, work.tasks, strict=True)
    ]
    assert found == (*alone[0], *alone[1])
    assert list((tmp_path / "scratch").iterdir()) == []
