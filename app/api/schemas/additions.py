"""The body of POST /v1/artifacts/{id}/tasks, with examples."""

from pydantic import ConfigDict

from app.domain.requests import TaskAdditionRequest


class TaskAdditionBody(TaskAdditionRequest):
    """Add models to a merged artifact; the result is a checkpoint, the next version of the artifact's by default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"models": [{"checkpoint": "reviews-expert", "task": "reviews"}], "evaluate": ["reviews"]},
                {
                    "models": [{"checkpoint": "emoji-expert@2", "weight": 0.5}],
                    "output": {"name": "helpdesk-and-emoji", "tags": {"team": "support"}},
                },
            ]
        }
    )
