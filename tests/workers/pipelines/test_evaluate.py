from pathlib import Path

from app.domain.checkpoints import LocalCheckpoint
from app.domain.jobs import Progress
from app.domain.work import EvaluateWork, PatchedTasks
from tests.workers import tiny_bert
from tests.workers.files import FileMerge
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


def test_each_task_of_a_multitask_checkpoint_is_measured_with_its_own_patch(tmp_path: Path) -> None:
    base, *models = (tiny_bert.local(tiny_bert.make_encoder(tmp_path / f"bert-{seed}", seed=seed)) for seed in range(3))
    manifest = FileMerge("peru_fft", {"density": 1.0})(base, models, tmp_path / "artifact")
    artifact = LocalCheckpoint(id="artifact", path=tmp_path / "artifact", manifest=manifest)
    plain = make_work(tmp_path)
    (tmp_path / "scratch").mkdir()
    labels = {"task_a": "model-0", "task_b": "model-1"}
    patched = PatchedTasks(labels=labels, scratch=tmp_path / "scratch")
    found = evaluate(
        plain.model_copy(update={"checkpoint": artifact, "patched": patched}), EVALUATORS, tiny_bert.ignore
    )
    alone = [
        evaluate(plain.model_copy(update={"checkpoint": model, "tasks": (task,)}), EVALUATORS, tiny_bert.ignore)
        for model, task in zip(models, plain.tasks, strict=True)
    ]
    assert found == (*alone[0], *alone[1])
    assert list((tmp_path / "scratch").iterdir()) == []
