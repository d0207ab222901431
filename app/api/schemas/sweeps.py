"""The body of POST /v1/sweeps, with examples."""

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from app.api.schemas.merges import MergeBody
from app.domain.sweep_requests import SweepRequest

_MERGE: JsonDict = {
    "method": "task_arithmetic",
    "base_model": "minilm",
    "models": [{"checkpoint": "tickets-expert"}, {"checkpoint": "reviews-expert"}],
    "output": {"name": "helpdesk"},
    "evaluate": ["tickets", "reviews"],
}


class SweepBody(SweepRequest):
    """A merge at every point of a grid, or at points that a search proposes; the best on validation is kept."""

    merge: MergeBody = Field(description="As for POST /v1/merges; what is swept may be left out.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "merge": _MERGE,
                    "grid": {"scaling_coefficient": [0.1, 0.2, 0.3, 0.4, 0.5]},
                    "select_on": {"split": "validation", "metric": "accuracy"},
                },
                {
                    "merge": {**_MERGE, "method": "ties"},
                    "search": {
                        "parameters": {
                            "density": {"low": 0.05, "high": 1.0, "log": True},
                            "scaling_coefficient": {"low": 0.2, "high": 2.0},
                            "models.0.weight": {"choices": [0.5, 1.0]},
                        },
                        "n_trials": 30,
                        "seed": 0,
                    },
                    "select_on": {"tasks": ["tickets"]},
                },
            ]
        }
    )
