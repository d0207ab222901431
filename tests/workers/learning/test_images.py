"""Merge methods learn on tasks of images as on tasks of texts."""

import json
from pathlib import Path

from app.domain.tasks import LabelPromptsHead, LocalTask
from tests.workers import tiny_bert, tiny_vision
from tests.workers.learning.world import World


def test_coefficients_of_clips_are_learned_on_their_images(tmp_path: Path) -> None:
    base, *models = (tiny_bert.local(tiny_vision.make_clip(tmp_path / f"clip-{seed}", seed=seed)) for seed in range(3))
    tasks = tuple(_make_task(tmp_path, name) for name in ("cat", "dog"))
    world = World(base=base, models=tuple(models), tasks=tasks)
    outcome = world.merge(tmp_path / "out", {"steps": 3, "batch_size": 4, "learning_rate": 0.1})

    coefficients = json.loads((tmp_path / "out" / "coefficients.json").read_text(encoding="utf-8"))["coefficients"]
    assert any(value != 0.3 for values in coefficients.values() for value in values)
    assert [tensor.name for tensor in outcome.manifest.tensors] == [tensor.name for tensor in base.manifest.tensors]


def _make_task(folder: Path, name: str) -> LocalTask:
    head = LabelPromptsHead(kind="label_prompts", prompts=(f"a {name}", f"the {name}"))
    return tiny_vision.make_task(folder / name, name=name, head=head).model_copy(update={"id": f"task_{name}"})
