"""The body of POST /v1/merges and POST /v1/plans, with examples."""

from pydantic import ConfigDict

from app.domain.requests import MergeRequest


class MergeBody(MergeRequest):
    """A merge. Everything but `method`, `models`, and `base_model` where the method needs it, may be left out."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "method": "ties",
                    "base_model": "minilm",
                    "models": [
                        {"checkpoint": "tickets-expert", "weight": 1.0},
                        {"checkpoint": "reviews-expert@2", "weight": 0.8},
                    ],
                    "parameters": {"density": 0.2, "scaling_coefficient": 1.0},
                    "output": {"name": "helpdesk", "dtype": "float32", "tags": {"team": "support"}},
                    "evaluate": ["tickets", {"task": "reviews", "split": "validation"}],
                },
                {
                    "method": "task_arithmetic",
                    "base_model": "minilm",
                    "models": [{"checkpoint": "tickets-expert"}, {"checkpoint": "reviews-expert"}],
                    "parameters": {"scaling_coefficient": [0.2, 0.5]},
                    "overrides": [
                        {"match": "*attention*", "parameters": {"scaling_coefficient": 0.3}, "weights": [1.0, 0.5]}
                    ],
                    "transforms": [{"name": "awd"}],
                },
                {
                    "method": "average",
                    "models": [{"checkpoint": "tickets-expert"}, {"checkpoint": "reviews-expert"}],
                },
            ]
        }
    )
