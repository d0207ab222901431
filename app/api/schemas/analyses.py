"""The body of POST /v1/analyses, with examples."""

from pydantic import ConfigDict
from pydantic.config import JsonDict

from app.domain.requests import AnalysisRequest

_MODELS: JsonDict = {"base_model": "minilm", "models": ["tickets-expert", "reviews-expert"]}
_TASKS: JsonDict = {"tasks": ["tickets", "reviews"]}


class AnalysisBody(AnalysisRequest):
    """Look at models without changing them: their weights alone, or what merges of them score on tasks."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"kind": "task_vector_cosines", **_MODELS},
                {"kind": "sign_conflict", **_MODELS, "parameters": {"density": 0.2}},
                {"kind": "spectrum", **_MODELS, "parameters": {"energy": 0.95}},
                {
                    "kind": "loss_landscape",
                    **_MODELS,
                    **_TASKS,
                    "split": "validation",
                    "parameters": {"n_steps": 11, "low": -0.5, "high": 1.5},
                },
                {
                    "kind": "task_trend",
                    **_MODELS,
                    **_TASKS,
                    "parameters": {"merge": {"method": "ties", "parameters": {"density": 0.2}}, "max_subsets": 20},
                },
                {"kind": "feature_distance", **_MODELS, **_TASKS, "merged": "helpdesk"},
                {
                    "kind": "negation",
                    "base_model": "minilm",
                    "models": ["tickets-expert"],
                    "tasks": ["tickets", "reviews"],
                    "parameters": {"min_control": 0.95},
                },
            ]
        }
    )
