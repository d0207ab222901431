"""The body of POST /v1/analyses, with examples."""

from pydantic import ConfigDict

from app.domain.requests import AnalysisRequest


class AnalysisBody(AnalysisRequest):
    """Look at models: the cosines of their task vectors."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "task_vector_cosines",
                    "base_model": "minilm",
                    "models": ["tickets-expert", "reviews-expert"],
                }
            ]
        }
    )
