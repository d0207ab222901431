"""The body of POST /v1/tasks, with examples."""

from pydantic import ConfigDict

from app.domain.requests import TaskRequest


class TaskBody(TaskRequest):
    """What models are measured on: dataset, head, metric. A task does not change once made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "tickets",
                    "kind": "text-classification",
                    "dataset": {"train": "file:///data/tickets/train.jsonl", "test": "file:///data/tickets/test.jsonl"},
                    "columns": {"input": "text", "label": "label"},
                    "classes": ["billing", "outage"],
                    "head": {
                        "kind": "label_prompts",
                        "prompts": ["a question about an invoice", "a report of an outage"],
                        "scale": 20.0,
                    },
                    "preprocessing": {"max_tokens": 40},
                    "metric": "accuracy",
                }
            ]
        }
    )
