"""The catalog's lists."""

from pydantic import BaseModel

from app.domain.catalog import EvaluatorCard, FinetunerCard, MethodCard


class MethodList(BaseModel):
    """All merge methods, by name; one page."""

    items: list[MethodCard]
    next_cursor: None = None


class EvaluatorList(BaseModel):
    """All evaluators, by name; one page."""

    items: list[EvaluatorCard]
    next_cursor: None = None


class FinetunerList(BaseModel):
    """All fine-tuning techniques, by name; one page."""

    items: list[FinetunerCard]
    next_cursor: None = None
