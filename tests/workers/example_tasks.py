"""The tasks of examples/tasks as pipelines take them."""

import json
from pathlib import Path

from app.domain.tasks import LocalTask, TaskSpec
from tests.workers import tiny_bert

FOLDER = Path(__file__).parents[2] / "examples" / "tasks"
NAMES = tuple(sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir()))


def load(name: str) -> LocalTask:
    """Return an example task, its files hashed as POST /v1/tasks does."""
    body = json.loads((FOLDER / name / "task.json").read_text(encoding="utf-8"))
    files = {split: FOLDER / name / file for split, file in body["dataset"].items()}
    spec = TaskSpec.model_validate(
        {**body, "dataset": {split: tiny_bert.data_file(path) for split, path in files.items()}}
    )
    return LocalTask(id=f"task_{name}", spec=spec, files=files)
