"""Every kind of task that can be trained on: the result has its base's tensors, some of them moved, and is measured."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from app.domain.tasks import LocalTask
from app.domain.work import FinetuneWork
from tests.workers import tiny_bert, tiny_language, tiny_vision
from tests.workers.tiny_tasks import make_answers, make_images, make_prototypes, make_texts
from workers.catalog import load_evaluator, load_finetuner
from workers.pipelines.finetune import finetune


@pytest.mark.parametrize(
    ("make_model", "make_task", "moved", "kept"),
    [
        (tiny_vision.make_clip, make_images, "vision_model.", ("text_model.", "vision_model.embeddings.")),
        (tiny_vision.make_vit, make_prototypes, "encoder.", ("embeddings.", "pooler.")),
        (tiny_language.make_t5, make_answers, "decoder.block.", ("shared.",)),
        (tiny_language.make_gpt2, make_texts, "transformer.h.", ("transformer.wte.",)),
    ],
    ids=["clip", "vit", "t5", "gpt2"],
)
def test_full_fine_tuning_moves_what_the_task_reaches(
    tmp_path: Path,
    make_model: Callable[[Path], Path],
    make_task: Callable[[Path], LocalTask],
    moved: str,
    kept: tuple[str, ...],
) -> None:
    base, task = tiny_bert.local(make_model(tmp_path / "base")), make_task(tmp_path / "task")
    (tmp_path / "output").mkdir()
    work = FinetuneWork(
        base_model=base,
        head_base_model=base,
        task=task,
        technique="full",
        parameters={"steps": 3, "learning_rate": 1e-2, "batch_size": 4},
        seed=0,
        output=tmp_path / "output",
    )

    manifest, _, measurements = finetune(work, load_evaluator(task.spec.kind), load_finetuner("full"), tiny_bert.ignore)

    before, after = (load_file(path / "model.safetensors") for path in (base.path, work.output))
    assert [tensor.name for tensor in manifest.tensors] == [tensor.name for tensor in base.manifest.tensors]
    changed = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert any(name.startswith(moved) for name in changed)
    assert not [name for name in changed if name.startswith(kept)]
    assert [(row.name, row.split) for row in measurements] == [(task.spec.metric, "validation")]
