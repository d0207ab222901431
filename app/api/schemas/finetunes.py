"""The body of POST /v1/finetunes, with examples."""

from pydantic import ConfigDict

from app.domain.requests import FinetuneRequest


class FinetuneBody(FinetuneRequest):
    """Train a base model on one task; the result is a checkpoint with that base and that task."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "base_model": "minilm",
                    "task": "tickets",
                    "technique": "full",
                    "parameters": {"steps": 75, "learning_rate": 5e-5, "batch_size": 16},
                    "seed": 0,
                    "output": {"name": "tickets-expert"},
                },
                {
                    "base_model": "minilm",
                    "task": "tickets",
                    "technique": "linearized_lora",
                    "parameters": {"rank": 16, "alpha": 32, "validate_every": 25, "keep": "best"},
                    "output": {"name": "tickets-adapter"},
                },
            ]
        }
    )
