"""The body of POST /v1/artifacts/{id}/materializations, with examples."""

from pydantic import ConfigDict

from app.domain.requests import MaterializationRequest


class MaterializationBody(MaterializationRequest):
    """Write the dense models of tasks; each is a checkpoint."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"task": "tickets", "output": {"name": "tickets-from-helpdesk", "tags": {"team": "support"}}},
                {"task": "reviews"},
                {"tasks": ["tickets", "reviews"], "output": {"name": "from-helpdesk"}},
            ]
        }
    )
