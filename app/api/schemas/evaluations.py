"""The body of POST /v1/evaluations, with examples."""

from pydantic import ConfigDict

from app.domain.requests import EvaluationRequest


class EvaluationBody(EvaluationRequest):
    """Measure a checkpoint on tasks."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"checkpoint": "helpdesk", "tasks": ["tickets", "reviews"], "split": "test"}]}
    )
