"""Examples of the bodies about checkpoints, and their problems in the form of an error."""

from app.api.problems import complete
from app.domain.views.checkpoints import CheckpointView, ImportView

REGISTER_EXAMPLES = {
    "folder": {
        "summary": "A Hugging Face folder, read where it lies",
        "value": {
            "uri": "file:///models/tickets-expert",
            "name": "tickets-expert",
            "task": "tickets",
            "base_checkpoint": "minilm",
            "tags": {"team": "support"},
        },
    },
    "bucket": {
        "summary": "A prefix in S3, copied into the store",
        "value": {"uri": "s3://models/minilm", "name": "minilm", "storage": "copy"},
    },
}
CHANGE_EXAMPLES = {"tags": {"summary": "New tags", "value": {"tags": {"team": "support", "stage": "candidate"}}}}
COMPATIBILITY_EXAMPLES = {
    "three": {"summary": "Two models over a base", "value": {"base_model": "minilm", "models": ["tickets", "emoji@2"]}}
}


def show(view: CheckpointView) -> CheckpointView:
    """Return a checkpoint whose problem, if it has one, has the form of an error."""
    return view if view.problem is None else view.model_copy(update={"problem": complete(view.problem)})


def show_import(view: ImportView) -> ImportView:
    """Return an import as it is answered."""
    return view.model_copy(update={"checkpoint": show(view.checkpoint)})
